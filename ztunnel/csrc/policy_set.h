/* SPDX-License-Identifier: Apache-2.0 */
/* What a compiled set of policies looks like inside: policy_rows.c checks, policy_build.c makes, policy.c reads.
 *
 * Index: a rule that can only match sources with certain principals, namespaces or accounts, or certain destinations'
 * addresses or ports (one clause of it asks for exact values of that attribute in every option), is filed under each of
 * these values; all others are filed under "anything". A key is a hash of (scope, action, attribute, value): what it finds is evaluated
 * in full, so a collision costs time and never changes a verdict.
 */
#ifndef ZT_POLICY_SET_H
#define ZT_POLICY_SET_H

#include "policy.h"

#define ZT_WORDS_NO_ALLOW "no ALLOW policy concerns this workload"
#define ZT_WORDS_NO_EGRESS "no EgressPolicy concerns this workload"
#define ZT_WORDS_UNKNOWN "no policy is known for this address"
#define ZT_ATTR_ANY ZT_ATTRS /* the index's own: rules without such a clause */

struct zt_policy_value {
	const char *text;
	uint32_t len;
	uint32_t number;
	struct zt_addr addr;
	uint8_t match;
};

struct zt_policy_filed { /* a rule under a key */
	uint64_t key;
	uint32_t rule;
};

struct zt_policy_bucket {
	uint64_t key;
	uint32_t first; /* run of filed[] */
	uint32_t n;     /* 0 = free */
};

struct zt_policyset {
	_Atomic uint32_t refs;
	bool deny_unknown;
	bool by_source;
	struct zt_policy_row *policies;
	struct zt_rule_row *rules;
	struct zt_run_row *clauses, *options;
	struct zt_test_row *tests;
	struct zt_policy_value *values;
	uint32_t *scopes;
	struct zt_guard_row *guards;
	size_t n_rules;
	struct zt_name **names; /* of rules: what a connection keeps of a verdict outlives the set */
	struct zt_name *no_allow, *unknown;
	char *text; /* keys of policies and values, each with a NUL */
	struct zt_policy_filed *filed;
	size_t n_filed, cap_filed;
	struct zt_policy_bucket *buckets;
	size_t bucket_mask;
	uint32_t *guard_slots; /* open addressing; row + 1, 0 = free */
	size_t guard_mask;
	uint32_t *allows;           /* ALLOW policies by scope, then order */
	struct zt_run_row *allowed; /* by scope: run of allows[] */
};

/* 0, or -ZT_EINVAL with the row in `err`. */
int zt_policy_check(const struct zt_policies *rows, char *err, size_t err_cap);
int zt_policy_bad(char *err, size_t cap, const char *what, size_t row);

static inline uint64_t zt_policy_key(uint32_t scope, uint32_t action, uint32_t attr, const void *data, size_t len)
{
	return zt_hash(data, len, ((uint64_t)scope << 8 | action << 4 | attr) * 0x9e3779b97f4a7c15u);
}

static inline uint64_t zt_policy_ip_hash(const struct zt_addr *a)
{
	return zt_hash(a->ip, sizeof(a->ip), a->family);
}

/* Put `rule` among the lowest numbers seen, which are all that is kept of them, and count it. */
void zt_policy_note(struct zt_policy_verdict *v, uint32_t rule);

static inline const struct zt_guard_row *zt_policy_guard(const struct zt_policyset *p, const struct zt_addr *ip)
{
	for (size_t at = zt_policy_ip_hash(ip) & p->guard_mask; p->guard_slots[at]; at = (at + 1) & p->guard_mask)
		if (zt_addr_same_ip(&p->guards[p->guard_slots[at] - 1].addr, ip))
			return &p->guards[p->guard_slots[at] - 1];
	return NULL;
}

#endif
