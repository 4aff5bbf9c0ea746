/* SPDX-License-Identifier: Apache-2.0 */
/* What a verdict says to people: for a buffer, or as a name that a connection keeps longer than the set lives. */
#include "policy_set.h"

#include <stdio.h>
#include <string.h>

#define NAMED 3 /* ALLOW policies named in a refusal */

/* The first ALLOW policies by row that concern a guard; returns how many there are in all. */
static size_t allows_of(const struct zt_policyset *p, const struct zt_guard_row *g, uint32_t first[NAMED])
{
	struct zt_policy_verdict sorted = { 0 };
	size_t all = 0;

	for (uint32_t s = 0; s < g->n_scopes; s++) {
		const struct zt_run_row *run = &p->allowed[p->scopes[g->first_scope + s]];

		all += run->n;
		for (uint32_t i = 0; i < run->n && i < NAMED; i++)
			zt_policy_note(&sorted, p->allows[run->first + i]);
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

/* Those that are the same for every connection; NULL = the others. */
static struct zt_name *kept_words(const struct zt_policyset *p, const struct zt_policy_verdict *v)
{
	switch (v->why) {
	case ZT_WHY_RULE:
		return v->rule < p->n_rules ? p->names[v->rule] : NULL;
	case ZT_WHY_NO_ALLOW:
		return p->no_allow;
	case ZT_WHY_UNKNOWN:
		return p->unknown;
	default:
		return NULL;
	}
}

size_t zt_policyset_explain(const struct zt_policyset *p, const struct zt_policy_verdict *v, char *buf, size_t cap)
{
	uint32_t first[NAMED];
	char more[48];
	size_t all, at;

	if (!cap)
		return 0;
	buf[0] = 0;
	if (v->why != ZT_WHY_UNMATCHED || !v->guard)
		return put(buf, cap, 0, zt_name_str(kept_words(p, v)));
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

struct zt_name *zt_policyset_words(const struct zt_policyset *p, const struct zt_policy_verdict *v)
{
	struct zt_name *kept = kept_words(p, v);
	char text[ZT_POLICY_TEXT];

	if (kept)
		return zt_name_get(kept);
	return zt_name_new(text, zt_policyset_explain(p, v, text, sizeof(text)));
}

struct zt_name *zt_policyset_notes(const struct zt_policyset *p, const struct zt_policy_verdict *v)
{
	char text[ZT_NOTES_TEXT];
	size_t at = 0;

	for (uint32_t i = 0; i < v->n_noted && i < ZT_COUNT(v->noted); i++) {
		struct zt_str name = p->rules[v->noted[i]].name;
		size_t room = sizeof(text) - 1 - at; /* an empty one ends them */

		if (name.len + 1 > room) {
			if (at || room < 2)
				break;
			name.len = room - 1; /* the first of them, cut, rather than none */
		}
		memcpy(text + at, name.ptr, name.len);
		at += name.len;
		text[at++] = 0;
	}
	return zt_name_new(text, at);
}
