/* SPDX-License-Identifier: Apache-2.0 */
#include "revocation.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/sha.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "certs.h"
#include "engine.h"

#define TEXT_MAX (64u << 20) /* a million entries and more */
#define LISTS_MAX 64
#define SIGNERS_MAX 1024
#define SERIAL_MAX 31 /* RFC 5280 4.1.2.2: 20 */

struct entry {
	struct zt_node node;
	uint8_t len;
	uint8_t serial[SERIAL_MAX];
};

struct list { /* of one issuer: its name and the key that signed; immutable once made, shared by sets */
	_Atomic uint32_t refs;
	X509_NAME *issuer;
	uint8_t key[SHA256_DIGEST_LENGTH];
	int64_t this_update, next_update; /* 0 = does not say */
	struct zt_map serials;
	struct entry *entries;
	size_t n;
};

struct zt_revocations {
	_Atomic uint32_t refs;
	bool closed;
	size_t n, fresh; /* the first `fresh` were in the last text */
	struct list *lists[LISTS_MAX];
};

/* --- lists ----------------------------------------------------------------------------------------------------------- */

static void list_put(struct list *l)
{
	if (!l || atomic_fetch_sub_explicit(&l->refs, 1, memory_order_acq_rel) != 1)
		return;
	X509_NAME_free(l->issuer);
	zt_map_free(&l->serials);
	free(l->entries);
	free(l);
}

static uint64_t hash_of(const ASN1_INTEGER *serial)
{
	return zt_hash(ASN1_STRING_get0_data(serial), (size_t)ASN1_STRING_length(serial), 0);
}

static bool has(const struct list *l, const ASN1_INTEGER *serial)
{
	size_t len = (size_t)ASN1_STRING_length(serial);

	for (struct zt_node *n = zt_map_first(&l->serials, hash_of(serial)); n; n = zt_map_next(n)) {
		const struct entry *e = zt_container(n, struct entry, node);

		if (e->len == len && !memcmp(e->serial, ASN1_STRING_get0_data(serial), len))
			return true;
	}
	return false;
}

static bool same_issuer(const struct list *a, const struct list *b)
{
	return !X509_NAME_cmp(a->issuer, b->issuer) && !memcmp(a->key, b->key, sizeof(a->key));
}

/* What makes a list unfit whoever signed it; NULL = nothing. */
static const char *list_fault(const X509_CRL *crl)
{
	int64_t begins = zt_time_unix(X509_CRL_get0_lastUpdate(crl));

	for (int i = 0; i < X509_CRL_get_ext_count(crl); i++) {
		X509_EXTENSION *e = X509_CRL_get_ext(crl, i);
		int nid = OBJ_obj2nid(X509_EXTENSION_get_object(e));

		if (nid == NID_delta_crl || nid == NID_issuing_distribution_point)
			return "is only a part (delta or distribution point), the complete list is wanted";
		if (X509_EXTENSION_get_critical(e))
			return "has a critical extension that is not understood";
	}
	if (!begins)
		return "has no readable date";
	if (begins > (int64_t)time(NULL) + ZT_CLOCK_SLACK_S)
		return "is dated in the future: compare the clocks";
	return NULL;
}

