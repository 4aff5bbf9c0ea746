/* SPDX-License-Identifier: Apache-2.0 */
/* Server side of the load tool: echo, sink and source on any number of addresses. */
#define _GNU_SOURCE
#include "load.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <unistd.h>

#define MAX_LISTENERS 16
#define ECHO_ROOM 4096

struct peer {
	int fd;
	enum load_service service;
	int listener;        /* this is a listening socket */
	int eof;             /* the client half-closed */
	uint64_t count;      /* bytes got (sink) or written (source) */
	unsigned char *held; /* echo: read and not yet written; sink, source: the 8-byte count. On demand */
	size_t held_at, held_len;
	uint32_t armed; /* epoll events asked for */
};

static unsigned char block[LOAD_BLOCK];

static void arm(int ep, struct peer *p, uint32_t events)
{
	struct epoll_event ev = { .events = events, .data.ptr = p };

	if (p->armed == events)
		return;
	p->armed = events;
	epoll_ctl(ep, EPOLL_CTL_MOD, p->fd, &ev);
}

static void drop(struct peer *p)
{
	close(p->fd);
	free(p->held);
	free(p);
}

static void accept_all(int ep, const struct peer *l)
{
	for (int i = 0; i < 64; i++) {
		int fd = accept4(l->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
		struct peer *p;

		if (fd < 0)
			return;
		p = calloc(1, sizeof(*p));
		if (!p) {
			close(fd);
			return;
		}
		p->fd = fd;
		p->service = l->service;
		p->armed = l->service == LOAD_SOURCE ? EPOLLIN | EPOLLOUT : EPOLLIN;
		struct epoll_event ev = { .events = p->armed, .data.ptr = p };
		epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev);
	}
}

/* Write what is held. 1 = all gone, 0 = socket full, -1 = dead. */
static int flush(struct peer *p)
{
	while (p->held_at < p->held_len) {
		ssize_t n = send(p->fd, p->held + p->held_at, p->held_len - p->held_at, MSG_NOSIGNAL);

		if (n < 0)
			return errno == EAGAIN ? 0 : -1;
		p->held_at += (size_t)n;
	}
	free(p->held);
	p->held = NULL;
	return 1;
}

static int hold(struct peer *p, const void *data, size_t len)
{
	p->held = malloc(len);
	if (!p->held)
		return -1;
	memcpy(p->held, data, len);
	p->held_at = 0;
	p->held_len = len;
	return 0;
}

static int hold_count(struct peer *p)
{
	unsigned char text[8];

	for (int i = 0; i < 8; i++)
		text[i] = (unsigned char)(p->count >> (8 * i));
	return hold(p, text, sizeof(text));
}

/* Each step returns 1 = go on waiting, -1 = finished or dead. */
static int step_echo(int ep, struct peer *p)
{
	for (int i = 0; i < 16; i++) {
		unsigned char room[ECHO_ROOM];
		ssize_t n, sent;

		if (p->held) {
			int done = flush(p);

			if (done < 0)
				return -1;
			if (!done) {
				arm(ep, p, EPOLLOUT);
				return 1;
			}
		}
		n = recv(p->fd, room, sizeof(room), 0);
		if (n < 0 && errno == EAGAIN)
			break;
		if (n <= 0)
			return -1;
		sent = send(p->fd, room, (size_t)n, MSG_NOSIGNAL);
		if (sent < 0 && errno != EAGAIN)
			return -1;
		if (sent < 0)
			sent = 0;
		if (sent < n && hold(p, room + sent, (size_t)(n - sent)))
			return -1;
		if (!p->held && n < (ssize_t)sizeof(room))
			break;
	}
	arm(ep, p, p->held ? EPOLLOUT : EPOLLIN);
	return 1;
}

static int step_sink(int ep, struct peer *p)
{
	for (int i = 0; !p->eof && i < 8; i++) {
		ssize_t n = recv(p->fd, block, sizeof(block), 0);

		if (n < 0)
			return errno == EAGAIN ? 1 : -1;
		p->count += (uint64_t)n;
		p->eof = n == 0;
	}
	if (!p->eof)
		return 1;
	if (!p->held && hold_count(p))
		return -1;
	if (flush(p))
		return -1;
	arm(ep, p, EPOLLOUT);
	return 1;
}

