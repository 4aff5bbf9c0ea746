/* SPDX-License-Identifier: Apache-2.0 */
/* Rows to a set: copies, the index of rules, the guards by address; its references and its end. */
#include "policy_set.h"

#include <stdlib.h>
#include <string.h>

static void set_free(struct zt_policyset *p)
{
	for (size_t i = 0; p->names && i < p->n_rules; i++)
		zt_name_put(p->names[i]);
	zt_name_put(p->no_allow);
	zt_name_put(p->unknown);
	free(p->names);
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

		p->values[i] = (struct zt_policy_value){ .text = keep(&at, v->text).ptr,
							 .len = (uint32_t)v->text.len,
							 .number = v->number,
							 .addr = v->addr,
							 .match = (uint8_t)v->match };
	}
	for (size_t i = 0; i < r->n_policies; i++)
		p->policies[i].key = keep(&at, r->policies[i].key);
}

static int copy_names(struct zt_policyset *p, const struct zt_policies *r)
{
	const char *no_allow = r->by_source ? ZT_WORDS_NO_EGRESS : ZT_WORDS_NO_ALLOW;

	p->no_allow = zt_name_new(no_allow, strlen(no_allow));
	p->unknown = zt_name_new(ZT_WORDS_UNKNOWN, sizeof(ZT_WORDS_UNKNOWN) - 1);
	p->names = calloc(r->n_rules + 1, sizeof(struct zt_name *));
	if (!p->no_allow || !p->unknown || !p->names)
		return -ZT_ENOMEM;
	for (size_t i = 0; i < r->n_rules; i++) {
		p->names[i] = zt_name_new(r->rules[i].name.ptr, r->rules[i].name.len);
		if (!p->names[i] && r->rules[i].name.len)
			return -ZT_ENOMEM;
		p->rules[i].name = (struct zt_str){ zt_name_str(p->names[i]), r->rules[i].name.len };
	}
	return 0;
}

static uint64_t key_of_value(uint32_t scope, uint32_t action, uint32_t attr, const struct zt_policy_value *v)
{
	uint16_t port = (uint16_t)v->number;

	switch (attr) {
	case ZT_ATTR_DST_IP:
		return zt_policy_key(scope, action, attr, v->addr.ip, sizeof(v->addr.ip));
	case ZT_ATTR_DST_PORT:
		return zt_policy_key(scope, action, attr, &port, sizeof(port));
	default:
		return zt_policy_key(scope, action, attr, v->text, v->len);
	}
}

static bool is_exact(const struct zt_policyset *p, const struct zt_test_row *t, uint32_t attr)
{
	if (t->attr != attr || t->negate)
		return false;
	for (uint32_t i = 0; i < t->n_values; i++) {
		const struct zt_policy_value *v = &p->values[t->first_value + i];
		bool whole = v->match == ZT_MATCH_BLOCK && v->number == (v->addr.family == 4 ? 32 : 128);

		if (v->match != ZT_MATCH_EXACT && v->match != ZT_MATCH_PORT && !whole)
			return false;
	}
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
		struct zt_policy_filed *grown = realloc(p->filed, cap * sizeof(*grown));

		if (!grown)
			return -ZT_ENOMEM;
		p->filed = grown;
		p->cap_filed = cap;
	}
	p->filed[p->n_filed++] = (struct zt_policy_filed){ key, rule };
	return 0;
}

static int file_rule(struct zt_policyset *p, const struct zt_policy_row *policy, uint32_t rule)
{
	/* What tells more comes first. */
	static const uint32_t attrs[] = { ZT_ATTR_DST_IP, ZT_ATTR_PRINCIPAL, ZT_ATTR_ACCOUNT, ZT_ATTR_NAMESPACE,
					  ZT_ATTR_DST_PORT };
	const struct zt_rule_row *r = &p->rules[rule];

	for (size_t a = 0; a < ZT_COUNT(attrs); a++) {
		for (uint32_t c = 0; c < r->n_clauses; c++) {
			const struct zt_run_row *clause = &p->clauses[r->first_clause + c];

			if (!is_anchored(p, clause, attrs[a]))
				continue;
			for (uint32_t o = 0; o < clause->n; o++) {
				const struct zt_test_row *t = anchor_of(p, &p->options[clause->first + o], attrs[a]);

				for (uint32_t i = 0; i < t->n_values; i++) {
					const struct zt_policy_value *v = &p->values[t->first_value + i];
					uint64_t key = key_of_value(policy->scope, policy->action, attrs[a], v);

					if (file_under(p, key, rule))
						return -ZT_ENOMEM;
				}
			}
			return 0;
		}
	}
	return file_under(p, zt_policy_key(policy->scope, policy->action, ZT_ATTR_ANY, "", 0), rule);
}

static int by_key_then_rule(const void *a, const void *b)
{
	const struct zt_policy_filed *x = a, *y = b;

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
		p->buckets[at] = (struct zt_policy_bucket){ p->filed[i].key, (uint32_t)i, (uint32_t)(end - i) };
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

static int build_guards(struct zt_policyset *p, size_t n, char *err, size_t cap)
{
	p->guard_mask = index_size(n) - 1;
	p->guard_slots = calloc(p->guard_mask + 1, sizeof(*p->guard_slots));
	if (!p->guard_slots)
		return -ZT_ENOMEM;
	for (uint32_t i = 0; i < n; i++) {
		size_t at = zt_policy_ip_hash(&p->guards[i].addr) & p->guard_mask;

		if (zt_policy_guard(p, &p->guards[i].addr))
			return zt_policy_bad(err, cap, "guard's address given twice", i);
		while (p->guard_slots[at])
			at = (at + 1) & p->guard_mask;
		p->guard_slots[at] = i + 1;
	}
	return 0;
}

int zt_policyset_new(const struct zt_policies *rows, struct zt_policyset **out, char *err, size_t err_cap)
{
	struct zt_policyset *p;
	int ret = zt_policy_check(rows, err, err_cap);

	if (ret)
		return ret;
	p = calloc(1, sizeof(*p));
	if (!p)
		return -ZT_ENOMEM;
	ret = -ZT_ENOMEM;
	atomic_init(&p->refs, 1);
	p->deny_unknown = rows->deny_unknown != 0;
	p->by_source = rows->by_source != 0;
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
	ret = copy_names(p, rows);
	if (ret)
		goto fail;
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
