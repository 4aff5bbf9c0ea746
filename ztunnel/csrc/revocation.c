/* SPDX-License-Identifier: Apache-2.0 */
#include "revocation.h"

#include <stdio.h>
#include <stdlib.h>

#include "certs.h"
#include "crl.h"
#include "engine.h"

#define TEXT_MAX (64u << 20) /* a million entries and more */
#define CHAIN_MAX 16

struct zt_revocations {
	_Atomic uint32_t refs;
	bool closed;
	size_t n, fresh; /* the first `fresh` were in the last text */
	struct zt_crl *lists[ZT_CRLS_MAX];
};

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
		zt_crl_put(s->lists[i]);
	free(s);
}

bool zt_revocations_closed(const struct zt_revocations *s)
{
	return s && s->closed;
}

static struct zt_crl *successor_of(const struct zt_revocations *s, const struct zt_crl *old)
{
	for (size_t i = 0; i < s->fresh; i++)
		if (zt_crl_same_issuer(s->lists[i], old))
			return s->lists[i];
	for (size_t i = 0; i < s->fresh; i++)
		if (zt_crl_replaces(s->lists[i], old))
			return s->lists[i];
	return NULL;
}

/* None of the lists in `s` may be older than the one in force that it takes the place of; those in force of other issuers,
 * and of other keys of one unless it says that it replaces them, join them. */
static int merge(struct zt_revocations *s, const struct zt_revocations *in_force, char *err, size_t cap)
{
	s->fresh = s->n;
	for (size_t i = 0; in_force && i < in_force->n; i++) {
		struct zt_crl *old = in_force->lists[i];
		const struct zt_crl *successor = successor_of(s, old);

		if (successor && successor->this_update < old->this_update)
			return zt_crl_refuse(old->issuer, "is older than the one in force", err, cap);
		if (successor)
			continue;
		if (s->n == ZT_CRLS_MAX)
			return zt_crl_refuse(NULL, "is one too many, with those in force of other issuers", err, cap);
		s->lists[s->n++] = zt_crl_get(old);
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
	ret = zt_crls_read(zt_aead_libctx(core->aead), lists, roots, issuers, s->lists, &s->n, err, err_cap);
	if (!ret)
		ret = merge(s, core->revocations, err, err_cap);
	if (!ret)
		ret = publish(core, s);
	if (!ret)
		describe(s, out);
	zt_revocations_put(s);
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
			    !zt_crl_has(s->lists[i], X509_get0_serialNumber(x)))
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
		zt_certs_read(zt_aead_libctx(core->aead), chain_pem, CHAIN_MAX, "certificate chain", text, cap);
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
