/* SPDX-License-Identifier: Apache-2.0 */
/* One TLS connection carrying HTTP/2: TCP, handshake, bytes both ways through the worker's scratch buffers, timers,
 * its end. What the frames mean is hbone.c's.
 */
#include <errno.h>
#include <openssl/err.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "engine.h"

#define RUN_ROUNDS 4          /* of up to ZT_IN_CAP in and ZT_OUT_CAP out, then the others' turn */
#define GOAWAY_SETTLE_MS 1000 /* between the notice and the GOAWAY that counts */

static void on_ready(struct zt_io *io);
static void on_timer(struct zt_timer *timer);
static void on_ping(struct zt_timer *timer);

struct zt_tunnel *zt_tunnel_new(struct zt_podw *p, bool server)
{
	struct zt_tunnel *t = calloc(1, sizeof(*t));
	struct timespec ts;

	if (!t)
		return NULL;
	t->w = p->w;
	t->pod = p;
	t->server = server;
	t->id = p->w->next_id += p->w->core->n_workers;
	t->io.fd = -1;
	t->io.ready = on_ready;
	t->start_us = p->w->loop.now_us;
	clock_gettime(CLOCK_REALTIME, &ts);
	t->start_unix_us = (int64_t)ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
	t->handshake_us = -1;
	t->first_bytes = true;
	zt_list_init(&t->pool_link);
	zt_list_init(&t->dirty);
	zt_list_init(&t->streams);
	zt_timer_init(&t->timer, on_timer);
	zt_timer_init(&t->ping, on_ping);
	zt_list_add(&p->tunnels, &t->link);
	zt_bump(server ? &p->w->n.tunnels_in_live : &p->w->n.tunnels_out_live, 1);
	zt_bump(server ? &p->w->n.tunnels_in_total : &p->w->n.tunnels_out_total, 1);
	atomic_fetch_add_explicit(&p->w->core->tunnels, 1, memory_order_relaxed);
	if (server)
		atomic_fetch_add_explicit(&p->pod->tunnels, 1, memory_order_relaxed);
	return t;
}

int zt_tunnel_dial(struct zt_tunnel *t)
{
	int fd, r = zt_dial(t->pod, &t->peer, NULL, true, &fd);

	if (r < 0)
		return r;
	t->io.fd = fd;
	if (zt_loop_add(&t->w->loop, &t->io))
		return -ZT_R_INTERNAL;
	t->state = ZT_T_CONNECTING;
	zt_timer_set(&t->w->loop, &t->timer, t->w->cfg->connect_ms);
	return 0; /* even when connected already: the loop reports it writable, and nobody is surprised in mid-call */
}

void zt_tunnel_mark(struct zt_tunnel *t)
{
	if (t->state != ZT_T_DEAD && zt_list_empty(&t->dirty))
		zt_list_add(&t->w->dirty, &t->dirty);
}

static void handshake_over(struct zt_tunnel *t)
{
	if (!t->handshaking)
		return;
	t->handshaking = false;
	atomic_fetch_sub_explicit(&t->w->core->handshakes, 1, memory_order_relaxed);
}

int zt_tunnel_begin(struct zt_tunnel *t)
{
	if (!t->identity)
		return -ZT_R_NO_CERT;
	if (zt_tls_attach(t))
		return -ZT_R_INTERNAL;
	t->state = ZT_T_HANDSHAKE;
	t->handshaking = true;
	atomic_fetch_add_explicit(&t->w->core->handshakes, 1, memory_order_relaxed);
	zt_timer_set(&t->w->loop, &t->timer, t->w->cfg->handshake_ms);
	zt_tunnel_mark(t);
	return 0;
}

