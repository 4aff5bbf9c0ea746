/* SPDX-License-Identifier: Apache-2.0 */
/* Client side of the load tool and its command line. One JSON object on stdout per run. See load.h for the wire.
 *
 *   load serve SERVICE=ADDR...                 [--size W] [--seconds S]
 *   load upload   ADDR --conns N --seconds S   [--size W]   to a sink
 *   load download ADDR --conns N --seconds S                from a source
 *   load pingpong ADDR --conns N --seconds S   [--size W]   to an echo
 *   load rate     ADDR --conns N --seconds S                to an echo: open, one byte there and back, close
 *   load idle     ADDR --conns N --seconds S                to an echo: hold open until stdin ends, then use again
 *   load blocking ADDR --seconds S             [--size W]   to an echo, one connection: ping-pong by calls that block,
 *                                                           two a round trip and no epoll
 *   load echo     ADDR                         [--seconds S] the like at the other end, a connection at a time
 *
 * After --seconds a run asks its peers to finish, and gives up GRACE_S later: what is open then is an error.
 */
#define _GNU_SOURCE
#include "load.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#define GRACE_S 10
#define WARMUP_NS 300000000ull
#define MAX_SAMPLES (8u << 20)

enum mode { UPLOAD, DOWNLOAD, PINGPONG, RATE, IDLE, BLOCKING };
static const char *const mode_names[] = { "upload", "download", "pingpong", "rate", "idle", "blocking" };

struct conn {
	int fd;
	int connected;
	int finishing;    /* upload, download: half-closed, the count is awaited */
	int greeted;      /* idle: first byte came back */
	uint64_t sent_ns; /* pingpong, rate: when this exchange began */
	uint64_t bytes;   /* payload sent (upload) or received */
	uint64_t exchanges;
	size_t to_send, to_recv; /* of the current exchange */
	unsigned char tail[8];   /* last bytes received */
};

struct run {
	enum mode mode;
	struct load_addr to;
	uint32_t conns, seconds, size;
	int ep;
	struct conn *conn;
	uint64_t begin, stop, end;
	uint32_t open, failed, mismatched;
	uint64_t done, bytes, first_errno;
	uint32_t *samples; /* ns, capped at 4.29 s */
	uint32_t n_samples;
};

static unsigned char block[LOAD_BLOCK];

uint64_t load_now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

_Noreturn void load_die(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	fputs("load: ", stderr);
	vfprintf(stderr, format, args);
	fputc('\n', stderr);
	va_end(args);
	exit(1);
}

int load_parse_addr(const char *text, struct load_addr *out)
{
	const char *colon = strrchr(text, ':');
	char host[64];
	size_t len;
	long port;

	if (!colon)
		return -1;
	port = strtol(colon + 1, NULL, 10);
	len = (size_t)(colon - text);
	if (text[0] == '[' && len > 2 && text[len - 1] == ']') {
		text++;
		len -= 2;
	}
	if (len >= sizeof(host) || port < 1 || port > 65535)
		return -1;
	memcpy(host, text, len);
	host[len] = '\0';
	memset(out, 0, sizeof(*out));
	struct sockaddr_in *v4 = (struct sockaddr_in *)&out->ss;
	struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&out->ss;
	if (inet_pton(AF_INET, host, &v4->sin_addr) == 1) {
		v4->sin_family = AF_INET;
		v4->sin_port = htons((uint16_t)port);
		out->len = sizeof(*v4);
		return 0;
	}
	if (inet_pton(AF_INET6, host, &v6->sin6_addr) == 1) {
		v6->sin6_family = AF_INET6;
		v6->sin6_port = htons((uint16_t)port);
		out->len = sizeof(*v6);
		return 0;
	}
	return -1;
}

static void watch(const struct run *r, struct conn *c, int op, uint32_t events)
{
	struct epoll_event ev = { .events = events, .data.ptr = c };

	epoll_ctl(r->ep, op, c->fd, &ev);
}

static void begin_exchange(const struct run *r, struct conn *c)
{
	c->sent_ns = load_now_ns();
	c->to_send = c->to_recv = r->mode == PINGPONG ? r->size : 1;
}

