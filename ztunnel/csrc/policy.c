/* SPDX-License-Identifier: Apache-2.0 */
/* Evaluation order: DENY, then ALLOW; NOTE rules never decide. Within one action the first rule by row decides, which
 * makes the name in a verdict the same everywhere.
 *
 * Index: a rule that can only match sources with certain principals, namespaces or accounts, or certain ports (one
 * clause of it asks for exact values of that attribute in every option), is filed under each of these values; all
 * others are filed under "anything". A key is a hash of (scope, action, attribute, value): what it finds is evaluated
 * in full, so a collision costs time and never changes a verdict.
 */
#include "policy.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NO_RULE UINT32_MAX
#define ATTR_ANY ZT_ATTRS /* the index's own: rules without such a clause */
#define SPIFFE "spiffe://"
#define NAMED 3 /* ALLOW policies named in a refusal */

struct value {
	const char *text;
	uint32_t len;
	uint32_t number;
	struct zt_addr addr;
	uint8_t match;
};

struct filed { /* a rule under a key */
	uint64_t key;
	uint32_t rule;
};

struct bucket {
	uint64_t key;
	uint32_t first; /* run of filed[] */
	uint32_t n;     /* 0 = free */
};

struct zt_policyset {
	_Atomic uint32_t refs;
	uint64_t epoch;
	bool deny_unknown;
	struct zt_policy_row *policies;
	struct zt_rule_row *rules;
	struct zt_run_row *clauses, *options;
	struct zt_test_row *tests;
	struct value *values;
	uint32_t *scopes;
	struct zt_guard_row *guards;
	size_t n_rules;
	char *text; /* all strings, each with a NUL */
	struct filed *filed;
	size_t n_filed, cap_filed;
	struct bucket *buckets;
	size_t bucket_mask;
	uint32_t *guard_slots; /* open addressing; row + 1, 0 = free */
	size_t guard_mask;
	uint32_t *allows;           /* ALLOW policies by scope, then order */
	struct zt_run_row *allowed; /* by scope: run of allows[] */
};

struct span {
	const char *s;
	size_t len;
};

struct asked {               /* a request, taken apart */
	struct span text[3]; /* by enum zt_attr; len 0 = not there */
	const struct zt_addr *src, *dst;
};

static int bad(char *err, size_t cap, const char *what, size_t row)
{
	if (err && cap)
		snprintf(err, cap, "%s, row %zu", what, row);
	return -ZT_EINVAL;
}

static void set_free(struct zt_policyset *p)
{
	free(p->policies);
	free(p->rules);
	free(p->clauses);
	free(p->options);
	free(p->tests);
	free(p->values);
	free(p->scopes);
	free(p->guards);
	free(p->text);
	free(p->filed);
	free(p->buckets);
	free(p->guard_slots);
	free(p->allows);
	free(p->allowed);
	free(p);
}

struct zt_policyset *zt_policyset_get(struct zt_policyset *p)
{
	if (p)
		atomic_fetch_add_explicit(&p->refs, 1, memory_order_relaxed);
	return p;
}

void zt_policyset_put(struct zt_policyset *p)
{
	if (p && atomic_fetch_sub_explicit(&p->refs, 1, memory_order_acq_rel) == 1)
		set_free(p);
}

void zt_policyset_free(struct zt_policyset *p)
{
	zt_policyset_put(p);
}

uint64_t zt_policyset_epoch(const struct zt_policyset *p)
{
	return p ? p->epoch : 0;
}

/* --- checking rows -------------------------------------------------------------------------------------------------- */

static bool in_range(uint32_t first, uint32_t n, size_t all)
{
	return (uint64_t)first + n <= all;
}

static bool is_text(struct zt_str s)
{
	return s.len <= UINT16_MAX && (s.ptr || !s.len);
}

