/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* shortcut: bytes of a direct flow go from socket to socket without becoming packets. Opt-in: same-node mode SHORTCUT on
 * both workloads, a kernel that passed the trial (nodeagent/capture/trial.py), and the switch in `settings` on.
 *
 * qn_join
 *   Hook:     sockops, beside qn_flows
 *   Attached: the v2 root; BPF_F_ALLOW_MULTI
 *   Reads:    sockets, settings. Writes: joinable, halves, joins, moved, counters
 *   Returns:  always 1; never touches `reply`
 * qn_shortcut
 *   Hook:     sk_msg, on map `joinable`: each send() of a socket in it
 *   Reads:    joins, halves, settings. Writes: joins, halves, moved, counters
 *   Returns:  SK_PASS: to the peer's receive queue if a redirection was set, else the TCP way
 * qn_inflow
 *   Hook:     sk_skb/stream_verdict, on map `joinable`: what arrives at a socket in it as TCP
 *   Returns:  SK_PASS, always. It is there so that both ways end in one queue: without it a kernel keeps TCP bytes in a
 *             second one that is read later whatever came first, FIONREAD answers 0 for it, and recv() with MSG_WAITALL
 *             can wait on the wrong one
 *
 * Floor:    6.13 (bytes that are moved are charged to the receiver); the trial decides, not the version
 * Cannot decide: plain TCP. With a map full, MPTCP, an unknown or unreadable peer the flow is never moved, or not joined.
 *
 * The redirection as such has neither back-pressure nor order with TCP. The guard (may_move) gives both: a message is
 * moved only while the receiver's queue has room and every byte ever sent as TCP has been read. All other messages are
 * TCP, whose window then stops the sender. A receiver leaves `joinable` by its own close() or next connect() and never
 * before: taking it out would lose what is queued. What no program can mend (splice, MSG_OOB and others): trial.py, LIMITS.
 *
 * Kernel addresses in `halves` and `joins` are of sockets that may be gone. They are read, never followed to anything that
 * is written; the cookie says whose memory it was; the redirection itself finds the socket by cookie.
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

/* How much may wait at one receiver: bytes (an application's own SO_RCVBUF halves, if that is less), and messages, each
 * of which takes about 1 KB beside its bytes. A single message may exceed the bytes when it finds the queue empty.
 */
QN_SETTING(__u32, cfg_queue, 2097152);
QN_SETTING(__u32, cfg_messages, 1024);

static __always_inline int is_switched_on(void)
{
	__u32 zero = 0;
	struct qn_settings *s = bpf_map_lookup_elem(&settings, &zero);

	return s && (s->paths & QN_PATHS_SHORTCUT);
}

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
static __always_inline int enter(struct bpf_sock_ops *ctx, struct bpf_sock *sk, const struct qn_join *j)
{
	__u64 cookie = j->cookie;

	bpf_sock_ops_cb_flags_set(ctx, (int)ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
	if (!bpf_sk_storage_get(&joins, sk, (void *)j, BPF_SK_STORAGE_GET_F_CREATE) ||
	    bpf_sock_hash_update(ctx, &joinable, &cookie, BPF_ANY)) {
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
	if (!s || s->path != QN_PATH_DIRECT || s->same_node != QN_SAME_NODE_SHORTCUT || !s->dst || !is_switched_on())
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
	else if (state == BPF_TCP_CLOSE && !j->peer)
		bpf_map_delete_elem(&halves, &j->key);
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

/* The client does not know the server before its first message. */
static __always_inline int meet(struct qn_join *j)
{
	struct qn_half *server;

	if (j->peer)
		return 1;
	server = bpf_map_lookup_elem(&halves, &j->key);
	if (!server || !server->is_server)
		return 0;
	j->peer_at = server->at;
	j->peer = server->cookie;
	bpf_map_delete_elem(&halves, &j->key);
	return 1;
}

/* Messages still queued are not countable, but bytes are, and what was moved is read in order: all messages up to a mark
 * are gone once as many bytes are. Of two marks the older one is known to be read.
 */
static __always_inline int has_room(struct qn_join *j, const struct qn_receiver *r, __u32 size)
{
	__u64 read = j->bytes - r->queued;

	if (r->queued && r->queued + size > cfg_queue)
		return 0;
	if (r->is_fixed && r->queued + size > r->buffer / 2)
		return 0;
	if (!r->queued || read >= j->mark_bytes) {
		j->mark_messages[0] = j->mark_messages[1];
		j->mark_messages[1] = j->messages;
		j->mark_bytes = j->bytes;
	}
	if (!r->queued)
		j->mark_messages[0] = j->messages;
	return j->messages - j->mark_messages[0] < cfg_messages;
}

/* The guard. write_seq is behind the last byte sent as TCP, copied_seq behind the last one read: nothing is on its way. */
static __always_inline int may_move(struct sk_msg_md *msg, struct bpf_sock *sk, struct qn_join *j)
{
	struct tcp_sock *own = bpf_skc_to_tcp_sock(sk);
	struct qn_receiver r = {};

	if (!own || !is_switched_on() || !meet(j))
		return 0;
	qn_read_receiver(j->peer_at, &r);
	if (r.cookie != j->peer || r.copied_seq != own->write_seq)
		return 0;
	return has_room(j, &r, msg->size) && !qn_is_tcp_short_of_memory(j->peer_at) &&
	       !qn_is_cgroup_short_of_memory(j->peer_at, msg->size);
}

static __always_inline void count(struct qn_join *j, __u32 size)
{
	__u64 client = j->peer, *total;

	j->bytes += size;
	j->messages++;
	j->is_moving = 1;
	if (!j->is_server)
		return;
	total = bpf_map_lookup_elem(&moved, &client);
	if (total)
		*total += size; /* the only writer: the server's socket is locked */
}

SEC("sk_msg")
int qn_shortcut(struct sk_msg_md *msg)
{
	struct bpf_sock *sk = msg->sk;
	struct qn_join *j;
	__u64 peer;

	if (!sk)
		return SK_PASS;
	j = bpf_sk_storage_get(&joins, sk, 0, 0);
	if (!j)
		return SK_PASS;
	if (may_move(msg, sk, j)) {
		peer = j->peer;
		if (bpf_msg_redirect_hash(msg, &joinable, &peer, BPF_F_INGRESS) == SK_PASS) {
			count(j, msg->size);
			return SK_PASS;
		}
	}
	if (j->is_moving) {
		j->is_moving = 0;
		qn_count(QN_CNT_SHORTCUT_YIELDED);
	}
	return SK_PASS;
}

SEC("sk_skb/stream_verdict")
int qn_inflow(struct __sk_buff *skb)
{
	return SK_PASS;
}

char LICENSE[] SEC("license")
= "Dual BSD/GPL";
