/* SPDX-License-Identifier: Apache-2.0 */
/* A pod's connection on its way out: decide where it goes, set that up, then join the two. Deciding and setting up
 * (zt_outbound_start) need no accepted socket, only who asks and for what.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "engine.h"

#define FRESH_RETRIES 3

static bool original_dst(struct zt_listener *l, int fd, struct zt_addr *dst)
{
	if (zt_addr_of_socket(fd, dst))
		return false;
	return !(dst->port == l->port && zt_addr_is_loopback(dst)); /* our own address: nobody redirected it */
}

void zt_outbound_accept(struct zt_listener *l, int fd, const struct zt_addr *src)
{
	struct zt_podw *p = l->pod;
	struct zt_addr dst = { .family = 0 };
	struct zt_conn *c;

	if (!original_dst(l, fd, &dst)) {
		zt_refuse(p, fd, ZT_OUTBOUND, ZT_R_NO_ORIGINAL_DST, src, &dst);
		return;
	}
	c = zt_conn_new(p, ZT_OUTBOUND, ZT_PATH_NONE);
	if (!c) {
		zt_refuse(p, fd, ZT_OUTBOUND, ZT_R_LIMIT, src, &dst);
		return;
	}
	c->src = *src;
	c->dst = dst;
	c->src_identity = zt_name_get(p->pod->identity);
	if (zt_end_open(c, &c->client, fd)) {
		zt_reset_fd(fd);
		zt_conn_finish(c, ZT_R_INTERNAL, strerror(errno));
		return;
	}
	zt_outbound_start(c);
}

static void dial_plain(struct zt_conn *c, const struct zt_addr *to)
{
	int fd, r;

	c->path = ZT_PATH_PLAIN;
	c->peer = *to;
	zt_conn_set_state(c, ZT_C_CONNECTING);
	r = zt_dial(c->pod, to, NULL, true, &fd);
	if (r < 0) {
		zt_outbound_failed(c, (enum zt_reason) - r, NULL);
		return;
	}
	if (zt_end_open(c, &c->app, fd)) {
		zt_reset_fd(fd);
		zt_outbound_failed(c, ZT_R_INTERNAL, strerror(errno));
		return;
	}
	if (r)
		zt_conn_connected(c, 0);
	else
		zt_timer_set(&c->w->loop, &c->timer, c->w->cfg->connect_ms);
}

static void request_tunnel(struct zt_conn *c)
{
	struct zt_addr at = c->target;

	at.port = c->pod->pod->hbone_port;
	c->peer = at;
	zt_pool_request(c, &at);
}

void zt_outbound_cert(struct zt_conn *c)
{
	zt_list_del(&c->wait);
	request_tunnel(c);
}

static void go_to(struct zt_conn *c, const struct zt_workload *wl, const struct zt_addr *target)
{
	struct zt_wanted *want;

	c->target = *target;
	zt_load_take(c, target);
	if (wl->protocol == ZT_PROTO_PLAIN) {
		dial_plain(c, target);
		return;
	}
	c->path = ZT_PATH_TUNNEL;
	zt_name_put(c->dst_identity);
	c->dst_identity = zt_name_get(wl->identity);
	want = zt_worker_wanted(c->w, c->pod->pod->identity);
	if (!want) {
		zt_conn_finish(c, ZT_R_INTERNAL, "out of memory");
		return;
	}
	if (want->identity) {
		request_tunnel(c);
		return;
	}
	zt_conn_set_state(c, ZT_C_WAIT_CERT);
	zt_list_add(&want->conns, &c->wait);
	zt_timer_set(&c->w->loop, &c->timer, c->w->cfg->cert_wait_ms);
	zt_event_need_cert(c->w, c->pod);
}

void zt_outbound_deny(struct zt_conn *c)
{
	zt_conn_finish(c, ZT_R_DENIED, zt_name_str(c->rule));
}

static void set_rule(struct zt_conn *c, struct zt_name *rule)
{
	zt_name_put(c->rule);
	c->rule = zt_name_get(rule);
}

/* c->rule says why not. `wl` is NULL for an address that nobody in the tables has. */
static bool may_go(struct zt_conn *c, const struct zt_workload *wl, const struct zt_addr *target)
{
	set_rule(c, wl ? wl->closed : NULL);
	if (c->rule)
		return false;
	return (wl && wl->protocol == ZT_PROTO_HBONE) || zt_authorize_exit(c, target);
}

static const struct zt_workload *endpoint_at(const struct zt_conn *c, uint32_t endpoint, struct zt_addr *target)
{
	const struct zt_endpoint_row *e = &c->tables->endpoints[endpoint];
	const struct zt_workload *wl = &c->tables->workloads[e->workload];

	*target = wl->addr;
	target->port = (uint16_t)e->port;
	return wl;
}

