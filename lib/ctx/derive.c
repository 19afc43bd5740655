/*
 * Making contexts: WithCancel, WithDeadline and WithTimeout, WithoutCancel. What each adds to its parent is here; that
 * they end with it, and how, is in ctx.c.
 */
#include "ctx_priv.h"

#include <errno.h>

static ctx *with_cancel(ctx *parent)
{
	struct ctx_node *n = ctx_node_new(sizeof(*n), CTX_KIND_CANCEL, parent);

	if (!n)
		return NULL;
	if (n->up != &ctx_never)
		ctx_node_join(n);
	return &n->base;
}

ctx *ctx_with_cancel(ctx *parent)
{
	if (!parent)
		ctx_misuse("ctx_with_cancel", "the parent is NULL");
	return with_cancel(parent);
}

static ctx *with_deadline(ctx *parent, int64_t deadline, int64_t now, const ctx_error *cause)
{
	if (parent->has_deadline && parent->deadline < deadline)
		return with_cancel(parent);

	struct ctx_deadline *d =
		(struct ctx_deadline *)(void *)ctx_node_new(sizeof(*d), CTX_KIND_DEADLINE, parent);

	if (!d)
		return NULL;
	d->node.base.deadline = deadline;
	d->node.base.has_deadline = true;
	d->cause = cause ? cause : &CTX_DEADLINE_EXCEEDED;
	atomic_init(&d->timer.armed, false);

	/* A parent that is done already comes first, then a deadline that has passed; neither needs a timer. */
	bool born_done = ctx_node_err(d->node.up) || deadline <= now;
	int error = born_done ? 0 : ctx_timer_arm(d);

	if (error) {
		ctx_node_discard(&d->node);
		errno = error;
		return NULL;
	}
	ctx_node_join(&d->node);
	if (deadline <= now)
		ctx_node_finish(&d->node, &CTX_DEADLINE_EXCEEDED, d->cause);
	return &d->node.base;
}

static int64_t after(int64_t now, int64_t timeout)
{
	int64_t deadline;

	return __builtin_add_overflow(now, timeout, &deadline) ? INT64_MAX : deadline;
}

ctx *ctx_with_deadline(ctx *parent, int64_t deadline_ns)
{
	if (!parent)
		ctx_misuse("ctx_with_deadline", "the parent is NULL");
	return with_deadline(parent, deadline_ns, ctx_now(), NULL);
}

ctx *ctx_with_deadline_cause(ctx *parent, int64_t deadline_ns, const ctx_error *cause)
{
	if (!parent)
		ctx_misuse("ctx_with_deadline_cause", "the parent is NULL");
	return with_deadline(parent, deadline_ns, ctx_now(), cause);
}

ctx *ctx_with_timeout(ctx *parent, int64_t timeout_ns)
{
	if (!parent)
		ctx_misuse("ctx_with_timeout", "the parent is NULL");

	int64_t now = ctx_now();

	return with_deadline(parent, after(now, timeout_ns), now, NULL);
}

ctx *ctx_with_timeout_cause(ctx *parent, int64_t timeout_ns, const ctx_error *cause)
{
	if (!parent)
		ctx_misuse("ctx_with_timeout_cause", "the parent is NULL");

	int64_t now = ctx_now();

	return with_deadline(parent, after(now, timeout_ns), now, cause);
}

ctx *ctx_without_cancel(ctx *parent)
{
	if (!parent)
		ctx_misuse("ctx_without_cancel", "the parent is NULL");

	ctx *c = ctx_derive(sizeof(*c), CTX_KIND_WITHOUT_CANCEL, parent);

	if (!c)
		return NULL;
	c->err = &ctx_never.err;
	c->has_deadline = false;
	return c;
}
