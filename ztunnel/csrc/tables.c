/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine.h"

static size_t index_size(size_t rows)
{
	size_t n = 16;

	while (n < rows * 2)
		n *= 2;
	return n;
}

static uint64_t ip_hash(const struct zt_addr *a)
{
	return zt_hash(a->ip, sizeof(a->ip), a->family);
}

static void tableset_free(struct zt_tableset *t)
{
	for (size_t i = 0; t->workloads && i < t->n_workloads; i++) {
		zt_name_put(t->workloads[i].identity);
		zt_name_put(t->workloads[i].uid);
		zt_name_put(t->workloads[i].closed);
	}
	for (size_t i = 0; t->services && i < t->n_services; i++) {
		zt_name_put(t->services[i].hostname);
		zt_name_put(t->services[i].closed);
	}
	free(t->workloads);
	free(t->services);
	free(t->endpoints);
	free(t->by_addr);
	free(t->by_vip);
	free(t->by_vip_ip);
	free(t);
}

static int bad(char *err, size_t cap, const char *what, size_t row)
{
	if (err && cap)
		snprintf(err, cap, "%s, row %zu", what, row);
	return -ZT_EINVAL;
}

static int name_copy(struct zt_str s, struct zt_name **out)
{
	*out = zt_name_new(s.ptr, s.len);
	return s.len && !*out ? -ZT_ENOMEM : 0;
}

static int add_workload(struct zt_tableset *t, const struct zt_workload_row *row, uint32_t i, char *err, size_t cap)
{
	struct zt_workload *w = &t->workloads[i];
	size_t at;

	if (row->addr.family == 0) /* a hole; w is zeroed */
		return 0;
	if (row->addr.family != 4 && row->addr.family != 6)
		return bad(err, cap, "workload without address", i);
	if (row->protocol > ZT_PROTO_HBONE)
		return bad(err, cap, "workload with unknown protocol", i);
	if (row->protocol == ZT_PROTO_HBONE && !row->identity.len)
		return bad(err, cap, "HBONE workload without identity", i);
	w->addr = row->addr;
	w->addr.port = 0;
	w->protocol = row->protocol;
	if (name_copy(row->identity, &w->identity) || name_copy(row->uid, &w->uid) ||
	    name_copy(row->closed, &w->closed))
		return -ZT_ENOMEM;
	for (at = ip_hash(&w->addr) & t->addr_mask; t->by_addr[at]; at = (at + 1) & t->addr_mask)
		if (zt_addr_same_ip(&t->workloads[t->by_addr[at] - 1].addr, &w->addr))
			return bad(err, cap, "workload address given twice", i);
	t->by_addr[at] = i + 1;
	return 0;
}

static int add_service(struct zt_tableset *t, const struct zt_service_row *row, uint32_t i, char *err, size_t cap)
{
	struct zt_service *s = &t->services[i];
	size_t at;

	if (row->vip.family != 4 && row->vip.family != 6)
		return bad(err, cap, "service without address", i);
	if ((uint64_t)row->first_endpoint + row->n_endpoints > t->n_endpoints)
		return bad(err, cap, "service with endpoints out of range", i);
	if (row->n_here > row->n_endpoints)
		return bad(err, cap, "service with more endpoints here than in all", i);
	s->vip = row->vip;
	s->first = row->first_endpoint;
	s->n = row->n_endpoints;
	s->n_here = row->n_here;
	s->sticky = row->sticky;
	if (name_copy(row->hostname, &s->hostname) || name_copy(row->closed, &s->closed))
		return -ZT_ENOMEM;
	for (at = zt_addr_hash(&s->vip) & t->vip_mask; t->by_vip[at]; at = (at + 1) & t->vip_mask)
		if (zt_addr_equal(&t->services[t->by_vip[at] - 1].vip, &s->vip))
			return bad(err, cap, "service address and port given twice", i);
	t->by_vip[at] = i + 1;
	for (at = ip_hash(&s->vip) & t->vip_mask; t->by_vip_ip[at]; at = (at + 1) & t->vip_mask)
		if (zt_addr_same_ip(&t->services[t->by_vip_ip[at] - 1].vip, &s->vip))
			return 0;
	t->by_vip_ip[at] = i + 1;
	return 0;
}

