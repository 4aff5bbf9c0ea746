/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* listing: the sockets that take a path, with what was decided for them, as the kernel has them at this moment.
 *
 * Hook:     iter/bpf_sk_storage_map over map `sockets`; not pinned, run when read
 * Reads:    sockets. Writes: nothing but its output, struct qn_listed one after the other
 * Returns:  0
 * Floor:    5.11 (bpf_skc_to_tcp_sock in iterators), with BTF; without it no connection goes direct, since none could be cut
 * Cannot decide: a socket whose record does not fit the reader's buffer is written in the next read
 *
 * Why not a map of live direct flows: it would need a size, would leak where connect() fails early, and a new agent would
 * have to trust what an old one left. Storage goes with its socket.
 */
#include "iterated.h"
#include "maps.h"

struct tcp_sock {
	__u32 snd_nxt;
	__u32 rcv_nxt;
} CORE;

SEC("iter/bpf_sk_storage_map")
int qn_listing(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct qn_addr local = {}, remote = {};
	struct qn_socket *s = ctx->value;
	struct sock *sk = ctx->sk;
	struct qn_listed out = {};
	struct tcp_sock *tcp;

	if (!sk || !s || s->path == QN_PATH_NONE)
		return 0;
	tcp = bpf_skc_to_tcp_sock(sk);
	if (!tcp)
		return 0;
	qn_iterated_addrs(sk, &local, &remote);
	out.socket = *s;
	__builtin_memcpy(out.local, local.ip, 16);
	__builtin_memcpy(out.remote, remote.ip, 16);
	out.local_port = local.port;
	out.remote_port = remote.port;
	out.family = remote.family;
	out.is_v6 = (__u8)qn_is_v6(sk);
	out.state = sk->__sk_common.skc_state;
	out.cookie = qn_iterated_cookie(sk);
	out.netns = sk->__sk_common.skc_net.net->net_cookie;
	out.snd_nxt = tcp->snd_nxt;
	out.rcv_nxt = tcp->rcv_nxt;
	bpf_seq_write(ctx->meta->seq, &out, sizeof(out));
	return 0;
}

char LICENSE[] SEC("license")
= "Dual BSD/GPL";
