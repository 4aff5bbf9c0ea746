/* SPDX-License-Identifier: Apache-2.0 */
/* The control side of the public interface: create, publish, ask. */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/crypto.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "engine.h"
#include "revocation.h"
#include "syn.h"

#define MAX_WORKERS 64
#define LIST_WAIT_S 1
#define KEEPALIVE_S 180
#define KEEPALIVE_PROBES 9

void zt_config_default(struct zt_config *cfg)
{
	*cfg = (struct zt_config){
		/* Windows, frame, streams, pings, pool: those of istio/ztunnel (src/config.rs, src/proxy/h2.rs). */
		.stream_window = 4u << 20, .conn_window = 16u << 20,   .max_frame = 1u << 20,
		.server_max_streams = 200, .pool_max_streams = 100,    .ping_ms = 10000,
		.ping_timeout_ms = 20000,  .tunnel_idle_ms = 300000,   .connect_ms = 10000,
		.handshake_ms = 10000, /* ours: ztunnel has no limit, and a silent peer keeps a socket for ever */
		.preamble_ms = 30000,      .cert_wait_ms = 10000,      .linger_ms = 10000,
		.max_conns = 200000,       .max_conns_per_pod = 50000, .max_tunnels_per_pod = 10000,
		.max_handshakes = 4096,    .max_buffer = 32u << 20,    .retry_endpoints = 3,
	};
}

static int split_domains(struct zt_core *core, struct zt_str s)
{
	size_t n = 1, at = 0;

	for (size_t i = 0; i < s.len; i++)
		n += s.ptr[i] == ',';
	core->domains = calloc(n, sizeof(*core->domains));
	if (!core->domains)
		return -ZT_ENOMEM;
	for (size_t i = 0; i <= s.len; i++) {
		if (i < s.len && s.ptr[i] != ',')
			continue;
		if (i > at) {
			struct zt_name *name = zt_name_new(s.ptr + at, i - at);

			if (!name)
				return -ZT_ENOMEM;
			core->domains[core->n_domains++] = name;
		}
		at = i + 1;
	}
	return 0;
}

static bool config_ok(const struct zt_config *c)
{
	return c->workers <= MAX_WORKERS && c->stream_window >= 65535 && c->stream_window <= INT32_MAX &&
	       c->conn_window >= c->stream_window && c->conn_window <= INT32_MAX && c->max_frame >= 16384 &&
	       c->max_frame < 1u << 24 && c->pool_max_streams && c->server_max_streams && c->ping_ms &&
	       c->ping_timeout_ms && c->handshake_ms && c->connect_ms && c->max_buffer && c->retry_endpoints &&
	       c->retry_endpoints <= ZT_MAX_TRIES;
}

static int dup_map(int fd)
{
	return fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 0);
}

int zt_core_new(const struct zt_config *cfg, struct zt_core **out)
{
	struct zt_core *core;
	int err = -ZT_ENOMEM;

	if (!config_ok(cfg))
		return -ZT_EINVAL;
	core = calloc(1, sizeof(*core));
	if (!core)
		return -ZT_ENOMEM;
	core->cfg = *cfg;
	core->cfg.trust_domains = (struct zt_str){ 0 };
	core->event_fd = -1;
	pthread_mutex_init(&core->pending_lock, NULL);
	atomic_init(&core->sockets_map, -1);
	atomic_init(&core->flows_map, -1);
	if (split_domains(core, cfg->trust_domains))
		goto fail;
	if (cfg->sockets_map_fd_plus1) {
		int map = dup_map((int)cfg->sockets_map_fd_plus1 - 1);

		if (map < 0) {
			err = -ZT_ESYS;
			goto fail;
		}
		atomic_store(&core->sockets_map, map);
	}
	core->aead = zt_aead_new();
	core->bio = zt_tls_bio_method();
	if (!core->bio || zt_hbone_callbacks(&core->client_cbs, &core->server_cbs))
		goto fail;
	core->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (core->event_fd < 0) {
		err = -ZT_ESYS;
		goto fail;
	}
	core->n_workers = cfg->workers;
	if (!core->n_workers) {
		long cpus = sysconf(_SC_NPROCESSORS_ONLN);

		core->n_workers = cpus < 2 ? 2 : cpus > MAX_WORKERS ? MAX_WORKERS : (unsigned)cpus;
	}
	core->workers = calloc(core->n_workers, sizeof(*core->workers));
	if (!core->workers)
		goto fail;
	for (unsigned i = 0; i < core->n_workers; i++)
		core->workers[i].loop.epfd = core->workers[i].wake.fd = core->workers[i].own_netns =
			core->workers[i].spare_fd = -1;
	for (unsigned i = 0; i < core->n_workers; i++) {
		err = zt_worker_init(&core->workers[i], core, i);
		if (err)
			goto fail;
	}
	*out = core;
	return 0;

fail:
	zt_core_free(core);
	return err;
}

