/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* Maps of one `qanat trace`: pinned apart, each trace has its own. */
#ifndef QANAT_TRACE_MAPS_H
#define QANAT_TRACE_MAPS_H

#include "loading.h"
#include "trace.h"

QN_RINGBUF(trace_events, QN_TRACE_BYTES);
QN_MAP(PERCPU_ARRAY, trace_lost, __u32, __u64, 1, 0);

#endif
