/* SPDX-License-Identifier: Apache-2.0 */
/* One epoll loop: sockets registered once, edge-triggered, with their readiness remembered; a timer wheel. */
#ifndef ZT_LOOP_H
#define ZT_LOOP_H

#include <stdbool.h>
#include <stdint.h>

#include "base.h"

/* A descriptor in the loop. `ready` is called with what changed; the flags below say what is possible now. */
struct zt_io {
	int fd; /* -1 = none */
	bool readable;
	bool writable;
	bool hup;    /* the other end has sent FIN or RST: read on until 0 or an error */
	bool err;    /* EPOLLERR or EPOLLHUP was seen */
	bool urgent; /* a byte with MSG_OOB has come: recv() stops before and behind it */
	void (*ready)(struct zt_io *io);
};

#define ZT_WHEEL_SLOTS 512
#define ZT_TICK_MS 8

struct zt_timer {
	struct zt_list link;
	uint64_t at_ms;
	void (*fire)(struct zt_timer *t);
};

struct zt_loop {
	int epfd;
	uint64_t now_ms; /* monotonic, taken once per turn */
	int64_t now_us;
	uint64_t tick; /* last tick processed */
	size_t n_timers;
	struct zt_list wheel[ZT_WHEEL_SLOTS];
};

int zt_loop_init(struct zt_loop *l); /* 0 or -ZT_ESYS */
void zt_loop_free(struct zt_loop *l);
/* Watch a stream socket, edge-triggered for everything. */
int zt_loop_add(struct zt_loop *l, struct zt_io *io);
/* Watch for input only, level-triggered; `shared`: several loops watch it and one is to be woken. */
int zt_loop_add_level(struct zt_loop *l, struct zt_io *io, bool shared);
/* Needed only for descriptors that others hold too: closing the last one ends a watch by itself. */
void zt_loop_del(struct zt_loop *l, struct zt_io *io);
/* Wait for events (at most max_wait_ms, -1 = until the next timer) and call ready(), then fire due timers. */
void zt_loop_turn(struct zt_loop *l, int max_wait_ms);

/* A read that got less than it had room for has left nothing, and what comes next makes an edge. Not so with FIN or RST,
 * which make no further one, nor where recv() stops early. */
static inline void zt_io_short_read(struct zt_io *io)
{
	if (!io->hup && !io->urgent)
		io->readable = false;
}

void zt_timer_init(struct zt_timer *t, void (*fire)(struct zt_timer *t));
void zt_timer_set(struct zt_loop *l, struct zt_timer *t, uint64_t in_ms); /* replaces an earlier setting */
void zt_timer_clear(struct zt_loop *l, struct zt_timer *t);

#endif
