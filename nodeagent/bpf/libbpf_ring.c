// SPDX-License-Identifier: Apache-2.0
/* A ring buffer of records of one size. Manual: libbpf_cdef.h. */
#include <bpf/libbpf.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "libbpf_cdef.h"

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
