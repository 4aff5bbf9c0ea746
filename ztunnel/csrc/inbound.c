/* SPDX-License-Identifier: Apache-2.0 */
/* Connections for a pod: tunnels on 15008 and their CONNECT requests, plain TCP on 15006; both end in a connection
 * made inside the pod to the application, marked with the client it is to see.
 */
#include <errno.h>
#include <string.h>

#include "engine.h"

static bool is_own_port(const struct zt_podw *p, uint16_t port)
{
	return port == ZT_PORT_OUTBOUND || port == ZT_PORT_INBOUND || port == ZT_PORT_HBONE ||
	       port == p->pod->hbone_port;
}

static bool is_own_addr(const struct zt_podw *p, const struct zt_addr *a)
{
	for (size_t i = 0; i < p->pod->n_addrs; i++)
		if (zt_addr_same_ip(&p->pod->addrs[i], a))
			return true;
	return false;
}

void zt_inbound_accept(struct zt_listener *l, int fd, const struct zt_addr *src)
{
	struct zt_podw *p = l->pod;
	struct zt_worker *w = p->w;
	const struct zt_config *cfg = w->cfg;
	struct zt_addr local = { .family = 0 };
	struct zt_wanted *want = zt_worker_wanted(w, p->pod->identity);
	struct zt_tunnel *t;
	int err;

	if (atomic_load_explicit(&p->pod->tunnels, memory_order_relaxed) >= cfg->max_tunnels_per_pod ||
	    atomic_load_explicit(&w->core->handshakes, memory_order_relaxed) >= cfg->max_handshakes) {
		zt_refuse(p, fd, ZT_INBOUND, ZT_R_LIMIT, src, NULL);
		return;
	}
	t = want && !zt_addr_of_socket(fd, &local) ? zt_tunnel_new(p, true) : NULL;
	if (!t) {
		zt_refuse(p, fd, ZT_INBOUND, ZT_R_INTERNAL, src, &local);
		return;
	}
	t->io.fd = fd;
	t->peer = *src;
	t->local = local;
	if (zt_loop_add(&w->loop, &t->io)) {
		zt_tunnel_fail(t, ZT_R_INTERNAL, strerror(errno));
		return;
	}
	t->io.writable = true;
	if (!want->identity) {
		t->state = ZT_T_WAIT_CERT;
		zt_list_add(&want->tunnels, &t->pool_link);
		zt_timer_set(&w->loop, &t->timer, cfg->cert_wait_ms);
		zt_event_need_cert(w, p);
		return;
	}
	t->identity = zt_identity_get(want->identity);
	err = zt_tunnel_begin(t);
	if (err)
		zt_tunnel_fail(t, (enum zt_reason) - err, NULL);
}

static const char *error_word(enum zt_reason reason)
{
	switch (reason) {
	case ZT_R_TIMEOUT:
		return "timeout";
	case ZT_R_UNREACHABLE:
		return "unreachable";
	default:
		return "refused";
	}
}

static void refuse(struct zt_conn *c, int status, enum zt_reason reason, const char *detail)
{
	if (c->tunnel)
		zt_hbone_respond(c, status, status == 503 ? error_word(reason) : NULL);
	zt_conn_finish(c, reason, detail);
}

void zt_inbound_deny(struct zt_conn *c)
{
	const char *why = zt_name_str(c->rule);

	if (c->state == ZT_C_OPEN)
		zt_conn_finish(c, ZT_R_DENIED, why);
	else
		refuse(c, 401, ZT_R_DENIED, why);
}

/* for="ip:port";host=name, as far as we need it (RFC 7239 4). What it says of the client is believed only where TCP
 * says the same.
 */
static void read_forwarded(struct zt_conn *c, const char *s)
{
	struct zt_addr from;

	for (const char *p = s; p && *p; p = strchr(p, ';')) {
		const char *value, *end;

		p += strspn(p, "; ");
		value = strchr(p, '=');
		if (!value)
			return;
		value++;
		if (*value == '"') {
			value++;
			end = strchr(value, '"');
		} else {
			end = value + strcspn(value, ";");
		}
		if (!end)
			return;
		if (!strncmp(p, "for=", 4)) {
			if (!zt_addr_parse(value, (size_t)(end - value), true, &from) &&
			    zt_addr_same_ip(&from, &c->tunnel->peer))
				c->src = from;
		} else if (!strncmp(p, "host=", 5) && end > value && end - value < 254 && !c->service) {
			c->service = zt_name_new(value, (size_t)(end - value));
		}
	}
}

