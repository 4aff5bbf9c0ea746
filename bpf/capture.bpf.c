/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* capture: a captured pod's connect() goes to ztunnel's listener on the pod's own loopback.
 *
 * Hook:     cgroup/connect4, cgroup/connect6 (the latter sees IPv4-mapped addresses too)
 * Attached: the pods' cgroup where pods have one, else the v2 root; BPF_F_ALLOW_MULTI
 * Reads:    pods, settings. Writes: sockets (role CLIENT), counters
 * Returns:  1 = go on with the address as it now stands; 0 = fail with ECONNREFUSED (EPERM before 5.18,
 *           which has no bpf_set_retval)
 * Floor:    5.15 (probed, not assumed)
 * Cannot decide: a socket of no known pod passes. A socket of a captured pod whose original destination
 *           cannot be stored, or which cannot be freed from a device it is bound to, is refused.
 * Passes by design: all but TCP; ztunnel's marked sockets; loopback, unspecified and the pod's own
 *           addresses; IPv6 link-local (its interface is not visible here and ztunnel could not dial it).
 */
#include "addr.h"
#include "maps.h"

#define SOCK_STREAM 1
#define IPPROTO_TCP 6
#define IPPROTO_MPTCP 262
#define SOL_SOCKET 1
#define SO_BINDTODEVICE 25
#define ECONNREFUSED 111

/* Set by the loader after asking the kernel for bpf_set_retval. */
QN_SETTING(__u32, cfg_set_retval, 1);

enum verdict {
	PASS,
	REDIRECT,
	REFUSE,
};

/* Reason to leave `dst` alone, as a counter, or -1. */
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

static __always_inline enum verdict judge(struct bpf_sock_addr *ctx, const struct qn_addr *dst)
{
	struct qn_socket fresh = { .role = QN_ROLE_CLIENT, .path = QN_PATH_TUNNEL };
	struct qn_socket *known;
	struct qn_pod *pod;
	__u64 netns;

	if (ctx->type != SOCK_STREAM || (ctx->protocol != IPPROTO_TCP && ctx->protocol != IPPROTO_MPTCP))
		return PASS;
	known = bpf_sk_storage_get(&sockets, ctx->sk, 0, 0);
	if (known && known->role == QN_ROLE_ZTUNNEL) {
		qn_count(QN_CNT_PASS_ZTUNNEL);
		return PASS;
	}
	/* From an earlier connect() on this socket: no longer true whatever happens next. */
	if (known) {
		known->role = QN_ROLE_NONE;
		known->path = QN_PATH_NONE;
	}
	netns = bpf_get_netns_cookie(ctx);
	pod = bpf_map_lookup_elem(&pods, &netns);
	if (!pod || !(pod->flags & QN_POD_CAPTURE))
		return PASS;
	if (is_local(pod, dst)) {
		qn_count(QN_CNT_PASS_LOCAL);
		return PASS;
	}
	if (qn_agent_is_down_and_open()) {
		qn_count(QN_CNT_PASS_AGENT);
		return PASS;
	}
	fresh.addr = *dst;
	fresh.src = netns;
	if (!known)
		known = bpf_sk_storage_get(&sockets, ctx->sk, &fresh, BPF_SK_STORAGE_GET_F_CREATE);
	if (!known || unbind_device(ctx)) {
		qn_count(QN_CNT_REFUSED_STORAGE);
		return REFUSE;
	}
	*known = fresh;
	qn_count(QN_CNT_CAPTURED);
	return REDIRECT;
}

static __always_inline int refuse(void)
{
	if (cfg_set_retval)
		bpf_set_retval(-ECONNREFUSED);
	return 0;
}

SEC("cgroup/connect4")
int qn_connect4(struct bpf_sock_addr *ctx)
{
	struct qn_words ip = { { ctx->user_ip4 } };
	struct qn_addr dst = { .port = bpf_ntohs((__u16)ctx->user_port) };

	qn_ip_set(dst.ip, &dst.family, &ip, 0);
	switch (judge(ctx, &dst)) {
	case REDIRECT:
		ctx->user_ip4 = QN_LOOPBACK4;
		ctx->user_port = bpf_htons(QN_PORT_OUTBOUND);
		return 1;
	case REFUSE:
		return refuse();
	default:
		return 1;
	}
}

SEC("cgroup/connect6")
int qn_connect6(struct bpf_sock_addr *ctx)
{
	struct qn_words ip = { { ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3] } };
	struct qn_addr dst = { .port = bpf_ntohs((__u16)ctx->user_port) };

	qn_ip_set(dst.ip, &dst.family, &ip, 1);
	switch (judge(ctx, &dst)) {
	case REDIRECT:
		ctx->user_ip6[0] = 0;
		ctx->user_ip6[1] = 0;
		ctx->user_ip6[2] = dst.family == 4 ? QN_MAPPED : 0;
		ctx->user_ip6[3] = dst.family == 4 ? QN_LOOPBACK4 : bpf_htonl(1);
		ctx->user_port = bpf_htons(QN_PORT_OUTBOUND);
		return 1;
	case REFUSE:
		return refuse();
	default:
		return 1;
	}
}

char LICENSE[] SEC("license")
= "Dual BSD/GPL";
