/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* The kernel's own structures, as far as the shortcut must look into them. Nothing else in bpf/ does: all other
 * programs live on UAPI contexts. CO-RE: the loader moves each field to where the running kernel has it, and an object
 * whose field is not there does not load (`qanat check` says so).
 */
#ifndef QANAT_KERNEL_H
#define QANAT_KERNEL_H

#include <linux/bpf.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#define QN_SOCK_RCVBUF_LOCK 2 /* sk_userlocks: the application chose SO_RCVBUF itself */
#define QN_SPARE_PAGES 64     /* for messages of other sockets that are charged meanwhile */
#define QN_SHUTDOWN_MASK 3    /* sk_shutdown: both directions */

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct proto {
	unsigned long *memory_pressure;
};

struct page_counter {
	struct {
		long counter;
	} usage;
	unsigned long max;
};

struct mem_cgroup {
	struct page_counter memory;
	struct page_counter tcpmem; /* of the first version */
};

struct sock_common {
	struct proto *skc_prot;
	struct {
		__s64 counter;
	} skc_cookie;
};

struct sock {
	struct sock_common __sk_common;
	struct {
		struct {
			int counter;
		} rmem_alloc;
	} sk_backlog;
	int sk_rcvbuf;
	struct mem_cgroup *sk_memcg;
	__u8 sk_userlocks;
	__u8 sk_shutdown;
};

struct tcp_sock {
	__u32 copied_seq;
	__u32 write_seq;
	_Bool is_mptcp;
};

#pragma clang attribute pop

/* What the far end of a joined flow says of itself at this moment. */
struct qn_receiver {
	__u64 cookie;     /* 0 = unreadable */
	__u32 copied_seq; /* TCP bytes that the application has read, as a sequence number */
	__u32 queued;     /* bytes charged to the receive buffer */
	__u32 buffer;     /* the receive buffer's size */
	__u32 is_fixed;   /* ... which the application chose */
	__u32 is_closed;  /* it will read no more and send no more */
};

/* at: address of a struct tcp_sock, perhaps of a socket that is gone: reads of it never fault and *r is garbage then,
 * which the cookie shows.
 */
static __always_inline void qn_read_receiver(__u64 at, struct qn_receiver *r)
{
	struct tcp_sock *tp = (void *)at;
	struct sock *sk = (void *)at;
	__u8 locks = 0, shut = 0;
	int value = 0;

	if (bpf_core_read(&r->copied_seq, sizeof(r->copied_seq), &tp->copied_seq) ||
	    bpf_core_read(&value, sizeof(value), &sk->sk_backlog.rmem_alloc.counter))
		return;
	r->queued = (__u32)value;
	if (bpf_core_read(&value, sizeof(value), &sk->sk_rcvbuf) ||
	    bpf_core_read(&locks, sizeof(locks), &sk->sk_userlocks) ||
	    bpf_core_read(&shut, sizeof(shut), &sk->sk_shutdown))
		return;
	r->buffer = (__u32)value;
	r->is_closed = shut == QN_SHUTDOWN_MASK;
	r->is_fixed = locks & QN_SOCK_RCVBUF_LOCK;
	/* Last: what was read above belonged to this socket. */
	bpf_core_read(&r->cookie, sizeof(r->cookie), &sk->__sk_common.skc_cookie.counter);
}

static __always_inline int qn_is_counter_near_max(const struct page_counter *c, __u32 pages)
{
	unsigned long max = 0;
	long usage = 0;

	return bpf_core_read(&usage, sizeof(usage), &c->usage.counter) || bpf_core_read(&max, sizeof(max), &c->max) ||
	       (unsigned long)usage + pages > max;
}

/* The memory cgroup that the receiver at `at` is charged to has no room for so many bytes: handing them over could fail,
 * which send() would report. Sockets have no cgroup where socket memory is not limited.
 */
static __always_inline int qn_is_cgroup_short_of_memory(__u64 at, __u32 bytes)
{
	struct sock *sk = (void *)at;
	__u32 pages = (bytes >> 12) + QN_SPARE_PAGES;
	__u64 group = 0;

	if (!bpf_core_field_exists(sk->sk_memcg) || bpf_core_read(&group, sizeof(group), &sk->sk_memcg))
		return 0;
	group &= ~7ULL; /* flags */
	if (!group)
		return 0;
	if (bpf_core_field_exists(((struct mem_cgroup *)0)->tcpmem) &&
	    qn_is_counter_near_max(&((struct mem_cgroup *)group)->tcpmem, pages))
		return 1;
	return qn_is_counter_near_max(&((struct mem_cgroup *)group)->memory, pages);
}

/* TCP as a whole is short of memory: handing a message over could fail, which send() would report. */
static __always_inline int qn_is_tcp_short_of_memory(const struct tcp_sock *tp)
{
	struct sock *sk = (void *)tp;
	unsigned long *flag = 0, value = 0;
	struct proto *prot = 0;

	bpf_core_read(&prot, sizeof(prot), &sk->__sk_common.skc_prot);
	bpf_core_read(&flag, sizeof(flag), &prot->memory_pressure);
	bpf_probe_read_kernel(&value, sizeof(value), flag);
	return value != 0;
}

#endif
