/* SPDX-License-Identifier: Apache-2.0 */
/* Who may talk to whom, compiled. The public part (rows, new, evaluate, explain, free) stands in zt.h.
 *
 * A set is immutable and counted: workers hold references, connections evaluate in the worker that has them. Cost of
 * one evaluation: a hash lookup for the guard, then per scope of it six hash lookups; only rules that could match this
 * source, destination and port are looked at, however many policies there are.
 */
#ifndef ZT_POLICY_H
#define ZT_POLICY_H

#include "base.h"

/* Enough for zt_policyset_explain() in nearly all cases; longer ones are cut. */
#define ZT_POLICY_TEXT sizeof(((struct zt_event *)0)->rule)
#define ZT_NOTES_TEXT sizeof(((struct zt_event *)0)->noted)

struct zt_policyset *zt_policyset_get(struct zt_policyset *p);
void zt_policyset_put(struct zt_policyset *p);
/* A verdict's words, counted: the caller's. NULL only without memory. */
struct zt_name *zt_policyset_words(const struct zt_policyset *p, const struct zt_policy_verdict *v);
/* The NOTE rules that matched, as zt_event.noted has them; NULL = none. */
struct zt_name *zt_policyset_notes(const struct zt_policyset *p, const struct zt_policy_verdict *v);

#endif
