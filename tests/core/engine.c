/* SPDX-License-Identifier: Apache-2.0 */
/* The engine in one process for the sanitizers: client core, server core, an echo application and hostile peers on
 * loopback addresses, through the public header only. Exits 0, or says which claim failed. QANAT_SMALL: fewer rounds.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "zt.h"

#define SERVER_IP "127.88.0.10"
#define VIP "127.88.0.200"
#define VIP_PORT 8081
#define GUARDED_PORT 8083 /* of VIP: policy closes it every other time */
#define OUTSIDE_IP "127.88.0.20"
#define OUTSIDE_VIP "127.88.0.201" /* likewise, on its way out */
#define CLIENT_ID "spiffe://cluster.local/ns/shop/sa/client"
#define SERVER_ID "spiffe://cluster.local/ns/shop/sa/server"

#define CHECK(claim)                                                                                                   \
	do {                                                                                                           \
		if (!(claim)) {                                                                                        \
			fprintf(stderr, "%s:%d: failed: %s (errno %s)\n", __FILE__, __LINE__, #claim,                  \
				strerror(errno));                                                                      \
			exit(1);                                                                                       \
		}                                                                                                      \
	} while (0)

static int rounds = 60;
static uint16_t app_port, guarded_port, outside_port, hbone_port;
static struct zt_core *client, *server;
static EVP_PKEY *ca_key;
static X509 *ca_cert;
static char roots_pem[4096];
static _Atomic bool stop;
static _Atomic long hostile_serial; /* of the certificate that hostile() means well with: revoked now and then */

static void pause_ms(int ms)
{
	struct timespec ts = { .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L };

	nanosleep(&ts, NULL);
}

static struct zt_str str(const char *s)
{
	return (struct zt_str){ s, strlen(s) };
}

static struct zt_addr addr(const char *ip, uint16_t port)
{
	struct zt_addr a = { .family = 4, .port = port };

	inet_pton(AF_INET, ip, a.ip);
	return a;
}

static struct sockaddr_in sock_addr(const char *ip, uint16_t port)
{
	struct sockaddr_in in = { .sin_family = AF_INET, .sin_port = htons(port) };

	inet_pton(AF_INET, ip, &in.sin_addr);
	return in;
}

static int listen_at(const char *ip, uint16_t port, uint16_t *got)
{
	struct sockaddr_in in = sock_addr(ip, port);
	socklen_t len = sizeof(in);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;

	CHECK(fd >= 0);
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	CHECK(!bind(fd, (struct sockaddr *)&in, sizeof(in)));
	CHECK(!listen(fd, 1024));
	CHECK(!getsockname(fd, (struct sockaddr *)&in, &len));
	if (got)
		*got = ntohs(in.sin_port);
	return fd;
}

static int dial(const char *ip, uint16_t port)
{
	struct sockaddr_in in = sock_addr(ip, port);
	struct timeval limit = { .tv_sec = 60 };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;

	CHECK(fd >= 0);
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	if (connect(fd, (struct sockaddr *)&in, sizeof(in))) {
		close(fd);
		return -1;
	}
	return fd;
}

static void reset(int fd)
{
	struct linger now = { .l_onoff = 1, .l_linger = 0 };

	setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
	close(fd);
}

/* --- certificates ------------------------------------------------------------------------------------------------ */

static X509 *make_cert(EVP_PKEY *key, const char *uri, EVP_PKEY *signer, X509 *issuer, long from_s, long to_s)
{
	static _Atomic long serial = 1;
	X509 *x = X509_new();
	X509V3_CTX ctx;
	char san[300];

	CHECK(x);
	X509_set_version(x, 2);
	ASN1_INTEGER_set(X509_get_serialNumber(x), serial++);
	X509_gmtime_adj(X509_getm_notBefore(x), from_s);
	X509_gmtime_adj(X509_getm_notAfter(x), to_s);
	X509_set_pubkey(x, key);
	X509_NAME_add_entry_by_txt(X509_get_subject_name(x), "CN", MBSTRING_ASC,
				   (const unsigned char *)(uri ? "leaf" : "root"), -1, -1, 0);
	X509_set_issuer_name(x, X509_get_subject_name(issuer ? issuer : x));
	X509V3_set_ctx(&ctx, issuer ? issuer : x, x, NULL, NULL, 0);
	if (uri) {
		X509_EXTENSION *e;

		snprintf(san, sizeof(san), "URI:%s", uri);
		e = X509V3_EXT_conf_nid(NULL, &ctx, NID_subject_alt_name, san);
		X509_add_ext(x, e, -1);
		X509_EXTENSION_free(e);
	} else {
		X509_EXTENSION *e = X509V3_EXT_conf_nid(NULL, &ctx, NID_basic_constraints, "critical,CA:TRUE");

		X509_add_ext(x, e, -1);
		X509_EXTENSION_free(e);
	}
	CHECK(X509_sign(x, signer, EVP_sha256()));
	return x;
}

