/* SPDX-License-Identifier: Apache-2.0 */
/* Bytes between one HTTP/2 stream and one socket.
 *
 * Out: nghttp2 asks when the windows allow; recv() puts bytes where the DATA frame is being built. Nothing is read
 * that cannot be sent, so the application's own socket buffers are the queue.
 * In: what one read of the tunnel brought for a stream goes to its socket in one sendmsg(); what the kernel does
 * not take waits in the end's queue and its window is not returned until it has been written.
 */
#include <errno.h>
#include <sys/uio.h>

#include "engine.h"

#define DELIVER_IOV 64

struct zt_end *zt_stream_end_of(struct zt_conn *c)
{
	return c->direction == ZT_OUTBOUND ? &c->client : &c->app;
}

static enum zt_reason reset_reason(const struct zt_conn *c)
{
	return c->direction == ZT_OUTBOUND ? ZT_R_CLIENT_RESET : ZT_R_SERVER_RESET;
}

static void count_out(struct zt_conn *c, size_t n) /* socket -> stream */
{
	if (c->direction == ZT_OUTBOUND)
		c->sent += n;
	else
		c->recv += n;
}

static void count_in(struct zt_conn *c, size_t n) /* stream -> socket */
{
	if (c->direction == ZT_OUTBOUND)
		c->recv += n;
	else
		c->sent += n;
}

