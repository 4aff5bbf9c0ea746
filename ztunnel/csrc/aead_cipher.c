/* SPDX-License-Identifier: Apache-2.0 */
/* AES-GCM of ipsec-mb as OpenSSL calls a provider's cipher. */
#include "aead_cipher.h"

#ifdef ZT_HAS_IPSEC_MB

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/params.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define IV_LEN 12
#define TAG_LEN 16
#define AAD_MAX 16 /* TLS 1.3 has 5: the record header */

struct cipher {                  /* one direction of one TLS connection */
	struct gcm_key_data key; /* aligned to 64 by its type */
	struct gcm_context_data gcm;
	const IMB_MGR *mgr;
	size_t key_len;
	unsigned char iv[IV_LEN], aad[AAD_MAX], tag[TAG_LEN];
	size_t aad_len;
	bool has_key, has_iv, encrypts, running;
};

static struct cipher *cipher_new(void *provider, size_t key_len)
{
	const struct zt_aead_engine *e = provider;
	struct cipher *c = aligned_alloc(_Alignof(struct cipher), sizeof(struct cipher));

	if (!c)
		return NULL;
	memset(c, 0, sizeof(*c));
	c->mgr = e->mgr;
	c->key_len = key_len;
	return c;
}

static void *new_128(void *provider)
{
	return cipher_new(provider, 16);
}

static void *new_256(void *provider)
{
	return cipher_new(provider, 32);
}

static void cipher_free(void *arg)
{
	if (!arg)
		return;
	OPENSSL_cleanse(arg, sizeof(struct cipher));
	free(arg);
}

static void *cipher_dup(void *arg)
{
	struct cipher *c = aligned_alloc(_Alignof(struct cipher), sizeof(struct cipher));

	if (c)
		memcpy(c, arg, sizeof(*c));
	return c;
}

static int set_params(void *arg, const OSSL_PARAM params[])
{
	struct cipher *c = arg;
	const OSSL_PARAM *p;
	size_t len;

	if (!params)
		return 1;
	p = OSSL_PARAM_locate_const(params, OSSL_CIPHER_PARAM_AEAD_TAG);
	if (p && p->data) {
		if (p->data_type != OSSL_PARAM_OCTET_STRING || p->data_size != TAG_LEN || c->encrypts)
			return 0;
		memcpy(c->tag, p->data, TAG_LEN);
	}
	p = OSSL_PARAM_locate_const(params, OSSL_CIPHER_PARAM_AEAD_IVLEN);
	return !p || (OSSL_PARAM_get_size_t(p, &len) && len == IV_LEN);
}

static int start(void *arg, const unsigned char *key, size_t key_len, const unsigned char *iv, size_t iv_len,
		 const OSSL_PARAM params[], bool encrypts)
{
	struct cipher *c = arg;

	c->encrypts = encrypts;
	c->running = false;
	c->aad_len = 0;
	if (key) {
		if (key_len != c->key_len)
			return 0;
		if (key_len == 16)
			IMB_AES128_GCM_PRE(c->mgr, key, &c->key);
		else
			IMB_AES256_GCM_PRE(c->mgr, key, &c->key);
		c->has_key = true;
	}
	if (iv) {
		if (iv_len != IV_LEN)
			return 0;
		memcpy(c->iv, iv, IV_LEN);
		c->has_iv = true;
	}
	return set_params(c, params);
}

static int encrypt_init(void *c, const unsigned char *key, size_t key_len, const unsigned char *iv, size_t iv_len,
			const OSSL_PARAM params[])
{
	return start(c, key, key_len, iv, iv_len, params, true);
}

static int decrypt_init(void *c, const unsigned char *key, size_t key_len, const unsigned char *iv, size_t iv_len,
			const OSSL_PARAM params[])
{
	return start(c, key, key_len, iv, iv_len, params, false);
}

/* The nonce is used up by this: another message needs another init. */
static int begin(struct cipher *c)
{
	if (c->running)
		return 1;
	if (!c->has_key || !c->has_iv)
		return 0;
	if (c->key_len == 16)
		IMB_AES128_GCM_INIT(c->mgr, &c->key, &c->gcm, c->iv, c->aad, c->aad_len);
	else
		IMB_AES256_GCM_INIT(c->mgr, &c->key, &c->gcm, c->iv, c->aad, c->aad_len);
	c->has_iv = false;
	c->running = true;
	return 1;
}

static int update(void *arg, unsigned char *out, size_t *out_len, size_t out_cap, const unsigned char *in, size_t len)
{
	struct cipher *c = arg;

	if (!out) { /* additional data, before the message */
		if (c->running || len > AAD_MAX - c->aad_len)
			return 0;
		memcpy(c->aad + c->aad_len, in, len);
		c->aad_len += len;
		*out_len = len;
		return 1;
	}
	if (out_cap < len || !begin(c))
		return 0;
	if (c->key_len == 16 && c->encrypts)
		IMB_AES128_GCM_ENC_UPDATE(c->mgr, &c->key, &c->gcm, out, in, len);
	else if (c->key_len == 16)
		IMB_AES128_GCM_DEC_UPDATE(c->mgr, &c->key, &c->gcm, out, in, len);
	else if (c->encrypts)
		IMB_AES256_GCM_ENC_UPDATE(c->mgr, &c->key, &c->gcm, out, in, len);
	else
		IMB_AES256_GCM_DEC_UPDATE(c->mgr, &c->key, &c->gcm, out, in, len);
	*out_len = len;
	return 1;
}