static void to_pem(char *out, size_t cap, X509 *x, EVP_PKEY *key)
{
	BIO *bio = BIO_new(BIO_s_mem());
	int n;

	CHECK(x ? PEM_write_bio_X509(bio, x) : PEM_write_bio_PKCS8PrivateKey(bio, key, NULL, NULL, 0, NULL, NULL));
	n = BIO_read(bio, out, (int)cap - 1);
	CHECK(n > 0);
	out[n] = 0;
	BIO_free(bio);
}

static void give(struct zt_core *core, const char *id)
{
	EVP_PKEY *key = EVP_EC_gen("P-256");
	X509 *x = make_cert(key, id, ca_key, ca_cert, -60, 3600);
	char chain[4096], pem[4096], err[256] = "";

	to_pem(chain, sizeof(chain), x, NULL);
	to_pem(pem, sizeof(pem), NULL, key);
	if (zt_identity_put(core, str(id), str(chain), str(pem), str(roots_pem), err, sizeof(err))) {
		fprintf(stderr, "identity: %s\n", err);
		exit(1);
	}
	X509_free(x);
	EVP_PKEY_free(key);
}

static SSL_CTX *peer_context(const char *id)
{
	SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());

	SSL_CTX_set_alpn_protos(ctx, (const unsigned char *)"\x02h2", 3);
	if (id) {
		EVP_PKEY *key = EVP_EC_gen("P-256");
		X509 *x = make_cert(key, id, ca_key, ca_cert, -60, 3600);

		if (!strcmp(id, CLIENT_ID))
			hostile_serial = ASN1_INTEGER_get(X509_get0_serialNumber(x));
		SSL_CTX_use_certificate(ctx, x);
		SSL_CTX_use_PrivateKey(ctx, key);
		X509_free(x);
		EVP_PKEY_free(key);
	}
	return ctx;
}

/* A list of `fill` strangers and, where asked for, one serial that somebody has. */
static void revoke_some(struct zt_core *core, long serial, int fill)
{
	struct zt_revocation_info info;
	X509_CRL *crl = X509_CRL_new();
	ASN1_TIME *now = X509_gmtime_adj(NULL, 0);
	char pem[65536], err[256] = "";
	BIO *bio = BIO_new(BIO_s_mem());
	int n;

	X509_CRL_set_version(crl, 1);
	X509_CRL_set_issuer_name(crl, X509_get_subject_name(ca_cert));
	X509_CRL_set1_lastUpdate(crl, now);
	for (int i = 0; i < fill + (serial > 0); i++) {
		X509_REVOKED *row = X509_REVOKED_new();
		ASN1_INTEGER *number = ASN1_INTEGER_new();

		ASN1_INTEGER_set(number, i < fill ? 1000000 + i : serial);
		X509_REVOKED_set_serialNumber(row, number);
		X509_REVOKED_set_revocationDate(row, now);
		X509_CRL_add0_revoked(crl, row);
		ASN1_INTEGER_free(number);
	}
	CHECK(X509_CRL_sign(crl, ca_key, EVP_sha256()));
	CHECK(PEM_write_bio_X509_CRL(bio, crl));
	n = BIO_read(bio, pem, sizeof(pem) - 1);
	CHECK(n > 0);
	if (zt_revocations_apply(core, (struct zt_str){ pem, (size_t)n }, str(roots_pem), str(""), &info, err,
				 sizeof(err))) {
		fprintf(stderr, "revocations: %s\n", err);
		exit(1);
	}
	CHECK(info.lists == 1 && info.serials == (uint64_t)(fill + (serial > 0)));
	CHECK(zt_revocations_apply(core, (struct zt_str){ pem, (size_t)n / 2 }, str(roots_pem), str(""), &info, err,
				   sizeof(err)) == -ZT_ETLS);
	CHECK(zt_revocations_find(core, str(roots_pem), err, sizeof(err)) == 0);
	BIO_free(bio);
	ASN1_TIME_free(now);
	X509_CRL_free(crl);
}

