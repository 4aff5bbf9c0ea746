/* SPDX-License-Identifier: Apache-2.0 */
#include "buf.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "zt.h"

#define WRITE_IOV 32

_Static_assert(sizeof(struct zt_buf) == ZT_BUF_SIZE, "one buffer is one allocation of a round size");

static struct zt_buf *buf_get(struct zt_bufpool *p)
{
	struct zt_buf *b = p->spare;

	if (b) {
		p->spare = b->next;
		p->n_spare--;
	} else {
		b = malloc(sizeof(*b));
		if (!b)
			return NULL;
	}
	b->next = NULL;
	b->off = b->len = 0;
	return b;
}

static void buf_put(struct zt_bufpool *p, struct zt_buf *b)
{
	if (p->n_spare >= p->max_spare) {
		free(b);
		return;
	}
	b->next = p->spare;
	p->spare = b;
	p->n_spare++;
}

void zt_bufpool_free(struct zt_bufpool *p)
{
	while (p->spare) {
		struct zt_buf *b = p->spare;

		p->spare = b->next;
		free(b);
	}
	p->n_spare = 0;
}

int zt_queue_push(struct zt_bufpool *p, struct zt_queue *q, const void *data, size_t len)
{
	const uint8_t *from = data;

	while (len) {
		struct zt_buf *b = q->tail;
		size_t n;

		if (!b || b->len == ZT_BUF_DATA) {
			b = buf_get(p);
			if (!b)
				return -ZT_ENOMEM;
			if (q->tail)
				q->tail->next = b;
			else
				q->head = b;
			q->tail = b;
		}
		n = ZT_BUF_DATA - b->len;
		if (n > len)
			n = len;
		memcpy(b->data + b->len, from, n);
		b->len += (uint32_t)n;
		q->bytes += n;
		from += n;
		len -= n;
	}
	return 0;
}

static void queue_pop(struct zt_bufpool *p, struct zt_queue *q, size_t n)
{
	q->bytes -= n;
	while (n) {
		struct zt_buf *b = q->head;
		size_t here = b->len - b->off;

		if (n < here) {
			b->off += (uint32_t)n;
			return;
		}
		n -= here;
		q->head = b->next;
		if (!q->head)
			q->tail = NULL;
		buf_put(p, b);
	}
}

ssize_t zt_queue_write(struct zt_bufpool *p, struct zt_queue *q, int fd, bool *full)
{
	ssize_t total = 0;

	*full = false;
	while (q->bytes) {
		struct iovec iov[WRITE_IOV];
		struct msghdr msg = { .msg_iov = iov };
		size_t want = 0;
		ssize_t n;

		for (struct zt_buf *b = q->head; b && msg.msg_iovlen < WRITE_IOV; b = b->next) {
			iov[msg.msg_iovlen].iov_base = b->data + b->off;
			iov[msg.msg_iovlen++].iov_len = b->len - b->off;
			want += b->len - b->off;
		}
		n = sendmsg(fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
			*full = true;
			break;
		}
		if (n < 0)
			return -1;
		queue_pop(p, q, (size_t)n);
		total += n;
		if ((size_t)n < want) { /* the kernel took a part: its buffer is full */
			*full = true;
			break;
		}
	}
	return total;
}

void zt_queue_drop(struct zt_bufpool *p, struct zt_queue *q)
{
	queue_pop(p, q, q->bytes);
}
