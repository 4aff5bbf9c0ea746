/* SPDX-License-Identifier: Apache-2.0 */
/* The engine's objects and what each module offers the others. Public interface: zt.h.
 *
 * Threads: `struct zt_core` belongs to the control thread (and has a few atomics); everything that hangs from a
 * `struct zt_worker` belongs to that worker's thread. Shared objects are immutable and counted: names, identities,
 * tables, pods (whose limits are atomics).
 */
#ifndef ZT_ENGINE_H
#define ZT_ENGINE_H

#include <nghttp2/nghttp2.h>
#include <openssl/ssl.h>
#include <pthread.h>

#include "aead.h"
#include "base.h"
#include "buf.h"
#include "loop.h"
#include "zt.h"

#define ZT_PORT_OUTBOUND 15001
#define ZT_PORT_INBOUND 15006
#define ZT_PORT_HBONE 15008

/* Worker scratch: what one recv() takes, the plaintext of it, plaintext on its way to SSL_write, and its records. */
#define ZT_IN_CAP (128u * 1024)
#define ZT_PLAIN_CAP (ZT_IN_CAP + 20u * 1024) /* a record begun in an earlier read may end in this one */
#define ZT_OUT_CAP (128u * 1024)
#define ZT_SEAL_CAP (ZT_OUT_CAP + 16u * 1024) /* 22 bytes a record, and handshake messages */
#define ZT_MAX_TRIES 8

struct zt_worker;
struct zt_conn;
struct zt_tunnel;
struct zt_podw;

static inline void zt_bump(_Atomic uint64_t *counter, int64_t by) /* one writer */
{
	atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + (uint64_t)by,
			      memory_order_relaxed);
}

/* --- tables.c: indexes by address; immutable, counted ------------------------------------------------------------ */
struct zt_workload {
	struct zt_addr addr;
	uint32_t protocol;
	struct zt_name *identity;
	struct zt_name *uid;
	struct zt_name *closed; /* NULL = open */
};

struct zt_service {
	struct zt_addr vip;
	uint32_t first;
	uint32_t n;
	uint32_t n_here;
	bool sticky;
	struct zt_name *hostname;
	struct zt_name *closed;
};

struct zt_tableset {
	_Atomic uint32_t refs;
	uint64_t epoch;
	struct zt_workload *workloads;
	struct zt_service *services;
	struct zt_endpoint_row *endpoints;
	size_t n_workloads, n_services, n_endpoints;
	uint32_t *by_addr, *by_vip, *by_vip_ip; /* open addressing; row + 1, 0 = free */
	size_t addr_mask, vip_mask;
};

int zt_tableset_new(const struct zt_tables *rows, struct zt_tableset **out, char *err, size_t err_cap);
struct zt_tableset *zt_tableset_get(struct zt_tableset *t);
void zt_tableset_put(struct zt_tableset *t);
const struct zt_workload *zt_tableset_workload(const struct zt_tableset *t, const struct zt_addr *ip);
const struct zt_service *zt_tableset_service(const struct zt_tableset *t, const struct zt_addr *vip);
/* Is it the address of a service, whatever the port? */
bool zt_tableset_is_vip(const struct zt_tableset *t, const struct zt_addr *ip);

/* --- tls.c --------------------------------------------------------------------------------------------------------- */
struct zt_identity {
	_Atomic uint32_t refs;
	uint64_t generation;
	struct zt_name *name;
	SSL_CTX *client;
	SSL_CTX *server;
};

int zt_identity_new(struct zt_core *core, struct zt_str id, struct zt_str chain, struct zt_str key, struct zt_str roots,
		    struct zt_identity **out, char *err, size_t err_cap);
struct zt_identity *zt_identity_get(struct zt_identity *i);
void zt_identity_put_ref(struct zt_identity *i);
int zt_tls_attach(struct zt_tunnel *t); /* make t->ssl; 0 or -ZT_ENOMEM */
/* Why the last TLS call failed; writes t->detail. Empties OpenSSL's error queue. */
enum zt_reason zt_tls_reason(struct zt_tunnel *t);
/* The one SPIFFE URI of the peer's leaf; NULL when there is none or several. */
struct zt_name *zt_tls_peer_identity(X509 *leaf);
BIO_METHOD *zt_tls_bio_method(void);

