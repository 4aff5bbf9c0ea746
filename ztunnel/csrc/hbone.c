/* SPDX-License-Identifier: Apache-2.0 */
/* HBONE: HTTP/2 CONNECT as Istio's ztunnel speaks it. nghttp2 does the framing; here is what frames mean.
 * Nothing in the callbacks ends a tunnel, and connections are ended through the todo list.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine.h"

#define FRAME_HEADER 9
#define FRAME_CAP (128u * 1024)    /* payload of one DATA frame of ours: few reads, full segments */
#define FRAME_MIN_ROOM (4u * 1024) /* less room than this: seal first */
#define CONTROL_ROOM (20u * 1024)  /* any other frame of ours is smaller (nghttp2 makes them of 16 KiB at most) */
#define SERVER_HEADERS_MAX (64u * 1024)
#define CLIENT_HEADERS_MAX (16u * 1024)
#define RST_BURST 500 /* resets by the client: so many at once, then so many a second */
#define RST_PER_S 100

static struct zt_tunnel *tunnel_of(void *user)
{
	return user;
}

static struct zt_conn *conn_of(struct zt_tunnel *t, int32_t stream)
{
	return nghttp2_session_get_stream_user_data(t->h2, stream);
}

static ssize_t on_read(nghttp2_session *h2, int32_t stream, uint8_t *buf, size_t len, uint32_t *flags,
		       nghttp2_data_source *source, void *user)
{
	struct zt_tunnel *t = tunnel_of(user);
	struct zt_worker *w = t->w;
	struct zt_conn *c = conn_of(t, stream);
	size_t room = ZT_OUT_CAP - w->out_len;
	ssize_t n;

	(void)h2;
	(void)buf;
	(void)source;
	if (!c)
		return NGHTTP2_ERR_DEFERRED; /* its RST_STREAM is on the way */
	if (w->out_len >= ZT_OUT_CAP - FRAME_HEADER - FRAME_MIN_ROOM) {
		w->out_full = true;
		return NGHTTP2_ERR_PAUSE;
	}
	room -= FRAME_HEADER;
	n = zt_stream_read(c, w->out + w->out_len + FRAME_HEADER, len < room ? len : room, flags);
	if (n > 0)
		*flags |= NGHTTP2_DATA_FLAG_NO_COPY;
	return n;
}

static int on_send_data(nghttp2_session *h2, nghttp2_frame *frame, const uint8_t *header, size_t len,
			nghttp2_data_source *source, void *user)
{
	struct zt_worker *w = tunnel_of(user)->w;

	(void)h2;
	(void)frame;
	(void)source;
	memcpy(w->out + w->out_len, header, FRAME_HEADER); /* on_read() has put the payload behind it */
	w->out_len += FRAME_HEADER + len;
	return 0;
}

static ssize_t on_read_length(nghttp2_session *h2, uint8_t type, int32_t stream, int32_t conn_window,
			      int32_t stream_window, uint32_t max_frame, void *user)
{
	(void)h2;
	(void)type;
	(void)stream;
	(void)conn_window;
	(void)stream_window;
	(void)user;
	return max_frame < FRAME_CAP ? (ssize_t)max_frame : (ssize_t)FRAME_CAP;
}

int zt_hbone_gather(struct zt_tunnel *t)
{
	struct zt_worker *w = t->w;

	w->out_len = 0;
	w->out_full = false;
	while (w->out_len < ZT_OUT_CAP - CONTROL_ROOM) {
		const uint8_t *p;
		ssize_t n = nghttp2_session_mem_send(t->h2, &p);

		if (n < 0) {
			snprintf(t->detail, sizeof(t->detail), "%s", nghttp2_strerror((int)n));
			return -1;
		}
		if (!n)
			return w->out_full;
		if ((size_t)n > ZT_OUT_CAP + CONTROL_ROOM - w->out_len)
			return -1;
		memcpy(w->out + w->out_len, p, (size_t)n);
		w->out_len += (size_t)n;
	}
	return 1;
}