int zt_core_start(struct zt_core *core)
{
	if (core->started || core->stopped)
		return -ZT_ESTATE;
	core->started = true;
	for (unsigned i = 0; i < core->n_workers; i++) {
		int err = zt_worker_start(&core->workers[i]);

		if (err) {
			core->sys_errno = core->workers[i].sys_errno;
			zt_core_stop(core);
			return err;
		}
	}
	return 0;
}

int zt_core_tell(struct zt_core *core, const struct zt_msg *proto)
{
	struct zt_msg **all = calloc(core->n_workers, sizeof(struct zt_msg *));

	if (!all)
		return -ZT_ENOMEM;
	for (unsigned i = 0; i < core->n_workers; i++) {
		all[i] = malloc(sizeof(struct zt_msg));
		if (all[i])
			continue;
		while (i--)
			free(all[i]);
		free(all);
		return -ZT_ENOMEM;
	}
	for (unsigned i = 0; i < core->n_workers; i++) {
		*all[i] = *proto;
		zt_tableset_get(proto->tables);
		zt_identity_get(proto->identity);
		zt_revocations_get(proto->revocations);
		zt_name_get(proto->name);
		if (proto->pod)
			atomic_fetch_add_explicit(&proto->pod->refs, 1, memory_order_relaxed);
		if (proto->listing)
			atomic_fetch_add_explicit(&proto->listing->refs, 1, memory_order_relaxed);
		zt_worker_post(&core->workers[i], all[i]);
	}
	free(all);
	return 0;
}

void zt_core_stop(struct zt_core *core)
{
	if (!core || core->stopped)
		return;
	core->stopped = true;
	for (unsigned i = 0; i < core->n_workers && core->workers; i++) {
		struct zt_worker *w = &core->workers[i];
		struct zt_msg *m;

		if (!w->started)
			continue;
		while (!(m = calloc(1, sizeof(*m))))
			usleep(1000); /* a thread that cannot be told to stop cannot be joined */
		m->kind = ZT_M_STOP;
		zt_worker_post(w, m);
	}
	for (unsigned i = 0; i < core->n_workers && core->workers; i++)
		if (core->workers[i].started)
			pthread_join(core->workers[i].thread, NULL);
}

void zt_core_free(struct zt_core *core)
{
	if (!core)
		return;
	zt_core_stop(core);
	for (unsigned i = 0; i < core->n_workers && core->workers; i++)
		zt_worker_free(&core->workers[i]);
	free(core->workers);
	for (size_t i = 0; i < core->n_domains; i++)
		zt_name_put(core->domains[i]);
	free(core->domains);
	free(core->pods);
	zt_revocations_put(core->revocations);
	nghttp2_session_callbacks_del(core->client_cbs);
	nghttp2_session_callbacks_del(core->server_cbs);
	BIO_meth_free(core->bio);
	zt_aead_free(core->aead);
	if (core->event_fd >= 0)
		close(core->event_fd);
	if (atomic_load(&core->sockets_map) >= 0)
		close(atomic_load(&core->sockets_map));
	if (atomic_load(&core->flows_map) >= 0)
		close(atomic_load(&core->flows_map));
	zt_map_free(&core->pending);
	pthread_mutex_destroy(&core->pending_lock);
	free(core);
}

int zt_core_errno(const struct zt_core *core)
{
	return core->sys_errno;
}

/* A worker may be about to use the old number: put the new map under it where there is one. */
static int replace_map(struct zt_core *core, _Atomic int *slot, int fd)
{
	int old = atomic_load(slot);
	int map;

	if (old >= 0) {
		if (dup3(fd, old, O_CLOEXEC) < 0) {
			core->sys_errno = errno;
			return -ZT_ESYS;
		}
		return 0;
	}
	map = dup_map(fd);
	if (map < 0) {
		core->sys_errno = errno;
		return -ZT_ESYS;
	}
	atomic_store(slot, map);
	return 0;
}

int zt_core_set_sockets_map(struct zt_core *core, int fd)
{
	return replace_map(core, &core->sockets_map, fd);
}

int zt_core_set_flows_map(struct zt_core *core, int fd)
{
	return replace_map(core, &core->flows_map, fd);
}