/* --- pods (core.c, listener.c) ------------------------------------------------------------------------------------- */
struct zt_listen {
	int fd;
	uint16_t port;
	uint16_t family;
	uint32_t kind; /* LISTEN or WATCH */
};

struct zt_pod {
	_Atomic uint32_t refs;      /* sockets may still be made inside */
	_Atomic uint32_t listeners; /* workers that still accept; 0 = descriptors closed */
	uint64_t id;
	uint64_t netns_cookie;
	int netns_fd;
	int replay[2]; /* raw sockets that answer SYNs, IPv4 and IPv6; -1 = none */
	bool honest;   /* some family's clients are answered when their destination has answered (honest.c) */
	uint16_t hbone_port;
	struct zt_addr *addrs;
	size_t n_addrs;
	struct zt_name *identity;
	struct zt_name *uid;
	struct zt_name *baggage;
	struct zt_listen *listen;
	size_t n_listen;
	_Atomic uint32_t conns;
	_Atomic uint32_t tunnels;
};

void zt_pod_put(struct zt_pod *pod);
void zt_pod_unlisten(struct zt_pod *pod); /* one worker has stopped accepting */

struct zt_listener { /* one worker's view of a listening socket */
	struct zt_io io;
	struct zt_list link;
	struct zt_podw *pod;
	struct zt_timer pause;
	uint16_t port;
	uint16_t family;
};

struct zt_podw {             /* one worker's view of a pod */
	struct zt_node node; /* w->pods by id */
	struct zt_worker *w;
	struct zt_pod *pod;
	struct zt_list listeners;
	struct zt_list conns;
	struct zt_list tunnels;
	struct zt_map pools;
	struct zt_timer deadline;
	struct zt_list link; /* w->dead_pods */
	uint32_t pins;
	bool gone; /* no new work; freed with its last connection and tunnel */
	bool dead;
};

void zt_listener_accept(struct zt_podw *p, uint16_t family); /* what waits on 15001 */
int zt_podw_add(struct zt_worker *w, struct zt_pod *pod);    /* takes the reference on success */
void zt_podw_drain(struct zt_podw *p, bool remove, uint32_t drain_ms);
void zt_podw_retire(struct zt_podw *p);
void zt_podw_cut(struct zt_podw *p, enum zt_reason reason);
void zt_podw_maybe_free(struct zt_podw *p);

/* --- netns.c, dial: sockets inside pods ---------------------------------------------------------------------------- */
/* Start a TCP connection from inside the pod. `show`: the client an application behind it sees, or NULL.
 * Returns 1 connected, 0 under way, or the negative zt_reason; *fd is set unless negative. */
int zt_dial(struct zt_podw *p, const struct zt_addr *to, const struct zt_addr *show, bool keepalive, int *fd);
enum zt_reason zt_dial_reason(int sys_errno);
int zt_socket_error(int fd);

/* --- connections (conn.c) ------------------------------------------------------------------------------------------- */
enum zt_conn_state {
	ZT_C_NEW,
	ZT_C_WAIT_CERT,   /* outbound: own certificate is on its way */
	ZT_C_WAIT_TUNNEL, /* outbound: a tunnel is being set up */
	ZT_C_WAIT_STATUS, /* outbound: CONNECT sent */
	ZT_C_CONNECTING,  /* TCP connect to app or plain destination */
	ZT_C_WAIT_CLIENT, /* the upstream stands, the client is being answered (honest.c) */
	ZT_C_OPEN,
	ZT_C_DONE,
	ZT_C_STATES,
};

struct zt_end { /* a socket of a connection */
	struct zt_io io;
	struct zt_conn *conn;
	struct zt_queue out; /* for this socket, not taken by the kernel yet */
	bool eof;            /* it has sent FIN, and we have read it */
	bool fin;            /* send FIN when `out` is empty */
	bool fin_sent;
};