static int step_source(int ep, struct peer *p, uint32_t write_size)
{
	char byte[64];
	ssize_t n = p->eof ? -1 : recv(p->fd, byte, sizeof(byte), 0);

	if (n == 0)
		p->eof = 1;
	else if (n < 0 && !p->eof && errno != EAGAIN)
		return -1;
	for (int i = 0; !p->eof && i < 8; i++) {
		n = send(p->fd, block, write_size, MSG_NOSIGNAL);
		if (n < 0)
			return errno == EAGAIN ? 1 : -1;
		p->count += (uint64_t)n;
	}
	if (!p->eof)
		return 1;
	if (!p->held && hold_count(p))
		return -1;
	if (flush(p))
		return -1;
	arm(ep, p, EPOLLOUT);
	return 1;
}

static int open_listener(const struct load_addr *addr, int flags)
{
	int fd = socket(addr->ss.ss_family, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);
	int one = 1;

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	setsockopt(fd, IPPROTO_TCP, 1 /* TCP_NODELAY */, &one, sizeof(one));
	if (bind(fd, (const struct sockaddr *)&addr->ss, addr->len) || listen(fd, 4096))
		load_die("listen on port %u: %s", ntohs(((const struct sockaddr_in *)&addr->ss)->sin_port),
			 strerror(errno));
	return fd;
}

static struct peer *listen_on(char *spec)
{
	static const char *const names[] = { "echo", "sink", "source" };
	char *eq = strchr(spec, '=');
	struct peer *p = calloc(1, sizeof(*p));
	struct load_addr addr;
	size_t i;

	if (!p || !eq)
		load_die("serve wants SERVICE=ADDR, got '%s'", spec);
	*eq = '\0';
	for (i = 0; i < 3 && strcmp(spec, names[i]); i++)
		;
	if (i == 3 || load_parse_addr(eq + 1, &addr))
		load_die("unknown service or address: %s=%s", spec, eq + 1);
	p->service = (enum load_service)i;
	p->listener = 1;
	p->fd = open_listener(&addr, SOCK_NONBLOCK);
	return p;
}

int load_echo(const char *address, uint32_t seconds)
{
	unsigned char room[ECHO_ROOM];
	struct load_addr addr;
	ssize_t n;
	int listener, fd;

	if (load_parse_addr(address, &addr))
		load_die("not an address: %s", address);
	listener = open_listener(&addr, 0);
	alarm(seconds); /* ends the program */
	printf("{\"ready\": true}\n");
	fflush(stdout);
	while ((fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) >= 0) {
		while ((n = recv(fd, room, sizeof(room), 0)) > 0)
			if (send(fd, room, (size_t)n, MSG_NOSIGNAL) != n)
				break;
		close(fd);
	}
	return 1;
}

int load_serve(char **specs, int n_specs, uint32_t write_size, uint32_t seconds)
{
	uint64_t end = load_now_ns() + seconds * 1000000000ull;
	int ep = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event ev, events[256];
	sigset_t stop;
	int sig;

	if (n_specs < 1 || n_specs > MAX_LISTENERS)
		load_die("serve wants 1 to %d of SERVICE=ADDR", MAX_LISTENERS);
	sigemptyset(&stop);
	sigaddset(&stop, SIGTERM);
	sigaddset(&stop, SIGINT);
	sigprocmask(SIG_BLOCK, &stop, NULL);
	sig = signalfd(-1, &stop, SFD_CLOEXEC | SFD_NONBLOCK);
	ev = (struct epoll_event){ .events = EPOLLIN, .data.ptr = NULL };
	epoll_ctl(ep, EPOLL_CTL_ADD, sig, &ev);
	for (int i = 0; i < n_specs; i++) {
		struct peer *p = listen_on(specs[i]);

		ev = (struct epoll_event){ .events = EPOLLIN, .data.ptr = p };
		epoll_ctl(ep, EPOLL_CTL_ADD, p->fd, &ev);
	}
	printf("{\"ready\": true}\n");
	fflush(stdout);

	while (load_now_ns() < end) {
		int n = epoll_wait(ep, events, 256, 1000);

		for (int i = 0; i < n; i++) {
			struct peer *p = events[i].data.ptr;
			int alive = 1;

			if (!p)
				return 0;
			if (p->listener) {
				accept_all(ep, p);
				continue;
			}
			switch (p->service) {
			case LOAD_ECHO:
				alive = step_echo(ep, p);
				break;
			case LOAD_SINK:
				alive = step_sink(ep, p);
				break;
			case LOAD_SOURCE:
				alive = step_source(ep, p, write_size);
				break;
			}
			if (alive < 0)
				drop(p);
		}
	}
	return 0;
}
