/* SPDX-License-Identifier: Apache-2.0 */
#include "syn.h"

#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>

#define IP4_MIN 20
#define IP6_LEN 40
#define TCP_MIN 20
#define TCP_FLAGS 13
#define TCP_SUM 16
#define FLAG_SYN 0x02
#define FLAG_RST 0x04
#define FLAG_ACK 0x10
#define IPPROTO_OFF4 9
#define ICMP_LEN 8
#define ICMP_QUOTE 8 /* bytes of the segment an ICMP error brings back (RFC 792) */
#define NEXT_OFF6 6

static uint16_t get16(const uint8_t *p)
{
	return (uint16_t)(p[0] << 8 | p[1]);
}

static uint32_t get32(const uint8_t *p)
{
	return (uint32_t)get16(p) << 16 | get16(p + 2);
}

static void put16(uint8_t *p, uint32_t v)
{
	p[0] = (uint8_t)(v >> 8);
	p[1] = (uint8_t)v;
}

static void put32(uint8_t *p, uint32_t v)
{
	put16(p, v >> 16);
	put16(p + 2, v & 0xffff);
}

static uint32_t sum_add(uint32_t sum, const uint8_t *p, size_t len)
{
	for (; len > 1; p += 2, len -= 2)
		sum += get16(p);
	if (len)
		sum += (uint32_t)p[0] << 8;
	return sum;
}

static uint16_t sum_fold(uint32_t sum)
{
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)~sum;
}

static size_t ip_len(const struct zt_addr *a)
{
	return a->family == 4 ? 4 : 16;
}

/* RFC 9293 3.1: over the pseudo-header, then the segment. */
static void tcp_checksum(const struct zt_addr *src, const struct zt_addr *dst, uint8_t *seg, size_t len)
{
	uint32_t sum = IPPROTO_TCP + (uint32_t)len;

	put16(seg + TCP_SUM, 0);
	sum = sum_add(sum, src->ip, ip_len(src));
	sum = sum_add(sum, dst->ip, ip_len(dst));
	put16(seg + TCP_SUM, sum_fold(sum_add(sum, seg, len)));
}

static int parse_ip4(const uint8_t *pkt, size_t len, struct zt_syn *s)
{
	size_t ihl;

	if (len < IP4_MIN || pkt[0] >> 4 != 4)
		return -ZT_EINVAL;
	ihl = (size_t)(pkt[0] & 15) * 4;
	if (ihl < IP4_MIN || len < ihl || pkt[IPPROTO_OFF4] != IPPROTO_TCP)
		return -ZT_EINVAL;
	if (get16(pkt + 6) & 0x3fff) /* more fragments, or not the first */
		return -ZT_EINVAL;
	s->src.family = s->dst.family = 4;
	memcpy(s->src.ip, pkt + 12, 4);
	memcpy(s->dst.ip, pkt + 16, 4);
	s->tcp_off = (uint16_t)ihl;
	return 0;
}

static int parse_ip6(const uint8_t *pkt, size_t len, struct zt_syn *s)
{
	if (len < IP6_LEN || pkt[0] >> 4 != 6 || pkt[NEXT_OFF6] != IPPROTO_TCP)
		return -ZT_EINVAL;
	s->src.family = s->dst.family = 6;
	memcpy(s->src.ip, pkt + 8, 16);
	memcpy(s->dst.ip, pkt + 24, 16);
	s->tcp_off = IP6_LEN;
	return 0;
}

int zt_syn_parse(const uint8_t *pkt, size_t len, struct zt_syn *out)
{
	struct zt_syn s = { .seq = 0 };
	const uint8_t *tcp;
	size_t tcp_len;
	int err;

	if (!len)
		return -ZT_EINVAL;
	err = pkt[0] >> 4 == 4 ? parse_ip4(pkt, len, &s) : parse_ip6(pkt, len, &s);
	if (err)
		return err;
	if (len < (size_t)s.tcp_off + TCP_MIN)
		return -ZT_EINVAL;
	tcp = pkt + s.tcp_off;
	tcp_len = (size_t)(tcp[12] >> 4) * 4;
	if (tcp_len < TCP_MIN || len < s.tcp_off + tcp_len)
		return -ZT_EINVAL;
	if ((tcp[TCP_FLAGS] & (FLAG_SYN | FLAG_ACK | FLAG_RST)) != FLAG_SYN)
		return -ZT_EINVAL;
	s.src.port = get16(tcp);
	s.dst.port = get16(tcp + 2);
	s.seq = get32(tcp + 4);
	s.len = (uint16_t)(s.tcp_off + tcp_len); /* at most 60 + 60 = ZT_SYN_MAX */
	memcpy(s.packet, pkt, s.len);
	*out = s;
	return 0;
}

