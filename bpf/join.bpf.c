/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* join: both ends of a direct flow of mode SHORTCUT enter the socket map in which bytes are moved (shortcut.bpf.c).
 *
 * qn_join
 *   Hook:     sockops, beside qn_flows
 *   Attached: slot of after_flows (flows calls it for its sockets); by the trial to the v2 root
 *   Reads:    sockets, settings. Writes: joinable, halves, joins, moved, arrived, counters
 *   Returns:  always 1; never touches `reply`
 *
 * Cannot decide: plain TCP. With a map full, MPTCP or an unknown peer the flow is not joined. A receiver leaves `joinable` by
 * its own close() or next connect() and never before: taking it out would lose what is queued.
 */
#include "join_maps.h"
#include "kernel.h"
#include "maps.h"
#include "moved_maps.h"
#include "tuple.h"

#define SOL_SOCKET 1
#define SO_RCVBUF 8
#define IPPROTO_TCP 6
#define TCP_USER_TIMEOUT 18

/* Fills *h with the socket itself. Returns 0 for one that may not enter the socket map. */
static __always_inline int read_own_half(struct bpf_sock_ops *ctx, struct bpf_sock *sk, struct qn_half *h)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);

	if (!tp || tp->is_mptcp)
		return 0;
	h->cookie = bpf_get_socket_cookie(ctx);
	h->at = (__u64)(void *)tp;
	return h->cookie != 0;
}

/* Last: from here on the socket's calls take other ways through the kernel. */
static __always_inline int enter(struct bpf_sock_ops *ctx, struct bpf_sock *sk, struct qn_join *j)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	struct qn_arrived from = {};
	__u64 cookie = j->cookie;

	if (!tp)
		return 0;
	from.next = tp->copied_seq;
	j->settled = tp->write_seq - 1; /* not known: there may be bytes in the SYN */
	bpf_sock_ops_cb_flags_set(ctx, (int)ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
	if (bpf_map_update_elem(&arrived, &cookie, &from, BPF_ANY) ||
	    !bpf_sk_storage_get(&joins, sk, (void *)j, BPF_SK_STORAGE_GET_F_CREATE) ||
	    bpf_sock_hash_update(ctx, &joinable, &cookie, BPF_ANY)) {
		bpf_map_delete_elem(&arrived, &cookie);
		qn_count(QN_CNT_SHORTCUT_FULL);
		return 0;
	}
	qn_count(QN_CNT_SHORTCUT_JOINED);
	return 1;
}

/* A socket that connects again: what waits in the socket map's queue is of the connection before. */
static __always_inline void on_connect(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct qn_join *j = sk ? bpf_sk_storage_get(&joins, sk, 0, 0) : 0;
	__u64 cookie;

	if (!j)
		return;
	cookie = j->cookie;
	bpf_map_delete_elem(&joinable, &cookie);
	bpf_map_delete_elem(&arrived, &cookie);
	bpf_sk_storage_delete(&joins, sk);
}

static __always_inline void on_client(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct qn_half own = {};
	struct qn_join j = {};
	struct qn_socket *s;

	if (!sk)
		return;
	s = bpf_sk_storage_get(&sockets, sk, 0, 0);
	if (!s || s->path != QN_PATH_DIRECT || s->same_node != QN_SAME_NODE_SHORTCUT || !s->dst || !qn_is_shortcut_on())
		return;
	if (!read_own_half(ctx, sk, &own))
		return;
	qn_read_tuple(ctx, &j.key);
	j.key.netns = s->dst;
	if (bpf_map_update_elem(&halves, &j.key, &own, BPF_ANY)) {
		qn_count(QN_CNT_SHORTCUT_FULL);
		return;
	}
	j.cookie = own.cookie;
	if (!enter(ctx, sk, &j))
		bpf_map_delete_elem(&halves, &j.key);
}

static __always_inline void on_server(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct qn_half own = { .is_server = 1 };
	struct qn_join j = { .is_server = 1 };
	struct qn_half *client;
	__u64 none = 0;

	if (!sk)
		return;
	qn_read_reversed_tuple(ctx, &j.key);
	j.key.netns = bpf_get_netns_cookie(ctx);
	client = bpf_map_lookup_elem(&halves, &j.key);
	if (!client || client->is_server || !read_own_half(ctx, sk, &own))
		return;
	j.cookie = own.cookie;
	j.peer = client->cookie;
	j.peer_at = client->at;
	if (!enter(ctx, sk, &j))
		return;
	bpf_map_update_elem(&moved, &j.peer, &none, BPF_ANY);
	bpf_map_update_elem(&halves, &j.key, &own, BPF_EXIST);
}

/* The kernel resets a connection that is closed with unread data, but does not see what waits in the socket map's queue. It
 * sends FIN, with the window as closed as the queue made it: a sender that waits for the window would wait for a minute. So
 * the window is opened, and what the sender then sends is answered by a reset.
 */
static __always_inline void on_closing(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	struct tcp_sock *own = bpf_skc_to_tcp_sock(sk);
	int most = 1 << 30; /* the kernel takes what net.core.rmem_max allows */
	struct qn_receiver r = {};

	if (!own)
		return;
	qn_read_receiver((__u64)(void *)own, &r);
	if (r.is_closed && r.queued)
		bpf_setsockopt(ctx, SOL_SOCKET, SO_RCVBUF, &most, sizeof(most));
}

/* The other side of on_closing, for a queue larger than any window: give up at the next probe. */
static __always_inline void on_peer_closing(struct bpf_sock_ops *ctx, struct bpf_sock *sk, const struct qn_join *j)
{
	struct tcp_sock *own = bpf_skc_to_tcp_sock(sk);
	struct qn_receiver r = {};
	int timeout_ms = 1;

	if (!own || !j->peer)
		return;
	qn_read_receiver(j->peer_at, &r);
	if (r.cookie == j->peer && r.is_closed && r.copied_seq != own->write_seq)
		bpf_setsockopt(ctx, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout_ms, sizeof(timeout_ms));
}

static __always_inline void on_end(struct qn_join *j)
{
	__u64 cookie = j->cookie;

	bpf_map_delete_elem(&arrived, &cookie);
	if (!j->peer)
		bpf_map_delete_elem(&halves, &j->key);
}

static __always_inline void on_state(struct bpf_sock_ops *ctx, __u32 state)
{
	struct bpf_sock *sk = ctx->sk;
	struct qn_join *j = sk ? bpf_sk_storage_get(&joins, sk, 0, 0) : 0;

	if (!j)
		return;
	if (state == BPF_TCP_FIN_WAIT1 || state == BPF_TCP_LAST_ACK)
		on_closing(ctx, sk);
	else if (state == BPF_TCP_CLOSE_WAIT)
		on_peer_closing(ctx, sk, j);
	else if (state == BPF_TCP_CLOSE)
		on_end(j);
}

SEC("sockops")
int qn_join(struct bpf_sock_ops *ctx)
{
	switch (ctx->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		on_connect(ctx);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		on_client(ctx);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		on_server(ctx);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		on_state(ctx, ctx->args[1]);
		break;
	default:
		break;
	}
	return 1;
}

char LICENSE[] SEC("license")
= "Dual BSD/GPL";
