/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* live: open connections that meet no proxy, with what they have moved so far.
 *
 * Hook:     iter/bpf_sk_storage_map over map `sockets`; not pinned, run when read
 * Reads:    sockets, joins, moved. Writes: nothing but its output, struct qn_live one after the other
 * Returns:  0
 * Floor:    5.11 (bpf_skc_to_tcp_sock in iterators), with BTF
 * Cannot decide: a record that does not fit the reader's buffer is written in the next read
 *
 * Asking when somebody looks costs connections nothing while nobody does.
 */
#include "iterated.h"
#include "maps.h"
#include "moved_maps.h"
#include "traffic.h"

#define FIN_WAIT2 5

struct tcp_sock {
	__u64 bytes_acked;
	__u64 bytes_received;
	__u32 srtt_us;
	__u32 total_retrans;
} CORE;

/* What the shortcut moved was no TCP. */
static __always_inline void count_moved(struct sock *sk, struct qn_live *out)
{
	struct qn_join *j = bpf_sk_storage_get(&joins, sk, 0, 0);
	__u64 *from_server;

	if (!j || j->cookie != out->socket)
		return;
	from_server = bpf_map_lookup_elem(&moved, &out->socket);
	out->bytes_sent += j->bytes;
	if (from_server)
		out->bytes_received += *from_server;
}

SEC("iter/bpf_sk_storage_map")
int qn_live(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct qn_socket *s = ctx->value;
	struct sock *sk = ctx->sk;
	struct qn_live out = {};
	struct tcp_sock *tcp;

	if (!sk || !s || !s->start_ns)
		return 0;
	tcp = bpf_skc_to_tcp_sock(sk);
	if (!tcp)
		return 0;
	qn_iterated_addrs(sk, &out.track.local, &out.track.remote);
	out.track.dialled = s->addr.family ? s->addr : out.track.remote;
	out.track.start_ns = s->start_ns;
	out.track.established_ns = s->established_ns;
	out.track.src = s->src;
	out.track.dst = s->dst;
	out.track.rule = s->rule;
	out.track.path = s->path;
	out.socket = qn_iterated_cookie(sk);
	out.bytes_sent = tcp->bytes_acked;
	out.bytes_received = tcp->bytes_received;
	/* As in tracking.h: SYN and FIN are no bytes of the application's. */
	out.bytes_sent -= out.bytes_sent > 0;
	if (sk->__sk_common.skc_state == FIN_WAIT2)
		out.bytes_sent -= out.bytes_sent > 0;
	if (s->marks & QN_MARK_FIN_IN)
		out.bytes_received -= out.bytes_received > 0;
	count_moved(sk, &out);
	out.srtt_us = tcp->srtt_us >> 3;
	out.retransmits = tcp->total_retrans;
	bpf_seq_write(ctx->meta->seq, &out, sizeof(out));
	return 0;
}

char LICENSE[] SEC("license")
= "Dual BSD/GPL";