static void dial_app(struct zt_conn *c, const struct zt_addr *to)
{
	int fd, r;

	zt_conn_set_state(c, ZT_C_CONNECTING);
	r = zt_dial(c->pod, to, &c->src, false, &fd);
	if (r < 0) {
		zt_conn_connected(c, r == -ZT_R_REFUSED ? ECONNREFUSED : r == -ZT_R_INTERNAL ? ENFILE : EHOSTUNREACH);
		return;
	}
	if (zt_end_open(c, &c->app, fd)) {
		zt_reset_fd(fd);
		zt_conn_connected(c, ENFILE);
		return;
	}
	if (r)
		zt_conn_connected(c, 0);
	else
		zt_timer_set(&c->w->loop, &c->timer, c->w->cfg->connect_ms);
}

static void enter(struct zt_conn *c)
{
	if (zt_authorize(c))
		dial_app(c, &c->target);
	else
		zt_inbound_deny(c);
}

void zt_inbound_request(struct zt_conn *c, struct zt_request *r)
{
	struct zt_addr to;

	if (r->too_big)
		refuse(c, 400, ZT_R_BAD_REQUEST, "header list too large");
	else if (strcmp(r->method, "CONNECT"))
		refuse(c, 400, ZT_R_BAD_REQUEST, "method is not CONNECT");
	else if (zt_addr_parse(r->authority, strlen(r->authority), true, &to))
		refuse(c, 400, ZT_R_BAD_REQUEST, "authority is no address and port");
	else if (!zt_addr_same_ip(&to, &c->tunnel->local) || !is_own_addr(c->pod, &to))
		refuse(c, 400, ZT_R_BAD_REQUEST, "authority is not the address dialled");
	else if (is_own_port(c->pod, to.port))
		refuse(c, 400, ZT_R_BAD_REQUEST, "authority is a port of the mesh itself");
	else {
		c->dst = c->target = to;
		read_forwarded(c, r->forwarded);
		enter(c);
	}
	zt_request_free(r);
}

void zt_inbound_plain_accept(struct zt_listener *l, int fd, const struct zt_addr *src)
{
	struct zt_podw *p = l->pod;
	struct zt_addr dst = { .family = 0 };
	struct zt_conn *c;

	/* Dialled directly, or a port of the mesh itself. */
	if (zt_addr_of_socket(fd, &dst) || (zt_addr_is_loopback(&dst) && dst.port == l->port) ||
	    is_own_port(p, dst.port)) {
		zt_refuse(p, fd, ZT_INBOUND, ZT_R_NO_ORIGINAL_DST, src, &dst);
		return;
	}
	c = zt_conn_new(p, ZT_INBOUND, ZT_PATH_PLAIN);
	if (!c) {
		zt_refuse(p, fd, ZT_INBOUND, ZT_R_LIMIT, src, &dst);
		return;
	}
	c->src = c->peer = *src;
	c->dst = c->target = dst;
	c->dst_identity = zt_name_get(p->pod->identity);
	if (zt_end_open(c, &c->client, fd)) {
		zt_reset_fd(fd);
		zt_conn_finish(c, ZT_R_INTERNAL, strerror(errno));
		return;
	}
	enter(c);
}

static void inbound_failed(struct zt_conn *c, int err)
{
	enum zt_reason reason = zt_dial_reason(err);

	if (c->path == ZT_PATH_TUNNEL)
		refuse(c, 503, reason, strerror(err));
	else
		zt_conn_finish(c, reason, strerror(err));
}

void zt_conn_connected(struct zt_conn *c, int err)
{
	if (err && c->direction == ZT_OUTBOUND) {
		zt_outbound_failed(c, zt_dial_reason(err), strerror(err));
		return;
	}
	if (err) {
		inbound_failed(c, err);
		return;
	}
	zt_conn_opened(c);
	if (c->state != ZT_C_OPEN) /* its client is still being answered */
		return;
	if (c->path == ZT_PATH_PLAIN) {
		zt_splice_ready(c);
		return;
	}
	zt_hbone_respond(c, 200, NULL);
	zt_conn_later(c); /* the client may have sent before our answer */
}
