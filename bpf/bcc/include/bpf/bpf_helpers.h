/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* Under BCC, in place of libbpf's: BCC has declared the helpers already and finds programs by its own sections. */
#ifndef QANAT_BCC_HELPERS_H
#define QANAT_BCC_HELPERS_H

#define SEC(name)
#undef __always_inline
#define __always_inline inline __attribute__((always_inline))

/* BCC's own has another name and takes a descriptor. */
static long (*bpf_tail_call)(void *ctx, const void *map, __u32 index) = (void *)BPF_FUNC_tail_call;

#endif
