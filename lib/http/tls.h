/*
 * What bridge.c needs of tls.c. A header of its own so that the layer's other files do not see GnuTLS.
 */
#ifndef TETHER_HTTP_TLS_H
#define TETHER_HTTP_TLS_H

#include <gnutls/gnutls.h>

#include "http_priv.h"

/* A certificate with its key, and what goes with it: those of the sessions that began before the next reload. */
typedef struct tls_keys tls_keys;

/*
 * A server's session on a non-blocking socket, ready for gnutls_handshake. It and what it refers to is the
 * caller's, to be given back with tls_session_free. False: out of memory.
 */
bool tls_session_new(http_tls *tls, int fd, gnutls_session_t *session, tls_keys **keys);
void tls_session_free(gnutls_session_t session, tls_keys *keys);

/* What the handshake has agreed on by ALPN; a client that did not ask speaks HTTP/1.1 (RFC 9113, section 3.2). */
enum http_version tls_version(gnutls_session_t session);

/*
 * The certificate with which the client has proved who it is; *made, malloc'd in one piece, or NULL if it has
 * none. False: out of memory.
 */
bool tls_client_certificate(gnutls_session_t session, http_client_certificate **made);

#endif
