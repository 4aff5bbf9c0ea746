/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* stats: what became of connections that meet no proxy: direct and bypassed ones.
 *
 * Hook:     sockops
 * Attached: the v2 root; BPF_F_ALLOW_MULTI; beside `flows`, in any order
 * Reads:    sockets, joins, moved. Writes: tracked, traffic, traffic_other, closings, counters
 * Returns:  always 1; never touches `reply`
 * Floor:    5.15
 * Cannot decide: nothing depends on it. Without storage a connection goes uncounted; without room in `traffic` it is
 *           counted in `traffic_other`; without room in `closings` its record is lost. Each is counted.
 *
 * Called at the SYN, when it is answered and at changes of state: nothing runs while bytes move.
 */
#include "addr.h"
#include "maps.h"
#include "moved_maps.h"
#include "traffic_maps.h"

/* Part of the ring that may fill before its reader is woken. */
#define WAKE_BYTES (QN_CLOSINGS_BYTES / 4)

static __always_inline void on_connect(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct qn_track t = {};
	struct qn_socket *s;

	if (!sk)
		return;
	s = bpf_sk_storage_get(&sockets, sk, 0, 0);
	if (!s || (s->path != QN_PATH_DIRECT && s->path != QN_PATH_BYPASS) || s->role == QN_ROLE_ZTUNNEL)
		return;
	t.start_ns = bpf_ktime_get_ns();
	t.src = s->src ? s->src : bpf_get_netns_cookie(ctx);
	t.dst = s->dst;
	t.rule = s->rule;
	t.path = s->path;
	qn_sock_addrs(ctx, &t.local, &t.remote);
	t.dialled = s->addr.family ? s->addr : t.remote;
	if (!bpf_sk_storage_get(&tracked, sk, &t, BPF_SK_STORAGE_GET_F_CREATE)) {
		qn_count(QN_CNT_UNTRACKED);
		return;
	}
	bpf_sock_ops_cb_flags_set(ctx, (int)ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
}

/* Where this connection is counted; the same place from its beginning to its end. */
static __always_inline struct qn_traffic *cell_of(struct qn_track *t)
{
	struct qn_traffic_key k = {
		.src = t->src,
		.dst = t->dst,
		.remote = t->remote,
		.dialled = t->dialled,
		.path = t->path,
	};
	struct qn_traffic fresh = {}, *cell;
	__u32 path = t->path;

	if (!t->is_other) {
		cell = bpf_map_lookup_elem(&traffic, &k);
		if (cell)
			return cell;
		bpf_map_update_elem(&traffic, &k, &fresh, BPF_NOEXIST);
		cell = bpf_map_lookup_elem(&traffic, &k);
		if (cell)
			return cell;
		t->is_other = 1;
		qn_count(QN_CNT_TRAFFIC_FULL);
	}
	return bpf_map_lookup_elem(&traffic_other, &path);
}

static __always_inline void on_established(struct bpf_sock_ops *ctx, struct qn_track *t)
{
	struct qn_traffic *cell = cell_of(t);

	t->established_ns = bpf_ktime_get_ns();
	if (cell)
		__sync_fetch_and_add(&cell->opened, 1);
}

static __always_inline enum qn_end end_of(struct bpf_sock_ops *ctx, const struct qn_track *t)
{
	if (!t->established_ns)
		return QN_END_FAILED;
	switch (ctx->args[0]) {
	case BPF_TCP_FIN_WAIT2:
		return QN_END_CLOSED;
	case BPF_TCP_LAST_ACK:
	case BPF_TCP_CLOSING: /* in order if our FIN was acknowledged */
		return ctx->snd_una == ctx->snd_nxt ? QN_END_CLOSED : QN_END_RESET;
	default:
		return QN_END_RESET;
	}
}

/* The kernel counts SYN and FIN as bytes; an application does not. */
static __always_inline void count_bytes(struct bpf_sock_ops *ctx, const struct qn_track *t, struct qn_closing *c)
{
	int is_fin_acked = c->end == QN_END_CLOSED;
	__u64 sent = ctx->bytes_acked, received = ctx->bytes_received;
	int is_fin_in = t->is_fin_in;

	if (!t->established_ns)
		return;
	if (ctx->args[0] == BPF_TCP_FIN_WAIT2 && received != t->half_received)
		is_fin_in = 1;
	sent -= sent > 0;
	if (is_fin_acked)
		sent -= sent > 0;
	if (is_fin_in)
		received -= received > 0;
	c->bytes_sent = sent;
	c->bytes_received = received;
}

/* What the shortcut moved was no TCP. */
static __always_inline void count_moved(struct bpf_sock *sk, struct qn_closing *c)
{
	struct qn_join *j = bpf_sk_storage_get(&joins, sk, 0, 0);
	__u64 *from_server;

	if (!j || j->cookie != c->socket)
		return;
	from_server = bpf_map_lookup_elem(&moved, &c->socket);
	c->bytes_sent += j->bytes;
	if (from_server)
		c->bytes_received += *from_server;
}

static __always_inline void report(const struct qn_closing *c)
{
	__u64 waiting = bpf_ringbuf_query(&closings, BPF_RB_AVAIL_DATA);
	__u64 flags = waiting >= WAKE_BYTES ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP;

	if (bpf_ringbuf_output(&closings, (void *)c, sizeof(*c), flags))
		qn_count(QN_CNT_CLOSING_LOST);
}

static __always_inline void on_closed(struct bpf_sock_ops *ctx, struct bpf_sock *sk, struct qn_track *t)
{
	struct qn_closing c = {};
	struct qn_traffic *cell = cell_of(t);

	c.track = *t;
	c.end_ns = bpf_ktime_get_ns();
	c.socket = bpf_get_socket_cookie(ctx);
	c.end = end_of(ctx, t);
	count_bytes(ctx, t, &c);
	count_moved(sk, &c);
	c.srtt_us = ctx->srtt_us >> 3; /* the kernel keeps eighths */
	c.retransmits = ctx->total_retrans;
	if (cell) {
		__sync_fetch_and_add(t->established_ns ? &cell->closed : &cell->failed, 1);
		if (c.end == QN_END_RESET)
			__sync_fetch_and_add(&cell->resets, 1);
		__sync_fetch_and_add(&cell->bytes_sent, c.bytes_sent);
		__sync_fetch_and_add(&cell->bytes_received, c.bytes_received);
		__sync_fetch_and_add(&cell->retransmits, c.retransmits);
		if (t->established_ns)
			__sync_fetch_and_add(&cell->srtt_us, c.srtt_us);
	}
	report(&c);
	/* A socket may connect again. */
	bpf_sk_storage_delete(&tracked, sk);
}

static __always_inline void on_state(struct bpf_sock_ops *ctx, struct qn_track *t)
{
	switch (ctx->args[1]) {
	case BPF_TCP_CLOSE_WAIT:
	case BPF_TCP_CLOSING:
		t->is_fin_in = 1;
		break;
	case BPF_TCP_FIN_WAIT2:
		t->half_received = ctx->bytes_received;
		break;
	default:
		break;
	}
}

SEC("sockops")
int qn_stats(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct qn_track *t;

	if (ctx->op == BPF_SOCK_OPS_TCP_CONNECT_CB) {
		on_connect(ctx);
		return 1;
	}
	if (!sk || (ctx->op != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB && ctx->op != BPF_SOCK_OPS_STATE_CB))
		return 1;
	t = bpf_sk_storage_get(&tracked, sk, 0, 0);
	if (!t)
		return 1;
	if (ctx->op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB)
		on_established(ctx, t);
	else if (ctx->args[1] == BPF_TCP_CLOSE)
		on_closed(ctx, sk, t);
	else
		on_state(ctx, t);
	return 1;
}

char LICENSE[] SEC("license")
= "Dual BSD/GPL";
