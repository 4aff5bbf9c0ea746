/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* flows: carries what is known of a connection's active end to its passive end.
 *
 * Hook:     sockops
 * Attached: the v2 root; BPF_F_ALLOW_MULTI
 * Reads:    sockets, pod_addrs, settings. Writes: flows, sockets (roles CAPTURED and SERVER), events, counters
 * Returns:  always 1; never touches `reply`, which other programs may use
 * Floor:    5.15 (netns cookie and socket storage in sockops)
 * Cannot decide: with `flows` full the connection goes on without its story: ztunnel resets a captured one
 *           (no original destination), inbound captures a node's own and a direct one (which then counts as plaintext
 *           at its destination, never as more), an application sees the pod itself as the client. Counted.
 *
 * At TCP_CONNECT_CB the SYN has not left and the local port is known; accept() waits for the child's lock,
 * which is held over PASSIVE_ESTABLISHED_CB, so the storage is there before anybody can look.
 */
#include "maps.h"
#include "paths.h"
#include "tuple.h"

#define EEXIST 17

static __always_inline int is_node_to_pod(__u64 netns, const struct qn_flow_key *k)
{
	__u32 zero = 0;
	struct qn_settings *s = bpf_map_lookup_elem(&settings, &zero);
	struct qn_ip ip = { .family = k->family };

	if (!s || !s->node_netns || s->node_netns != netns)
		return 0;
	__builtin_memcpy(ip.ip, k->dst, 16);
	return bpf_map_lookup_elem(&pod_addrs, &ip) != 0;
}

/* The flow this socket opens, if it is one of ours: fills the key's netns and *f. Returns 0 if it is not. */
static __always_inline int classify(struct bpf_sock_ops *ctx, struct qn_flow_key *k, struct qn_flow *f)
{
	__u64 netns = bpf_get_netns_cookie(ctx);
	struct bpf_sock *sk = ctx->sk;
	struct qn_socket *s;

	if (!sk)
		return 0;
	s = bpf_sk_storage_get(&sockets, sk, 0, 0);
	if (s && (s->role == QN_ROLE_CLIENT || (s->role == QN_ROLE_ZTUNNEL && s->addr.family))) {
		int is_direct = s->role == QN_ROLE_CLIENT && s->path == QN_PATH_DIRECT;

		k->netns = is_direct ? s->dst : netns;
		f->kind = is_direct ? QN_FLOW_DIRECT : s->role == QN_ROLE_CLIENT ? QN_FLOW_CLIENT : QN_FLOW_ZTUNNEL;
		f->rule = s->rule;
		f->addr = s->addr;
		f->src = s->src;
		f->epoch = s->epoch;
		f->same_node = s->same_node;
		f->draw = s->draw;
		return 1;
	}
	if (is_node_to_pod(netns, k)) {
		k->netns = 0;
		f->kind = QN_FLOW_HOST;
		return 1;
	}
	return 0;
}

static __always_inline void on_connect(struct bpf_sock_ops *ctx)
{
	struct qn_flow_key k = {};
	struct qn_flow f = {};

	qn_read_tuple(ctx, &k);
	if (!classify(ctx, &k, &f))
		return;
	if (bpf_map_update_elem(&flows, &k, &f, BPF_ANY)) {
		qn_count(QN_CNT_FLOW_FULL);
		return;
	}
	bpf_sock_ops_cb_flags_set(ctx, (int)ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
}

/* Answered, and its announcement has not been seen: addresses were translated on the way, or somebody else has them.
 * Whoever answers took it for plaintext. The agent stops sending this source direct.
 */
static __always_inline void on_established(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct qn_flow_key k = {};
	struct qn_choice c = {};
	struct qn_socket *s;
	struct qn_flow *f;

	s = sk ? bpf_sk_storage_get(&sockets, sk, 0, 0) : 0;
	if (!s || s->role != QN_ROLE_CLIENT || s->path != QN_PATH_DIRECT)
		return;
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
		bpf_get_socket_cookie(ctx);
	} else {
		s.addr = f->addr;
	}
	bpf_sk_storage_get(&sockets, sk, &s, BPF_SK_STORAGE_GET_F_CREATE);
	bpf_map_delete_elem(&flows, &k);
}

static __always_inline void on_closed(struct bpf_sock_ops *ctx)
{
	struct qn_flow_key k = {};
	struct qn_flow f = {};

	qn_read_tuple(ctx, &k);
	if (classify(ctx, &k, &f))
		bpf_map_delete_elem(&flows, &k);
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
		if (ctx->args[1] == BPF_TCP_CLOSE)
			on_closed(ctx);
		break;
	default:
		break;
	}
	return 1;
}

char LICENSE[] SEC("license")
= "Dual BSD/GPL";
