/* SPDX-License-Identifier: Apache-2.0 */
/* The tunnel engine: everything Python may call. This header is the manual; cffi_build.py feeds the part between
 * the markers to cffi, so it holds declarations only.
 *
 * The engine knows tables, identities and descriptors. It does not know Kubernetes, files, BPF programs or Python.
 * All functions are called from one control thread (Python's), none blocks on the network, none is called by a
 * worker. Memory passed in is copied before the call returns; descriptors named "taken" are owned by the core after
 * success and stay the caller's after failure.
 */
#ifndef ZT_H
#define ZT_H

#include <stddef.h>
#include <stdint.h>

/* cffi: begin */

/* Errors: functions return 0 (or a count) or one of these, negative. */
enum zt_err {
	ZT_OK = 0,
	ZT_ENOMEM = 1,
	ZT_ESYS = 2,   /* errno in zt_core_errno() */
	ZT_EINVAL = 3, /* argument out of range or malformed */
	ZT_ENOENT = 4, /* no such pod or identity */
	ZT_EEXIST = 5, /* pod id in use */
	ZT_ESTALE = 6, /* tables of an older or equal epoch */
	ZT_ELIMIT = 7, /* a configured limit */
	ZT_ETLS = 8,   /* certificate, key or chain refused; text in err buffer */
	ZT_ESTATE = 9, /* not in this state (not started, draining, ...) */
};

struct zt_str {
	const char *ptr; /* not NUL-terminated; may be NULL when len is 0 */
	size_t len;
};

struct zt_addr {
	uint8_t ip[16]; /* network order; IPv4 in the first 4 bytes, rest zero */
	uint16_t port;  /* host order */
	uint8_t family; /* 4, 6, or 0 for none */
	uint8_t pad[5];
};

/* Limits and times. zt_config_default() fills it; sources of the numbers stand there. Times in milliseconds. */
struct zt_config {
	uint32_t workers;            /* threads; 0 = number of CPUs, at least 2 */
	uint32_t stream_window;      /* SETTINGS_INITIAL_WINDOW_SIZE; 4 MiB */
	uint32_t conn_window;        /* connection window; 16 MiB */
	uint32_t max_frame;          /* SETTINGS_MAX_FRAME_SIZE we announce; 1 MiB */
	uint32_t server_max_streams; /* SETTINGS_MAX_CONCURRENT_STREAMS of our server; 200 */
	uint32_t pool_max_streams;   /* streams we open on one tunnel; 100 */
	uint32_t handshake_ms;       /* TCP accepted or connected -> TLS + HTTP/2 settings done; 10 s */
	uint32_t preamble_ms;        /* tunnel up but no stream has been opened yet; 30 s */
	uint32_t connect_ms;         /* TCP connect to app, peer or plain destination; 10 s */
	uint32_t cert_wait_ms;       /* a connection waits for its identity's certificate; 10 s */
	uint32_t tunnel_idle_ms;     /* no stream: pooled tunnel closes; 5 min */
	uint32_t ping_ms;            /* PING interval; 10 s */
	uint32_t ping_timeout_ms;    /* no PING ack; 20 s */
	uint32_t linger_ms;          /* after both ends finished, time for last bytes to leave; 10 s */
	uint32_t max_conns;          /* application connections of the whole core */
	uint32_t max_conns_per_pod;
	uint32_t max_tunnels_per_pod; /* accepted on 15008 */
	uint32_t max_handshakes;      /* unfinished TLS handshakes of the whole core */
	uint32_t max_buffer;          /* bytes buffered in user space for one tunnel before it stops returning window */
	uint32_t retry_endpoints;     /* endpoints tried for one connection to a service; 3 */
	uint32_t sockets_map_fd_plus1; /* BPF socket-storage map (struct qn_socket), 0 = no BPF: sockets are not marked.
	                                   Dup'ed. See zt_core_set_sockets_map() */
	struct zt_str trust_domains;   /* own trust domain, then aliases, separated by ',' : accepted from clients */
};
void zt_config_default(struct zt_config *cfg);

