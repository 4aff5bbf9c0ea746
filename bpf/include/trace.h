/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* Layout of what trace.bpf.c reports. Rules as in qanat.h. */
#ifndef QANAT_TRACE_H
#define QANAT_TRACE_H

#include "qanat.h"

enum qn_trace_kind {
	QN_TRACE_CONNECT = 1,     /* connect() was called and its path chosen; `refused` if it fails by that */
	QN_TRACE_ESTABLISHED = 2, /* the other end has answered */
	QN_TRACE_ACCEPT = 3,      /* a handshake with a listener of the pod has ended */
	QN_TRACE_RETRANSMIT = 4,
	QN_TRACE_RESET = 5,  /* cut by a reset or a timeout, of either side */
	QN_TRACE_FAILED = 6, /* never answered, or refused by the other end */
	QN_TRACE_CLOSE = 7,  /* ended in order */
};

/* Ring buffer `trace_events`. Full: lost, counted in `trace_lost` (per-CPU array of 1). */
#define QN_TRACE_BYTES (256 * 1024)
struct qn_trace {
	__u64 time_ns; /* CLOCK_MONOTONIC */
	__u64 netns;   /* cookie of the socket's namespace */
	__u64 src;     /* cookie of the client's namespace, if known */
	__u64 dst;     /* cookie of the server's, if known */
	__u64 socket;  /* cookie */
	__u64 bytes_sent;
	__u64 bytes_received;
	struct qn_addr local;
	struct qn_addr remote;  /* as on the wire */
	struct qn_addr dialled; /* what the application asked for; of an accepted socket, the client it sees */
	__u32 rule;
	__u32 srtt_us;
	__u32 retransmits;
	__u8 kind;    /* enum qn_trace_kind */
	__u8 path;    /* enum qn_path */
	__u8 role;    /* enum qn_role */
	__u8 refused; /* CONNECT: the kernel makes it fail */
};

#endif