/* --- the application: 'r' resets, 'c' closes, anything else is echoed --------------------------------------------- */

static void *serve(void *arg)
{
	int fd = (int)(intptr_t)arg;
	char buf[65536];
	ssize_t n = 0;

	while ((n = recv(fd, buf, sizeof(buf), 0)) > 0) {
		if (buf[0] == 'r' || buf[0] == 'c')
			break;
		for (ssize_t at = 0, k; at < n; at += k) {
			k = send(fd, buf + at, (size_t)(n - at), MSG_NOSIGNAL);
			if (k <= 0)
				goto out;
		}
	}
out:
	if (n > 0 && buf[0] == 'r')
		reset(fd);
	else
		close(fd);
	return NULL;
}

static void *accept_all(void *arg)
{
	int fd = (int)(intptr_t)arg;

	for (;;) {
		pthread_t t;
		int got = accept4(fd, NULL, NULL, SOCK_CLOEXEC);

		if (got < 0)
			break;
		CHECK(!pthread_create(&t, NULL, serve, (void *)(intptr_t)got));
		pthread_detach(t);
	}
	close(fd);
	return NULL;
}

/* --- scenarios --------------------------------------------------------------------------------------------------------- */

static void echo_of(size_t size)
{
	char *data = malloc(size), *back = malloc(size);
	size_t sent = 0, got = 0;
	int fd = dial(VIP, VIP_PORT);

	CHECK(fd >= 0 && data && back);
	memset(data, 'd', size);
	for (size_t i = 0; i < size; i += 97)
		data[i] = (char)('e' + i % 11);
	data[0] = 'x';
	while (got < size) {
		struct pollfd p = { .fd = fd, .events = (short)(POLLIN | (sent < size ? POLLOUT : 0)) };
		ssize_t n;

		CHECK(poll(&p, 1, 60000) == 1);
		if (p.revents & POLLOUT) {
			n = send(fd, data + sent, size - sent, MSG_DONTWAIT | MSG_NOSIGNAL);
			CHECK(n > 0 || errno == EAGAIN);
			sent += n > 0 ? (size_t)n : 0;
			if (sent == size)
				shutdown(fd, SHUT_WR);
		}
		if (p.revents & POLLIN) {
			n = recv(fd, back + got, size - got, MSG_DONTWAIT);
			CHECK(n > 0 || (n < 0 && errno == EAGAIN));
			got += n > 0 ? (size_t)n : 0;
		}
	}
	CHECK(!memcmp(data, back, size));
	CHECK(recv(fd, back, 1, 0) == 0);
	close(fd);
	free(data);
	free(back);
}

static void *traffic(void *arg)
{
	unsigned seed = (unsigned)(uintptr_t)arg;
	char c;

	for (int i = 0; i < rounds; i++) {
		int fd;

		switch (rand_r(&seed) % 8) {
		case 0: /* reset by the server */
			fd = dial(VIP, VIP_PORT);
			if (fd < 0)
				break;
			(void)!send(fd, "r", 1, MSG_NOSIGNAL);
			CHECK(recv(fd, &c, 1, 0) <= 0);
			close(fd);
			break;
		case 1: /* reset by the client, at any moment */
			fd = dial(VIP, VIP_PORT);
			if (fd < 0)
				break;
			if (rand_r(&seed) % 2)
				(void)!send(fd, "x", 1, MSG_NOSIGNAL);
			if (rand_r(&seed) % 2)
				pause_ms(rand_r(&seed) % 5);
			reset(fd);
			break;
		case 2: /* a clean end by the server */
			fd = dial(VIP, VIP_PORT);
			if (fd < 0)
				break;
			(void)!send(fd, "c", 1, MSG_NOSIGNAL);
			CHECK(recv(fd, &c, 1, 0) == 0);
			close(fd);
			break;
		case 3: /* closed at once */
			fd = dial(VIP, VIP_PORT);
			if (fd >= 0)
				close(fd);
			break;
		default:
			echo_of(1 + (size_t)rand_r(&seed) % (1u << (rand_r(&seed) % 19)));
			break;
		}
	}
	return NULL;
}