int zt_hbone_feed(struct zt_tunnel *t, const uint8_t *data, size_t len)
{
	ssize_t n = nghttp2_session_mem_recv(t->h2, data, len);

	zt_stream_deliver_all(t->w);
	if (t->state == ZT_T_DEAD)
		return 0;
	if (n < 0) {
		if (n == NGHTTP2_ERR_FLOODED)
			t->fail = ZT_R_H2_FLOOD;
		snprintf(t->detail, sizeof(t->detail), "%s", nghttp2_strerror((int)n));
		return -1;
	}
	if (t->fail == ZT_R_H2_FLOOD && t->state == ZT_T_OPEN)
		zt_tunnel_close(t, ZT_R_H2_FLOOD);
	if (nghttp2_session_want_write(t->h2) || !nghttp2_session_want_read(t->h2))
		zt_tunnel_mark(t);
	return 0;
}

static int on_begin_headers(nghttp2_session *h2, const nghttp2_frame *frame, void *user)
{
	struct zt_tunnel *t = tunnel_of(user);
	struct zt_conn *c;

	if (frame->hd.type != NGHTTP2_HEADERS || frame->headers.cat != NGHTTP2_HCAT_REQUEST)
		return 0;
	c = t->pod->gone ? NULL : zt_conn_new(t->pod, ZT_INBOUND, ZT_PATH_TUNNEL);
	if (c)
		c->request = calloc(1, sizeof(*c->request));
	if (!c || !c->request) {
		if (c)
			zt_conn_break(c, ZT_R_INTERNAL);
		else
			zt_refuse(t->pod, -1, ZT_INBOUND, ZT_R_LIMIT, &t->peer, &t->local);
		nghttp2_submit_rst_stream(h2, NGHTTP2_FLAG_NONE, frame->hd.stream_id, NGHTTP2_REFUSED_STREAM);
		return 0;
	}
	c->tunnel = t;
	c->stream = frame->hd.stream_id;
	c->src = t->peer;
	c->dst = t->local;
	c->peer = t->peer;
	c->src_identity = zt_name_get(t->peer_identity);
	c->dst_identity = zt_name_get(t->pod->pod->identity);
	t->n_streams++;
	t->total_streams++;
	zt_timer_clear(&t->w->loop, &t->timer);
	if (t->draining && !t->goaway_sent)
		zt_timer_set(&t->w->loop, &t->timer, 1000);
	zt_list_add(&t->streams, &c->wait);
	nghttp2_session_set_stream_user_data(h2, c->stream, c);
	return 0;
}

static void keep(char *out, size_t cap, const uint8_t *value, size_t len, bool *too_big)
{
	if (len >= cap) {
		*too_big = true;
		return;
	}
	memcpy(out, value, len);
	out[len] = 0;
}

#define IS(literal) (name_len == sizeof(literal) - 1 && !memcmp(name, literal, sizeof(literal) - 1))

static int on_header(nghttp2_session *h2, const nghttp2_frame *frame, const uint8_t *name, size_t name_len,
		     const uint8_t *value, size_t len, uint8_t flags, void *user)
{
	struct zt_tunnel *t = tunnel_of(user);
	struct zt_conn *c = conn_of(t, frame->hd.stream_id);
	struct zt_request *r = c ? c->request : NULL;

	(void)h2;
	(void)flags;
	if (!r)
		return 0;
	r->size += name_len + len + 32;
	if (r->size > (t->server ? SERVER_HEADERS_MAX : CLIENT_HEADERS_MAX))
		r->too_big = true;
	if (t->server) {
		bool ignored = false;

		if (IS(":method"))
			keep(r->method, sizeof(r->method), value, len, &ignored);
		else if (IS(":authority"))
			keep(r->authority, sizeof(r->authority), value, len, &r->too_big);
		else if (IS("forwarded"))
			keep(r->forwarded, sizeof(r->forwarded), value, len, &ignored);
	} else {
		if (IS(":status"))
			keep(r->method, sizeof(r->method), value, len, &r->too_big);
		else if (IS("x-qanat-error"))
			keep(r->authority, sizeof(r->authority), value, len, &r->too_big);
	}
	return 0;
}

/* A reset costs the peer one frame and us a dial: bound how many a tunnel may ask for. */
static void count_reset(struct zt_tunnel *t)
{
	uint64_t now = t->w->loop.now_ms;
	uint64_t back = (now - t->rst_at_ms) * RST_PER_S / 1000;

	if (back) {
		t->rst_at_ms = now;
		t->rst_tokens = back > RST_BURST - (uint64_t)t->rst_tokens ? RST_BURST : t->rst_tokens + (int32_t)back;
	}
	if (--t->rst_tokens < 0) {
		t->rst_tokens = 0;
		t->fail = ZT_R_H2_FLOOD;
		snprintf(t->detail, sizeof(t->detail), "too many RST_STREAM");
	}
}

