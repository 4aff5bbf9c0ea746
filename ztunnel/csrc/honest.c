/* SPDX-License-Identifier: Apache-2.0 */
/* Honest connect, the engine's half (the packets: syn.h). A first SYN makes a connection whose client socket does not
 * exist yet; when its upstream stands the SYN is replayed and the socket accepted; when it fails the SYN is refused.
 *
 * core->pending knows whose SYN it was, because the kernel may hand the accepted socket to another worker: then it
 * goes to the owner by mail. An entry belongs to its connection and is changed only by the owner, under the lock.
 */
#include <errno.h>
#include <linux/bpf.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "engine.h"
#include "qanat.h"
#include "syn.h"

#define BATCH 16
/* After the replay the client's kernel answers at once, or its next SYN (1 s, RFC 6298) makes us replay again. */
#define CLIENT_WAIT_MS 5000

struct zt_honest {
	struct zt_node node;  /* core->pending */
	struct zt_conn *conn; /* the owner's */
	struct zt_worker *owner;
	const struct zt_pod *pod;
	struct zt_addr dst; /* original destination */
	bool replayed;
	struct zt_syn syn;
};

/* The accepted socket shows the pod's address where the SYN has loopback's, so only the port tells clients apart;
 * should two share one, the original destination does. */
static uint64_t key(const struct zt_pod *pod, const struct zt_addr *client)
{
	struct {
		const struct zt_pod *pod;
		uint32_t port, family;
	} k = { pod, client->port, client->family };

	return zt_hash(&k, sizeof(k), 0);
}

static struct zt_honest *find(struct zt_core *core, const struct zt_pod *pod, const struct zt_addr *client,
			      const struct zt_addr *dst)
{
	for (struct zt_node *n = zt_map_first(&core->pending, key(pod, client)); n; n = zt_map_next(n)) {
		struct zt_honest *h = zt_container(n, struct zt_honest, node);

		if (h->pod == pod && h->syn.src.port == client->port && h->syn.src.family == client->family &&
		    zt_addr_equal(&h->dst, dst))
			return h;
	}
	return NULL;
}

/* Ask map `flows` where the client wanted to go, and what the kernel drew for a service. */
static bool original_dst(const struct zt_worker *w, const struct zt_pod *pod, const struct zt_syn *syn,
			 struct zt_addr *dst, uint8_t *draw)
{
	struct qn_flow_key k = { .netns = pod->netns_cookie,
				 .src_port = syn->src.port,
				 .dst_port = syn->dst.port,
				 .family = syn->src.family };
	struct qn_flow v = { .kind = 0 };
	union bpf_attr attr;

	memcpy(k.src, syn->src.ip, sizeof(k.src));
	memcpy(k.dst, syn->dst.ip, sizeof(k.dst));
	memset(&attr, 0, sizeof(attr));
	attr.map_fd = (uint32_t)atomic_load_explicit(&w->core->flows_map, memory_order_acquire);
	attr.key = (uint64_t)(uintptr_t)&k;
	attr.value = (uint64_t)(uintptr_t)&v;
	if (syscall(SYS_bpf, BPF_MAP_LOOKUP_ELEM, &attr, sizeof(attr)) || v.kind != QN_FLOW_CLIENT)
		return false;
	*dst = (struct zt_addr){ .port = v.addr.port, .family = v.addr.family };
	memcpy(dst->ip, v.addr.ip, sizeof(dst->ip));
	*draw = v.draw;
	return dst->family == 4 || dst->family == 6;
}

static void reply(const struct zt_pod *pod, const struct zt_syn *syn, const struct zt_addr *to,
		  size_t (*build)(const struct zt_syn *, uint8_t *))
{
	uint8_t pkt[ZT_SYN_MAX];
	size_t len = build(syn, pkt);

	/* A lost answer is a lost packet: the client's kernel sends its SYN again. */
	zt_syn_send(pod->replay[syn->src.family == 6], to, pkt, len);
}

/* The client as its peer sees it: without a bound address it left from loopback. */
static struct zt_addr shown(const struct zt_pod *pod, const struct zt_syn *syn)
{
	struct zt_addr a = syn->src;

	for (size_t i = 0; i < pod->n_addrs && zt_addr_is_loopback(&a); i++)
		if (pod->addrs[i].family == a.family)
			memcpy(a.ip, pod->addrs[i].ip, sizeof(a.ip));
	return a;
}

static void begin(struct zt_podw *p, const struct zt_syn *syn, const struct zt_addr *dst, uint8_t draw)
{
	struct zt_core *core = p->w->core;
	struct zt_conn *c = zt_conn_new(p, ZT_OUTBOUND, ZT_PATH_NONE);
	struct zt_honest *h = c ? calloc(1, sizeof(*h)) : NULL;
	int err = -ZT_ENOMEM;

	if (!c)
		return; /* at the limit: silence makes the client wait and ask again */
	c->src = shown(p->pod, syn);
	c->dst = *dst;
	c->draw = draw;
	c->src_identity = zt_name_get(p->pod->identity);
	if (h) {
		*h = (struct zt_honest){ .conn = c, .owner = p->w, .pod = p->pod, .dst = *dst, .syn = *syn };
		pthread_mutex_lock(&core->pending_lock);
		err = zt_map_add(&core->pending, &h->node, key(p->pod, &syn->src));
		pthread_mutex_unlock(&core->pending_lock);
	}
	if (err) {
		free(h);
		zt_conn_finish(c, ZT_R_INTERNAL, "out of memory");
		return;
	}
	c->honest = h;
	zt_outbound_start(c);
}

