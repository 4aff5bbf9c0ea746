/* SPDX-License-Identifier: Apache-2.0 */
/* Contexts per identity, who is accepted, and what a failure means. Bytes go through the worker's scratch buffers
 * (zt_tls_bio_method), never through sockets: one recv() feeds many records and many records leave in one send().
 */
#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "certs.h"
#include "engine.h"
#include "revocation.h"

#define PEM_MAX (1u << 20)
#define CHAIN_MAX 16
#define ROOTS_MAX 1024
#define SPIFFE_MAX 255 /* zt_event has 256 */

/* AES-128 first: a third faster than AES-256 and what this engine's own pairs agree on; peers may insist on 256. */
static const char suites[] = "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384";
static const uint8_t alpn_h2[] = { 2, 'h', '2' };

static int bio_read(BIO *b, char *buf, int len)
{
	struct zt_tunnel *t = BIO_get_data(b);
	struct zt_worker *w = t->w;
	size_t n = w->bio_in_len;

	BIO_clear_retry_flags(b);
	if (!n || w->reading != t) {
		BIO_set_retry_read(b);
		return -1;
	}
	if (n > (size_t)len)
		n = (size_t)len;
	memcpy(buf, w->bio_in, n);
	w->bio_in += n;
	w->bio_in_len -= n;
	return (int)n;
}

static int bio_write(BIO *b, const char *buf, int len)
{
	struct zt_tunnel *t = BIO_get_data(b);
	struct zt_worker *w = t->w;

	BIO_clear_retry_flags(b);
	if ((size_t)len > ZT_SEAL_CAP - w->seal_len) /* more than any handshake or batch makes: out of order */
		return -1;
	memcpy(w->seal + w->seal_len, buf, (size_t)len);
	w->seal_len += (size_t)len;
	return len;
}

static long bio_ctrl(BIO *b, int cmd, long num, void *ptr)
{
	(void)b;
	(void)num;
	(void)ptr;
	return cmd == BIO_CTRL_FLUSH || cmd == BIO_CTRL_DUP;
}

static int bio_create(BIO *b)
{
	BIO_set_init(b, 1);
	return 1;
}

BIO_METHOD *zt_tls_bio_method(void)
{
	BIO_METHOD *m = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "qanat");

	if (!m)
		return NULL;
	BIO_meth_set_read(m, bio_read);
	BIO_meth_set_write(m, bio_write);
	BIO_meth_set_ctrl(m, bio_ctrl);
	BIO_meth_set_create(m, bio_create);
	return m;
}

struct zt_name *zt_tls_peer_identity(X509 *leaf)
{
	GENERAL_NAMES *names = X509_get_ext_d2i(leaf, NID_subject_alt_name, NULL, NULL);
	struct zt_name *found = NULL;
	int uris = 0;

	for (int i = 0; i < sk_GENERAL_NAME_num(names); i++) {
		const GENERAL_NAME *n = sk_GENERAL_NAME_value(names, i);
		const ASN1_IA5STRING *s = n->d.uniformResourceIdentifier;
		int len;

		if (n->type != GEN_URI)
			continue;
		uris++;
		len = ASN1_STRING_length(s);
		if (uris == 1 && len > 0 && len <= SPIFFE_MAX && !memchr(ASN1_STRING_get0_data(s), 0, (size_t)len))
			found = zt_name_new((const char *)ASN1_STRING_get0_data(s), (size_t)len);
	}
	GENERAL_NAMES_free(names);
	if (uris != 1) {
		zt_name_put(found);
		return NULL;
	}
	return found;
}

