/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* Every map of Qanat, once. Each object declares all of them and libbpf joins the declarations through the
 * pins (LIBBPF_PIN_BY_NAME below the instance's directory), so the order in which objects load is free.
 * Layouts and meanings: qanat.h. Hashes are not preallocated: memory follows use.
 */
#ifndef QANAT_MAPS_H
#define QANAT_MAPS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "qanat.h"

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct qn_socket);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} sockets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, QN_POD_MAX);
	__type(key, __u64);
	__type(value, struct qn_pod);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} pods SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, QN_POD_MAX *QN_POD_ADDRS);
	__type(key, struct qn_ip);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} pod_addrs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, QN_FLOW_MAX);
	__type(key, struct qn_flow_key);
	__type(value, struct qn_flow);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} flows SEC(".maps");

/* Listening sockets; the kernel removes an entry when its socket closes. Writer: nodeagent. */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, QN_POD_MAX * 2);
	__type(key, __u32);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} listeners SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct qn_settings);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} settings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, QN_MESH_MAX);
	__type(key, struct qn_ip);
	__type(value, __u32); /* enum qn_mesh_kind */
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} mesh_addrs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, QN_SERVICE_MAX);
	__type(key, struct qn_addr);
	__type(value, struct qn_service);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} services SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, QN_VERDICT_MAX);
	__type(key, struct qn_verdict_key);
	__type(value, struct qn_verdict);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} verdicts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, QN_EVENTS_BYTES);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} events SEC(".maps");

/* When an ASK was last sent (CLOCK_MONOTONIC, ns). Writer: capture. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, QN_ASKED_MAX);
	__type(key, struct qn_verdict_key);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} asked SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, QN_CNT_MAX);
	__type(key, __u32);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} counters SEC(".maps");

static __always_inline void qn_count(__u32 reason)
{
	__u64 *n = bpf_map_lookup_elem(&counters, &reason);

	if (n)
		*n += 1;
}

/* The agent's settings say: let connections through while the agent is down, and it is down. */
static __always_inline int qn_agent_is_down_and_open(void)
{
	__u32 zero = 0;
	struct qn_settings *s = bpf_map_lookup_elem(&settings, &zero);
	__u64 now;

	if (!s || s->on_agent_down != QN_AGENT_DOWN_OPEN)
		return 0;
	now = bpf_ktime_get_ns();
	return now > s->heartbeat_ns && now - s->heartbeat_ns > s->stale_ns;
}

#endif
