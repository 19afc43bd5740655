/*
 * HTTPS: what a client does at its end of TLS, in any order.
 *
 * The input's first byte says which TLS and which protocol; then come steps:
 *
 *	GET, POST UNITS, UPLOAD UNITS     requests, with bodies of so many times 16 bytes
 *	SEND SIZE bytes…                  bytes within TLS
 *	RAW SIZE bytes…                   bytes past it
 *	SPLIT SIZE                        from here on no more than SIZE go out at once
 *	FLIP AT                           breaks a byte of what goes out next
 *	READ UNITS                        of the answers that have come, so many times 1 KiB at most
 *	PAUSE                             waits until the server has taken all
 *	UPDATE                            new keys
 *	BYE, FIN, RESET
 *
 * At the end the client says close_notify and reads all there is, unless it has gone before. The server's times are
 * without end: it has to see by itself that nobody is there any more. Of the requests of a client that did nothing but
 * ask, wait, read and say goodbye its handlers have seen every byte, and have all been answered.
 */
#include <errno.h>
#include <gnutls/gnutls.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <unistd.h>

#include "certificates.h"
#include "exchange.h"
#include "fuzz.h"
#include "http_priv.h"

enum { GET, POST, UPLOAD, SEND, RAW, SPLIT, FLIP, READ, PAUSE, UPDATE, BYE, FIN, RESET, KINDS };
enum { OLD = 0x1, SPEAKS_H2 = 0x2, NO_HANDSHAKE = 0x4 };
enum { STREAM_SIZE = 400 * 1000, PIECES_MOST = 64, BODY_UNIT = 16 };

/* Less than the sockets hold: a client that only says more while the server only answers would wait for ever. */
enum { SAID_MOST = 100 * 1000 };

/* ---- What handlers see ------------------------------------------------------------------------------- */

static atomic_size_t requests, bytes; /* answered to their end, and what their bodies had */

static void take(http_request *request, http_response *response)
{
	size_t size;
	http_body(request, &size);
	requests++;
	bytes += size;
	HOLDS(http_request_is_encrypted(request));
	http_response_text(response, 200, "taken\n");
}

static void take_as_it_comes(http_request *request, http_response *response)
{
	char piece[1000];
	ssize_t got;
	size_t size = 0;
	while ((got = http_body_read(request, piece, sizeof(piece))) > 0)
		size += (size_t)got;
	if (got < 0)
		return;
	requests++;
	bytes += size;
	http_response_text(response, 200, "taken\n");
}

/* More than all buffers on its way hold. */
static void stream(http_request *request, http_response *response)
{
	static const char piece[20000];
	(void)request;
	for (int i = 0; i < STREAM_SIZE / (int)sizeof(piece); i++)
		if (http_write(response, piece, sizeof(piece)) < 0)
			return;
	requests++;
}

static http_server *serve(void)
{
	static const http_route_options streams = {.streams_body = true};
	const certificates *made = certificates_get();
	const int64_t never = 3600 * CTX_SECOND;
	http_tls *tls = http_tls_new(
		&(http_tls_options){.certificate = made->server, .key = made->server_key}, NULL, 0);
	HOLDS(tls);
	http_server *server = exchange_server(&(http_server_options){.header_timeout = never,
	                                                             .body_timeout = never,
	                                                             .write_timeout = never,
	                                                             .idle_timeout = never},
	                                      tls);
	http_tls_free(tls);
	HOLDS(http_handle(server, "POST /", take, NULL) == 0);
	HOLDS(http_handle(server, "GET /", stream, NULL) == 0);
	HOLDS(http_handle_with(server, "POST /read", &streams, take_as_it_comes, NULL) == 0);
	exchange_serve(server);
	return server;
}

/* ---- The client -------------------------------------------------------------------------------------- */

typedef struct client {
	int fd; /* -1: gone */
	gnutls_session_t session;
	bool talks;    /* the handshake is over, and nothing has gone wrong */
	bool said_bye; /* or FIN */
	bool behaves;  /* so far */
	bool peeks;    /* does not wait for what has not come */
	bool timed_out;
	size_t said, requests, bytes;
	size_t split;  /* 0: not */
	size_t pieces; /* that it was split into, so far */
	int flip;      /* -1: nothing */
} client;

/* GnuTLS's way out. */
static ssize_t push(gnutls_transport_ptr_t arg, const void *data, size_t size)
{
	client *c = arg;
	uint8_t copy[32 * 1024];
	if (size > sizeof(copy))
		size = sizeof(copy);
	if (c->split && size > c->split && c->pieces < PIECES_MOST) {
		exchange_wait_until_taken(c->fd);
		size = c->split;
		c->pieces++;
	}
	memcpy(copy, data, size);
	if (c->flip >= 0)
		copy[(size_t)c->flip % size] ^= 0x10;
	c->flip = -1;
	return send(c->fd, copy, size, MSG_NOSIGNAL);
}

static ssize_t pull(gnutls_transport_ptr_t arg, void *data, size_t size)
{
	client *c = arg;
	ssize_t got = recv(c->fd, data, size, c->peeks ? MSG_DONTWAIT : 0);
	c->timed_out = got < 0 && errno == EAGAIN && !c->peeks;
	return got;
}

static void went_wrong(client *c)
{
	c->talks = c->behaves = false;
}

static gnutls_certificate_credentials_t credentials(void)
{
	static gnutls_certificate_credentials_t anybody;
	if (!anybody)
		HOLDS(gnutls_certificate_allocate_credentials(&anybody) == 0);
	return anybody;
}

