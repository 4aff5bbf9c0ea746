/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* Maps by which the shortcut joins flows, apart from the others because only kernels that pass its trial need them. */
#ifndef QANAT_JOIN_MAPS_H
#define QANAT_JOIN_MAPS_H

#include "loading.h"
#include "maps.h"
#include "qanat.h"

QN_MAP(SOCKHASH, joinable, __u64, __u64, QN_JOIN_MAX, 0);
QN_MAP(HASH, halves, struct qn_flow_key, struct qn_half, QN_JOIN_MAX, BPF_F_NO_PREALLOC);
QN_MAP(HASH, arrived, __u64, struct qn_arrived, QN_JOIN_MAX, BPF_F_NO_PREALLOC);

static __always_inline int qn_is_shortcut_on(void)
{
	__u32 zero = 0;
	struct qn_settings *s = bpf_map_lookup_elem(&settings, &zero);

	return s && (s->paths & QN_PATHS_SHORTCUT);
}

#endif