static void on_syn(struct zt_podw *p, const struct zt_syn *syn)
{
	struct zt_core *core = p->w->core;
	struct zt_honest *h;
	struct zt_addr dst;
	uint8_t draw;
	bool again = false, stale = false;

	if (!original_dst(p->w, p->pod, syn, &dst, &draw)) {
		/* Nobody redirected it: an application dialled 15001 itself, or has given up meanwhile. */
		reply(p->pod, syn, &syn->src, zt_syn_reset);
		return;
	}
	pthread_mutex_lock(&core->pending_lock);
	h = find(core, p->pod, &syn->src, &dst);
	if (h) {
		again = h->replayed && h->syn.seq == syn->seq;
		stale = h->syn.seq != syn->seq && h->owner == p->w;
	}
	pthread_mutex_unlock(&core->pending_lock);
	if (stale) { /* the port's earlier user gave up */
		zt_conn_finish(h->conn, ZT_R_CLIENT_RESET, "gave up before it was answered");
		h = NULL;
	}
	if (again)
		reply(p->pod, syn, &syn->dst, zt_syn_replay);
	if (!h)
		begin(p, syn, &dst, draw);
}

void zt_honest_readable(struct zt_io *io)
{
	struct zt_listener *l = zt_container(io, struct zt_listener, io);
	uint8_t pkt[ZT_SYN_MAX + 8];
	struct zt_syn syn;

	for (int i = 0; i < BATCH && io->fd >= 0; i++) {
		ssize_t n = recv(io->fd, pkt, sizeof(pkt), MSG_DONTWAIT);

		if (n < 0 && errno != EINTR)
			return;
		if (n > 0 && !zt_syn_parse(pkt, (size_t)n, &syn) && syn.src.family == l->family)
			on_syn(l->pod, &syn);
	}
}

static void forget(struct zt_conn *c)
{
	struct zt_core *core = c->w->core;

	pthread_mutex_lock(&core->pending_lock);
	zt_map_del(&core->pending, &c->honest->node);
	pthread_mutex_unlock(&core->pending_lock);
	free(c->honest);
	c->honest = NULL;
}

static void join(struct zt_conn *c, int fd)
{
	forget(c);
	if (zt_end_open(c, &c->client, fd)) {
		zt_reset_fd(fd);
		zt_conn_finish(c, ZT_R_INTERNAL, strerror(errno));
		return;
	}
	c->client.fin = c->stream_fin_recv; /* a server that spoke and left before the client was let in */
	zt_conn_opened(c);
	zt_conn_later(c);
}

bool zt_honest_claim(struct zt_podw *p, int fd, const struct zt_addr *src)
{
	struct zt_core *core = p->w->core;
	struct zt_worker *owner = NULL;
	struct zt_conn *c = NULL;
	struct zt_honest *h;
	struct zt_addr dst;
	struct zt_msg *m;

	if (zt_addr_of_socket(fd, &dst))
		return false;
	pthread_mutex_lock(&core->pending_lock);
	h = find(core, p->pod, src, &dst);
	if (h) {
		owner = h->owner;
		c = h->conn;
	}
	pthread_mutex_unlock(&core->pending_lock);
	if (!owner)
		return false;
	if (owner == p->w) { /* ours: it cannot end under us */
		if (c->state == ZT_C_WAIT_CLIENT)
			join(c, fd);
		else
			zt_reset_fd(fd); /* a forged handshake: nobody was answered yet */
		return true;
	}
	m = calloc(1, sizeof(*m));
	if (!m)
		return false;
	*m = (struct zt_msg){ .kind = ZT_M_CLIENT, .id = p->pod->id, .fd = fd, .addr = *src };
	zt_worker_post(owner, m);
	return true;
}

void zt_honest_mail(struct zt_podw *p, int fd, const struct zt_addr *src)
{
	if (!p || !zt_honest_claim(p, fd, src))
		zt_reset_fd(fd); /* it has ended meanwhile */
}

void zt_honest_answer(struct zt_conn *c)
{
	struct zt_core *core = c->w->core;
	struct zt_honest *h = c->honest;

	zt_conn_set_state(c, ZT_C_WAIT_CLIENT);
	zt_timer_set(&c->w->loop, &c->timer, CLIENT_WAIT_MS);
	pthread_mutex_lock(&core->pending_lock);
	h->replayed = true;
	pthread_mutex_unlock(&core->pending_lock);
	reply(c->pod->pod, &h->syn, &h->syn.dst, zt_syn_replay);
	/* Over loopback the handshake is done by now: do not wait a turn for it, nor for another worker. */
	zt_listener_accept(c->pod, h->syn.src.family);
}

void zt_honest_end(struct zt_conn *c, enum zt_reason reason)
{
	struct zt_honest *h = c->honest;

	switch (reason) {
	case ZT_R_TIMEOUT: /* silence is the truth: the client's own SYN retries decide */
	case ZT_R_NO_CERT:
	case ZT_R_CLIENT_RESET:
	case ZT_R_INTERNAL:
	case ZT_R_DRAIN: /* a successor will see the next SYN */
	case ZT_R_SHUTDOWN:
		break;
	case ZT_R_UNREACHABLE:
		reply(h->pod, &h->syn, &h->syn.src, zt_syn_unreachable);
		break;
	default:
		reply(h->pod, &h->syn, &h->syn.src, zt_syn_reset);
	}
	forget(c);
}
