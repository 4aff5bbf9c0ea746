/* SPDX-License-Identifier: Apache-2.0 */
/* Certificates that count no more. The public part (apply, close, find) stands in zt.h.
 *
 * A set is immutable and counted: the core and each worker hold references. Asking costs a comparison of names per
 * list and a hash lookup in those of the certificate's issuer, however long the lists are.
 */
#ifndef ZT_REVOCATION_H
#define ZT_REVOCATION_H

#include <openssl/x509.h>

#include "base.h"

struct zt_worker;
struct zt_revocations;

struct zt_revocations *zt_revocations_get(struct zt_revocations *r); /* NULL is no set: nobody is revoked */
void zt_revocations_put(struct zt_revocations *r);
bool zt_revocations_closed(const struct zt_revocations *r); /* nobody is accepted */
/* Is a certificate of this chain revoked, or may nobody be accepted? Then `text` says which and why. */
bool zt_revocations_judge(const struct zt_revocations *r, const STACK_OF(X509) * chain, char *text, size_t cap);
/* Takes the reference; cuts the worker's tunnels that it concerns. */
void zt_worker_revocations(struct zt_worker *w, struct zt_revocations *r);

#endif