static int check_test(const struct zt_policies *r, size_t i, char *err, size_t cap)
{
	const struct zt_test_row *t = &r->tests[i];

	if (t->attr >= ZT_ATTRS || t->negate > 1 || !t->n_values || !in_range(t->first_value, t->n_values, r->n_values))
		return bad(err, cap, "test out of range", i);
	for (uint32_t k = 0; k < t->n_values; k++) {
		const struct zt_value_row *v = &r->values[t->first_value + k];
		bool fits = t->attr <= ZT_ATTR_ACCOUNT  ? v->match <= ZT_MATCH_PRESENT
			    : t->attr <= ZT_ATTR_DST_IP ? v->match == ZT_MATCH_BLOCK
							: v->match == ZT_MATCH_PORT;

		if (!fits)
			return bad(err, cap, "value of another kind than its test", t->first_value + k);
	}
	return 0;
}

static int check_value(const struct zt_policies *r, size_t i, char *err, size_t cap)
{
	const struct zt_value_row *v = &r->values[i];
	uint32_t bits = v->addr.family == 4 ? 32 : 128;

	if (v->match > ZT_MATCH_PORT || !is_text(v->text))
		return bad(err, cap, "value of unknown kind", i);
	if (v->match == ZT_MATCH_BLOCK && ((v->addr.family != 4 && v->addr.family != 6) || v->number > bits))
		return bad(err, cap, "value is no block of addresses", i);
	if (v->match == ZT_MATCH_PORT && (!v->number || v->number > UINT16_MAX))
		return bad(err, cap, "value is no port", i);
	return 0;
}

static int check_policies(const struct zt_policies *r, char *err, size_t cap)
{
	uint64_t next = 0;

	for (size_t i = 0; i < r->n_policies; i++) {
		const struct zt_policy_row *p = &r->policies[i];

		if (p->action >= ZT_ACTIONS || p->scope >= r->n_scopes || !is_text(p->key))
			return bad(err, cap, "policy with unknown action or scope", i);
		if (p->first_rule < next || !in_range(p->first_rule, p->n_rules, r->n_rules))
			return bad(err, cap, "policy with rules out of range", i);
		next = (uint64_t)p->first_rule + p->n_rules;
	}
	return 0;
}

static int check(const struct zt_policies *r, char *err, size_t cap)
{
	const size_t sizes[] = { r->n_policies, r->n_rules,  r->n_clauses,      r->n_options, r->n_tests,
				 r->n_values,   r->n_guards, r->n_guard_scopes, r->n_scopes };
	int ret;

	for (size_t i = 0; i < ZT_COUNT(sizes); i++)
		if (sizes[i] >= INT32_MAX)
			return bad(err, cap, "too many rows of kind", i);
	for (size_t i = 0; i < r->n_values; i++) {
		ret = check_value(r, i, err, cap);
		if (ret)
			return ret;
	}
	for (size_t i = 0; i < r->n_tests; i++) {
		ret = check_test(r, i, err, cap);
		if (ret)
			return ret;
	}
	for (size_t i = 0; i < r->n_options; i++)
		if (!in_range(r->options[i].first, r->options[i].n, r->n_tests))
			return bad(err, cap, "option out of range", i);
	for (size_t i = 0; i < r->n_clauses; i++)
		if (!r->clauses[i].n || !in_range(r->clauses[i].first, r->clauses[i].n, r->n_options))
			return bad(err, cap, "clause out of range", i);
	for (size_t i = 0; i < r->n_rules; i++)
		if (!in_range(r->rules[i].first_clause, r->rules[i].n_clauses, r->n_clauses) ||
		    !is_text(r->rules[i].name))
			return bad(err, cap, "rule out of range", i);
	for (size_t i = 0; i < r->n_guard_scopes; i++)
		if (r->scopes[i] >= r->n_scopes)
			return bad(err, cap, "scope out of range", i);
	for (size_t i = 0; i < r->n_guards; i++)
		if ((r->guards[i].addr.family != 4 && r->guards[i].addr.family != 6) ||
		    !in_range(r->guards[i].first_scope, r->guards[i].n_scopes, r->n_guard_scopes))
			return bad(err, cap, "guard out of range", i);
	return check_policies(r, err, cap);
}

/* --- building ------------------------------------------------------------------------------------------------------- */

static size_t index_size(size_t rows)
{
	size_t n = 16;

	while (n < rows * 2)
		n *= 2;
	return n;
}

