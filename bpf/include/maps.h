/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* Every map of Qanat, once. Each object declares all of them and libbpf joins the declarations through the
 * pins (below the instance's directory), so the order in which objects load is free. QN_MAP: loading.h.
 * Layouts and meanings: qanat.h. Hashes are not preallocated: memory follows use.
 */
#ifndef QANAT_MAPS_H
#define QANAT_MAPS_H

#include "loading.h"
#include "qanat.h"

QN_MAP(SK_STORAGE, sockets, int, struct qn_socket, 0, BPF_F_NO_PREALLOC);
QN_MAP(HASH, pods, __u64, struct qn_pod, QN_POD_MAX, BPF_F_NO_PREALLOC);
QN_MAP(HASH, pod_addrs, struct qn_ip, __u64, QN_POD_MAX *QN_POD_ADDRS, BPF_F_NO_PREALLOC);
QN_MAP(HASH, flows, struct qn_flow_key, struct qn_flow, QN_FLOW_MAX, BPF_F_NO_PREALLOC);
/* Listening sockets; the kernel removes an entry when its socket closes. Writer: nodeagent. */
QN_MAP(SOCKMAP, listeners, __u32, __u64, QN_POD_MAX * 2, 0);
QN_MAP(ARRAY, settings, __u32, struct qn_settings, 1, 0);
QN_MAP(HASH, mesh_addrs, struct qn_ip, __u32 /* enum qn_mesh_kind */, QN_MESH_MAX, BPF_F_NO_PREALLOC);
QN_MAP(HASH, services, struct qn_addr, struct qn_service, QN_SERVICE_MAX, BPF_F_NO_PREALLOC);
QN_MAP(LRU_HASH, failing, struct qn_addr, __u64, QN_FAILING_MAX, 0);
QN_MAP(HASH, verdicts, struct qn_verdict_key, struct qn_verdict, QN_VERDICT_MAX, BPF_F_NO_PREALLOC);
QN_RINGBUF(events, QN_EVENTS_BYTES);
/* When an ASK was last sent (CLOCK_MONOTONIC, ns). Writer: capture. */
QN_MAP(LRU_HASH, asked, struct qn_verdict_key, __u64, QN_ASKED_MAX, 0);
QN_MAP(PERCPU_ARRAY, counters, __u32, __u64, QN_CNT_MAX, 0);

static __always_inline void qn_count(__u32 reason)
{
	__u64 *n = bpf_map_lookup_elem(&counters, &reason);

	if (n)
		*n += 1;
}

/* The agent has not been heard of for too long. */
static __always_inline int qn_is_stale(const struct qn_settings *s)
{
	__u64 now = bpf_ktime_get_ns();

	return now > s->heartbeat_ns && now - s->heartbeat_ns > s->stale_ns;
}

/* The agent's settings say: let connections through while the agent is down, and it is down. */
static __always_inline int qn_agent_is_down_and_open(void)
{
	__u32 zero = 0;
	struct qn_settings *s = bpf_map_lookup_elem(&settings, &zero);

	return s && s->on_agent_down == QN_AGENT_DOWN_OPEN && qn_is_stale(s);
}

#endif
