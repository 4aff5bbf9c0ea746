/* SPDX-License-Identifier: Apache-2.0 */
/* Evaluation order: DENY, then ALLOW; NOTE rules never decide. Within one action the first rule by row decides, which
 * makes the name in a verdict the same everywhere.
 */
#include "policy_set.h"

#include <string.h>

#define NO_RULE UINT32_MAX
#define SPIFFE "spiffe://"
#define KEYS 6

struct span {
	const char *s;
	size_t len;
};

struct asked {               /* a request, taken apart */
	struct span text[3]; /* by enum zt_attr; len 0 = not there */
	const struct zt_addr *src, *dst;
};

/* An identity that is not spiffe://<trust domain>/ns/<namespace>/sa/<account> counts as none: the least rights. */
static void take_apart(struct zt_str id, struct asked *a)
{
	const size_t head = sizeof(SPIFFE) - 1;
	const char *end = id.ptr + id.len, *ns, *sa;

	if (id.len <= head || memcmp(id.ptr, SPIFFE, head))
		return;
	ns = memchr(id.ptr + head, '/', id.len - head);
	if (!ns || end - ns < 4 || memcmp(ns, "/ns/", 4))
		return;
	ns += 4;
	sa = memchr(ns, '/', (size_t)(end - ns));
	if (!sa || sa == ns || end - sa < 5 || memcmp(sa, "/sa/", 4) || memchr(sa + 4, '/', (size_t)(end - sa) - 4))
		return;
	a->text[ZT_ATTR_PRINCIPAL] = (struct span){ id.ptr + head, id.len - head };
	a->text[ZT_ATTR_NAMESPACE] = (struct span){ ns, (size_t)(sa - ns) };
	a->text[ZT_ATTR_ACCOUNT] = (struct span){ ns, (size_t)(end - ns) };
}

static bool text_matches(const struct zt_policy_value *v, struct span have)
{
	if (!have.len || v->len > have.len)
		return false;
	switch (v->match) {
	case ZT_MATCH_PRESENT:
		return true;
	case ZT_MATCH_EXACT:
		return v->len == have.len && !memcmp(v->text, have.s, have.len);
	case ZT_MATCH_PREFIX:
		return !memcmp(v->text, have.s, v->len);
	case ZT_MATCH_SUFFIX:
		return !memcmp(v->text, have.s + have.len - v->len, v->len);
	default:
		return false;
	}
}

static bool in_block(const struct zt_policy_value *v, const struct zt_addr *ip)
{
	uint32_t whole = v->number / 8, rest = v->number % 8;

	if (v->addr.family != ip->family || memcmp(v->addr.ip, ip->ip, whole))
		return false;
	return !rest || (v->addr.ip[whole] ^ ip->ip[whole]) >> (8 - rest) == 0;
}

static bool value_matches(const struct zt_policy_value *v, uint32_t attr, const struct asked *a)
{
	switch (attr) {
	case ZT_ATTR_SRC_IP:
		return in_block(v, a->src);
	case ZT_ATTR_DST_IP:
		return in_block(v, a->dst);
	case ZT_ATTR_DST_PORT:
		return v->number == a->dst->port;
	default:
		return text_matches(v, a->text[attr]);
	}
}

static bool test_passes(const struct zt_policyset *p, const struct zt_test_row *t, const struct asked *a)
{
	for (uint32_t i = 0; i < t->n_values; i++)
		if (value_matches(&p->values[t->first_value + i], t->attr, a))
			return !t->negate;
	return t->negate;
}

static bool option_passes(const struct zt_policyset *p, const struct zt_run_row *option, const struct asked *a)
{
	for (uint32_t i = 0; i < option->n; i++)
		if (!test_passes(p, &p->tests[option->first + i], a))
			return false;
	return true;
}

static bool clause_passes(const struct zt_policyset *p, const struct zt_run_row *clause, const struct asked *a)
{
	for (uint32_t i = 0; i < clause->n; i++)
		if (option_passes(p, &p->options[clause->first + i], a))
			return true;
	return false;
}

static bool rule_matches(const struct zt_policyset *p, uint32_t rule, const struct asked *a)
{
	const struct zt_rule_row *r = &p->rules[rule];

	for (uint32_t i = 0; i < r->n_clauses; i++)
		if (!clause_passes(p, &p->clauses[r->first_clause + i], a))
			return false;
	return true;
}

static const struct zt_policy_bucket *bucket_of(const struct zt_policyset *p, uint64_t key)
{
	for (size_t at = key & p->bucket_mask; p->buckets[at].n; at = (at + 1) & p->bucket_mask)
		if (p->buckets[at].key == key)
			return &p->buckets[at];
	return NULL;
}