static void *copy(const void *rows, size_t n, size_t size)
{
	void *out = calloc(n + 1, size);

	if (out && n)
		memcpy(out, rows, n * size);
	return out;
}

static size_t text_size(const struct zt_policies *r)
{
	size_t all = 1;

	for (size_t i = 0; i < r->n_values; i++)
		all += r->values[i].text.len + 1;
	for (size_t i = 0; i < r->n_rules; i++)
		all += r->rules[i].name.len + 1;
	for (size_t i = 0; i < r->n_policies; i++)
		all += r->policies[i].key.len + 1;
	return all;
}

static struct zt_str keep(char **at, struct zt_str s)
{
	struct zt_str out = { *at, s.len };

	if (s.len)
		memcpy(*at, s.ptr, s.len);
	(*at)[s.len] = 0;
	*at += s.len + 1;
	return out;
}

static void copy_text(struct zt_policyset *p, const struct zt_policies *r)
{
	char *at = p->text;

	for (size_t i = 0; i < r->n_values; i++) {
		const struct zt_value_row *v = &r->values[i];

		p->values[i] = (struct value){ .text = keep(&at, v->text).ptr,
					       .len = (uint32_t)v->text.len,
					       .number = v->number,
					       .addr = v->addr,
					       .match = (uint8_t)v->match };
	}
	for (size_t i = 0; i < r->n_rules; i++)
		p->rules[i].name = keep(&at, r->rules[i].name);
	for (size_t i = 0; i < r->n_policies; i++)
		p->policies[i].key = keep(&at, r->policies[i].key);
}

static uint64_t key_of(uint32_t scope, uint32_t action, uint32_t attr, const void *data, size_t len)
{
	return zt_hash(data, len, ((uint64_t)scope << 8 | action << 4 | attr) * 0x9e3779b97f4a7c15u);
}

static uint64_t key_of_value(uint32_t scope, uint32_t action, uint32_t attr, const struct value *v)
{
	uint16_t port = (uint16_t)v->number;

	return attr == ZT_ATTR_DST_PORT ? key_of(scope, action, attr, &port, sizeof(port))
					: key_of(scope, action, attr, v->text, v->len);
}

static bool is_exact(const struct zt_policyset *p, const struct zt_test_row *t, uint32_t attr)
{
	if (t->attr != attr || t->negate)
		return false;
	for (uint32_t i = 0; i < t->n_values; i++)
		if (p->values[t->first_value + i].match != ZT_MATCH_EXACT &&
		    p->values[t->first_value + i].match != ZT_MATCH_PORT)
			return false;
	return true;
}

/* The test of an option that asks for exact values of `attr`; NULL = it has none. */
static const struct zt_test_row *anchor_of(const struct zt_policyset *p, const struct zt_run_row *option, uint32_t attr)
{
	for (uint32_t i = 0; i < option->n; i++)
		if (is_exact(p, &p->tests[option->first + i], attr))
			return &p->tests[option->first + i];
	return NULL;
}

static bool is_anchored(const struct zt_policyset *p, const struct zt_run_row *clause, uint32_t attr)
{
	for (uint32_t i = 0; i < clause->n; i++)
		if (!anchor_of(p, &p->options[clause->first + i], attr))
			return false;
	return true;
}

static int file_under(struct zt_policyset *p, uint64_t key, uint32_t rule)
{
	if (p->n_filed == p->cap_filed) {
		size_t cap = p->cap_filed ? p->cap_filed * 2 : 64;
		struct filed *grown = realloc(p->filed, cap * sizeof(*grown));

		if (!grown)
			return -ZT_ENOMEM;
		p->filed = grown;
		p->cap_filed = cap;
	}
	p->filed[p->n_filed++] = (struct filed){ key, rule };
	return 0;
}

