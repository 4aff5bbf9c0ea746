/* SPDX-License-Identifier: Apache-2.0 */
/* A worker: one thread, its loop, its mailbox, and everything that hangs from them. */
#include <errno.h>
#include <fcntl.h>
#include <openssl/crypto.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <unistd.h>

#include "engine.h"
#include "policy.h"
#include "revocation.h"

#define SPARE_BUFS 256 /* 4 MiB a worker at most; given back when nothing is buffered */

uint64_t zt_random(struct zt_worker *w) /* xorshift64*: choices and trace ids, nothing secret */
{
	w->rng ^= w->rng >> 12;
	w->rng ^= w->rng << 25;
	w->rng ^= w->rng >> 27;
	return w->rng * 0x2545f4914f6cdd1du;
}

static struct zt_wanted *find_wanted(struct zt_worker *w, const struct zt_name *name)
{
	for (struct zt_node *n = zt_map_first(&w->identities, zt_hash(name->s, name->len, 0)); n; n = zt_map_next(n)) {
		struct zt_wanted *want = zt_container(n, struct zt_wanted, node);

		if (zt_name_equal(want->name, name))
			return want;
	}
	return NULL;
}

struct zt_wanted *zt_worker_wanted(struct zt_worker *w, struct zt_name *name)
{
	struct zt_wanted *want = name ? find_wanted(w, name) : NULL;

	if (want || !name)
		return want;
	want = calloc(1, sizeof(*want));
	if (!want)
		return NULL;
	zt_list_init(&want->conns);
	zt_list_init(&want->tunnels);
	if (zt_map_add(&w->identities, &want->node, zt_hash(name->s, name->len, 0))) {
		free(want);
		return NULL;
	}
	want->name = zt_name_get(name);
	return want;
}

struct zt_identity *zt_worker_identity(struct zt_worker *w, struct zt_name *name)
{
	struct zt_wanted *want = name ? find_wanted(w, name) : NULL;

	return want ? want->identity : NULL;
}

static struct zt_podw *find_pod(struct zt_worker *w, uint64_t id)
{
	for (struct zt_node *n = zt_map_first(&w->pods, zt_hash(&id, sizeof(id), 0)); n; n = zt_map_next(n)) {
		struct zt_podw *p = zt_container(n, struct zt_podw, node);

		if (p->pod->id == id && !p->gone)
			return p;
	}
	return NULL;
}

/* Tunnels of the replaced certificate finish what they carry; new streams use the new one. */
static void retire_tunnels(struct zt_worker *w, const struct zt_name *name)
{
	zt_map_each(n, &w->pods)
	{
		struct zt_podw *p = zt_container(n, struct zt_podw, node);

		if (!zt_name_equal(p->pod->identity, name))
			continue;
		p->pins++;
		zt_list_each_safe(it, &p->tunnels)
		{
			struct zt_tunnel *t = zt_container(it, struct zt_tunnel, link);

			if (!t->server)
				zt_tunnel_drain(t);
		}
		p->pins--;
	}
}

static void put_identity(struct zt_worker *w, struct zt_identity *identity)
{
	struct zt_wanted *want = zt_worker_wanted(w, identity->name);
	struct zt_list conns;

	if (!want) {
		zt_identity_put_ref(identity);
		return;
	}
	if (want->identity)
		retire_tunnels(w, identity->name);
	zt_identity_put_ref(want->identity);
	want->identity = identity;
	want->asked_ms = 0;
	zt_list_init(&conns);
	zt_list_splice(&conns, &want->conns);
	while (!zt_list_empty(&conns))
		zt_outbound_cert(zt_list_first(&conns, struct zt_conn, wait));
	while (!zt_list_empty(&want->tunnels)) {
		struct zt_tunnel *t = zt_list_first(&want->tunnels, struct zt_tunnel, pool_link);
		int err;

		zt_list_del(&t->pool_link);
		t->identity = zt_identity_get(identity);
		err = zt_tunnel_begin(t);
		if (err)
			zt_tunnel_fail(t, (enum zt_reason) - err, NULL);
	}
}

