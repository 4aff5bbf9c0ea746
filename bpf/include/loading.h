/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* What the two loaders need said differently, so that every program has one source.
 *
 * QN_MAP(kind, name, key, value, max_entries, flags)  a map, shared by its pin. kind: BPF_MAP_TYPE_<kind>.
 * QN_RINGBUF(name, bytes)                             a ring buffer, shared by its pin.
 * QN_SETTING(type, name, value)                       a constant that the loader may set before loading.
 *
 * libbpf reads maps from the object's BTF and settings from .rodata. BCC (QN_BCC) compiles a source twice:
 * with QN_BCC_MAPS to make the maps (QN_BCC_PINS is their directory), then the programs, in which a map's name
 * stands for its descriptor (qn_map_fds.h, written by nodeagent/bpf/bcc_compile.py) and a setting is a -D flag.
 */
#ifndef QANAT_LOADING_H
#define QANAT_LOADING_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#ifndef QN_BCC

#define QN_MAP(kind, map, key_type, value_type, entries, flags)                                                        \
	struct {                                                                                                       \
		__uint(type, BPF_MAP_TYPE_##kind);                                                                     \
		__uint(max_entries, entries);                                                                          \
		__uint(map_flags, flags);                                                                              \
		__type(key, key_type);                                                                                 \
		__type(value, value_type);                                                                             \
		__uint(pinning, LIBBPF_PIN_BY_NAME);                                                                   \
	} map SEC(".maps")
#define QN_RINGBUF(map, bytes)                                                                                         \
	struct {                                                                                                       \
		__uint(type, BPF_MAP_TYPE_RINGBUF);                                                                    \
		__uint(max_entries, bytes);                                                                            \
		__uint(pinning, LIBBPF_PIN_BY_NAME);                                                                   \
	} map SEC(".maps")
#define QN_SETTING(type, name, value) const volatile type name = value

#elif defined(QN_BCC_MAPS)

#define QN_MAP(kind, map, key_type, value_type, entries, flags)                                                        \
	BPF_TABLE_PINNED7(QN_BCC_##kind, key_type, value_type, map, entries, QN_BCC_PINS "/" #map, flags)
#define QN_RINGBUF(map, bytes) QN_MAP(RINGBUF, map, int, int, bytes, 0)
#define QN_SETTING(type, name, value) static const type name = value

#define QN_BCC_ARRAY "array"
#define QN_BCC_HASH "hash"
#define QN_BCC_LPM_TRIE "lpm_trie"
#define QN_BCC_LRU_HASH "lru_hash"
#define QN_BCC_PERCPU_ARRAY "percpu_array"
#define QN_BCC_PERCPU_HASH "percpu_hash"
#define QN_BCC_PROG_ARRAY "prog"
#define QN_BCC_RINGBUF "ringbuf"
#define QN_BCC_SK_STORAGE "sk_storage"
#define QN_BCC_SOCKHASH "sockhash"
#define QN_BCC_SOCKMAP "sockmap"

#else

#define QN_MAP(kind, map, key_type, value_type, entries, flags) struct qn_map_of_another_pass
#define QN_RINGBUF(map, bytes) struct qn_map_of_another_pass
#define QN_SETTING(type, name, value) static const type name = QN_SET_##name
#include "qn_map_fds.h"

#endif

#endif
