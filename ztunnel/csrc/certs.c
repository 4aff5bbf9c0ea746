/* SPDX-License-Identifier: Apache-2.0 */
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base.h"
#include "certs.h"

#define WHO_MAX 160
#define MIN_SECURITY_BITS 112 /* RSA 2048, P-224 */
#define AUTH_LEVEL 2          /* the same for issuers, and no SHA-1 */
#define TIME_TEXT 24

static void printable(char *s)
{
	for (; *s; s++)
		if (*s < ' ' || *s > '~')
			*s = '?';
}

__attribute__((format(printf, 3, 4))) static void say(char *err, size_t cap, const char *format, ...)
{
	va_list args;

	ERR_clear_error();
	if (!err || !cap)
		return;
	va_start(args, format);
	vsnprintf(err, cap, format, args);
	va_end(args);
}

/* --- words --------------------------------------------------------------------------------------------------------- */

void zt_name_text(const X509_NAME *name, char *buf, size_t cap)
{
	BIO *bio = BIO_new(BIO_s_mem());
	int n = 0;

	if (bio && X509_NAME_print_ex(bio, name, 0, XN_FLAG_RFC2253) > 0)
		n = BIO_read(bio, buf, (int)cap - 1);
	buf[n > 0 ? n : 0] = 0;
	BIO_free(bio);
	printable(buf);
	if (!*buf)
		snprintf(buf, cap, "(no name)");
}

/* Number of URI names; the first one's text. */
static int uri_names(const X509 *x, char *first, size_t cap)
{
	GENERAL_NAMES *names = X509_get_ext_d2i(x, NID_subject_alt_name, NULL, NULL);
	int uris = 0;

	for (int i = 0; i < sk_GENERAL_NAME_num(names); i++) {
		const GENERAL_NAME *n = sk_GENERAL_NAME_value(names, i);

		if (n->type != GEN_URI)
			continue;
		if (!uris++)
			snprintf(first, cap, "%.*s", ASN1_STRING_length(n->d.uniformResourceIdentifier),
				 (const char *)ASN1_STRING_get0_data(n->d.uniformResourceIdentifier));
	}
	GENERAL_NAMES_free(names);
	return uris;
}

void zt_cert_who(const X509 *x, char *buf, size_t cap)
{
	if (uri_names(x, buf, cap) == 1)
		printable(buf);
	else
		zt_name_text(X509_get_subject_name(x), buf, cap);
}

void zt_serial_text(const ASN1_INTEGER *serial, char *buf, size_t cap)
{
	const uint8_t *bytes = ASN1_STRING_get0_data(serial);
	int len = ASN1_STRING_length(serial);
	size_t at = 0;

	buf[0] = 0;
	for (int i = 0; i < len && at + 3 <= cap; i++)
		at += (size_t)snprintf(buf + at, cap - at, at ? "%02x" : "%x", bytes[i]);
}

int64_t zt_time_unix(const ASN1_TIME *t)
{
	struct tm tm;

	return t && ASN1_TIME_to_tm(t, &tm) == 1 ? (int64_t)timegm(&tm) : 0;
}

static void moment_text(int64_t unix_s, char *buf, size_t cap)
{
	time_t at = (time_t)unix_s;
	struct tm tm;

	if (!gmtime_r(&at, &tm) || !strftime(buf, cap, "%Y-%m-%dT%H:%M:%SZ", &tm))
		snprintf(buf, cap, "?");
}

void zt_time_text(const ASN1_TIME *t, char *buf, size_t cap)
{
	moment_text(zt_time_unix(t), buf, cap);
}

