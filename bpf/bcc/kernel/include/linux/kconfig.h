/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* What BCC's own headers expect of a kernel tree, and no more: our programs use UAPI contexts only. */
#ifndef QANAT_BCC_KCONFIG_H
#define QANAT_BCC_KCONFIG_H

#define CONFIG_BPF_SYSCALL 1
#define PAGE_SIZE 4096 /* only for BCC's macros; ours count in bytes */

#include <linux/types.h>

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s8 s8;
typedef __s16 s16;
typedef __s32 s32;
typedef __s64 s64;
typedef __SIZE_TYPE__ size_t;
typedef __UINTPTR_TYPE__ uintptr_t;
typedef _Bool bool;

#endif
