/* SPDX-License-Identifier: Apache-2.0 */
/* Rows are ours, but a mistake in them must be an error and not a wrong verdict: every index, kind and length. */
#include "policy_set.h"

#include <stdio.h>

int zt_policy_bad(char *err, size_t cap, const char *what, size_t row)
{
	if (err && cap)
		snprintf(err, cap, "%s, row %zu", what, row);
	return -ZT_EINVAL;
}

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
		return zt_policy_bad(err, cap, "test out of range", i);
	for (uint32_t k = 0; k < t->n_values; k++) {
		const struct zt_value_row *v = &r->values[t->first_value + k];
		bool fits = t->attr <= ZT_ATTR_ACCOUNT  ? v->match <= ZT_MATCH_PRESENT
			    : t->attr <= ZT_ATTR_DST_IP ? v->match == ZT_MATCH_BLOCK
							: v->match == ZT_MATCH_PORT;

		if (!fits)
			return zt_policy_bad(err, cap, "value of another kind than its test", t->first_value + k);
	}
	return 0;
}

static int check_value(const struct zt_policies *r, size_t i, char *err, size_t cap)
{
	const struct zt_value_row *v = &r->values[i];
	uint32_t bits = v->addr.family == 4 ? 32 : 128;

	if (v->match > ZT_MATCH_PORT || !is_text(v->text))
		return zt_policy_bad(err, cap, "value of unknown kind", i);
	if (v->match == ZT_MATCH_BLOCK && ((v->addr.family != 4 && v->addr.family != 6) || v->number > bits))
		return zt_policy_bad(err, cap, "value is no block of addresses", i);
	if (v->match == ZT_MATCH_PORT && (!v->number || v->number > UINT16_MAX))
		return zt_policy_bad(err, cap, "value is no port", i);
	return 0;
}

static int check_policies(const struct zt_policies *r, char *err, size_t cap)
{
	uint64_t next = 0;

	for (size_t i = 0; i < r->n_policies; i++) {
		const struct zt_policy_row *p = &r->policies[i];

		if (p->action >= ZT_ACTIONS || p->scope >= r->n_scopes || !is_text(p->key))
			return zt_policy_bad(err, cap, "policy with unknown action or scope", i);
		if (p->first_rule < next || !in_range(p->first_rule, p->n_rules, r->n_rules))
			return zt_policy_bad(err, cap, "policy with rules out of range", i);
		next = (uint64_t)p->first_rule + p->n_rules;
	}
	return 0;
}

int zt_policy_check(const struct zt_policies *r, char *err, size_t cap)
{
	const size_t sizes[] = { r->n_policies, r->n_rules,  r->n_clauses,      r->n_options, r->n_tests,
				 r->n_values,   r->n_guards, r->n_guard_scopes, r->n_scopes };
	int ret;

	for (size_t i = 0; i < ZT_COUNT(sizes); i++)
		if (sizes[i] >= INT32_MAX)
			return zt_policy_bad(err, cap, "too many rows of kind", i);
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
			return zt_policy_bad(err, cap, "option out of range", i);
	for (size_t i = 0; i < r->n_clauses; i++)
		if (!r->clauses[i].n || !in_range(r->clauses[i].first, r->clauses[i].n, r->n_options))
			return zt_policy_bad(err, cap, "clause out of range", i);
	for (size_t i = 0; i < r->n_rules; i++)
		if (!in_range(r->rules[i].first_clause, r->rules[i].n_clauses, r->n_clauses) ||
		    !is_text(r->rules[i].name))
			return zt_policy_bad(err, cap, "rule out of range", i);
	for (size_t i = 0; i < r->n_guard_scopes; i++)
		if (r->scopes[i] >= r->n_scopes)
			return zt_policy_bad(err, cap, "scope out of range", i);
	for (size_t i = 0; i < r->n_guards; i++)
		if ((r->guards[i].addr.family != 4 && r->guards[i].addr.family != 6) ||
		    !in_range(r->guards[i].first_scope, r->guards[i].n_scopes, r->n_guard_scopes))
			return zt_policy_bad(err, cap, "guard out of range", i);
	return check_policies(r, err, cap);
}