struct zt_core;

/* Create; start threads; stop all work at once and join them; free. Stop is idempotent, free implies it. */
int zt_core_new(const struct zt_config *cfg, struct zt_core **out);
int zt_core_start(struct zt_core *core);
void zt_core_stop(struct zt_core *core);
void zt_core_free(struct zt_core *core);
int zt_core_errno(const struct zt_core *core);
/* Replace the socket-storage map (dup'ed). */
int zt_core_set_sockets_map(struct zt_core *core, int fd);
/* Replace the `flows` map (dup'ed): original destinations of connections that are not accepted yet (syn.h). */
int zt_core_set_flows_map(struct zt_core *core, int fd);
const char *zt_err_name(int err);
const char *zt_reason_name(int reason);

/* --- identities ------------------------------------------------------------------------------------------------
 * `id` is a SPIFFE URI. Chain: PEM, leaf first. Key: PKCS#8 PEM. Roots: PEM bundle. Replaces an earlier
 * certificate of the same identity for new handshakes; open tunnels go on, pooled client tunnels of the old
 * certificate take no new streams. Connections waiting for it proceed. Refused (ZT_ETLS, the earlier one stays): what
 * no peer would accept, by name in `err` (may be NULL): damaged PEM, a key of another certificate, more than one key,
 * another identity, none or several URI names, a chain that is broken or ends at no root of the bundle, dates, key
 * usage, a CA bit on the leaf, weak keys.
 */
int zt_identity_put(struct zt_core *core, struct zt_str id, struct zt_str chain_pem, struct zt_str key_pem,
		    struct zt_str roots_pem, char *err, size_t err_cap);
int zt_identity_del(struct zt_core *core, struct zt_str id);

/* --- revocation --------------------------------------------------------------------------------------------------
 * Which certificates count no more, for clients and servers: leaves and the issuers between them and the root. New
 * handshakes are refused and open tunnels that were proven with one are cut with their streams, within a turn of their
 * worker (ZT_R_CERT_REVOKED); others are not touched.
 *
 * `lists`: X.509 CRLs, PEM (any number, with the certificates of who signed them among them) or one in DER. `roots`:
 * PEM bundle; `issuers`: PEM, more certificates that may have signed, e.g. those of our own chains; may be empty.
 * A list must be signed by a certificate that may sign lists and leads to one of the roots.
 * All or nothing, so that nobody gets more access by a bad file: unreadable, unsigned, partial (delta, by distribution
 * point), from the future, or older than the list of that issuer in force is ZT_ETLS with text, and what was in force
 * stays. The list of an issuer that the new text does not mention stays too. A list past its own next update is
 * enforced all the same; `out` says so.
 */
struct zt_revocation_info {
	uint64_t lists; /* in force */
	uint64_t serials;
	int64_t next_update_unix_s; /* the earliest of this text's; 0 = none of them says */
};
int zt_revocations_apply(struct zt_core *core, struct zt_str lists, struct zt_str roots, struct zt_str issuers,
			 struct zt_revocation_info *out, char *err, size_t err_cap);
/* Accept nobody's certificate until a list was applied (ZT_R_CERT_UNCHECKED): there is one, and it cannot be read. Does
 * nothing where one is in force. */
int zt_revocations_close(struct zt_core *core);
/* Is a certificate of this PEM chain revoked by what is in force? 1 with `text` saying which, 0, or negative. */
int zt_revocations_find(struct zt_core *core, struct zt_str chain_pem, char *text, size_t cap);