struct zt_request; /* hbone.c: headers of a CONNECT being received */

struct zt_conn {
	struct zt_list link; /* pod->conns */
	struct zt_list wait; /* in cert waiters, a pool's waiters or a tunnel's streams */
	struct zt_list todo; /* w->todo */
	struct zt_worker *w;
	struct zt_podw *pod;
	uint64_t id;
	uint8_t state;
	uint8_t direction;
	uint8_t path;
	uint8_t retries;
	uint8_t fresh_retries; /* same destination, another tunnel */
	bool stream_fin_sent;
	bool stream_fin_recv;
	bool deferred;  /* nghttp2 waits for nghttp2_session_resume_data() */
	bool broken;    /* the socket has failed: finish from the todo list */
	bool rst_after; /* reset arrived after END_STREAM: deliver, then reset */
	bool stop_read; /* the stream is closed: nothing to read for */
	uint8_t broken_reason;
	struct zt_end client; /* outbound, 15006: accepted */
	struct zt_end app;    /* inbound, plain: dialled */
	struct zt_tunnel *tunnel;
	int32_t stream;
	struct zt_timer timer;
	struct zt_addr src, dst, peer;
	struct zt_addr target; /* what the application behind it listens on: CONNECT's authority */
	size_t uncredited;     /* bytes from the stream whose window is not returned yet */
	struct zt_name *src_identity, *dst_identity, *service;
	struct zt_name *rule, *noted; /* of the last time policies were asked */
	struct zt_load *load;
	struct zt_tableset *tables; /* only while endpoints may be tried */
	const struct zt_service *row;
	uint32_t tried[ZT_MAX_TRIES];
	uint8_t n_tried;
	uint8_t draw; /* enum qn_draw: what the kernel drew before us */
	struct zt_request *request;
	struct zt_honest *honest;          /* the client's connect() has not been answered yet */
	struct zt_pool *pool;              /* while waiting in one */
	size_t touched_head, touched_tail; /* run in w->chunks, +1; 0 = none */
	int64_t start_unix_us, start_us, connect_us, handshake_us;
	uint64_t sent, recv;
};

struct zt_conn *zt_conn_new(struct zt_podw *p, enum zt_direction dir, enum zt_path path); /* NULL: limit or memory */
void zt_conn_set_state(struct zt_conn *c, enum zt_conn_state s);
/* Ends it: sockets are closed (reset unless ZT_R_OK), the stream is reset if it still stands, the event goes up.
 * The memory is freed at the end of the turn. Calling it again does nothing. */
void zt_conn_finish(struct zt_conn *c, enum zt_reason reason, const char *detail);
/* From inside nghttp2 callbacks: look at it again, or end it, later in this turn. */
void zt_conn_later(struct zt_conn *c);
void zt_conn_break(struct zt_conn *c, enum zt_reason reason);
void zt_conn_todo(struct zt_conn *c);                         /* what the two above asked for */
int zt_end_open(struct zt_conn *c, struct zt_end *e, int fd); /* takes fd on success */
void zt_end_close(struct zt_conn *c, struct zt_end *e, bool reset);
void zt_conn_opened(struct zt_conn *c);
/* A descriptor that never became a connection: reset it and count why. */
void zt_refuse(struct zt_podw *p, int fd, enum zt_direction dir, enum zt_reason reason, const struct zt_addr *src,
	       const struct zt_addr *dst);
void zt_reset_fd(int fd);

