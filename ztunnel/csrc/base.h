/* SPDX-License-Identifier: Apache-2.0 */
/* Small things everything stands on: lists, maps, shared names, addresses. No engine state. */
#ifndef ZT_BASE_H
#define ZT_BASE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include "zt.h"

#define zt_container(ptr, type, member) ((type *)(void *)((char *)(ptr)-offsetof(type, member)))
#define ZT_COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* --- lists: circular, intrusive. A node that is in no list points at itself. ----------------------------------- */
struct zt_list {
	struct zt_list *prev;
	struct zt_list *next;
};

static inline void zt_list_init(struct zt_list *l)
{
	l->prev = l->next = l;
}

static inline bool zt_list_empty(const struct zt_list *l)
{
	return l->next == l;
}

static inline void zt_list_add(struct zt_list *list, struct zt_list *node) /* at the tail */
{
	node->prev = list->prev;
	node->next = list;
	list->prev->next = node;
	list->prev = node;
}

static inline void zt_list_del(struct zt_list *node) /* harmless when in no list */
{
	node->prev->next = node->next;
	node->next->prev = node->prev;
	zt_list_init(node);
}

/* Move all of `from` to the tail of `to`. */
static inline void zt_list_splice(struct zt_list *to, struct zt_list *from)
{
	if (zt_list_empty(from))
		return;
	from->next->prev = to->prev;
	to->prev->next = from->next;
	from->prev->next = to;
	to->prev = from->prev;
	zt_list_init(from);
}

#define zt_list_first(list, type, member) zt_container((list)->next, type, member)
#define zt_list_each(it, list) for (struct zt_list *it = (list)->next; it != (list); it = it->next)
/* The body may remove `it` (but not its successor). */
#define zt_list_each_safe(it, list)                                                                                    \
	for (struct zt_list *it = (list)->next, *it##_n = it->next; it != (list); it = it##_n, it##_n = it->next)

/* --- maps: chained, intrusive, growing; equal hashes are told apart by the caller. ------------------------------ */
struct zt_node {
	struct zt_node *next;
	uint64_t hash;
};

struct zt_map {
	struct zt_node **slots;
	size_t mask; /* slots - 1; 0 = nothing allocated */
	size_t count;
};

int zt_map_add(struct zt_map *m, struct zt_node *node, uint64_t hash); /* 0 or -ZT_ENOMEM */
void zt_map_del(struct zt_map *m, struct zt_node *node);
struct zt_node *zt_map_first(const struct zt_map *m, uint64_t hash);
struct zt_node *zt_map_next(const struct zt_node *node);
/* Any node, or NULL: for emptying. */
struct zt_node *zt_map_any(const struct zt_map *m);
void zt_map_free(struct zt_map *m); /* the table only */
#define zt_map_each(it, m)                                                                                             \
	for (size_t it##_i = 0; (m)->slots && it##_i <= (m)->mask; it##_i++)                                           \
		for (struct zt_node *it = (m)->slots[it##_i], *it##_n; it && (it##_n = it->next, 1); it = it##_n)

uint64_t zt_hash(const void *data, size_t len, uint64_t seed);

/* --- names: immutable strings shared by reference between threads. NULL is the empty name. ----------------------- */
struct zt_name {
	_Atomic uint32_t refs;
	uint32_t len;
	char s[];
};

struct zt_name *zt_name_new(const char *s, size_t len); /* NULL = out of memory or len 0 */
struct zt_name *zt_name_get(struct zt_name *n);
void zt_name_put(struct zt_name *n);
const char *zt_name_str(const struct zt_name *n);
bool zt_name_equal(const struct zt_name *a, const struct zt_name *b);
bool zt_name_is(const struct zt_name *n, const char *s, size_t len);

/* --- addresses ----------------------------------------------------------------------------------------------------- */
#define ZT_ADDR_TEXT 64 /* "[v6]:port" and NUL */

bool zt_addr_equal(const struct zt_addr *a, const struct zt_addr *b); /* with port */
bool zt_addr_same_ip(const struct zt_addr *a, const struct zt_addr *b);
bool zt_addr_is_loopback(const struct zt_addr *a);
uint64_t zt_addr_hash(const struct zt_addr *a);
/* IPv4-mapped IPv6 becomes IPv4: one host has one spelling in the engine. */
int zt_addr_from_sockaddr(struct zt_addr *a, const struct sockaddr_storage *ss);
int zt_addr_of_socket(int fd, struct zt_addr *a); /* getsockname(): 0 or negative */
socklen_t zt_addr_to_sockaddr(const struct zt_addr *a, struct sockaddr_storage *ss);
/* "ip:port", "[v6]:port"; returns the length. */
size_t zt_addr_format(const struct zt_addr *a, char out[ZT_ADDR_TEXT]);
/* The same, strictly; need_port false: a bare ip too. 0 or -ZT_EINVAL. */
int zt_addr_parse(const char *s, size_t len, bool need_port, struct zt_addr *out);

#endif
