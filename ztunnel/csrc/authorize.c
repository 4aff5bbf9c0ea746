/* SPDX-License-Identifier: Apache-2.0 */
/* Policy meets connections: asked when one comes in, before the application hears of it, and again for all that stand
 * when the policies change. Where none were ever applied, everything may come.
 */
#include <stdlib.h>

#include "engine.h"
#include "policy.h"

bool zt_authorize(struct zt_conn *c)
{
	const struct zt_policyset *set = c->w->policies;
	const struct zt_name *id = c->tunnel ? c->tunnel->peer_identity : NULL;
	struct zt_policy_request q = {
		.identity = { zt_name_str(id), id ? id->len : 0 },
		.src = c->src,
		.dst = c->target,
	};
	struct zt_policy_verdict v;

	if (!set)
		return true;
	zt_policyset_evaluate(set, &q, &v);
	zt_name_put(c->rule);
	zt_name_put(c->noted);
	c->rule = zt_policyset_words(set, &v);
	c->noted = zt_policyset_notes(set, &v);
	return v.allowed;
}

static void ask_again(struct zt_podw *p)
{
	p->pins++;
	zt_list_each_safe(it, &p->conns)
	{
		struct zt_conn *c = zt_container(it, struct zt_conn, link);

		/* Without a target it has not asked for anything yet. */
		if (c->direction == ZT_INBOUND && c->target.family && !zt_authorize(c))
			zt_inbound_deny(c);
	}
	p->pins--;
	zt_podw_maybe_free(p);
}

void zt_worker_policies(struct zt_worker *w, struct zt_policyset *set)
{
	zt_policyset_put(w->policies);
	w->policies = set;
	zt_map_each(n, &w->pods) ask_again(zt_container(n, struct zt_podw, node));
}

int zt_policies_apply(struct zt_core *core, const struct zt_policies *policies, char *err, size_t err_cap)
{
	struct zt_policyset *set;
	struct zt_msg *all = NULL;
	int ret;

	if (core->stopped)
		return -ZT_ESTATE;
	if (policies->epoch <= core->policy_epoch)
		return -ZT_ESTALE;
	ret = zt_policyset_new(policies, &set, err, err_cap);
	if (ret)
		return ret;
	for (unsigned i = 0; i < core->n_workers; i++) { /* all workers or none */
		struct zt_msg *m = calloc(1, sizeof(*m));

		if (!m)
			goto fail;
		m->kind = ZT_M_POLICIES;
		m->policies = zt_policyset_get(set);
		m->next = all;
		all = m;
	}
	for (unsigned i = 0; i < core->n_workers; i++) {
		struct zt_msg *m = all;

		all = m->next;
		zt_worker_post(&core->workers[i], m);
	}
	core->policy_epoch = policies->epoch;
	zt_policyset_put(set);
	return 0;

fail:
	while (all) {
		struct zt_msg *m = all;

		all = m->next;
		zt_msg_free(m);
	}
	zt_policyset_put(set);
	return -ZT_ENOMEM;
}
