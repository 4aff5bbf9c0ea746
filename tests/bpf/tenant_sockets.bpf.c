/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* Somebody else's socket map: takes every TCP socket of one namespace and counts its messages. Test only. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, __u64);
} tenant_sockets SEC(".maps");

/* 0: cookie of the namespace; 1: messages seen. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u64);
} tenant_numbers SEC(".maps");

SEC("sockops")
int tenant_join(struct bpf_sock_ops *ctx)
{
	__u32 zero = 0;
	__u64 *netns = bpf_map_lookup_elem(&tenant_numbers, &zero), cookie;

	if (ctx->op != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB && ctx->op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
		return 1;
	if (!netns || bpf_get_netns_cookie(ctx) != *netns)
		return 1;
	cookie = bpf_get_socket_cookie(ctx);
	bpf_sock_hash_update(ctx, &tenant_sockets, &cookie, BPF_ANY);
	return 1;
}

SEC("sk_msg")
int tenant_count(struct sk_msg_md *msg)
{
	__u32 one = 1;
	__u64 *n = bpf_map_lookup_elem(&tenant_numbers, &one);

	if (n)
		__sync_fetch_and_add(n, 1);
	return SK_PASS;
}

char LICENSE[] SEC("license")
= "Dual BSD/GPL";
