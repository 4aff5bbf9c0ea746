/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* names: everybody sees the addresses they expect on sockets that capture or ztunnel had a hand in.
 *
 * Hook:     cgroup/getpeername4+6 (covers accept() too), cgroup/getsockname4+6
 * Attached: the v2 root; BPF_F_ALLOW_MULTI
 * Reads:    sockets, pods. Writes: nothing
 * Returns:  always 1 (the kernel accepts nothing else)
 * Floor:    5.15
 * Cannot decide: the kernel's own answer stands.
 *
 * | role     | getpeername           | getsockname                      |
 * | CLIENT   | what it dialled       | pod address instead of loopback  |
 * | CAPTURED | pod address, not loopback | the original destination     |
 * | SERVER   | the real client       | (kernel's)                       |
 * A direct CLIENT that dialled a service sees the service; dialled by address, and at a direct SERVER, nothing has to be
 * put right.
 * Ports the kernel chose stay. AF_INET6 sockets get IPv4-mapped forms; an AF_INET socket cannot show an
 * IPv6 address and keeps the kernel's answer.
 */
#include "addr.h"
#include "maps.h"

/* The address to show instead of `now` (what the kernel reports), written to *now. Returns 1 if replaced. */
static __always_inline int rename_to(struct qn_addr *now, const struct qn_addr *want)
{
	if (!want->family)
		return 0;
	*now = *want;
	return 1;
}

static __always_inline int rename_loopback(struct bpf_sock_addr *ctx, struct qn_addr *now)
{
	struct qn_pod *pod;
	__u64 netns;

	if (!qn_is_loopback(now->ip, now->family))
		return 0;
	netns = bpf_get_netns_cookie(ctx);
	pod = bpf_map_lookup_elem(&pods, &netns);
	if (!pod)
		return 0;
#pragma unroll
	for (int i = 0; i < QN_POD_ADDRS; i++) {
		if (pod->addrs[i].family == now->family) {
			__builtin_memcpy(now->ip, pod->addrs[i].ip, 16);
			return 1;
		}
	}
	return 0;
}

static __always_inline int peer_name(struct bpf_sock_addr *ctx, struct qn_addr *now)
{
	struct qn_socket *s = bpf_sk_storage_get(&sockets, ctx->sk, 0, 0);

	if (!s)
		return 0;
	switch (s->role) {
	case QN_ROLE_CLIENT:
	case QN_ROLE_SERVER:
		return rename_to(now, &s->addr);
	case QN_ROLE_CAPTURED:
		return rename_loopback(ctx, now);
	default:
		return 0;
	}
}

static __always_inline int sock_name(struct bpf_sock_addr *ctx, struct qn_addr *now)
{
	struct qn_socket *s = bpf_sk_storage_get(&sockets, ctx->sk, 0, 0);

	if (!s)
		return 0;
	switch (s->role) {
	case QN_ROLE_CLIENT:
		return rename_loopback(ctx, now);
	case QN_ROLE_CAPTURED:
		return rename_to(now, &s->addr);
	default:
		return 0;
	}
}

static __always_inline struct qn_addr read4(struct bpf_sock_addr *ctx)
{
	struct qn_words ip = { { ctx->user_ip4 } };
	struct qn_addr now = { .port = bpf_ntohs((__u16)ctx->user_port) };

	qn_ip_set(now.ip, &now.family, &ip, 0);
	return now;
}

static __always_inline struct qn_addr read6(struct bpf_sock_addr *ctx)
{
	struct qn_words ip = { { ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3] } };
	struct qn_addr now = { .port = bpf_ntohs((__u16)ctx->user_port) };

	qn_ip_set(now.ip, &now.family, &ip, 1);
	return now;
}

static __always_inline void write4(struct bpf_sock_addr *ctx, const struct qn_addr *name)
{
	if (name->family != 4)
		return;
	ctx->user_ip4 = qn_ip_words(name->ip).w[0];
	ctx->user_port = bpf_htons(name->port);
}

static __always_inline void write6(struct bpf_sock_addr *ctx, const struct qn_addr *name)
{
	struct qn_words ip = qn_ip_words(name->ip);
	int mapped = name->family == 4;

	ctx->user_ip6[0] = mapped ? 0 : ip.w[0];
	ctx->user_ip6[1] = mapped ? 0 : ip.w[1];
	ctx->user_ip6[2] = mapped ? QN_MAPPED : ip.w[2];
	ctx->user_ip6[3] = mapped ? ip.w[0] : ip.w[3];
	ctx->user_port = bpf_htons(name->port);
}

SEC("cgroup/getpeername4")
int qn_peername4(struct bpf_sock_addr *ctx)
{
	struct qn_addr name = read4(ctx);

	if (peer_name(ctx, &name))
		write4(ctx, &name);
	return 1;
}

SEC("cgroup/getpeername6")
int qn_peername6(struct bpf_sock_addr *ctx)
{
	struct qn_addr name = read6(ctx);

	if (peer_name(ctx, &name))
		write6(ctx, &name);
	return 1;
}

SEC("cgroup/getsockname4")
int qn_sockname4(struct bpf_sock_addr *ctx)
{
	struct qn_addr name = read4(ctx);

	if (sock_name(ctx, &name))
		write4(ctx, &name);
	return 1;
}

SEC("cgroup/getsockname6")
int qn_sockname6(struct bpf_sock_addr *ctx)
{
	struct qn_addr name = read6(ctx);

	if (sock_name(ctx, &name))
		write6(ctx, &name);
	return 1;
}

char LICENSE[] SEC("license")
= "Dual BSD/GPL";
