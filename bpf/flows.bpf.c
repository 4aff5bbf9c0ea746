/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* flows: carries what is known of a connection's active end to its passive end, and counts what meets no proxy
 * (include/tracking.h). One program for both: it runs about 13 times in the life of a connection.
 *
 * Hook:     sockops
 * Attached: the v2 root; BPF_F_ALLOW_MULTI
 * Reads:    sockets, pod_addrs, settings, joins, moved, after_flows. Writes: flows, sockets (roles CAPTURED and SERVER;
 *           marks and what is tracked), failing, traffic, traffic_other, closings, events, counters
 * Returns:  always 1; never touches `reply`, which other programs may use. Sockets of flows with the shortcut are handed
 *           on to qn_join of join.bpf.c by a tail call, so that all others cost nothing there
 * Floor:    5.15 (netns cookie and socket storage in sockops)
 * Cannot decide: with `flows` full the connection goes on without its story: ztunnel resets a captured one
 *           (no original destination), inbound captures a node's own and a direct one (which then counts as plaintext
 *           at its destination, never as more), an application sees the pod itself as the client. Counted. An empty slot
 *           of after_flows: plain TCP.
 *
 * At TCP_CONNECT_CB the SYN has not left and the local port is known; accept() waits for the child's lock,
 * which is held over PASSIVE_ESTABLISHED_CB, so the storage is there before anybody can look.
 */
#include "after_maps.h"
#include "maps.h"
#include "moved_maps.h"
#include "paths.h"
#include "tracking.h"
#include "traffic_maps.h"
#include "tuple.h"

static __always_inline int is_node_to_pod(struct bpf_sock_ops *ctx, const struct qn_flow_key *k)
{
	__u32 zero = 0;
	struct qn_settings *s = bpf_map_lookup_elem(&settings, &zero);
	struct qn_ip ip = { .family = k->family };

	if (!s || !s->node_netns || s->node_netns != bpf_get_netns_cookie(ctx))
		return 0;
	__builtin_memcpy(ip.ip, k->dst, 16);
	return bpf_map_lookup_elem(&pod_addrs, &ip) != 0;
}

static __always_inline struct qn_socket *story_of(struct bpf_sock *sk)
{
	return sk ? bpf_sk_storage_get(&sockets, sk, 0, 0) : 0;
}

static __always_inline int is_direct_client(const struct qn_socket *s)
{
	return s->role == QN_ROLE_CLIENT && s->path == QN_PATH_DIRECT;
}

/* Is the flow that this socket opens one of ours? Fills in the key. */
static __always_inline int is_announced(struct bpf_sock_ops *ctx, const struct qn_socket *s, struct qn_flow_key *k)
{
	qn_read_tuple(ctx, k);
	if (s && (s->role == QN_ROLE_CLIENT || (s->role == QN_ROLE_ZTUNNEL && s->addr.family))) {
		k->netns = is_direct_client(s) ? s->dst : bpf_get_netns_cookie(ctx);
		return 1;
	}
	return is_node_to_pod(ctx, k); /* with netns 0 */
}

