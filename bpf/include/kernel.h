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

struct timespec64 {
	__s64 tv_sec; /* any structure that begins with 64 bits: qn_word_at */
};

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
	void *sk_user_data; /* of a socket in a socket map its struct sk_psock */
	__u8 sk_userlocks;
	__u8 sk_shutdown;
};

struct list_head {
	struct list_head *next, *prev;
};

struct sk_psock {
	struct list_head ingress_msg; /* of struct sk_msg: what the reader gets, in order */
};

struct sk_msg {
	struct sk_buff *skb; /* it came as TCP; else it was moved */
	struct sock *sk;     /* ... by this socket itself */
	struct list_head list;
};

struct sk_buff {
	char cb[48]; /* struct tcp_skb_cb */
};

struct tcp_skb_cb {
	__u32 seq, end_seq;
};

struct tcp_sock {
	__u32 copied_seq;
	__u32 write_seq;
	_Bool is_mptcp;
};

#pragma clang attribute pop

extern void *bpf_cast_to_kern_ctx(void *ctx) __ksym;

/* What the far end of a joined flow says of itself at this moment. */
struct qn_receiver {
	__u64 cookie;     /* 0 = unreadable */
	__u32 copied_seq; /* TCP bytes that the application has read, as a sequence number */
	__u32 queued;     /* bytes charged to the receive buffer */
	__u32 buffer;     /* the receive buffer's size */
	__u32 is_fixed;   /* ... which the application chose */
	__u32 is_closed;  /* it will read no more and send no more */
};

/* A number read as the address of one of the kernel's structures. Loads through it never fault: where there is nothing they
 * give 0.
 */
extern void *bpf_rdonly_cast(const void *obj, __u32 btf_id) __ksym;
#define QN_KERNEL_AT(type, at) ((struct type *)bpf_rdonly_cast((void *)(at), bpf_core_type_id_kernel(struct type)))

/* 64 bits as a number, where a field's own type would make them a pointer. */
static __always_inline __u64 qn_word_at(__u64 at)
{
	return (__u64)QN_KERNEL_AT(timespec64, at)->tv_sec;
}

#define QN_POINTER_AT(type, at, field) (qn_word_at((at) + bpf_core_field_offset(struct type, field)))

/* at: address of a struct tcp_sock, perhaps of a socket that is gone: *r is garbage then, which the cookie shows. */
static __always_inline void qn_read_receiver(__u64 at, struct qn_receiver *r)
{
	struct tcp_sock *tp = QN_KERNEL_AT(tcp_sock, at);
	struct sock *sk = QN_KERNEL_AT(sock, at);

	r->copied_seq = tp->copied_seq;
	r->queued = (__u32)sk->sk_backlog.rmem_alloc.counter;
	r->buffer = (__u32)sk->sk_rcvbuf;
	r->is_fixed = sk->sk_userlocks & QN_SOCK_RCVBUF_LOCK;
	r->is_closed = sk->sk_shutdown == QN_SHUTDOWN_MASK;
	barrier();
	/* Last: what was read above belonged to this socket. */
	r->cookie = (__u64)sk->__sk_common.skc_cookie.counter;
}

/* The last message in the queue of the socket at `at` came as TCP and ends at `seq`. The message may be freed while it is
 * looked at, by being read: it had been in the queue then, which is all that is asked.
 */
static __always_inline int qn_is_last_in_queue(__u64 at, __u32 seq)
{
	__u64 psock, last, msg, skb;

	psock = QN_POINTER_AT(sock, at, sk_user_data) & ~7ULL; /* flags in the low bits */
	if (!psock)
		return 0;
	last = QN_POINTER_AT(sk_psock, psock, ingress_msg.prev);
	if (last == psock + bpf_core_field_offset(struct sk_psock, ingress_msg))
		return 0; /* empty */
	msg = last - bpf_core_field_offset(struct sk_msg, list);
	skb = QN_POINTER_AT(sk_msg, msg, skb);
	if (QN_POINTER_AT(sk_msg, msg, sk) != at || !skb)
		return 0;
	return QN_KERNEL_AT(tcp_skb_cb, skb + bpf_core_field_offset(struct sk_buff, cb))->end_seq == seq;
}

/* Of a segment that TCP has queued. */
static __always_inline struct tcp_skb_cb *qn_tcp_cb(struct __sk_buff *ctx)
{
	struct sk_buff *skb = bpf_cast_to_kern_ctx(ctx);

	return QN_KERNEL_AT(tcp_skb_cb, &skb->cb);
}

/* The memory cgroup that the receiver at `at` is charged to has no room for so many bytes: handing them over could fail,
 * which send() would report. Sockets have no cgroup where socket memory is not limited.
 */
static __always_inline int qn_is_cgroup_short_of_memory(__u64 at, __u32 bytes)
{
	__u64 pages = (bytes >> 12) + QN_SPARE_PAGES, group;
	struct mem_cgroup *memcg;

	if (!bpf_core_field_exists(struct sock, sk_memcg))
		return 0;
	group = QN_POINTER_AT(sock, at, sk_memcg) & ~7ULL; /* flags in the low bits */
	if (!group)
		return 0;
	memcg = QN_KERNEL_AT(mem_cgroup, group);
	if (bpf_core_field_exists(memcg->tcpmem) &&
	    (__u64)memcg->tcpmem.usage.counter + pages > (__u64)memcg->tcpmem.max)
		return 1;
	return (__u64)memcg->memory.usage.counter + pages > (__u64)memcg->memory.max;
}

/* TCP as a whole is short of memory: handing a message over could fail, which send() would report. */
static __always_inline int qn_is_tcp_short_of_memory(__u64 at)
{
	__u64 proto = QN_POINTER_AT(sock, at, __sk_common.skc_prot);

	return qn_word_at(QN_POINTER_AT(proto, proto, memory_pressure)) != 0;
}

#endif
