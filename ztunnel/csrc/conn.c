/* SPDX-License-Identifier: Apache-2.0 */
/* One application connection: its states, its sockets, its end and its account. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "engine.h"

static void on_timer(struct zt_timer *timer)
{
	struct zt_conn *c = zt_container(timer, struct zt_conn, timer);

	switch (c->state) {
	case ZT_C_WAIT_CERT:
		zt_conn_finish(c, ZT_R_NO_CERT, "no certificate in time");
		break;
	case ZT_C_CONNECTING:
		if (c->direction == ZT_OUTBOUND)
			zt_outbound_failed(c, ZT_R_TIMEOUT, NULL);
		else
			zt_conn_connected(c, ETIMEDOUT);
		break;
	case ZT_C_WAIT_STATUS:
		zt_outbound_failed(c, ZT_R_TIMEOUT, "no answer to CONNECT");
		break;
	case ZT_C_WAIT_CLIENT:
		zt_conn_finish(c, ZT_R_CLIENT_RESET, "gave up before it was answered");
		break;
	default:
		break;
	}
}

static void end_ready(struct zt_io *io)
{
	struct zt_end *e = zt_container(io, struct zt_end, io);
	struct zt_conn *c = e->conn;

	if (c->state == ZT_C_CONNECTING && e == &c->app) {
		if (!io->writable)
			return;
		zt_conn_connected(c, zt_socket_error(io->fd));
		return;
	}
	if (c->state != ZT_C_OPEN) { /* one end, while the other is set up: only a reset matters */
		if (io->err)
			zt_conn_finish(c, e == &c->client ? ZT_R_CLIENT_RESET : ZT_R_SERVER_RESET, NULL);
		return;
	}
	if (c->path == ZT_PATH_TUNNEL)
		zt_stream_ready(c);
	else
		zt_splice_ready(c);
}

static void end_init(struct zt_conn *c, struct zt_end *e)
{
	e->conn = c;
	e->io.fd = -1;
	e->io.ready = end_ready;
}

static int64_t unix_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return (int64_t)ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

struct zt_conn *zt_conn_new(struct zt_podw *p, enum zt_direction dir, enum zt_path path)
{
	struct zt_worker *w = p->w;
	struct zt_core *core = w->core;
	struct zt_conn *c;

	if (atomic_fetch_add_explicit(&core->conns, 1, memory_order_relaxed) >= core->cfg.max_conns)
		goto limit_core;
	if (atomic_fetch_add_explicit(&p->pod->conns, 1, memory_order_relaxed) >= core->cfg.max_conns_per_pod)
		goto limit_pod;
	c = calloc(1, sizeof(*c));
	if (!c)
		goto limit_pod;
	c->w = w;
	c->pod = p;
	c->id = w->next_id += core->n_workers;
	c->direction = (uint8_t)dir;
	c->path = (uint8_t)path;
	c->connect_us = c->handshake_us = -1;
	c->start_us = w->loop.now_us;
	c->start_unix_us = unix_us();
	end_init(c, &c->client);
	end_init(c, &c->app);
	zt_list_init(&c->wait);
	zt_list_init(&c->todo);
	zt_timer_init(&c->timer, on_timer);
	zt_list_add(&p->conns, &c->link);
	zt_bump(&w->n.conns_opened, 1);
	return c;

limit_pod:
	atomic_fetch_sub_explicit(&p->pod->conns, 1, memory_order_relaxed);
limit_core:
	atomic_fetch_sub_explicit(&core->conns, 1, memory_order_relaxed);
	return NULL;
}

void zt_conn_set_state(struct zt_conn *c, enum zt_conn_state s)
{
#define TO(x) (1u << ZT_C_##x)
	static const unsigned allowed[ZT_C_STATES] = {
		[ZT_C_NEW] = TO(WAIT_CERT) | TO(WAIT_TUNNEL) | TO(CONNECTING) | TO(OPEN) | TO(DONE),
		[ZT_C_WAIT_CERT] = TO(WAIT_TUNNEL) | TO(DONE),
		[ZT_C_WAIT_TUNNEL] = TO(WAIT_STATUS) | TO(NEW) | TO(DONE),
		[ZT_C_WAIT_STATUS] = TO(WAIT_CLIENT) | TO(OPEN) | TO(NEW) | TO(DONE),
		/* NEW: another endpoint is tried */
		[ZT_C_CONNECTING] = TO(WAIT_CLIENT) | TO(OPEN) | TO(NEW) | TO(DONE),
		[ZT_C_WAIT_CLIENT] = TO(OPEN) | TO(DONE),
		[ZT_C_OPEN] = TO(DONE),
		[ZT_C_DONE] = 0,
	};
#undef TO
	assert(allowed[c->state] & 1u << s); /* only our own code moves it */
	c->state = (uint8_t)s;
	if (s != ZT_C_WAIT_CERT && s != ZT_C_CONNECTING && s != ZT_C_WAIT_STATUS)
		zt_timer_clear(&c->w->loop, &c->timer);
}

/* Until a socket has ended in order, its descriptor's last close resets it: should this process be killed, nobody
 * takes the cut for a clean end. */
