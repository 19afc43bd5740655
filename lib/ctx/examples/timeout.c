/*
 * A timeout: work that stops when its time is up.
 *
 *	ctx_timeout [MILLISECONDS]	counts primes for that long (100)
 */
#include <stdio.h>
#include <stdlib.h>

#include <tether/ctx.h>

static bool is_prime(unsigned n)
{
	for (unsigned i = 2; i * i <= n; i++) {
		if (n % i == 0)
			return false;
	}
	return n > 1;
}

/* Asks now and then whether it is still wanted: that is all cancellable work has to do. */
static unsigned count_primes(ctx *c, unsigned limit)
{
	unsigned found = 0;

	for (unsigned n = 0; n < limit && !ctx_err(c); n++)
		found += is_prime(n);
	return found;
}

int main(int argc, char **argv)
{
	int64_t timeout = (argc > 1 ? strtol(argv[1], NULL, 10) : 100) * CTX_MILLISECOND;
	ctx_auto *c = ctx_with_timeout(ctx_background(), timeout);

	if (!c) {
		perror("ctx_with_timeout");
		return 1;
	}

	unsigned found = count_primes(c, 4000000000U);

	printf("%u primes, then: %s\n", found, ctx_err(c) ? ctx_err(c)->message : "done");
	return 0;
}