static void on_response(struct zt_conn *c)
{
	struct zt_request *r = c->request;
	char error[16];
	int status = atoi(r->method);

	if (status / 100 == 1) /* more will come */
		return;
	snprintf(error, sizeof(error), "%.15s", r->authority);
	c->tunnel->served = true;
	zt_request_free(r);
	c->request = NULL;
	if (c->state == ZT_C_WAIT_STATUS)
		zt_outbound_status(c, status, error);
}

static int on_frame(nghttp2_session *h2, const nghttp2_frame *frame, void *user)
{
	struct zt_tunnel *t = tunnel_of(user);
	struct zt_conn *c;

	(void)h2;
	switch (frame->hd.type) {
	case NGHTTP2_SETTINGS:
		if (!(frame->hd.flags & NGHTTP2_FLAG_ACK))
			zt_tunnel_ready(t);
		break;
	case NGHTTP2_PING:
		if (frame->hd.flags & NGHTTP2_FLAG_ACK)
			t->ping_sent_ms = 0;
		break;
	case NGHTTP2_GOAWAY:
		if (!t->server)
			t->draining = true; /* streams go on, new ones go elsewhere */
		if (!t->n_streams)
			zt_tunnel_close(t, ZT_R_OK);
		break;
	case NGHTTP2_RST_STREAM:
		if (t->server)
			count_reset(t);
		break;
	case NGHTTP2_HEADERS:
		c = conn_of(t, frame->hd.stream_id);
		if (!c)
			break;
		if (c->request && t->server) {
			struct zt_request *r = c->request;

			c->request = NULL;
			zt_inbound_request(c, r);
		} else if (c->request) {
			on_response(c);
		}
		c = conn_of(t, frame->hd.stream_id);
		if (c && frame->hd.flags & NGHTTP2_FLAG_END_STREAM)
			zt_stream_end(c);
		break;
	case NGHTTP2_DATA:
		c = conn_of(t, frame->hd.stream_id);
		if (c && frame->hd.flags & NGHTTP2_FLAG_END_STREAM)
			zt_stream_end(c);
		break;
	default:
		break;
	}
	return 0;
}

static int on_data(nghttp2_session *h2, uint8_t flags, int32_t stream, const uint8_t *data, size_t len, void *user)
{
	struct zt_tunnel *t = tunnel_of(user);
	struct zt_conn *c = conn_of(t, stream);

	(void)flags;
	if (!c) {
		nghttp2_session_consume(h2, stream, len);
		return 0;
	}
	t->buffered += len;
	if (t->buffered < t->w->cfg->max_buffer)
		nghttp2_session_consume_connection(h2, len);
	else
		t->owed += len;
	zt_stream_data(c, data, len);
	return 0;
}

static int on_sent(nghttp2_session *h2, const nghttp2_frame *frame, void *user)
{
	struct zt_tunnel *t = tunnel_of(user);
	struct zt_conn *c;

	if (frame->hd.type == NGHTTP2_DATA && frame->hd.flags & NGHTTP2_FLAG_END_STREAM) {
		c = conn_of(t, frame->hd.stream_id);
		if (c)
			zt_stream_fin_sent(c);
	} else if (frame->hd.type == NGHTTP2_HEADERS && t->server && frame->hd.flags & NGHTTP2_FLAG_END_STREAM) {
		/* Refused, and said so: RFC 9113 8.1, the client need not go on. */
		nghttp2_submit_rst_stream(h2, NGHTTP2_FLAG_NONE, frame->hd.stream_id, NGHTTP2_NO_ERROR);
	}
	return 0;
}

/* The connection forgets the stream; the tunnel's books are put right. */
static void forget(struct zt_conn *c)
{
	struct zt_tunnel *t = c->tunnel;

	t->buffered -= c->uncredited;
	c->uncredited = 0;
	zt_list_del(&c->wait);
	c->tunnel = NULL;
}

static int on_stream_close(nghttp2_session *h2, int32_t stream, uint32_t code, void *user)
{
	struct zt_tunnel *t = tunnel_of(user);
	struct zt_conn *c = conn_of(t, stream);

	(void)h2;
	if (!c)
		return 0; /* zt_hbone_detach() has counted it */
	if (t->owed && t->buffered - c->uncredited < t->w->cfg->max_buffer) {
		nghttp2_session_consume_connection(h2, t->owed);
		t->owed = 0;
	}
	forget(c);
	zt_stream_closed(c, code);
	zt_tunnel_stream_gone(t);
	return 0;
}