/* --- outbound.c, inbound.c --------------------------------------------------------------------------------------------- */
void zt_outbound_accept(struct zt_listener *l, int fd, const struct zt_addr *src);
void zt_outbound_start(struct zt_conn *c); /* decide, and set up what the client will talk to */
void zt_outbound_cert(struct zt_conn *c);  /* the certificate has come */
void zt_outbound_status(struct zt_conn *c, int status, const char *error);
void zt_outbound_failed(struct zt_conn *c, enum zt_reason reason, const char *detail); /* try elsewhere or give up */
void zt_outbound_retry_tunnel(struct zt_conn *c, enum zt_reason reason); /* same destination, fresh tunnel */
void zt_outbound_deny(struct zt_conn *c);                                /* refuse it, or cut it when it is open */
void zt_inbound_accept(struct zt_listener *l, int fd, const struct zt_addr *src);
void zt_inbound_plain_accept(struct zt_listener *l, int fd, const struct zt_addr *src);
void zt_inbound_request(struct zt_conn *c, struct zt_request *r);
void zt_inbound_deny(struct zt_conn *c);            /* refuse it, or cut it when it is open */
void zt_conn_connected(struct zt_conn *c, int err); /* the dialled socket stands (err 0) or failed */

/* --- honest.c ------------------------------------------------------------------------------------------------------------ */
void zt_honest_readable(struct zt_io *io);                                  /* a watch socket has SYNs */
void zt_honest_answer(struct zt_conn *c);                                   /* the upstream stands */
void zt_honest_end(struct zt_conn *c, enum zt_reason reason);               /* it does not, or never will */
bool zt_honest_claim(struct zt_podw *p, int fd, const struct zt_addr *src); /* takes fd if it was awaited */
void zt_honest_mail(struct zt_podw *p, int fd, const struct zt_addr *src);  /* takes fd */

/* --- authorize.c ------------------------------------------------------------------------------------------------------- */
/* May an inbound connection with src and target known go on? c->rule says why or why not. */
bool zt_authorize(struct zt_conn *c);
/* May a pod go there in the clear? The same of its c->rule; no answer where nobody is asked. */
bool zt_authorize_exit(struct zt_conn *c, const struct zt_addr *to);
/* Take the reference; cut what is denied now. */
void zt_worker_policies(struct zt_worker *w, struct zt_policyset *set);
void zt_worker_egress(struct zt_worker *w, struct zt_policyset *set);

/* --- balance.c ---------------------------------------------------------------------------------------------------------- */
struct zt_load { /* live connections of this worker to one endpoint */
	struct zt_node node;
	struct zt_addr addr;
	uint32_t live;
};
/* Power of two choices among those not tried yet; the first time on the side (this node or elsewhere) that the kernel drew,
 * so that all endpoints stay equally likely. Returns the endpoint's index in tables, or -1. */
int64_t zt_balance_pick(struct zt_conn *c);
/* Any endpoint not tried yet of which `may` says yes, of the first 256 from a random one on. */
int64_t zt_balance_search(struct zt_conn *c, bool (*may)(struct zt_conn *c, uint32_t endpoint));
void zt_load_take(struct zt_conn *c, const struct zt_addr *endpoint);
void zt_load_drop(struct zt_conn *c);

/* --- tunnels: hbone.c, tunnel.c; pool.c ------------------------------------------------------------------------------------ */
enum zt_tunnel_state {
	ZT_T_CONNECTING,
	ZT_T_WAIT_CERT, /* server: own certificate is on its way */
	ZT_T_HANDSHAKE,
	ZT_T_SETTINGS, /* TLS stands, the peer's SETTINGS are awaited */
	ZT_T_OPEN,
	ZT_T_CLOSING, /* HTTP/2 has ended, last bytes leave */
	ZT_T_DEAD,
};

struct zt_tunnel {
	struct zt_list link;      /* pod->tunnels */
	struct zt_list pool_link; /* pool->tunnels; waiting list while WAIT_CERT */
	struct zt_list dirty;     /* w->dirty: has something to send */
	struct zt_list streams;   /* conn->wait */
	struct zt_worker *w;
	struct zt_podw *pod;
	struct zt_pool *pool; /* client only */
	struct zt_io io;
	SSL *ssl;
	nghttp2_session *h2;
	struct zt_identity *identity;
	struct zt_name *peer_identity;
	struct zt_addr local, peer;
	struct zt_queue out; /* sealed bytes the kernel did not take */
	struct zt_timer timer, ping;
	uint64_t id;
	uint64_t ping_sent_ms; /* 0 = none under way */
	int64_t start_us, handshake_us, start_unix_us;
	size_t buffered; /* bytes waiting for sockets behind it */
	size_t owed;     /* connection window held back */
	uint32_t n_streams, total_streams;
	uint64_t rst_at_ms;
	int32_t rst_tokens;
	uint8_t state;
	uint8_t fail; /* enum zt_reason decided in a callback */
	bool server;
	bool handshaking; /* counted in core->handshakes */
	bool draining;    /* takes no new streams */
	bool goaway_sent;
	bool first_bytes;
	bool served; /* a stream was answered */
	char detail[128];
};