/* IPv4: total length, identification and checksum are the kernel's (raw(7)); fragment bits stay. */
static void ip_length(uint8_t *pkt, const struct zt_syn *syn, size_t len)
{
	if (syn->src.family == 6)
		put16(pkt + 4, (uint32_t)(len - IP6_LEN));
	else
		put16(pkt + 2, (uint32_t)len);
}

size_t zt_syn_replay(const struct zt_syn *syn, uint8_t *out)
{
	memcpy(out, syn->packet, syn->len);
	ip_length(out, syn, syn->len);
	tcp_checksum(&syn->src, &syn->dst, out + syn->tcp_off, (size_t)(syn->len - syn->tcp_off));
	return syn->len;
}

/* An answer to the SYN: a fresh header without options. Returns where the payload begins. */
static size_t answer_header(const struct zt_syn *syn, uint8_t *out, uint8_t protocol, size_t payload)
{
	size_t ip = syn->src.family == 6 ? IP6_LEN : IP4_MIN;

	memset(out, 0, ip);
	if (syn->src.family == 6) {
		out[0] = 6 << 4;
		out[NEXT_OFF6] = protocol;
		out[7] = 64;
		memcpy(out + 8, syn->dst.ip, 16);
		memcpy(out + 24, syn->src.ip, 16);
	} else {
		out[0] = 4 << 4 | IP4_MIN / 4;
		out[8] = 64;
		out[IPPROTO_OFF4] = protocol;
		memcpy(out + 12, syn->dst.ip, 4);
		memcpy(out + 16, syn->src.ip, 4);
	}
	ip_length(out, syn, ip + payload);
	return ip;
}

size_t zt_syn_reset(const struct zt_syn *syn, uint8_t *out)
{
	size_t ip = answer_header(syn, out, IPPROTO_TCP, TCP_MIN);
	uint8_t *tcp = out + ip;

	memset(tcp, 0, TCP_MIN);
	put16(tcp, syn->dst.port);
	put16(tcp + 2, syn->src.port);
	put32(tcp + 8, syn->seq + 1); /* RFC 9293 3.10.7.1: <SEQ=0><ACK=SEG.SEQ+1><CTL=RST,ACK> */
	tcp[12] = TCP_MIN / 4 << 4;
	tcp[TCP_FLAGS] = FLAG_RST | FLAG_ACK;
	tcp_checksum(&syn->dst, &syn->src, tcp, TCP_MIN);
	return ip + TCP_MIN;
}

size_t zt_syn_unreachable(const struct zt_syn *syn, uint8_t *out)
{
	bool v6 = syn->src.family == 6;
	size_t quote = (size_t)syn->tcp_off + ICMP_QUOTE;
	size_t ip = answer_header(syn, out, v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP, ICMP_LEN + quote);
	uint8_t *icmp = out + ip;
	uint32_t sum = 0;

	memset(icmp, 0, ICMP_LEN);
	icmp[0] = v6 ? 1 : 3; /* destination unreachable */
	icmp[1] = v6 ? 3 : 1; /* address; host */
	memcpy(icmp + ICMP_LEN, syn->packet, quote);
	if (v6) {
		sum = IPPROTO_ICMPV6 + (uint32_t)(ICMP_LEN + quote);
		sum = sum_add(sum, syn->src.ip, 16);
		sum = sum_add(sum, syn->dst.ip, 16);
	}
	put16(icmp + 2, sum_fold(sum_add(sum, icmp, ICMP_LEN + quote)));
	return ip + ICMP_LEN + quote;
}

bool zt_syn_is_guarded(int fd)
{
	socklen_t steps = 0; /* asked for none: the kernel answers how many there are (socket(7), SO_GET_FILTER) */

	return !getsockopt(fd, SOL_SOCKET, SO_GET_FILTER, NULL, &steps) && steps > 0;
}

int zt_syn_unguard(int fd)
{
	int none = 0;

	if (setsockopt(fd, SOL_SOCKET, SO_DETACH_FILTER, &none, sizeof(none)) && errno != ENOENT)
		return -ZT_ESYS;
	return 0;
}

int zt_syn_send(int fd, const struct zt_addr *to, const uint8_t *pkt, size_t len)
{
	struct sockaddr_in to4 = { .sin_family = AF_INET };
	struct sockaddr_in6 to6 = { .sin6_family = AF_INET6 };
	const struct sockaddr *sa = to->family == 4 ? (struct sockaddr *)&to4 : (struct sockaddr *)&to6;
	socklen_t sa_len = to->family == 4 ? sizeof(to4) : sizeof(to6);

	memcpy(&to4.sin_addr, to->ip, 4);
	memcpy(&to6.sin6_addr, to->ip, 16);
	return sendto(fd, pkt, len, MSG_NOSIGNAL | MSG_DONTWAIT, sa, sa_len) == (ssize_t)len ? 0 : -ZT_ESYS;
}