static void arrive(client *c, uint8_t kind)
{
	static uint8_t names[] = "h2http/1.1";
	const gnutls_datum_t two = {names, 2}, one = {names + 2, 8};
	*c = (client){.fd = exchange_connect(), .flip = -1, .behaves = true};
	HOLDS(gnutls_init(&c->session, GNUTLS_CLIENT | GNUTLS_NO_SIGNAL) == 0);
	HOLDS(gnutls_priority_set_direct(c->session, kind & OLD ? "NORMAL:-VERS-ALL:+VERS-TLS1.2" : "NORMAL",
	                                 NULL) == 0);
	gnutls_credentials_set(c->session, GNUTLS_CRD_CERTIFICATE, credentials());
	gnutls_alpn_set_protocols(c->session, kind & SPEAKS_H2 ? &two : &one, 1, 0);
	gnutls_transport_set_ptr(c->session, c);
	gnutls_transport_set_push_function(c->session, push);
	gnutls_transport_set_pull_function(c->session, pull);
	c->talks = !(kind & NO_HANDSHAKE) && gnutls_handshake(c->session) == 0;
	c->behaves = c->talks && !(kind & SPEAKS_H2);
	HOLDS(!c->timed_out);
}

static void leave(client *c)
{
	if (c->fd >= 0)
		close(c->fd);
	c->fd = -1;
}

/* false: there is no more, or it went wrong. */
static bool read_some(client *c, size_t most)
{
	static char answer[16 * 1024];
	ssize_t got;
	do {
		got = c->talks ? gnutls_record_recv(c->session, answer, most) : pull(c, answer, most);
		HOLDS(!c->timed_out);
	} while (c->talks && got == GNUTLS_E_AGAIN && !c->peeks); /* TLS 1.3: what came was not for us */
	if (got < 0 && !(c->peeks && (c->talks ? got == GNUTLS_E_AGAIN : errno == EAGAIN)))
		went_wrong(c);
	return got > 0;
}

/* What is left, in TLS or no more. */
static void read_all(client *c)
{
	for (bool talked = true; talked;) {
		talked = c->talks;
		while (read_some(c, 16 * 1024))
			;
		talked = talked && !c->talks;
	}
}

/* As much as has come. */
static void read_units(client *c, size_t units)
{
	c->peeks = true;
	while (units-- > 0 && read_some(c, 1024))
		;
	c->peeks = false;
}

static void say(client *c, const uint8_t *data, size_t size)
{
	if (c->said + size > SAID_MOST)
		return;
	c->said += size;
	while (size > 0 && c->talks && !c->said_bye) {
		ssize_t sent = gnutls_record_send(c->session, data, size);
		if (sent < 0) {
			went_wrong(c);
			return;
		}
		data += sent;
		size -= (size_t)sent;
	}
}

static void ask(client *c, unsigned kind, size_t units)
{
	static char text[UINT8_MAX * BODY_UNIT + 128];
	size_t body = kind == GET ? 0 : units * BODY_UNIT;
	int head = snprintf(text, sizeof(text), "%s HTTP/1.1\r\nHost: h\r\nContent-Length: %zu\r\n\r\n",
	                    kind == GET    ? "GET /"
	                    : kind == POST ? "POST /"
	                                   : "POST /read",
	                    body);
	size_t size = (size_t)head + body;
	memset(text + head, 'b', body);
	if (!c->talks || c->said_bye || c->said + size > SAID_MOST)
		return;
	c->requests++;
	c->bytes += body;
	say(c, (const uint8_t *)text, size);
}

static void say_bye(client *c)
{
	if (c->talks && !c->said_bye && gnutls_bye(c->session, GNUTLS_SHUT_WR) != 0)
		went_wrong(c);
	c->said_bye = true;
}

static size_t number(const uint8_t **at, const uint8_t *end)
{
	return *at < end ? *(*at)++ : 0;
}

static void take_step(client *c, const uint8_t **at, const uint8_t *end)
{
	unsigned kind = (unsigned)number(at, end) % KINDS;
	size_t size = kind >= POST && kind <= READ ? number(at, end) : 0;
	const uint8_t *data = *at;
	if (kind == SEND || kind == RAW) {
		size = size > (size_t)(end - data) ? (size_t)(end - data) : size;
		*at += size;
	}
	switch (kind) {
	case GET:
	case POST:
	case UPLOAD:
		ask(c, kind, size);
		break;
	case SEND:
		c->behaves = false;
		say(c, data, size);
		break;
	case RAW:
		c->behaves = false;
		(void)!send(c->fd, data, size, MSG_NOSIGNAL);
		break;
	case READ:
		read_units(c, size);
		break;
	case PAUSE:
		exchange_wait_until_taken(c->fd);
		break;
	case SPLIT:
		c->split = size;
		break;
	case FLIP:
		c->behaves = false;
		c->flip = (int)size;
		break;
	case UPDATE:
		if (c->talks && !c->said_bye) /* TLS 1.2 has none */
			(void)!gnutls_session_key_update(c->session, 0);
		break;
	case BYE:
		say_bye(c);
		break;
	case FIN:
		c->behaves = false;
		c->said_bye = true;
		shutdown(c->fd, SHUT_WR);
		break;
	default:
		c->behaves = false;
		leave(c);
		break;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static http_server *server;
	const uint8_t *at = data, *end = data + size;
	client c;
	if (!server)
		server = serve();
	requests = bytes = 0;
	arrive(&c, (uint8_t)number(&at, end));
	while (at < end && c.fd >= 0)
		take_step(&c, &at, end);
	if (c.fd >= 0) {
		say_bye(&c);
		shutdown(c.fd, SHUT_WR);
		read_all(&c);
	}
	leave(&c);
	gnutls_deinit(c.session);
	exchange_wait_until_over(server);
	if (c.behaves)
		HOLDS(requests == c.requests && bytes == c.bytes);
	return 0;
}