static int list_new(X509_CRL *crl, const X509 *signer, struct list **out)
{
	STACK_OF(X509_REVOKED) *rows = X509_CRL_get_REVOKED(crl);
	const ASN1_BIT_STRING *key = X509_get0_pubkey_bitstr(signer);
	struct list *l = calloc(1, sizeof(*l));
	int n = rows ? sk_X509_REVOKED_num(rows) : 0;

	if (!l)
		return -ZT_ENOMEM;
	atomic_init(&l->refs, 1);
	l->issuer = X509_NAME_dup(X509_CRL_get_issuer(crl));
	l->entries = calloc((size_t)n + 1, sizeof(*l->entries));
	if (!l->issuer || !l->entries)
		goto no_memory;
	SHA256(ASN1_STRING_get0_data(key), (size_t)ASN1_STRING_length(key), l->key);
	l->this_update = zt_time_unix(X509_CRL_get0_lastUpdate(crl));
	l->next_update = zt_time_unix(X509_CRL_get0_nextUpdate(crl));
	for (int i = 0; i < n; i++) {
		const ASN1_INTEGER *serial = X509_REVOKED_get0_serialNumber(sk_X509_REVOKED_value(rows, i));
		size_t len = (size_t)ASN1_STRING_length(serial);
		struct entry *e = &l->entries[l->n];

		if (len > SERIAL_MAX) {
			list_put(l);
			return -ZT_ETLS;
		}
		memcpy(e->serial, ASN1_STRING_get0_data(serial), len);
		e->len = (uint8_t)len;
		if (zt_map_add(&l->serials, &e->node, hash_of(serial)))
			goto no_memory;
		l->n++;
	}
	*out = l;
	return 0;

no_memory:
	list_put(l);
	return -ZT_ENOMEM;
}

/* --- who signed ------------------------------------------------------------------------------------------------------ */

struct reading { /* one call of zt_revocations_apply() */
	OSSL_LIB_CTX *lib;
	STACK_OF(X509_CRL) * lists;
	STACK_OF(X509) * signers; /* may have signed, trusted only if they lead to a root */
	X509_STORE *roots;
	char *err;
	size_t cap;
};

static int refuse(const struct reading *r, const char *issuer, const char *what)
{
	ERR_clear_error();
	if (r->err && r->cap)
		snprintf(r->err, r->cap, "revocation list%s%s %s", *issuer ? " of " : "", issuer, what);
	return -ZT_ETLS;
}

/* An issuer that has ended still says what it revoked: its dates do not count here. */
static bool leads_to_a_root(const struct reading *r, X509 *signer)
{
	X509_STORE_CTX *ctx = X509_STORE_CTX_new();
	bool ok = false;

	if (ctx && X509_STORE_CTX_init(ctx, r->roots, signer, r->signers) == 1) {
		X509_STORE_CTX_set_flags(ctx, X509_V_FLAG_NO_CHECK_TIME);
		ok = X509_verify_cert(ctx) == 1;
	}
	X509_STORE_CTX_free(ctx);
	ERR_clear_error();
	return ok;
}

/* NULL: none, and `why` says what came closest. */
static X509 *signer_of(const struct reading *r, X509_CRL *crl, const char **why)
{
	*why = "is signed by nobody we know: put the issuer's certificate into the file beside it";
	for (int i = 0; i < sk_X509_num(r->signers); i++) {
		X509 *x = sk_X509_value(r->signers, i);

		if (X509_NAME_cmp(X509_get_subject_name(x), X509_CRL_get_issuer(crl)))
			continue;
		if (X509_CRL_verify(crl, X509_get0_pubkey(x)) != 1)
			*why = "has a wrong signature: it was changed, or signed by another key of that name";
		else if (X509_check_ca(x) <= 0 || !(X509_get_key_usage(x) & KU_CRL_SIGN))
			*why = "is signed by a certificate that may not sign lists (CA bit, cRLSign)";
		else if (!leads_to_a_root(r, x))
			*why = "is signed by an issuer that leads to no trusted root";
		else
			return x;
	}
	ERR_clear_error();
	return NULL;
}

/* --- reading --------------------------------------------------------------------------------------------------------- */

static int push_list(struct reading *r, const uint8_t *der, long len)
{
	X509_CRL *crl = X509_CRL_new_ex(r->lib, NULL);
	const uint8_t *p = der;

	if (!crl)
		return -ZT_ENOMEM;
	if (!d2i_X509_CRL(&crl, &p, len)) /* has freed it */
		return refuse(r, "", "is damaged");
	if (p != der + len) {
		X509_CRL_free(crl);
		return refuse(r, "", "is followed by something else");
	}
	if (sk_X509_CRL_num(r->lists) >= LISTS_MAX || !sk_X509_CRL_push(r->lists, crl)) {
		X509_CRL_free(crl);
		return refuse(r, "", "is one too many");
	}
	return 0;
}