static int dial(struct run *r, struct conn *c)
{
	int one = 1;

	memset(c, 0, sizeof(*c));
	c->fd = socket(r->to.ss.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (c->fd < 0)
		return -1;
	setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	begin_exchange(r, c);
	if (connect(c->fd, (struct sockaddr *)&r->to.ss, r->to.len) && errno != EINPROGRESS) {
		close(c->fd);
		return -1;
	}
	watch(r, c, EPOLL_CTL_ADD, EPOLLOUT);
	r->open++;
	return 0;
}

static void sample(struct run *r, uint64_t ns)
{
	if (r->n_samples < MAX_SAMPLES && load_now_ns() - r->begin > WARMUP_NS)
		r->samples[r->n_samples++] = ns > UINT32_MAX ? UINT32_MAX : (uint32_t)ns;
}

static void finish(struct run *r, struct conn *c, int error)
{
	close(c->fd);
	c->fd = -1;
	r->open--;
	if (error) {
		r->failed++;
		if (!r->first_errno)
			r->first_errno = (uint64_t)error;
	} else {
		r->done++;
	}
	/* A refused attempt is not repeated: a dead target must not become a busy loop. */
	if (r->mode == RATE && !error && load_now_ns() < r->stop && dial(r, c))
		r->failed++;
}

static uint64_t tail_count(const struct conn *c)
{
	uint64_t n = 0;

	for (int i = 7; i >= 0; i--)
		n = n << 8 | c->tail[i];
	return n;
}

static void keep_tail(struct conn *c, const unsigned char *data, size_t len)
{
	if (len >= 8) {
		memcpy(c->tail, data + len - 8, 8);
		return;
	}
	memmove(c->tail, c->tail + len, 8 - len);
	memcpy(c->tail + 8 - len, data, len);
}

static void half_close(const struct run *r, struct conn *c)
{
	c->finishing = 1;
	shutdown(c->fd, SHUT_WR);
	watch(r, c, EPOLL_CTL_MOD, EPOLLIN);
}

/* Upload: write until the time is up, then wait for the peer's count. */
static void step_upload(struct run *r, struct conn *c)
{
	unsigned char reply[64];
	ssize_t n;

	for (int i = 0; !c->finishing && i < 8; i++) {
		n = send(c->fd, block, r->size, MSG_NOSIGNAL);
		if (n < 0) {
			if (errno != EAGAIN)
				finish(r, c, errno);
			return;
		}
		c->bytes += (uint64_t)n;
		if (load_now_ns() >= r->stop)
			half_close(r, c);
	}
	if (!c->finishing)
		return;
	while ((n = recv(c->fd, reply, sizeof(reply), 0)) > 0)
		keep_tail(c, reply, (size_t)n);
	if (n < 0 && errno == EAGAIN)
		return;
	r->bytes += c->bytes;
	if (n == 0 && tail_count(c) != c->bytes)
		r->mismatched++;
	finish(r, c, n < 0 ? errno : 0);
}

/* Download: read until the time is up, ask for the end, check the peer's count. */
static void step_download(struct run *r, struct conn *c)
{
	for (int i = 0; i < 8; i++) {
		ssize_t n = recv(c->fd, block, sizeof(block), 0);

		if (n < 0 && errno == EAGAIN)
			break;
		if (n <= 0) {
			r->bytes += c->bytes;
			if (n == 0 && tail_count(c) != c->bytes - 8)
				r->mismatched++;
			finish(r, c, n < 0 ? errno : 0);
			return;
		}
		keep_tail(c, block, (size_t)n);
		c->bytes += (uint64_t)n;
	}
	if (!c->finishing && load_now_ns() >= r->stop)
		half_close(r, c);
}

/* Ping-pong, rate, idle: send r->size bytes or one, wait for as many. */
static void step_exchange(struct run *r, struct conn *c)
{
	unsigned char room[LOAD_BLOCK / 16];

	for (;;) {
		ssize_t n;

		while (c->to_send) {
			n = send(c->fd, block, c->to_send, MSG_NOSIGNAL);
			if (n < 0 && errno == EAGAIN) {
				watch(r, c, EPOLL_CTL_MOD, EPOLLOUT | EPOLLIN);
				return;
			}
			if (n < 0) {
				finish(r, c, errno);
				return;
			}
			c->to_send -= (size_t)n;
		}
		while (c->to_recv) {
			n = recv(c->fd, room, c->to_recv < sizeof(room) ? c->to_recv : sizeof(room), 0);
			if (n < 0 && errno == EAGAIN)
				return;
			if (n <= 0) {
				finish(r, c, n ? errno : ECONNRESET);
				return;
			}
			c->to_recv -= (size_t)n;
		}
		c->exchanges++;
		sample(r, load_now_ns() - c->sent_ns);
		if (r->mode == IDLE && !c->greeted) {
			c->greeted = 1;
			c->to_recv = 1; /* waits here: nothing was sent */
			r->done++;
			return;
		}
		if (r->mode != PINGPONG || load_now_ns() >= r->stop) {
			finish(r, c, 0);
			return;
		}
		begin_exchange(r, c);
	}
}

static void on_event(struct run *r, struct conn *c)
{
	int error = 0;
	socklen_t len = sizeof(error);

	if (!c->connected) {
		getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &len);
		if (error) {
			finish(r, c, error);
			return;
		}
		c->connected = 1;
		if (r->mode == PINGPONG)
			begin_exchange(r, c);
		watch(r, c, EPOLL_CTL_MOD, r->mode == UPLOAD ? EPOLLOUT : EPOLLIN);
	}
	switch (r->mode) {
	case UPLOAD:
		step_upload(r, c);
		break;
	case DOWNLOAD:
		step_download(r, c);
		break;
	case PINGPONG:
	case RATE:
	case IDLE:
	case BLOCKING: /* has no events */
		step_exchange(r, c);
		break;
	}
}

