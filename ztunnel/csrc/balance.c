/* SPDX-License-Identifier: Apache-2.0 */
/* Which endpoint: the less loaded of two drawn at random. Load = live connections of this worker, kept by address,
 * so that it survives a change of tables.
 *
 * For a sticky service: the one with the highest hash of client and endpoint (rendezvous hashing). Nothing is
 * remembered, so every worker, every node and the next ztunnel chooses the same; an endpoint that goes moves only its own
 * clients, one that comes takes its share of all.
 */
#include <stdlib.h>

#include "engine.h"
#include "qanat.h"

#define SEARCHED 256

static struct zt_load *find(struct zt_worker *w, const struct zt_addr *a)
{
	for (struct zt_node *n = zt_map_first(&w->loads, zt_addr_hash(a)); n; n = zt_map_next(n)) {
		struct zt_load *l = zt_container(n, struct zt_load, node);

		if (zt_addr_equal(&l->addr, a))
			return l;
	}
	return NULL;
}

static uint32_t live_at(struct zt_conn *c, uint32_t endpoint)
{
	const struct zt_endpoint_row *e = &c->tables->endpoints[endpoint];
	struct zt_addr a = c->tables->workloads[e->workload].addr;
	struct zt_load *l;

	a.port = (uint16_t)e->port;
	l = find(c->w, &a);
	return l ? l->live : 0;
}

static bool was_tried(const struct zt_conn *c, uint32_t endpoint)
{
	for (uint8_t i = 0; i < c->n_tried; i++)
		if (c->tried[i] == endpoint)
			return true;
	return false;
}

/* Where the next draw is among: *n endpoints, from the row's *from-th on without those tried. */
static void span(const struct zt_conn *c, uint32_t *from, uint32_t *n)
{
	const struct zt_service *s = c->row;

	*from = 0;
	*n = s->n - c->n_tried; /* every tried one is of this row */
	if (c->n_tried)
		return;
	if (c->draw == QN_DRAW_HERE && s->n_here) {
		*n = s->n_here;
	} else if (c->draw == QN_DRAW_ELSEWHERE && s->n_here < s->n) {
		*from = s->n_here;
		*n = s->n - s->n_here;
	}
}

/* The k-th endpoint from the row's `from`-th on that was not tried yet. */
static uint32_t nth(const struct zt_conn *c, uint32_t from, uint32_t k)
{
	uint32_t e = c->row->first + from;

	for (;; e++) {
		if (was_tried(c, e))
			continue;
		if (!k--)
			return e;
	}
}

static uint64_t score(const struct zt_conn *c, uint32_t endpoint)
{
	const struct zt_endpoint_row *e = &c->tables->endpoints[endpoint];
	const struct zt_addr *a = &c->tables->workloads[e->workload].addr;

	return zt_hash(a->ip, sizeof(a->ip), zt_hash(c->src.ip, sizeof(c->src.ip), c->src.family) ^ e->port);
}

/* A sticky service's next one: not tried, and one that `may` takes (NULL: any). -1: there is none. */
static int64_t favourite(struct zt_conn *c, bool (*may)(struct zt_conn *c, uint32_t endpoint))
{
	uint32_t n = may && c->row->n > SEARCHED ? SEARCHED : c->row->n;
	uint64_t best = 0;
	int64_t found = -1;

	for (uint32_t e = c->row->first; e < c->row->first + n; e++) {
		uint64_t s = score(c, e);

		if ((found >= 0 && s <= best) || was_tried(c, e) || (may && !may(c, e)))
			continue;
		best = s;
		found = e;
	}
	if (found >= 0) {
		c->tried[c->n_tried++] = (uint32_t)found;
		if (may)
			may(c, (uint32_t)found); /* what it leaves with `c` is of this one */
	}
	return found;
}

int64_t zt_balance_pick(struct zt_conn *c)
{
	uint32_t from, left, a, b;

	span(c, &from, &left);
	if (!left || c->n_tried >= ZT_MAX_TRIES || c->n_tried >= c->w->cfg->retry_endpoints)
		return -1;
	if (c->row->sticky)
		return favourite(c, NULL);
	a = (uint32_t)(zt_random(c->w) % left);
	b = left > 1 ? (uint32_t)(zt_random(c->w) % (left - 1)) : a;
	if (left > 1 && b >= a)
		b++;
	a = nth(c, from, a);
	b = left > 1 ? nth(c, from, b) : a;
	if (b != a && live_at(c, b) < live_at(c, a))
		a = b;
	c->tried[c->n_tried++] = a;
	return a;
}

int64_t zt_balance_search(struct zt_conn *c, bool (*may)(struct zt_conn *c, uint32_t endpoint))
{
	uint32_t n = c->row->n, first = n ? (uint32_t)(zt_random(c->w) % n) : 0;

	if (c->row->sticky)
		return c->n_tried < ZT_MAX_TRIES ? favourite(c, may) : -1;
	for (uint32_t i = 0; i < n && i < SEARCHED && c->n_tried < ZT_MAX_TRIES; i++) {
		uint32_t e = c->row->first + (first + i) % n;

		if (was_tried(c, e) || !may(c, e))
			continue;
		c->tried[c->n_tried++] = e;
		return e;
	}
	return -1;
}

void zt_load_take(struct zt_conn *c, const struct zt_addr *endpoint)
{
	struct zt_load *l = find(c->w, endpoint);

	zt_load_drop(c);
	if (!l) {
		l = calloc(1, sizeof(*l));
		if (!l)
			return; /* only the choice suffers */
		l->addr = *endpoint;
		if (zt_map_add(&c->w->loads, &l->node, zt_addr_hash(endpoint))) {
			free(l);
			return;
		}
	}
	l->live++;
	c->load = l;
}

void zt_load_drop(struct zt_conn *c)
{
	struct zt_load *l = c->load;

	c->load = NULL;
	if (!l || --l->live)
		return;
	zt_map_del(&c->w->loads, &l->node);
	free(l);
}
