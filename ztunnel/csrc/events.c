/* SPDX-License-Identifier: Apache-2.0 */
/* What happened, on its way up: one single-producer ring per worker, one eventfd for all. A full ring spills into a
 * bounded list of the worker's; what does not fit there is counted, not kept.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "engine.h"

#define NEED_CERT_AGAIN_MS 1000

static void slim_drop(struct zt_slim *s)
{
	zt_name_put(s->src_identity);
	zt_name_put(s->dst_identity);
	zt_name_put(s->service);
	zt_name_put(s->rule);
	zt_name_put(s->noted);
}

static bool ring_push(struct zt_ring *r, const struct zt_slim *s)
{
	uint32_t head = atomic_load_explicit(&r->head, memory_order_relaxed);

	if (head - atomic_load_explicit(&r->tail, memory_order_acquire) >= ZT_RING)
		return false;
	r->slots[head % ZT_RING] = *s;
	atomic_store_explicit(&r->head, head + 1, memory_order_release);
	return true;
}

static void signal_reader(struct zt_core *core)
{
	uint64_t one = 1;

	if (!atomic_exchange(&core->event_signalled, 1))
		(void)!write(core->event_fd, &one, sizeof(one));
}

void zt_event_emit(struct zt_worker *w, struct zt_slim *s)
{
	struct zt_ring *r = &w->ring;
	struct zt_overflow *o;

	if (!r->first && ring_push(r, s)) {
		signal_reader(w->core);
		return;
	}
	o = r->n_overflow < ZT_OVERFLOW_MAX ? malloc(sizeof(*o)) : NULL;
	if (!o) {
		slim_drop(s);
		zt_bump(&w->n.events_dropped, 1);
		return;
	}
	o->slim = *s;
	o->next = NULL;
	if (r->last)
		r->last->next = o;
	else
		r->first = o;
	r->last = o;
	r->n_overflow++;
}

void zt_event_flush(struct zt_worker *w)
{
	struct zt_ring *r = &w->ring;

	while (r->first && ring_push(r, &r->first->slim)) {
		struct zt_overflow *o = r->first;

		r->first = o->next;
		if (!r->first)
			r->last = NULL;
		r->n_overflow--;
		free(o);
		signal_reader(w->core);
	}
}

static void copy_name(char *out, size_t cap, struct zt_name *n)
{
	size_t len = n ? n->len : 0;

	if (len >= cap)
		len = cap - 1;
	memcpy(out, zt_name_str(n), len);
	out[len] = 0;
}

void zt_slim_expand(struct zt_slim *s, struct zt_event *ev)
{
	memset(ev, 0, sizeof(*ev));
	ev->id = s->id;
	ev->pod_id = s->pod_id;
	ev->kind = s->kind;
	ev->direction = s->direction;
	ev->path = s->path;
	ev->reason = s->reason;
	ev->retries = s->retries;
	ev->start_unix_us = s->start_unix_us;
	ev->duration_us = s->duration_us;
	ev->connect_us = s->connect_us;
	ev->handshake_us = s->handshake_us;
	ev->bytes_sent = s->bytes_sent;
	ev->bytes_recv = s->bytes_recv;
	ev->src = s->src;
	ev->dst = s->dst;
	ev->peer = s->peer;
	copy_name(ev->src_identity, sizeof(ev->src_identity), s->src_identity);
	copy_name(ev->dst_identity, sizeof(ev->dst_identity), s->dst_identity);
	copy_name(ev->service, sizeof(ev->service), s->service);
	copy_name(ev->rule, sizeof(ev->rule), s->rule);
	copy_name(ev->noted, sizeof(ev->noted), s->noted);
	memcpy(ev->detail, s->detail, sizeof(s->detail));
	slim_drop(s);
}

size_t zt_ring_read(struct zt_ring *r, struct zt_event *buf, size_t cap)
{
	uint32_t tail = atomic_load_explicit(&r->tail, memory_order_relaxed);
	uint32_t head = atomic_load_explicit(&r->head, memory_order_acquire);
	size_t n = 0;

	for (; n < cap && tail != head; n++, tail++)
		zt_slim_expand(&r->slots[tail % ZT_RING], &buf[n]);
	atomic_store_explicit(&r->tail, tail, memory_order_release);
	return n;
}

void zt_ring_free(struct zt_ring *r)
{
	uint32_t tail = atomic_load(&r->tail), head = atomic_load(&r->head);

	for (; r->slots && tail != head; tail++)
		slim_drop(&r->slots[tail % ZT_RING]);
	while (r->first) {
		struct zt_overflow *o = r->first;

		r->first = o->next;
		slim_drop(&o->slim);
		free(o);
	}
	free(r->slots);
	r->slots = NULL;
}

static void set_detail(struct zt_slim *s, const char *detail)
{
	if (detail)
		strncpy(s->detail, detail, sizeof(s->detail) - 1);
}

void zt_slim_from_conn(struct zt_slim *s, const struct zt_conn *c, uint32_t kind)
{
	*s = (struct zt_slim){
		.id = c->id,
		.pod_id = c->pod->pod->id,
		.kind = kind,
		.direction = c->direction,
		.path = c->path,
		.retries = c->retries,
		.start_unix_us = c->start_unix_us,
		.duration_us = c->w->loop.now_us - c->start_us,
		.connect_us = c->connect_us,
		.handshake_us = c->handshake_us,
		.bytes_sent = c->sent,
		.bytes_recv = c->recv,
		.src = c->src,
		.dst = c->dst,
		.peer = c->peer,
		.src_identity = zt_name_get(c->src_identity),
		.dst_identity = zt_name_get(c->dst_identity),
		.service = zt_name_get(c->service),
		.rule = zt_name_get(c->rule),
		.noted = zt_name_get(c->noted),
	};
}

void zt_event_conn(struct zt_conn *c, uint32_t kind, enum zt_reason reason, const char *detail)
{
	struct zt_slim s;

	zt_slim_from_conn(&s, c, kind);
	s.reason = (uint8_t)reason;
	set_detail(&s, detail);
	zt_event_emit(c->w, &s);
}

void zt_event_tunnel(struct zt_tunnel *t, enum zt_reason reason, const char *detail)
{
	struct zt_slim s = {
		.id = t->id,
		.pod_id = t->pod->pod->id,
		.kind = ZT_EV_TUNNEL,
		.direction = t->server ? ZT_INBOUND : ZT_OUTBOUND,
		.path = ZT_PATH_TUNNEL,
		.reason = (uint8_t)reason,
		.start_unix_us = t->start_unix_us,
		.duration_us = t->w->loop.now_us - t->start_us,
		.connect_us = -1,
		.handshake_us = t->handshake_us,
		.src = t->server ? t->peer : t->local,
		.dst = t->server ? t->local : t->peer,
		.peer = t->peer,
		.src_identity = zt_name_get(t->server ? t->peer_identity : t->pod->pod->identity),
		.dst_identity = zt_name_get(t->server ? t->pod->pod->identity : t->peer_identity),
	};

	set_detail(&s, detail);
	zt_event_emit(t->w, &s);
}

void zt_event_need_cert(struct zt_worker *w, struct zt_podw *p)
{
	struct zt_wanted *want = zt_worker_wanted(w, p->pod->identity);
	struct zt_slim s = { .pod_id = p->pod->id, .kind = ZT_EV_NEED_CERT, .connect_us = -1, .handshake_us = -1 };

	if (!want || (want->asked_ms && w->loop.now_ms - want->asked_ms < NEED_CERT_AGAIN_MS))
		return;
	want->asked_ms = w->loop.now_ms;
	s.src_identity = zt_name_get(p->pod->identity);
	zt_event_emit(w, &s);
}

void zt_listing_put(struct zt_listing *l)
{
	if (atomic_fetch_sub_explicit(&l->refs, 1, memory_order_acq_rel) != 1)
		return;
	for (size_t i = 0; i < l->n; i++)
		slim_drop(&l->rows[i]);
	free(l->rows);
	pthread_mutex_destroy(&l->lock);
	pthread_cond_destroy(&l->cond);
	free(l);
}
