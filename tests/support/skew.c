/* SPDX-License-Identifier: Apache-2.0 */
/* Preloaded into the mesh's programs by tests: a wall clock that is off by as much as a file says, for Python, OpenSSL
 * and whoever else asks libc. Time namespaces do not cover the wall clock. Only tests build this.
 *
 * $SKEW_DIR/<name> holds one int64, nanoseconds to add, and may change at any moment. <name> is "controlplane", or
 * "ztunnel.<node>", by the process's command line; other processes keep the real time. Monotonic clocks are left alone.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL

static const volatile int64_t *skew;

static const char *next_word(const char *word, const char *end)
{
	word += strlen(word) + 1;
	return word < end ? word : NULL;
}

__attribute__((constructor)) static void find_own_skew(void)
{
	char line[8192], path[512], name[256] = "";
	const char *dir = getenv("SKEW_DIR"), *program = NULL;
	int fd = dir ? open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC) : -1;
	ssize_t len = fd < 0 ? 0 : read(fd, line, sizeof(line) - 1);
	void *at;

	if (fd >= 0)
		close(fd);
	if (len <= 0)
		return;
	line[len] = 0;
	for (const char *w = line; w; w = next_word(w, line + len)) {
		const char *after = next_word(w, line + len);

		if (!strcmp(w, "-m") && after)
			program = after;
		if (!strcmp(w, "--node") && after && program && !strcmp(program, "ztunnel"))
			snprintf(name, sizeof(name), "ztunnel.%s", after);
	}
	if (program && !strcmp(program, "controlplane"))
		snprintf(name, sizeof(name), "controlplane");
	if (!*name)
		return;
	snprintf(path, sizeof(path), "%s/%s", dir, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	at = mmap(NULL, sizeof(*skew), PROT_READ, MAP_SHARED, fd, 0);
	close(fd);
	if (at != MAP_FAILED)
		skew = at;
}

int clock_gettime(clockid_t id, struct timespec *out)
{
	int err = (int)syscall(SYS_clock_gettime, id, out);

	if (!err && skew && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) {
		int64_t ns = (int64_t)out->tv_sec * SECOND + out->tv_nsec + *skew;

		out->tv_sec = (time_t)(ns / SECOND);
		out->tv_nsec = (long)(ns % SECOND);
	}
	return err;
}

int gettimeofday(struct timeval *restrict out, void *restrict zone)
{
	struct timespec now;

	(void)zone;
	clock_gettime(CLOCK_REALTIME, &now);
	out->tv_sec = now.tv_sec;
	out->tv_usec = now.tv_nsec / 1000;
	return 0;
}

time_t time(time_t *out)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	if (out)
		*out = now.tv_sec;
	return now.tv_sec;
}
