/* SPDX-License-Identifier: Apache-2.0 */
/* Who may talk to whom, compiled. The public part (rows, new, evaluate, explain, free) stands in zt.h.
 *
 * A set is immutable and counted: workers hold references, connections evaluate in the worker that has them. Cost of
 * one evaluation: a hash lookup for the destination's guard, then per scope of it five hash lookups; only rules that
 * could match this source and port are looked at, however many policies there are.
 */
#ifndef ZT_POLICY_H
#define ZT_POLICY_H

#include "base.h"

#define ZT_POLICY_TEXT 256 /* enough for zt_policyset_explain() in nearly all cases; longer ones are cut */

struct zt_policyset *zt_policyset_get(struct zt_policyset *p);
void zt_policyset_put(struct zt_policyset *p);

#endif
