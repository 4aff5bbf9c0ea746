/* SPDX-License-Identifier: Apache-2.0 */
/* Bytes between two sockets, where there is no tunnel: read up to 128 KiB into the worker's scratch, send it on, keep
 * only what the kernel does not take.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "engine.h"

#define QUANTUM (512u * 1024) /* one way, then the others' turn */

/* One direction. Returns -1 when the connection was finished, else 1 if there is more to do now, else 0. */
static int pump(struct zt_conn *c, struct zt_end *from, struct zt_end *to, uint64_t *account)
{
	struct zt_worker *w = c->w;
	enum zt_reason from_reset = from == &c->client ? ZT_R_CLIENT_RESET : ZT_R_SERVER_RESET;
	enum zt_reason to_reset = to == &c->client ? ZT_R_CLIENT_RESET : ZT_R_SERVER_RESET;
	size_t moved = 0;

	while (moved < QUANTUM) {
		ssize_t n, sent;

		if (to->out.bytes) {
			bool full;

			if (!to->io.writable)
				return 0;
			n = zt_queue_write(&w->bufs, &to->out, to->io.fd, &full);
			if (n < 0) {
				zt_conn_finish(c, to_reset, NULL);
				return -1;
			}
			zt_bump(&w->n.bytes_buffered, -n);
			if (full)
				to->io.writable = false;
			if (to->out.bytes)
				return 0;
		}
		if (from->eof || !from->io.readable)
			return 0;
		do
			n = recv(from->io.fd, w->plain, ZT_IN_CAP, MSG_DONTWAIT);
		while (n < 0 && errno == EINTR);
		if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
			from->io.readable = false;
			return 0;
		}
		if (n < 0) {
			zt_conn_finish(c, from_reset, NULL);
			return -1;
		}
		if (!n) {
			from->eof = true;
			to->fin = true;
			if (shutdown(to->io.fd, SHUT_WR) && errno != ENOTCONN) {
				zt_conn_finish(c, to_reset, NULL);
				return -1;
			}
			to->fin_sent = true;
			return 0;
		}
		if (n < (ssize_t)ZT_IN_CAP)
			zt_io_short_read(&from->io);
		*account += (uint64_t)n;
		moved += (size_t)n;
		sent = 0;
		if (to->io.writable) {
			do
				sent = send(to->io.fd, w->plain, (size_t)n, MSG_NOSIGNAL | MSG_DONTWAIT);
			while (sent < 0 && errno == EINTR);
			if (sent < 0 && errno != EAGAIN && errno != EWOULDBLOCK) {
				zt_conn_finish(c, to_reset, NULL);
				return -1;
			}
			if (sent < 0)
				sent = 0;
		}
		if (sent < n) {
			to->io.writable = false;
			if (zt_queue_push(&w->bufs, &to->out, w->plain + sent, (size_t)(n - sent))) {
				zt_conn_finish(c, ZT_R_INTERNAL, "out of memory");
				return -1;
			}
			zt_bump(&w->n.bytes_buffered, n - sent);
			return 0;
		}
	}
	return from->io.readable;
}

/* An error on a socket nobody can read from now (its other side is full) is a reset all the same. EPOLLHUP alone also
 * means that FIN has gone both ways.
 */
static bool was_reset(const struct zt_end *e, const struct zt_end *other)
{
	if (!e->io.err || !(e->eof || other->out.bytes))
		return false;
	return zt_socket_error(e->io.fd) || !e->fin_sent;
}

void zt_splice_ready(struct zt_conn *c)
{
	int out, in;

	if (was_reset(&c->client, &c->app)) {
		zt_conn_finish(c, ZT_R_CLIENT_RESET, NULL);
		return;
	}
	if (was_reset(&c->app, &c->client)) {
		zt_conn_finish(c, ZT_R_SERVER_RESET, NULL);
		return;
	}
	out = pump(c, &c->client, &c->app, &c->sent);
	if (out < 0)
		return;
	in = pump(c, &c->app, &c->client, &c->recv);
	if (in < 0)
		return;
	if (c->client.eof && c->app.eof && c->client.fin_sent && c->app.fin_sent) {
		zt_conn_finish(c, ZT_R_OK, NULL);
		return;
	}
	if (out || in)
		zt_conn_later(c);
}
