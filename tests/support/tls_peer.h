/*
 * A TLS client (GnuTLS) that holds the bare socket in its hands: for what a well-behaved one would not do.
 */
#ifndef TESTS_TLS_PEER_H
#define TESTS_TLS_PEER_H

#include <stdbool.h>
#include <stddef.h>

#include <gnutls/gnutls.h>

#include "http_peer.h"

typedef struct tls_peer tls_peer;

typedef struct tls_peer_options {
	const char *priorities; /* of GnuTLS; NULL: "NORMAL" */
	const char *
		ca; /* a PEM file: the server must be 127.0.0.1 by its word; NULL: by certificates_get()->ca */
	const char *alpn[4];           /* what to ask for, NULL at the end; none: no ALPN */
	const char *certificate, *key; /* PEM files of the client's own; NULL: none */
	const gnutls_datum_t *resume;  /* a session to resume; NULL: none */
} tls_peer_options;

/* Takes over a connected, blocking socket; no byte is sent yet. options may be NULL. Aborts on failure. */
tls_peer *tls_peer_new(int fd, const tls_peer_options *options);

/* The handshake: 0, or GnuTLS's error. */
int tls_peer_handshake(tls_peer *p);

/* Both, for a server in this process, or a port of 127.0.0.1. Aborts on failure. */
tls_peer *tls_peer_connect(const http_peer_server *s, const tls_peer_options *options);
tls_peer *tls_peer_connect_to(int port, const tls_peer_options *options);

gnutls_session_t tls_peer_session(const tls_peer *p);
int tls_peer_fd(const tls_peer *p);

/* The serial number of the server's certificate, its last byte. */
int tls_peer_serial(const tls_peer *p);

/* Sends text, or size bytes, all of it. False if the other side is gone. */
bool tls_peer_send(tls_peer *p, const char *text);
bool tls_peer_send_bytes(tls_peer *p, const void *data, size_t size);

/* Some of what comes: how many bytes, 0 after close_notify, or GnuTLS's error. Waits a generous while. */
ssize_t tls_peer_receive(tls_peer *p, void *data, size_t size);

/* As http_peer_read. */
http_peer_response tls_peer_read(tls_peer *p, bool to_head);

/* Reads on to the end, discarding: how the server has ended. */
enum tls_end { TLS_CLOSE_NOTIFY, TLS_TRUNCATED, TLS_RESET, TLS_HANGS, TLS_OTHER };
enum tls_end tls_peer_end(tls_peer *p);

/* Says close_notify, and goes on reading. */
void tls_peer_bye(tls_peer *p);

/* Leave and free: in good order (close_notify, FIN), by FIN alone, by reset. NULL is allowed. */
void tls_peer_close(tls_peer *p);
void tls_peer_cut(tls_peer *p);
void tls_peer_reset(tls_peer *p);

/* Half a FIN: sends no more, without a close_notify, and goes on reading. */
void tls_peer_half_cut(tls_peer *p);

/* All the ways in which a client can leave. */
typedef struct tls_way {
	const char *name;
	void (*leave)(tls_peer *p);
	bool stays; /* the client's socket is open still */
} tls_way;

enum { TLS_WAYS = 5 };
extern const tls_way tls_ways[TLS_WAYS];

/* Frees all but the socket, which is returned and the caller's: the other side is told nothing. */
int tls_peer_forget(tls_peer *p);

#endif