/* Exactly spiffe://<trust domain>/ns/<namespace>/sa/<service account>. */
static bool spiffe_parts(const struct zt_name *id, const char **domain, size_t *domain_len)
{
	static const char scheme[] = "spiffe://";
	const char *p, *slash;

	if (!id || id->len < sizeof(scheme) - 1 || memcmp(id->s, scheme, sizeof(scheme) - 1))
		return false;
	p = id->s + sizeof(scheme) - 1;
	slash = strchr(p, '/');
	if (!slash || slash == p || strncmp(slash, "/ns/", 4))
		return false;
	*domain = p;
	*domain_len = (size_t)(slash - p);
	p = slash + 4;
	slash = strchr(p, '/');
	if (!slash || slash == p || strncmp(slash, "/sa/", 4))
		return false;
	return slash[4] && !strchr(slash + 4, '/');
}

static bool client_allowed(const struct zt_core *core, const struct zt_name *id)
{
	const char *domain;
	size_t len;

	if (!spiffe_parts(id, &domain, &len))
		return false;
	for (size_t i = 0; i < core->n_domains; i++)
		if (zt_name_is(core->domains[i], domain, len))
			return true;
	return false;
}

/* OpenSSL's own verification first (chain, dates, usage), then whether it is revoked, then who it is. A refusal's
 * words are left in t->detail. */
static int verify(X509_STORE_CTX *ctx, void *arg)
{
	SSL *ssl = X509_STORE_CTX_get_ex_data(ctx, SSL_get_ex_data_X509_STORE_CTX_idx());
	struct zt_tunnel *t = SSL_get_app_data(ssl);
	struct zt_name *id;
	int ok = X509_verify_cert(ctx);
	bool allowed;

	(void)arg;
	if (ok <= 0) {
		zt_verify_text(ctx, t->detail, sizeof(t->detail));
		return 0;
	}
	if (zt_revocations_judge(t->w->revocations, X509_STORE_CTX_get0_chain(ctx), t->detail, sizeof(t->detail))) {
		X509_STORE_CTX_set_error(ctx, zt_revocations_closed(t->w->revocations) ? X509_V_ERR_UNABLE_TO_GET_CRL
										       : X509_V_ERR_CERT_REVOKED);
		return 0;
	}
	id = zt_tls_peer_identity(X509_STORE_CTX_get0_cert(ctx));
	allowed = t->server ? client_allowed(t->w->core, id) : zt_name_equal(id, t->pool->identity);
	if (!allowed) {
		snprintf(t->detail, sizeof(t->detail), "peer proved %.100s", id ? id->s : "no single SPIFFE identity");
		zt_name_put(id);
		X509_STORE_CTX_set_error(ctx, X509_V_ERR_APPLICATION_VERIFICATION);
		return 0;
	}
	zt_name_put(t->peer_identity);
	t->peer_identity = id;
	return 1;
}

static int pick_alpn(SSL *ssl, const unsigned char **out, unsigned char *out_len, const unsigned char *in,
		     unsigned in_len, void *arg)
{
	(void)ssl;
	(void)arg;
	for (unsigned i = 0; i + 1 < in_len; i += 1u + in[i]) {
		if (in[i] == 2 && i + 3 <= in_len && !memcmp(in + i + 1, "h2", 2)) {
			*out = in + i + 1;
			*out_len = 2;
			return SSL_TLSEXT_ERR_OK;
		}
	}
	return SSL_TLSEXT_ERR_ALERT_FATAL;
}

static int fail_text(char *err, size_t cap, const char *what)
{
	unsigned long e = ERR_peek_error();
	const char *why = e ? ERR_reason_error_string(e) : NULL;

	if (err && cap)
		snprintf(err, cap, "%s%s%s", what, why ? ": " : "", why ? why : "");
	ERR_clear_error();
	return -ZT_ETLS;
}