static int file_rule(struct zt_policyset *p, const struct zt_policy_row *policy, uint32_t rule)
{
	/* The source's name tells more than its namespace, and that more than a port. */
	static const uint32_t attrs[] = { ZT_ATTR_PRINCIPAL, ZT_ATTR_ACCOUNT, ZT_ATTR_NAMESPACE, ZT_ATTR_DST_PORT };
	const struct zt_rule_row *r = &p->rules[rule];

	for (size_t a = 0; a < ZT_COUNT(attrs); a++) {
		for (uint32_t c = 0; c < r->n_clauses; c++) {
			const struct zt_run_row *clause = &p->clauses[r->first_clause + c];

			if (!is_anchored(p, clause, attrs[a]))
				continue;
			for (uint32_t o = 0; o < clause->n; o++) {
				const struct zt_test_row *t = anchor_of(p, &p->options[clause->first + o], attrs[a]);

				for (uint32_t i = 0; i < t->n_values; i++) {
					const struct value *v = &p->values[t->first_value + i];
					uint64_t key = key_of_value(policy->scope, policy->action, attrs[a], v);

					if (file_under(p, key, rule))
						return -ZT_ENOMEM;
				}
			}
			return 0;
		}
	}
	return file_under(p, key_of(policy->scope, policy->action, ATTR_ANY, "", 0), rule);
}

static int by_key_then_rule(const void *a, const void *b)
{
	const struct filed *x = a, *y = b;

	if (x->key != y->key)
		return x->key < y->key ? -1 : 1;
	return x->rule < y->rule ? -1 : x->rule > y->rule;
}

static int build_index(struct zt_policyset *p, size_t n_policies)
{
	size_t n = 0;

	for (size_t i = 0; i < n_policies; i++)
		for (uint32_t k = 0; k < p->policies[i].n_rules; k++)
			if (file_rule(p, &p->policies[i], p->policies[i].first_rule + k))
				return -ZT_ENOMEM;
	if (p->n_filed > INT32_MAX)
		return -ZT_ELIMIT;
	if (p->n_filed)
		qsort(p->filed, p->n_filed, sizeof(*p->filed), by_key_then_rule);
	for (size_t i = 0; i < p->n_filed; i++) /* each pair once */
		if (!n || by_key_then_rule(&p->filed[n - 1], &p->filed[i]))
			p->filed[n++] = p->filed[i];
	p->n_filed = n;
	p->bucket_mask = index_size(n) - 1;
	p->buckets = calloc(p->bucket_mask + 1, sizeof(*p->buckets));
	if (!p->buckets)
		return -ZT_ENOMEM;
	for (size_t i = 0; i < n;) {
		size_t end = i, at = p->filed[i].key & p->bucket_mask;

		while (end < n && p->filed[end].key == p->filed[i].key)
			end++;
		while (p->buckets[at].n)
			at = (at + 1) & p->bucket_mask;
		p->buckets[at] = (struct bucket){ p->filed[i].key, (uint32_t)i, (uint32_t)(end - i) };
		i = end;
	}
	return 0;
}

static int build_allows(struct zt_policyset *p, const struct zt_policies *r)
{
	uint32_t at = 0;

	p->allows = calloc(r->n_policies + 1, sizeof(*p->allows));
	p->allowed = calloc((size_t)r->n_scopes + 1, sizeof(*p->allowed));
	if (!p->allows || !p->allowed)
		return -ZT_ENOMEM;
	for (size_t i = 0; i < r->n_policies; i++)
		if (p->policies[i].action == ZT_ACT_ALLOW)
			p->allowed[p->policies[i].scope].n++;
	for (uint32_t s = 0; s < r->n_scopes; s++) {
		p->allowed[s].first = at;
		at += p->allowed[s].n;
		p->allowed[s].n = 0;
	}
	for (size_t i = 0; i < r->n_policies; i++) {
		struct zt_run_row *run = &p->allowed[p->policies[i].scope];

		if (p->policies[i].action == ZT_ACT_ALLOW)
			p->allows[run->first + run->n++] = (uint32_t)i;
	}
	return 0;
}

static uint64_t ip_hash(const struct zt_addr *a)
{
	return zt_hash(a->ip, sizeof(a->ip), a->family);
}