static int on_bad_frame(nghttp2_session *h2, const nghttp2_frame *frame, int err, void *user)
{
	struct zt_tunnel *t = tunnel_of(user);

	(void)h2;
	snprintf(t->detail, sizeof(t->detail), "%s", nghttp2_strerror(err));
	t->fail = ZT_R_H2;
	/* More streams at once than we allow, after the peer has acknowledged how many we allow. */
	if (frame->hd.type == NGHTTP2_HEADERS && err == NGHTTP2_ERR_PROTO &&
	    t->n_streams >= t->w->cfg->server_max_streams)
		t->fail = ZT_R_H2_FLOOD;
	if (err == NGHTTP2_ERR_REFUSED_STREAM || err == NGHTTP2_ERR_STREAM_CLOSED)
		t->fail = 0; /* the tunnel lives on */
	return 0;
}

int zt_hbone_callbacks(nghttp2_session_callbacks **client, nghttp2_session_callbacks **server)
{
	nghttp2_session_callbacks **both[] = { client, server };

	for (size_t i = 0; i < ZT_COUNT(both); i++) {
		nghttp2_session_callbacks *cbs;

		if (nghttp2_session_callbacks_new(&cbs))
			return -ZT_ENOMEM;
		nghttp2_session_callbacks_set_send_data_callback(cbs, on_send_data);
		nghttp2_session_callbacks_set_data_source_read_length_callback(cbs, on_read_length);
		nghttp2_session_callbacks_set_on_begin_headers_callback(cbs, on_begin_headers);
		nghttp2_session_callbacks_set_on_header_callback(cbs, on_header);
		nghttp2_session_callbacks_set_on_frame_recv_callback(cbs, on_frame);
		nghttp2_session_callbacks_set_on_data_chunk_recv_callback(cbs, on_data);
		nghttp2_session_callbacks_set_on_frame_send_callback(cbs, on_sent);
		nghttp2_session_callbacks_set_on_stream_close_callback(cbs, on_stream_close);
		nghttp2_session_callbacks_set_on_invalid_frame_recv_callback(cbs, on_bad_frame);
		*both[i] = cbs;
	}
	return 0;
}

int zt_hbone_start(struct zt_tunnel *t)
{
	const struct zt_config *cfg = t->w->cfg;
	nghttp2_settings_entry client[] = {
		{ NGHTTP2_SETTINGS_ENABLE_PUSH, 0 },
		{ NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, cfg->stream_window },
		{ NGHTTP2_SETTINGS_MAX_FRAME_SIZE, cfg->max_frame },
		{ NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, CLIENT_HEADERS_MAX },
	};
	nghttp2_settings_entry server[] = {
		{ NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, cfg->server_max_streams },
		{ NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, cfg->stream_window },
		{ NGHTTP2_SETTINGS_MAX_FRAME_SIZE, cfg->max_frame },
		{ NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, SERVER_HEADERS_MAX },
	};
	nghttp2_option *opt;
	int err;

	t->rst_tokens = RST_BURST;
	t->rst_at_ms = t->w->loop.now_ms;
	if (nghttp2_option_new(&opt))
		return -ZT_ENOMEM;
	nghttp2_option_set_no_auto_window_update(opt, 1);
	nghttp2_option_set_no_closed_streams(opt, 1);
	nghttp2_option_set_max_deflate_dynamic_table_size(opt, 4096);
	nghttp2_option_set_peer_max_concurrent_streams(opt, cfg->pool_max_streams);
	if (t->server)
		err = nghttp2_session_server_new2(&t->h2, t->w->core->server_cbs, t, opt);
	else
		err = nghttp2_session_client_new2(&t->h2, t->w->core->client_cbs, t, opt);
	nghttp2_option_del(opt);
	if (err)
		return -ZT_ENOMEM;
	if (nghttp2_submit_settings(t->h2, NGHTTP2_FLAG_NONE, t->server ? server : client, 4) ||
	    nghttp2_session_set_local_window_size(t->h2, NGHTTP2_FLAG_NONE, 0, (int32_t)cfg->conn_window))
		return -ZT_ENOMEM;
	return 0;
}