static SSL_CTX *context(const struct zt_core *core, bool server, STACK_OF(X509) * chain, EVP_PKEY *key,
			X509_STORE *roots)
{
	SSL_CTX *ctx = SSL_CTX_new_ex(zt_aead_libctx(core->aead), zt_aead_properties(core->aead),
				      server ? TLS_server_method() : TLS_client_method());

	if (!ctx)
		return NULL;
	if (SSL_CTX_set_min_proto_version(ctx, TLS1_3_VERSION) != 1 || SSL_CTX_set_ciphersuites(ctx, suites) != 1 ||
	    SSL_CTX_set1_groups_list(ctx, "X25519:P-256") != 1 ||
	    SSL_CTX_use_certificate(ctx, sk_X509_value(chain, 0)) != 1 || SSL_CTX_use_PrivateKey(ctx, key) != 1 ||
	    SSL_CTX_check_private_key(ctx) != 1)
		goto fail;
	for (int i = 1; i < sk_X509_num(chain); i++)
		if (SSL_CTX_add1_chain_cert(ctx, sk_X509_value(chain, i)) != 1)
			goto fail;
	SSL_CTX_set1_cert_store(ctx, roots);
	SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
	SSL_CTX_set_verify_depth(ctx, 8);
	SSL_CTX_set_cert_verify_callback(ctx, verify, NULL);
	SSL_CTX_set_mode(ctx, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ENABLE_PARTIAL_WRITE |
				      SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER | SSL_MODE_NO_AUTO_CHAIN);
	SSL_CTX_set_options(ctx, SSL_OP_NO_TICKET | SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION);
	SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
	SSL_CTX_set_num_tickets(ctx, 0);
	if (server)
		SSL_CTX_set_alpn_select_cb(ctx, pick_alpn, NULL);
	else if (SSL_CTX_set_alpn_protos(ctx, alpn_h2, sizeof(alpn_h2)))
		goto fail;
	return ctx;

fail:
	SSL_CTX_free(ctx);
	return NULL;
}

/* Certificates and keys live in the core's library context, as all that works with them. */
int zt_identity_new(struct zt_core *core, struct zt_str id, struct zt_str chain_pem, struct zt_str key_pem,
		    struct zt_str roots_pem, struct zt_identity **out, char *err, size_t err_cap)
{
	OSSL_LIB_CTX *lib = zt_aead_libctx(core->aead);
	STACK_OF(X509) *chain = NULL, *roots = NULL;
	X509_STORE *store = NULL;
	EVP_PKEY *key = NULL;
	struct zt_identity *ident = NULL;
	int ret = -ZT_ETLS;

	if (!id.len || id.len > SPIFFE_MAX || chain_pem.len > PEM_MAX || key_pem.len > PEM_MAX ||
	    roots_pem.len > PEM_MAX)
		return -ZT_EINVAL;
	chain = zt_certs_read(lib, chain_pem, CHAIN_MAX, "certificate chain", err, err_cap);
	if (!chain)
		return -ZT_ETLS;
	roots = zt_certs_read(lib, roots_pem, ROOTS_MAX, "root certificates", err, err_cap);
	key = roots ? zt_key_read(lib, key_pem, err, err_cap) : NULL;
	if (!key)
		goto done;
	store = zt_certs_store(roots);
	if (!store) {
		ret = -ZT_ENOMEM;
		goto done;
	}
	ret = zt_chain_check(id, chain, key, store, err, err_cap);
	if (ret)
		goto done;
	ret = -ZT_ENOMEM;
	ident = calloc(1, sizeof(*ident));
	if (!ident)
		goto done;
	atomic_init(&ident->refs, 1);
	ident->generation = ++core->generation;
	ident->name = zt_name_new(id.ptr, id.len);
	ident->client = context(core, false, chain, key, store);
	ident->server = context(core, true, chain, key, store);
	if (!ident->name || !ident->client || !ident->server) {
		ret = fail_text(err, err_cap, "certificate and key refused");
		zt_identity_put_ref(ident);
		goto done;
	}
	*out = ident;
	ret = 0;

done:
	X509_STORE_free(store);
	EVP_PKEY_free(key);
	sk_X509_pop_free(chain, X509_free);
	sk_X509_pop_free(roots, X509_free);
	return ret;
}

struct zt_identity *zt_identity_get(struct zt_identity *i)
{
	if (i)
		atomic_fetch_add_explicit(&i->refs, 1, memory_order_relaxed);
	return i;
}

