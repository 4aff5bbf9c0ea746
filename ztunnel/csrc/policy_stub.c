/* Temporary: lets the extension load until policy.c is there. Weak: the real ones win. Not committed. */
#include "zt.h"
#define W __attribute__((weak))
W int zt_policyset_new(const struct zt_policies *r, struct zt_policyset **o, char *e, size_t c) { (void)r; (void)o; (void)e; (void)c; return -ZT_ESTATE; }
W void zt_policyset_free(struct zt_policyset *p) { (void)p; }
W void zt_policyset_evaluate(const struct zt_policyset *p, const struct zt_policy_request *q, struct zt_policy_verdict *o) { (void)p; (void)q; (void)o; }
W size_t zt_policyset_explain(const struct zt_policyset *p, const struct zt_policy_verdict *v, char *b, size_t c) { (void)p; (void)v; (void)b; (void)c; return 0; }
W const char *zt_policyset_rule(const struct zt_policyset *p, uint32_t r) { (void)p; (void)r; return ""; }
