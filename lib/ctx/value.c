/*
 * Values. Each points at the next one up, past everything between that has none.
 */
#include "ctx_priv.h"

ctx *ctx_with_value(ctx *parent, const ctx_key *key, void *value)
{
	if (!parent)
		ctx_misuse("ctx_with_value", "the parent is NULL");
	if (!key)
		ctx_misuse("ctx_with_value", "the key is NULL");

	struct ctx_pair *p = (struct ctx_pair *)(void *)ctx_derive(sizeof(*p), CTX_KIND_VALUE, parent);

	if (!p)
		return NULL;
	p->key = key;
	p->value = value;
	p->next = p->base.values;
	p->base.values = p;
	return &p->base;
}

void *ctx_value(const ctx *c, const ctx_key *key)
{
	if (!c)
		ctx_misuse("ctx_value", "the context is NULL");
	for (const struct ctx_pair *p = c->values; p; p = p->next) {
		if (p->key == key)
			return p->value;
	}
	return NULL;
}

void ctx_pair_destroy(struct ctx_pair *p)
{
	if (p->key->destroy)
		p->key->destroy(p->value);
}
