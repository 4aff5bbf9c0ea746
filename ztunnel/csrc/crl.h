/* SPDX-License-Identifier: Apache-2.0 */
/* Certificate revocation lists: read a text of them, judge who signed, keep one issuer's serials as a hash table. No
 * engine state.
 */
#ifndef ZT_CRL_H
#define ZT_CRL_H

#include <openssl/sha.h>
#include <openssl/x509.h>

#include "base.h"

#define ZT_CRLS_MAX 64

struct zt_crl { /* of one issuer: its name and the key that signed; immutable once made, counted */
	_Atomic uint32_t refs;
	X509_NAME *issuer;
	uint8_t key[SHA256_DIGEST_LENGTH];
	int64_t this_update, next_update;          /* 0 = does not say */
	uint8_t (*replaced)[SHA256_DIGEST_LENGTH]; /* keys of the same issuer whose lists this one takes the place of */
	size_t n_replaced;
	struct zt_map serials;
	struct zt_crl_entry *entries;
	size_t n;
};

struct zt_crl *zt_crl_get(struct zt_crl *l);
void zt_crl_put(struct zt_crl *l);
bool zt_crl_has(const struct zt_crl *l, const ASN1_INTEGER *serial);
bool zt_crl_same_issuer(const struct zt_crl *a, const struct zt_crl *b);
/* Does `l` say that it takes the place of `old`, a list of the same name signed by an earlier key? */
bool zt_crl_replaces(const struct zt_crl *l, const struct zt_crl *old);

/* All lists of a text, at least one, each of another issuer; the caller owns them. zt_revocations_apply() has the
 * rules. 0, -ZT_ENOMEM, or -ZT_ETLS with `err`; on failure `out` holds nothing. */
int zt_crls_read(OSSL_LIB_CTX *lib, struct zt_str text, struct zt_str roots, struct zt_str issuers,
		 struct zt_crl *out[ZT_CRLS_MAX], size_t *n, char *err, size_t cap);
/* "revocation list of <issuer> <what>"; returns -ZT_ETLS. */
int zt_crl_refuse(const X509_NAME *issuer, const char *what, char *err, size_t cap);

#endif