/* Connections that policy refuses, cuts or lets be, as it happens to be. */
static void *at_mercy(void *arg)
{
	unsigned seed = (unsigned)(uintptr_t)arg;

	for (int i = 0; i < rounds * 4; i++) {
		bool leaves = rand_r(&seed) % 2;
		int fd = leaves ? dial(OUTSIDE_VIP, VIP_PORT) : dial(VIP, GUARDED_PORT);
		char c = 'x';

		for (int k = rand_r(&seed) % 8; fd >= 0 && k; k--) {
			if (send(fd, &c, 1, MSG_NOSIGNAL) != 1 || recv(fd, &c, 1, 0) != 1)
				break;
			pause_ms(rand_r(&seed) % 8);
		}
		if (fd >= 0)
			close(fd);
	}
	return NULL;
}

static SSL *tls_peer(SSL_CTX *ctx)
{
	SSL *ssl = SSL_new(ctx);
	int fd = dial(SERVER_IP, hbone_port);

	CHECK(fd >= 0);
	SSL_set_fd(ssl, fd);
	SSL_connect(ssl);
	return ssl;
}

static void drop(SSL *ssl)
{
	close(SSL_get_fd(ssl));
	SSL_free(ssl);
}

static const unsigned char preface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0";

/* HEADERS of a CONNECT to an address that is not ours (HPACK literals), stream `id`. */
static size_t connect_frame(unsigned char *out, uint32_t id)
{
	static const unsigned char block[] = { 0x02, 7,   'C', 'O', 'N', 'N', 'E', 'C', 'T', 0x01,
					       9,    '1', '.', '2', '.', '3', '.', '4', ':', '5' };
	unsigned char head[9] = { 0,
				  0,
				  sizeof(block),
				  1,
				  4,
				  (unsigned char)(id >> 24),
				  (unsigned char)(id >> 16),
				  (unsigned char)(id >> 8),
				  (unsigned char)id };

	memcpy(out, head, 9);
	memcpy(out + 9, block, sizeof(block));
	return 9 + sizeof(block);
}

static void write_some(SSL *ssl, const void *data, size_t len)
{
	size_t n;

	(void)!SSL_write_ex(ssl, data, len, &n);
}

static void *hostile(void *arg)
{
	SSL_CTX *good = peer_context(CLIENT_ID), *none = peer_context(NULL),
		*wrong = peer_context("spiffe://else/ns/a/sa/b");
	unsigned seed = 77;
	unsigned char frame[256], noise[2048];
	SSL *ssl;

	(void)arg;
	for (int i = 0; i < rounds / 4 + 4; i++) {
		int fd;

		switch (i % 9) {
		case 0:
			drop(tls_peer(none));
			break;
		case 1:
			drop(tls_peer(wrong));
			break;
		case 2: /* noise instead of TLS */
			fd = dial(SERVER_IP, hbone_port);
			for (size_t k = 0; k < sizeof(noise); k++)
				noise[k] = (unsigned char)rand_r(&seed);
			noise[0] = i % 2 ? 0x16 : noise[0];
			(void)!send(fd, noise, sizeof(noise), MSG_NOSIGNAL);
			close(fd);
			break;
		case 3: /* noise instead of HTTP/2 */
			ssl = tls_peer(good);
			write_some(ssl, noise, sizeof(noise));
			drop(ssl);
			break;
		case 4: /* noise after the preface */
			ssl = tls_peer(good);
			write_some(ssl, preface, sizeof(preface));
			write_some(ssl, noise, sizeof(noise));
			drop(ssl);
			break;
		case 5: /* streams and resets */
			ssl = tls_peer(good);
			write_some(ssl, preface, sizeof(preface));
			for (uint32_t id = 1; id < 2000; id += 2) {
				unsigned char rst[13] = {
					0, 0, 4, 3, 0, 0, 0, (unsigned char)(id >> 8), (unsigned char)id, 0, 0, 0, 8
				};
				size_t n = connect_frame(frame, id);

				memcpy(frame + n, rst, sizeof(rst));
				write_some(ssl, frame, n + sizeof(rst));
			}
			drop(ssl);
			break;
		case 6: /* requests, then gone without reading */
			ssl = tls_peer(good);
			write_some(ssl, preface, sizeof(preface));
			for (uint32_t id = 1; id < 41; id += 2)
				write_some(ssl, frame, connect_frame(frame, id));
			reset(SSL_get_fd(ssl));
			SSL_free(ssl);
			break;
		case 7: /* half a record */
			fd = dial(SERVER_IP, hbone_port);
			(void)!send(fd, "\x16\x03\x01\x02\x00\x01", 6, MSG_NOSIGNAL);
			pause_ms(5);
			close(fd);
			break;
		default: /* silence */
			close(dial(SERVER_IP, hbone_port));
			break;
		}
	}
	SSL_CTX_free(good);
	SSL_CTX_free(none);
	SSL_CTX_free(wrong);
	return NULL;
}