/* Send what is sealed; keep what the kernel does not take. False: failed and gone. */
static bool push_sealed(struct zt_tunnel *t)
{
	struct zt_worker *w = t->w;
	size_t done = 0, len = w->seal_len;
	bool full;
	ssize_t n;

	w->seal_len = 0;
	if (t->out.bytes && t->io.writable) {
		n = zt_queue_write(&w->bufs, &t->out, t->io.fd, &full);
		if (n < 0)
			goto lost;
		zt_bump(&w->n.bytes_buffered, -n);
		if (full)
			t->io.writable = false;
	}
	if (!len)
		return true;
	if (!t->out.bytes && t->io.writable) {
		do
			n = send(t->io.fd, w->seal, len, MSG_NOSIGNAL | MSG_DONTWAIT);
		while (n < 0 && errno == EINTR);
		if (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK)
			goto lost;
		done = n < 0 ? 0 : (size_t)n;
		if (done < len)
			t->io.writable = false;
	}
	if (done < len) {
		if (zt_queue_push(&w->bufs, &t->out, w->seal + done, len - done)) {
			zt_tunnel_fail(t, ZT_R_INTERNAL, "out of memory");
			return false;
		}
		zt_bump(&w->n.bytes_buffered, (int64_t)(len - done));
	}
	return true;

lost:
	zt_tunnel_fail(t, t->fail ? t->fail : ZT_R_TRUNCATED, strerror(errno));
	return false;
}

/* Encrypt w->out. False: failed and gone. */
static bool seal(struct zt_tunnel *t)
{
	struct zt_worker *w = t->w;
	size_t done = 0, n;

	while (done < w->out_len) {
		if (SSL_write_ex(t->ssl, w->out + done, w->out_len - done, &n) != 1) {
			zt_tunnel_fail(t, zt_tls_reason(t), t->detail);
			return false;
		}
		done += n;
	}
	w->out_len = 0;
	return true;
}

static void handshake(struct zt_tunnel *t)
{
	const unsigned char *alpn = NULL;
	unsigned alpn_len = 0;
	enum zt_reason reason;
	int r = SSL_do_handshake(t->ssl);

	if (r != 1) {
		int e = SSL_get_error(t->ssl, r);

		if (e == SSL_ERROR_WANT_READ) {
			push_sealed(t);
			return;
		}
		reason = zt_tls_reason(t);
		if (push_sealed(t)) /* the alert */
			zt_tunnel_fail(t, reason, t->detail);
		return;
	}
	SSL_get0_alpn_selected(t->ssl, &alpn, &alpn_len);
	if (alpn_len != 2 || memcmp(alpn, "h2", 2)) {
		zt_tunnel_fail(t, ZT_R_TLS, "peer did not agree on h2");
		return;
	}
	t->state = ZT_T_SETTINGS;
	if (zt_hbone_start(t)) {
		zt_tunnel_fail(t, ZT_R_INTERNAL, "out of memory");
		return;
	}
	zt_tunnel_mark(t);
	push_sealed(t);
}

/* The peer's SETTINGS are here. May run inside nghttp2. */
void zt_tunnel_ready(struct zt_tunnel *t)
{
	if (t->state != ZT_T_SETTINGS)
		return;
	t->state = ZT_T_OPEN;
	t->handshake_us = t->w->loop.now_us - t->start_us;
	handshake_over(t);
	zt_timer_set(&t->w->loop, &t->timer, t->server ? t->w->cfg->preamble_ms : t->w->cfg->tunnel_idle_ms);
	zt_timer_set(&t->w->loop, &t->ping, t->w->cfg->ping_ms);
	if (t->server)
		return;
	zt_pool_ready(t);
	if (t->pod->gone || atomic_load_explicit(&t->w->core->draining, memory_order_relaxed))
		zt_tunnel_drain(t); /* the drain began while somebody waited for this tunnel */
}

/* Decrypt what was received and give it to HTTP/2. False: failed and gone. */
static bool pull(struct zt_tunnel *t)
{
	struct zt_worker *w = t->w;
	size_t got = 0, n;
	int err = SSL_ERROR_NONE;
	int r;

	while (got < ZT_PLAIN_CAP) {
		r = SSL_read_ex(t->ssl, w->plain + got, ZT_PLAIN_CAP - got, &n);
		if (r != 1) {
			err = SSL_get_error(t->ssl, r);
			break;
		}
		got += n;
	}
	if (got && zt_hbone_feed(t, w->plain, got)) {
		push_sealed(t);
		zt_tunnel_fail(t, t->fail ? t->fail : ZT_R_H2, t->detail);
		return false;
	}
	if (t->state == ZT_T_DEAD)
		return false;
	if (err == SSL_ERROR_WANT_READ || err == SSL_ERROR_NONE)
		return true;
	if (err == SSL_ERROR_ZERO_RETURN) {
		zt_tunnel_fail(t, t->fail ? t->fail : t->n_streams ? ZT_R_TRUNCATED : ZT_R_OK, "closed by peer");
		return false;
	}
	push_sealed(t);
	if (t->state != ZT_T_DEAD)
		zt_tunnel_fail(t, zt_tls_reason(t), t->detail);
	return false;
}

