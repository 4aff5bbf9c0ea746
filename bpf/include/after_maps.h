/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* Programs that `flows` hands a socket on to. */
#ifndef QANAT_AFTER_MAPS_H
#define QANAT_AFTER_MAPS_H

#include "loading.h"

/* Slot QN_AFTER_JOIN: qn_join of join.bpf.c; empty on a kernel that may not have the shortcut. Writer: nodeagent. */
QN_MAP(PROG_ARRAY, after_flows, __u32, __u32, 1, 0);
#define QN_AFTER_JOIN 0

#endif
