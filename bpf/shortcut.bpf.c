/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* shortcut: bytes of a joined flow (join.bpf.c) go from socket to socket without becoming packets. Opt-in: same-node mode
 * SHORTCUT on both workloads, a kernel that passed the trial (nodeagent/capture/trial.py), and the switch in `settings` on.
 *
 * qn_shortcut
 *   Hook:     sk_msg, on map `joinable`: each send() of a socket in it
 *   Reads:    joins, halves, settings. Writes: joins, halves, moved, counters
 *   Returns:  SK_PASS: to the peer's receive queue if a redirection was set, else the TCP way
 * qn_inflow
 *   Hook:     sk_skb/stream_verdict, on map `joinable`: what arrives at a socket in it as TCP
 *   Reads, writes: arrived, counters
 *   Returns:  SK_PASS, all but always. It is there so that both ways end in one queue: without it a kernel keeps TCP bytes
 *             in a second one that is read later whatever came first, FIONREAD answers 0 for it, and recv() with
 *             MSG_WAITALL can wait on the wrong one
 *
 * Floor:    6.13 (bytes that are moved are charged to the receiver); the trial decides, not the version
 * Cannot decide: plain TCP. With a map full or an unreadable peer nothing is moved.
 *
 * The redirection as such has neither back-pressure nor order with TCP. The guard (may_move) gives both: a message is
 * moved only while the receiver's queue has room and every byte ever sent as TCP is in that queue or read. All other
 * messages are TCP, whose window then stops the sender. What no program can mend (splice, MSG_OOB and others): trial.py, LIMITS.
 *
 * Kernel addresses in `halves` and `joins` are of sockets that may be gone. They are read, never followed to anything that
 * is written; the cookie says whose memory it was; the redirection itself finds the socket by cookie.
 */
#include "join_maps.h"
#include "kernel.h"
#include "maps.h"
#include "moved_maps.h"

/* How much may wait at one receiver: bytes (an application's own SO_RCVBUF halves, if that is less), and messages, each
 * of which takes about 1 KB beside its bytes. A single message may exceed the bytes when it finds the queue empty.
 */
QN_SETTING(__u32, cfg_queue, 2097152);
QN_SETTING(__u32, cfg_messages, 1024);

#define QN_CUT 4095U
#define QN_CUTS_MAX 130 /* together more than a segment can have, 512 KiB */

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
	__u64 read = j->bytes > r->queued ? j->bytes - r->queued : 0;

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

/* write_seq is behind the last byte sent as TCP, copied_seq behind the last one read. */
static __always_inline int is_in_order(struct tcp_sock *own, struct qn_join *j, const struct qn_receiver *r)
{
	__u32 written = own->write_seq;

	if (j->settled == written)
		return 1;
	if (r->copied_seq != written && !qn_is_last_in_queue(j->peer_at, written))
		return 0;
	j->settled = written;
	return 1;
}

/* The guard. */
static __always_inline int may_move(struct sk_msg_md *msg, struct tcp_sock *own, struct qn_join *j)
{
	struct qn_receiver r = {};

	if (!qn_is_shortcut_on() || !meet(j))
		return 0;
	qn_read_receiver(j->peer_at, &r);
	if (r.cookie != j->peer || !is_in_order(own, j, &r))
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

/* The peer has lost a byte: what is sent now would arrive behind the gap. */
static __always_inline int is_torn(const struct qn_join *j)
{
	__u64 peer = j->peer;
	struct qn_arrived *a = bpf_map_lookup_elem(&arrived, &peer);

	return a && a->is_torn;
}

SEC("sk_msg")
int qn_shortcut(struct sk_msg_md *msg)
{
	struct bpf_sock *sk = msg->sk;
	struct tcp_sock *own;
	struct qn_join *j;
	__u64 peer;

	if (!sk)
		return SK_PASS;
	j = bpf_sk_storage_get(&joins, sk, 0, 0);
	own = bpf_skc_to_tcp_sock(sk);
	if (!j || !own)
		return SK_PASS;
	if (may_move(msg, own, j)) {
		peer = j->peer;
		if (bpf_msg_redirect_hash(msg, &joinable, &peer, BPF_F_INGRESS) == SK_PASS) {
			count(j, msg->size);
			return SK_PASS;
		}
	}
	if (is_torn(j))
		return SK_DROP;
	j->settled = own->write_seq - 1; /* not so from here on, however much is sent before the next message */
	if (j->is_moving) {
		j->is_moving = 0;
		qn_count(QN_CNT_SHORTCUT_YIELDED);
	}
	return SK_PASS;
}

/* Cuts off the first bytes of a segment. A call may take 4095 of them and needs memory. */
static __always_inline int cut_head(struct __sk_buff *skb, __u32 size)
{
	int part;

	for (part = 0; part < QN_CUTS_MAX && size; part++) {
		__u32 now = size < QN_CUT ? size : QN_CUT;

		if (bpf_skb_adjust_room(skb, -(__s32)now, 0, 0))
			return 0;
		size -= now;
	}
	return !size;
}

/* TCP takes a segment that begins with bytes it has already (a repetition, segmented anew) and leaves it to the reader to
 * step over them, which the queue of a socket map does not: they would be read twice.
 */
SEC("sk_skb/stream_verdict")
int qn_inflow(struct __sk_buff *skb)
{
	__u64 cookie = bpf_get_socket_cookie(skb);
	struct qn_arrived *a = bpf_map_lookup_elem(&arrived, &cookie);
	struct tcp_skb_cb *cb;
	__u32 end;
	__s32 known;

	if (!a)
		return SK_PASS;
	if (a->is_torn)
		return SK_DROP;
	cb = qn_tcp_cb(skb);
	known = (__s32)(a->next - cb->seq);
	end = cb->end_seq;
	a->next = end;
	if (known <= 0)
		return SK_PASS;
	qn_count(QN_CNT_SHORTCUT_OVERLAP);
	if (cut_head(skb, (__u32)known))
		return SK_PASS;
	a->is_torn = 1;
	qn_count(QN_CNT_SHORTCUT_TORN);
	return SK_DROP;
}

char LICENSE[] SEC("license")
= "Dual BSD/GPL";