static int push_signer(struct reading *r, const uint8_t *der, long len)
{
	X509 *x = X509_new_ex(r->lib, NULL);
	const uint8_t *p = der;

	if (!x)
		return -ZT_ENOMEM;
	if (!d2i_X509(&x, &p, len))
		return refuse(r, "", "comes with a damaged certificate");
	if (sk_X509_num(r->signers) >= SIGNERS_MAX || !sk_X509_push(r->signers, x)) {
		X509_free(x);
		return refuse(r, "", "comes with too many certificates");
	}
	return 0;
}

static int read_pem(struct reading *r, struct zt_str text)
{
	BIO *bio = BIO_new_mem_buf(text.ptr, (int)text.len);
	char *name, *header;
	uint8_t *der;
	long len;
	int ret = bio ? 0 : -ZT_ENOMEM;

	ERR_clear_error();
	while (!ret && PEM_read_bio(bio, &name, &header, &der, &len) == 1) {
		if (!strcmp(name, PEM_STRING_X509_CRL))
			ret = push_list(r, der, len);
		else if (!strcmp(name, PEM_STRING_X509))
			ret = push_signer(r, der, len);
		else
			ret = refuse(r, "", "comes with PEM that is neither a list nor a certificate");
		OPENSSL_clear_free(der, (size_t)len);
		OPENSSL_free(name);
		OPENSSL_free(header);
	}
	BIO_free(bio);
	if (!ret && ERR_GET_REASON(ERR_peek_last_error()) != PEM_R_NO_START_LINE)
		ret = refuse(r, "", "is damaged or cut short");
	ERR_clear_error();
	return ret;
}

static int read_signers(struct reading *r, struct zt_str pem, const char *what)
{
	STACK_OF(X509) *found = zt_certs_read(r->lib, pem, SIGNERS_MAX, what, r->err, r->cap);
	X509 *x;
	int ret = found ? 0 : -ZT_ETLS;

	while (!ret && (x = sk_X509_shift(found)))
		if (!sk_X509_push(r->signers, x)) {
			X509_free(x);
			ret = -ZT_ENOMEM;
		}
	sk_X509_pop_free(found, X509_free);
	return ret;
}

static int read_all(struct reading *r, struct zt_str text, struct zt_str roots, struct zt_str issuers)
{
	int ret;

	r->lists = sk_X509_CRL_new_null();
	r->signers = sk_X509_new_null();
	if (!r->lists || !r->signers)
		return -ZT_ENOMEM;
	ret = read_signers(r, roots, "root certificates");
	if (ret)
		return ret;
	r->roots = zt_certs_store(r->signers); /* roots only, so far */
	if (!r->roots)
		return -ZT_ENOMEM;
	if (issuers.len)
		ret = read_signers(r, issuers, "issuers of revocation lists");
	if (ret)
		return ret;
	if (text.len && text.ptr[0] == 0x30)
		ret = push_list(r, (const uint8_t *)text.ptr, (long)text.len);
	else
		ret = read_pem(r, text);
	if (!ret && !sk_X509_CRL_num(r->lists))
		ret = refuse(r, "", "is not in this text: -----BEGIN X509 CRL----- or DER is wanted");
	return ret;
}

/* --- sets ------------------------------------------------------------------------------------------------------------- */

struct zt_revocations *zt_revocations_get(struct zt_revocations *s)
{
	if (s)
		atomic_fetch_add_explicit(&s->refs, 1, memory_order_relaxed);
	return s;
}

