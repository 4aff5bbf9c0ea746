/* SPDX-License-Identifier: Apache-2.0 */
/* Between aead.c, the provider, and aead_cipher.c, its ciphers. ZT_HAS_IPSEC_MB: they are built here at all. */
#ifndef ZT_AEAD_CIPHER_H
#define ZT_AEAD_CIPHER_H

#if defined(__x86_64__) && __has_include(<intel-ipsec-mb.h>)
#define ZT_HAS_IPSEC_MB 1

#include <intel-ipsec-mb.h>
#include <openssl/core_dispatch.h>

struct zt_aead_engine { /* the provider's own state */
	void *library;
	IMB_MGR *mgr; /* only its function table is used: any thread */
	void (*free_mgr)(IMB_MGR *mgr);
};

/* AES-GCM with keys of 128 and 256 bits. The provider's state that OpenSSL hands them is a zt_aead_engine, which
 * outlives them. */
extern const OSSL_DISPATCH zt_aead_gcm_128[], zt_aead_gcm_256[];
#endif

#endif