static void reset_on_close(int fd, bool on)
{
	struct linger l = { .l_onoff = on, .l_linger = 0 };

	setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, sizeof(l));
}

int zt_end_open(struct zt_conn *c, struct zt_end *e, int fd)
{
	reset_on_close(fd, true);
	e->io = (struct zt_io){ .fd = fd, .ready = end_ready };
	if (zt_loop_add(&c->w->loop, &e->io)) {
		e->io.fd = -1;
		return -ZT_ESYS;
	}
	e->eof = e->fin = e->fin_sent = false;
	return 0;
}

void zt_reset_fd(int fd)
{
	reset_on_close(fd, true);
	close(fd);
}

void zt_end_close(struct zt_conn *c, struct zt_end *e, bool reset)
{
	if (e->out.bytes) {
		zt_bump(&c->w->n.bytes_buffered, -(int64_t)e->out.bytes);
		zt_queue_drop(&c->w->bufs, &e->out);
	}
	if (e->io.fd < 0)
		return;
	if (!reset)
		reset_on_close(e->io.fd, false);
	close(e->io.fd);
	e->io.fd = -1;
}

void zt_conn_opened(struct zt_conn *c)
{
	if (c->honest) {
		zt_honest_answer(c);
		return;
	}
	zt_conn_set_state(c, ZT_C_OPEN);
	c->connect_us = c->w->loop.now_us - c->start_us;
	c->client.io.writable = c->app.io.writable = true; /* nothing has been written yet */
	zt_tableset_put(c->tables);
	c->tables = NULL;
	c->row = NULL;
}

void zt_conn_later(struct zt_conn *c)
{
	if (c->state != ZT_C_DONE && zt_list_empty(&c->todo))
		zt_list_add(&c->w->todo, &c->todo);
}

void zt_conn_break(struct zt_conn *c, enum zt_reason reason)
{
	if (c->broken)
		return;
	c->broken = true;
	c->broken_reason = (uint8_t)reason;
	zt_conn_later(c);
}

void zt_conn_todo(struct zt_conn *c)
{
	enum zt_reason reason = c->broken_reason;

	if (!c->broken) {
		if (c->path == ZT_PATH_TUNNEL)
			zt_stream_later(c);
		else if (c->state == ZT_C_OPEN)
			zt_splice_ready(c);
		return;
	}
	c->broken = false;
	if (c->state == ZT_C_WAIT_STATUS && reason == ZT_R_GOAWAY)
		zt_outbound_retry_tunnel(c, reason);
	else if (c->state == ZT_C_WAIT_STATUS)
		zt_outbound_failed(c, reason, "stream reset before it was answered");
	else
		zt_conn_finish(c, reason, NULL);
}

static uint32_t stream_code(enum zt_reason reason)
{
	switch (reason) {
	case ZT_R_OK:
		return NGHTTP2_NO_ERROR;
	case ZT_R_CLIENT_RESET:
	case ZT_R_SERVER_RESET:
		return NGHTTP2_CONNECT_ERROR;
	case ZT_R_BAD_REQUEST:
		return NGHTTP2_PROTOCOL_ERROR;
	default:
		return NGHTTP2_CANCEL;
	}
}

void zt_conn_finish(struct zt_conn *c, enum zt_reason reason, const char *detail)
{
	struct zt_worker *w = c->w;
	struct zt_podw *p = c->pod;

	if (c->state == ZT_C_DONE)
		return;
	if (c->state == ZT_C_WAIT_TUNNEL)
		zt_pool_leave(c);
	zt_conn_set_state(c, ZT_C_DONE);
	if (c->honest)
		zt_honest_end(c, reason);
	zt_end_close(c, &c->client, reason != ZT_R_OK);
	zt_end_close(c, &c->app, reason != ZT_R_OK);
	if (c->tunnel)
		zt_hbone_detach(c, stream_code(reason), true);
	zt_list_del(&c->wait);
	zt_list_del(&c->todo);
	zt_load_drop(c);
	zt_event_conn(c, ZT_EV_CLOSED, reason, detail);
	zt_bump(&w->n.reasons[reason], 1);
	atomic_fetch_sub_explicit(&p->pod->conns, 1, memory_order_relaxed);
	atomic_fetch_sub_explicit(&w->core->conns, 1, memory_order_release);
	zt_list_del(&c->link);
	zt_list_add(&w->dead_conns, &c->link);
	zt_podw_maybe_free(p);
}

void zt_refuse(struct zt_podw *p, int fd, enum zt_direction dir, enum zt_reason reason, const struct zt_addr *src,
	       const struct zt_addr *dst)
{
	struct zt_slim s = {
		.id = p->w->next_id += p->w->core->n_workers,
		.pod_id = p->pod->id,
		.kind = ZT_EV_CLOSED,
		.direction = (uint8_t)dir,
		.reason = (uint8_t)reason,
		.start_unix_us = unix_us(),
		.connect_us = -1,
		.handshake_us = -1,
		.src = *src,
	};

	if (dst)
		s.dst = *dst;
	if (fd >= 0)
		zt_reset_fd(fd);
	zt_bump(&p->w->n.reasons[reason], 1);
	zt_event_emit(p->w, &s);
}
