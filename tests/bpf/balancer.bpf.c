/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* Somebody else's socket load balancer: connect4 turns service addresses into backends and getpeername4 turns them back,
 * as Cilium's does. Test only.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct place {
	__u32 ip;   /* network order */
	__u32 port; /* network order, as in user_port */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__type(key, struct place);
	__type(value, struct place);
} balancer_services SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, struct place);
} balancer_dialled SEC(".maps");

SEC("cgroup/connect4")
int balancer_connect4(struct bpf_sock_addr *ctx)
{
	struct place p = { ctx->user_ip4, ctx->user_port };
	struct place *backend = bpf_map_lookup_elem(&balancer_services, &p);
	__u64 cookie = bpf_get_socket_cookie(ctx);

	if (!backend)
		return 1;
	bpf_map_update_elem(&balancer_dialled, &cookie, &p, BPF_ANY);
	ctx->user_ip4 = backend->ip;
	ctx->user_port = backend->port;
	return 1;
}

SEC("cgroup/getpeername4")
int balancer_peername4(struct bpf_sock_addr *ctx)
{
	__u64 cookie = bpf_get_socket_cookie(ctx);
	struct place *dialled = bpf_map_lookup_elem(&balancer_dialled, &cookie);

	if (dialled) {
		ctx->user_ip4 = dialled->ip;
		ctx->user_port = dialled->port;
	}
	return 1;
}

char LICENSE[] SEC("license")
= "Dual BSD/GPL";