static bool looks_like_tls(const uint8_t *p)
{
	return p[0] == 0x16; /* RFC 8446 5.1: handshake record */
}

/* One read and what follows from it. False: nothing more to read now. */
static bool read_some(struct zt_tunnel *t)
{
	struct zt_worker *w = t->w;
	ssize_t n;

	do
		n = recv(t->io.fd, w->in, ZT_IN_CAP, MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
		t->io.readable = false;
		return false;
	}
	if (n <= 0) {
		const char *why = n ? strerror(errno) : "closed by peer";
		enum zt_reason r = t->state < ZT_T_OPEN ? ZT_R_TLS : t->n_streams || n ? ZT_R_TRUNCATED : ZT_R_OK;

		zt_tunnel_fail(t, t->fail ? t->fail : r, why);
		return false;
	}
	if (t->server && t->first_bytes && !looks_like_tls(w->in)) {
		zt_tunnel_fail(t, ZT_R_NOT_TLS, "first byte is no TLS handshake");
		return false;
	}
	t->first_bytes = false;
	w->reading = t;
	w->bio_in = w->in;
	w->bio_in_len = (size_t)n;
	if (t->state == ZT_T_HANDSHAKE)
		handshake(t);
	if (t->state != ZT_T_DEAD && t->state > ZT_T_HANDSHAKE)
		pull(t);
	w->reading = NULL;
	w->bio_in_len = 0;
	if (t->state == ZT_T_DEAD)
		return false;
	if ((size_t)n < ZT_IN_CAP)
		zt_io_short_read(&t->io);
	return t->io.readable;
}

static bool finished(const struct zt_tunnel *t)
{
	return !t->out.bytes && !nghttp2_session_want_read(t->h2) && !nghttp2_session_want_write(t->h2);
}

void zt_tunnel_run(struct zt_tunnel *t)
{
	bool more = true;

	if (t->state == ZT_T_DEAD || t->state == ZT_T_CONNECTING || t->state == ZT_T_WAIT_CERT)
		return;
	if (t->state == ZT_T_HANDSHAKE && !t->server && t->first_bytes && !t->io.readable)
		handshake(t); /* ClientHello */
	for (int i = 0; i < RUN_ROUNDS && t->io.readable && t->state != ZT_T_DEAD; i++)
		if (!read_some(t))
			break;
	if (t->state == ZT_T_DEAD || !push_sealed(t) || !t->h2)
		return;
	for (int i = 0; i < RUN_ROUNDS && more && !t->out.bytes; i++) {
		int r = zt_hbone_gather(t);

		if (r < 0) {
			zt_tunnel_fail(t, t->fail ? t->fail : ZT_R_H2, t->detail);
			return;
		}
		more = r > 0;
		if (!seal(t) || !push_sealed(t))
			return;
	}
	if (finished(t)) {
		zt_tunnel_fail(t, t->fail ? t->fail : ZT_R_OK, t->detail);
		return;
	}
	if (t->io.readable || (more && !t->out.bytes))
		zt_tunnel_mark(t);
}

static void on_ready(struct zt_io *io)
{
	struct zt_tunnel *t = zt_container(io, struct zt_tunnel, io);
	int err;

	if (t->state == ZT_T_CONNECTING) {
		if (!io->writable)
			return;
		err = zt_socket_error(io->fd);
		if (!err)
			err = -zt_tunnel_begin(t);
		else
			err = (int)zt_dial_reason(err);
		if (err) {
			zt_tunnel_fail(t, (enum zt_reason)err, NULL);
			return;
		}
		io->readable = false;
	}
	if (t->state == ZT_T_WAIT_CERT) {
		if (io->err)
			zt_tunnel_fail(t, ZT_R_TLS, "closed by peer");
		return;
	}
	zt_tunnel_mark(t);
}