static __always_inline void announce(struct bpf_sock_ops *ctx, const struct qn_socket *s)
{
	struct qn_flow f = { .kind = QN_FLOW_HOST };
	struct qn_flow_key k = {};

	if (!is_announced(ctx, s, &k))
		return;
	if (k.netns && s) {
		f.kind = is_direct_client(s)         ? QN_FLOW_DIRECT
			 : s->role == QN_ROLE_CLIENT ? QN_FLOW_CLIENT
						     : QN_FLOW_ZTUNNEL;
		f.rule = s->rule;
		f.addr = s->addr;
		f.src = s->src;
		f.epoch = s->epoch;
		f.same_node = s->same_node;
		f.draw = s->draw;
	}
	if (bpf_map_update_elem(&flows, &k, &f, BPF_ANY)) {
		qn_count(QN_CNT_FLOW_FULL);
		return;
	}
	bpf_sock_ops_cb_flags_set(ctx, (int)ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
}

static __always_inline void hand_on(struct bpf_sock_ops *ctx)
{
	bpf_tail_call(ctx, &after_flows, QN_AFTER_JOIN);
}

static __always_inline void on_connect(struct bpf_sock_ops *ctx)
{
	struct qn_socket *s = story_of(ctx->sk);

	if (!ctx->sk)
		return;
	if (s && qn_is_trackable(s)) {
		qn_track_begin(ctx, s);
		bpf_sock_ops_cb_flags_set(ctx, (int)ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
	}
	if (!s || s->path != QN_PATH_BYPASS)
		announce(ctx, s);
	if (s && (s->marks & QN_MARK_JOINED)) {
		s->marks &= (__u8)~QN_MARK_JOINED;
		hand_on(ctx);
	}
}

/* Answered, and its announcement has not been seen: addresses were translated on the way, or somebody else has them.
 * Whoever answers took it for plaintext. The agent stops sending this source direct.
 */
static __always_inline void mind_straying(struct bpf_sock_ops *ctx, const struct qn_socket *s)
{
	struct qn_flow_key k = {};
	struct qn_choice c = {};
	struct qn_flow *f;

	qn_read_tuple(ctx, &k);
	k.netns = s->dst;
	f = bpf_map_lookup_elem(&flows, &k);
	if (!f || f->is_met || s->src == s->dst)
		return;
	qn_count(QN_CNT_DIRECT_STRAYED);
	c.src = s->src;
	c.dst = s->dst;
	c.rule = s->rule;
	c.dialled = s->addr;
	__builtin_memcpy(c.target.ip, k.dst, 16);
	c.target.port = k.dst_port;
	c.target.family = k.family;
	qn_tell(QN_EVENT_STRAYED, &c);
	bpf_map_delete_elem(&flows, &k);
}

static __always_inline void on_established(struct bpf_sock_ops *ctx)
{
	struct qn_socket *s = story_of(ctx->sk);

	if (!s)
		return;
	if (is_direct_client(s))
		mind_straying(ctx, s);
	if (qn_is_tracked(s))
		qn_track_answer(ctx, s);
	if (s->path == QN_PATH_DIRECT && s->same_node == QN_SAME_NODE_SHORTCUT) {
		s->marks |= QN_MARK_JOINED;
		hand_on(ctx);
	}
}

static __always_inline void on_accepted(struct bpf_sock_ops *ctx)
{
	struct qn_flow_key k = {};
	struct bpf_sock *sk = ctx->sk;
	struct qn_socket s = {};
	struct qn_flow *f;

	if (!sk)
		return;
	qn_read_reversed_tuple(ctx, &k);
	k.netns = bpf_get_netns_cookie(ctx);
	f = bpf_map_lookup_elem(&flows, &k);
	if (!f)
		return;
	s.role = f->kind == QN_FLOW_CLIENT ? QN_ROLE_CAPTURED : QN_ROLE_SERVER;
	s.src = f->src;
	if (f->kind == QN_FLOW_DIRECT) {
		s.path = QN_PATH_DIRECT;
		s.same_node = f->same_node;
		s.rule = f->rule;
		s.epoch = f->epoch;
		s.dst = k.netns;
		if (f->same_node == QN_SAME_NODE_SHORTCUT)
			s.marks = QN_MARK_JOINED;
		bpf_get_socket_cookie(ctx);
	} else {
		s.addr = f->addr;
	}
	bpf_sk_storage_get(&sockets, sk, &s, BPF_SK_STORAGE_GET_F_CREATE);
	bpf_map_delete_elem(&flows, &k);
	if (s.marks & QN_MARK_JOINED)
		hand_on(ctx);
}

static __always_inline void on_state(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct qn_socket *s = story_of(sk);
	int is_closed = ctx->args[1] == BPF_TCP_CLOSE;
	struct qn_flow_key k = {};

	if (!sk)
		return;
	if (is_closed && (!s || s->path != QN_PATH_BYPASS) && is_announced(ctx, s, &k))
		bpf_map_delete_elem(&flows, &k);
	if (!s)
		return;
	if (qn_is_tracked(s)) {
		if (is_closed)
			qn_track_end(ctx, sk, s);
		else
			qn_track_state(ctx, s);
	}
	if (s->marks & QN_MARK_JOINED)
		hand_on(ctx);
}

SEC("sockops")
int qn_flows(struct bpf_sock_ops *ctx)
{
	switch (ctx->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		on_connect(ctx);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		on_established(ctx);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		on_accepted(ctx);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		on_state(ctx);
		break;
	default:
		break;
	}
	return 1;
}

char LICENSE[] SEC("license")
= "Dual BSD/GPL";