int zt_tableset_new(const struct zt_tables *rows, struct zt_tableset **out, char *err, size_t err_cap)
{
	struct zt_tableset *t;
	int ret = -ZT_ENOMEM;

	if (rows->n_workloads >= UINT32_MAX || rows->n_services >= UINT32_MAX || rows->n_endpoints >= UINT32_MAX)
		return -ZT_EINVAL;
	t = calloc(1, sizeof(*t));
	if (!t)
		return -ZT_ENOMEM;
	atomic_init(&t->refs, 1);
	t->epoch = rows->epoch;
	t->n_workloads = rows->n_workloads;
	t->n_services = rows->n_services;
	t->n_endpoints = rows->n_endpoints;
	t->addr_mask = index_size(t->n_workloads) - 1;
	t->vip_mask = index_size(t->n_services) - 1;
	t->workloads = calloc(t->n_workloads + 1, sizeof(*t->workloads));
	t->services = calloc(t->n_services + 1, sizeof(*t->services));
	t->endpoints = calloc(t->n_endpoints + 1, sizeof(*t->endpoints));
	t->by_addr = calloc(t->addr_mask + 1, sizeof(*t->by_addr));
	t->by_vip = calloc(t->vip_mask + 1, sizeof(*t->by_vip));
	t->by_vip_ip = calloc(t->vip_mask + 1, sizeof(*t->by_vip_ip));
	if (!t->workloads || !t->services || !t->endpoints || !t->by_addr || !t->by_vip || !t->by_vip_ip)
		goto fail;
	for (uint32_t i = 0; i < t->n_workloads; i++) {
		ret = add_workload(t, &rows->workloads[i], i, err, err_cap);
		if (ret)
			goto fail;
	}
	for (uint32_t i = 0; i < t->n_endpoints; i++) {
		t->endpoints[i] = rows->endpoints[i];
		if (t->endpoints[i].workload >= t->n_workloads || !t->endpoints[i].port ||
		    t->endpoints[i].port > UINT16_MAX) {
			ret = bad(err, err_cap, "endpoint with a workload or port out of range", i);
			goto fail;
		}
		if (!t->workloads[t->endpoints[i].workload].addr.family) {
			ret = bad(err, err_cap, "endpoint without a workload", i);
			goto fail;
		}
	}
	for (uint32_t i = 0; i < t->n_services; i++) {
		ret = add_service(t, &rows->services[i], i, err, err_cap);
		if (ret)
			goto fail;
	}
	*out = t;
	return 0;

fail:
	tableset_free(t);
	return ret;
}

struct zt_tableset *zt_tableset_get(struct zt_tableset *t)
{
	if (t)
		atomic_fetch_add_explicit(&t->refs, 1, memory_order_relaxed);
	return t;
}

void zt_tableset_put(struct zt_tableset *t)
{
	if (t && atomic_fetch_sub_explicit(&t->refs, 1, memory_order_acq_rel) == 1)
		tableset_free(t);
}

const struct zt_workload *zt_tableset_workload(const struct zt_tableset *t, const struct zt_addr *ip)
{
	if (!t)
		return NULL;
	for (size_t at = ip_hash(ip) & t->addr_mask; t->by_addr[at]; at = (at + 1) & t->addr_mask)
		if (zt_addr_same_ip(&t->workloads[t->by_addr[at] - 1].addr, ip))
			return &t->workloads[t->by_addr[at] - 1];
	return NULL;
}

const struct zt_service *zt_tableset_service(const struct zt_tableset *t, const struct zt_addr *vip)
{
	if (!t)
		return NULL;
	for (size_t at = zt_addr_hash(vip) & t->vip_mask; t->by_vip[at]; at = (at + 1) & t->vip_mask)
		if (zt_addr_equal(&t->services[t->by_vip[at] - 1].vip, vip))
			return &t->services[t->by_vip[at] - 1];
	return NULL;
}

bool zt_tableset_is_vip(const struct zt_tableset *t, const struct zt_addr *ip)
{
	if (!t)
		return false;
	for (size_t at = ip_hash(ip) & t->vip_mask; t->by_vip_ip[at]; at = (at + 1) & t->vip_mask)
		if (zt_addr_same_ip(&t->services[t->by_vip_ip[at] - 1].vip, ip))
			return true;
	return false;
}
