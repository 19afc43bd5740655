/*
 * Describing a context as Go does.
 *
 * Each context is what it puts before its parent's text and what it puts behind it. The way leads from the leaf
 * to the root; what stands before comes in that order, and what stands behind is written from the end backwards,
 * which needs the length of the whole first. No recursion, no memory but the caller's.
 */
#include "ctx_priv.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

/* Where text goes: its place in the whole, of which the first `size` bytes exist. */
struct out {
	char *buf;
	size_t size, at;
};

static void put(struct out *o, const char *text)
{
	size_t length = strlen(text);

	if (o->at < o->size)
		memcpy(o->buf + o->at, text, length < o->size - o->at ? length : o->size - o->at);
	o->at += length;
}

__attribute__((format(printf, 2, 3))) static void put_number(struct out *o, const char *format, ...)
{
	char text[64];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	put(o, text);
}

/* A decimal fraction of `digits` digits without the zeros at its end; nothing if it is zero. */
static void put_fraction(struct out *o, uint64_t fraction, int digits)
{
	if (fraction == 0)
		return;
	while (fraction % 10 == 0) {
		fraction /= 10;
		digits--;
	}
	put_number(o, ".%0*" PRIu64, digits, fraction);
}

/* As Go prints a time.Duration: "1h0m2.5s", "4.99s", "1.5ms", "0s". */
static void put_duration(struct out *o, int64_t ns)
{
	uint64_t u = ns < 0 ? -(uint64_t)ns : (uint64_t)ns;
	static const struct {
		uint64_t unit;
		int digits;
		const char *name;
	} small[] = {{1000000, 6, "ms"}, {1000, 3, "µs"}, {1, 0, "ns"}};

	if (ns < 0)
		put(o, "-");
	for (size_t i = 0; u > 0 && u < 1000000000 && i < 3; i++) {
		if (u >= small[i].unit) {
			put_number(o, "%" PRIu64, u / small[i].unit);
			put_fraction(o, u % small[i].unit, small[i].digits);
			put(o, small[i].name);
			return;
		}
	}

	uint64_t s = u / 1000000000;

	if (s >= 3600)
		put_number(o, "%" PRIu64 "h", s / 3600);
	if (s >= 60)
		put_number(o, "%" PRIu64 "m", s / 60 % 60);
	put_number(o, "%" PRIu64, s % 60);
	put_fraction(o, u % 1000000000, 9);
	put(o, "s");
}

static int64_t saturated_sum(int64_t a, int64_t b)
{
	int64_t sum;

	if (__builtin_add_overflow(a, b, &sum))
		return a < 0 ? INT64_MIN : INT64_MAX;
	return sum;
}

/* The moments ctx_string() speaks of, read once. */
struct clocks {
	int64_t monotonic, wall;
};

static struct clocks read_clocks(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return (struct clocks){ctx_now(), (int64_t)ts.tv_sec * CTX_SECOND + ts.tv_nsec};
}

/* "2024-02-06 14:36:05.5 +0000 UTC [4.99s]" */
static void put_deadline(struct out *o, int64_t deadline, const struct clocks *now)
{
	int64_t remaining = saturated_sum(deadline, -now->monotonic);
	int64_t when = saturated_sum(now->wall, remaining);
	int64_t fraction = (when % CTX_SECOND + CTX_SECOND) % CTX_SECOND;
	time_t seconds = (time_t)(when / CTX_SECOND - (when % CTX_SECOND < 0));
	struct tm tm;

	gmtime_r(&seconds, &tm);
	put_number(o, "%04d-%02d-%02d %02d:%02d:%02d", tm.tm_year + 1900, tm.tm_mon + 1, tm.tm_mday,
	           tm.tm_hour, tm.tm_min, tm.tm_sec);
	put_fraction(o, (uint64_t)fraction, 9);
	put(o, " +0000 UTC [");
	put_duration(o, remaining);
	put(o, "]");
}

static void put_before(struct out *o, const ctx *c)
{
	if (c->kind == CTX_KIND_SIGNALS)
		put(o, "signal.NotifyContext(");
}

static void put_signals(struct out *o, const ctx *c)
{
	const int *signals;
	size_t n = ctx_signals_list(c, &signals);

	put(o, ", [");
	for (size_t i = 0; i < n; i++) {
		put(o, i > 0 ? " " : "");
		put(o, ctx_signal_name(signals[i]));
	}
	put(o, "])");
}

static void put_value(struct out *o, const struct ctx_pair *p)
{
	put(o, ".WithValue(");
	put(o, p->key->name ? p->key->name : "<nil>");
	if (p->value)
		put_number(o, ", %p)", p->value);
	else
		put(o, ", <nil>)");
}

static void put_behind(struct out *o, const ctx *c, const struct clocks *now)
{
	switch ((enum ctx_kind)c->kind) {
	case CTX_KIND_BACKGROUND:
		put(o, "context.Background");
		break;
	case CTX_KIND_TODO:
		put(o, "context.TODO");
		break;
	case CTX_KIND_VALUE:
		put_value(o, c->values);
		break;
	case CTX_KIND_WITHOUT_CANCEL:
		put(o, ".WithoutCancel");
		break;
	case CTX_KIND_CANCEL:
		put(o, ".WithCancel");
		break;
	case CTX_KIND_DEADLINE:
		put(o, ".WithDeadline(");
		put_deadline(o, c->deadline, now);
		put(o, ")");
		break;
	case CTX_KIND_SIGNALS:
		put_signals(o, c);
		break;
	}
}

int ctx_string(const ctx *c, char *buf, size_t size)
{
	if (!c)
		ctx_misuse("ctx_string", "the context is NULL");
	if (!buf && size > 0)
		ctx_misuse("ctx_string", "the buffer is NULL and its size is not 0");

	struct clocks now = read_clocks();
	struct out o = {buf, 0, 0};

	for (const ctx *at = c; at; at = at->parent) {
		put_before(&o, at);
		put_behind(&o, at, &now);
	}

	size_t length = o.at;
	size_t end = length;
	size_t before = 0;

	if (length > INT_MAX) {
		errno = EOVERFLOW;
		return -1;
	}
	for (const ctx *at = c; at && size > 0; at = at->parent) {
		o = (struct out){buf, size - 1, before};
		put_before(&o, at);
		before = o.at;

		o = (struct out){NULL, 0, 0};
		put_behind(&o, at, &now);
		end -= o.at;
		o = (struct out){buf, size - 1, end};
		put_behind(&o, at, &now);
	}
	if (size > 0)
		buf[length < size ? length : size - 1] = '\0';
	return (int)length;
}