static uint64_t epoch;

static void apply(struct zt_core *core)
{
	struct zt_workload_row workloads[] = {
		{ .addr = addr(SERVER_IP, 0),
		  .protocol = ZT_PROTO_HBONE,
		  .identity = str(SERVER_ID),
		  .uid = str("c//Pod/shop/web") },
		{ .addr = addr("127.88.0.11", 0),
		  .protocol = ZT_PROTO_HBONE,
		  .identity = str(SERVER_ID),
		  .uid = str("gone") },
		{ .addr = addr(OUTSIDE_IP, 0), .protocol = ZT_PROTO_PLAIN, .uid = str("outside") },
	};
	struct zt_endpoint_row endpoints[] = { { 0, app_port },
					       { 0, app_port == 9 ? 10 : 9 },
					       { 1, app_port },
					       { 0, guarded_port },
					       { 2, outside_port } };
	struct zt_service_row services[] = {
		{ .vip = addr(VIP, VIP_PORT), .n_endpoints = 3, .hostname = str("web.shop.svc.cluster.local") },
		{ .vip = addr(VIP, GUARDED_PORT), .first_endpoint = 3, .n_endpoints = 1, .hostname = str("guarded") },
		{ .vip = addr(OUTSIDE_VIP, VIP_PORT),
		  .first_endpoint = 4,
		  .n_endpoints = 1,
		  .hostname = str("outside"),
		  .closed = str(epoch % 7 ? "" : "waypoint shop/wp is not there") },
	};
	struct zt_tables tables = { .epoch = epoch,
				    .workloads = workloads,
				    .n_workloads = 3,
				    .services = services,
				    .n_services = 3,
				    .endpoints = endpoints,
				    .n_endpoints = 5 };
	char err[256] = "";

	if (zt_tables_apply(core, &tables, err, sizeof(err))) {
		fprintf(stderr, "tables: %s\n", err);
		exit(1);
	}
}

