/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* The addresses and ports of a socket in a sockops program, as a key of `flows`. netns is left to the caller. */
#ifndef QANAT_TUPLE_H
#define QANAT_TUPLE_H

#include "addr.h"

/* From the socket's own point of view: src is the local end. */
static __always_inline void qn_read_tuple(struct bpf_sock_ops *ctx, struct qn_flow_key *k)
{
	if (ctx->family == QN_AF_INET6) {
		struct qn_words local = { { ctx->local_ip6[0], ctx->local_ip6[1], ctx->local_ip6[2],
					    ctx->local_ip6[3] } };
		struct qn_words remote = { { ctx->remote_ip6[0], ctx->remote_ip6[1], ctx->remote_ip6[2],
					     ctx->remote_ip6[3] } };

		qn_ip_set(k->src, &k->family, &local, 1);
		qn_ip_set(k->dst, &k->family, &remote, 1);
	} else {
		struct qn_words local = { { ctx->local_ip4 } };
		struct qn_words remote = { { ctx->remote_ip4 } };

		qn_ip_set(k->src, &k->family, &local, 0);
		qn_ip_set(k->dst, &k->family, &remote, 0);
	}
	k->src_port = (__u16)ctx->local_port;
	k->dst_port = (__u16)bpf_ntohl(ctx->remote_port);
}

/* From the other end's point of view: src is the remote end. */
static __always_inline void qn_read_reversed_tuple(struct bpf_sock_ops *ctx, struct qn_flow_key *k)
{
	struct qn_flow_key mine = {};

	qn_read_tuple(ctx, &mine);
	__builtin_memcpy(k->src, mine.dst, 16);
	__builtin_memcpy(k->dst, mine.src, 16);
	k->src_port = mine.dst_port;
	k->dst_port = mine.src_port;
	k->family = mine.family;
}

#endif