void zt_verify_text(X509_STORE_CTX *ctx, char *buf, size_t cap)
{
	int v = X509_STORE_CTX_get_error(ctx), depth = X509_STORE_CTX_get_error_depth(ctx);
	const X509 *x = X509_STORE_CTX_get_current_cert(ctx);
	STACK_OF(X509) *sent = X509_STORE_CTX_get0_untrusted(ctx);
	char who[WHO_MAX], issuer[WHO_MAX], begin[TIME_TEXT], end[TIME_TEXT], now[TIME_TEXT];

	if (!x)
		x = X509_STORE_CTX_get0_cert(ctx);
	if (!x) {
		snprintf(buf, cap, "%s", X509_verify_cert_error_string(v));
		return;
	}
	zt_cert_who(x, who, sizeof(who));
	zt_name_text(X509_get_issuer_name(x), issuer, sizeof(issuer));
	zt_time_text(X509_get0_notBefore(x), begin, sizeof(begin));
	zt_time_text(X509_get0_notAfter(x), end, sizeof(end));
	moment_text((int64_t)time(NULL), now, sizeof(now));
	switch (v) {
	case X509_V_ERR_CERT_HAS_EXPIRED:
		snprintf(buf, cap, "expired: %s ended %s, the clock says %s", who, end, now);
		break;
	case X509_V_ERR_CERT_NOT_YET_VALID:
		snprintf(buf, cap, "not yet valid: %s begins %s, the clock says %s", who, begin, now);
		break;
	case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
	case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
	case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
		/* What was sent after it should have been its issuer. */
		snprintf(buf, cap, "%s: %s was issued by %s",
			 depth + 1 < sk_X509_num(sent) ? "broken chain" : "unknown root", who, issuer);
		break;
	case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
	case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
		snprintf(buf, cap, "unknown root: %s signs itself and is not trusted", who);
		break;
	case X509_V_ERR_CERT_SIGNATURE_FAILURE:
		snprintf(buf, cap, "wrong signature: %s is not signed by the key of %s", who, issuer);
		break;
	case X509_V_ERR_EE_KEY_TOO_SMALL:
	case X509_V_ERR_CA_KEY_TOO_SMALL:
		snprintf(buf, cap, "weak key: %s", who);
		break;
	case X509_V_ERR_CA_MD_TOO_WEAK:
		snprintf(buf, cap, "weak signature algorithm: %s", who);
		break;
	case X509_V_ERR_INVALID_CA:
		snprintf(buf, cap, "not an authority: %s signs certificates and may not", who);
		break;
	case X509_V_ERR_INVALID_PURPOSE:
		snprintf(buf, cap, "wrong key usage: %s", who);
		break;
	default:
		snprintf(buf, cap, "%s: %s", X509_verify_cert_error_string(v), who);
	}
}

/* --- reading --------------------------------------------------------------------------------------------------------- */

static bool at_end(void) /* the last PEM error: nothing more, or something broken? */
{
	unsigned long e = ERR_peek_last_error();

	return ERR_GET_LIB(e) == ERR_LIB_PEM && ERR_GET_REASON(e) == PEM_R_NO_START_LINE;
}

STACK_OF(X509) * zt_certs_read(OSSL_LIB_CTX *lib, struct zt_str pem, int max, const char *what, char *err, size_t cap)
{
	BIO *bio = BIO_new_mem_buf(pem.len ? pem.ptr : "", (int)pem.len);
	STACK_OF(X509) *certs = sk_X509_new_null();
	bool ended = false;
	int n;

	ERR_clear_error();
	while (bio && certs && sk_X509_num(certs) <= max) {
		X509 *x = X509_new_ex(lib, NULL);

		/* On failure PEM_read_bio_X509() has freed it, or not touched it: it says which through the pointer. */
		if (!x || !PEM_read_bio_X509(bio, &x, NULL, NULL) || !sk_X509_push(certs, x)) {
			ended = at_end();
			X509_free(x);
			break;
		}
	}
	BIO_free(bio);
	n = sk_X509_num(certs);
	if (ended && n > 0 && n <= max) {
		ERR_clear_error();
		return certs;
	}
	if (!pem.len)
		say(err, cap, "%s: empty, no certificate in it", what);
	else if (n > max)
		say(err, cap, "%s: more than %d certificates", what, max);
	else if (ended)
		say(err, cap, "%s: no certificate in it, PEM (-----BEGIN CERTIFICATE-----) is wanted", what);
	else
		say(err, cap, "%s: certificate %d is damaged or cut short", what, n + 1);
	sk_X509_pop_free(certs, X509_free);
	return NULL;
}

static int no_password(char *buf, int size, int rwflag, void *arg)
{
	(void)buf;
	(void)size;
	(void)rwflag;
	(void)arg;
	return -1;
}

/* Lines that begin or end a private key of any kind. OpenSSL's decoders do not say whether they met one. */
static int key_lines(struct zt_str pem)
{
	static const char words[] = "PRIVATE KEY-----";
	const char *at = pem.ptr, *end = pem.ptr + pem.len;
	int n = 0;

	while (at && (at = memmem(at, (size_t)(end - at), words, sizeof(words) - 1))) {
		at += sizeof(words) - 1;
		n++;
	}
	return n;
}

EVP_PKEY *zt_key_read(OSSL_LIB_CTX *lib, struct zt_str pem, char *err, size_t cap)
{
	int lines = pem.len ? key_lines(pem) : 0;
	EVP_PKEY *key = NULL;
	BIO *bio;

	if (!pem.len) {
		say(err, cap, "private key: empty");
	} else if (!lines) {
		say(err, cap, "private key: none in it, unencrypted PEM (-----BEGIN PRIVATE KEY-----) is wanted");
	} else if (lines > 2) {
		say(err, cap, "private key: more than one key, which of them is not said");
	} else {
		bio = BIO_new_mem_buf(pem.ptr, (int)pem.len);
		key = bio ? PEM_read_bio_PrivateKey_ex(bio, NULL, no_password, NULL, lib, NULL) : NULL;
		BIO_free(bio);
		if (!key)
			say(err, cap, "private key: damaged, cut short or encrypted");
	}
	ERR_clear_error();
	return key;
}