void zt_identity_put_ref(struct zt_identity *i)
{
	if (!i || atomic_fetch_sub_explicit(&i->refs, 1, memory_order_acq_rel) != 1)
		return;
	SSL_CTX_free(i->client);
	SSL_CTX_free(i->server);
	zt_name_put(i->name);
	free(i);
}

int zt_tls_attach(struct zt_tunnel *t)
{
	SSL *ssl = SSL_new(t->server ? t->identity->server : t->identity->client);
	BIO *bio = ssl ? BIO_new(t->w->core->bio) : NULL;

	if (!bio) {
		SSL_free(ssl);
		ERR_clear_error();
		return -ZT_ENOMEM;
	}
	BIO_set_data(bio, t);
	SSL_set_bio(ssl, bio, bio);
	SSL_set_app_data(ssl, t);
	if (t->server)
		SSL_set_accept_state(ssl);
	else
		SSL_set_connect_state(ssl);
	t->ssl = ssl;
	return 0;
}

static enum zt_reason verify_reason(long v)
{
	switch (v) {
	case X509_V_ERR_CERT_HAS_EXPIRED:
		return ZT_R_CERT_EXPIRED;
	case X509_V_ERR_CERT_NOT_YET_VALID:
		return ZT_R_CERT_NOT_YET;
	case X509_V_ERR_APPLICATION_VERIFICATION:
		return ZT_R_IDENTITY;
	case X509_V_ERR_CERT_REVOKED:
		return ZT_R_CERT_REVOKED;
	case X509_V_ERR_UNABLE_TO_GET_CRL:
		return ZT_R_CERT_UNCHECKED;
	default:
		return ZT_R_CERT_UNTRUSTED;
	}
}

static enum zt_reason library_reason(int code)
{
	switch (code) {
	case SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE:
	case SSL_R_TLSV13_ALERT_CERTIFICATE_REQUIRED:
		return ZT_R_NO_CLIENT_CERT;
	case SSL_R_UNSUPPORTED_PROTOCOL:
	case SSL_R_VERSION_TOO_LOW:
	case SSL_R_TLSV1_ALERT_PROTOCOL_VERSION:
		return ZT_R_TLS_VERSION;
	case SSL_R_HTTP_REQUEST:
	case SSL_R_HTTPS_PROXY_REQUEST:
	case SSL_R_WRONG_VERSION_NUMBER:
	case SSL_R_WRONG_SSL_VERSION:
	case SSL_R_BAD_RECORD_TYPE:
	case SSL_R_PACKET_LENGTH_TOO_LONG:
		return ZT_R_NOT_TLS;
	case SSL_R_SSLV3_ALERT_CERTIFICATE_EXPIRED:
		return ZT_R_CERT_EXPIRED;
	case SSL_R_SSLV3_ALERT_CERTIFICATE_REVOKED:
		return ZT_R_CERT_REVOKED;
	case SSL_R_TLSV1_ALERT_UNKNOWN_CA:
		return ZT_R_CERT_UNTRUSTED;
	default:
		return ZT_R_TLS;
	}
}

enum zt_reason zt_tls_reason(struct zt_tunnel *t)
{
	unsigned long e = ERR_peek_error();
	long v = t->ssl ? SSL_get_verify_result(t->ssl) : X509_V_OK;
	enum zt_reason r = e ? library_reason(ERR_GET_REASON(e)) : ZT_R_TLS;
	const char *text = e ? ERR_reason_error_string(e) : NULL;

	if (v != X509_V_OK && (!e || ERR_GET_REASON(e) == SSL_R_CERTIFICATE_VERIFY_FAILED))
		r = verify_reason(v); /* verify() has left its words */
	else if (text && ERR_GET_REASON(e) >= SSL_AD_REASON_OFFSET)
		snprintf(t->detail, sizeof(t->detail), "the peer sent: %.100s", text);
	else if (text)
		snprintf(t->detail, sizeof(t->detail), "%.100s", text);
	ERR_clear_error();
	return r;
}
