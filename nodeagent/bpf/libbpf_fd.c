// SPDX-License-Identifier: Apache-2.0
/* Programs, links and maps that are in the kernel, by descriptor; what this kernel has. Manual: libbpf_cdef.h. */
#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "libbpf_cdef.h"

int qnb_link_create(int prog_fd, int target_fd, int attach_type)
{
	int fd = bpf_link_create(prog_fd, target_fd, (enum bpf_attach_type)attach_type, NULL);

	return fd < 0 ? -errno : fd;
}

int qnb_link_update(int link_fd, int prog_fd)
{
	return bpf_link_update(link_fd, prog_fd, NULL) ? -errno : 0;
}

int qnb_map_attach(int prog_fd, int map_fd, int attach_type)
{
	return bpf_prog_attach(prog_fd, map_fd, (enum bpf_attach_type)attach_type, 0) ? -errno : 0;
}

int qnb_link_detach(int link_fd)
{
	return bpf_link_detach(link_fd) ? -errno : 0;
}

int qnb_pin(int fd, const char *path)
{
	return bpf_obj_pin(fd, path) ? -errno : 0;
}

int qnb_get(const char *path)
{
	int fd = bpf_obj_get(path);

	return fd < 0 ? -errno : fd;
}

static uint32_t btf_size(const struct btf *btf, uint32_t id)
{
	int64_t size = id ? btf__resolve_size(btf, id) : 0;

	return size > 0 ? (uint32_t)size : 0;
}

int qnb_map_info(int map_fd, struct qnb_map_info *out)
{
	struct bpf_map_info info = { 0 };
	uint32_t length = sizeof(info);
	struct btf *btf;

	if (bpf_obj_get_info_by_fd(map_fd, &info, &length))
		return -errno;
	*out = (struct qnb_map_info){
		.type = info.type,
		.id = info.id,
		.key_size = info.key_size,
		.value_size = info.value_size,
		.max_entries = info.max_entries,
		.flags = info.map_flags,
	};
	btf = info.btf_id ? btf__load_from_kernel_by_id(info.btf_id) : NULL;
	if (btf) {
		out->btf_key_size = btf_size(btf, info.btf_key_type_id);
		out->btf_value_size = btf_size(btf, info.btf_value_type_id);
		btf__free(btf);
	}
	return 0;
}

int qnb_map_lookup(int map_fd, const void *key, void *value)
{
	return bpf_map_lookup_elem(map_fd, key, value) ? -errno : 0;
}

int qnb_map_update(int map_fd, const void *key, const void *value, uint64_t flags)
{
	return bpf_map_update_elem(map_fd, key, value, flags) ? -errno : 0;
}

int qnb_map_delete(int map_fd, const void *key)
{
	return bpf_map_delete_elem(map_fd, key) ? -errno : 0;
}

int qnb_map_next_key(int map_fd, const void *key, void *next)
{
	return bpf_map_get_next_key(map_fd, key, next) ? -errno : 0;
}

int qnb_prog_info(int prog_fd, struct qnb_prog_info *out)
{
	struct bpf_prog_info info = { 0 };
	uint32_t length = sizeof(info);

	if (bpf_obj_get_info_by_fd(prog_fd, &info, &length))
		return -errno;
	*out = (struct qnb_prog_info){ .type = info.type, .id = info.id };
	memcpy(out->tag, info.tag, sizeof(out->tag));
	memcpy(out->name, info.name, sizeof(out->name));
	return 0;
}

int qnb_link_info(int link_fd, struct qnb_link_info *out)
{
	struct bpf_link_info info = { 0 };
	uint32_t length = sizeof(info);

	if (bpf_obj_get_info_by_fd(link_fd, &info, &length))
		return -errno;
	*out = (struct qnb_link_info){ .type = info.type, .id = info.id, .prog_id = info.prog_id };
	if (info.type == BPF_LINK_TYPE_CGROUP) {
		out->cgroup_id = info.cgroup.cgroup_id;
		out->attach_type = info.cgroup.attach_type;
	} else if (info.type == BPF_LINK_TYPE_NETNS) {
		out->netns_inode = info.netns.netns_ino;
		out->attach_type = info.netns.attach_type;
	}
	return 0;
}

int qnb_iter_open(int prog_fd, int map_fd)
{
	union bpf_iter_link_info over = { .map.map_fd = (uint32_t)map_fd };
	LIBBPF_OPTS(bpf_link_create_opts, opts, .iter_info = &over, .iter_info_len = sizeof(over));
	int link = bpf_link_create(prog_fd, 0, BPF_TRACE_ITER, &opts);
	int fd;

	if (link < 0)
		return -errno;
	fd = bpf_iter_create(link);
	if (fd < 0)
		fd = -errno;
	close(link); /* the iterator holds it */
	return fd;
}

int qnb_has_prog_type(int prog_type)
{
	return libbpf_probe_bpf_prog_type((enum bpf_prog_type)prog_type, NULL);
}

int qnb_has_map_type(int map_type)
{
	return libbpf_probe_bpf_map_type((enum bpf_map_type)map_type, NULL);
}

int qnb_has_helper(int prog_type, int helper)
{
	return libbpf_probe_bpf_helper((enum bpf_prog_type)prog_type, (enum bpf_func_id)helper, NULL);
}

int qnb_possible_cpus(void)
{
	return libbpf_num_possible_cpus();
}