/* In: our client may come, is noted, and is denied one port in odd turns. Out: one address, and none in odd turns. */
static void apply_policies(bool odd)
{
	struct zt_value_row values[] = {
		{ .match = ZT_MATCH_EXACT, .text = str(CLIENT_ID + strlen("spiffe://")) },
		{ .match = ZT_MATCH_PORT, .number = guarded_port },
		{ .match = ZT_MATCH_BLOCK, .addr = addr(OUTSIDE_IP, 0), .number = 32 },
	};
	struct zt_test_row tests[] = { { ZT_ATTR_PRINCIPAL, 0, 0, 1 },
				       { ZT_ATTR_DST_PORT, 0, 1, 1 },
				       { ZT_ATTR_DST_IP, 0, 2, 1 } };
	struct zt_run_row each[] = { { 0, 1 }, { 1, 1 }, { 2, 1 } };
	struct zt_rule_row rules[] = { { str("shop/note rules[0]"), 0, 1 },
				       { str("shop/in rules[0]"), 0, 1 },
				       { str("shop/no rules[0]"), 1, 1 },
				       { str("EgressPolicy shop/out rules[0]"), 2, 1 } };
	struct zt_policy_row in[] = { { str("shop/note"), ZT_ACT_NOTE, 0, 0, 1 },
				      { str("shop/in"), ZT_ACT_ALLOW, 0, 1, 1 },
				      { str("shop/no"), ZT_ACT_DENY, 0, 2, 1 } };
	struct zt_policy_row out[] = { { str("EgressPolicy shop/out"), ZT_ACT_ALLOW, 0, 3, odd ? 0 : 1 } };
	struct zt_guard_row served[] = { { addr(SERVER_IP, 0), 0, 1 } }, leaving[] = { { addr("127.0.0.1", 0), 0, 1 } };
	uint32_t scopes[] = { 0 };
	struct zt_policies p = { .epoch = epoch,
				 .deny_unknown = 1,
				 .n_scopes = 1,
				 .policies = in,
				 .n_policies = odd ? 3 : 2,
				 .rules = rules,
				 .n_rules = 4,
				 .clauses = each,
				 .n_clauses = 3,
				 .options = each,
				 .n_options = 3,
				 .tests = tests,
				 .n_tests = 3,
				 .values = values,
				 .n_values = 3,
				 .scopes = scopes,
				 .n_guard_scopes = 1,
				 .guards = served,
				 .n_guards = 1 };
	char err[256] = "";

	CHECK(!zt_policies_apply(server, &p, err, sizeof(err)));
	CHECK(zt_policies_apply(server, &p, err, sizeof(err)) == -ZT_ESTALE);
	p.policies = out;
	p.n_policies = 1;
	p.guards = leaving;
	CHECK(zt_egress_apply(client, &p, err, sizeof(err)) == -ZT_EINVAL);
	p.by_source = 1;
	CHECK(!zt_egress_apply(client, &p, err, sizeof(err)));
}

static void add_pod(struct zt_core *core, uint64_t id, const char *ip, const char *identity, int fd, uint16_t port)
{
	struct zt_addr own = addr(ip, 0);
	struct zt_listener_spec l = { .fd = fd, .port = port, .family = 4 };
	struct zt_pod_spec spec = { .id = id,
				    .netns_fd = -1,
				    .addrs = &own,
				    .n_addrs = 1,
				    .identity = str(identity),
				    .uid = str("c//Pod/shop/x"),
				    .listeners = &l,
				    .n_listeners = 1,
				    .hbone_port = hbone_port };

	CHECK(!zt_pod_add(core, &spec));
}

static size_t let_in, kept_out, kept_in; /* connections by what policy said of them */

static void read_events(struct zt_core *core)
{
	static struct zt_event events[64];
	int n;

	while ((n = zt_events_read(core, events, 64)) > 0)
		for (int i = 0; i < n; i++) {
			const struct zt_event *e = &events[i];

			let_in += !strcmp(e->rule, "shop/in rules[0]") && !strcmp(e->noted, "shop/note rules[0]");
			kept_out += e->reason == ZT_R_DENIED && !strcmp(e->rule, "shop/no rules[0]");
			kept_in += e->reason == ZT_R_DENIED && !strncmp(e->rule, "no rule of EgressPolicy", 23);
		}
}

/* The control thread's life while traffic flows. */
static void churn(void)
{
	static struct zt_event rows[64];
	struct zt_counters counters;

	for (int i = 0; !atomic_load(&stop); i++) {
		epoch++;
		apply(client);
		apply(server);
		if (i % 3 == 0)
			apply_policies(i / 3 % 2);
		if (i % 5 == 0)
			give(client, CLIENT_ID);
		if (i % 7 == 0)
			give(server, SERVER_ID);
		if (i % 4 == 0)
			revoke_some(server, i % 8 ? atomic_load(&hostile_serial) : 0, i % 30);
		if (i % 11 == 0) {
			add_pod(server, 100, "127.88.0.77", SERVER_ID, listen_at("127.88.0.77", 0, NULL), 15006);
			CHECK(!zt_pod_del(server, 100, (uint32_t)(i % 2 * 50)));
		}
		CHECK(zt_connections(client, rows, 64) >= 0);
		CHECK(!zt_counters(server, &counters));
		read_events(client);
		read_events(server);
		pause_ms(10);
	}
}