struct zt_tunnel *zt_tunnel_new(struct zt_podw *p, bool server); /* NULL: no memory */
int zt_tunnel_begin(struct zt_tunnel *t);                        /* TCP stands: start TLS */
void zt_tunnel_mark(struct zt_tunnel *t);                        /* something to send: at the end of this turn */
void zt_tunnel_run(struct zt_tunnel *t);  /* read what there is, send what there is: a bounded share */
void zt_tunnel_reap(struct zt_tunnel *t); /* free a dead one */
void zt_tunnel_close(struct zt_tunnel *t, enum zt_reason reason); /* GOAWAY, last bytes, end */
int zt_tunnel_dial(struct zt_tunnel *t);                          /* client: 0, or the negative reason */
void zt_tunnel_fail(struct zt_tunnel *t, enum zt_reason reason, const char *detail);
void zt_tunnel_drain(struct zt_tunnel *t);          /* GOAWAY; ends with its last stream */
void zt_tunnel_credit(struct zt_conn *c, size_t n); /* bytes have reached their socket: return their window */
void zt_tunnel_stream_gone(struct zt_tunnel *t);
void zt_tunnel_ready(struct zt_tunnel *t); /* peer's SETTINGS are here */

int zt_hbone_start(struct zt_tunnel *t);  /* make the session, queue settings */
int zt_hbone_gather(struct zt_tunnel *t); /* frames into w->out; 1 = more is left, 0, or negative: fatal */
int zt_hbone_feed(struct zt_tunnel *t, const uint8_t *data, size_t len); /* 0, or negative: fatal */
int zt_hbone_connect(struct zt_conn *c, struct zt_tunnel *t);            /* submit CONNECT */
void zt_hbone_respond(struct zt_conn *c, int status, const char *error);
void zt_hbone_detach(struct zt_conn *c, uint32_t code, bool reset); /* the stream no longer has a connection */
void zt_request_free(struct zt_request *r);
int zt_hbone_callbacks(nghttp2_session_callbacks **client, nghttp2_session_callbacks **server);

struct zt_request {
	size_t size; /* RFC 9113 10.5.1: names, values, 32 each */
	bool too_big;
	char method[16];
	char authority[128];
	char forwarded[512];
};

/* stream.c: between a stream and a socket */
ssize_t zt_stream_read(struct zt_conn *c, uint8_t *buf, size_t cap, uint32_t *flags);
void zt_stream_data(struct zt_conn *c, const uint8_t *data, size_t len);
void zt_stream_end(struct zt_conn *c);
void zt_stream_closed(struct zt_conn *c, uint32_t code);
void zt_stream_fin_sent(struct zt_conn *c);
void zt_stream_deliver_all(struct zt_worker *w); /* after nghttp2_session_mem_recv() */
void zt_stream_ready(struct zt_conn *c);         /* its socket changed */
void zt_stream_later(struct zt_conn *c);         /* from the todo list */
struct zt_end *zt_stream_end_of(struct zt_conn *c);

/* splice.c: between two sockets */
void zt_splice_ready(struct zt_conn *c);

