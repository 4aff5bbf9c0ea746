/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* Layouts shared by the BPF programs, the C engine and Python.
 *
 * One definition of every map key and value that crosses the kernel boundary. The C engine and the cffi
 * extension compile this header; tests/bpf compares each size and offset with the BTF of the loaded maps.
 * Natural alignment, padding always named and always zero (hash maps compare it). Addresses are in network
 * byte order; ports are in host byte order; an IPv4 address is its 4 bytes followed by 12 zero bytes.
 */
#ifndef QANAT_H
#define QANAT_H

#ifdef __bpf__
#include <linux/types.h>
#else
#include <stdint.h>
#include <linux/types.h>
#endif

/* Part of the pin path. Raise it whenever a layout or the meaning of a field changes. */
#define QN_SCHEMA_VERSION 1

#define QN_PORT_OUTBOUND 15001 /* TCP, loopback of the pod: outbound capture */
#define QN_PORT_INBOUND 15006  /* TCP, loopback of the pod: inbound plaintext capture */
#define QN_PORT_HBONE 15008    /* TCP, wildcard in the pod: HBONE */

struct qn_addr {
	__u8 ip[16];
	__u16 port;
	__u8 family; /* 4 or 6; 0 = none */
	__u8 pad;
	__u32 pad2;
};

/* Map `sockets` (BPF_MAP_TYPE_SK_STORAGE): what we know of one socket.
 * Writers: capture (role CLIENT), user space (role ZTUNNEL, through the map and the socket's descriptor,
 * before connect), flows (roles CAPTURED and SERVER, on accepted sockets).
 */
enum qn_role {
	QN_ROLE_NONE = 0,
	QN_ROLE_CLIENT = 1,   /* an application's socket that capture redirected; addr = what it dialled */
	QN_ROLE_ZTUNNEL = 2,  /* a socket of ztunnel: never captured; addr = the client to show to the app, or none */
	QN_ROLE_CAPTURED = 3, /* accepted by ztunnel on 15001; addr = original destination (getsockname answers it) */
	QN_ROLE_SERVER = 4,   /* accepted by an application from ztunnel; addr = real client (getpeername answers it) */
};

struct qn_socket {
	__u32 role; /* enum qn_role */
	__u32 pad;
	struct qn_addr addr;
};

/* Map `pods` (hash): captured pods by network namespace cookie. Writer: nodeagent. */
#define QN_POD_MAX 4096
#define QN_POD_ADDRS 4
enum qn_pod_flags {
	QN_POD_CAPTURE = 1, /* outbound capture is on */
};
struct qn_pod {
	__u32 flags; /* enum qn_pod_flags */
	__u32 slot;  /* index into `listeners`: slot*2 is IPv4's 15006 listener, slot*2+1 IPv6's */
	struct qn_addr addrs[QN_POD_ADDRS]; /* the pod's own addresses (port 0), unused ones zero */
};

/* Map `pod_addrs` (hash): address of a captured pod -> its network namespace cookie (__u64). Tells which
 * connections of the node's own processes are worth an entry in `flows`. Writer: nodeagent.
 */
struct qn_ip {
	__u8 ip[16];
	__u8 family; /* 4 or 6 */
	__u8 pad[3];
};

/* Map `settings` (array of 1). Writer: nodeagent. */
enum qn_agent_down {
	QN_AGENT_DOWN_CLOSED = 0, /* capture goes on; without listeners connections are refused */
	QN_AGENT_DOWN_OPEN = 1,   /* when the heartbeat is older than stale_ns new connections pass uncaptured */
};
struct qn_settings {
	__u64 node_netns;    /* cookie of the node's own namespace; 0 = unknown, no HOST flows */
	__u64 heartbeat_ns;  /* CLOCK_MONOTONIC of the agent's last sign of life */
	__u64 stale_ns;      /* age at which the agent counts as down */
	__u32 on_agent_down; /* enum qn_agent_down */
	__u32 pad;
};

/* Map `flows` (hash): one TCP connection seen from its active side while it is being opened.
 * kind CLIENT: client -> 15001, addr = original destination; moved to the accepted socket's storage.
 * kind ZTUNNEL: ztunnel -> app, addr = the client to show; moved to the app's accepted socket.
 * kind HOST: node process -> pod; read by inbound (the connection passes uncaptured).
 * Writer: flows. CLIENT and ZTUNNEL are removed when the passive side is established, all when the active side closes.
 * netns is the cookie of the namespace the connection is *received* in for CLIENT and ZTUNNEL (both ends are
 * in the pod) and 0 for HOST (the receiving namespace is not known when it leaves).
 */
#define QN_FLOW_MAX 65536
enum qn_flow_kind {
	QN_FLOW_CLIENT = 1,
	QN_FLOW_ZTUNNEL = 2,
	QN_FLOW_HOST = 3,
};
struct qn_flow_key {
	__u64 netns;
	__u8 src[16];
	__u8 dst[16];
	__u16 src_port;
	__u16 dst_port;
	__u8 family; /* 4 or 6, of the packets on the wire: IPv4-mapped counts as 4 */
	__u8 pad[3];
};
struct qn_flow {
	__u32 kind; /* enum qn_flow_kind */
	__u32 pad;
	struct qn_addr addr;
};

/* Map `counters` (per-CPU array of __u64): outcomes by reason. */
enum qn_counter {
	QN_CNT_CAPTURED = 0,        /* capture: redirected to 15001 */
	QN_CNT_PASS_LOCAL = 1,      /* capture: loopback, unspecified or the pod's own address */
	QN_CNT_PASS_ZTUNNEL = 2,    /* capture: ztunnel's own socket */
	QN_CNT_REFUSED_STORAGE = 3, /* capture: no socket storage to be had: refused, not passed */
	QN_CNT_REFUSED_AGENT = 4,   /* capture: no agent and onAgentDown is closed */
	QN_CNT_FLOW_FULL = 5,       /* flows: map full: the connection will be refused by ztunnel or captured inbound */
	QN_CNT_IN_CAPTURED = 6,     /* inbound: to 15006 */
	QN_CNT_IN_PASS_LOCAL = 7,   /* inbound: from the pod itself */
	QN_CNT_IN_PASS_HBONE = 8,   /* inbound: port 15008 */
	QN_CNT_IN_PASS_HOST = 9,    /* inbound: from the node's own namespace (probes) */
	QN_CNT_IN_DROPPED = 10,     /* inbound: no listener to hand it to: refused */
	QN_CNT_IN_REFUSED_PORT = 11, /* inbound: dialled 15001 or 15006 directly: refused */
	QN_CNT_PASS_AGENT = 12,      /* capture: agent down and onAgentDown is open */
	QN_CNT_IN_PASS_AGENT = 13,   /* inbound: no listener, agent down and onAgentDown is open */
	QN_CNT_MAX = 16,
};

#endif
