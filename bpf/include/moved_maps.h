/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* What the shortcut has moved, which TCP does not count. */
#ifndef QANAT_MOVED_MAPS_H
#define QANAT_MOVED_MAPS_H

#include "loading.h"
#include "qanat.h"

QN_MAP(SK_STORAGE, joins, int, struct qn_join, 0, BPF_F_NO_PREALLOC);
QN_MAP(LRU_HASH, moved, __u64, __u64, QN_MOVED_MAX, 0);

#endif