/* --- tables: all the engine looks up while forwarding; replaced whole, never edited -------------------------- */
enum zt_protocol {
	ZT_PROTO_PLAIN = 0, /* plain TCP to the workload */
	ZT_PROTO_HBONE = 1, /* tunnel to <address>:15008 */
};
struct zt_workload_row {
	struct zt_addr addr;    /* port 0; family 0 = a hole: no workload, only its number is taken */
	uint32_t protocol;      /* enum zt_protocol */
	uint32_t flags;         /* 0 */
	struct zt_str identity; /* SPIFFE URI the server must prove; empty for PLAIN */
	struct zt_str uid;      /* names for logs and dumps */
	struct zt_str closed;   /* why nobody may go there (the rule of such an event); empty = it is open */
};
struct zt_endpoint_row {
	uint32_t workload; /* index into workloads */
	uint32_t port;     /* target port */
};
struct zt_service_row {
	struct zt_addr vip;      /* address and service port */
	uint32_t first_endpoint; /* run of endpoints[]; empty run = no healthy endpoint: refused */
	uint32_t n_endpoints;
	uint32_t n_here;        /* the first so many are pods of this node */
	uint32_t sticky;        /* not 0: a client address is always given the same endpoint, while it is there */
	struct zt_str hostname; /* "web.shop.svc.cluster.local" */
	struct zt_str closed;   /* as of a workload; counts before its endpoints' */
};
struct zt_tables {
	uint64_t epoch; /* strictly increasing; an older or equal one is ZT_ESTALE */
	const struct zt_workload_row *workloads;
	size_t n_workloads;
	const struct zt_service_row *services;
	size_t n_services;
	const struct zt_endpoint_row *endpoints;
	size_t n_endpoints;
};
/* All or nothing: a row that does not make sense (index out of range, duplicate address) is ZT_EINVAL with the
 * row in `err`, and the old tables stay. Takes effect for new connections when it returns or shortly after. */
int zt_tables_apply(struct zt_core *core, const struct zt_tables *tables, char *err, size_t err_cap);

/* --- pods ----------------------------------------------------------------------------------------------------- */
enum zt_socket_kind {
	ZT_SOCK_LISTEN = 0, /* a listening TCP socket */
	ZT_SOCK_WATCH = 1,  /* packet socket on the pod's lo that sees first SYNs to 15001 (syn.h) */
	ZT_SOCK_REPLAY = 2, /* raw socket that answers them */
};
struct zt_listener_spec {
	int32_t fd;      /* a socket in the pod's namespace; taken */
	uint16_t port;   /* what it is for: 15001, 15006 or 15008 (it may be bound elsewhere in tests) */
	uint16_t family; /* 4 or 6 */
	uint32_t kind;   /* enum zt_socket_kind. With WATCH and REPLAY of a family, connect() tells the truth (syn.h);
	                     without, 15001 accepts first and resets on failure */
	uint32_t pad;
};
struct zt_pod_spec {
	uint64_t id;           /* chosen by the caller, unique while the pod lives */
	uint64_t netns_cookie; /* key of `flows` entries; 0 = no BPF */
	int32_t netns_fd;      /* sockets of this pod are made inside; taken; -1 = the process's own namespace */
	uint32_t n_addrs;
	const struct zt_addr *addrs; /* the pod's own addresses, port 0 */
	struct zt_str identity;
	struct zt_str uid;
	const struct zt_listener_spec *listeners;
	uint32_t n_listeners;
	uint16_t hbone_port; /* port dialled at peers, 15008; other values for tests. 0 = 15008 */
	uint16_t pad;
};
int zt_pod_add(struct zt_core *core, const struct zt_pod_spec *spec);
/* Stop accepting for this pod and close its listeners, GOAWAY on its tunnels; cut what is left after drain_ms (0 =
 * at once). Returns at once. */
int zt_pod_del(struct zt_core *core, uint64_t id, uint32_t drain_ms);
/* GOAWAY on the tunnels that others have to this pod: it is about to end. All goes on, new ones included. Returns at
 * once, also when called again. */
int zt_pod_retire(struct zt_core *core, uint64_t id);
/* Stop accepting everywhere, GOAWAY; open connections go on. zt_core_live() tells when it is over.
 * deadline_ms: cut the rest then; 0 = never. */
int zt_core_drain(struct zt_core *core, uint32_t deadline_ms);