static void del_identity(struct zt_worker *w, struct zt_name *name)
{
	struct zt_wanted *want = find_wanted(w, name);

	if (!want)
		return;
	retire_tunnels(w, name);
	zt_identity_put_ref(want->identity);
	want->identity = NULL;
	if (!zt_list_empty(&want->conns) || !zt_list_empty(&want->tunnels))
		return;
	zt_map_del(&w->identities, &want->node);
	zt_name_put(want->name);
	free(want);
}

static void cut_all(struct zt_worker *w, enum zt_reason reason)
{
	zt_map_each(n, &w->pods) zt_podw_cut(zt_container(n, struct zt_podw, node), reason);
}

static void on_drain_deadline(struct zt_timer *timer)
{
	cut_all(zt_container(timer, struct zt_worker, drain), ZT_R_DRAIN);
}

static void drain_all(struct zt_worker *w, uint32_t deadline_ms)
{
	zt_map_each(n, &w->pods) zt_podw_drain(zt_container(n, struct zt_podw, node), false, 0);
	if (deadline_ms)
		zt_timer_set(&w->loop, &w->drain, deadline_ms);
}

static void list_conns(struct zt_worker *w, struct zt_listing *l)
{
	pthread_mutex_lock(&l->lock);
	zt_map_each(n, &w->pods)
	{
		zt_list_each(it, &zt_container(n, struct zt_podw, node)->conns)
		{
			l->total++;
			if (l->n < l->cap)
				zt_slim_from_conn(&l->rows[l->n++], zt_container(it, struct zt_conn, link), 0);
		}
	}
	l->missing--;
	pthread_cond_signal(&l->cond);
	pthread_mutex_unlock(&l->lock);
}

void zt_msg_free(struct zt_msg *m)
{
	zt_tableset_put(m->tables);
	zt_policyset_put(m->policies);
	zt_revocations_put(m->revocations);
	zt_identity_put_ref(m->identity);
	zt_name_put(m->name);
	if (m->pod)
		zt_pod_put(m->pod);
	if (m->listing)
		zt_listing_put(m->listing);
	if (m->kind == ZT_M_CLIENT && m->fd >= 0)
		zt_reset_fd(m->fd);
	free(m);
}

static void obey(struct zt_worker *w, struct zt_msg *m)
{
	struct zt_podw *p;

	switch (m->kind) {
	case ZT_M_STOP:
		w->stopping = true;
		break;
	case ZT_M_TABLES:
		zt_tableset_put(w->tables);
		w->tables = m->tables;
		m->tables = NULL;
		break;
	case ZT_M_POLICIES:
		zt_worker_policies(w, m->policies);
		m->policies = NULL;
		break;
	case ZT_M_REVOCATIONS:
		zt_worker_revocations(w, m->revocations);
		m->revocations = NULL;
		break;
	case ZT_M_EGRESS:
		zt_worker_egress(w, m->policies);
		m->policies = NULL;
		break;
	case ZT_M_IDENTITY:
		put_identity(w, m->identity);
		m->identity = NULL;
		break;
	case ZT_M_IDENTITY_DEL:
		del_identity(w, m->name);
		break;
	case ZT_M_POD_ADD:
		if (!zt_podw_add(w, m->pod))
			m->pod = NULL;
		else
			zt_pod_unlisten(m->pod);
		break;
	case ZT_M_POD_DEL:
		p = find_pod(w, m->id);
		if (p)
			zt_podw_drain(p, true, m->ms);
		break;
	case ZT_M_POD_RETIRE:
		p = find_pod(w, m->id);
		if (p)
			zt_podw_retire(p);
		break;
	case ZT_M_DRAIN:
		drain_all(w, m->ms);
		break;
	case ZT_M_LIST:
		list_conns(w, m->listing);
		break;
	case ZT_M_CLIENT:
		zt_honest_mail(find_pod(w, m->id), m->fd, &m->addr);
		m->fd = -1;
		break;
	}
	zt_msg_free(m);
}