struct zt_pool {
	struct zt_node node; /* podw->pools */
	struct zt_podw *pod;
	struct zt_name *identity; /* expected of the server */
	struct zt_addr addr;      /* ip:15008 */
	struct zt_list tunnels;
	struct zt_list waiters;
	uint32_t n_waiters;
	uint32_t connecting;
	uint32_t pins; /* being looked at: not to be freed */
};
void zt_pool_request(struct zt_conn *c, const struct zt_addr *addr); /* opens a stream now or later */
void zt_pool_ready(struct zt_tunnel *t);
void zt_pool_lost(struct zt_tunnel *t, enum zt_reason reason, const char *detail);
void zt_pool_leave(struct zt_conn *c);   /* a waiter has gone */
void zt_pool_feed(struct zt_pool *pool); /* there may be room for waiters */

/* --- worker.c ------------------------------------------------------------------------------------------------------------------ */
enum zt_msg_kind {
	ZT_M_STOP,
	ZT_M_TABLES,
	ZT_M_IDENTITY,
	ZT_M_IDENTITY_DEL,
	ZT_M_POD_ADD,
	ZT_M_POD_DEL,
	ZT_M_POD_RETIRE,
	ZT_M_DRAIN,
	ZT_M_LIST,
	ZT_M_POLICIES,
	ZT_M_REVOCATIONS,
	ZT_M_EGRESS,
	ZT_M_CLIENT, /* another worker accepted a socket that this one awaits */
};

struct zt_listing;
struct zt_revocations;

struct zt_msg {
	struct zt_msg *next;
	enum zt_msg_kind kind;
	struct zt_tableset *tables;
	struct zt_policyset *policies;
	struct zt_revocations *revocations;
	struct zt_identity *identity;
	struct zt_name *name;
	struct zt_pod *pod;
	struct zt_listing *listing;
	struct zt_addr addr;
	uint64_t id;
	uint32_t ms;
	int fd;
};

/* What goes through the ring: zt_event without its big arrays. */
struct zt_slim {
	uint64_t id, pod_id, bytes_sent, bytes_recv;
	int64_t start_unix_us, duration_us, connect_us, handshake_us;
	struct zt_addr src, dst, peer;
	struct zt_name *src_identity, *dst_identity, *service, *rule, *noted;
	uint32_t kind;
	uint8_t direction, path, reason, retries;
	char detail[128];
};

#define ZT_RING 2048
#define ZT_OVERFLOW_MAX 16384
struct zt_overflow {
	struct zt_overflow *next;
	struct zt_slim slim;
};
struct zt_ring {
	_Atomic uint32_t head; /* written by the worker */
	_Atomic uint32_t tail; /* written by the control thread */
	struct zt_slim *slots;
	struct zt_overflow *first, *last; /* the worker's */
	size_t n_overflow;
};

/* events.c */
void zt_event_emit(struct zt_worker *w, struct zt_slim *slim); /* takes the names' references */
void zt_event_conn(struct zt_conn *c, uint32_t kind, enum zt_reason reason, const char *detail);
void zt_event_tunnel(struct zt_tunnel *t, enum zt_reason reason, const char *detail);
void zt_event_need_cert(struct zt_worker *w, struct zt_podw *p);
void zt_event_flush(struct zt_worker *w); /* overflow to ring */
size_t zt_ring_read(struct zt_ring *r, struct zt_event *buf, size_t cap);
void zt_ring_free(struct zt_ring *r);
void zt_slim_from_conn(struct zt_slim *s, const struct zt_conn *c, uint32_t kind);
void zt_slim_expand(struct zt_slim *s, struct zt_event *ev); /* drops the references */

struct zt_listing { /* one question to all workers */
	_Atomic uint32_t refs;
	pthread_mutex_t lock;
	pthread_cond_t cond;
	uint32_t missing;
	struct zt_slim *rows;
	size_t n, cap, total;
};
void zt_listing_put(struct zt_listing *l);

struct zt_wcounters { /* written by the worker, read by anybody */
	_Atomic uint64_t conns_opened, tunnels_in_total, tunnels_out_total, tunnels_in_live, tunnels_out_live;
	_Atomic uint64_t handshakes_failed, streams_reused, events_dropped, bytes_buffered;
	_Atomic uint64_t reasons[ZT_R_MAX];
};

