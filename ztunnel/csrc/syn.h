/* SPDX-License-Identifier: Apache-2.0 */
/* Honest connect: the client's handshake is answered only when its destination has answered ours.
 *
 * A captured connect() goes to the pod's own loopback port 15001. If the kernel answered its SYN at once, the
 * application would see "connected" where without the mesh it sees "refused" or "timed out". So:
 *   - a classic filter on the 15001 listener drops every first SYN that does not carry a mark;
 *   - a packet socket on the pod's `lo` shows us the same SYN; we dial the destination;
 *   - it answered: the SYN is sent again, marked, and the kernel completes an ordinary handshake;
 *   - it refused: a RST answers the SYN, connect() fails with ECONNREFUSED; it cannot be reached: an ICMP message
 *     does, connect() fails with EHOSTUNREACH;
 *   - it is silent: nobody answers; the client's own SYN retries decide when it has timed out.
 * A SYN we miss (queue full, ztunnel restarting) is repeated by the client's kernel, so nothing hangs on us.
 * Measured on 6.18: the handshake is complete, and the connection acceptable, when the replay's send() returns.
 *
 * This module is bytes and sockets only: (pointer, length) in, packets out; no engine state.
 */
#ifndef ZT_SYN_H
#define ZT_SYN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "zt.h"

/* IPv4 header (60) or IPv6 header (40) and TCP header (60) with options. */
#define ZT_SYN_MAX 120

struct zt_syn {
	struct zt_addr src;
	struct zt_addr dst;
	uint32_t seq;
	uint16_t tcp_off; /* where the TCP header begins in packet */
	uint16_t len;     /* both headers, without data a Fast Open client may have sent */
	uint8_t packet[ZT_SYN_MAX];
};

/* Read a packet as the watch socket gives it (network header first). Returns 0, or -ZT_EINVAL when it is not a
 * first SYN in an unfragmented IPv4 or extension-free IPv6 packet; *out is untouched then. */
int zt_syn_parse(const uint8_t *pkt, size_t len, struct zt_syn *out);

/* Write the SYN again, the RST that refuses it, or the ICMP message "host unreachable" (RFC 792; RFC 4443 "address
 * unreachable"), checksums filled in. `out` holds ZT_SYN_MAX bytes. Return the packet's length. The first goes to
 * syn->dst, the others to syn->src. */
size_t zt_syn_replay(const struct zt_syn *syn, uint8_t *out);
size_t zt_syn_reset(const struct zt_syn *syn, uint8_t *out);
size_t zt_syn_unreachable(const struct zt_syn *syn, uint8_t *out);

/* Does listener `fd` ignore unmarked SYNs? The agent sets that filter (nodeagent/capture/syn_filters.py): a process
 * without capabilities may not. Anyone may take it off: zt_syn_unguard() returns 0 or -ZT_ESYS. */
bool zt_syn_is_guarded(int fd);
int zt_syn_unguard(int fd);

/* Send `len` bytes of `pkt` from raw socket `fd` (IPPROTO_RAW) of the family of `to`. Returns 0 or -ZT_ESYS. */
int zt_syn_send(int fd, const struct zt_addr *to, const uint8_t *pkt, size_t len);

#endif
