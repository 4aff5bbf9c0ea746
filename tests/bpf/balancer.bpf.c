/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* Somebody else's programs, as another eBPF product brings them. Test only.
 * balancer_*: connect4 turns service addresses into backends and getpeername4 turns them back, as Cilium's socket load
 * balancer does. keeper_*: every connection that is established goes into a socket map with an sk_msg program.
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

struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, __u64);
} keeper_sockets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} keeper_messages SEC(".maps");

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

SEC("sockops")
int keeper_flows(struct bpf_sock_ops *ctx)
{
	__u64 cookie = bpf_get_socket_cookie(ctx);

	if (ctx->op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB || ctx->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
		bpf_sock_hash_update(ctx, &keeper_sockets, &cookie, BPF_ANY);
	return 1;
}

SEC("sk_msg")
int keeper_message(struct sk_msg_md *msg)
{
	__u32 zero = 0;
	__u64 *n = bpf_map_lookup_elem(&keeper_messages, &zero);

	if (n)
		__sync_fetch_and_add(n, 1);
	return SK_PASS;
}

char LICENSE[] SEC("license")
= "Dual BSD/GPL";