static const struct zt_guard_row *guard_of(const struct zt_policyset *p, const struct zt_addr *ip)
{
	for (size_t at = ip_hash(ip) & p->guard_mask; p->guard_slots[at]; at = (at + 1) & p->guard_mask)
		if (zt_addr_same_ip(&p->guards[p->guard_slots[at] - 1].addr, ip))
			return &p->guards[p->guard_slots[at] - 1];
	return NULL;
}

static int build_guards(struct zt_policyset *p, size_t n, char *err, size_t cap)
{
	p->guard_mask = index_size(n) - 1;
	p->guard_slots = calloc(p->guard_mask + 1, sizeof(*p->guard_slots));
	if (!p->guard_slots)
		return -ZT_ENOMEM;
	for (uint32_t i = 0; i < n; i++) {
		size_t at = ip_hash(&p->guards[i].addr) & p->guard_mask;

		if (guard_of(p, &p->guards[i].addr))
			return bad(err, cap, "guard's address given twice", i);
		while (p->guard_slots[at])
			at = (at + 1) & p->guard_mask;
		p->guard_slots[at] = i + 1;
	}
	return 0;
}

int zt_policyset_new(const struct zt_policies *rows, struct zt_policyset **out, char *err, size_t err_cap)
{
	struct zt_policyset *p;
	int ret = check(rows, err, err_cap);

	if (ret)
		return ret;
	p = calloc(1, sizeof(*p));
	if (!p)
		return -ZT_ENOMEM;
	ret = -ZT_ENOMEM;
	atomic_init(&p->refs, 1);
	p->epoch = rows->epoch;
	p->deny_unknown = rows->deny_unknown != 0;
	p->n_rules = rows->n_rules;
	p->policies = copy(rows->policies, rows->n_policies, sizeof(*p->policies));
	p->rules = copy(rows->rules, rows->n_rules, sizeof(*p->rules));
	p->clauses = copy(rows->clauses, rows->n_clauses, sizeof(*p->clauses));
	p->options = copy(rows->options, rows->n_options, sizeof(*p->options));
	p->tests = copy(rows->tests, rows->n_tests, sizeof(*p->tests));
	p->scopes = copy(rows->scopes, rows->n_guard_scopes, sizeof(*p->scopes));
	p->guards = copy(rows->guards, rows->n_guards, sizeof(*p->guards));
	p->values = calloc(rows->n_values + 1, sizeof(*p->values));
	p->text = malloc(text_size(rows));
	if (!p->policies || !p->rules || !p->clauses || !p->options || !p->tests || !p->scopes || !p->guards ||
	    !p->values || !p->text)
		goto fail;
	copy_text(p, rows);
	ret = build_index(p, rows->n_policies);
	if (ret)
		goto fail;
	ret = build_allows(p, rows);
	if (ret)
		goto fail;
	ret = build_guards(p, rows->n_guards, err, err_cap);
	if (ret)
		goto fail;
	*out = p;
	return 0;

fail:
	set_free(p);
	return ret;
}

/* --- evaluating ----------------------------------------------------------------------------------------------------- */

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

static bool text_matches(const struct value *v, struct span have)
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

static bool in_block(const struct value *v, const struct zt_addr *ip)
{
	uint32_t whole = v->number / 8, rest = v->number % 8;

	if (v->addr.family != ip->family || memcmp(v->addr.ip, ip->ip, whole))
		return false;
	return !rest || (v->addr.ip[whole] ^ ip->ip[whole]) >> (8 - rest) == 0;
}

static bool value_matches(const struct value *v, uint32_t attr, const struct asked *a)
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

static const struct bucket *bucket_of(const struct zt_policyset *p, uint64_t key)
{
	for (size_t at = key & p->bucket_mask; p->buckets[at].n; at = (at + 1) & p->bucket_mask)
		if (p->buckets[at].key == key)
			return &p->buckets[at];
	return NULL;
}

/* The keys under which rules of a scope that may match are filed; returns how many. */
static size_t keys_for(const struct asked *a, uint32_t scope, uint32_t action, uint64_t keys[5])
{
	size_t n = 0;

	keys[n++] = key_of(scope, action, ATTR_ANY, "", 0);
	keys[n++] = key_of(scope, action, ZT_ATTR_DST_PORT, &a->dst->port, sizeof(a->dst->port));
	for (uint32_t attr = 0; attr <= ZT_ATTR_ACCOUNT; attr++)
		if (a->text[attr].len)
			keys[n++] = key_of(scope, action, attr, a->text[attr].s, a->text[attr].len);
	return n;
}