static void loop_until(struct run *r, uint64_t end, uint32_t until_open, uint64_t until_done)
{
	struct epoll_event events[256];

	while (load_now_ns() < end && r->open > until_open && r->done < until_done) {
		int n = epoll_wait(r->ep, events, 256, 200);

		for (int i = 0; i < n; i++) {
			struct conn *c = events[i].data.ptr;

			if (c->fd >= 0)
				on_event(r, c);
		}
		if (n == 0 && load_now_ns() >= r->stop) /* a stalled transfer still has to be told that it is over */
			for (uint32_t i = 0; i < r->conns; i++)
				if (r->conn[i].fd >= 0 && r->conn[i].connected && !r->conn[i].finishing &&
				    r->mode == DOWNLOAD)
					half_close(r, &r->conn[i]);
	}
}

/* Hold all connections until stdin ends or the time is up, then use each once more. */
static void hold_idle(struct run *r)
{
	struct epoll_event ev = { .events = EPOLLIN, .data.ptr = NULL }, got;
	int waiter = epoll_create1(EPOLL_CLOEXEC);

	loop_until(r, r->end, 0, r->conns);
	printf("{\"open\": %u, \"failed\": %u}\n", r->open, r->failed);
	fflush(stdout);
	if (!epoll_ctl(waiter, EPOLL_CTL_ADD, STDIN_FILENO, &ev))
		epoll_wait(waiter, &got, 1, (int)(r->seconds * 1000));
	close(waiter);
	r->done = 0;
	for (uint32_t i = 0; i < r->conns; i++) {
		struct conn *c = &r->conn[i];

		if (c->fd < 0)
			continue;
		begin_exchange(r, c);
		step_exchange(r, c);
	}
	r->end = load_now_ns() + GRACE_S * 1000000000ull;
	loop_until(r, r->end, 0, UINT64_MAX);
}

static int exchange_blocking(const struct run *r, int fd)
{
	unsigned char room[LOAD_BLOCK / 16];
	size_t left = r->size;
	ssize_t n = send(fd, block, r->size, MSG_NOSIGNAL);

	if (n != (ssize_t)r->size)
		return n < 0 ? errno : EPIPE;
	while (left) {
		n = recv(fd, room, left < sizeof(room) ? left : sizeof(room), 0);
		if (n <= 0)
			return n < 0 ? errno : ECONNRESET;
		left -= (size_t)n;
	}
	return 0;
}

