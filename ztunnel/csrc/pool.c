/* SPDX-License-Identifier: Apache-2.0 */
/* Client tunnels of one pod on one worker, by destination address and expected identity. A tunnel whose own
 * certificate was replaced, that was told to go away, or that is full takes no new streams; while one is being set
 * up, those who need it wait.
 */
#include <stdlib.h>

#include "engine.h"

static uint64_t key(const struct zt_addr *addr, const struct zt_name *identity)
{
	return zt_addr_hash(addr) ^ zt_hash(zt_name_str(identity), identity ? identity->len : 0, 1);
}

static struct zt_pool *find(struct zt_podw *p, const struct zt_addr *addr, const struct zt_name *identity)
{
	for (struct zt_node *n = zt_map_first(&p->pools, key(addr, identity)); n; n = zt_map_next(n)) {
		struct zt_pool *pool = zt_container(n, struct zt_pool, node);

		if (zt_addr_equal(&pool->addr, addr) && zt_name_equal(pool->identity, identity))
			return pool;
	}
	return NULL;
}

static struct zt_pool *make(struct zt_podw *p, const struct zt_addr *addr, struct zt_name *identity)
{
	struct zt_pool *pool = calloc(1, sizeof(*pool));

	if (!pool)
		return NULL;
	if (zt_map_add(&p->pools, &pool->node, key(addr, identity))) {
		free(pool);
		return NULL;
	}
	pool->pod = p;
	pool->addr = *addr;
	pool->identity = zt_name_get(identity);
	zt_list_init(&pool->tunnels);
	zt_list_init(&pool->waiters);
	return pool;
}

static void maybe_free(struct zt_pool *pool)
{
	if (pool->pins || !zt_list_empty(&pool->tunnels) || !zt_list_empty(&pool->waiters))
		return;
	zt_map_del(&pool->pod->pools, &pool->node);
	zt_name_put(pool->identity);
	free(pool);
}

static uint32_t capacity(const struct zt_tunnel *t)
{
	uint32_t theirs = nghttp2_session_get_remote_settings(t->h2, NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS);

	return theirs < t->w->cfg->pool_max_streams ? theirs : t->w->cfg->pool_max_streams;
}

static struct zt_tunnel *with_room(struct zt_pool *pool)
{
	zt_list_each(it, &pool->tunnels)
	{
		struct zt_tunnel *t = zt_container(it, struct zt_tunnel, pool_link);

		if (t->state == ZT_T_OPEN && !t->draining && t->n_streams < capacity(t))
			return t;
	}
	return NULL;
}

static struct zt_conn *take_waiter(struct zt_pool *pool)
{
	struct zt_conn *c = zt_list_first(&pool->waiters, struct zt_conn, wait);

	zt_list_del(&c->wait);
	c->pool = NULL;
	pool->n_waiters--;
	return c;
}

static void fail_waiters(struct zt_pool *pool, enum zt_reason reason, const char *detail)
{
	struct zt_list all;

	/* Those who try again may come back to this pool. */
	zt_list_init(&all);
	zt_list_splice(&all, &pool->waiters);
	pool->n_waiters = 0;
	while (!zt_list_empty(&all)) {
		struct zt_conn *c = zt_list_first(&all, struct zt_conn, wait);

		zt_list_del(&c->wait);
		c->pool = NULL;
		zt_outbound_failed(c, reason, detail);
	}
}

static void grow(struct zt_pool *pool)
{
	struct zt_worker *w = pool->pod->w;
	struct zt_tunnel *t;
	int err;

	while (pool->n_waiters > pool->connecting * w->cfg->pool_max_streams) {
		t = zt_tunnel_new(pool->pod, false);
		if (!t) {
			fail_waiters(pool, ZT_R_INTERNAL, "out of memory");
			return;
		}
		t->pool = pool;
		t->peer = pool->addr;
		t->identity = zt_identity_get(zt_worker_identity(w, pool->pod->pod->identity));
		zt_list_add(&pool->tunnels, &t->pool_link);
		pool->connecting++;
		err = zt_tunnel_dial(t);
		if (err) {
			zt_tunnel_fail(t, (enum zt_reason) - err, NULL); /* frees the pool if it was all */
			return;
		}
	}
}

void zt_pool_feed(struct zt_pool *pool)
{
	struct zt_tunnel *t;

	while (pool->n_waiters && (t = with_room(pool))) {
		struct zt_conn *c = take_waiter(pool);

		c->handshake_us = t->handshake_us;
		if (zt_hbone_connect(c, t))
			zt_outbound_failed(c, ZT_R_INTERNAL, "out of memory");
	}
	grow(pool);
}

void zt_pool_request(struct zt_conn *c, const struct zt_addr *addr)
{
	struct zt_pool *pool = find(c->pod, addr, c->dst_identity);
	struct zt_tunnel *t;

	if (!pool)
		pool = make(c->pod, addr, c->dst_identity);
	if (!pool) {
		zt_conn_finish(c, ZT_R_INTERNAL, "out of memory");
		return;
	}
	zt_conn_set_state(c, ZT_C_WAIT_TUNNEL);
	t = pool->n_waiters ? NULL : with_room(pool);
	if (t) {
		zt_bump(&c->w->n.streams_reused, 1);
		if (zt_hbone_connect(c, t))
			zt_outbound_failed(c, ZT_R_INTERNAL, "out of memory");
		return;
	}
	zt_list_add(&pool->waiters, &c->wait);
	pool->n_waiters++;
	c->pool = pool;
	grow(pool);
}

void zt_pool_leave(struct zt_conn *c)
{
	struct zt_pool *pool = c->pool;

	if (!pool) /* being moved from the pool to a tunnel, or failed by it */
		return;
	zt_list_del(&c->wait);
	c->pool = NULL;
	pool->n_waiters--;
	maybe_free(pool);
}

void zt_pool_ready(struct zt_tunnel *t)
{
	t->pool->connecting--;
	zt_pool_feed(t->pool);
}

void zt_pool_lost(struct zt_tunnel *t, enum zt_reason reason, const char *detail)
{
	struct zt_pool *pool = t->pool;
	bool was_connecting = t->state < ZT_T_OPEN;

	zt_list_del(&t->pool_link);
	t->pool = NULL;
	if (was_connecting) {
		pool->connecting--;
		if (!pool->connecting) {
			pool->pins++; /* it must outlive its waiters' second thoughts */
			fail_waiters(pool, reason, detail);
			pool->pins--;
		}
	} else if (pool->n_waiters) {
		zt_pool_feed(pool);
		return;
	}
	maybe_free(pool);
}
