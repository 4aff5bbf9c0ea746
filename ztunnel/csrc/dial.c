/* SPDX-License-Identifier: Apache-2.0 */
/* Sockets inside pods: setns(pod), socket(), setns(back), and the mark that says whose they are. */
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "engine.h"
#include "qanat.h"

#define KEEPALIVE_S 180
#define KEEPALIVE_PROBES 9

static int socket_in_pod(struct zt_podw *p, int family)
{
	int type = SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC;
	int fd, saved;

	if (p->pod->netns_fd < 0)
		return socket(family, type, 0);
	if (setns(p->pod->netns_fd, CLONE_NEWNET))
		return -1;
	fd = socket(family, type, 0);
	saved = errno;
	/* Going on in a pod's namespace would open the next pod's sockets in it. */
	if (setns(p->w->own_netns, CLONE_NEWNET))
		abort();
	errno = saved;
	return fd;
}

/* Write what BPF is to know about `fd` (map `sockets`, bpf/include/qanat.h). */
static int mark(struct zt_worker *w, int fd, const struct zt_addr *show)
{
	int map = atomic_load_explicit(&w->core->sockets_map, memory_order_acquire);
	struct qn_socket value = { .role = QN_ROLE_ZTUNNEL };
	union bpf_attr attr;
	int key = fd;

	if (map < 0)
		return 0;
	if (show && show->family) {
		memcpy(value.addr.ip, show->ip, sizeof(value.addr.ip));
		value.addr.port = show->port;
		value.addr.family = show->family;
	}
	memset(&attr, 0, sizeof(attr));
	attr.map_fd = (uint32_t)map;
	attr.key = (uint64_t)(uintptr_t)&key;
	attr.value = (uint64_t)(uintptr_t)&value;
	attr.flags = BPF_ANY;
	return (int)syscall(SYS_bpf, BPF_MAP_UPDATE_ELEM, &attr, sizeof(attr));
}

enum zt_reason zt_dial_reason(int sys_errno)
{
	switch (sys_errno) {
	case ECONNREFUSED:
	case ECONNRESET:
		return ZT_R_REFUSED;
	case ETIMEDOUT:
		return ZT_R_TIMEOUT;
	case ENETUNREACH:
	case EHOSTUNREACH:
	case ENETDOWN:
	case EHOSTDOWN:
	case EADDRNOTAVAIL:
	case EACCES:
	case EPERM:
	case EINVAL:
		return ZT_R_UNREACHABLE;
	default:
		return ZT_R_INTERNAL;
	}
}

int zt_socket_error(int fd)
{
	int err = 0;
	socklen_t len = sizeof(err);

	return getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &len) ? errno : err;
}

static void set_options(int fd, bool keepalive)
{
	int on = 1, idle = KEEPALIVE_S, probes = KEEPALIVE_PROBES;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	/* A tunnel has one stream only: an urgent byte is carried in it, or it would be lost. Listeners have this too. */
	setsockopt(fd, SOL_SOCKET, SO_OOBINLINE, &on, sizeof(on));
	if (!keepalive)
		return;
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &idle, sizeof(idle));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof(probes));
	setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
}

int zt_dial(struct zt_podw *p, const struct zt_addr *to, const struct zt_addr *show, bool keepalive, int *out)
{
	struct sockaddr_storage ss;
	socklen_t len = zt_addr_to_sockaddr(to, &ss);
	int fd = socket_in_pod(p, to->family == 6 ? AF_INET6 : AF_INET);
	int err;

	if (fd < 0)
		return -ZT_R_INTERNAL;
	set_options(fd, keepalive);
	if (mark(p->w, fd, show)) {
		close(fd);
		return -ZT_R_INTERNAL; /* unmarked it would be captured, and come back to us */
	}
	if (!connect(fd, (struct sockaddr *)&ss, len)) {
		*out = fd;
		return 1;
	}
	if (errno == EINPROGRESS) {
		/* Over loopback the answer is there before the call returns: ask again instead of waiting a turn. */
		if (!connect(fd, (struct sockaddr *)&ss, len)) {
			*out = fd;
			return 1;
		}
		if (errno == EALREADY || errno == EINPROGRESS) {
			*out = fd;
			return 0;
		}
	}
	err = errno;
	close(fd);
	return -(int)zt_dial_reason(err);
}
