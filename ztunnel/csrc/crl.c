/* SPDX-License-Identifier: Apache-2.0 */
#include "crl.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "certs.h"

#define SIGNERS_MAX 1024
#define SERIAL_MAX 31 /* RFC 5280 4.1.2.2: 20 */
#define REPLACED_MAX 64
/* Ours (ITU-T X.667: an arc for whoever makes a UUID), not critical: an OCTET STRING of SHA-256 sums of the public key
 * bits that signed the lists which this one goes on from. A list without it leaves those of other keys alone: an issuer
 * may have several keys at once, each with its own list. */
#define REPLACED_OID "2.25.273563180478466412957436112839467120318"

struct zt_crl_entry {
	struct zt_node node;
	uint8_t len;
	uint8_t serial[SERIAL_MAX];
};

/* --- lists ----------------------------------------------------------------------------------------------------------- */

struct zt_crl *zt_crl_get(struct zt_crl *l)
{
	atomic_fetch_add_explicit(&l->refs, 1, memory_order_relaxed);
	return l;
}

void zt_crl_put(struct zt_crl *l)
{
	if (!l || atomic_fetch_sub_explicit(&l->refs, 1, memory_order_acq_rel) != 1)
		return;
	X509_NAME_free(l->issuer);
	zt_map_free(&l->serials);
	free(l->entries);
	free(l->replaced);
	free(l);
}

static uint64_t hash_of(const ASN1_INTEGER *serial)
{
	return zt_hash(ASN1_STRING_get0_data(serial), (size_t)ASN1_STRING_length(serial), 0);
}

bool zt_crl_has(const struct zt_crl *l, const ASN1_INTEGER *serial)
{
	size_t len = (size_t)ASN1_STRING_length(serial);

	for (struct zt_node *n = zt_map_first(&l->serials, hash_of(serial)); n; n = zt_map_next(n)) {
		const struct zt_crl_entry *e = zt_container(n, struct zt_crl_entry, node);

		if (e->len == len && !memcmp(e->serial, ASN1_STRING_get0_data(serial), len))
			return true;
	}
	return false;
}

bool zt_crl_same_issuer(const struct zt_crl *a, const struct zt_crl *b)
{
	return !X509_NAME_cmp(a->issuer, b->issuer) && !memcmp(a->key, b->key, sizeof(a->key));
}

bool zt_crl_replaces(const struct zt_crl *l, const struct zt_crl *old)
{
	if (X509_NAME_cmp(l->issuer, old->issuer))
		return false;
	for (size_t i = 0; i < l->n_replaced; i++)
		if (!memcmp(l->replaced[i], old->key, sizeof(old->key)))
			return true;
	return false;
}

