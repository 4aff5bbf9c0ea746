/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* Layouts of the kernel paths' telemetry (tracking.h, part of flows.bpf.c). Rules as in qanat.h.
 *
 * Connections are reported from their client's end, which is always on this node; direct ones have no other witness.
 */
#ifndef QANAT_TRAFFIC_H
#define QANAT_TRAFFIC_H

#include "qanat.h"

/* A client's socket on path DIRECT or BYPASS, as it is reported. */
struct qn_track {
	__u64 start_ns;       /* CLOCK_MONOTONIC of the SYN */
	__u64 established_ns; /* 0 = not answered */
	__u64 src;            /* cookie of the client's namespace */
	__u64 dst;            /* cookie of the server's, 0 = not a captured pod of this node */
	__u32 rule;           /* number of the rule that decided, 0 = none */
	__u8 path;            /* enum qn_path */
	__u8 pad[3];
	struct qn_addr local;
	struct qn_addr remote;  /* as on the wire */
	struct qn_addr dialled; /* what the application asked for: another address than remote if it was a service's */
};

enum qn_end {
	QN_END_CLOSED = 1, /* both directions ended in order, as far as this end could see */
	QN_END_RESET = 2,  /* cut by a reset or a timeout, of either side */
	QN_END_FAILED = 3, /* never answered, or refused */
};

/* Ring buffer `closings`: one record for each tracked connection that ends. Full: lost, counted; `traffic` has it.
 * Bytes are the application's: sent = acknowledged by the peer.
 */
#define QN_CLOSINGS_BYTES (512 * 1024)
struct qn_closing {
	struct qn_track track;
	__u64 end_ns;
	__u64 socket; /* cookie */
	__u64 bytes_sent;
	__u64 bytes_received;
	__u32 srtt_us;
	__u32 retransmits;
	__u32 end; /* enum qn_end */
	__u32 pad;
};

/* What bpf/live.bpf.c writes for each tracked socket of map `sockets`: no map. */
struct qn_live {
	struct qn_track track;
	__u64 socket; /* cookie, 0 = it has none yet */
	__u64 bytes_sent;
	__u64 bytes_received;
	__u32 srtt_us;
	__u32 retransmits;
};

/* Map `traffic` (hash): totals by client, server and path. What finds no room is in `traffic_other` (array by path).
 * Writer: flows; nodeagent removes what was idle for long.
 */
#define QN_TRAFFIC_MAX 16384
struct qn_traffic_key {
	__u64 src;
	__u64 dst;
	struct qn_addr remote;
	struct qn_addr dialled;
	__u32 path; /* enum qn_path */
	__u32 pad;
};
struct qn_traffic {
	__u64 opened; /* answered */
	__u64 closed;
	__u64 failed;
	__u64 resets;
	__u64 bytes_sent; /* of closed connections, as all below */
	__u64 bytes_received;
	__u64 retransmits;
	__u64 srtt_us; /* sum over closed */
};

#endif