struct zt_wanted {           /* an identity somebody waits for */
	struct zt_node node; /* w->identities */
	struct zt_name *name;
	struct zt_identity *identity; /* NULL = not here yet */
	struct zt_list conns;         /* conn->wait */
	struct zt_list tunnels;       /* tunnel->pool_link */
	uint64_t asked_ms;            /* 0 = never */
};

struct zt_chunk {
	const uint8_t *data;
	size_t len;
	size_t next; /* index + 1 */
};
#define ZT_CHUNKS 512

struct zt_worker {
	struct zt_core *core;
	const struct zt_config *cfg;
	unsigned index;
	pthread_t thread;
	bool started, stopping;
	int sys_errno;
	int own_netns;
	int spare_fd; /* given up for a moment when descriptors run out */
	struct zt_loop loop;
	struct zt_io wake;
	pthread_mutex_t mail_lock;
	struct zt_msg *mail_first, *mail_last;

	struct zt_tableset *tables;
	struct zt_policyset *policies;      /* NULL = none were ever applied */
	struct zt_policyset *egress;        /* NULL = nobody is asked */
	struct zt_revocations *revocations; /* NULL likewise */
	struct zt_map identities;           /* zt_wanted by name */
	struct zt_map pods;
	struct zt_map loads;
	struct zt_list dirty, todo, dead_conns, dead_tunnels, dead_listeners, dead_pods;
	struct zt_timer drain;
	struct zt_bufpool bufs;
	struct zt_ring ring;
	struct zt_wcounters n;
	uint64_t next_id;
	uint64_t rng;

	struct zt_tunnel *reading; /* whose bytes zt_stream_data() gets */
	struct zt_chunk chunks[ZT_CHUNKS];
	size_t n_chunks;
	struct zt_conn *touched[ZT_CHUNKS];
	size_t n_touched;

	const uint8_t *bio_in; /* sealed bytes received, not taken by TLS yet */
	size_t bio_in_len;
	bool out_full;   /* a read was put off because `out` was full */
	size_t out_len;  /* plaintext in `out` */
	size_t seal_len; /* records in `seal` */
	uint8_t *in, *plain, *out, *seal;
};

int zt_worker_init(struct zt_worker *w, struct zt_core *core, unsigned index);
int zt_worker_start(struct zt_worker *w);
void zt_worker_free(struct zt_worker *w);
void zt_worker_post(struct zt_worker *w, struct zt_msg *msg);
void zt_msg_free(struct zt_msg *msg);
/* A message like `proto` to every worker, each with references of its own, or to none. */
int zt_core_tell(struct zt_core *core, const struct zt_msg *proto);
uint64_t zt_random(struct zt_worker *w);
struct zt_wanted *zt_worker_wanted(struct zt_worker *w, struct zt_name *name); /* made when missing; NULL = no memory */
struct zt_identity *zt_worker_identity(struct zt_worker *w, struct zt_name *name); /* borrowed; NULL = not here */

struct zt_core {
	struct zt_config cfg;
	struct zt_name *trust_domains;
	struct zt_name **domains;
	size_t n_domains;
	struct zt_worker *workers;
	unsigned n_workers;
	bool started, stopped;
	_Atomic bool draining;
	_Atomic int sockets_map;
	_Atomic int flows_map;
	int event_fd;
	int sys_errno;
	uint64_t epoch;
	uint64_t policy_epoch;
	struct zt_revocations *revocations; /* in force */
	uint64_t egress_epoch;
	uint64_t generation;
	uint64_t *pods; /* ids in use */
	size_t n_pods, cap_pods;
	BIO_METHOD *bio;
	struct zt_aead *aead; /* NULL = OpenSSL's own */
	nghttp2_session_callbacks *client_cbs, *server_cbs;
	_Atomic uint32_t event_signalled;
	pthread_mutex_t pending_lock;
	struct zt_map pending; /* zt_honest by pod and client port */
	_Atomic uint64_t conns;
	_Atomic uint64_t tunnels;
	_Atomic uint64_t handshakes;
};

#endif