/* The first rule by row that matches. */
static uint32_t first_match(const struct zt_policyset *p, const struct zt_guard_row *g, uint32_t action,
			    const struct asked *a)
{
	uint32_t best = NO_RULE;

	for (uint32_t s = 0; s < g->n_scopes; s++) {
		uint64_t keys[5];
		size_t n = keys_for(a, p->scopes[g->first_scope + s], action, keys);

		for (size_t k = 0; k < n; k++) {
			const struct bucket *b = bucket_of(p, keys[k]);

			for (uint32_t i = 0; b && i < b->n && p->filed[b->first + i].rule < best; i++)
				if (rule_matches(p, p->filed[b->first + i].rule, a))
					best = p->filed[b->first + i].rule;
		}
	}
	return best;
}

static void note(struct zt_policy_verdict *v, uint32_t rule)
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
		uint64_t keys[5];
		size_t n = keys_for(a, p->scopes[g->first_scope + s], ZT_ACT_NOTE, keys);

		for (size_t k = 0; k < n; k++) {
			const struct bucket *b = bucket_of(p, keys[k]);

			for (uint32_t i = 0; b && i < b->n; i++)
				if (rule_matches(p, p->filed[b->first + i].rule, a))
					note(v, p->filed[b->first + i].rule);
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
	const struct zt_guard_row *g = guard_of(p, &q->dst);

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

/* --- words ---------------------------------------------------------------------------------------------------------- */

/* The first ALLOW policies by row that concern a guard; returns how many there are in all. */
static size_t allows_of(const struct zt_policyset *p, const struct zt_guard_row *g, uint32_t first[NAMED])
{
	struct zt_policy_verdict sorted = { 0 };
	size_t all = 0;

	for (uint32_t s = 0; s < g->n_scopes; s++) {
		const struct zt_run_row *run = &p->allowed[p->scopes[g->first_scope + s]];

		all += run->n;
		for (uint32_t i = 0; i < run->n && i < NAMED; i++)
			note(&sorted, p->allows[run->first + i]);
	}
	memcpy(first, sorted.noted, NAMED * sizeof(first[0]));
	return all;
}

static size_t put(char *buf, size_t cap, size_t at, const char *s)
{
	size_t len = strlen(s), room = cap - 1 - at;

	if (len > room)
		len = room;
	memcpy(buf + at, s, len);
	buf[at + len] = 0;
	return at + len;
}

size_t zt_policyset_explain(const struct zt_policyset *p, const struct zt_policy_verdict *v, char *buf, size_t cap)
{
	uint32_t first[NAMED];
	char more[48];
	size_t all, at;

	if (!cap)
		return 0;
	buf[0] = 0;
	switch (v->why) {
	case ZT_WHY_RULE:
		return put(buf, cap, 0, zt_policyset_rule(p, v->rule));
	case ZT_WHY_NO_ALLOW:
		return put(buf, cap, 0, "no ALLOW policy concerns this workload");
	case ZT_WHY_UNKNOWN:
		return put(buf, cap, 0, "no policy is known for this address");
	default:
		break;
	}
	if (!v->guard)
		return 0;
	all = allows_of(p, &p->guards[v->guard - 1], first);
	at = put(buf, cap, 0, "no rule of ");
	for (size_t i = 0; i < all && i < NAMED; i++) {
		at = put(buf, cap, at, i ? ", " : "");
		at = put(buf, cap, at, p->policies[first[i]].key.ptr);
	}
	if (all > NAMED) {
		snprintf(more, sizeof(more), " and %zu more", all - NAMED);
		at = put(buf, cap, at, more);
	}
	return put(buf, cap, at, " allows it");
}

const char *zt_policyset_rule(const struct zt_policyset *p, uint32_t rule)
{
	return rule < p->n_rules ? p->rules[rule].name.ptr : "";
}
