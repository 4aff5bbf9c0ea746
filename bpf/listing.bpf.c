/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* listing: the sockets that take a path, with what was decided for them, as the kernel has them at this moment.
 *
 * Hook:     iter/bpf_sk_storage_map over map `sockets`; not pinned, run when read
 * Reads:    sockets. Writes: nothing but its output, struct qn_listed one after the other
 * Returns:  0
 * Floor:    5.10, with BTF; without it no connection goes direct, since none could be cut
 * Cannot decide: a socket whose record does not fit the reader's buffer is written in the next read
 *
 * Why not a map of live direct flows: it would need a size, would leak where connect() fails early, and a new agent would
 * have to trust what an old one left. Storage goes with its socket.
 */
#include "addr.h"
#include "maps.h"

#define CORE __attribute__((preserve_access_index))

/* The little of the kernel's structures that is read, relocated at load. */
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

static long (*const seq_write)(struct seq_file *m, const void *data, __u32 len) = (void *)BPF_FUNC_seq_write;

SEC("iter/bpf_sk_storage_map")
int qn_listing(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct qn_socket *s = ctx->value;
	struct sock *sk = ctx->sk;
	struct qn_listed out = {};
	__u8 other;

	if (!sk || !s || s->path == QN_PATH_NONE)
		return 0;
	out.socket = *s;
	out.is_v6 = sk->__sk_common.skc_family == QN_AF_INET6;
	if (out.is_v6) {
		struct qn_words l = { { sk->__sk_common.skc_v6_rcv_saddr.in6_u.u6_addr32[0],
					sk->__sk_common.skc_v6_rcv_saddr.in6_u.u6_addr32[1],
					sk->__sk_common.skc_v6_rcv_saddr.in6_u.u6_addr32[2],
					sk->__sk_common.skc_v6_rcv_saddr.in6_u.u6_addr32[3] } };
		struct qn_words r = { { sk->__sk_common.skc_v6_daddr.in6_u.u6_addr32[0],
					sk->__sk_common.skc_v6_daddr.in6_u.u6_addr32[1],
					sk->__sk_common.skc_v6_daddr.in6_u.u6_addr32[2],
					sk->__sk_common.skc_v6_daddr.in6_u.u6_addr32[3] } };

		qn_ip_set(out.local, &other, &l, 1);
		qn_ip_set(out.remote, &out.family, &r, 1);
	} else {
		struct qn_words l = { { sk->__sk_common.skc_rcv_saddr } };
		struct qn_words r = { { sk->__sk_common.skc_daddr } };

		qn_ip_set(out.local, &other, &l, 0);
		qn_ip_set(out.remote, &out.family, &r, 0);
	}
	out.local_port = sk->__sk_common.skc_num;
	out.remote_port = bpf_ntohs(sk->__sk_common.skc_dport);
	out.state = sk->__sk_common.skc_state;
	out.cookie = (__u64)sk->__sk_common.skc_cookie.counter;
	out.netns = sk->__sk_common.skc_net.net->net_cookie;
	seq_write(ctx->meta->seq, &out, sizeof(out));
	return 0;
}

char LICENSE[] SEC("license")
= "Dual BSD/GPL";
