/* SPDX-License-Identifier: Apache-2.0 */
#include "base.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAP_FIRST_SLOTS 16

static int map_grow(struct zt_map *m)
{
	size_t n = m->slots ? (m->mask + 1) * 2 : MAP_FIRST_SLOTS;
	struct zt_node **slots = calloc(n, sizeof(struct zt_node *));

	if (!slots)
		return m->slots ? 0 : -ZT_ENOMEM; /* a full table only gets slower */
	for (size_t i = 0; m->slots && i <= m->mask; i++) {
		struct zt_node *node = m->slots[i];

		while (node) {
			struct zt_node *next = node->next;

			node->next = slots[node->hash & (n - 1)];
			slots[node->hash & (n - 1)] = node;
			node = next;
		}
	}
	free(m->slots);
	m->slots = slots;
	m->mask = n - 1;
	return 0;
}

int zt_map_add(struct zt_map *m, struct zt_node *node, uint64_t hash)
{
	if (!m->slots || m->count > m->mask) {
		int err = map_grow(m);

		if (err)
			return err;
	}
	node->hash = hash;
	node->next = m->slots[hash & m->mask];
	m->slots[hash & m->mask] = node;
	m->count++;
	return 0;
}

void zt_map_del(struct zt_map *m, struct zt_node *node)
{
	struct zt_node **at;

	if (!m->slots)
		return;
	for (at = &m->slots[node->hash & m->mask]; *at; at = &(*at)->next) {
		if (*at == node) {
			*at = node->next;
			m->count--;
			return;
		}
	}
}

static struct zt_node *same_hash(struct zt_node *node, uint64_t hash)
{
	while (node && node->hash != hash)
		node = node->next;
	return node;
}

struct zt_node *zt_map_first(const struct zt_map *m, uint64_t hash)
{
	return m->slots ? same_hash(m->slots[hash & m->mask], hash) : NULL;
}

struct zt_node *zt_map_next(const struct zt_node *node)
{
	return same_hash(node->next, node->hash);
}

struct zt_node *zt_map_any(const struct zt_map *m)
{
	for (size_t i = 0; m->slots && m->count && i <= m->mask; i++)
		if (m->slots[i])
			return m->slots[i];
	return NULL;
}

void zt_map_free(struct zt_map *m)
{
	free(m->slots);
	*m = (struct zt_map){ 0 };
}

/* FNV-1a with a final mix; keys are addresses and names of our own configuration, not chosen by strangers. */
uint64_t zt_hash(const void *data, size_t len, uint64_t seed)
{
	const uint8_t *p = data;
	uint64_t h = 0xcbf29ce484222325u ^ seed;

	for (size_t i = 0; i < len; i++)
		h = (h ^ p[i]) * 0x100000001b3u;
	h ^= h >> 29;
	h *= 0xbf58476d1ce4e5b9u;
	return h ^ h >> 32;
}

struct zt_name *zt_name_new(const char *s, size_t len)
{
	struct zt_name *n;

	if (!len || len > UINT32_MAX / 2)
		return NULL;
	n = malloc(sizeof(*n) + len + 1);
	if (!n)
		return NULL;
	atomic_init(&n->refs, 1);
	n->len = (uint32_t)len;
	memcpy(n->s, s, len);
	n->s[len] = 0;
	return n;
}

struct zt_name *zt_name_get(struct zt_name *n)
{
	if (n)
		atomic_fetch_add_explicit(&n->refs, 1, memory_order_relaxed);
	return n;
}

void zt_name_put(struct zt_name *n)
{
	if (n && atomic_fetch_sub_explicit(&n->refs, 1, memory_order_acq_rel) == 1)
		free(n);
}

const char *zt_name_str(const struct zt_name *n)
{
	return n ? n->s : "";
}

bool zt_name_equal(const struct zt_name *a, const struct zt_name *b)
{
	if (a == b)
		return true;
	return a && b && a->len == b->len && !memcmp(a->s, b->s, a->len);
}

bool zt_name_is(const struct zt_name *n, const char *s, size_t len)
{
	return n ? n->len == len && !memcmp(n->s, s, len) : !len;
}

bool zt_addr_same_ip(const struct zt_addr *a, const struct zt_addr *b)
{
	return a->family == b->family && !memcmp(a->ip, b->ip, sizeof(a->ip));
}

bool zt_addr_equal(const struct zt_addr *a, const struct zt_addr *b)
{
	return a->port == b->port && zt_addr_same_ip(a, b);
}

bool zt_addr_is_loopback(const struct zt_addr *a)
{
	static const uint8_t v6[16] = { [15] = 1 };

	if (a->family == 4)
		return a->ip[0] == 127;
	return a->family == 6 && !memcmp(a->ip, v6, sizeof(v6));
}

