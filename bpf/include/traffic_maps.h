/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* Maps of the kernel paths' telemetry. Layouts and meanings: traffic.h. */
#ifndef QANAT_TRAFFIC_MAPS_H
#define QANAT_TRAFFIC_MAPS_H

#include "loading.h"
#include "traffic.h"

QN_MAP(HASH, traffic, struct qn_traffic_key, struct qn_traffic, QN_TRAFFIC_MAX, BPF_F_NO_PREALLOC);
QN_MAP(ARRAY, traffic_other, __u32 /* enum qn_path */, struct qn_traffic, QN_PATH_REFUSED + 1, 0);
QN_RINGBUF(closings, QN_CLOSINGS_BYTES);

#endif
