/* SPDX-License-Identifier: Apache-2.0 */
/* Which AES-GCM the tunnels use. OpenSSL 3.0, which Debian 12 and Ubuntu 22.04 ship, has no code for the wide AES
 * instructions (VAES) of current processors: 3.6 GB/s a core where Intel's ipsec-mb library does 12. Half of what
 * streaming costs in user space is that. So where the library and the processor are there, a core gets an OpenSSL
 * library context of its own with one more provider in it that offers AES-GCM from ipsec-mb; TLS itself stays OpenSSL's.
 * Elsewhere nothing changes.
 */
#ifndef ZT_AEAD_H
#define ZT_AEAD_H

#include <openssl/types.h>

struct zt_aead;

/* NULL = OpenSSL's own ciphers: the library is missing, has another version than at build time, or the processor is
 * older. Never a reason to stop. Thread: control. */
struct zt_aead *zt_aead_new(void);
/* After everything that was made with its context. NULL is fine. */
void zt_aead_free(struct zt_aead *a);
/* For SSL_CTX_new_ex(), X509_new_ex() and the like; both NULL for a NULL. */
OSSL_LIB_CTX *zt_aead_libctx(const struct zt_aead *a);
const char *zt_aead_properties(const struct zt_aead *a);

#endif