uint64_t zt_addr_hash(const struct zt_addr *a)
{
	return zt_hash(a->ip, sizeof(a->ip), (uint64_t)a->port << 8 | a->family);
}

int zt_addr_from_sockaddr(struct zt_addr *a, const struct sockaddr_storage *ss)
{
	static const uint8_t mapped[12] = { [10] = 0xff, [11] = 0xff };
	struct zt_addr out = { .family = 0 };

	if (ss->ss_family == AF_INET) {
		const struct sockaddr_in *in = (const void *)ss;

		out.family = 4;
		out.port = ntohs(in->sin_port);
		memcpy(out.ip, &in->sin_addr, 4);
	} else if (ss->ss_family == AF_INET6) {
		const struct sockaddr_in6 *in6 = (const void *)ss;

		out.port = ntohs(in6->sin6_port);
		if (!memcmp(&in6->sin6_addr, mapped, sizeof(mapped))) {
			out.family = 4;
			memcpy(out.ip, in6->sin6_addr.s6_addr + sizeof(mapped), 4);
		} else {
			out.family = 6;
			memcpy(out.ip, &in6->sin6_addr, 16);
		}
	} else {
		return -ZT_EINVAL;
	}
	*a = out;
	return 0;
}

int zt_addr_of_socket(int fd, struct zt_addr *a)
{
	struct sockaddr_storage ss;
	socklen_t len = sizeof(ss);

	if (getsockname(fd, (struct sockaddr *)&ss, &len))
		return -ZT_ESYS;
	return zt_addr_from_sockaddr(a, &ss);
}

socklen_t zt_addr_to_sockaddr(const struct zt_addr *a, struct sockaddr_storage *ss)
{
	memset(ss, 0, sizeof(*ss));
	if (a->family == 6) {
		struct sockaddr_in6 *in6 = (void *)ss;

		in6->sin6_family = AF_INET6;
		in6->sin6_port = htons(a->port);
		memcpy(&in6->sin6_addr, a->ip, 16);
		return sizeof(*in6);
	} else {
		struct sockaddr_in *in = (void *)ss;

		in->sin_family = AF_INET;
		in->sin_port = htons(a->port);
		memcpy(&in->sin_addr, a->ip, 4);
		return sizeof(*in);
	}
}

size_t zt_addr_format(const struct zt_addr *a, char out[ZT_ADDR_TEXT])
{
	char ip[INET6_ADDRSTRLEN] = "";

	inet_ntop(a->family == 6 ? AF_INET6 : AF_INET, a->ip, ip, sizeof(ip));
	return (size_t)snprintf(out, ZT_ADDR_TEXT, a->family == 6 ? "[%s]:%u" : "%s:%u", ip, a->port);
}

static int parse_port(const char *s, size_t len, uint16_t *out)
{
	unsigned v = 0;

	if (!len || len > 5)
		return -ZT_EINVAL;
	for (size_t i = 0; i < len; i++) {
		if (s[i] < '0' || s[i] > '9')
			return -ZT_EINVAL;
		v = v * 10 + (unsigned)(s[i] - '0');
	}
	if (!v || v > UINT16_MAX)
		return -ZT_EINVAL;
	*out = (uint16_t)v;
	return 0;
}

int zt_addr_parse(const char *s, size_t len, bool need_port, struct zt_addr *out)
{
	struct zt_addr a = { .family = 4 };
	char ip[INET6_ADDRSTRLEN];
	size_t ip_len = len, skip = 0, port_at = len;

	if (len > ZT_ADDR_TEXT)
		return -ZT_EINVAL;
	if (len && s[0] == '[') {
		const char *close = memchr(s, ']', len);

		if (!close)
			return -ZT_EINVAL;
		a.family = 6;
		skip = 1;
		ip_len = (size_t)(close - s) - 1;
		port_at = ip_len + 2;
		if (port_at < len && s[port_at] != ':')
			return -ZT_EINVAL;
	} else {
		const char *colon = memchr(s, ':', len);

		if (colon)
			ip_len = port_at = (size_t)(colon - s);
	}
	if (port_at < len) {
		if (parse_port(s + port_at + 1, len - port_at - 1, &a.port))
			return -ZT_EINVAL;
	} else if (need_port) {
		return -ZT_EINVAL;
	}
	if (!ip_len || ip_len >= sizeof(ip))
		return -ZT_EINVAL;
	memcpy(ip, s + skip, ip_len);
	ip[ip_len] = 0;
	if (inet_pton(a.family == 6 ? AF_INET6 : AF_INET, ip, a.ip) != 1)
		return -ZT_EINVAL;
	*out = a;
	return 0;
}