static void on_ping(struct zt_timer *timer)
{
	struct zt_tunnel *t = zt_container(timer, struct zt_tunnel, ping);
	const struct zt_config *cfg = t->w->cfg;
	uint64_t now = t->w->loop.now_ms;
	uint8_t opaque[8];

	if (t->ping_sent_ms && now - t->ping_sent_ms >= cfg->ping_timeout_ms) {
		zt_tunnel_fail(t, ZT_R_PING_TIMEOUT, "no answer to PING");
		return;
	}
	if (!t->ping_sent_ms) {
		memcpy(opaque, &now, sizeof(opaque));
		nghttp2_submit_ping(t->h2, NGHTTP2_FLAG_NONE, opaque);
		t->ping_sent_ms = now;
		zt_tunnel_mark(t);
	}
	zt_timer_set(&t->w->loop, &t->ping, cfg->ping_timeout_ms < cfg->ping_ms ? cfg->ping_timeout_ms : cfg->ping_ms);
}

static void on_timer(struct zt_timer *timer)
{
	struct zt_tunnel *t = zt_container(timer, struct zt_tunnel, timer);

	switch (t->state) {
	case ZT_T_CONNECTING:
		zt_tunnel_fail(t, ZT_R_TIMEOUT, NULL);
		return;
	case ZT_T_WAIT_CERT:
		zt_tunnel_fail(t, ZT_R_NO_CERT, "no certificate in time");
		return;
	case ZT_T_HANDSHAKE:
	case ZT_T_SETTINGS:
		zt_tunnel_fail(t, ZT_R_HANDSHAKE_TIMEOUT, "TLS and HTTP/2 set-up took too long");
		return;
	case ZT_T_CLOSING:
		zt_tunnel_fail(t, t->fail ? t->fail : ZT_R_OK, t->detail);
		return;
	default:
		break;
	}
	if (t->draining && t->server && !t->goaway_sent) {
		t->goaway_sent = true;
		nghttp2_submit_goaway(t->h2, NGHTTP2_FLAG_NONE, nghttp2_session_get_last_proc_stream_id(t->h2),
				      NGHTTP2_NO_ERROR, NULL, 0);
		zt_tunnel_mark(t);
		if (!t->n_streams)
			zt_tunnel_close(t, ZT_R_OK);
		return;
	}
	if (!t->n_streams)
		zt_tunnel_close(t, t->server && !t->total_streams ? ZT_R_PREAMBLE_TIMEOUT : ZT_R_IDLE);
}

void zt_tunnel_stream_gone(struct zt_tunnel *t)
{
	const struct zt_config *cfg = t->w->cfg;

	t->n_streams--;
	if (t->n_streams || t->state != ZT_T_OPEN) {
		if (t->pool && t->pool->n_waiters)
			zt_pool_feed(t->pool);
		return;
	}
	if (t->draining && (!t->server || t->goaway_sent)) {
		zt_tunnel_close(t, ZT_R_OK);
		return;
	}
	if (!t->draining) /* a server waits longer: the client, who knows when it is idle, is to end it */
		zt_timer_set(&t->w->loop, &t->timer, (uint64_t)cfg->tunnel_idle_ms * (t->server ? 2 : 1));
	if (t->pool && t->pool->n_waiters)
		zt_pool_feed(t->pool);
}

void zt_tunnel_drain(struct zt_tunnel *t)
{
	if (t->draining || t->state == ZT_T_DEAD || t->state == ZT_T_CLOSING)
		return;
	if (t->state != ZT_T_OPEN) {
		if (t->server)
			zt_tunnel_fail(t, ZT_R_DRAIN, NULL);
		return; /* a client: somebody waits for it; it will be seen again when it stands */
	}
	t->draining = true;
	if (!t->server) {
		if (!t->n_streams)
			zt_tunnel_close(t, ZT_R_OK);
		return;
	}
	nghttp2_submit_shutdown_notice(t->h2);
	zt_timer_set(&t->w->loop, &t->timer, GOAWAY_SETTLE_MS);
	zt_tunnel_mark(t);
}

void zt_tunnel_close(struct zt_tunnel *t, enum zt_reason reason)
{
	if (t->state == ZT_T_DEAD || t->state == ZT_T_CLOSING)
		return;
	if (!t->h2) {
		zt_tunnel_fail(t, reason, NULL);
		return;
	}
	t->fail = (uint8_t)reason;
	t->draining = true;
	if (t->pool)
		zt_pool_lost(t, reason, NULL);
	t->state = ZT_T_CLOSING;
	nghttp2_session_terminate_session(t->h2,
					  reason == ZT_R_H2_FLOOD ? NGHTTP2_ENHANCE_YOUR_CALM : NGHTTP2_NO_ERROR);
	zt_timer_set(&t->w->loop, &t->timer, t->w->cfg->linger_ms);
	zt_tunnel_mark(t);
}

