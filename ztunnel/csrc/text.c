/* SPDX-License-Identifier: Apache-2.0 */
/* Words for numbers of the public interface. */
#include "base.h"

const char *zt_err_name(int err)
{
	static const char *const names[] = { "ok",           "out of memory",  "system call failed",
					     "bad argument", "no such object", "exists already",
					     "stale tables", "limit reached",  "certificate or key refused",
					     "wrong state" };
	unsigned e = (unsigned)(err < 0 ? -err : err);

	return e < ZT_COUNT(names) ? names[e] : "unknown error";
}

const char *zt_reason_name(int reason)
{
	static const char *const names[] = {
		[ZT_R_OK] = "ok",
		[ZT_R_CLIENT_RESET] = "client reset",
		[ZT_R_SERVER_RESET] = "server reset",
		[ZT_R_REFUSED] = "refused",
		[ZT_R_TIMEOUT] = "timeout",
		[ZT_R_UNREACHABLE] = "unreachable",
		[ZT_R_NO_ENDPOINT] = "no healthy endpoint",
		[ZT_R_NO_ORIGINAL_DST] = "no original destination",
		[ZT_R_NO_CERT] = "no certificate",
		[ZT_R_TLS] = "tls failure",
		[ZT_R_IDENTITY] = "wrong identity",
		[ZT_R_NO_CLIENT_CERT] = "no client certificate",
		[ZT_R_TLS_VERSION] = "tls version",
		[ZT_R_CERT_EXPIRED] = "certificate expired",
		[ZT_R_CERT_NOT_YET] = "certificate not yet valid",
		[ZT_R_CERT_UNTRUSTED] = "certificate untrusted",
		[ZT_R_NOT_TLS] = "not tls",
		[ZT_R_HANDSHAKE_TIMEOUT] = "handshake timeout",
		[ZT_R_PREAMBLE_TIMEOUT] = "preamble timeout",
		[ZT_R_H2] = "http/2 error",
		[ZT_R_H2_FLOOD] = "http/2 flood",
		[ZT_R_BAD_REQUEST] = "bad request",
		[ZT_R_DENIED] = "denied",
		[ZT_R_PEER_STATUS] = "peer status",
		[ZT_R_LIMIT] = "limit",
		[ZT_R_GOAWAY] = "goaway",
		[ZT_R_PING_TIMEOUT] = "ping timeout",
		[ZT_R_TRUNCATED] = "truncated",
		[ZT_R_DRAIN] = "drain deadline",
		[ZT_R_POD_GONE] = "pod gone",
		[ZT_R_SHUTDOWN] = "shutdown",
		[ZT_R_INTERNAL] = "internal",
		[ZT_R_IDLE] = "idle",
		[ZT_R_CERT_REVOKED] = "certificate revoked",
		[ZT_R_CERT_UNCHECKED] = "revocations not known",
	};

	return reason >= 0 && (size_t)reason < ZT_COUNT(names) ? names[reason] : "unknown";
}