static void *run_traffic(void *arg)
{
	pthread_t threads[6];

	(void)arg;
	for (uintptr_t i = 0; i < 4; i++)
		CHECK(!pthread_create(&threads[i], NULL, traffic, (void *)(i + 1)));
	CHECK(!pthread_create(&threads[4], NULL, hostile, NULL));
	CHECK(!pthread_create(&threads[5], NULL, at_mercy, (void *)7));
	for (int i = 0; i < 6; i++)
		pthread_join(threads[i], NULL);
	atomic_store(&stop, true);
	return NULL;
}

static void wait_over(struct zt_core *core, const char *which)
{
	for (int i = 0; i < 3000; i++) {
		struct zt_counters c;

		zt_counters(core, &c);
		if (!c.conns_live && !c.bytes_buffered)
			return;
		pause_ms(10);
	}
	fprintf(stderr, "%s: connections never end\n", which);
	exit(1);
}

int main(void)
{
	struct zt_config cfg;
	uint16_t got;
	pthread_t apps[3], all;
	int app_fds[3], hbone_fd;

	signal(SIGPIPE, SIG_IGN);
	if (getenv("QANAT_SMALL"))
		rounds = 10;
	ca_key = EVP_EC_gen("P-256");
	ca_cert = make_cert(ca_key, NULL, ca_key, NULL, -60, 36000);
	to_pem(roots_pem, sizeof(roots_pem), ca_cert, NULL);
	app_fds[0] = listen_at(SERVER_IP, 0, &app_port);
	app_fds[1] = listen_at(SERVER_IP, 0, &guarded_port);
	app_fds[2] = listen_at(OUTSIDE_IP, 0, &outside_port);
	for (int i = 0; i < 3; i++)
		CHECK(!pthread_create(&apps[i], NULL, accept_all, (void *)(intptr_t)app_fds[i]));
	hbone_fd = listen_at(SERVER_IP, 0, &hbone_port);
	zt_config_default(&cfg);
	cfg.workers = 2;
	cfg.handshake_ms = 20000;
	cfg.ping_ms = 50;
	cfg.ping_timeout_ms = 60000;
	cfg.trust_domains = str("cluster.local");
	CHECK(!zt_core_new(&cfg, &client) && !zt_core_new(&cfg, &server));
	CHECK(!zt_core_start(client) && !zt_core_start(server));
	give(client, CLIENT_ID);
	give(server, SERVER_ID);
	epoch = 1;
	apply(client);
	apply(server);
	add_pod(server, 1, SERVER_IP, SERVER_ID, hbone_fd, 15008);
	add_pod(client, 1, "127.0.0.1", CLIENT_ID, listen_at(VIP, VIP_PORT, &got), 15001);
	add_pod(client, 2, "127.0.0.1", CLIENT_ID, listen_at(VIP, GUARDED_PORT, &got), 15001);
	add_pod(client, 3, "127.0.0.1", CLIENT_ID, listen_at(OUTSIDE_VIP, VIP_PORT, &got), 15001);

	echo_of(1);
	echo_of(3u << 20);
	CHECK(!pthread_create(&all, NULL, run_traffic, NULL));
	churn();
	pthread_join(all, NULL);
	wait_over(client, "client");
	wait_over(server, "server");
	read_events(client);
	read_events(server);
	CHECK(let_in && kept_out && kept_in);

	CHECK(!zt_core_drain(server, 3000));
	for (int i = 0; zt_core_live(server) && i < 1000; i++)
		pause_ms(10);
	CHECK(!zt_core_live(server));
	read_events(client);
	zt_core_free(client);
	zt_core_stop(server);
	read_events(server);
	zt_core_free(server);
	for (int i = 0; i < 3; i++) {
		shutdown(app_fds[i], SHUT_RDWR);
		pthread_join(apps[i], NULL);
	}
	pause_ms(200); /* application threads, detached */
	X509_free(ca_cert);
	EVP_PKEY_free(ca_key);
	return 0;
}
