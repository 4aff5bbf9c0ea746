/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* inbound: a TCP connection from outside a captured pod goes to ztunnel's listener, whatever its port.
 *
 * Hook:     sk_lookup, on the pod's network namespace; one loaded instance and one link per pod
 * Reads:    pods, flows (kinds HOST and DIRECT), listeners, settings. Writes: flows (is_met), counters
 * Returns:  SK_PASS with or without an assigned socket; SK_DROP = the client gets a reset (refused)
 * Floor:    5.15 (hook 5.9)
 * Cannot decide: no entry in `pods` (not enrolled, or being un-enrolled) passes. An enrolled pod without
 *           a listener refuses, unless the agent is down and onAgentDown is open.
 * Passes by design: all but TCP; connections inside the pod; HBONE's port; connections that the node's
 *           own processes open (HOST flows: kubelet probes); direct flows: those a captured pod of this node announced
 *           before its SYN left, by exact addresses and ports, to this very namespace.
 */
#include "addr.h"
#include "maps.h"

#define IPPROTO_TCP 6

/* The namespace this instance is attached to. Filled at load: the hook itself cannot ask. */
QN_SETTING(__u64, cfg_netns, 0);

static __always_inline int is_from_pod(const struct qn_pod *pod, const struct qn_flow_key *k)
{
	return qn_is_loopback(k->dst, k->family) || qn_ip_equal(k->src, k->dst) || qn_pod_owns(pod, k->src, k->family);
}

static __always_inline int is_from_node(const struct qn_flow_key *k)
{
	struct qn_flow *f = bpf_map_lookup_elem(&flows, k);

	return f && f->kind == QN_FLOW_HOST;
}

static __always_inline int is_announced(struct qn_flow_key *k, __u64 netns)
{
	struct qn_flow *f;

	k->netns = netns;
	f = bpf_map_lookup_elem(&flows, k);
	k->netns = 0;
	if (!f || f->kind != QN_FLOW_DIRECT)
		return 0;
	f->is_met = 1;
	return 1;
}

static __always_inline int hand_over(struct bpf_sk_lookup *ctx, __u32 index)
{
	struct bpf_sock *listener = bpf_map_lookup_elem(&listeners, &index);
	long err;

	if (!listener) {
		if (qn_agent_is_down_and_open()) {
			qn_count(QN_CNT_IN_PASS_AGENT);
			return SK_PASS;
		}
		qn_count(QN_CNT_IN_DROPPED);
		return SK_DROP;
	}
	err = bpf_sk_assign(ctx, listener, 0);
	bpf_sk_release(listener);
	qn_count(err ? QN_CNT_IN_DROPPED : QN_CNT_IN_CAPTURED);
	return err ? SK_DROP : SK_PASS;
}

SEC("sk_lookup")
int qn_inbound(struct bpf_sk_lookup *ctx)
{
	struct qn_flow_key k = {};
	struct qn_pod *pod;
	__u64 netns = cfg_netns;
	int is_v6 = ctx->family == QN_AF_INET6;

	if (ctx->protocol != IPPROTO_TCP)
		return SK_PASS;
	pod = bpf_map_lookup_elem(&pods, &netns);
	if (!pod)
		return SK_PASS;
	if (is_v6) {
		struct qn_words src = { { ctx->remote_ip6[0], ctx->remote_ip6[1], ctx->remote_ip6[2],
					  ctx->remote_ip6[3] } };
		struct qn_words dst = { { ctx->local_ip6[0], ctx->local_ip6[1], ctx->local_ip6[2],
					  ctx->local_ip6[3] } };

		qn_ip_set(k.src, &k.family, &src, 1);
		qn_ip_set(k.dst, &k.family, &dst, 1);
	} else {
		struct qn_words src = { { ctx->remote_ip4 } };
		struct qn_words dst = { { ctx->local_ip4 } };

		qn_ip_set(k.src, &k.family, &src, 0);
		qn_ip_set(k.dst, &k.family, &dst, 0);
	}
	k.src_port = bpf_ntohs(ctx->remote_port);
	k.dst_port = (__u16)ctx->local_port;

	if (is_from_pod(pod, &k)) {
		qn_count(QN_CNT_IN_PASS_LOCAL);
		return SK_PASS;
	}
	if (k.dst_port == QN_PORT_HBONE) {
		qn_count(QN_CNT_IN_PASS_HBONE);
		return SK_PASS;
	}
	if (is_announced(&k, netns)) {
		qn_count(QN_CNT_IN_PASS_DIRECT);
		return SK_PASS;
	}
	if (is_from_node(&k)) {
		qn_count(QN_CNT_IN_PASS_HOST);
		return SK_PASS;
	}
	/* Our own listeners are on loopback and for loopback: a direct dial would reach ztunnel with a wrong story. */
	if (k.dst_port == QN_PORT_OUTBOUND || k.dst_port == QN_PORT_INBOUND) {
		qn_count(QN_CNT_IN_REFUSED_PORT);
		return SK_DROP;
	}
	return hand_over(ctx, pod->slot * 2 + (is_v6 ? 1 : 0));
}

char LICENSE[] SEC("license")
= "Dual BSD/GPL";
