/* SPDX-License-Identifier: Apache-2.0 */
/* Policy meets connections: asked when one comes in, before the application hears of it, when one leaves the mesh,
 * before it is made, and again for all that stand when the policies change. Where none were ever applied, everything
 * may come and go.
 */
#include <stdlib.h>

#include "engine.h"
#include "policy_set.h"

static bool ask(struct zt_conn *c, const struct zt_policyset *set, const struct zt_policy_request *q)
{
	struct zt_policy_verdict v;

	zt_policyset_evaluate(set, q, &v);
	zt_name_put(c->rule);
	zt_name_put(c->noted);
	c->rule = zt_policyset_words(set, &v);
	c->noted = zt_policyset_notes(set, &v);
	return v.allowed;
}

bool zt_authorize(struct zt_conn *c)
{
	const struct zt_policyset *set = c->w->policies;
	const struct zt_name *id = c->tunnel ? c->tunnel->peer_identity : NULL;
	struct zt_policy_request q = {
		.identity = { zt_name_str(id), id ? id->len : 0 },
		.src = c->src,
		.dst = c->target,
	};

	return !set || ask(c, set, &q);
}

bool zt_authorize_exit(struct zt_conn *c, const struct zt_addr *to)
{
	const struct zt_policyset *set = c->w->egress;
	const struct zt_pod *pod = c->pod->pod;
	struct zt_policy_request q = {
		.identity = { zt_name_str(pod->identity), pod->identity ? pod->identity->len : 0 },
		.dst = *to,
	};

	if (pod->n_addrs) /* not c->src: an application may bind to what it likes */
		q.src = pod->addrs[0];
	return !set || ask(c, set, &q);
}

/* Is it one that policy is asked about, and what does it say now? */
static bool is_denied(struct zt_conn *c, enum zt_direction dir)
{
	const struct zt_workload *wl;

	if (c->direction != dir || !c->target.family) /* without a target it has not asked for anything yet */
		return false;
	if (dir == ZT_INBOUND)
		return !zt_authorize(c);
	if (c->path != ZT_PATH_PLAIN)
		return false;
	wl = zt_tableset_workload(c->w->tables, &c->target);
	return !(wl && wl->protocol == ZT_PROTO_HBONE) && !zt_authorize_exit(c, &c->target);
}

static void ask_again(struct zt_podw *p, enum zt_direction dir)
{
	p->pins++;
	zt_list_each_safe(it, &p->conns)
	{
		struct zt_conn *c = zt_container(it, struct zt_conn, link);

		if (!is_denied(c, dir))
			continue;
		if (dir == ZT_INBOUND)
			zt_inbound_deny(c);
		else
			zt_outbound_deny(c);
	}
	p->pins--;
	zt_podw_maybe_free(p);
}

void zt_worker_policies(struct zt_worker *w, struct zt_policyset *set)
{
	zt_policyset_put(w->policies);
	w->policies = set;
	zt_map_each(n, &w->pods) ask_again(zt_container(n, struct zt_podw, node), ZT_INBOUND);
}

void zt_worker_egress(struct zt_worker *w, struct zt_policyset *set)
{
	zt_policyset_put(w->egress);
	w->egress = set;
	zt_map_each(n, &w->pods) ask_again(zt_container(n, struct zt_podw, node), ZT_OUTBOUND);
}

static int apply(struct zt_core *core, enum zt_msg_kind kind, uint64_t *epoch, const struct zt_policies *policies,
		 char *err, size_t err_cap)
{
	bool asks = kind == ZT_M_POLICIES || policies->n_policies || policies->deny_unknown;
	struct zt_policyset *set;
	struct zt_msg *all = NULL;
	int ret;

	if (core->stopped)
		return -ZT_ESTATE;
	if (policies->epoch <= *epoch)
		return -ZT_ESTALE;
	if ((policies->by_source != 0) != (kind == ZT_M_EGRESS))
		return zt_policy_bad(err, err_cap, "guards of the wrong side", 0);
	ret = zt_policyset_new(policies, &set, err, err_cap);
	if (ret)
		return ret;
	for (unsigned i = 0; i < core->n_workers; i++) { /* all workers or none */
		struct zt_msg *m = calloc(1, sizeof(*m));

		if (!m)
			goto fail;
		m->kind = kind;
		m->policies = asks ? zt_policyset_get(set) : NULL;
		m->next = all;
		all = m;
	}
	for (unsigned i = 0; i < core->n_workers; i++) {
		struct zt_msg *m = all;

		all = m->next;
		zt_worker_post(&core->workers[i], m);
	}
	*epoch = policies->epoch;
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

int zt_policies_apply(struct zt_core *core, const struct zt_policies *policies, char *err, size_t err_cap)
{
	return apply(core, ZT_M_POLICIES, &core->policy_epoch, policies, err, err_cap);
}

int zt_egress_apply(struct zt_core *core, const struct zt_policies *policies, char *err, size_t err_cap)
{
	return apply(core, ZT_M_EGRESS, &core->egress_epoch, policies, err, err_cap);
}
