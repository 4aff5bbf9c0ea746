/* SPDX-License-Identifier: Apache-2.0 */
/* Bytes that a socket did not take yet. Memory comes from a per-worker pool only while there are bytes. */
#ifndef ZT_BUF_H
#define ZT_BUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#define ZT_BUF_SIZE 16384
#define ZT_BUF_DATA (ZT_BUF_SIZE - 2 * sizeof(void *))

struct zt_buf {
	struct zt_buf *next;
	uint32_t off; /* first byte not written */
	uint32_t len; /* end of bytes in data */
	uint8_t data[ZT_BUF_DATA];
};

struct zt_bufpool {
	struct zt_buf *spare;
	size_t n_spare;
	size_t max_spare;
};

struct zt_queue {
	struct zt_buf *head;
	struct zt_buf *tail;
	size_t bytes;
};

void zt_bufpool_free(struct zt_bufpool *p);

/* Append a copy. Returns 0 or -ZT_ENOMEM (then part of it may be in the queue: the connection is lost anyway). */
int zt_queue_push(struct zt_bufpool *p, struct zt_queue *q, const void *data, size_t len);
/* Write to `fd` until empty or EAGAIN. Returns bytes written, or -1 with errno (never EAGAIN). *full tells EAGAIN. */
ssize_t zt_queue_write(struct zt_bufpool *p, struct zt_queue *q, int fd, bool *full);
void zt_queue_drop(struct zt_bufpool *p, struct zt_queue *q);

#endif
