// SPDX-License-Identifier: Apache-2.0
/* libbpf for Python: see libbpf_cdef.h, which is the manual. */
#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "libbpf_cdef.h"
#include "qanat.h"
#include "trace.h"
#include "traffic.h"

#define LOG_SIZE 16384

/* libbpf has one print callback for the whole process: it writes to the calling thread's own buffer. */
static _Thread_local char log_text[LOG_SIZE];
static _Thread_local size_t log_used;

struct qnb_object {
	struct bpf_object *obj;
};

static int keep_log(enum libbpf_print_level level, const char *format, va_list args)
{
	size_t left = LOG_SIZE - log_used;
	int n;

	if (level == LIBBPF_DEBUG || left <= 1)
		return 0;
	n = vsnprintf(log_text + log_used, left, format, args);
	if (n < 0)
		return n;
	log_used += (size_t)n < left ? (size_t)n : left - 1;
	return n;
}

static void start_log(void)
{
	log_used = 0;
	log_text[0] = '\0';
	libbpf_set_print(keep_log);
}

const char *qnb_log(void)
{
	return log_text;
}

struct qnb_object *qnb_open(const char *path, const char *pin_root, int *err)
{
	LIBBPF_OPTS(bpf_object_open_opts, opts, .pin_root_path = pin_root);
	struct qnb_object *o = calloc(1, sizeof(*o));

	if (!o) {
		*err = -ENOMEM;
		return NULL;
	}
	start_log();
	o->obj = bpf_object__open_file(path, &opts);
	if (!o->obj) {
		*err = -errno;
		free(o);
		return NULL;
	}
	return o;
}

int qnb_set_rodata(struct qnb_object *o, const char *name, const void *value, uint32_t size)
{
	const struct btf *btf = bpf_object__btf(o->obj);
	int id = btf ? btf__find_by_name_kind(btf, ".rodata", BTF_KIND_DATASEC) : -ENOENT;
	const struct btf_type *section, *var;
	const struct btf_var_secinfo *info;
	struct bpf_map *map = NULL;
	const void *initial;
	size_t length = 0;
	char *copy;
	int err = -ENOENT;

	/* libbpf names the map "<object>.rodata". */
	while ((map = bpf_object__next_map(o->obj, map)))
		if (strstr(bpf_map__name(map), ".rodata"))
			break;
	initial = map ? bpf_map__initial_value(map, &length) : NULL;
	if (id < 0 || !initial)
		return -ENOENT;
	copy = malloc(length);
	if (!copy)
		return -ENOMEM;
	memcpy(copy, initial, length);
	section = btf__type_by_id(btf, (uint32_t)id);
	info = btf_var_secinfos(section);
	for (int i = 0; i < (int)btf_vlen(section); i++, info++) {
		var = btf__type_by_id(btf, info->type);
		if (strcmp(btf__name_by_offset(btf, var->name_off), name) != 0)
			continue;
		if (info->size != size || (size_t)info->offset + size > length)
			break;
		memcpy(copy + info->offset, value, size);
		err = bpf_map__set_initial_value(map, copy, length);
		break;
	}
	free(copy);
	return err;
}

int qnb_load(struct qnb_object *o)
{
	start_log();
	return bpf_object__load(o->obj);
}

void qnb_close(struct qnb_object *o)
{
	if (!o)
		return;
	bpf_object__close(o->obj);
	free(o);
}

int qnb_prog_fd(const struct qnb_object *o, const char *name)
{
	struct bpf_program *p = bpf_object__find_program_by_name(o->obj, name);

	return p ? bpf_program__fd(p) : -ENOENT;
}

int qnb_map_fd(const struct qnb_object *o, const char *name)
{
	struct bpf_map *m = bpf_object__find_map_by_name(o->obj, name);

	return m ? bpf_map__fd(m) : -ENOENT;
}

const char *qnb_prog_name(const struct qnb_object *o, uint32_t i)
{
	struct bpf_program *p = bpf_object__next_program(o->obj, NULL);

	for (; p && i; i--)
		p = bpf_object__next_program(o->obj, p);
	return p ? bpf_program__name(p) : NULL;
}

const char *qnb_map_name(const struct qnb_object *o, uint32_t i)
{
	struct bpf_map *m = bpf_object__next_map(o->obj, NULL);

	for (; m && i; i--)
		m = bpf_object__next_map(o->obj, m);
	return m ? bpf_map__name(m) : NULL;
}

int qnb_prog_attach_type(const struct qnb_object *o, const char *name)
{
	struct bpf_program *p = bpf_object__find_program_by_name(o->obj, name);

	return p ? (int)bpf_program__expected_attach_type(p) : -ENOENT;
}

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

struct qnb_ring {
	struct ring_buffer *ring;
	uint32_t record_size;
	char *out; /* the rest of this qnb_ring_read */
	uint32_t left;
	uint32_t n;
};