static void run_blocking(struct run *r)
{
	struct timeval patience = { .tv_sec = GRACE_S };
	struct conn *c = r->conn;
	int error = 0;

	c->fd = socket(r->to.ss.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (c->fd < 0)
		load_die("socket: %s", strerror(errno));
	setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &(int){ 1 }, sizeof(int));
	setsockopt(c->fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	r->open++;
	if (connect(c->fd, (struct sockaddr *)&r->to.ss, r->to.len))
		error = errno;
	while (!error && load_now_ns() < r->stop) {
		c->sent_ns = load_now_ns();
		error = exchange_blocking(r, c->fd);
		sample(r, load_now_ns() - c->sent_ns);
	}
	finish(r, c, error);
}

static int by_value(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

static double percentile_us(const struct run *r, double share)
{
	if (!r->n_samples)
		return 0;
	return r->samples[(uint32_t)(share * (r->n_samples - 1))] / 1000.0;
}

static void report(const struct run *r, uint64_t took_ns)
{
	double s = (double)took_ns / 1e9, sum = 0;

	qsort(r->samples, r->n_samples, sizeof(*r->samples), by_value);
	for (uint32_t i = 0; i < r->n_samples; i++)
		sum += r->samples[i];
	printf("{\"mode\": \"%s\", \"seconds\": %.3f, \"conns\": %u, \"done\": %llu, \"failed\": %u, \"mismatched\": "
	       "%u, "
	       "\"unfinished\": %u, \"errno\": %llu, \"bytes\": %llu, \"mb_per_s\": %.2f, \"per_s\": %.1f, "
	       "\"samples\": %u, "
	       "\"mean_us\": %.1f, \"p50_us\": %.1f, \"p90_us\": %.1f, \"p99_us\": %.1f, \"max_us\": %.1f}\n",
	       mode_names[r->mode], s, r->conns, (unsigned long long)r->done, r->failed, r->mismatched, r->open,
	       (unsigned long long)r->first_errno, (unsigned long long)r->bytes, (double)r->bytes / s / 1e6,
	       (double)r->done / s, r->n_samples, r->n_samples ? sum / r->n_samples / 1000.0 : 0.0,
	       percentile_us(r, 0.5), percentile_us(r, 0.9), percentile_us(r, 0.99), percentile_us(r, 1));
}

static int run_client(struct run *r)
{
	uint64_t took;

	r->ep = epoll_create1(EPOLL_CLOEXEC);
	r->conn = calloc(r->conns, sizeof(*r->conn));
	r->samples = malloc(MAX_SAMPLES * sizeof(*r->samples));
	if (r->ep < 0 || !r->conn || !r->samples)
		load_die("out of memory");
	for (uint32_t i = 0; i < r->conns; i++)
		r->conn[i].fd = -1;
	r->begin = load_now_ns();
	r->stop = r->begin + r->seconds * 1000000000ull;
	r->end = r->stop + GRACE_S * 1000000000ull;
	for (uint32_t i = 0; r->mode != BLOCKING && i < r->conns; i++) {
		if (dial(r, &r->conn[i])) {
			r->failed++;
			r->first_errno = (uint64_t)errno;
		}
		if (r->mode == IDLE && i % 64 == 63) /* do not overrun the accept queue */
			loop_until(r, r->end, 0, i + 1);
	}
	if (r->mode == BLOCKING)
		run_blocking(r);
	else if (r->mode == IDLE)
		hold_idle(r);
	else
		loop_until(r, r->end, 0, UINT64_MAX);
	took = load_now_ns() - r->begin;
	report(r, took);
	return r->failed || r->mismatched || r->open ? 2 : 0;
}

static uint32_t number(const char *text, uint32_t max)
{
	long n = strtol(text, NULL, 10);

	if (n < 1 || n > (long)max)
		load_die("'%s' is not a number from 1 to %u", text, max);
	return (uint32_t)n;
}

int main(int argc, char **argv)
{
	struct run r = { .conns = 1, .seconds = 5, .size = 65536 };
	char *plain[18];
	int n_plain = 0, sized = 0;

	for (int i = 1; i < argc; i++) {
		if (strncmp(argv[i], "--", 2)) {
			if (n_plain == 18)
				load_die("too many arguments");
			plain[n_plain++] = argv[i];
			continue;
		}
		if (i + 1 == argc)
			load_die("%s wants a value", argv[i]);
		if (!strcmp(argv[i], "--conns")) {
			r.conns = number(argv[++i], LOAD_MAX_CONNS);
		} else if (!strcmp(argv[i], "--seconds")) {
			r.seconds = number(argv[++i], LOAD_MAX_SECONDS);
		} else if (!strcmp(argv[i], "--size")) {
			r.size = number(argv[++i], LOAD_BLOCK);
			sized = 1;
		} else {
			load_die("unknown option %s", argv[i]);
		}
	}
	if (n_plain >= 2 && !strcmp(plain[0], "serve"))
		return load_serve(plain + 1, n_plain - 1, r.size, r.seconds);
	if (n_plain == 2 && !strcmp(plain[0], "echo"))
		return load_echo(plain[1], r.seconds);
	if (n_plain != 2 || load_parse_addr(plain[1], &r.to))
		load_die("usage: load serve SERVICE=ADDR... | load upload|download|pingpong|rate|idle|blocking|echo "
			 "ADDR");
	for (size_t m = 0; m < sizeof(mode_names) / sizeof(*mode_names); m++) {
		if (strcmp(plain[0], mode_names[m]))
			continue;
		r.mode = (enum mode)m;
		if ((r.mode == PINGPONG || r.mode == BLOCKING) && !sized)
			r.size = 64;
		return run_client(&r);
	}
	load_die("unknown mode %s", plain[0]);
}
