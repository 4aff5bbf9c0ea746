/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* What became of connections that meet no proxy: direct and bypassed ones. Part of flows.bpf.c, and of the record that
 * `sockets` has of the client's socket: nothing of it is looked up or allocated for the telemetry's sake.
 *
 * Cannot decide: nothing depends on it. Without room in `traffic` a connection is counted in `traffic_other`; without room
 * in `closings` its record is lost. Each is counted.
 */
#ifndef QANAT_TRACKING_H
#define QANAT_TRACKING_H

#include "addr.h"
#include "maps.h"
#include "moved_maps.h"
#include "traffic_maps.h"

/* Part of the ring that may fill before its reader is woken. */
#define QN_WAKE_BYTES (QN_CLOSINGS_BYTES / 4)

static __always_inline int qn_is_trackable(const struct qn_socket *s)
{
	return (s->path == QN_PATH_DIRECT || s->path == QN_PATH_BYPASS) && s->role != QN_ROLE_ZTUNNEL;
}

static __always_inline int qn_is_tracked(const struct qn_socket *s)
{
	return s->start_ns && qn_is_trackable(s);
}

static __always_inline void qn_track_begin(struct bpf_sock_ops *ctx, struct qn_socket *s)
{
	s->start_ns = bpf_ktime_get_ns();
	s->established_ns = 0;
	s->half_received = 0;
	s->marks &= (__u8) ~(QN_MARK_FIN_IN | QN_MARK_OTHER);
	if (!s->src)
		s->src = bpf_get_netns_cookie(ctx);
}

/* Where this connection is counted; the same place from its beginning to its end. */
static __always_inline struct qn_traffic *qn_traffic_of(struct qn_socket *s, const struct qn_addr *remote)
{
	struct qn_traffic_key k = {
		.src = s->src,
		.dst = s->dst,
		.remote = *remote,
		.dialled = s->addr.family ? s->addr : *remote,
		.path = s->path,
	};
	struct qn_traffic fresh = {}, *cell;
	__u32 path = s->path;

	if (!(s->marks & QN_MARK_OTHER)) {
		cell = bpf_map_lookup_elem(&traffic, &k);
		if (cell)
			return cell;
		bpf_map_update_elem(&traffic, &k, &fresh, BPF_NOEXIST);
		cell = bpf_map_lookup_elem(&traffic, &k);
		if (cell)
			return cell;
		s->marks |= QN_MARK_OTHER;
		qn_count(QN_CNT_TRAFFIC_FULL);
	}
	return bpf_map_lookup_elem(&traffic_other, &path);
}

static __always_inline void qn_track_answer(struct bpf_sock_ops *ctx, struct qn_socket *s)
{
	struct qn_addr local = {}, remote = {};
	struct qn_traffic *cell;

	qn_sock_addrs(ctx, &local, &remote);
	s->established_ns = bpf_ktime_get_ns();
	cell = qn_traffic_of(s, &remote);
	if (cell)
		__sync_fetch_and_add(&cell->opened, 1);
}

static __always_inline void qn_track_state(struct bpf_sock_ops *ctx, struct qn_socket *s)
{
	switch (ctx->args[1]) {
	case BPF_TCP_CLOSE_WAIT:
	case BPF_TCP_CLOSING:
		s->marks |= QN_MARK_FIN_IN;
		break;
	case BPF_TCP_FIN_WAIT2:
		s->half_received = ctx->bytes_received;
		break;
	default:
		break;
	}
}

static __always_inline enum qn_end qn_end_of(struct bpf_sock_ops *ctx, const struct qn_socket *s)
{
	if (!s->established_ns)
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
static __always_inline void qn_count_bytes(struct bpf_sock_ops *ctx, const struct qn_socket *s, struct qn_closing *c)
{
	int is_fin_acked = c->end == QN_END_CLOSED;
	__u64 sent = ctx->bytes_acked, received = ctx->bytes_received;
	int is_fin_in = s->marks & QN_MARK_FIN_IN;

	if (!s->established_ns)
		return;
	if (ctx->args[0] == BPF_TCP_FIN_WAIT2 && received != s->half_received)
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
static __always_inline void qn_count_moved(struct bpf_sock *sk, struct qn_closing *c)
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

/* Nobody answered at the endpoint that was drawn for a service. */
static __always_inline void qn_note_failure(const struct qn_socket *s, __u64 now)
{
	struct qn_addr service = s->addr;

	if (s->path == QN_PATH_DIRECT && service.family)
		bpf_map_update_elem(&failing, &service, &now, BPF_ANY);
}

static __always_inline void qn_report_end(const struct qn_closing *c)
{
	__u64 waiting = bpf_ringbuf_query(&closings, BPF_RB_AVAIL_DATA);
	__u64 flags = waiting >= QN_WAKE_BYTES ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP;

	if (bpf_ringbuf_output(&closings, (void *)c, sizeof(*c), flags))
		qn_count(QN_CNT_CLOSING_LOST);
}

static __always_inline void qn_track_end(struct bpf_sock_ops *ctx, struct bpf_sock *sk, struct qn_socket *s)
{
	struct qn_closing c = {};
	struct qn_traffic *cell;

	qn_sock_addrs(ctx, &c.track.local, &c.track.remote);
	c.track.dialled = s->addr.family ? s->addr : c.track.remote;
	c.track.start_ns = s->start_ns;
	c.track.established_ns = s->established_ns;
	c.track.src = s->src;
	c.track.dst = s->dst;
	c.track.rule = s->rule;
	c.track.path = s->path;
	c.end_ns = bpf_ktime_get_ns();
	c.socket = bpf_get_socket_cookie(ctx);
	c.end = qn_end_of(ctx, s);
	qn_count_bytes(ctx, s, &c);
	if (s->marks & QN_MARK_JOINED)
		qn_count_moved(sk, &c);
	c.srtt_us = ctx->srtt_us >> 3; /* the kernel keeps eighths */
	c.retransmits = ctx->total_retrans;
	cell = qn_traffic_of(s, &c.track.remote);
	if (cell) {
		__sync_fetch_and_add(c.track.established_ns ? &cell->closed : &cell->failed, 1);
		if (c.end == QN_END_RESET)
			__sync_fetch_and_add(&cell->resets, 1);
		if (c.bytes_sent)
			__sync_fetch_and_add(&cell->bytes_sent, c.bytes_sent);
		if (c.bytes_received)
			__sync_fetch_and_add(&cell->bytes_received, c.bytes_received);
		if (c.retransmits)
			__sync_fetch_and_add(&cell->retransmits, c.retransmits);
		if (c.track.established_ns)
			__sync_fetch_and_add(&cell->srtt_us, c.srtt_us);
	}
	if (c.end == QN_END_FAILED)
		qn_note_failure(s, c.end_ns);
	qn_report_end(&c);
	s->start_ns = 0; /* the socket may connect again, by another path */
}

#endif