static void on_mail(struct zt_io *io)
{
	struct zt_worker *w = zt_container(io, struct zt_worker, wake);
	struct zt_msg *m;
	uint64_t n;

	(void)!read(io->fd, &n, sizeof(n));
	pthread_mutex_lock(&w->mail_lock);
	m = w->mail_first;
	w->mail_first = w->mail_last = NULL;
	pthread_mutex_unlock(&w->mail_lock);
	while (m) {
		struct zt_msg *next = m->next;

		obey(w, m);
		m = next;
	}
}

void zt_worker_post(struct zt_worker *w, struct zt_msg *m)
{
	uint64_t one = 1;

	m->next = NULL;
	pthread_mutex_lock(&w->mail_lock);
	if (w->mail_last)
		w->mail_last->next = m;
	else
		w->mail_first = m;
	w->mail_last = m;
	pthread_mutex_unlock(&w->mail_lock);
	(void)!write(w->wake.fd, &one, sizeof(one));
}

static void run_todo(struct zt_worker *w)
{
	struct zt_list now;

	zt_list_init(&now);
	zt_list_splice(&now, &w->todo);
	while (!zt_list_empty(&now)) {
		struct zt_conn *c = zt_list_first(&now, struct zt_conn, todo);

		zt_list_del(&c->todo);
		zt_conn_todo(c);
	}
}

static void run_dirty(struct zt_worker *w)
{
	struct zt_list now;

	zt_list_init(&now);
	zt_list_splice(&now, &w->dirty);
	while (!zt_list_empty(&now)) {
		struct zt_tunnel *t = zt_list_first(&now, struct zt_tunnel, dirty);

		zt_list_del(&t->dirty);
		zt_tunnel_run(t);
	}
}

static void free_conn(struct zt_conn *c)
{
	zt_name_put(c->src_identity);
	zt_name_put(c->dst_identity);
	zt_name_put(c->service);
	zt_name_put(c->rule);
	zt_name_put(c->noted);
	zt_tableset_put(c->tables);
	zt_request_free(c->request);
	free(c);
}

static void free_pod(struct zt_podw *p)
{
	zt_map_free(&p->pools);
	zt_pod_put(p->pod);
	free(p);
}

/* What ended in this turn: nothing points at it any more once the batch of events is through. */
static void reap(struct zt_worker *w)
{
#define REAP(list, type, member, how)                                                                                  \
	while (!zt_list_empty(&w->list)) {                                                                             \
		type *dead = zt_list_first(&w->list, type, member);                                                    \
		zt_list_del(&dead->member);                                                                            \
		how(dead);                                                                                             \
	}
	REAP(dead_conns, struct zt_conn, link, free_conn)
	REAP(dead_tunnels, struct zt_tunnel, link, zt_tunnel_reap)
	REAP(dead_listeners, struct zt_listener, link, free)
	REAP(dead_pods, struct zt_podw, link, free_pod)
#undef REAP
}

static void turn(struct zt_worker *w)
{
	bool busy = !zt_list_empty(&w->todo) || !zt_list_empty(&w->dirty);

	zt_loop_turn(&w->loop, busy ? 0 : w->ring.first ? 20 : -1);
	run_todo(w);
	run_dirty(w); /* after all sockets were looked at: one send for what they brought */
	run_todo(w);
	reap(w);
	if (w->ring.first)
		zt_event_flush(w);
	if (w->bufs.spare && !atomic_load_explicit(&w->n.bytes_buffered, memory_order_relaxed))
		zt_bufpool_free(&w->bufs);
}

