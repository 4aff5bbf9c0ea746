/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* What iterators over socket storage read of the kernel's own structures, relocated at load. libbpf only. */
#ifndef QANAT_ITERATED_H
#define QANAT_ITERATED_H

#include "addr.h"

#define CORE __attribute__((preserve_access_index))

struct seq_file;
struct bpf_iter_meta {
	struct seq_file *seq;
} CORE;

struct net {
	__u64 net_cookie;
} CORE;

struct in6_addr___kernel {
	union {
		__u32 u6_addr32[4];
	} in6_u;
} CORE;

struct sock_common {
	__u32 skc_daddr;
	__u32 skc_rcv_saddr;
	__u16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	volatile unsigned char skc_state;
	struct {
		struct net *net;
	} skc_net;
	struct in6_addr___kernel skc_v6_daddr;
	struct in6_addr___kernel skc_v6_rcv_saddr;
	struct {
		long long counter;
	} skc_cookie;
} CORE;

struct sock {
	struct sock_common __sk_common;
} CORE;

struct bpf_iter__bpf_sk_storage_map {
	struct bpf_iter_meta *meta;
	void *map;
	struct sock *sk;
	void *value;
} CORE;

static __always_inline int qn_is_v6(const struct sock *sk)
{
	return sk->__sk_common.skc_family == QN_AF_INET6;
}

/* Both ends from the socket's own point of view. */
static __always_inline void qn_iterated_addrs(const struct sock *sk, struct qn_addr *local, struct qn_addr *remote)
{
	const struct sock_common *c = &sk->__sk_common;

	if (qn_is_v6(sk)) {
		struct qn_words l = { { c->skc_v6_rcv_saddr.in6_u.u6_addr32[0], c->skc_v6_rcv_saddr.in6_u.u6_addr32[1],
					c->skc_v6_rcv_saddr.in6_u.u6_addr32[2],
					c->skc_v6_rcv_saddr.in6_u.u6_addr32[3] } };
		struct qn_words r = { { c->skc_v6_daddr.in6_u.u6_addr32[0], c->skc_v6_daddr.in6_u.u6_addr32[1],
					c->skc_v6_daddr.in6_u.u6_addr32[2], c->skc_v6_daddr.in6_u.u6_addr32[3] } };

		qn_ip_set(local->ip, &local->family, &l, 1);
		qn_ip_set(remote->ip, &remote->family, &r, 1);
	} else {
		struct qn_words l = { { c->skc_rcv_saddr } };
		struct qn_words r = { { c->skc_daddr } };

		qn_ip_set(local->ip, &local->family, &l, 0);
		qn_ip_set(remote->ip, &remote->family, &r, 0);
	}
	local->port = c->skc_num;
	remote->port = bpf_ntohs(c->skc_dport);
}

static __always_inline __u64 qn_iterated_cookie(const struct sock *sk)
{
	return (__u64)sk->__sk_common.skc_cookie.counter;
}

#endif