ssize_t zt_stream_read(struct zt_conn *c, uint8_t *buf, size_t cap, uint32_t *flags)
{
	struct zt_end *e = zt_stream_end_of(c);
	ssize_t n;

	if (c->state != ZT_C_OPEN || !e->io.readable || c->broken || c->stop_read) {
		c->deferred = true;
		return NGHTTP2_ERR_DEFERRED;
	}
	do
		n = recv(e->io.fd, buf, cap, MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	if (n > 0) {
		if ((size_t)n < cap)
			zt_io_short_read(&e->io);
		count_out(c, (size_t)n);
		return n;
	}
	if (!n) {
		e->eof = true;
		e->io.readable = false;
		*flags |= NGHTTP2_DATA_FLAG_EOF;
		return 0;
	}
	e->io.readable = false;
	c->deferred = true;
	if (errno != EAGAIN && errno != EWOULDBLOCK)
		zt_conn_break(c, reset_reason(c));
	return NGHTTP2_ERR_DEFERRED;
}

static void try_done(struct zt_conn *c)
{
	if (zt_stream_end_of(c)->fin_sent && (c->stream_fin_sent || c->stop_read))
		zt_conn_finish(c, ZT_R_OK, NULL);
}

/* After `out` has become empty. */
static void after_drain(struct zt_conn *c)
{
	struct zt_end *e = zt_stream_end_of(c);

	if (e->out.bytes || c->state != ZT_C_OPEN)
		return;
	if (c->rst_after) {
		zt_conn_finish(c, c->direction == ZT_OUTBOUND ? ZT_R_SERVER_RESET : ZT_R_CLIENT_RESET, NULL);
		return;
	}
	if (e->fin && !e->fin_sent) {
		if (shutdown(e->io.fd, SHUT_WR)) {
			zt_conn_finish(c, reset_reason(c), NULL);
			return;
		}
		e->fin_sent = true;
	}
	try_done(c);
}

static void flush_queue(struct zt_conn *c)
{
	struct zt_end *e = zt_stream_end_of(c);
	bool full;
	ssize_t n;

	if (!e->out.bytes || !e->io.writable)
		return;
	n = zt_queue_write(&c->w->bufs, &e->out, e->io.fd, &full);
	if (n < 0) {
		zt_conn_finish(c, reset_reason(c), NULL);
		return;
	}
	if (full)
		e->io.writable = false;
	zt_bump(&c->w->n.bytes_buffered, -n);
	zt_tunnel_credit(c, (size_t)n);
}

static void deliver(struct zt_conn *c)
{
	struct zt_worker *w = c->w;
	struct zt_end *e = zt_stream_end_of(c);
	size_t at = c->touched_head, taken = 0, skip;
	bool write = c->state == ZT_C_OPEN && e->io.writable && !e->out.bytes && !c->broken;

	c->touched_head = c->touched_tail = 0;
	if (c->state == ZT_C_DONE)
		return;
	while (at && write) {
		struct iovec iov[DELIVER_IOV];
		struct msghdr msg = { .msg_iov = iov };
		size_t want = 0, i = at;
		ssize_t n;

		for (; i && msg.msg_iovlen < DELIVER_IOV; i = w->chunks[i - 1].next) {
			iov[msg.msg_iovlen].iov_base = (void *)(uintptr_t)w->chunks[i - 1].data;
			iov[msg.msg_iovlen++].iov_len = w->chunks[i - 1].len;
			want += w->chunks[i - 1].len;
		}
		do
			n = sendmsg(e->io.fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
		while (n < 0 && errno == EINTR);
		if (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK) {
			zt_conn_finish(c, reset_reason(c), NULL);
			return;
		}
		if (n < 0)
			n = 0;
		taken += (size_t)n;
		if ((size_t)n < want) {
			write = false;
			e->io.writable = false;
			for (skip = (size_t)n; skip >= w->chunks[at - 1].len; at = w->chunks[at - 1].next)
				skip -= w->chunks[at - 1].len;
			w->chunks[at - 1].data += skip;
			w->chunks[at - 1].len -= skip;
			break;
		}
		at = i;
	}
	if (taken)
		zt_tunnel_credit(c, taken);
	for (; at; at = w->chunks[at - 1].next) {
		const struct zt_chunk *k = &w->chunks[at - 1];

		if (zt_queue_push(&w->bufs, &e->out, k->data, k->len)) {
			zt_conn_break(c, ZT_R_INTERNAL);
			return;
		}
		zt_bump(&w->n.bytes_buffered, (int64_t)k->len);
	}
}

void zt_stream_deliver_all(struct zt_worker *w)
{
	for (size_t i = 0; i < w->n_touched; i++)
		deliver(w->touched[i]);
	for (size_t i = 0; i < w->n_touched; i++)
		after_drain(w->touched[i]);
	w->n_touched = 0;
	w->n_chunks = 0;
}

void zt_stream_data(struct zt_conn *c, const uint8_t *data, size_t len)
{
	struct zt_worker *w = c->w;
	struct zt_chunk *k;

	if (!len)
		return;
	if (w->n_chunks == ZT_CHUNKS) { /* inside a callback: deliver, but finish nothing here */
		for (size_t i = 0; i < w->n_touched; i++) {
			struct zt_conn *other = w->touched[i];

			if (other->state == ZT_C_DONE)
				continue;
			for (size_t at = other->touched_head; at; at = w->chunks[at - 1].next) {
				if (zt_queue_push(&w->bufs, &zt_stream_end_of(other)->out, w->chunks[at - 1].data,
						  w->chunks[at - 1].len))
					zt_conn_break(other, ZT_R_INTERNAL);
				else
					zt_bump(&w->n.bytes_buffered, (int64_t)w->chunks[at - 1].len);
			}
			other->touched_head = other->touched_tail = 0;
			zt_conn_later(other); /* writes the queue */
		}
		w->n_chunks = w->n_touched = 0;
	}
	count_in(c, len);
	c->uncredited += len;
	k = &w->chunks[w->n_chunks++];
	*k = (struct zt_chunk){ .data = data, .len = len };
	if (c->touched_tail) {
		w->chunks[c->touched_tail - 1].next = w->n_chunks;
	} else {
		c->touched_head = w->n_chunks;
		w->touched[w->n_touched++] = c;
	}
	c->touched_tail = w->n_chunks;
}

void zt_stream_end(struct zt_conn *c)
{
	struct zt_end *e = zt_stream_end_of(c);

	c->stream_fin_recv = true;
	e->fin = true;
	if (c->touched_head || e->out.bytes)
		return;                  /* deliver_all or the socket's readiness goes on from here */
	if (c->w->n_touched < ZT_CHUNKS) /* shutdown() after the callback */
		c->w->touched[c->w->n_touched++] = c;
	else
		zt_conn_later(c);
}

void zt_stream_fin_sent(struct zt_conn *c)
{
	c->stream_fin_sent = true;
	zt_conn_later(c); /* from the todo list: is it all over? */
}

/* The stream has ended by itself (both END_STREAM) or by RST_STREAM; c->tunnel is already detached. In a callback. */
void zt_stream_closed(struct zt_conn *c, uint32_t code)
{
	struct zt_end *e = zt_stream_end_of(c);

	switch (c->state) {
	case ZT_C_WAIT_STATUS:
		zt_conn_break(c, code == NGHTTP2_REFUSED_STREAM ? ZT_R_GOAWAY : ZT_R_SERVER_RESET);
		return;
	case ZT_C_OPEN:
		break;
	default:
		zt_conn_break(c, ZT_R_CLIENT_RESET);
		return;
	}
	if (code == NGHTTP2_NO_ERROR) {
		e->fin = true;
		c->stop_read = true;
		zt_conn_later(c);
		return;
	}
	if (c->stream_fin_recv && (e->out.bytes || c->touched_head)) {
		c->rst_after = true;
		c->stop_read = true;
		return;
	}
	zt_conn_break(c, c->direction == ZT_OUTBOUND ? ZT_R_SERVER_RESET : ZT_R_CLIENT_RESET);
}

/* The window is shut or the tunnel is full: nobody will read the socket soon, so its error must be looked at here. */
static bool cannot_send(const struct zt_conn *c)
{
	const struct zt_tunnel *t = c->tunnel;

	return !t || t->out.bytes || nghttp2_session_get_remote_window_size(t->h2) <= 0 ||
	       nghttp2_session_get_stream_remote_window_size(t->h2, c->stream) <= 0;
}

void zt_stream_ready(struct zt_conn *c)
{
	struct zt_end *e = zt_stream_end_of(c);

	if (e->io.err && (e->eof || cannot_send(c))) {
		int err = zt_socket_error(e->io.fd);

		if (err || !e->fin_sent) {
			zt_conn_finish(c, reset_reason(c), NULL);
			return;
		}
	}
	flush_queue(c);
	if (c->state == ZT_C_OPEN)
		after_drain(c);
	if (c->state == ZT_C_OPEN && c->tunnel && c->deferred && e->io.readable) {
		c->deferred = false;
		nghttp2_session_resume_data(c->tunnel->h2, c->stream);
		zt_tunnel_mark(c->tunnel);
	}
}

void zt_stream_later(struct zt_conn *c)
{
	if (c->state != ZT_C_OPEN)
		return;
	flush_queue(c);
	if (c->state == ZT_C_OPEN)
		after_drain(c);
}
