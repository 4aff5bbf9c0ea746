/* SPDX-License-Identifier: Apache-2.0 */
/* The library context and the provider in it; its ciphers: aead_cipher.c. */
#include "aead.h"

#include <stddef.h>

#include "aead_cipher.h"

#ifdef ZT_HAS_IPSEC_MB

#include <dlfcn.h>
#include <openssl/err.h>
#include <openssl/provider.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

struct zt_aead {
	OSSL_LIB_CTX *libctx;
	OSSL_PROVIDER *standard, *fast;
};

static const OSSL_ALGORITHM *query(void *provider, int operation, int *no_store)
{
	/* Names and numbers as OpenSSL's default provider has them: libssl asks by either. */
	static const OSSL_ALGORITHM ciphers[] = {
		{ "AES-128-GCM:id-aes128-GCM:2.16.840.1.101.3.4.1.6", "provider=qanat", zt_aead_gcm_128, NULL },
		{ "AES-256-GCM:id-aes256-GCM:2.16.840.1.101.3.4.1.46", "provider=qanat", zt_aead_gcm_256, NULL },
		{ NULL, NULL, NULL, NULL },
	};

	(void)provider;
	*no_store = 0;
	return operation == OSSL_OP_CIPHER ? ciphers : NULL;
}

static void engine_free(void *provider)
{
	struct zt_aead_engine *e = provider;

	if (e->mgr)
		e->free_mgr(e->mgr);
	if (e->library)
		dlclose(e->library);
	free(e);
}

static bool engine_open(struct zt_aead_engine *e)
{
	const uint64_t wide = IMB_FEATURE_VAES | IMB_FEATURE_VPCLMULQDQ;
	IMB_MGR *(*alloc)(uint64_t flags);
	void (*init)(IMB_MGR * mgr, IMB_ARCH * arch);
	unsigned (*version)(void);

	e->library = dlopen("libIPSec_MB.so.1", RTLD_NOW | RTLD_LOCAL);
	if (!e->library)
		return false;
	*(void **)&alloc = dlsym(e->library, "alloc_mb_mgr");
	*(void **)&init = dlsym(e->library, "init_mb_mgr_auto");
	*(void **)&version = dlsym(e->library, "imb_get_version");
	*(void **)&e->free_mgr = dlsym(e->library, "free_mb_mgr");
	/* The function table's layout is the header's: another version may have another. */
	if (!alloc || !init || !version || !e->free_mgr || version() != IMB_VERSION_NUM)
		return false;
	e->mgr = alloc(0);
	if (!e->mgr)
		return false;
	init(e->mgr, NULL);
	return (e->mgr->features & wide) == wide;
}

/* OpenSSL calls it from OSSL_PROVIDER_load(). Returns 0 where there is nothing to gain: then it is not loaded. */
static int provider_init(const OSSL_CORE_HANDLE *handle, const OSSL_DISPATCH *in, const OSSL_DISPATCH **out,
			 void **provider)
{
	static const OSSL_DISPATCH functions[] = {
		{ OSSL_FUNC_PROVIDER_QUERY_OPERATION, (void (*)(void))query },
		{ OSSL_FUNC_PROVIDER_TEARDOWN, (void (*)(void))engine_free },
		{ 0, NULL },
	};
	struct zt_aead_engine *e = calloc(1, sizeof(*e));

	(void)handle;
	(void)in;
	if (!e)
		return 0;
	if (!engine_open(e)) {
		engine_free(e);
		return 0;
	}
	*out = functions;
	*provider = e;
	return 1;
}

struct zt_aead *zt_aead_new(void)
{
	struct zt_aead *a = calloc(1, sizeof(*a));

	if (!a)
		return NULL;
	a->libctx = OSSL_LIB_CTX_new();
	if (a->libctx && OSSL_PROVIDER_add_builtin(a->libctx, "qanat", provider_init))
		a->fast = OSSL_PROVIDER_load(a->libctx, "qanat");
	if (a->fast)
		a->standard = OSSL_PROVIDER_load(a->libctx, "default");
	if (a->standard)
		return a;
	zt_aead_free(a);
	ERR_clear_error();
	return NULL;
}

void zt_aead_free(struct zt_aead *a)
{
	if (!a)
		return;
	if (a->fast)
		OSSL_PROVIDER_unload(a->fast);
	if (a->standard)
		OSSL_PROVIDER_unload(a->standard);
	OSSL_LIB_CTX_free(a->libctx);
	free(a);
}

OSSL_LIB_CTX *zt_aead_libctx(const struct zt_aead *a)
{
	return a ? a->libctx : NULL;
}

const char *zt_aead_properties(const struct zt_aead *a)
{
	return a ? "?provider=qanat" : NULL;
}

#else

struct zt_aead *zt_aead_new(void)
{
	return NULL;
}

void zt_aead_free(struct zt_aead *a)
{
	(void)a;
}

OSSL_LIB_CTX *zt_aead_libctx(const struct zt_aead *a)
{
	(void)a;
	return NULL;
}

const char *zt_aead_properties(const struct zt_aead *a)
{
	(void)a;
	return NULL;
}

#endif
