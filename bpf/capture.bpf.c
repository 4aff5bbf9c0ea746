/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* capture: decides at connect() which path a captured pod's connection takes (include/paths.h): untouched, straight to a
 * pod of this node, refused, or to ztunnel's listener on the pod's own loopback.
 *
 * Hook:     cgroup/connect4, cgroup/connect6 (the latter sees IPv4-mapped addresses too)
 * Attached: the pods' cgroup where pods have one, else the v2 root; BPF_F_ALLOW_MULTI
 * Reads:    pods, settings, mesh_addrs, services, failing, verdicts. Writes: sockets (role CLIENT), asked, events, counters
 * Returns:  1 = go on with the address as it now stands; 0 = fail with ECONNREFUSED (EPERM before 5.18,
 *           which has no bpf_set_retval)
 * Floor:    5.15 (probed, not assumed)
 * Cannot decide: a socket of no known pod passes. A destination without a current verdict goes to ztunnel, and so does
 *           everything while the agent is silent. A socket whose original destination cannot be stored, or which cannot
 *           be freed from a device it is bound to, is refused.
 * Passes by design: all but TCP; ztunnel's marked sockets; loopback, unspecified and the pod's own
 *           addresses; IPv6 link-local (its interface is not visible here and ztunnel could not dial it).
 */
#include "maps.h"
#include "paths.h"

#define SOCK_STREAM 1
#define IPPROTO_TCP 6
#define IPPROTO_MPTCP 262
#define SOL_SOCKET 1
#define SO_BINDTODEVICE 25
#define ECONNREFUSED 111

/* Set by the loader after asking the kernel for bpf_set_retval. */
QN_SETTING(__u32, cfg_set_retval, 1);
/* Likewise for bpf_skc_to_mptcp_sock (5.19): the hook is run for the TCP socket inside an MPTCP one. */
QN_SETTING(__u32, cfg_mptcp, 1);

static __always_inline int is_local(const struct qn_pod *pod, const struct qn_addr *dst)
{
	return qn_is_loopback(dst->ip, dst->family) || qn_is_unspecified(dst->ip) ||
	       qn_is_link_local6(dst->ip, dst->family) || qn_pod_owns(pod, dst->ip, dst->family);
}

/* A socket bound to eth0 would send packets for 127.0.0.1 out of eth0. */
static __always_inline int unbind_device(struct bpf_sock_addr *ctx)
{
	char none[4] = {};

	if (!ctx->sk->bound_dev_if)
		return 0;
	return bpf_setsockopt(ctx, SOL_SOCKET, SO_BINDTODEVICE, none, sizeof(none));
}

/* May it leave with the addresses and by the way it would have without the mesh? MPTCP opens further connections that
 * nobody has announced; a source that is not the pod's own is not what the verdict was about.
 */
static __always_inline int is_fit(struct bpf_sock_addr *ctx, const struct qn_pod *pod, int is_v6)
{
	struct bpf_sock *sk = ctx->sk;
	__u8 ip[16], family;

	if (!sk || ctx->protocol != IPPROTO_TCP || sk->bound_dev_if)
		return 0;
	if (cfg_mptcp && bpf_skc_to_mptcp_sock(sk))
		return 0;
	if (is_v6) {
		struct qn_words a = { { sk->src_ip6[0], sk->src_ip6[1], sk->src_ip6[2], sk->src_ip6[3] } };

		qn_ip_set(ip, &family, &a, 1);
	} else {
		struct qn_words a = { { sk->src_ip4 } };

		qn_ip_set(ip, &family, &a, 0);
	}
	return qn_is_unspecified(ip) || qn_pod_owns(pod, ip, family);
}

/* Keep on the socket what was chosen. Returns 0 if it cannot be kept. */
static __always_inline int keep(struct bpf_sock_addr *ctx, struct qn_socket *known, enum qn_path path,
				const struct qn_choice *c)
{
	struct qn_socket fresh = {
		.role = path == QN_PATH_BYPASS ? QN_ROLE_NONE : QN_ROLE_CLIENT,
		.path = path,
		.same_node = c->same_node,
		.draw = c->draw,
		.marks = known ? known->marks & QN_MARK_JOINED : 0,
		.rule = c->rule,
		.epoch = c->epoch,
		.src = c->src,
		.dst = path == QN_PATH_DIRECT ? c->dst : 0,
	};

	/* Nothing to rename: the kernel's answer, or that of a program beside us which translated before. */
	if (path != QN_PATH_DIRECT || !qn_ip_equal(c->dialled.ip, c->target.ip) || c->dialled.port != c->target.port)
		fresh.addr = c->dialled;
	if (!known)
		known = bpf_sk_storage_get(&sockets, ctx->sk, &fresh, BPF_SK_STORAGE_GET_F_CREATE);
	if (!known)
		return 0;
	*known = fresh;
	return 1;
}