X509_STORE *zt_certs_store(STACK_OF(X509) * roots)
{
	X509_STORE *store = X509_STORE_new();

	for (int i = 0; store && i < sk_X509_num(roots); i++) {
		if (X509_STORE_add_cert(store, sk_X509_value(roots, i)) == 1)
			continue;
		X509_STORE_free(store);
		store = NULL;
	}
	return store;
}

/* --- judging ----------------------------------------------------------------------------------------------------------- */

static int slack(int ok, X509_STORE_CTX *ctx)
{
	time_t soon = time(NULL) + ZT_CLOCK_SLACK_S;
	const X509 *x = X509_STORE_CTX_get_current_cert(ctx);

	if (!ok && x && X509_STORE_CTX_get_error(ctx) == X509_V_ERR_CERT_NOT_YET_VALID &&
	    X509_cmp_time(X509_get0_notBefore(x), &soon) < 0) {
		X509_STORE_CTX_set_error(ctx, X509_V_OK);
		return 1;
	}
	return ok;
}

/* What is wrong with the leaf by itself; NULL = nothing. */
static const char *leaf_fault(X509 *leaf, EVP_PKEY *key)
{
	uint32_t usage = X509_get_key_usage(leaf), extended = X509_get_extended_key_usage(leaf);

	if (X509_get_extension_flags(leaf) & EXFLAG_INVALID)
		return "its extensions are malformed";
	if (X509_check_private_key(leaf, key) != 1)
		return "the private key is another certificate's";
	if (X509_get_extension_flags(leaf) & EXFLAG_CA)
		return "it is an authority's certificate (CA bit), a workload's is wanted";
	if (!(usage & KU_DIGITAL_SIGNATURE))
		return "wrong key usage: digitalSignature is missing";
	if (!(extended & XKU_ANYEKU) &&
	    (extended & (XKU_SSL_SERVER | XKU_SSL_CLIENT)) != (XKU_SSL_SERVER | XKU_SSL_CLIENT))
		return "wrong extended key usage: both server and client authentication are wanted";
	if (EVP_PKEY_get_security_bits(key) < MIN_SECURITY_BITS)
		return "weak key: P-256 or RSA of 2048 bits is the least";
	return NULL;
}

static int verify_own(STACK_OF(X509) * chain, X509_STORE *roots, char *err, size_t cap)
{
	X509_STORE_CTX *ctx = X509_STORE_CTX_new();
	int ret = -ZT_ENOMEM;

	if (!ctx || X509_STORE_CTX_init(ctx, roots, sk_X509_value(chain, 0), chain) != 1)
		goto done;
	X509_VERIFY_PARAM_set_auth_level(X509_STORE_CTX_get0_param(ctx), AUTH_LEVEL);
	X509_STORE_CTX_set_verify_cb(ctx, slack);
	ret = 0;
	if (X509_verify_cert(ctx) != 1) {
		zt_verify_text(ctx, err, cap);
		ret = -ZT_ETLS;
	}
done:
	X509_STORE_CTX_free(ctx);
	ERR_clear_error();
	return ret;
}

int zt_chain_check(struct zt_str id, STACK_OF(X509) * chain, EVP_PKEY *key, X509_STORE *roots, char *err, size_t cap)
{
	X509 *leaf = sk_X509_value(chain, 0);
	char uri[256] = "", who[WHO_MAX], serial[64], end[TIME_TEXT], cause[320] = "";
	int uris = uri_names(leaf, uri, sizeof(uri)), ret = -ZT_ETLS;
	const char *fault;

	zt_cert_who(leaf, who, sizeof(who));
	zt_serial_text(X509_get0_serialNumber(leaf), serial, sizeof(serial));
	zt_time_text(X509_get0_notAfter(leaf), end, sizeof(end));
	if (!uris)
		snprintf(cause, sizeof(cause), "it has no URI name, a SPIFFE identity is wanted");
	else if (uris > 1)
		snprintf(cause, sizeof(cause), "it has %d URI names, exactly one is wanted", uris);
	else if (strlen(uri) != id.len || memcmp(uri, id.ptr, id.len))
		snprintf(cause, sizeof(cause), "it is for another identity than %.*s", (int)id.len, id.ptr);
	else if ((fault = leaf_fault(leaf, key)))
		snprintf(cause, sizeof(cause), "%s", fault);
	else
		ret = verify_own(chain, roots, cause, sizeof(cause));
	if (ret == -ZT_ETLS)
		say(err, cap, "certificate of %s (serial %s, ends %s): %s", who, serial, end, cause);
	return ret;
}