/* The keys under which rules of a scope that may match are filed; returns how many. */
static size_t keys_for(const struct asked *a, uint32_t scope, uint32_t action, uint64_t keys[KEYS])
{
	size_t n = 0;

	keys[n++] = zt_policy_key(scope, action, ZT_ATTR_ANY, "", 0);
	keys[n++] = zt_policy_key(scope, action, ZT_ATTR_DST_PORT, &a->dst->port, sizeof(a->dst->port));
	keys[n++] = zt_policy_key(scope, action, ZT_ATTR_DST_IP, a->dst->ip, sizeof(a->dst->ip));
	for (uint32_t attr = 0; attr <= ZT_ATTR_ACCOUNT; attr++)
		if (a->text[attr].len)
			keys[n++] = zt_policy_key(scope, action, attr, a->text[attr].s, a->text[attr].len);
	return n;
}

/* The first rule by row that matches. */
static uint32_t first_match(const struct zt_policyset *p, const struct zt_guard_row *g, uint32_t action,
			    const struct asked *a)
{
	uint32_t best = NO_RULE;

	for (uint32_t s = 0; s < g->n_scopes; s++) {
		uint64_t keys[KEYS];
		size_t n = keys_for(a, p->scopes[g->first_scope + s], action, keys);

		for (size_t k = 0; k < n; k++) {
			const struct zt_policy_bucket *b = bucket_of(p, keys[k]);

			for (uint32_t i = 0; b && i < b->n && p->filed[b->first + i].rule < best; i++)
				if (rule_matches(p, p->filed[b->first + i].rule, a))
					best = p->filed[b->first + i].rule;
		}
	}
	return best;
}

void zt_policy_note(struct zt_policy_verdict *v, uint32_t rule)
{
	size_t kept = v->n_noted < ZT_COUNT(v->noted) ? v->n_noted : ZT_COUNT(v->noted);
	size_t at = kept;

	while (at && v->noted[at - 1] > rule)
		at--;
	if (at < ZT_COUNT(v->noted)) {
		size_t tail = (kept < ZT_COUNT(v->noted) ? kept : ZT_COUNT(v->noted) - 1) - at;

		memmove(&v->noted[at + 1], &v->noted[at], tail * sizeof(v->noted[0]));
		v->noted[at] = rule;
	}
	v->n_noted++;
}

static void take_notes(const struct zt_policyset *p, const struct zt_guard_row *g, const struct asked *a,
		       struct zt_policy_verdict *v)
{
	for (uint32_t s = 0; s < g->n_scopes; s++) {
		uint64_t keys[KEYS];
		size_t n = keys_for(a, p->scopes[g->first_scope + s], ZT_ACT_NOTE, keys);

		for (size_t k = 0; k < n; k++) {
			const struct zt_policy_bucket *b = bucket_of(p, keys[k]);

			for (uint32_t i = 0; b && i < b->n; i++)
				if (rule_matches(p, p->filed[b->first + i].rule, a))
					zt_policy_note(v, p->filed[b->first + i].rule);
		}
	}
}

static bool has_allow(const struct zt_policyset *p, const struct zt_guard_row *g)
{
	for (uint32_t s = 0; s < g->n_scopes; s++)
		if (p->allowed[p->scopes[g->first_scope + s]].n)
			return true;
	return false;
}

void zt_policyset_evaluate(const struct zt_policyset *p, const struct zt_policy_request *q,
			   struct zt_policy_verdict *out)
{
	struct zt_policy_verdict v = { .rule = NO_RULE };
	struct asked a = { .src = &q->src, .dst = &q->dst };
	const struct zt_guard_row *g = zt_policy_guard(p, p->by_source ? &q->src : &q->dst);

	if (!g) {
		v.why = ZT_WHY_UNKNOWN;
		v.allowed = !p->deny_unknown;
		*out = v;
		return;
	}
	v.guard = (uint32_t)(g - p->guards) + 1;
	take_apart(q->identity, &a);
	take_notes(p, g, &a, &v);
	v.rule = first_match(p, g, ZT_ACT_DENY, &a);
	if (v.rule == NO_RULE) {
		v.rule = first_match(p, g, ZT_ACT_ALLOW, &a);
		v.allowed = v.rule != NO_RULE;
	}
	v.why = ZT_WHY_RULE;
	if (v.rule == NO_RULE) {
		v.why = has_allow(p, g) ? ZT_WHY_UNMATCHED : ZT_WHY_NO_ALLOW;
		v.allowed = v.why == ZT_WHY_NO_ALLOW;
	}
	*out = v;
}
