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
#define QN_SCHEMA_VERSION 4

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

/* What happens to one connection (DESIGN section 3). */
enum qn_path {
	QN_PATH_NONE = 0,
	QN_PATH_TUNNEL = 1,  /* through ztunnel, which picks tunnel, waypoint or plain */
	QN_PATH_BYPASS = 2,  /* outside the mesh: untouched */
	QN_PATH_DIRECT = 3,  /* plain TCP between two pods of this node */
	QN_PATH_REFUSED = 4, /* connect() failed: ECONNREFUSED */
};

/* How two pods of one node talk once policy allows it. The stricter wish of the two wins: ENCRYPT over DIRECT, and
 * SHORTCUT only where both want it.
 */
enum qn_same_node {
	QN_SAME_NODE_ENCRYPT = 0, /* through the tunnel, as between nodes */
	QN_SAME_NODE_DIRECT = 1,
	QN_SAME_NODE_SHORTCUT = 2, /* direct, and sk_msg may move the bytes */
};

/* The kernel draws an endpoint before ztunnel does: what came out there, so that all endpoints stay equally likely. */
enum qn_draw {
	QN_DRAW_ANY = 0,
	QN_DRAW_HERE = 1,      /* one of this node's, which takes the tunnel all the same */
	QN_DRAW_ELSEWHERE = 2, /* none of this node's */
};

/* Map `sockets` (BPF_MAP_TYPE_SK_STORAGE): what we know of one socket.
 * Writers: capture (role CLIENT, and NONE with path BYPASS), user space (role ZTUNNEL, through the map and the
 * socket's descriptor, before connect), flows (roles CAPTURED and SERVER, on accepted sockets; marks and what is tracked).
 * It goes with its socket: live connections need no bound and no map of their own.
 */
enum qn_role {
	QN_ROLE_NONE = 0,
	QN_ROLE_CLIENT = 1,   /* an application's socket with a rewritten destination; addr = what it dialled */
	QN_ROLE_ZTUNNEL = 2,  /* a socket of ztunnel: never captured; addr = the client to show to the app, or none */
	QN_ROLE_CAPTURED = 3, /* accepted by ztunnel on 15001; addr = original destination (getsockname answers it) */
	QN_ROLE_SERVER = 4, /* accepted by an application from ztunnel: addr = real client (getpeername answers it), or
			       * direct from a pod: path DIRECT and no addr, the kernel's own answer is right */
};

enum qn_marks {
	QN_MARK_FIN_IN = 1, /* tracked: the peer has ended its direction */
	QN_MARK_OTHER = 2,  /* tracked: counted in `traffic_other` */
	QN_MARK_JOINED = 4, /* qn_join of join.bpf.c has seen it: it hears of its end, and of its next connect() */
};

struct qn_socket {
	__u32 role;     /* enum qn_role */
	__u8 path;      /* enum qn_path */
	__u8 same_node; /* enum qn_same_node, path DIRECT only */
	__u8 draw;      /* enum qn_draw, path TUNNEL only */
	__u8 marks;     /* enum qn_marks */
	__u32 rule;     /* number of the rule that decided (the agent keeps the names); 0 = none */
	__u32 epoch;    /* of the verdict; path DIRECT only */
	struct qn_addr addr;
	__u64 src; /* cookie of the client's namespace; 0 = not known */
	__u64 dst; /* cookie of the server's namespace; 0 = not a captured pod of this node */
	/* Of a client's socket on path DIRECT or BYPASS from its SYN to its end: what tracking.h counts. */
	__u64 start_ns;       /* CLOCK_MONOTONIC of the SYN; 0 = not tracked */
	__u64 established_ns; /* 0 = not answered */
	__u64 half_received;  /* bytes_received when our FIN was acknowledged */
};