/* --- what happens ------------------------------------------------------------------------------------------------ */
enum zt_kind {
	ZT_EV_CLOSED = 1, /* one application connection ended */
	ZT_EV_TUNNEL =
		2, /* a tunnel failed, or was refused, before or beside any stream (bad TLS, flood, garbage...) */
	ZT_EV_NEED_CERT = 3, /* src_identity is needed and missing; asked once until put or 1 s passed */
};
enum zt_direction { ZT_OUTBOUND = 1, ZT_INBOUND = 2 };
enum zt_path {
	ZT_PATH_NONE = 0,
	ZT_PATH_TUNNEL = 1, /* HBONE */
	ZT_PATH_PLAIN = 2,  /* plain TCP carried by ztunnel (destination or client outside the mesh) */
};
enum zt_reason {
	ZT_R_OK = 0, /* both directions ended cleanly */
	ZT_R_CLIENT_RESET = 1,
	ZT_R_SERVER_RESET = 2,
	ZT_R_REFUSED = 3, /* destination refused */
	ZT_R_TIMEOUT = 4, /* destination did not answer in connect_ms */
	ZT_R_UNREACHABLE = 5,
	ZT_R_NO_ENDPOINT = 6,     /* service without a healthy endpoint */
	ZT_R_NO_ORIGINAL_DST = 7, /* captured but nobody knows whereto; also direct dials of 15001/15006 */
	ZT_R_NO_CERT = 8,         /* own certificate did not come in time */
	ZT_R_TLS = 9,             /* handshake failed; detail says why */
	ZT_R_IDENTITY = 10,       /* peer proved another identity or trust domain than allowed */
	ZT_R_NO_CLIENT_CERT = 11,
	ZT_R_TLS_VERSION = 12,
	ZT_R_CERT_EXPIRED = 13,
	ZT_R_CERT_NOT_YET = 14,
	ZT_R_CERT_UNTRUSTED = 15,
	ZT_R_NOT_TLS = 16, /* plain HTTP, garbage */
	ZT_R_HANDSHAKE_TIMEOUT = 17,
	ZT_R_PREAMBLE_TIMEOUT = 18,
	ZT_R_H2 = 19,          /* HTTP/2 protocol error; detail */
	ZT_R_H2_FLOOD = 20,    /* streams, resets, settings or pings beyond the limit */
	ZT_R_BAD_REQUEST = 21, /* 400: method, authority, headers */
	ZT_R_DENIED = 22,      /* 401 */
	ZT_R_PEER_STATUS = 23, /* the other proxy answered another status; detail has it */
	ZT_R_LIMIT = 24,       /* a connection, tunnel or handshake limit */
	ZT_R_GOAWAY = 25,
	ZT_R_PING_TIMEOUT = 26,
	ZT_R_TRUNCATED = 27, /* tunnel died under the stream */
	ZT_R_DRAIN = 28,     /* cut at the end of a drain */
	ZT_R_POD_GONE = 29,
	ZT_R_SHUTDOWN = 30,
	ZT_R_INTERNAL = 31, /* out of memory, out of descriptors; detail */
	ZT_R_IDLE = 32,
	ZT_R_CERT_REVOKED = 33,
	ZT_R_CERT_UNCHECKED = 34, /* revocations are wanted and not known */
	ZT_R_MAX = 64,
};
struct zt_event {
	uint64_t id; /* of the connection, unique in the core's life */
	uint64_t pod_id;
	uint32_t kind;     /* enum zt_kind */
	uint8_t direction; /* enum zt_direction */
	uint8_t path;      /* enum zt_path */
	uint8_t reason;    /* enum zt_reason */
	uint8_t retries;   /* endpoints tried before the one that served */
	int64_t start_unix_us;
	int64_t duration_us;
	int64_t connect_us;     /* accept -> both ends joined; -1 = never */
	int64_t handshake_us;   /* TLS handshake if this connection had to wait for one; -1 = reused tunnel or plain */
	uint64_t bytes_sent;    /* client -> server */
	uint64_t bytes_recv;    /* server -> client */
	struct zt_addr src;     /* the client as the server sees it */
	struct zt_addr dst;     /* what the client dialled (outbound) or what is served (inbound) */
	struct zt_addr peer;    /* endpoint chosen; for tunnels ip:15008 (outbound) or the tunnel's client (inbound) */
	char src_identity[256]; /* NUL-terminated; empty = not proven */
	char dst_identity[256];
	char service[256]; /* hostname when addressed by a service (inbound: from `forwarded`, a hint only) */
	char detail[128];
	char rule[384];  /* what policy said, allowed or not: a rule's name or other words; empty = none was asked */
	char noted[512]; /* names of audit and dry-run rules that matched, each with its NUL; an empty one ends them */
};
/* Readable when events wait. Owned by the core. */
int zt_event_fd(const struct zt_core *core);
/* Up to `cap` events, oldest first per worker; returns how many. Call until 0 after the descriptor was readable. */
int zt_events_read(struct zt_core *core, struct zt_event *buf, size_t cap);
/* Live application connections in the same form (kind 0, duration and bytes so far). Returns how many there are in
 * all, which may be more than cap. Waits for each worker to answer, at most 1 s. */
