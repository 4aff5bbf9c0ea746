/* SPDX-License-Identifier: Apache-2.0 */
/* The part of libbpf that Python needs, and nothing of its types. Implemented in libbpf_*.c; read by cffi.
 * Unless said otherwise: returns 0 (or a descriptor, which the caller closes) or a negative errno. Strings are
 * NUL-terminated and copied. Any thread; no call keeps a pointer to the caller's memory.
 */
#ifndef QANAT_LIBBPF_CDEF_H
#define QANAT_LIBBPF_CDEF_H
#include <stdint.h>
/* cffi: begin */

struct qnb_object;

/* What libbpf and the verifier said during this thread's last qnb_open or qnb_load; valid until the next. */
const char *qnb_log(void);

/* Read an object file. Maps marked for pinning will use (and reuse) pin_root/<map name>. NULL on failure, with
 * the negative errno in *err. Free with qnb_close. */
struct qnb_object *qnb_open(const char *path, const char *pin_root, int *err);
/* Before qnb_load: set a read-only variable of the object. -ENOENT: no such variable or another size. */
int qnb_set_rodata(struct qnb_object *o, const char *name, const void *value, uint32_t size);
int qnb_load(struct qnb_object *o);
/* Descriptors of programs and maps belong to the object and are closed with it. */
void qnb_close(struct qnb_object *o);
int qnb_prog_fd(const struct qnb_object *o, const char *name);
int qnb_map_fd(const struct qnb_object *o, const char *name);
/* The name of program or map number i; NULL beyond the last. */
const char *qnb_prog_name(const struct qnb_object *o, uint32_t i);
const char *qnb_map_name(const struct qnb_object *o, uint32_t i);
int qnb_prog_attach_type(const struct qnb_object *o, const char *name);

int qnb_link_create(int prog_fd, int target_fd, int attach_type);
int qnb_link_update(int link_fd, int prog_fd);
/* For socket maps: the program judges what the sockets send or receive that enter the map from now on. It replaces one
 * of the same attach type and stays as long as the map lives. */
int qnb_map_attach(int prog_fd, int map_fd, int attach_type);
int qnb_link_detach(int link_fd);
int qnb_pin(int fd, const char *path);
int qnb_get(const char *path);

struct qnb_map_info {
	uint32_t type;
	uint32_t id;
	uint32_t key_size;
	uint32_t value_size;
	uint32_t max_entries;
	uint32_t flags;
	/* Sizes of the key and value types in the map's BTF; 0 = the map has none. */
	uint32_t btf_key_size;
	uint32_t btf_value_size;
};
int qnb_map_info(int map_fd, struct qnb_map_info *out);
/* Memory the kernel accounts to the map, from fdinfo, is read in Python. */
int qnb_map_lookup(int map_fd, const void *key, void *value);
int qnb_map_update(int map_fd, const void *key, const void *value, uint64_t flags);
int qnb_map_delete(int map_fd, const void *key);
/* key NULL = the first key. -ENOENT: no more. */
int qnb_map_next_key(int map_fd, const void *key, void *next);

struct qnb_prog_info {
	uint32_t type;
	uint32_t id;
	uint8_t tag[8];
	char name[16];
};
int qnb_prog_info(int prog_fd, struct qnb_prog_info *out);

struct qnb_link_info {
	uint32_t type;
	uint32_t id;
	uint32_t prog_id;
	uint32_t attach_type;
	uint64_t cgroup_id;
	uint32_t netns_inode; /* 0 = the namespace is gone (the link is dead) */
};
int qnb_link_info(int link_fd, struct qnb_link_info *out);

/* Run an iterator program over a map: a descriptor that is read to its end, once. */
int qnb_iter_open(int prog_fd, int map_fd);

/* A ring buffer of records of one size. qnb_ring_fd is readable (epoll) when there may be some; it belongs to the
 * ring. qnb_ring_read copies at most `max` of them and returns how many. One reader. Free with qnb_ring_close. */
struct qnb_ring;
struct qnb_ring *qnb_ring_open(int map_fd, uint32_t record_size, int *err);
int qnb_ring_fd(const struct qnb_ring *r);
int qnb_ring_read(struct qnb_ring *r, void *records, uint32_t max);
void qnb_ring_close(struct qnb_ring *r);

/* 1, 0 or a negative errno. Found by trying, not by version. */
int qnb_has_prog_type(int prog_type);
int qnb_has_map_type(int map_type);
int qnb_has_helper(int prog_type, int helper);
/* Possible CPUs: a per-CPU value is that many times the value size rounded up to 8. */
int qnb_possible_cpus(void);

/* Layout of qanat.h as the compiler sees it. what: "qn_pod" = size, "qn_pod.addrs" = offset, "QN_POD_MAX" = a
 * constant. -ENOENT: unknown. */
int64_t qnb_layout(const char *what);

/* cffi: end */
#endif
