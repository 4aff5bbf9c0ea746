/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* trace: what happens to connections of chosen pods, as it happens. Only for as long as somebody looks.
 *
 * Hook:     cgroup/connect4, cgroup/connect6, sockops
 * Attached: the v2 root; BPF_F_ALLOW_MULTI; after capture and flows, whose decisions it reads. Not pinned
 * Reads:    sockets, pods. Writes: trace_events, trace_lost
 * Returns:  always 1: it decides nothing
 * Floor:    5.18 (bpf_get_retval)
 * Cannot decide: a full ring loses events, counted
 *
 * Hooks instead of kprobes or tracepoints: contexts that do not change with the kernel, and no headers of it to compile.
 * The price: of connections that were open before, closing and retransmits may go unseen; resets are told from the states
 * a socket went through.
 */
#include "addr.h"
#include "maps.h"
#include "trace_maps.h"

/* Filters; 0 = any. The destination is the one dialled or the one on the wire. */
QN_SETTING(__u64, cfg_pod, 0);
QN_SETTING(__u32, cfg_kinds, 0);
QN_SETTING(__u32, cfg_port, 0);
QN_SETTING(__u32, cfg_family, 0);
QN_SETTING(__u32, cfg_ip0, 0);
QN_SETTING(__u32, cfg_ip1, 0);
QN_SETTING(__u32, cfg_ip2, 0);
QN_SETTING(__u32, cfg_ip3, 0);

static __always_inline int is_meant(const struct qn_addr *a)
{
	struct qn_words v = qn_ip_words(a->ip);

	if (cfg_port && a->port != cfg_port)
		return 0;
	if (!cfg_family)
		return 1;
	return a->family == cfg_family && v.w[0] == cfg_ip0 && v.w[1] == cfg_ip1 && v.w[2] == cfg_ip2 &&
	       v.w[3] == cfg_ip3;
}

static __always_inline int is_wanted_pod(__u64 netns)
{
	return cfg_pod ? cfg_pod == netns : bpf_map_lookup_elem(&pods, &netns) != 0;
}

static __always_inline void report(const struct qn_trace *t)
{
	__u32 zero = 0;
	__u64 *lost;

	if (cfg_kinds && !(cfg_kinds & (1U << t->kind)))
		return;
	if (!bpf_ringbuf_output(&trace_events, (void *)t, sizeof(*t), 0))
		return;
	lost = bpf_map_lookup_elem(&trace_lost, &zero);
	if (lost)
		*lost += 1;
}

static __always_inline void describe(struct qn_trace *t, const struct qn_socket *s)
{
	if (!s)
		return;
	t->path = s->path;
	t->role = (__u8)s->role;
	t->rule = s->rule;
	t->src = s->src;
	t->dst = s->dst;
	t->dialled = s->addr;
}

static __always_inline int on_connect_call(struct bpf_sock_addr *ctx, const struct qn_addr *to)
{
	struct qn_trace t = { .kind = QN_TRACE_CONNECT };
	struct qn_socket *s;

	if (ctx->type != 1 /* SOCK_STREAM */)
		return 1;
	t.netns = bpf_get_netns_cookie(ctx);
	if (!is_wanted_pod(t.netns))
		return 1;
	s = bpf_sk_storage_get(&sockets, ctx->sk, 0, 0);
	t.refused = bpf_get_retval() < 0;
	if (s && s->role == QN_ROLE_ZTUNNEL)
		return 1;
	if (t.refused)
		t.path = QN_PATH_REFUSED;
	else if (s && s->path != QN_PATH_NONE)
		describe(&t, s);
	if (!t.dialled.family)
		t.dialled = *to;
	t.remote = *to;
	t.time_ns = bpf_ktime_get_ns();
	t.src = t.netns;
	t.socket = bpf_get_socket_cookie(ctx);
	if (is_meant(&t.dialled) || is_meant(&t.remote))
		report(&t);
	return 1;
}

SEC("cgroup/connect4")
int qn_trace4(struct bpf_sock_addr *ctx)
{
	struct qn_words ip = { { ctx->user_ip4 } };
	struct qn_addr to = { .port = bpf_ntohs((__u16)ctx->user_port) };

	qn_ip_set(to.ip, &to.family, &ip, 0);
	return on_connect_call(ctx, &to);
}

SEC("cgroup/connect6")
int qn_trace6(struct bpf_sock_addr *ctx)
{
	struct qn_words ip = { { ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3] } };
	struct qn_addr to = { .port = bpf_ntohs((__u16)ctx->user_port) };

	qn_ip_set(to.ip, &to.family, &ip, 1);
	return on_connect_call(ctx, &to);
}

/* 0 = nothing to report. */
static __always_inline __u8 kind_of(struct bpf_sock_ops *ctx)
{
	switch (ctx->op) {
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		return QN_TRACE_ESTABLISHED;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		return QN_TRACE_ACCEPT;
	case BPF_SOCK_OPS_RETRANS_CB:
		return QN_TRACE_RETRANSMIT;
	case BPF_SOCK_OPS_STATE_CB:
		break;
	default:
		return 0;
	}
	if (ctx->args[1] != BPF_TCP_CLOSE)
		return 0;
	switch (ctx->args[0]) {
	case BPF_TCP_SYN_SENT:
		return QN_TRACE_FAILED;
	case BPF_TCP_FIN_WAIT2:
		return QN_TRACE_CLOSE;
	case BPF_TCP_LAST_ACK:
	case BPF_TCP_CLOSING:
		return ctx->snd_una == ctx->snd_nxt ? QN_TRACE_CLOSE : QN_TRACE_RESET;
	case BPF_TCP_ESTABLISHED:
	case BPF_TCP_CLOSE_WAIT:
	case BPF_TCP_FIN_WAIT1:
		return QN_TRACE_RESET;
	default:
		return 0;
	}
}

SEC("sockops")
int qn_trace_sock(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct qn_trace t = {};
	int is_proxys;

	if (!sk)
		return 1;
	t.netns = bpf_get_netns_cookie(ctx);
	if (!is_wanted_pod(t.netns))
		return 1;
	if (ctx->op == BPF_SOCK_OPS_TCP_CONNECT_CB || ctx->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
		bpf_sock_ops_cb_flags_set(ctx, (int)ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG |
						       BPF_SOCK_OPS_RETRANS_CB_FLAG);
	t.kind = kind_of(ctx);
	if (!t.kind)
		return 1;
	describe(&t, bpf_sk_storage_get(&sockets, sk, 0, 0));
	/* Of the proxy's own sockets only what went wrong. */
	is_proxys = t.role == QN_ROLE_ZTUNNEL || t.role == QN_ROLE_CAPTURED;
	if (is_proxys && t.kind != QN_TRACE_RETRANSMIT && t.kind != QN_TRACE_RESET)
		return 1;
	qn_sock_addrs(ctx, &t.local, &t.remote);
	if (!t.dialled.family)
		t.dialled = t.remote;
	if (!is_meant(&t.dialled) && !is_meant(&t.remote) && !is_meant(&t.local))
		return 1;
	t.time_ns = bpf_ktime_get_ns();
	t.socket = bpf_get_socket_cookie(ctx);
	t.bytes_sent = ctx->bytes_acked;
	t.bytes_received = ctx->bytes_received;
	t.srtt_us = ctx->srtt_us >> 3;
	t.retransmits = ctx->total_retrans;
	report(&t);
	return 1;
}

char LICENSE[] SEC("license")
= "Dual BSD/GPL";