int zt_connections(struct zt_core *core, struct zt_event *buf, size_t cap);

struct zt_counters {
	uint64_t conns_live;
	uint64_t conns_opened;
	uint64_t tunnels_in_live;
	uint64_t tunnels_out_live;
	uint64_t tunnels_in_total;
	uint64_t tunnels_out_total;
	uint64_t handshakes_pending;
	uint64_t handshakes_failed;
	uint64_t streams_reused; /* streams opened on an already open tunnel */
	uint64_t events_dropped;
	uint64_t bytes_buffered; /* in user space, both directions */
	uint64_t pods;
	uint64_t epoch;
	uint64_t reasons[64]; /* ended connections and tunnels by enum zt_reason */
};
int zt_counters(const struct zt_core *core, struct zt_counters *out);
/* Application connections and tunnels still open. 0 after a drain = done. */
uint64_t zt_core_live(const struct zt_core *core);

/* --- authorization ------------------------------------------------------------------------------------------------
 * Two sets: one for what comes in, asked at the destination, one for what leaves the mesh, asked at the source. Rows in:
 * policies in the order in which they are asked, each in one scope (the workloads it selects). A guard says which
 * scopes concern a destination's address (going out: a source's). A policy has rules (any matches), a rule clauses (all must match), a
 * clause options (any), an option tests (all), a test values (any; `negate`: none). An attribute that is not there (no
 * identity) equals no value. Made by dataplane/policy.py; the reference is mesh/policy/evaluate.py.
 */
