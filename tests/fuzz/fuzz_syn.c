/* SPDX-License-Identifier: Apache-2.0 */
/* Any packet: zt_syn_parse takes it or leaves it; what it takes can be replayed and reset within ZT_SYN_MAX, and the
 * replay parses to the same connection. */
#include <stdlib.h>
#include <string.h>

#include "syn.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint8_t out[ZT_SYN_MAX];
	struct zt_syn syn, again;
	size_t len;

	if (zt_syn_parse(data, size, &syn))
		return 0;
	len = zt_syn_replay(&syn, out);
	if (len != syn.len || zt_syn_parse(out, len, &again))
		abort();
	if (memcmp(&syn.src, &again.src, sizeof(syn.src)) || memcmp(&syn.dst, &again.dst, sizeof(syn.dst)) ||
	    syn.seq != again.seq)
		abort();
	if (zt_syn_reset(&syn, out) > ZT_SYN_MAX || !zt_syn_parse(out, 20, &again))
		abort();
	if (zt_syn_unreachable(&syn, out) > ZT_SYN_MAX || !zt_syn_parse(out, ZT_SYN_MAX, &again))
		abort();
	return 0;
}
