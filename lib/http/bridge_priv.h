/*
 * What the files of the bridge share; bridge.c says what it is:
 *
 *	bridge.c       its beginning and end, and what it waits for
 *	bridge_pump.c  what it carries
 */
#ifndef TETHER_HTTP_BRIDGE_PRIV_H
#define TETHER_HTTP_BRIDGE_PRIV_H

#include "http_priv.h"
#include "tls.h"

struct bridge {
	uint32_t magic;
	conn *outer, *inner; /* inner: retained; NULL until the handshake is over */
	tls_keys *keys;
	gnutls_session_t session;
	int pair; /* our end; -1 until the handshake is over */
	uv_poll_t watch;
	bool watched; /* watch is initialized */
	int watching;
	const char *cipher; /* during pump_in: what was read for GnuTLS and not taken by it yet */
	size_t cipher_size;
	char *rest; /* malloc'd: what inner had no room for */
	size_t rest_size, rest_given;
	bridge *next_busy; /* on the worker's list of those to be looked at */
	bool busy;
	bool piped;        /* there may be bytes in the pair that inner has not read */
	bool shaking;      /* the handshake has begun, and is not over */
	bool blocked;      /* see bridge.c */
	bool fin_seen;     /* of the client */
	bool client_ended; /* nothing more is read from it */
	bool server_ended; /* nothing more is read from inner */
	bool inner_closed; /* nor will inner read */
};

static inline bool bridge_must_wait(ssize_t result)
{
	return result == GNUTLS_E_AGAIN || result == GNUTLS_E_INTERRUPTED;
}

/* ---- bridge.c ---------------------------------------------------------------------------------------- */

/* Outer is closed, and the bridge freed. */
void bridge_close(bridge *b);

/* The same where what came is no TLS, or not any more: says so as well as it can. */
void bridge_fail(bridge *b, int error);

/* Waits for what it can go on with. */
void bridge_watch(bridge *b);

bool bridge_half_close_is_waiting(const bridge *b);

/* ---- bridge_pump.c ----------------------------------------------------------------------------------- */

/* Has GnuTLS read through the bridge. */
void bridge_set_transport(bridge *b);

/* Carry what there is, in one direction each. False: the session is broken, the bridge closed. */
bool bridge_pump_in(bridge *b);
bool bridge_pump_out(bridge *b);

/* The client's socket has room again. False: the bridge is closed. */
bool bridge_go_on_sending(bridge *b);

/* Inner has room again. */
void bridge_give_rest(bridge *b);
void bridge_drop_rest(bridge *b);

/* Nothing that it sent and that has not been read yet matters any more. */
void bridge_client_left(bridge *b);

#endif