enum zt_action {
	ZT_ACT_DENY = 0,
	ZT_ACT_ALLOW = 1,
	ZT_ACT_NOTE = 2, /* decides nothing, is only noted: audit and dry runs */
	ZT_ACTIONS = 3,
};
enum zt_attr {
	ZT_ATTR_PRINCIPAL = 0, /* the source's identity without "spiffe://" */
	ZT_ATTR_NAMESPACE = 1, /* its namespace */
	ZT_ATTR_ACCOUNT = 2,   /* "<namespace>/sa/<service account>", as it stands in the principal */
	ZT_ATTR_SRC_IP = 3,
	ZT_ATTR_DST_IP = 4,
	ZT_ATTR_DST_PORT = 5,
	ZT_ATTRS = 6,
};
enum zt_match {
	ZT_MATCH_EXACT = 0,
	ZT_MATCH_PREFIX = 1,
	ZT_MATCH_SUFFIX = 2,
	ZT_MATCH_PRESENT = 3,
	ZT_MATCH_BLOCK = 4, /* `addr` and `number` leading bits */
	ZT_MATCH_PORT = 5,  /* `number` */
};
struct zt_value_row {
	struct zt_str text;
	struct zt_addr addr;
	uint32_t match; /* enum zt_match */
	uint32_t number;
};
struct zt_test_row {
	uint32_t attr; /* enum zt_attr */
	uint32_t negate;
	uint32_t first_value;
	uint32_t n_values; /* at least 1 */
};
struct zt_run_row {
	uint32_t first;
	uint32_t n;
};
struct zt_rule_row {
	struct zt_str name; /* what a verdict says: "shop/web rules[0]" */
	uint32_t first_clause;
	uint32_t n_clauses; /* 0 = always matches */
};
struct zt_policy_row {
	struct zt_str key; /* "shop/web" */
	uint32_t action;   /* enum zt_action */
	uint32_t scope;
	uint32_t first_rule; /* runs of policies follow each other */
	uint32_t n_rules;    /* 0 = never matches; an ALLOW without rules closes its scope */
};
struct zt_guard_row {
	struct zt_addr addr;  /* of a destination (by_source: of a source), once; port 0 */
	uint32_t first_scope; /* run of scopes[] */
	uint32_t n_scopes;
};
struct zt_policies {
	uint64_t epoch;        /* strictly increasing */
	uint32_t deny_unknown; /* addresses without a guard: 0 = allowed, 1 = denied */
	uint32_t n_scopes;     /* scopes are numbered from 0 */
	uint32_t by_source;    /* guards are of sources: for zt_egress_apply() */
	uint32_t pad;
	const struct zt_policy_row *policies;
	size_t n_policies;
	const struct zt_rule_row *rules;
	size_t n_rules;
	const struct zt_run_row *clauses; /* of options */
	size_t n_clauses;
	const struct zt_run_row *options; /* of tests */
	size_t n_options;
	const struct zt_test_row *tests;
	size_t n_tests;
	const struct zt_value_row *values;
	size_t n_values;
	const uint32_t *scopes;
	size_t n_guard_scopes;
	const struct zt_guard_row *guards;
	size_t n_guards;
};
struct zt_policy_request {
	struct zt_str identity; /* SPIFFE URI the source has proven; empty = none */
	struct zt_addr src;
	struct zt_addr dst; /* port: what is served there */
};
enum zt_verdict_why {
	ZT_WHY_RULE = 0,      /* `rule` matched */
	ZT_WHY_NO_ALLOW = 1,  /* nothing matched and no ALLOW policy concerns the guarded: allowed */
	ZT_WHY_UNMATCHED = 2, /* nothing matched, though there are ALLOW policies: denied */
	ZT_WHY_UNKNOWN = 3,   /* no guard for the address */
};
struct zt_policy_verdict {
	uint32_t allowed;
	uint32_t why;      /* enum zt_verdict_why */
	uint32_t rule;     /* index of the rule that decided, when `why` is RULE */
	uint32_t guard;    /* index + 1 of the guard, 0 = none */
	uint32_t n_noted;  /* NOTE rules that matched... */
	uint32_t noted[4]; /* ...and the first of them */
};
struct zt_policyset; /* immutable; any thread may evaluate */
/* All or nothing, as zt_tables_apply(). Everything is copied. */
int zt_policyset_new(const struct zt_policies *rows, struct zt_policyset **out, char *err, size_t err_cap);
void zt_policyset_free(struct zt_policyset *p);
void zt_policyset_evaluate(const struct zt_policyset *p, const struct zt_policy_request *q,
			   struct zt_policy_verdict *out);
/* Why, in words: the rule's name or what was missing. NUL-terminated, cut to cap; returns the length written. */
size_t zt_policyset_explain(const struct zt_policyset *p, const struct zt_policy_verdict *v, char *buf, size_t cap);
/* Replace the policies by which inbound connections are judged; before the first time all may come. New connections
 * from now on; open ones that are denied now are cut within a turn of their worker, others are not touched. */
int zt_policies_apply(struct zt_core *core, const struct zt_policies *policies, char *err, size_t err_cap);
/* The same for what pods send out of the mesh: plain connections to no tunnelled workload, judged by the address and
 * port they are made to. Before the first time, and with neither policies nor deny_unknown, nobody is asked. */
int zt_egress_apply(struct zt_core *core, const struct zt_policies *policies, char *err, size_t err_cap);
/* Name of a rule by index, empty when out of range. Valid while the set lives. */
const char *zt_policyset_rule(const struct zt_policyset *p, uint32_t rule);

/* cffi: end */
#endif