static bool is_quiet(enum zt_reason r)
{
	return r == ZT_R_OK || r == ZT_R_IDLE || r == ZT_R_DRAIN || r == ZT_R_SHUTDOWN || r == ZT_R_POD_GONE ||
	       r == ZT_R_GOAWAY;
}

static void lose_streams(struct zt_tunnel *t, enum zt_reason reason, const char *detail)
{
	while (!zt_list_empty(&t->streams)) {
		struct zt_conn *c = zt_list_first(&t->streams, struct zt_conn, wait);

		zt_hbone_detach(c, 0, false);
		if (c->state == ZT_C_WAIT_STATUS && t->served)
			zt_outbound_retry_tunnel(c, reason);
		else if (c->state == ZT_C_WAIT_STATUS)
			zt_outbound_failed(c, reason == ZT_R_OK ? ZT_R_TRUNCATED : reason, detail);
		else
			zt_conn_finish(c,
				       is_quiet(reason) && reason != ZT_R_SHUTDOWN && reason != ZT_R_POD_GONE &&
						       reason != ZT_R_DRAIN
					       ? ZT_R_TRUNCATED
					       : reason,
				       detail);
	}
}

void zt_tunnel_fail(struct zt_tunnel *t, enum zt_reason reason, const char *detail)
{
	struct zt_worker *w = t->w;
	bool in_setup = t->state < ZT_T_OPEN;
	bool tell = !is_quiet(reason);

	if (t->state == ZT_T_DEAD)
		return;
	handshake_over(t);
	if (in_setup && tell && t->state >= ZT_T_HANDSHAKE)
		zt_bump(&w->n.handshakes_failed, 1);
	zt_timer_clear(&w->loop, &t->timer);
	zt_timer_clear(&w->loop, &t->ping);
	zt_list_del(&t->dirty);
	if (!t->server && in_setup)
		tell = false; /* the connections that waited for it tell */
	if (tell) {
		zt_bump(&w->n.reasons[reason], 1);
		zt_event_tunnel(t, reason, detail);
	}
	if (t->pool)
		zt_pool_lost(t, reason, detail);
	t->state = ZT_T_DEAD;
	zt_list_del(&t->pool_link); /* those who wait for a certificate */
	lose_streams(t, reason, detail);
	if (t->io.fd >= 0) {
		if (t->ssl && !in_setup && !t->out.bytes) {
			w->seal_len = 0;
			SSL_shutdown(t->ssl); /* close_notify, if it fits; nobody waits for the answer */
			if (w->seal_len)
				(void)!send(t->io.fd, w->seal, w->seal_len, MSG_NOSIGNAL | MSG_DONTWAIT);
			w->seal_len = 0;
			ERR_clear_error();
		}
		close(t->io.fd);
		t->io.fd = -1;
	}
	zt_bump(&w->n.bytes_buffered, -(int64_t)t->out.bytes);
	zt_queue_drop(&w->bufs, &t->out);
	zt_bump(t->server ? &w->n.tunnels_in_live : &w->n.tunnels_out_live, -1);
	atomic_fetch_sub_explicit(&w->core->tunnels, 1, memory_order_release);
	if (t->server)
		atomic_fetch_sub_explicit(&t->pod->pod->tunnels, 1, memory_order_relaxed);
	zt_list_del(&t->link);
	zt_list_add(&w->dead_tunnels, &t->link);
	zt_podw_maybe_free(t->pod);
}

void zt_tunnel_reap(struct zt_tunnel *t)
{
	nghttp2_session_del(t->h2);
	SSL_free(t->ssl);
	zt_identity_put_ref(t->identity);
	zt_name_put(t->peer_identity);
	free(t);
}

void zt_tunnel_credit(struct zt_conn *c, size_t n)
{
	struct zt_tunnel *t = c->tunnel;

	if (!t || !n)
		return;
	c->uncredited -= n;
	t->buffered -= n;
	nghttp2_session_consume_stream(t->h2, c->stream, n);
	if (t->owed && t->buffered < t->w->cfg->max_buffer) {
		nghttp2_session_consume_connection(t->h2, t->owed);
		t->owed = 0;
	}
	if (nghttp2_session_want_write(t->h2))
		zt_tunnel_mark(t);
}