static bool may_use(struct zt_conn *c, uint32_t endpoint)
{
	struct zt_addr target;
	const struct zt_workload *wl = endpoint_at(c, endpoint, &target);

	return may_go(c, wl, &target);
}

/* False: there is none left. Where policy forbids the one drawn, any that it does not forbid will do. */
static bool next_endpoint(struct zt_conn *c)
{
	int64_t pick = zt_balance_pick(c);
	const struct zt_workload *wl;
	struct zt_addr target;

	if (pick < 0)
		return false;
	if (!may_use(c, (uint32_t)pick))
		pick = zt_balance_search(c, may_use);
	if (pick < 0) {
		if (c->retries) /* what the one before it said tells more */
			return false;
		zt_outbound_deny(c);
		return true;
	}
	wl = endpoint_at(c, (uint32_t)pick, &target);
	go_to(c, wl, &target);
	return true;
}

void zt_outbound_start(struct zt_conn *c)
{
	const struct zt_workload *wl;

	c->tables = zt_tableset_get(c->w->tables);
	c->row = zt_tableset_service(c->tables, &c->dst);
	if (c->row) {
		c->service = zt_name_get(c->row->hostname);
		set_rule(c, c->row->closed);
		if (c->rule)
			zt_outbound_deny(c);
		else if (!next_endpoint(c))
			zt_conn_finish(c, ZT_R_NO_ENDPOINT, NULL);
		return;
	}
	if (zt_tableset_is_vip(c->tables, &c->dst)) {
		zt_conn_finish(c, ZT_R_REFUSED, "the service has no such port");
		return;
	}
	wl = zt_tableset_workload(c->tables, &c->dst);
	if (!may_go(c, wl, &c->dst)) {
		zt_outbound_deny(c);
	} else if (wl) {
		go_to(c, wl, &c->dst);
	} else {
		c->target = c->dst;
		dial_plain(c, &c->dst);
	}
}

static bool elsewhere_helps(enum zt_reason reason)
{
	switch (reason) {
	case ZT_R_REFUSED:
	case ZT_R_UNREACHABLE:
	case ZT_R_TIMEOUT:
	case ZT_R_TLS:
	case ZT_R_NOT_TLS:
	case ZT_R_HANDSHAKE_TIMEOUT:
	case ZT_R_GOAWAY:
	case ZT_R_TRUNCATED:
	case ZT_R_PING_TIMEOUT:
		return true;
	default:
		return false;
	}
}

/* No byte of the application has been sent: another endpoint may be asked. */
void zt_outbound_failed(struct zt_conn *c, enum zt_reason reason, const char *detail)
{
	char why[sizeof(((struct zt_event *)0)->detail)];

	if (c->state == ZT_C_DONE)
		return;
	snprintf(why, sizeof(why), "%s", detail ? detail : ""); /* it may be of a tunnel about to be freed */
	if (c->tunnel)
		zt_hbone_detach(c, NGHTTP2_CANCEL, true);
	zt_request_free(c->request);
	c->request = NULL;
	zt_end_close(c, &c->app, true);
	if (c->row && elsewhere_helps(reason)) {
		zt_conn_set_state(c, ZT_C_NEW);
		c->retries++;
		if (next_endpoint(c))
			return;
		c->retries--;
	}
	zt_conn_finish(c, reason, why);
}

/* The tunnel went away before it answered us (GOAWAY, restart of the peer): it is not the destination's word. */
void zt_outbound_retry_tunnel(struct zt_conn *c, enum zt_reason reason)
{
	if (c->state == ZT_C_DONE)
		return;
	if (c->fresh_retries++ >= FRESH_RETRIES) {
		zt_outbound_failed(c, reason == ZT_R_OK ? ZT_R_TRUNCATED : reason, "tunnel lost again and again");
		return;
	}
	if (c->tunnel)
		zt_hbone_detach(c, NGHTTP2_CANCEL, true);
	zt_request_free(c->request);
	c->request = NULL;
	zt_conn_set_state(c, ZT_C_NEW);
	request_tunnel(c);
}

static enum zt_reason status_reason(int status, const char *error)
{
	switch (status) {
	case 400:
		return ZT_R_BAD_REQUEST;
	case 401:
		return ZT_R_DENIED;
	case 503:
		if (!strcmp(error, "timeout"))
			return ZT_R_TIMEOUT;
		return !strcmp(error, "unreachable") ? ZT_R_UNREACHABLE : ZT_R_REFUSED;
	default:
		return ZT_R_PEER_STATUS;
	}
}

void zt_outbound_status(struct zt_conn *c, int status, const char *error)
{
	char detail[32];

	if (status / 100 == 2) {
		zt_conn_opened(c);
		zt_conn_later(c);
		if (c->state == ZT_C_OPEN && c->deferred && c->client.io.readable)
			zt_stream_ready(c);
		return;
	}
	snprintf(detail, sizeof(detail), "peer answered %d", status);
	zt_outbound_failed(c, status_reason(status, error), detail);
}