void zt_revocations_put(struct zt_revocations *s)
{
	if (!s || atomic_fetch_sub_explicit(&s->refs, 1, memory_order_acq_rel) != 1)
		return;
	for (size_t i = 0; i < s->n; i++)
		list_put(s->lists[i]);
	free(s);
}

bool zt_revocations_closed(const struct zt_revocations *s)
{
	return s && s->closed;
}

static struct list *find(const struct zt_revocations *s, const struct list *like)
{
	for (size_t i = 0; s && i < s->n; i++)
		if (same_issuer(s->lists[i], like))
			return s->lists[i];
	return NULL;
}

/* Add one list of the text to the set in the making; takes the reference. */
static int add(const struct reading *r, struct zt_revocations *s, const struct zt_revocations *in_force, struct list *l)
{
	const struct list *old = find(in_force, l);
	char issuer[128];

	zt_name_text(l->issuer, issuer, sizeof(issuer));
	if (find(s, l)) {
		list_put(l);
		return refuse(r, issuer, "is there twice");
	}
	if (old && old->this_update > l->this_update) {
		list_put(l);
		return refuse(r, issuer, "is older than the one in force");
	}
	s->lists[s->n++] = l; /* at most LISTS_MAX were read */
	return 0;
}

static int compile(const struct reading *r, const struct zt_revocations *in_force, struct zt_revocations *s)
{
	for (int i = 0; i < sk_X509_CRL_num(r->lists); i++) {
		X509_CRL *crl = sk_X509_CRL_value(r->lists, i);
		const char *why = list_fault(crl);
		X509 *signer = why ? NULL : signer_of(r, crl, &why);
		struct list *l;
		char issuer[128];
		int ret;

		zt_name_text(X509_CRL_get_issuer(crl), issuer, sizeof(issuer));
		if (!signer)
			return refuse(r, issuer, why);
		ret = list_new(crl, signer, &l);
		if (ret)
			return ret == -ZT_ETLS ? refuse(r, issuer, "has a serial of more than 31 bytes") : ret;
		ret = add(r, s, in_force, l);
		if (ret)
			return ret;
	}
	s->fresh = s->n;
	for (size_t i = 0; in_force && i < in_force->n; i++) { /* not mentioned: stays */
		struct list *old = in_force->lists[i];

		if (find(s, old))
			continue;
		if (s->n == LISTS_MAX)
			return refuse(r, "", "is one too many, with those in force of other issuers");
		atomic_fetch_add_explicit(&old->refs, 1, memory_order_relaxed);
		s->lists[s->n++] = old;
	}
	return 0;
}

static int publish(struct zt_core *core, struct zt_revocations *s)
{
	struct zt_msg m = { .kind = ZT_M_REVOCATIONS, .revocations = s };
	int ret = zt_core_tell(core, &m);

	if (ret)
		return ret;
	zt_revocations_put(core->revocations);
	core->revocations = zt_revocations_get(s);
	return 0;
}

static void describe(const struct zt_revocations *s, struct zt_revocation_info *out)
{
	*out = (struct zt_revocation_info){ .lists = s->n };
	for (size_t i = 0; i < s->n; i++) {
		int64_t next = s->lists[i]->next_update;

		out->serials += s->lists[i]->n;
		if (i < s->fresh && next && (!out->next_update_unix_s || next < out->next_update_unix_s))
			out->next_update_unix_s = next;
	}
}

int zt_revocations_apply(struct zt_core *core, struct zt_str lists, struct zt_str roots, struct zt_str issuers,
			 struct zt_revocation_info *out, char *err, size_t err_cap)
{
	struct reading r = { .lib = zt_aead_libctx(core->aead), .err = err, .cap = err_cap };
	struct zt_revocations *s;
	int ret;

