/* SPDX-License-Identifier: Apache-2.0 */
/* Any rows: zt_policyset_new refuses them or makes a set that can be asked anything, gives the same answer twice, whose
 * words end within their buffer, and whose names outlive it. Both kinds of guards. Rows are read off the input field by field, so that many are nearly valid. */
#include <stdlib.h>
#include <string.h>

#include "policy.h"

#define ROWS 12

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct input {
	const uint8_t *at;
	size_t left;
};

static uint8_t byte(struct input *in)
{
	if (!in->left)
		return 0;
	in->left--;
	return *in->at++;
}

/* Mostly small; sometimes far out of range. */
static uint32_t number(struct input *in)
{
	uint8_t b = byte(in);

	return b < 250 ? b % 4 : b == 250 ? UINT32_MAX : b == 251 ? UINT32_MAX / 2 : (uint32_t)b * 257;
}

static struct zt_str text(struct input *in)
{
	static const char *const words[] = { "", "td/ns/shop/sa/web", "shop", "shop/sa/web", "td", "web" };
	const char *s = words[byte(in) % 6];

	return (struct zt_str){ s, strlen(s) };
}

static struct zt_addr address(struct input *in)
{
	struct zt_addr a = { .family = 0 };

	a.family = byte(in) % 8 ? (byte(in) % 2 ? 4 : 6) : byte(in);
	a.ip[0] = 10;
	a.ip[3] = byte(in) % 4;
	a.port = (uint16_t)number(in);
	return a;
}

static struct zt_run_row run(struct input *in)
{
	struct zt_run_row r = { number(in), 0 };

	r.n = number(in) % 4;
	return r;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = { data, size };
	struct zt_value_row values[ROWS];
	struct zt_test_row tests[ROWS];
	struct zt_run_row options[ROWS], clauses[ROWS];
	struct zt_rule_row rules[ROWS];
	struct zt_policy_row policies[ROWS];
	struct zt_guard_row guards[ROWS];
	uint32_t scopes[ROWS];
	struct zt_policies rows = { .epoch = 1, .deny_unknown = byte(&in), .n_scopes = number(&in) };
	struct zt_name *kept[8] = { NULL };
	struct zt_policyset *set = NULL;
	char err[64] = "", words[48];

	for (size_t i = 0; i < ROWS; i++) {
		values[i] = (struct zt_value_row){ text(&in), address(&in), byte(&in) % 7, 0 };
		values[i].number = number(&in);
		tests[i] = (struct zt_test_row){ byte(&in) % 7, byte(&in) % 3 / 2, number(&in), 0 };
		tests[i].n_values = number(&in) % 4;
		options[i] = run(&in);
		clauses[i] = run(&in);
		rules[i] = (struct zt_rule_row){ text(&in), number(&in), 0 };
		rules[i].n_clauses = number(&in) % 3;
		policies[i] = (struct zt_policy_row){ text(&in), byte(&in) % 4, number(&in), (uint32_t)i, 1 };
		policies[i].n_rules = number(&in) % 3;
		guards[i] = (struct zt_guard_row){ address(&in), number(&in), 0 };
		guards[i].n_scopes = number(&in) % 4;
		scopes[i] = number(&in);
	}
	rows.values = values, rows.n_values = byte(&in) % (ROWS + 1);
	rows.tests = tests, rows.n_tests = byte(&in) % (ROWS + 1);
	rows.options = options, rows.n_options = byte(&in) % (ROWS + 1);
	rows.clauses = clauses, rows.n_clauses = byte(&in) % (ROWS + 1);
	rows.rules = rules, rows.n_rules = byte(&in) % (ROWS + 1);
	rows.policies = policies, rows.n_policies = byte(&in) % (ROWS + 1);
	rows.guards = guards, rows.n_guards = byte(&in) % (ROWS + 1);
	rows.scopes = scopes, rows.n_guard_scopes = byte(&in) % (ROWS + 1);
	rows.by_source = byte(&in) % 2;
	if (rows.n_scopes > 64) /* each costs memory, which is no finding */
		rows.n_scopes = 64;
	if (zt_policyset_new(&rows, &set, err, sizeof(err))) {
		if (set)
			abort();
		return 0;
	}
	for (int i = 0; i < 4; i++) {
		static const char *const ids[] = { "", "spiffe://td/ns/shop/sa/web", "spiffe://td/ns//sa/",
						   "spiffe://" };
		struct zt_policy_request q = { .src = address(&in), .dst = address(&in) };
		struct zt_policy_verdict one, two;
		size_t n;

		q.identity = (struct zt_str){ ids[i], strlen(ids[i]) };
		memset(&one, 0, sizeof(one));
		memset(&two, 0, sizeof(two));
		zt_policyset_evaluate(set, &q, &one);
		zt_policyset_evaluate(set, &q, &two);
		if (memcmp(&one, &two, sizeof(one)) || one.allowed > 1)
			abort();
		n = zt_policyset_explain(set, &one, words, sizeof(words));
		if (n >= sizeof(words) || words[n])
			abort();
		kept[2 * i] = zt_policyset_words(set, &one);
		kept[2 * i + 1] = zt_policyset_notes(set, &one);
		if (kept[2 * i + 1] && (!one.n_noted || kept[2 * i + 1]->len >= ZT_NOTES_TEXT))
			abort();
	}
	zt_policyset_free(set);
	for (size_t i = 0; i < ZT_COUNT(kept); i++) {
		if (strlen(zt_name_str(kept[i])) > (kept[i] ? kept[i]->len : 0))
			abort();
		zt_name_put(kept[i]);
	}
	return 0;
}