/* A negative answer stops the round; the record counts as consumed. */
static int take_record(void *ring, void *data, size_t size)
{
	struct qnb_ring *r = ring;

	if (size == r->record_size) {
		memcpy(r->out, data, size);
		r->out += size;
		r->left--;
		r->n++;
	}
	return r->left ? 0 : -ECANCELED;
}

struct qnb_ring *qnb_ring_open(int map_fd, uint32_t record_size, int *err)
{
	struct qnb_ring *r = calloc(1, sizeof(*r));

	if (!r) {
		*err = -ENOMEM;
		return NULL;
	}
	r->record_size = record_size;
	r->ring = ring_buffer__new(map_fd, take_record, r, NULL);
	if (!r->ring) {
		*err = -errno;
		free(r);
		return NULL;
	}
	return r;
}

int qnb_ring_fd(const struct qnb_ring *r)
{
	return ring_buffer__epoll_fd(r->ring);
}

int qnb_ring_read(struct qnb_ring *r, void *records, uint32_t max)
{
	int err;

	if (!max)
		return 0;
	r->out = records;
	r->left = max;
	r->n = 0;
	err = ring_buffer__consume(r->ring);
	r->out = NULL;
	return err < 0 && err != -ECANCELED ? err : (int)r->n;
}

void qnb_ring_close(struct qnb_ring *r)
{
	if (!r)
		return;
	ring_buffer__free(r->ring);
	free(r);
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

#define SIZE(type)                                                                                                     \
	{                                                                                                              \
#type, (int64_t)sizeof(struct type)                                                                    \
	}
#define FIELD(type, member)                                                                                            \
	{                                                                                                              \
#type "." #member, (int64_t)offsetof(struct type, member)                                              \
	}
#define CONSTANT(name)                                                                                                 \
	{                                                                                                              \
#name, (int64_t)name                                                                                   \
	}

int64_t qnb_layout(const char *what)
{
	static const struct {
		const char *name;
		int64_t value;
	} known[] = {
		SIZE(qn_track),
		FIELD(qn_track, start_ns),
		FIELD(qn_track, established_ns),
		FIELD(qn_track, src),
		FIELD(qn_track, dst),
		FIELD(qn_track, rule),
		FIELD(qn_track, path),
		FIELD(qn_track, pad),
		FIELD(qn_track, local),
		FIELD(qn_track, remote),
		FIELD(qn_track, dialled),
		SIZE(qn_closing),
		FIELD(qn_closing, track),
		FIELD(qn_closing, end_ns),
		FIELD(qn_closing, socket),
		FIELD(qn_closing, bytes_sent),
		FIELD(qn_closing, bytes_received),
		FIELD(qn_closing, srtt_us),
		FIELD(qn_closing, retransmits),
		FIELD(qn_closing, end),
		FIELD(qn_closing, pad),
		SIZE(qn_trace),
		FIELD(qn_trace, time_ns),
		FIELD(qn_trace, netns),
		FIELD(qn_trace, src),
		FIELD(qn_trace, dst),
		FIELD(qn_trace, socket),
		FIELD(qn_trace, bytes_sent),
		FIELD(qn_trace, bytes_received),
		FIELD(qn_trace, local),
		FIELD(qn_trace, remote),
		FIELD(qn_trace, dialled),
		FIELD(qn_trace, rule),
		FIELD(qn_trace, srtt_us),
		FIELD(qn_trace, retransmits),
		FIELD(qn_trace, kind),
		FIELD(qn_trace, path),
		FIELD(qn_trace, role),
		FIELD(qn_trace, refused),
		SIZE(qn_live),
		FIELD(qn_live, track),
		FIELD(qn_live, socket),
		FIELD(qn_live, bytes_sent),
		FIELD(qn_live, bytes_received),
		FIELD(qn_live, srtt_us),
		FIELD(qn_live, retransmits),
		SIZE(qn_traffic_key),
		FIELD(qn_traffic_key, src),
		FIELD(qn_traffic_key, dst),
		FIELD(qn_traffic_key, remote),
		FIELD(qn_traffic_key, dialled),
		FIELD(qn_traffic_key, path),
		FIELD(qn_traffic_key, pad),
		SIZE(qn_traffic),
		FIELD(qn_traffic, opened),
		FIELD(qn_traffic, closed),
		FIELD(qn_traffic, failed),
		FIELD(qn_traffic, resets),
		FIELD(qn_traffic, bytes_sent),
		FIELD(qn_traffic, bytes_received),
		FIELD(qn_traffic, retransmits),
		FIELD(qn_traffic, srtt_us),
		SIZE(qn_addr),
		FIELD(qn_addr, ip),
		FIELD(qn_addr, port),
		FIELD(qn_addr, family),
		FIELD(qn_addr, pad),
		FIELD(qn_addr, pad2),
		SIZE(qn_socket),
		FIELD(qn_socket, role),
		FIELD(qn_socket, path),
		FIELD(qn_socket, same_node),
		FIELD(qn_socket, draw),
		FIELD(qn_socket, marks),
		FIELD(qn_socket, rule),
		FIELD(qn_socket, epoch),
		FIELD(qn_socket, addr),
		FIELD(qn_socket, src),
		FIELD(qn_socket, dst),
		FIELD(qn_socket, start_ns),
		FIELD(qn_socket, established_ns),
		FIELD(qn_socket, half_received),
		SIZE(qn_pod),
		FIELD(qn_pod, flags),
		FIELD(qn_pod, slot),
		FIELD(qn_pod, addrs),
		SIZE(qn_ip),
		FIELD(qn_ip, ip),
		FIELD(qn_ip, family),
		FIELD(qn_ip, pad),
		SIZE(qn_settings),
		FIELD(qn_settings, node_netns),
		FIELD(qn_settings, heartbeat_ns),
		FIELD(qn_settings, stale_ns),
		FIELD(qn_settings, on_agent_down),
		FIELD(qn_settings, epoch),
		FIELD(qn_settings, paths),
		FIELD(qn_settings, pad),
		SIZE(qn_flow_key),
		FIELD(qn_flow_key, netns),
		FIELD(qn_flow_key, src),
		FIELD(qn_flow_key, dst),
		FIELD(qn_flow_key, src_port),
		FIELD(qn_flow_key, dst_port),
		FIELD(qn_flow_key, family),
		FIELD(qn_flow_key, pad),
		SIZE(qn_flow),
		FIELD(qn_flow, kind),
		FIELD(qn_flow, rule),
		FIELD(qn_flow, addr),
		FIELD(qn_flow, src),
		FIELD(qn_flow, epoch),
		FIELD(qn_flow, same_node),
		FIELD(qn_flow, is_met),
		FIELD(qn_flow, draw),
		FIELD(qn_flow, pad),
		SIZE(qn_service),
		FIELD(qn_service, total),
		FIELD(qn_service, n),
		FIELD(qn_service, endpoints),
		SIZE(qn_verdict_key),
		FIELD(qn_verdict_key, src),
		FIELD(qn_verdict_key, dst),
		SIZE(qn_verdict),
		FIELD(qn_verdict, dst),
		FIELD(qn_verdict, epoch),
		FIELD(qn_verdict, rule),
		FIELD(qn_verdict, decision),
		FIELD(qn_verdict, same_node),
		FIELD(qn_verdict, pad),
		SIZE(qn_event),
		FIELD(qn_event, kind),
		FIELD(qn_event, rule),
		FIELD(qn_event, time_ns),
		FIELD(qn_event, src),
		FIELD(qn_event, dst),
		FIELD(qn_event, dialled),
		FIELD(qn_event, target),
		SIZE(qn_listed),
		FIELD(qn_listed, socket),
		FIELD(qn_listed, local),
		FIELD(qn_listed, remote),
		FIELD(qn_listed, local_port),
		FIELD(qn_listed, remote_port),
		FIELD(qn_listed, family),
		FIELD(qn_listed, state),
		FIELD(qn_listed, is_v6),
		FIELD(qn_listed, pad),
		FIELD(qn_listed, cookie),
		FIELD(qn_listed, netns),
		FIELD(qn_listed, snd_nxt),
		FIELD(qn_listed, rcv_nxt),
		SIZE(qn_half),
		FIELD(qn_half, cookie),
		FIELD(qn_half, at),
		FIELD(qn_half, is_server),
		FIELD(qn_half, pad),
		SIZE(qn_arrived),
		FIELD(qn_arrived, next),
		FIELD(qn_arrived, is_torn),
		SIZE(qn_join),
		FIELD(qn_join, cookie),
		FIELD(qn_join, peer),
		FIELD(qn_join, peer_at),
		FIELD(qn_join, bytes),
		FIELD(qn_join, messages),
		FIELD(qn_join, mark_bytes),
		FIELD(qn_join, mark_messages),
		FIELD(qn_join, is_moving),
		FIELD(qn_join, is_server),
		FIELD(qn_join, settled),
		FIELD(qn_join, pad),
		FIELD(qn_join, key),
		CONSTANT(QN_TRAFFIC_MAX),
		CONSTANT(QN_SCHEMA_VERSION),
		CONSTANT(QN_POD_MAX),
		CONSTANT(QN_POD_ADDRS),
		CONSTANT(QN_MESH_MAX),
		CONSTANT(QN_SERVICE_MAX),
		CONSTANT(QN_SERVICE_LOCAL),
		CONSTANT(QN_VERDICT_MAX),
		CONSTANT(QN_CONDEMNED_MAX),
		CONSTANT(QN_FLOW_MAX),
		CONSTANT(QN_CNT_MAX),
		CONSTANT(QN_PORT_OUTBOUND),
		CONSTANT(QN_PORT_INBOUND),
		CONSTANT(QN_PORT_HBONE),
	};

	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		if (strcmp(known[i].name, what) == 0)
			return known[i].value;
	return -ENOENT;
}