int zt_identity_put(struct zt_core *core, struct zt_str id, struct zt_str chain_pem, struct zt_str key_pem,
		    struct zt_str roots_pem, char *err, size_t err_cap)
{
	struct zt_msg m = { .kind = ZT_M_IDENTITY };
	int ret;

	if (core->stopped)
		return -ZT_ESTATE;
	ret = zt_identity_new(core, id, chain_pem, key_pem, roots_pem, &m.identity, err, err_cap);
	if (ret)
		return ret;
	ret = zt_core_tell(core, &m);
	zt_identity_put_ref(m.identity);
	return ret;
}

int zt_identity_del(struct zt_core *core, struct zt_str id)
{
	struct zt_msg m = { .kind = ZT_M_IDENTITY_DEL, .name = zt_name_new(id.ptr, id.len) };
	int ret;

	if (!m.name)
		return id.len ? -ZT_ENOMEM : -ZT_EINVAL;
	ret = core->stopped ? -ZT_ESTATE : zt_core_tell(core, &m);
	zt_name_put(m.name);
	return ret;
}

int zt_tables_apply(struct zt_core *core, const struct zt_tables *tables, char *err, size_t err_cap)
{
	struct zt_msg m = { .kind = ZT_M_TABLES };
	int ret;

	if (core->stopped)
		return -ZT_ESTATE;
	if (tables->epoch <= core->epoch)
		return -ZT_ESTALE;
	ret = zt_tableset_new(tables, &m.tables, err, err_cap);
	if (ret)
		return ret;
	ret = zt_core_tell(core, &m);
	if (!ret)
		core->epoch = tables->epoch;
	zt_tableset_put(m.tables);
	return ret;
}

void zt_pod_unlisten(struct zt_pod *pod)
{
	if (atomic_fetch_sub_explicit(&pod->listeners, 1, memory_order_acq_rel) != 1)
		return;
	for (size_t i = 0; i < pod->n_listen; i++) {
		close(pod->listen[i].fd);
		pod->listen[i].fd = -1;
	}
}

void zt_pod_put(struct zt_pod *pod)
{
	if (atomic_fetch_sub_explicit(&pod->refs, 1, memory_order_acq_rel) != 1)
		return;
	if (pod->netns_fd >= 0)
		close(pod->netns_fd);
	for (size_t i = 0; i < ZT_COUNT(pod->replay); i++)
		if (pod->replay[i] >= 0)
			close(pod->replay[i]);
	zt_name_put(pod->identity);
	zt_name_put(pod->uid);
	zt_name_put(pod->baggage);
	free(pod->addrs);
	free(pod->listen);
	free(pod);
}

/* uid is Istio's "<cluster>//Pod/<namespace>/<name>"; other shapes give no baggage. */
static struct zt_name *make_baggage(const struct zt_name *uid)
{
	char cluster[65], ns[65], name[129], text[320];
	int n;

	if (!uid || sscanf(uid->s, "%64[^/]//Pod/%64[^/]/%128[^/]", cluster, ns, name) != 3)
		return NULL;
	for (const char *p = uid->s; *p; p++)
		if (*p <= ' ' || *p > '~' || *p == ',' || *p == ';' || *p == '=')
			return NULL;
	n = snprintf(text, sizeof(text), "k8s.cluster.name=%s,k8s.namespace.name=%s,k8s.pod.name=%s,service.name=%s",
		     cluster, ns, name, name);
	return n > 0 && (size_t)n < sizeof(text) ? zt_name_new(text, (size_t)n) : NULL;
}

/* Accepted sockets inherit these. */
static void prepare_listener(int fd)
{
	int on = 1, idle = KEEPALIVE_S, probes = KEEPALIVE_PROBES;
	int flags = fcntl(fd, F_GETFL);

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &idle, sizeof(idle));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof(probes));
	setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
	if (flags >= 0)
		fcntl(fd, F_SETFL, flags | O_NONBLOCK); /* several workers race for each connection */
}

static bool pod_spec_ok(const struct zt_pod_spec *s)
{
	if (!s->identity.len || s->identity.len > 255 || s->n_listeners > 64 || s->n_addrs > 64)
		return false;
	for (uint32_t i = 0; i < s->n_listeners; i++) {
		const struct zt_listener_spec *l = &s->listeners[i];

		if (l->fd < 0 || l->kind > ZT_SOCK_REPLAY ||
		    (l->kind == ZT_SOCK_LISTEN && l->port != ZT_PORT_OUTBOUND && l->port != ZT_PORT_INBOUND &&
		     l->port != ZT_PORT_HBONE))
			return false;
	}
	return true;
}

