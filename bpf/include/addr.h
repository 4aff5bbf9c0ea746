/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* Building and comparing struct qn_addr in BPF programs. An IPv4-mapped IPv6 address is family 4 here. */
#ifndef QANAT_ADDR_H
#define QANAT_ADDR_H

#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "qanat.h"

#define QN_AF_INET 2
#define QN_AF_INET6 10
#define QN_MAPPED bpf_htonl(0x0000ffff)
#define QN_LOOPBACK4 bpf_htonl(0x7f000001)

/* The four words of an address as the kernel's contexts give them, in network order. */
struct qn_words {
	__u32 w[4];
};

static __always_inline void qn_ip_set(__u8 ip[16], __u8 *family, const struct qn_words *a, int is_v6)
{
	struct qn_words v = {};

	if (!is_v6) {
		v.w[0] = a->w[0];
		*family = 4;
	} else if (!a->w[0] && !a->w[1] && a->w[2] == QN_MAPPED) {
		v.w[0] = a->w[3];
		*family = 4;
	} else {
		v = *a;
		*family = 6;
	}
	__builtin_memcpy(ip, &v, 16);
}

static __always_inline struct qn_words qn_ip_words(const __u8 ip[16])
{
	struct qn_words v;

	__builtin_memcpy(&v, ip, 16);
	return v;
}

static __always_inline int qn_ip_equal(const __u8 a[16], const __u8 b[16])
{
	struct qn_words x = qn_ip_words(a), y = qn_ip_words(b);

	return x.w[0] == y.w[0] && x.w[1] == y.w[1] && x.w[2] == y.w[2] && x.w[3] == y.w[3];
}

static __always_inline int qn_is_loopback(const __u8 ip[16], __u8 family)
{
	struct qn_words v = qn_ip_words(ip);

	if (family == 4)
		return (v.w[0] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
	return !v.w[0] && !v.w[1] && !v.w[2] && v.w[3] == bpf_htonl(1);
}

static __always_inline int qn_is_unspecified(const __u8 ip[16])
{
	struct qn_words v = qn_ip_words(ip);

	return !v.w[0] && !v.w[1] && !v.w[2] && !v.w[3];
}

/* fe80::/10: means nothing without an interface, which the hooks do not show. */
static __always_inline int qn_is_link_local6(const __u8 ip[16], __u8 family)
{
	struct qn_words v = qn_ip_words(ip);

	return family == 6 && (v.w[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

/* Both ends from the socket's own point of view. A program that calls it sees its context's addresses field by field,
 * as the verifier wants it.
 */
static __always_inline void qn_sock_addrs(struct bpf_sock_ops *ctx, struct qn_addr *local, struct qn_addr *remote)
{
	if (ctx->family == QN_AF_INET6) {
		struct qn_words l = { { ctx->local_ip6[0], ctx->local_ip6[1], ctx->local_ip6[2], ctx->local_ip6[3] } };
		struct qn_words r = { { ctx->remote_ip6[0], ctx->remote_ip6[1], ctx->remote_ip6[2],
					ctx->remote_ip6[3] } };

		qn_ip_set(local->ip, &local->family, &l, 1);
		qn_ip_set(remote->ip, &remote->family, &r, 1);
	} else {
		struct qn_words l = { { ctx->local_ip4 } };
		struct qn_words r = { { ctx->remote_ip4 } };

		qn_ip_set(local->ip, &local->family, &l, 0);
		qn_ip_set(remote->ip, &remote->family, &r, 0);
	}
	local->port = (__u16)ctx->local_port;
	remote->port = (__u16)bpf_ntohl(ctx->remote_port);
}

static __always_inline int qn_pod_owns(const struct qn_pod *pod, const __u8 ip[16], __u8 family)
{
#pragma unroll
	for (int i = 0; i < QN_POD_ADDRS; i++) {
		if (pod->addrs[i].family == family && qn_ip_equal(pod->addrs[i].ip, ip))
			return 1;
	}
	return 0;
}

#endif
