// SPDX-License-Identifier: Apache-2.0
/* An object file: opened, given its settings, loaded, asked for what is in it. Manual: libbpf_cdef.h. */
#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "libbpf_cdef.h"

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
