/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* Sockets that are being cut. */
#ifndef QANAT_HUSH_MAPS_H
#define QANAT_HUSH_MAPS_H

#include "loading.h"
#include "qanat.h"

/* Key = socket cookie. Writer: nodeagent, which leaves it empty. */
QN_MAP(HASH, condemned, __u64, __u32, QN_CONDEMNED_MAX, BPF_F_NO_PREALLOC);

#endif