static void clean_up(struct zt_worker *w)
{
	struct zt_node *n;

	while ((n = zt_map_any(&w->pods)))
		zt_podw_drain(zt_container(n, struct zt_podw, node), true, 0);
	reap(w);
	while ((n = zt_map_any(&w->identities))) {
		struct zt_wanted *want = zt_container(n, struct zt_wanted, node);

		zt_map_del(&w->identities, n);
		zt_identity_put_ref(want->identity);
		zt_name_put(want->name);
		free(want);
	}
	zt_map_free(&w->identities);
	zt_map_free(&w->pods);
	zt_map_free(&w->loads);
	zt_tableset_put(w->tables);
	w->tables = NULL;
	zt_policyset_put(w->policies);
	zt_revocations_put(w->revocations);
	w->revocations = NULL;
	zt_policyset_put(w->egress);
	w->policies = w->egress = NULL;
	zt_bufpool_free(&w->bufs);
}

static void *run(void *arg)
{
	struct zt_worker *w = arg;
	char name[16] = "zt-worker-0";

	name[10] = (char)('0' + w->index % 10);
	pthread_setname_np(pthread_self(), name);
	while (!w->stopping)
		turn(w);
	cut_all(w, ZT_R_SHUTDOWN);
	clean_up(w);
	OPENSSL_thread_stop();
	return NULL;
}

int zt_worker_init(struct zt_worker *w, struct zt_core *core, unsigned index)
{
	struct zt_list *lists[] = { &w->dirty,        &w->todo,           &w->dead_conns,
				    &w->dead_tunnels, &w->dead_listeners, &w->dead_pods };

	w->core = core;
	w->cfg = &core->cfg;
	w->index = index;
	w->next_id = index; /* ids are index + k * workers: unique without sharing */
	w->bufs.max_spare = SPARE_BUFS;
	for (size_t i = 0; i < ZT_COUNT(lists); i++)
		zt_list_init(lists[i]);
	zt_timer_init(&w->drain, on_drain_deadline);
	pthread_mutex_init(&w->mail_lock, NULL);
	w->loop.epfd = w->wake.fd = w->own_netns = w->spare_fd = -1;
	if (getrandom(&w->rng, sizeof(w->rng), 0) != sizeof(w->rng) || !w->rng)
		w->rng = 88172645463325252u + index;
	w->in = malloc(ZT_IN_CAP);
	w->plain = malloc(ZT_PLAIN_CAP);
	w->out = malloc(ZT_OUT_CAP + 32u * 1024);
	w->seal = malloc(ZT_SEAL_CAP + 32u * 1024);
	w->ring.slots = calloc(ZT_RING, sizeof(*w->ring.slots));
	if (!w->in || !w->plain || !w->out || !w->seal || !w->ring.slots)
		return -ZT_ENOMEM;
	if (zt_loop_init(&w->loop))
		return -ZT_ESYS;
	w->wake.fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	w->wake.ready = on_mail;
	w->own_netns = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
	w->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	if (w->wake.fd < 0 || w->own_netns < 0 || w->spare_fd < 0 || zt_loop_add_level(&w->loop, &w->wake, false))
		return -ZT_ESYS;
	return 0;
}

int zt_worker_start(struct zt_worker *w)
{
	sigset_t all, before;
	int err;

	/* Signals are the control thread's. */
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, &before);
	err = pthread_create(&w->thread, NULL, run, w);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (err) {
		w->sys_errno = err;
		return -ZT_ESYS;
	}
	w->started = true;
	return 0;
}

void zt_worker_free(struct zt_worker *w)
{
	while (w->mail_first) {
		struct zt_msg *m = w->mail_first;

		w->mail_first = m->next;
		if (m->kind == ZT_M_POD_ADD)
			zt_pod_unlisten(m->pod);
		zt_msg_free(m);
	}
	zt_ring_free(&w->ring);
	zt_loop_free(&w->loop);
	if (w->wake.fd >= 0)
		close(w->wake.fd);
	if (w->own_netns >= 0)
		close(w->own_netns);
	if (w->spare_fd >= 0)
		close(w->spare_fd);
	free(w->in);
	free(w->plain);
	free(w->out);
	free(w->seal);
	pthread_mutex_destroy(&w->mail_lock);
}