static int final(void *arg, unsigned char *out, size_t *out_len, size_t out_cap)
{
	struct cipher *c = arg;
	unsigned char tag[TAG_LEN];

	(void)out;
	(void)out_cap;
	if (!begin(c))
		return 0;
	if (c->key_len == 16)
		IMB_AES128_GCM_ENC_FINALIZE(c->mgr, &c->key, &c->gcm, tag, TAG_LEN);
	else
		IMB_AES256_GCM_ENC_FINALIZE(c->mgr, &c->key, &c->gcm, tag, TAG_LEN);
	c->running = false;
	c->aad_len = 0;
	*out_len = 0;
	if (!c->encrypts)
		return CRYPTO_memcmp(tag, c->tag, TAG_LEN) == 0;
	memcpy(c->tag, tag, TAG_LEN);
	return 1;
}

static int get_ctx_params(void *arg, OSSL_PARAM params[])
{
	struct cipher *c = arg;
	OSSL_PARAM *p;

	p = OSSL_PARAM_locate(params, OSSL_CIPHER_PARAM_IVLEN);
	if (p && !OSSL_PARAM_set_size_t(p, IV_LEN))
		return 0;
	p = OSSL_PARAM_locate(params, OSSL_CIPHER_PARAM_KEYLEN);
	if (p && !OSSL_PARAM_set_size_t(p, c->key_len))
		return 0;
	p = OSSL_PARAM_locate(params, OSSL_CIPHER_PARAM_AEAD_TAGLEN);
	if (p && !OSSL_PARAM_set_size_t(p, TAG_LEN))
		return 0;
	p = OSSL_PARAM_locate(params, OSSL_CIPHER_PARAM_AEAD_TAG);
	if (!p)
		return 1;
	return c->encrypts && !c->running && p->data_size == TAG_LEN && OSSL_PARAM_set_octet_string(p, c->tag, TAG_LEN);
}

static int get_params(OSSL_PARAM params[], size_t key_len)
{
	const struct {
		const char *name;
		size_t value;
	} sizes[] = {
		{ OSSL_CIPHER_PARAM_KEYLEN, key_len },
		{ OSSL_CIPHER_PARAM_IVLEN, IV_LEN },
		{ OSSL_CIPHER_PARAM_BLOCK_SIZE, 1 },
	};
	OSSL_PARAM *p;

	for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		p = OSSL_PARAM_locate(params, sizes[i].name);
		if (p && !OSSL_PARAM_set_size_t(p, sizes[i].value))
			return 0;
	}
	p = OSSL_PARAM_locate(params, OSSL_CIPHER_PARAM_MODE);
	if (p && !OSSL_PARAM_set_uint(p, EVP_CIPH_GCM_MODE))
		return 0;
	p = OSSL_PARAM_locate(params, OSSL_CIPHER_PARAM_AEAD);
	if (p && !OSSL_PARAM_set_int(p, 1))
		return 0;
	p = OSSL_PARAM_locate(params, OSSL_CIPHER_PARAM_CUSTOM_IV);
	return !p || OSSL_PARAM_set_int(p, 1);
}

static int params_128(OSSL_PARAM params[])
{
	return get_params(params, 16);
}

static int params_256(OSSL_PARAM params[])
{
	return get_params(params, 32);
}

static const OSSL_PARAM *gettable(void *c, void *provider)
{
	static const OSSL_PARAM known[] = {
		OSSL_PARAM_size_t(OSSL_CIPHER_PARAM_KEYLEN, NULL),
		OSSL_PARAM_size_t(OSSL_CIPHER_PARAM_IVLEN, NULL),
		OSSL_PARAM_size_t(OSSL_CIPHER_PARAM_AEAD_TAGLEN, NULL),
		OSSL_PARAM_octet_string(OSSL_CIPHER_PARAM_AEAD_TAG, NULL, 0),
		OSSL_PARAM_END,
	};

	(void)c;
	(void)provider;
	return known;
}

static const OSSL_PARAM *settable(void *c, void *provider)
{
	static const OSSL_PARAM known[] = {
		OSSL_PARAM_size_t(OSSL_CIPHER_PARAM_AEAD_IVLEN, NULL),
		OSSL_PARAM_octet_string(OSSL_CIPHER_PARAM_AEAD_TAG, NULL, 0),
		OSSL_PARAM_END,
	};

	(void)c;
	(void)provider;
	return known;
}

#define FUNCTION(id, function)                                                                                         \
	{                                                                                                              \
		OSSL_FUNC_CIPHER_##id, (void (*)(void))(function)                                                      \
	}
#define CIPHER(bits)                                                                                                   \
	const OSSL_DISPATCH zt_aead_gcm_##bits[] = {                                                                   \
		FUNCTION(NEWCTX, new_##bits),                                                                          \
		FUNCTION(FREECTX, cipher_free),                                                                        \
		FUNCTION(DUPCTX, cipher_dup),                                                                          \
		FUNCTION(ENCRYPT_INIT, encrypt_init),                                                                  \
		FUNCTION(DECRYPT_INIT, decrypt_init),                                                                  \
		FUNCTION(UPDATE, update),                                                                              \
		FUNCTION(FINAL, final),                                                                                \
		FUNCTION(GET_PARAMS, params_##bits),                                                                   \
		FUNCTION(GET_CTX_PARAMS, get_ctx_params),                                                              \
		FUNCTION(SET_CTX_PARAMS, set_params),                                                                  \
		FUNCTION(GETTABLE_CTX_PARAMS, gettable),                                                               \
		FUNCTION(SETTABLE_CTX_PARAMS, settable),                                                               \
		{ 0, NULL },                                                                                           \
	}
CIPHER(128);
CIPHER(256);

#endif
