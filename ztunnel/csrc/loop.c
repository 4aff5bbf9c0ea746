/* SPDX-License-Identifier: Apache-2.0 */
#include "loop.h"

#include <errno.h>
#include <limits.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#define TURN_EVENTS 128

static void take_time(struct zt_loop *l)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	l->now_us = (int64_t)ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
	l->now_ms = (uint64_t)l->now_us / 1000;
}

int zt_loop_init(struct zt_loop *l)
{
	l->epfd = epoll_create1(EPOLL_CLOEXEC);
	if (l->epfd < 0)
		return -ZT_ESYS;
	for (size_t i = 0; i < ZT_WHEEL_SLOTS; i++)
		zt_list_init(&l->wheel[i]);
	take_time(l);
	l->tick = l->now_ms / ZT_TICK_MS;
	l->n_timers = 0;
	return 0;
}

void zt_loop_free(struct zt_loop *l)
{
	if (l->epfd >= 0)
		close(l->epfd);
	l->epfd = -1;
}

int zt_loop_add(struct zt_loop *l, struct zt_io *io)
{
	struct epoll_event ev = { .events = EPOLLIN | EPOLLPRI | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = io };

	return epoll_ctl(l->epfd, EPOLL_CTL_ADD, io->fd, &ev) ? -ZT_ESYS : 0;
}

int zt_loop_add_level(struct zt_loop *l, struct zt_io *io, bool shared)
{
	struct epoll_event ev = { .events = EPOLLIN | (shared ? EPOLLEXCLUSIVE : 0u), .data.ptr = io };

	return epoll_ctl(l->epfd, EPOLL_CTL_ADD, io->fd, &ev) ? -ZT_ESYS : 0;
}

void zt_loop_del(struct zt_loop *l, struct zt_io *io)
{
	epoll_ctl(l->epfd, EPOLL_CTL_DEL, io->fd, NULL);
}

void zt_timer_init(struct zt_timer *t, void (*fire)(struct zt_timer *t))
{
	zt_list_init(&t->link);
	t->at_ms = 0;
	t->fire = fire;
}

void zt_timer_clear(struct zt_loop *l, struct zt_timer *t)
{
	if (zt_list_empty(&t->link))
		return;
	zt_list_del(&t->link);
	l->n_timers--;
}

void zt_timer_set(struct zt_loop *l, struct zt_timer *t, uint64_t in_ms)
{
	uint64_t tick;

	zt_timer_clear(l, t);
	t->at_ms = l->now_ms + in_ms;
	tick = t->at_ms / ZT_TICK_MS + 1; /* never early */
	zt_list_add(&l->wheel[tick % ZT_WHEEL_SLOTS], &t->link);
	l->n_timers++;
}

static void fire_due(struct zt_loop *l)
{
	uint64_t last = l->now_ms / ZT_TICK_MS;
	struct zt_list due;

	if (last <= l->tick)
		return;
	if (last - l->tick > ZT_WHEEL_SLOTS)
		l->tick = last - ZT_WHEEL_SLOTS;
	zt_list_init(&due);
	for (; l->tick < last; l->tick++) {
		struct zt_list *slot = &l->wheel[(l->tick + 1) % ZT_WHEEL_SLOTS];

		zt_list_each_safe(it, slot)
		{
			struct zt_timer *t = zt_container(it, struct zt_timer, link);

			if (t->at_ms <= l->now_ms) { /* others are due in a later round */
				zt_list_del(it);
				zt_list_add(&due, it);
			}
		}
	}
	/* A fired timer may clear or set any other: take them one by one. */
	while (!zt_list_empty(&due)) {
		struct zt_timer *t = zt_list_first(&due, struct zt_timer, link);

		zt_timer_clear(l, t);
		t->fire(t);
	}
}

static int wait_ms(const struct zt_loop *l)
{
	if (!l->n_timers)
		return -1;
	for (uint64_t i = 1; i <= ZT_WHEEL_SLOTS; i++) {
		if (zt_list_empty(&l->wheel[(l->tick + i) % ZT_WHEEL_SLOTS]))
			continue;
		uint64_t at = (l->tick + i) * ZT_TICK_MS;

		return at <= l->now_ms ? 0 : (int)(at - l->now_ms);
	}
	return -1;
}

void zt_loop_turn(struct zt_loop *l, int max_wait_ms)
{
	struct epoll_event evs[TURN_EVENTS];
	int wait, n;

	take_time(l);
	wait = wait_ms(l);
	if (max_wait_ms >= 0 && (wait < 0 || wait > max_wait_ms))
		wait = max_wait_ms;
	n = epoll_wait(l->epfd, evs, TURN_EVENTS, wait);
	if (n < 0)
		n = 0; /* EINTR: the next turn asks again */
	take_time(l);
	for (int i = 0; i < n; i++) {
		struct zt_io *io = evs[i].data.ptr;
		uint32_t e = evs[i].events;

		if (io->fd < 0)
			continue; /* closed earlier in this turn; its memory lives until the turn's end */
		if (e & (EPOLLIN | EPOLLRDHUP | EPOLLERR | EPOLLHUP))
			io->readable = true;
		if (e & (EPOLLOUT | EPOLLERR | EPOLLHUP))
			io->writable = true;
		if (e & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
			io->hup = true;
		if (e & (EPOLLERR | EPOLLHUP))
			io->err = true;
		if (e & EPOLLPRI)
			io->urgent = true;
		io->ready(io);
	}
	fire_due(l);
}
