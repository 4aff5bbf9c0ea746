/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* hush: sockets that are about to be cut hear nothing but a reset, so that what they await next stands still.
 *
 * Hook:     cgroup_skb/ingress
 * Attached: the v2 root, BPF_F_ALLOW_MULTI; not pinned, and only while connections are being cut (milliseconds)
 * Reads:    condemned
 * Returns:  1 = deliver; 0 = drop, for a condemned socket's segments without RST: TCP sends them again if they matter
 * Floor:    4.10; socket cookies 4.12
 * Cannot decide: delivers. The cut may then miss its moment and is made another way (nodeagent/capture/cutting.py).
 */
#include "hush_maps.h"

#define IPPROTO_TCP 6
#define ETH_P_IPV6 0x86dd
#define V6_HEADER 40
#define FLAGS_AT 13
#define RST 4

static __always_inline int is_reset(struct __sk_buff *skb)
{
	__u32 off = V6_HEADER;
	__u8 byte = 0;

	if (skb->protocol != __builtin_bswap16(ETH_P_IPV6)) {
		if (bpf_skb_load_bytes(skb, 0, &byte, 1))
			return 1;
		off = (byte & 15) * 4;
	}
	if (bpf_skb_load_bytes(skb, off + FLAGS_AT, &byte, 1))
		return 1;
	return byte & RST;
}

SEC("cgroup_skb/ingress")
int qn_hush(struct __sk_buff *skb)
{
	__u64 cookie = bpf_get_socket_cookie(skb);

	if (!bpf_map_lookup_elem(&condemned, &cookie))
		return 1;
	return is_reset(skb) ? 1 : 0;
}

char LICENSE[] SEC("license")
= "Dual BSD/GPL";