/* 0, -ZT_ENOMEM, or -ZT_ETLS for an extension that is not as we write it. */
static int read_replaced(struct zt_crl *l, const X509_CRL *crl)
{
	ASN1_OBJECT *oid = OBJ_txt2obj(REPLACED_OID, 1);
	int at = oid ? X509_CRL_get_ext_by_OBJ(crl, oid, -1) : -1, ret = 0;
	const ASN1_OCTET_STRING *data = at < 0 ? NULL : X509_EXTENSION_get_data(X509_CRL_get_ext(crl, at));
	const uint8_t *p = data ? ASN1_STRING_get0_data(data) : NULL;
	ASN1_OCTET_STRING *keys = data ? d2i_ASN1_OCTET_STRING(NULL, &p, ASN1_STRING_length(data)) : NULL;
	size_t len = keys ? (size_t)ASN1_STRING_length(keys) : 0;

	if (!oid)
		ret = -ZT_ENOMEM;
	else if (data && (!keys || !len || len % SHA256_DIGEST_LENGTH || len / SHA256_DIGEST_LENGTH > REPLACED_MAX ||
			  p != ASN1_STRING_get0_data(data) + ASN1_STRING_length(data)))
		ret = -ZT_ETLS;
	else if (len) {
		l->replaced = malloc(len);
		l->n_replaced = l->replaced ? len / SHA256_DIGEST_LENGTH : 0;
		if (l->replaced)
			memcpy(l->replaced, ASN1_STRING_get0_data(keys), len);
		else
			ret = -ZT_ENOMEM;
	}
	ASN1_OCTET_STRING_free(keys);
	ASN1_OBJECT_free(oid);
	ERR_clear_error();
	return ret;
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

static int list_new(X509_CRL *crl, const X509 *signer, struct zt_crl **out)
{
	STACK_OF(X509_REVOKED) *rows = X509_CRL_get_REVOKED(crl);
	const ASN1_BIT_STRING *key = X509_get0_pubkey_bitstr(signer);
	struct zt_crl *l = calloc(1, sizeof(*l));
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
		struct zt_crl_entry *e = &l->entries[l->n];

		if (len > SERIAL_MAX) {
			zt_crl_put(l);
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
	zt_crl_put(l);
	return -ZT_ENOMEM;
}

/* --- who signed ------------------------------------------------------------------------------------------------------ */

struct reading { /* one call of zt_crls_read() */
	OSSL_LIB_CTX *lib;
	STACK_OF(X509_CRL) * lists;
	STACK_OF(X509) * signers; /* may have signed, trusted only if they lead to a root */
	X509_STORE *roots;
	char *err;
	size_t cap;
};

int zt_crl_refuse(const X509_NAME *issuer, const char *what, char *err, size_t cap)
{
	char name[128] = "";

	ERR_clear_error();
	if (issuer)
		zt_name_text(issuer, name, sizeof(name));
	if (err && cap)
		snprintf(err, cap, "revocation list%s%s %s", issuer ? " of " : "", name, what);
	return -ZT_ETLS;
}

static int refuse(const struct reading *r, const X509_CRL *crl, const char *what)
{
	return zt_crl_refuse(crl ? X509_CRL_get_issuer(crl) : NULL, what, r->err, r->cap);
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
		return refuse(r, NULL, "is damaged");
	if (p != der + len) {
		X509_CRL_free(crl);
		return refuse(r, NULL, "is followed by something else");
	}
	if (sk_X509_CRL_num(r->lists) >= ZT_CRLS_MAX || !sk_X509_CRL_push(r->lists, crl)) {
		X509_CRL_free(crl);
		return refuse(r, NULL, "is one too many");
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
		return refuse(r, NULL, "comes with a damaged certificate");
	if (sk_X509_num(r->signers) >= SIGNERS_MAX || !sk_X509_push(r->signers, x)) {
		X509_free(x);
		return refuse(r, NULL, "comes with too many certificates");
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
			ret = refuse(r, NULL, "comes with PEM that is neither a list nor a certificate");
		OPENSSL_clear_free(der, (size_t)len);
		OPENSSL_free(name);
		OPENSSL_free(header);
	}
	BIO_free(bio);
	if (!ret && ERR_GET_REASON(ERR_peek_last_error()) != PEM_R_NO_START_LINE)
		ret = refuse(r, NULL, "is damaged or cut short");
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
		ret = refuse(r, NULL, "is not in this text: -----BEGIN X509 CRL----- or DER is wanted");
	return ret;
}

static int judge_one(const struct reading *r, X509_CRL *crl, struct zt_crl **out)
{
	const char *why = list_fault(crl);
	X509 *signer = why ? NULL : signer_of(r, crl, &why);
	int ret;

	if (!signer)
		return refuse(r, crl, why);
	ret = list_new(crl, signer, out);
	if (ret)
		return ret == -ZT_ETLS ? refuse(r, crl, "has a serial of more than 31 bytes") : ret;
	ret = read_replaced(*out, crl);
	if (!ret)
		return 0;
	zt_crl_put(*out);
	*out = NULL;
	return ret == -ZT_ETLS ? refuse(r, crl, "names badly what it replaces") : ret;
}

static int judge_all(const struct reading *r, struct zt_crl **out, size_t *n)
{
	for (int i = 0; i < sk_X509_CRL_num(r->lists); i++) {
		X509_CRL *crl = sk_X509_CRL_value(r->lists, i);
		int ret = judge_one(r, crl, &out[*n]);

		if (ret)
			return ret;
		++*n; /* at most ZT_CRLS_MAX were read */
		for (size_t k = 0; k + 1 < *n; k++)
			if (zt_crl_same_issuer(out[k], out[*n - 1]))
				return refuse(r, crl, "is there twice");
	}
	return 0;
}

int zt_crls_read(OSSL_LIB_CTX *lib, struct zt_str text, struct zt_str roots, struct zt_str issuers,
		 struct zt_crl *out[ZT_CRLS_MAX], size_t *n, char *err, size_t cap)
{
	struct reading r = { .lib = lib, .err = err, .cap = cap };
	int ret;

	*n = 0;
	ret = read_all(&r, text, roots, issuers);
	if (!ret)
		ret = judge_all(&r, out, n);
	while (ret && *n)
		zt_crl_put(out[--*n]);
	X509_STORE_free(r.roots);
	sk_X509_CRL_pop_free(r.lists, X509_CRL_free);
	sk_X509_pop_free(r.signers, X509_free);
	return ret;
}
