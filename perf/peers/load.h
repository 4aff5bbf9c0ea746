/* SPDX-License-Identifier: Apache-2.0 */
/* The load tool: what its client (load.c) and its server (load_server.c) share. One thread, one epoll loop; every run
 * is bounded in connections, bytes and time.
 *
 * The wire is plain bytes, so that it works through any proxy:
 *   echo    every byte comes back
 *   sink    the client writes and half-closes; the server answers with the number of bytes it got (8 bytes, little
 *           endian) and closes
 *   source  the server writes until the client half-closes, then the number of bytes written (8 bytes) and closes
 */
#ifndef LOAD_H
#define LOAD_H

#include <netinet/in.h>
#include <stdint.h>
#include <sys/socket.h>

#define LOAD_MAX_CONNS 20000
#define LOAD_MAX_SECONDS 600
#define LOAD_BLOCK (1u << 20) /* largest single write */

enum load_service { LOAD_ECHO, LOAD_SINK, LOAD_SOURCE };

struct load_addr {
	struct sockaddr_storage ss;
	socklen_t len;
};

/* CLOCK_MONOTONIC. */
uint64_t load_now_ns(void);
/* "1.2.3.4:80" or "[::1]:80". Returns 0 or -1. */
int load_parse_addr(const char *text, struct load_addr *out);
/* Message on stderr, exit status 1. */
_Noreturn void load_die(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* `serve SERVICE=ADDR... `: until SIGTERM, SIGINT or `seconds`. Prints {"ready": true} once it listens. Returns the exit status. */
int load_serve(char **specs, int n_specs, uint32_t write_size, uint32_t seconds);
/* `echo ADDR`: one connection at a time, by calls that block; until `seconds` are over or a signal. */
int load_echo(const char *addr, uint32_t seconds);

#endif
