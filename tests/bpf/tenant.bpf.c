/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* Somebody else's program on cgroup/connect4: counts, and keeps the last destination it saw. Test only. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct seen {
	__u64 calls;
	__u32 last_ip;
	__u32 last_port;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct seen);
} tenant_seen SEC(".maps");

SEC("cgroup/connect4")
int tenant_connect4(struct bpf_sock_addr *ctx)
{
	__u32 zero = 0;
	struct seen *s = bpf_map_lookup_elem(&tenant_seen, &zero);

	if (s) {
		s->calls++;
		s->last_ip = ctx->user_ip4;
		s->last_port = ctx->user_port;
	}
	return 1;
}

char LICENSE[] SEC("license")
= "Dual BSD/GPL";