static bool pod_known(const struct zt_core *core, uint64_t id, size_t *at)
{
	for (*at = 0; *at < core->n_pods; ++*at)
		if (core->pods[*at] == id)
			return true;
	return false;
}

static struct zt_pod *pod_new(const struct zt_core *core, const struct zt_pod_spec *s)
{
	struct zt_pod *pod = calloc(1, sizeof(*pod));

	if (!pod)
		return NULL;
	pod->netns_fd = pod->replay[0] = pod->replay[1] = -1; /* taken only at the end */
	pod->netns_cookie = s->netns_cookie;
	atomic_init(&pod->refs, 1);
	atomic_init(&pod->listeners, core->n_workers);
	pod->id = s->id;
	pod->hbone_port = s->hbone_port ? s->hbone_port : ZT_PORT_HBONE;
	pod->identity = zt_name_new(s->identity.ptr, s->identity.len);
	pod->uid = zt_name_new(s->uid.ptr, s->uid.len);
	pod->baggage = make_baggage(pod->uid);
	pod->addrs = calloc(s->n_addrs + 1, sizeof(*pod->addrs));
	pod->listen = calloc(s->n_listeners + 1, sizeof(*pod->listen));
	if (!pod->identity || !pod->addrs || !pod->listen) {
		zt_pod_put(pod);
		return NULL;
	}
	for (uint32_t i = 0; i < s->n_addrs; i++)
		pod->addrs[pod->n_addrs++] = s->addrs[i];
	return pod;
}

static int spec_fd(const struct zt_pod_spec *s, enum zt_socket_kind kind, uint16_t family)
{
	for (uint32_t i = 0; i < s->n_listeners; i++)
		if (s->listeners[i].kind == kind && s->listeners[i].family == family &&
		    s->listeners[i].port == ZT_PORT_OUTBOUND)
			return s->listeners[i].fd;
	return -1;
}

/* Does a client of this family get its answer from the destination (honest.c), or from us at once? */
static bool family_honest(const struct zt_core *core, const struct zt_pod_spec *s, uint16_t family)
{
	return s->netns_cookie && atomic_load(&core->flows_map) >= 0 && spec_fd(s, ZT_SOCK_WATCH, family) >= 0 &&
	       spec_fd(s, ZT_SOCK_REPLAY, family) >= 0 && zt_syn_is_guarded(spec_fd(s, ZT_SOCK_LISTEN, family));
}

static void take_sockets(struct zt_core *core, struct zt_pod *pod, const struct zt_pod_spec *s)
{
	bool honest[2] = { family_honest(core, s, 4), family_honest(core, s, 6) };

	pod->honest = honest[0] || honest[1];
	for (uint32_t i = 0; i < s->n_listeners; i++) {
		const struct zt_listener_spec *l = &s->listeners[i];

		if (l->kind == ZT_SOCK_REPLAY) {
			pod->replay[l->family == 6] = l->fd;
			continue;
		}
		if (l->kind == ZT_SOCK_LISTEN)
			prepare_listener(l->fd);
		if (l->kind == ZT_SOCK_LISTEN && l->port == ZT_PORT_OUTBOUND && !honest[l->family == 6])
			zt_syn_unguard(l->fd);
		pod->listen[pod->n_listen++] =
			(struct zt_listen){ .fd = l->fd, .port = l->port, .family = l->family, .kind = l->kind };
	}
}

int zt_pod_add(struct zt_core *core, const struct zt_pod_spec *s)
{
	struct zt_msg m = { .kind = ZT_M_POD_ADD };
	uint64_t *pods;
	size_t at;
	int ret;

	if (core->stopped || atomic_load(&core->draining))
		return -ZT_ESTATE;
	if (!pod_spec_ok(s))
		return -ZT_EINVAL;
	if (pod_known(core, s->id, &at))
		return -ZT_EEXIST;
	if (core->n_pods == core->cap_pods) {
		pods = realloc(core->pods, (core->cap_pods * 2 + 16) * sizeof(*pods));
		if (!pods)
			return -ZT_ENOMEM;
		core->pods = pods;
		core->cap_pods = core->cap_pods * 2 + 16;
	}
	m.pod = pod_new(core, s);
	if (!m.pod)
		return -ZT_ENOMEM;
	take_sockets(core, m.pod, s);
	m.pod->netns_fd = s->netns_fd;
	ret = zt_core_tell(core, &m);
	if (ret) { /* the caller keeps its descriptors */
		m.pod->netns_fd = m.pod->replay[0] = m.pod->replay[1] = -1;
		zt_pod_put(m.pod);
		return ret;
	}
	core->pods[core->n_pods++] = s->id;
	zt_pod_put(m.pod);
	return 0;
}

