/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* Which path a captured pod's connection takes, from the maps the agent keeps. What is not known there goes to ztunnel,
 * which enforces policy itself: never a way around.
 */
#ifndef QANAT_PATHS_H
#define QANAT_PATHS_H

#include "addr.h"
#include "maps.h"

/* One connection about to be made, and what was chosen for it. */
struct qn_choice {
	__u64 src; /* cookie of the client's namespace */
	struct qn_addr dialled;
	struct qn_addr target; /* the endpoint drawn; `dialled` without a service */
	__u64 dst;             /* cookie of the target's namespace, path DIRECT */
	__u32 rule;
	__u32 epoch;
	__u8 same_node;
	__u8 draw;
	__u8 is_fit; /* the socket may go direct */
};

static __always_inline void qn_tell(__u32 kind, const struct qn_choice *c)
{
	struct qn_event *e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);

	if (!e) {
		qn_count(QN_CNT_EVENT_LOST);
		return;
	}
	e->kind = kind;
	e->rule = c->rule;
	e->time_ns = bpf_ktime_get_ns();
	e->src = c->src;
	e->dst = c->dst;
	e->dialled = c->dialled;
	e->target = c->target;
	bpf_ringbuf_submit(e, 0);
}

/* To ztunnel, and let the agent know, but not for every connection of a burst. */
static __always_inline enum qn_path qn_ask(const struct qn_choice *c, const struct qn_verdict_key *key)
{
	__u64 now = bpf_ktime_get_ns();
	__u64 *last = bpf_map_lookup_elem(&asked, key);

	qn_count(QN_CNT_ASKED);
	if (!last || now - *last > QN_ASK_AGAIN_NS) {
		bpf_map_update_elem(&asked, key, &now, BPF_ANY);
		qn_tell(QN_EVENT_ASK, c);
	}
	return QN_PATH_TUNNEL;
}

static __always_inline int qn_is_failing(const struct qn_addr *service)
{
	__u64 *last = bpf_map_lookup_elem(&failing, service);

	return last && bpf_ktime_get_ns() - *last < QN_FAILING_NS;
}

/* Draw among all endpoints of a service. Returns 0, counted, when ztunnel has to. */
static __always_inline int qn_draw_endpoint(struct qn_choice *c)
{
	struct qn_service *s = bpf_map_lookup_elem(&services, &c->dialled);
	__u32 k;

	if (!s || !s->total) {
		qn_count(QN_CNT_TUNNEL_REMOTE);
		return 0;
	}
	if (s->total > 1 && qn_is_failing(&c->dialled)) {
		qn_count(QN_CNT_TUNNEL_FAILING);
		return 0;
	}
	k = bpf_get_prandom_u32() % s->total;
	if (k >= s->n || k >= QN_SERVICE_LOCAL) {
		c->draw = QN_DRAW_ELSEWHERE;
		qn_count(QN_CNT_TUNNEL_REMOTE);
		return 0;
	}
	c->draw = QN_DRAW_HERE;
	c->target = s->endpoints[k];
	return 1;
}

static __always_inline enum qn_path qn_by_verdict(struct qn_choice *c, __u32 epoch)
{
	struct qn_verdict_key key = { .src = c->src, .dst = c->target };
	struct qn_verdict *v = bpf_map_lookup_elem(&verdicts, &key);
	struct qn_pod *peer;

	if (!v || v->epoch != epoch)
		return qn_ask(c, &key);
	c->rule = v->rule;
	c->epoch = epoch;
	c->dst = v->dst;
	if (v->decision == QN_DENY) {
		qn_count(QN_CNT_REFUSED_POLICY);
		qn_tell(QN_EVENT_REFUSED, c);
		return QN_PATH_REFUSED;
	}
	if (v->decision != QN_ALLOW)
		return qn_ask(c, &key);
	if (!v->dst) {
		qn_count(QN_CNT_TUNNEL_REMOTE);
		return QN_PATH_TUNNEL;
	}
	if (v->same_node == QN_SAME_NODE_ENCRYPT) {
		qn_count(QN_CNT_TUNNEL_ENCRYPT);
		return QN_PATH_TUNNEL;
	}
	if (!c->is_fit) {
		qn_count(QN_CNT_TUNNEL_UNFIT);
		return QN_PATH_TUNNEL;
	}
	/* The address may have gone to another pod since: the entry of the one that was meant has to own it still. */
	peer = bpf_map_lookup_elem(&pods, &c->dst);
	if (!peer || !(peer->flags & QN_POD_CAPTURE) || !qn_pod_owns(peer, c->target.ip, c->target.family))
		return qn_ask(c, &key);
	c->same_node = v->same_node;
	qn_count(QN_CNT_DIRECT);
	return QN_PATH_DIRECT;
}

/* src, dialled and is_fit are filled in; the rest is answered. */
static __always_inline enum qn_path qn_choose(const struct qn_pod *pod, struct qn_choice *c)
{
	__u32 zero = 0;
	struct qn_settings *s = bpf_map_lookup_elem(&settings, &zero);
	struct qn_ip ip = { .family = c->dialled.family };
	__u32 *kind;

	c->target = c->dialled;
	if (!s || !s->paths)
		return QN_PATH_TUNNEL;
	if (qn_is_stale(s)) {
		qn_count(QN_CNT_TUNNEL_STALE);
		return QN_PATH_TUNNEL;
	}
	__builtin_memcpy(ip.ip, c->dialled.ip, 16);
	kind = bpf_map_lookup_elem(&mesh_addrs, &ip);
	if (!kind) {
		if (!(s->paths & QN_PATHS_BYPASS) || !(pod->flags & QN_POD_BYPASS))
			return QN_PATH_TUNNEL;
		qn_count(QN_CNT_BYPASSED);
		return QN_PATH_BYPASS;
	}
	if (!(s->paths & QN_PATHS_DIRECT))
		return QN_PATH_TUNNEL;
	if (*kind == QN_MESH_SERVICE) {
		if (pod->flags & QN_POD_ENCRYPT) { /* all endpoints are alike to it: ztunnel draws */
			qn_count(QN_CNT_TUNNEL_ENCRYPT);
			return QN_PATH_TUNNEL;
		}
		if (!qn_draw_endpoint(c))
			return QN_PATH_TUNNEL;
	}
	return qn_by_verdict(c, s->epoch);
}

#endif
