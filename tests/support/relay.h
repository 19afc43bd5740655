/*
 * A network between a test and a server that misbehaves as told: a TCP relay, whose near side may lie in a network
 * of its own that can be cut off (Linux, as root).
 */
#ifndef TESTS_RELAY_H
#define TESTS_RELAY_H

#include <stdbool.h>

typedef struct relay relay;

typedef enum relay_fault {
	RELAY_HEALTHY,
	RELAY_HOLD_NEW, /* takes new connections, and nothing goes either way on them */
	RELAY_HOLD,     /* nothing goes either way; what is sent is acknowledged all the same */
	RELAY_RESET,    /* all connections are reset, new ones too */
} relay_fault;

/*
 * Relays 127.0.0.1 or, with `cut_off`, an address in a network namespace of its own, to 127.0.0.1:port. Each byte
 * takes latency_ms each way. NULL, with the reason on stderr, if such a namespace cannot be had; aborts on other
 * failure.
 */
relay *relay_start(int port, int latency_ms, bool cut_off);

/* Where to connect to. Lives as long as it does. */
const char *relay_host(const relay *r);
int relay_port(const relay *r);

/* From now on it behaves so. */
void relay_set(relay *r, relay_fault fault);

/* Cuts the network: nothing arrives, nothing is refused, nothing is acknowledged; or joins it again. */
void relay_cut(relay *r, bool cut);

void relay_stop(relay *r);

#endif