/* Map `pods` (hash): captured pods by network namespace cookie. Writer: nodeagent. */
#define QN_POD_MAX 4096
#define QN_POD_ADDRS 4
enum qn_pod_flags {
	QN_POD_CAPTURE = 1, /* outbound capture is on */
	QN_POD_ENCRYPT = 4, /* what it sends to pods of this node is to be encrypted */
	QN_POD_BYPASS = 2,  /* no egress policy restricts it: destinations outside the mesh pass */
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
/* Kernel paths in use. All of them rest while the heartbeat is older than stale_ns: everything asks then. */
enum qn_paths {
	QN_PATHS_BYPASS = 1,       /* `mesh_addrs` is complete: what is not in it is outside the mesh */
	QN_PATHS_DIRECT = 2,       /* verdicts may be used */
	QN_PATHS_SHORTCUT = 4,     /* new redirection between sockets may begin (kill switch) */
	QN_PATHS_SHORTCUT_OFF = 8, /* an operator threw it: the agent does not set SHORTCUT, also after a restart */
};
struct qn_settings {
	__u64 node_netns;    /* cookie of the node's own namespace; 0 = unknown, no HOST flows */
	__u64 heartbeat_ns;  /* CLOCK_MONOTONIC of the agent's last sign of life */
	__u64 stale_ns;      /* age at which the agent counts as down */
	__u32 on_agent_down; /* enum qn_agent_down */
	__u32 epoch;         /* of verdicts: one with another epoch means ask */
	__u32 paths;         /* enum qn_paths */
	__u32 pad;
};

/* Map `flows` (hash): one TCP connection seen from its active side while it is being opened.
 * kind CLIENT: client -> 15001, addr = original destination; moved to the accepted socket's storage.
 * kind ZTUNNEL: ztunnel -> app, addr = the client to show; moved to the app's accepted socket.
 * kind HOST: node process -> pod; read by inbound (the connection passes uncaptured).
 * kind DIRECT: pod -> pod of this node, path DIRECT; read by inbound (passes), moved to the app's accepted socket.
 * Writers: flows; inbound (is_met). All but HOST are removed when the passive side is established, all when the active
 * side closes.
 * netns is the cookie of the namespace the connection is *received* in; 0 for HOST (not known when it leaves).
 */
#define QN_FLOW_MAX 65536
enum qn_flow_kind {
	QN_FLOW_CLIENT = 1,
	QN_FLOW_ZTUNNEL = 2,
	QN_FLOW_HOST = 3,
	QN_FLOW_DIRECT = 4,
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
	__u32 rule;
	struct qn_addr addr;
	__u64 src; /* cookie of the client's namespace */
	__u32 epoch;
	__u8 same_node; /* enum qn_same_node */
	__u8 is_met;    /* DIRECT: the SYN has arrived where it was announced */
	__u8 draw;      /* enum qn_draw; CLIENT */
	__u8 pad;
};

/* Map `mesh_addrs` (hash, key qn_ip): addresses that the mesh must see: captured workloads anywhere, and services
 * with an endpoint among them. Complete only while settings.paths has BYPASS. Writer: nodeagent.
 */
#define QN_MESH_MAX 262144
enum qn_mesh_kind {
	QN_MESH_WORKLOAD = 1,
	QN_MESH_SERVICE = 2,
};

/* Map `services` (hash, key qn_addr = service address and port): those with an endpoint on this node.
 * total: all endpoints that may be drawn; the first n of `endpoints` are captured pods of this node, a draw beyond them
 * goes to ztunnel. Writer: nodeagent.
 */
#define QN_SERVICE_MAX 16384
#define QN_SERVICE_LOCAL 32
struct qn_service {
	__u32 total;
	__u32 n;
	struct qn_addr endpoints[QN_SERVICE_LOCAL];
};

/* Map `failing` (LRU hash, key qn_addr = service address and port, value __u64 = CLOCK_MONOTONIC): when a direct connection
 * to an endpoint of it last went unanswered or was refused. For QN_FAILING_NS from then on its connections are ztunnel's,
 * which goes on to another endpoint; where there is no other the kernel goes on. Writer: flows.
 */
#define QN_FAILING_MAX 1024
#define QN_FAILING_NS 30000000000ULL

/* Map `verdicts` (hash): what policy says of (source pod, destination address and target port). A missing one, and one
 * of another epoch, means ask. Writer: nodeagent.
 */
#define QN_VERDICT_MAX 65536
enum qn_decision {
	QN_ALLOW = 1,
	QN_DENY = 2,
};
struct qn_verdict_key {
	__u64 src; /* cookie of the client's namespace */
	struct qn_addr dst;
};
struct qn_verdict {
	__u64 dst; /* cookie of the captured pod of this node at that address; 0 = none, only DENY has a use */
	__u32 epoch;
	__u32 rule;
	__u8 decision;  /* enum qn_decision */
	__u8 same_node; /* enum qn_same_node */
	__u8 pad[6];
};

/* Map `events` (ring buffer): what the agent must hear of. Writers: capture, flows. A full ring loses events, counted;
 * an ASK is repeated after QN_ASK_AGAIN_NS (map `asked`, LRU, remembers), a refusal is not.
 */
#define QN_EVENTS_BYTES (256 * 1024)
#define QN_ASKED_MAX 16384
#define QN_ASK_AGAIN_NS 1000000000ULL
enum qn_event_kind {
	QN_EVENT_ASK = 1,     /* no verdict for (src, target) */
	QN_EVENT_REFUSED = 2, /* a DENY was applied */
	QN_EVENT_STRAYED = 3, /* a direct connection was answered, but not by whom it was announced to */
};
struct qn_event {
	__u32 kind; /* enum qn_event_kind */
	__u32 rule;
	__u64 time_ns; /* CLOCK_MONOTONIC */
	__u64 src;     /* cookie of the client's namespace */
	__u64 dst;     /* cookie of the server's namespace, if known */
	struct qn_addr dialled;
	struct qn_addr target; /* the endpoint drawn; the same as dialled without a service */
};

/* Map `condemned` (hash, key = socket cookie): sockets that are being cut (hush.bpf.c). Writer: nodeagent. */
#define QN_CONDEMNED_MAX 4096

/* What bpf/listing.bpf.c writes for each socket of map `sockets` that takes a path: no map. */
struct qn_listed {
	struct qn_socket socket;
	__u8 local[16];
	__u8 remote[16];
	__u16 local_port;
	__u16 remote_port;
	__u8 family; /* 4 or 6, of the packets */
	__u8 state;  /* TCP_ESTABLISHED ... of linux/tcp.h */
	__u8 is_v6;  /* an AF_INET6 socket, with family 4 an IPv4-mapped one */
	__u8 pad;
	__u64 cookie;  /* of the socket; 0 = it has none yet */
	__u64 netns;   /* cookie of its namespace */
	__u32 snd_nxt; /* TCP: what it will send next */
	__u32 rcv_nxt; /* and what it expects next */
};

/* Maps of the shortcut (join.bpf.c and shortcut.bpf.c write them all).
 * `joinable` (sockhash, key = socket cookie): both ends of direct flows of mode SHORTCUT, from establishment to close.
 * `halves` (hash, key qn_flow_key as in `flows`): a flow of which one end does not know the other yet. The client puts
 * itself in, the server replaces it by itself, the client's first message takes that out; else the client's close does.
 * `joins` (socket storage): what one end knows of the other, and what was moved.
 * `moved` (LRU hash, key = the client's socket cookie): bytes moved from the server, for whoever reports the client.
 * `arrived` (hash, key = socket cookie): up to where a socket of `joinable` has got its peer's TCP bytes.
 */
#define QN_JOIN_MAX 65536
#define QN_MOVED_MAX 16384
struct qn_half {
	__u64 cookie;
	__u64 at; /* address of its struct tcp_sock: a number that only guarded reads use */
	__u32 is_server;
	__u32 pad;
};
struct qn_join {
	__u64 cookie;
	__u64 peer; /* 0 = not known yet: `key` says where to ask */
	__u64 peer_at;
	__u64 bytes;            /* moved from this socket to the peer */
	__u64 messages;         /* likewise */
	__u64 mark_messages[2]; /* `messages` at two earlier moments; up to the first the peer has read */
	__u64 mark_bytes;       /* `bytes` at the second */
	__u32 is_moving;        /* the last message was moved */
	__u32 is_server;
	__u32 settled; /* write_seq at which every TCP byte before it was known to be in the peer's queue or read */
	__u32 pad;
	struct qn_flow_key key;
};
struct qn_arrived {
	__u32 next;    /* sequence number behind the last byte */
	__u32 is_torn; /* a byte was lost on the way to the reader: nothing more may follow it */
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
	QN_CNT_IN_REFUSED_PORT = 11,  /* inbound: dialled 15001 or 15006 directly: refused */
	QN_CNT_PASS_AGENT = 12,       /* capture: agent down and onAgentDown is open */
	QN_CNT_IN_PASS_AGENT = 13,    /* inbound: no listener, agent down and onAgentDown is open */
	QN_CNT_BYPASSED = 14,         /* capture: outside the mesh */
	QN_CNT_DIRECT = 15,           /* capture: to a pod of this node, allowed */
	QN_CNT_REFUSED_POLICY = 16,   /* capture: a published DENY */
	QN_CNT_ASKED = 17,            /* capture: to ztunnel, no current verdict */
	QN_CNT_TUNNEL_REMOTE = 18,    /* capture: to ztunnel, the endpoint is elsewhere */
	QN_CNT_TUNNEL_ENCRYPT = 19,   /* capture: to ztunnel, same-node traffic is to be encrypted */
	QN_CNT_TUNNEL_UNFIT = 20,     /* capture: to ztunnel, the socket is not fit (MPTCP, device, foreign source) */
	QN_CNT_TUNNEL_STALE = 21,     /* capture: to ztunnel, the agent's heartbeat is too old for kernel paths */
	QN_CNT_EVENT_LOST = 22,       /* capture, flows: the ring is full */
	QN_CNT_IN_PASS_DIRECT = 23,   /* inbound: a direct flow its source has announced */
	QN_CNT_TUNNEL_FAILING = 25,   /* capture: to ztunnel, an endpoint of the service has not answered lately */
	QN_CNT_DIRECT_STRAYED = 24,   /* flows: a direct connection that was answered by somebody else */
	QN_CNT_UNTRACKED = 32,        /* capture: no storage: a bypassed connection goes uncounted */
	QN_CNT_TRAFFIC_FULL = 33,     /* flows: `traffic` is full: counted in `traffic_other` */
	QN_CNT_CLOSING_LOST = 34,     /* flows: the ring is full: no record of a connection's end */
	QN_CNT_SHORTCUT_JOINED = 26,  /* shortcut: an end of a flow is in the socket map */
	QN_CNT_SHORTCUT_FULL = 27,    /* shortcut: a map was full: the flow stays plain TCP */
	QN_CNT_SHORTCUT_YIELDED = 28, /* shortcut: from moving bytes back to TCP, by the guard or the switch */
	QN_CNT_SHORTCUT_OVERLAP = 29, /* shortcut: a segment with bytes that had arrived before: those were cut off */
	QN_CNT_SHORTCUT_TORN = 30,    /* shortcut: no memory to cut them off: the flow ends here */
	QN_CNT_MAX = 48,
};

#endif
