/* SPDX-License-Identifier: Apache-2.0 */
/* Accepting, and each worker's view of a pod. Listening sockets are shared: every worker watches them, the kernel
 * wakes one (EPOLLEXCLUSIVE).
 */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine.h"

#define ACCEPT_BATCH 16
#define PAUSE_MS 100

static void on_pause_over(struct zt_timer *timer)
{
	struct zt_listener *l = zt_container(timer, struct zt_listener, pause);

	if (zt_loop_add_level(&l->pod->w->loop, &l->io, true)) /* still nothing to spare */
		zt_timer_set(&l->pod->w->loop, &l->pause, PAUSE_MS);
}

/* Out of descriptors: a level-triggered listener would spin. Turn one client away with the spare one, then wait. */
static void out_of_descriptors(struct zt_listener *l)
{
	struct zt_worker *w = l->pod->w;
	struct zt_addr nobody = { .family = 0 };
	int fd;

	if (w->spare_fd >= 0) {
		close(w->spare_fd);
		fd = accept4(l->io.fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
		if (fd >= 0)
			zt_refuse(l->pod, fd, l->port == ZT_PORT_OUTBOUND ? ZT_OUTBOUND : ZT_INBOUND, ZT_R_INTERNAL,
				  &nobody, NULL);
		w->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	}
	zt_loop_del(&w->loop, &l->io);
	zt_timer_set(&w->loop, &l->pause, PAUSE_MS);
}

static void on_acceptable(struct zt_io *io)
{
	struct zt_listener *l = zt_container(io, struct zt_listener, io);
	bool honest = l->pod->pod->honest;

	for (int i = 0; i < ACCEPT_BATCH && io->fd >= 0; i++) {
		struct sockaddr_storage ss;
		socklen_t len = sizeof(ss);
		struct zt_addr src = { .family = 0 };
		int fd = accept4(io->fd, (struct sockaddr *)&ss, &len, SOCK_CLOEXEC | SOCK_NONBLOCK);

		if (fd < 0) {
			if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)
				out_of_descriptors(l);
			if (errno == EINTR || errno == ECONNABORTED)
				continue;
			return;
		}
		if (zt_addr_from_sockaddr(&src, &ss)) {
			close(fd);
			continue;
		}
		switch (l->port) {
		case ZT_PORT_OUTBOUND:
			if (!honest || !zt_honest_claim(l->pod, fd, &src))
				zt_outbound_accept(l, fd, &src);
			break;
		case ZT_PORT_INBOUND:
			zt_inbound_plain_accept(l, fd, &src);
			break;
		default:
			zt_inbound_accept(l, fd, &src);
			break;
		}
	}
}

void zt_listener_accept(struct zt_podw *p, uint16_t family)
{
	zt_list_each(it, &p->listeners)
	{
		struct zt_listener *l = zt_container(it, struct zt_listener, link);

		if (l->port == ZT_PORT_OUTBOUND && l->family == family && l->io.ready == on_acceptable) {
			on_acceptable(&l->io);
			return;
		}
	}
}

static void stop_listening(struct zt_podw *p)
{
	bool had = !zt_list_empty(&p->listeners);

	while (!zt_list_empty(&p->listeners)) {
		struct zt_listener *l = zt_list_first(&p->listeners, struct zt_listener, link);

		if (!zt_list_empty(&l->pause.link))
			zt_timer_clear(&p->w->loop, &l->pause);
		else
			zt_loop_del(&p->w->loop, &l->io);
		l->io.fd = -1; /* the pod closes it */
		zt_list_del(&l->link);
		zt_list_add(&p->w->dead_listeners, &l->link);
	}
	if (had)
		zt_pod_unlisten(p->pod);
}

static void on_deadline(struct zt_timer *timer)
{
	struct zt_podw *p = zt_container(timer, struct zt_podw, deadline);

	zt_podw_cut(p, ZT_R_POD_GONE);
}

int zt_podw_add(struct zt_worker *w, struct zt_pod *pod)
{
	struct zt_podw *p = calloc(1, sizeof(*p));
	int on = 1;

	if (!p)
		return -ZT_ENOMEM;
	p->w = w;
	p->pod = pod;
	zt_list_init(&p->listeners);
	zt_list_init(&p->conns);
	zt_list_init(&p->tunnels);
	zt_timer_init(&p->deadline, on_deadline);
	if (zt_map_add(&w->pods, &p->node, zt_hash(&pod->id, sizeof(pod->id), 0))) {
		free(p);
		return -ZT_ENOMEM;
	}
	for (size_t i = 0; i < pod->n_listen; i++) {
		struct zt_listener *l = calloc(1, sizeof(*l));

		if (!l)
			break;
		l->io.fd = pod->listen[i].fd;
		l->io.ready = pod->listen[i].kind == ZT_SOCK_WATCH ? zt_honest_readable : on_acceptable;
		l->pod = p;
		l->port = pod->listen[i].port;
		l->family = pod->listen[i].family;
		zt_timer_init(&l->pause, on_pause_over);
		zt_list_add(&p->listeners, &l->link);
		if (l->io.ready == on_acceptable) /* the accepted ones inherit it: see dial.c */
			setsockopt(l->io.fd, SOL_SOCKET, SO_OOBINLINE, &on, sizeof(on));
		if (zt_loop_add_level(&w->loop, &l->io, true))
			zt_timer_set(&w->loop, &l->pause, PAUSE_MS);
	}
	if (zt_list_empty(&p->listeners))
		zt_pod_unlisten(pod);
	return 0;
}

void zt_podw_cut(struct zt_podw *p, enum zt_reason reason)
{
	p->pins++;
	while (!zt_list_empty(&p->conns))
		zt_conn_finish(zt_list_first(&p->conns, struct zt_conn, link), reason, NULL);
	while (!zt_list_empty(&p->tunnels))
		zt_tunnel_fail(zt_list_first(&p->tunnels, struct zt_tunnel, link), reason, NULL);
	p->pins--;
	zt_podw_maybe_free(p);
}

void zt_podw_drain(struct zt_podw *p, bool remove, uint32_t drain_ms)
{
	p->pins++;
	stop_listening(p);
	if (remove)
		p->gone = true;
	zt_list_each_safe(it, &p->tunnels) zt_tunnel_drain(zt_container(it, struct zt_tunnel, link));
	p->pins--;
	if (remove && !drain_ms) {
		zt_podw_cut(p, ZT_R_POD_GONE);
		return;
	}
	if (remove)
		zt_timer_set(&p->w->loop, &p->deadline, drain_ms);
	zt_podw_maybe_free(p);
}

void zt_podw_retire(struct zt_podw *p)
{
	zt_list_each_safe(it, &p->tunnels)
	{
		struct zt_tunnel *t = zt_container(it, struct zt_tunnel, link);

		if (t->server && t->state == ZT_T_OPEN) /* one that is being set up has somebody waiting for it */
			zt_tunnel_drain(t);
	}
}

void zt_podw_maybe_free(struct zt_podw *p)
{
	if (p->pins || !p->gone || p->dead || !zt_list_empty(&p->conns) || !zt_list_empty(&p->tunnels))
		return;
	p->dead = true;
	zt_timer_clear(&p->w->loop, &p->deadline);
	zt_map_del(&p->w->pods, &p->node);
	zt_list_add(&p->w->dead_pods, &p->link); /* connections freed at the end of this turn still point at it */
}
