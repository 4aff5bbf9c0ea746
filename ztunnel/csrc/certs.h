/* SPDX-License-Identifier: Apache-2.0 */
/* Certificates as input of people and peers: read PEM, judge a chain, say in words what is wrong with which one. No
 * engine state. Texts are cut to their buffer and NUL-terminated; unprintable bytes in names become '?'.
 */
#ifndef ZT_CERTS_H
#define ZT_CERTS_H

#include <openssl/x509.h>
#include <stdint.h>

#include "zt.h"

#define ZT_CLOCK_SLACK_S 300 /* a certificate or list may begin this much later than our clock says */

/* All certificates of a PEM text, at least one and at most `max`. NULL: refused, `err` says why; `what` names it. */
STACK_OF(X509) * zt_certs_read(OSSL_LIB_CTX *lib, struct zt_str pem, int max, const char *what, char *err, size_t cap);
/* The only private key of a PEM text; NULL as above. */
EVP_PKEY *zt_key_read(OSSL_LIB_CTX *lib, struct zt_str pem, char *err, size_t cap);

X509_STORE *zt_certs_store(STACK_OF(X509) * roots); /* NULL = no memory */

/* May a workload of identity `id` use this chain (leaf first) and key, judged by `roots`? 0 or -ZT_ETLS with `err`. */
int zt_chain_check(struct zt_str id, STACK_OF(X509) * chain, EVP_PKEY *key, X509_STORE *roots, char *err, size_t cap);

/* Its URI name if there is exactly one, else its subject. */
void zt_cert_who(const X509 *x, char *buf, size_t cap);
void zt_name_text(const X509_NAME *name, char *buf, size_t cap);
/* Lower-case hexadecimal without leading zeros. */
void zt_serial_text(const ASN1_INTEGER *serial, char *buf, size_t cap);
void zt_time_text(const ASN1_TIME *t, char *buf, size_t cap); /* "2026-11-24T22:00:00Z" */
int64_t zt_time_unix(const ASN1_TIME *t);                     /* 0 when it is no time */
/* Why X509_verify_cert() said no: cause first, then whose certificate. */
void zt_verify_text(X509_STORE_CTX *ctx, char *buf, size_t cap);

#endif