	if (core->stopped)
		return -ZT_ESTATE;
	if (lists.len > TEXT_MAX || roots.len > TEXT_MAX || issuers.len > TEXT_MAX)
		return -ZT_EINVAL;
	s = calloc(1, sizeof(*s));
	if (!s)
		return -ZT_ENOMEM;
	atomic_init(&s->refs, 1);
	ret = read_all(&r, lists, roots, issuers);
	if (!ret)
		ret = compile(&r, core->revocations, s);
	if (!ret)
		ret = publish(core, s);
	if (!ret)
		describe(s, out);
	zt_revocations_put(s);
	X509_STORE_free(r.roots);
	sk_X509_CRL_pop_free(r.lists, X509_CRL_free);
	sk_X509_pop_free(r.signers, X509_free);
	return ret;
}

int zt_revocations_close(struct zt_core *core)
{
	struct zt_revocations *s;
	int ret;

	if (core->stopped)
		return -ZT_ESTATE;
	if (core->revocations)
		return 0;
	s = calloc(1, sizeof(*s));
	if (!s)
		return -ZT_ENOMEM;
	atomic_init(&s->refs, 1);
	s->closed = true;
	ret = publish(core, s);
	zt_revocations_put(s);
	return ret;
}

/* --- asking ----------------------------------------------------------------------------------------------------------- */

bool zt_revocations_judge(const struct zt_revocations *s, const STACK_OF(X509) * chain, char *text, size_t cap)
{
	char who[96], serial[48];

	if (!s)
		return false;
	if (s->closed) {
		snprintf(text, cap, "no revocation list could be read, so nobody is accepted");
		return true;
	}
	for (int c = 0; c < sk_X509_num(chain); c++) {
		X509 *x = sk_X509_value(chain, c);

		for (size_t i = 0; i < s->n; i++) {
			if (X509_NAME_cmp(s->lists[i]->issuer, X509_get_issuer_name(x)) ||
			    !has(s->lists[i], X509_get0_serialNumber(x)))
				continue;
			zt_cert_who(x, who, sizeof(who));
			zt_serial_text(X509_get0_serialNumber(x), serial, sizeof(serial));
			snprintf(text, cap, "serial %s of %s", serial, who);
			return true;
		}
	}
	return false;
}

int zt_revocations_find(struct zt_core *core, struct zt_str chain_pem, char *text, size_t cap)
{
	STACK_OF(X509) *chain =
		zt_certs_read(zt_aead_libctx(core->aead), chain_pem, SIGNERS_MAX, "certificate chain", text, cap);
	bool found;

	if (!chain)
		return -ZT_ETLS;
	found = zt_revocations_judge(core->revocations, chain, text, cap);
	sk_X509_pop_free(chain, X509_free);
	return found;
}

/* First all that are concerned take no new streams, then they end: no stream of one is tried again on the next. */
static void cut_tunnels(struct zt_podw *p, const struct zt_revocations *s)
{
	p->pins++;
	zt_list_each(it, &p->tunnels)
	{
		struct zt_tunnel *t = zt_container(it, struct zt_tunnel, link);
		STACK_OF(X509) *chain = t->ssl ? SSL_get0_verified_chain(t->ssl) : NULL;

		if (!chain || !zt_revocations_judge(s, chain, t->detail, sizeof(t->detail)))
			continue;
		t->draining = true;
		t->fail = s->closed ? ZT_R_CERT_UNCHECKED : ZT_R_CERT_REVOKED;
	}
	zt_list_each_safe(it, &p->tunnels)
	{
		struct zt_tunnel *t = zt_container(it, struct zt_tunnel, link);

		if (t->fail == ZT_R_CERT_REVOKED || t->fail == ZT_R_CERT_UNCHECKED)
			zt_tunnel_fail(t, t->fail, t->detail);
	}
	p->pins--;
	zt_podw_maybe_free(p);
}

void zt_worker_revocations(struct zt_worker *w, struct zt_revocations *s)
{
	zt_revocations_put(w->revocations);
	w->revocations = s;
	zt_map_each(n, &w->pods) cut_tunnels(zt_container(n, struct zt_podw, node), s);
}