static nghttp2_nv header(const char *name, const char *value, size_t len)
{
	nghttp2_nv nv = { .name = (uint8_t *)(uintptr_t)name,
			  .value = (uint8_t *)(uintptr_t)value,
			  .namelen = strlen(name),
			  .valuelen = len,
			  .flags = NGHTTP2_NV_FLAG_NO_COPY_NAME };

	return nv;
}

int zt_hbone_connect(struct zt_conn *c, struct zt_tunnel *t)
{
	const struct zt_name *baggage = c->pod->pod->baggage;
	char authority[ZT_ADDR_TEXT], from[ZT_ADDR_TEXT], forwarded[ZT_ADDR_TEXT + 300], trace[56];
	nghttp2_data_provider body = { .read_callback = on_read };
	nghttp2_nv nva[5];
	size_t n = 0;
	int32_t id;
	int len;

	nva[n++] = header(":method", "CONNECT", 7);
	nva[n++] = header(":authority", authority, zt_addr_format(&c->target, authority));
	zt_addr_format(&c->src, from);
	len = snprintf(forwarded, sizeof(forwarded), c->service ? "for=\"%s\";host=%.253s" : "for=\"%s\"", from,
		       zt_name_str(c->service));
	nva[n++] = header("forwarded", forwarded, (size_t)len);
	if (baggage)
		nva[n++] = header("baggage", baggage->s, baggage->len);
	len = snprintf(trace, sizeof(trace), "00-%016" PRIx64 "%016" PRIx64 "-%016" PRIx64 "-00", zt_random(c->w),
		       zt_random(c->w), zt_random(c->w));
	nva[n++] = header("traceparent", trace, (size_t)len);
	c->request = calloc(1, sizeof(*c->request)); /* collects the response */
	if (!c->request)
		return -ZT_ENOMEM;
	id = nghttp2_submit_request(t->h2, NULL, nva, n, &body, c);
	if (id < 0) {
		zt_request_free(c->request);
		c->request = NULL;
		return -ZT_ENOMEM;
	}
	c->stream = id;
	c->tunnel = t;
	c->deferred = false;
	c->stream_fin_sent = c->stream_fin_recv = false;
	t->n_streams++;
	t->total_streams++;
	zt_timer_clear(&t->w->loop, &t->timer);
	zt_list_add(&t->streams, &c->wait);
	zt_conn_set_state(c, ZT_C_WAIT_STATUS);
	/* The server answers when its application has: give it its connect time and ours. */
	zt_timer_set(&c->w->loop, &c->timer, 2 * (uint64_t)c->w->cfg->connect_ms);
	zt_tunnel_mark(t);
	return 0;
}

void zt_hbone_respond(struct zt_conn *c, int status, const char *error)
{
	const struct zt_name *baggage = c->pod->pod->baggage;
	nghttp2_data_provider body = { .read_callback = on_read };
	char text[8];
	nghttp2_nv nva[3];
	size_t n = 0;

	nva[n++] = header(":status", text, (size_t)snprintf(text, sizeof(text), "%d", status));
	if (baggage && status == 200)
		nva[n++] = header("baggage", baggage->s, baggage->len);
	if (error)
		nva[n++] = header("x-qanat-error", error, strlen(error));
	c->tunnel->served = true;
	nghttp2_submit_response(c->tunnel->h2, c->stream, nva, n, status == 200 ? &body : NULL);
	zt_tunnel_mark(c->tunnel);
	if (status != 200) /* on_sent() ends the stream after the answer */
		zt_hbone_detach(c, 0, false);
}

void zt_hbone_detach(struct zt_conn *c, uint32_t code, bool reset)
{
	struct zt_tunnel *t = c->tunnel;

	if (!t)
		return;
	forget(c);
	if (t->state != ZT_T_DEAD) {
		nghttp2_session_set_stream_user_data(t->h2, c->stream, NULL);
		if (t->owed && t->buffered < t->w->cfg->max_buffer) {
			nghttp2_session_consume_connection(t->h2, t->owed);
			t->owed = 0;
		}
		if (reset)
			nghttp2_submit_rst_stream(t->h2, NGHTTP2_FLAG_NONE, c->stream, code);
		zt_tunnel_mark(t);
	}
	zt_tunnel_stream_gone(t);
}

void zt_request_free(struct zt_request *r)
{
	free(r);
}