static __always_inline enum qn_path judge(struct bpf_sock_addr *ctx, struct qn_choice *c, int is_v6)
{
	struct qn_socket *known;
	enum qn_path path;
	struct qn_pod *pod;

	if (ctx->type != SOCK_STREAM || (ctx->protocol != IPPROTO_TCP && ctx->protocol != IPPROTO_MPTCP))
		return QN_PATH_NONE;
	known = bpf_sk_storage_get(&sockets, ctx->sk, 0, 0);
	if (known && known->role == QN_ROLE_ZTUNNEL) {
		qn_count(QN_CNT_PASS_ZTUNNEL);
		return QN_PATH_NONE;
	}
	/* From an earlier connect() on this socket: no longer true whatever happens next. */
	if (known) {
		known->role = QN_ROLE_NONE;
		known->path = QN_PATH_NONE;
	}
	c->src = bpf_get_netns_cookie(ctx);
	pod = bpf_map_lookup_elem(&pods, &c->src);
	if (!pod || !(pod->flags & QN_POD_CAPTURE))
		return QN_PATH_NONE;
	if (is_local(pod, &c->dialled)) {
		qn_count(QN_CNT_PASS_LOCAL);
		return QN_PATH_NONE;
	}
	if (qn_agent_is_down_and_open()) {
		qn_count(QN_CNT_PASS_AGENT);
		return QN_PATH_NONE;
	}
	c->is_fit = is_fit(ctx, pod, is_v6);
	path = qn_choose(pod, c);
	if (path == QN_PATH_REFUSED)
		return path;
	if (!keep(ctx, known, path, c)) {
		if (path == QN_PATH_BYPASS) {
			qn_count(QN_CNT_UNTRACKED);
			return path;
		}
		qn_count(QN_CNT_REFUSED_STORAGE);
		return QN_PATH_REFUSED;
	}
	if (path != QN_PATH_TUNNEL) {
		bpf_get_socket_cookie(ctx); /* it has one from now on: who lists sockets can name it */
		return path;
	}
	if (unbind_device(ctx)) {
		qn_count(QN_CNT_REFUSED_STORAGE);
		return QN_PATH_REFUSED;
	}
	qn_count(QN_CNT_CAPTURED);
	return QN_PATH_TUNNEL;
}

static __always_inline int refuse(void)
{
	if (cfg_set_retval)
		bpf_set_retval(-ECONNREFUSED);
	return 0;
}

static __always_inline void go_to4(struct bpf_sock_addr *ctx, const struct qn_addr *to)
{
	ctx->user_ip4 = qn_ip_words(to->ip).w[0];
	ctx->user_port = bpf_htons(to->port);
}

static __always_inline void go_to6(struct bpf_sock_addr *ctx, const struct qn_addr *to)
{
	struct qn_words ip = qn_ip_words(to->ip);
	int mapped = to->family == 4;

	ctx->user_ip6[0] = mapped ? 0 : ip.w[0];
	ctx->user_ip6[1] = mapped ? 0 : ip.w[1];
	ctx->user_ip6[2] = mapped ? QN_MAPPED : ip.w[2];
	ctx->user_ip6[3] = mapped ? ip.w[0] : ip.w[3];
	ctx->user_port = bpf_htons(to->port);
}

SEC("cgroup/connect4")
int qn_connect4(struct bpf_sock_addr *ctx)
{
	struct qn_words ip = { { ctx->user_ip4 } };
	struct qn_choice c = { .dialled = { .port = bpf_ntohs((__u16)ctx->user_port) } };

	qn_ip_set(c.dialled.ip, &c.dialled.family, &ip, 0);
	switch (judge(ctx, &c, 0)) {
	case QN_PATH_TUNNEL:
		ctx->user_ip4 = QN_LOOPBACK4;
		ctx->user_port = bpf_htons(QN_PORT_OUTBOUND);
		return 1;
	case QN_PATH_DIRECT:
		go_to4(ctx, &c.target);
		return 1;
	case QN_PATH_REFUSED:
		return refuse();
	default:
		return 1;
	}
}

SEC("cgroup/connect6")
int qn_connect6(struct bpf_sock_addr *ctx)
{
	struct qn_words ip = { { ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3] } };
	struct qn_choice c = { .dialled = { .port = bpf_ntohs((__u16)ctx->user_port) } };

	qn_ip_set(c.dialled.ip, &c.dialled.family, &ip, 1);
	switch (judge(ctx, &c, 1)) {
	case QN_PATH_TUNNEL:
		ctx->user_ip6[0] = 0;
		ctx->user_ip6[1] = 0;
		ctx->user_ip6[2] = c.dialled.family == 4 ? QN_MAPPED : 0;
		ctx->user_ip6[3] = c.dialled.family == 4 ? QN_LOOPBACK4 : bpf_htonl(1);
		ctx->user_port = bpf_htons(QN_PORT_OUTBOUND);
		return 1;
	case QN_PATH_DIRECT:
		go_to6(ctx, &c.target);
		return 1;
	case QN_PATH_REFUSED:
		return refuse();
	default:
		return 1;
	}
}

char LICENSE[] SEC("license")
= "Dual BSD/GPL";