int zt_pod_del(struct zt_core *core, uint64_t id, uint32_t drain_ms)
{
	struct zt_msg m = { .kind = ZT_M_POD_DEL, .id = id, .ms = drain_ms };
	size_t at;
	int ret;

	if (core->stopped)
		return -ZT_ESTATE;
	if (!pod_known(core, id, &at))
		return -ZT_ENOENT;
	ret = zt_core_tell(core, &m);
	if (!ret)
		core->pods[at] = core->pods[--core->n_pods];
	return ret;
}

int zt_pod_retire(struct zt_core *core, uint64_t id)
{
	struct zt_msg m = { .kind = ZT_M_POD_RETIRE, .id = id };
	size_t at;

	if (core->stopped)
		return -ZT_ESTATE;
	return pod_known(core, id, &at) ? zt_core_tell(core, &m) : -ZT_ENOENT;
}

int zt_core_drain(struct zt_core *core, uint32_t deadline_ms)
{
	struct zt_msg m = { .kind = ZT_M_DRAIN, .ms = deadline_ms };

	if (core->stopped)
		return -ZT_ESTATE;
	atomic_store(&core->draining, true);
	return zt_core_tell(core, &m);
}

int zt_event_fd(const struct zt_core *core)
{
	return core->event_fd;
}

int zt_events_read(struct zt_core *core, struct zt_event *buf, size_t cap)
{
	uint64_t n;
	size_t got = 0;

	/* First the flag, then the rings: an event that comes in between signals again. */
	(void)!read(core->event_fd, &n, sizeof(n));
	atomic_store(&core->event_signalled, 0);
	for (unsigned i = 0; i < core->n_workers && got < cap; i++)
		got += zt_ring_read(&core->workers[i].ring, buf + got, cap - got);
	return (int)got;
}

int zt_connections(struct zt_core *core, struct zt_event *buf, size_t cap)
{
	struct zt_msg m = { .kind = ZT_M_LIST };
	struct zt_listing *l;
	struct timespec until;
	size_t total, n;

	if (!core->started || core->stopped)
		return -ZT_ESTATE;
	l = calloc(1, sizeof(*l));
	if (!l)
		return -ZT_ENOMEM;
	l->rows = calloc(cap + 1, sizeof(*l->rows));
	if (!l->rows) {
		free(l);
		return -ZT_ENOMEM;
	}
	atomic_init(&l->refs, 1);
	pthread_mutex_init(&l->lock, NULL);
	pthread_cond_init(&l->cond, NULL);
	l->cap = cap;
	l->missing = core->n_workers;
	m.listing = l;
	if (zt_core_tell(core, &m)) {
		zt_listing_put(l);
		return -ZT_ENOMEM;
	}
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += LIST_WAIT_S;
	pthread_mutex_lock(&l->lock);
	while (l->missing && !pthread_cond_timedwait(&l->cond, &l->lock, &until))
		;
	n = l->n;
	total = l->total;
	for (size_t i = 0; i < n; i++)
		zt_slim_expand(&l->rows[i], &buf[i]);
	l->n = 0;
	l->cap = 0; /* a late answer only counts */
	pthread_mutex_unlock(&l->lock);
	zt_listing_put(l);
	return (int)total;
}

int zt_counters(const struct zt_core *core, struct zt_counters *out)
{
	*out = (struct zt_counters){
		.conns_live = atomic_load(&core->conns),
		.handshakes_pending = atomic_load(&core->handshakes),
		.pods = core->n_pods,
		.epoch = core->epoch,
	};
#define ADD(field) out->field += atomic_load_explicit(&w->n.field, memory_order_relaxed)
	for (unsigned i = 0; i < core->n_workers; i++) {
		const struct zt_worker *w = &core->workers[i];

		ADD(conns_opened);
		ADD(tunnels_in_live);
		ADD(tunnels_out_live);
		ADD(tunnels_in_total);
		ADD(tunnels_out_total);
		ADD(handshakes_failed);
		ADD(streams_reused);
		ADD(events_dropped);
		ADD(bytes_buffered);
		for (size_t r = 0; r < ZT_R_MAX; r++)
			ADD(reasons[r]);
	}
#undef ADD
	return 0;
}

uint64_t zt_core_live(const struct zt_core *core)
{
	return atomic_load(&core->conns) + atomic_load(&core->tunnels);
}
