/*
 * tether/http.h — an HTTP server whose every request has a context.
 *
 * It speaks HTTP/1.1 and HTTP/2 on one port: the first bytes of a connection tell, or with TLS its ALPN. Each stream of
 * HTTP/2 is a request of its own, and a handler cannot tell the difference.
 *
 * A handler is a plain function that runs in a fiber of its own (tether/loop.h), one for each request. The
 * request's context is done the moment nobody wants the answer any more: the client disconnected, reset its
 * stream, or the server drains; or when its deadline passes, or when the handler has returned. Whatever the
 * handler waits for under that context ends with it.
 *
 *	static void hello(http_request *request, http_response *response)
 *	{
 *		if (wait_sleep(http_request_ctx(request), CTX_SECOND) == 0)
 *			http_response_text(response, 200, "hello\n");
 *	}
 *
 *	http_server *server = http_server_new(NULL);
 *	http_handle(server, "GET /hello", hello, NULL);
 *	http_listen(server, "127.0.0.1:8080", NULL, 0);
 *	http_serve(server, until_ctrl_c);
 *	http_server_free(server);
 */
#ifndef TETHER_HTTP_H
#define TETHER_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include <tether/ctx.h>

typedef struct http_server http_server;
typedef struct http_request http_request;
typedef struct http_response http_response;
typedef struct http_tls http_tls;

/* ---- Why a request's context was cancelled ---------------------------------------------------------- */

extern const ctx_error HTTP_CLIENT_DISCONNECTED; /* the connection closed, was reset, half-closed, or died */
extern const ctx_error HTTP_STREAM_RESET;        /* HTTP/2: RST_STREAM for this request alone */
extern const ctx_error HTTP_SERVER_SHUTDOWN;     /* the drain timeout passed, or http_server_abort */
extern const ctx_error HTTP_REQUEST_FINISHED;    /* the handler has returned, in good order */
extern const ctx_error HTTP_CONNECTION_CLOSED;   /* a connection's own context: it ended by none of these */

/* ---- The server ------------------------------------------------------------------------------------- */

/* How a request ended, told once for every request whose head could be read. */
typedef struct http_outcome {
	int status;             /* what was answered; 499: the client left before the answer was sent whole */
	const ctx_error *cause; /* why its context was cancelled before the answer was sent, or NULL */
	uint64_t body_bytes;    /* of the response body, handed to the kernel */
	int64_t duration_ns;    /* from the first byte of the request seen to the last of the answer sent */
} http_outcome;

/* All durations are nanoseconds; a 0 takes the default named. */
typedef struct http_server_options {
	size_t workers;             /* event-loop threads; 0: half the CPUs, at least 1 */
	size_t connections;         /* open at once at most, past it new ones are answered 503; 0: 10000 */
	size_t address_connections; /* of these from one address (IPv6: one /64), past it likewise; 0: no limit */
	size_t requests; /* whose handlers run at once at most, past it 503 with Retry-After and nothing done; 0: 10000 */
	/*
	 * Bytes of a request's head at most, else 431: over HTTP/1.1 its lines, over HTTP/2 as SETTINGS_MAX_HEADER_LIST_SIZE
	 * counts. More than 64 KiB is 64 KiB. 0: 16 KiB over HTTP/2; 6656 over HTTP/1.1, and with more than 3 KiB of
	 * cookies less. There an idle connection keeps the memory for it: 14 KiB, or twice a size given here and 12 KiB.
	 * Fields are 64 (HTTP/2: 100) at most, and targets of 8000 bytes (414), whatever it is.
	 */
	size_t head_size;
	size_t body_size;       /* bytes of a request's body at most, else 413; 0: 1 MiB */
	int64_t header_timeout; /* for the whole request head to arrive; 0: 10 s */
	int64_t body_timeout;   /* for the whole body to arrive; 0: 30 s */
	/*
	 * For the client to take the next bytes of a response: 500 for each second of it (15 000 in 30 s), or all that
	 * waits if that is less. Who is slower is reset. 0: 30 s.
	 */
	int64_t write_timeout;
	int64_t idle_timeout;    /* between two requests of a connection; 0: 60 s */
	int64_t request_timeout; /* a deadline of each request's context, from its head on; 0: none. The client
	                          * may ask for an earlier one: "Prefer: wait=N", N seconds (RFC 7240) */
	int64_t drain_timeout;   /* what requests in flight get once http_serve's context is done; 0: 10 s */
	int64_t drain_delay; /* how long it first goes on accepting, for balancers to notice; 0: not at all */
	/*
	 * SO_REUSEPORT: the process that is to take over may listen on the same TCP addresses, and has all new
	 * connections from the moment it serves. The one before then drains, having gone on accepting for 1.2 s at
	 * least, for handshakes that began with it. Two at a time: a third waits until the first has ended.
	 */
	bool share_port;
	bool notify; /* tells systemd READY=1 when it serves, STOPPING=1 when it drains (sd_notify(3)) */
	bool traces; /* each request has an X-Request-Id and a traceparent, and its answer too */
	bool half_close_is_waiting; /* a client that has shut down its sending side still wants its answer */
	/* Called by http_serve, on its thread, when connections are accepted. Must not block. NULL: not called. */
	void (*on_serve)(void *data);
	/*
	 * Called on the worker's loop when a connection has been accepted, with its context: a child of the server's
	 * that ends when the connection does, and knows its two addresses (http_info_of). Must not block. Returns
	 * the parent of its requests' contexts: the very context given, or one derived from it, whose reference
	 * becomes the server's; NULL: the connection is closed at once. NULL: not called. Go: Server.ConnContext.
	 */
	ctx *(*on_connection)(ctx *connection, void *data);
	/*
	 * Called on the worker's loop when a request's head has been read, before its handler: must not block.
	 * May attach values with http_request_set. false: the request is answered 503. NULL: not called.
	 */
	bool (*on_request)(http_request *request, void *data);
	/* Called on the worker's loop when a request is over; the request is still whole. NULL: not called. */
	void (*on_done)(http_request *request, const http_outcome *outcome, void *data);
	void *data;
} http_server_options;

/*
 * Makes a server, to be told what to serve and where, by one thread at a time. options may be NULL for the defaults;
 * copied. The caller owns it and frees it with http_server_free. NULL with errno ENOMEM. Go: http.Server.
 */
http_server *http_server_new(const http_server_options *options);

/*
 * Adds a handler for a pattern in the syntax of Go 1.22's ServeMux: "[METHOD ]/path", where a segment may be
 * {name} (one segment, not empty), the last may be {name...} (all the rest), a trailing / matches everything
 * below, and {$} only the path that ends there. GET also serves HEAD. The most specific pattern wins. data is
 * borrowed and given back by http_request_data. Before http_serve only. 0, or -1 with errno: EINVAL for a
 * pattern that is malformed, EEXIST for one that conflicts with another, ENOMEM.
 */
typedef void http_handler(http_request *request, http_response *response);
int http_handle(http_server *server, const char *pattern, http_handler *handler, void *data);

typedef struct http_route_options {
	bool streams_body; /* the handler begins when the head has come, and reads the body itself: http_body_read */
	size_t body_size; /* bytes of a body here at most; 0: the server's */
} http_route_options;

/* The same with options of its own; NULL: none. Copied. */
int http_handle_with(http_server *server, const char *pattern, const http_route_options *options,
                     http_handler *handler, void *data);

/*
 * Listens on "host:port", "[v6]:port", ":port" (all interfaces) or "unix:/path"; port 0 picks a free one. Or on a
 * socket handed over by the service manager (sd_listen_fds(3)): "systemd:" is the first, "systemd:name" the first of
 * that name, not taken by an earlier call. Call it again for a second address. Writes the address bound, with its real
 * port, to bound where that is not NULL. Before http_serve only; blocks while a host's name is looked up. Connections
 * queue in the kernel from here on, where the port is shared from http_serve on. 0, or -1 with errno (EADDRNOTAVAIL: no
 * such socket was handed over).
 */
int http_listen(http_server *server, const char *address, char *bound, size_t bound_size);

/*
 * The same with TLS 1.2 and 1.3 (GnuTLS), the handshake within header_timeout. What is said of clients that leave
 * holds: by close_notify, FIN or reset; where a half-closed client may be waiting, it says so by close_notify, and a FIN
 * without one is a client that left. A client past a limit on connections is closed without an answer. HTTP/2 is for
 * those who ask for it (ALPN). tls is retained; NULL: http_listen.
 */
int http_listen_tls(http_server *server, const char *address, http_tls *tls, char *bound, size_t bound_size);

/*
 * Serves until c is done, then drains: stops accepting, closes idle connections, lets requests in flight finish, and
 * after the drain timeout cancels the rest with HTTP_SERVER_SHUTDOWN and waits for their handlers. The contexts of
 * connections and requests have the values of c (Go: Server.BaseContext), not its end. Blocks the calling thread, which
 * must not run a loop; starts the workers and has joined them when it returns. Once per server. 0, or -1 with errno when
 * it could not start (nothing was served). Go: Server.Serve, Shutdown.
 */
int http_serve(http_server *server, ctx *c);

/* Ends a drain, or the service, at once: cancels what is in flight. Idempotent, any thread, signal handlers excepted. */
void http_server_abort(http_server *server);

/* Frees a server that does not serve (any more). NULL is allowed. */
void http_server_free(http_server *server);

/* Snapshots, from any thread. */
typedef struct http_server_stats {
	size_t connections;    /* open now */
	size_t requests;       /* in flight now */
	size_t handlers;       /* that run now */
	size_t fibers, stacks; /* over all workers: see loop_fibers, loop_stacks */
	uint64_t connections_total, requests_total, disconnects_total;
	uint64_t connections_refused; /* for any limit */
	uint64_t address_refused;     /* of these, for that of their address */
	uint64_t requests_refused;    /* for the limit on handlers */
	int64_t lag_ns; /* how late the event loops' timers were last, the latest of them, to the millisecond */
	bool draining;
} http_server_stats;
void http_server_stats_get(const http_server *server, http_server_stats *stats);

/* ---- TLS --------------------------------------------------------------------------------------------- */

typedef struct http_tls_options {
	/* PEM files. The server's certificate, and after it those that lead to its root. */
	const char *certificate;
	/* Its private key, without a password; NULL: in the same file. */
	const char *key;
	/* Who may vouch for clients; NULL: clients are asked for no certificate. */
	const char *client_ca;
	bool client_optional; /* one without a certificate is served too; one with a bad certificate never is */
} http_tls_options;

/*
 * Reads a certificate for http_listen_tls. Blocks for as long as reading the files takes. options are copied; the
 * caller gives the result back with http_tls_free. NULL with errno (of a file that cannot be read; EINVAL for one
 * that is not what it should be, or a key that is another certificate's; ENOMEM), and error, of error_size bytes,
 * says in a line which file it is and why (NULL, 0: untold). Any thread.
 */
http_tls *http_tls_new(const http_tls_options *options, char *error, size_t error_size);

/*
 * Reads the same files again, as after a renewal. Connections made from now on have what they say now; those that
 * are open keep what they began with, and no session of before is resumed. Blocks as http_tls_new. Any thread. 0;
 * or -1 with errno and error as http_tls_new, and everything as it was.
 */
int http_tls_reload(http_tls *tls, char *error, size_t error_size);

/* Gives up the caller's hold on it; servers that listen with it keep theirs. NULL is allowed. Any thread. */
void http_tls_free(http_tls *tls);

/* ---- The request ------------------------------------------------------------------------------------ */

/*
 * All that is returned here is borrowed, lives until on_done has returned, and does not change. Any thread.
 */
ctx *http_request_ctx(const http_request *request);           /* retain it to use it longer */
void *http_request_data(const http_request *request);         /* http_handle's data */
const char *http_request_method(const http_request *request); /* "GET" */
const char *http_request_path(const http_request *request);   /* percent-decoded, begins with / */
const char *http_request_target(const http_request *request); /* path and query as sent */
const char *http_request_route(const http_request *request);  /* the pattern that matched, or NULL */
const char *http_request_peer(const http_request *request);   /* "127.0.0.1:51234", "unix" */
const char *http_request_local(const http_request *request);  /* the address it came to, likewise */
bool http_request_is_encrypted(const http_request *request);  /* it came by http_listen_tls */

/* A certificate whose key the client has proved to hold, and which an authority of client_ca has vouched for. */
typedef struct http_client_certificate {
	const char *subject;     /* as RFC 4514 writes it: "CN=alice,O=Example"; "" if it has none */
	const char *fingerprint; /* the SHA-256 of it all, in 64 digits, lower case */
	const void *der;         /* the certificate itself, in DER */
	size_t der_size;
} http_client_certificate;

/* NULL: the client has shown none. */
const http_client_certificate *http_request_client_certificate(const http_request *request);

/*
 * Its names in logs, here and elsewhere: X-Request-Id and traceparent (W3C Trace Context), the client's where they
 * are well-formed, with a span of our own in the latter; else new ones. NULL unless the options ask for traces.
 */
const char *http_request_id(const http_request *request);
const char *http_request_trace(const http_request *request);

/* What the path has in the place of the pattern's {name}, decoded; NULL: no such name. */
const char *http_path_value(const http_request *request, const char *name);

/* The first value of that name in the query, decoded; NULL: absent. */
const char *http_query_value(const http_request *request, const char *name);

/*
 * The value of a header field, its name in any case; NULL: absent. Of several lines all values, with ", " in between
 * (RFC 9110, 5.2), or "; " if they are cookies.
 */
const char *http_header(const http_request *request, const char *name);

/*
 * Ends the request's context with a cause of the caller's (as ctx_cancel_cause; borrowed for good): whatever the
 * handler waits for ends, and what it then answers is sent. Nothing happens once the handler has returned. Any
 * thread, as long as on_done has not returned when the call begins; that is for the caller to know. Does not wait.
 */
void http_request_cancel(http_request *request, const ctx_error *cause);

/*
 * The whole body, "" if there is none or the route streams it; *size (may be NULL) is its length. NUL-terminated for
 * convenience.
 */
const char *http_body(const http_request *request, size_t *size);

/*
 * Reads up to size bytes of the body, in order: how many; 0 at its end. Where the route streams bodies, waits for what
 * has not come yet (the fiber parks), and what the handler does not read the client cannot send, past some 64 KiB.
 * Handler's fiber only. -1 with errno:
 *
 *	the context's   it is done (as of the wait_*() calls)
 *	EMSGSIZE        the body is longer than allowed; just return, whatever was answered becomes a 413
 *	ETIMEDOUT       with a context that is not done: the client stopped sending; likewise, 408
 *	EBADMSG         what follows the body is malformed; likewise, 400
 *	ENOMEM          likewise, 503
 *	EPIPE           the answer has begun (http_write), and what comes of the body from then on is thrown away: read
 *	                first what is wanted, as in Go over HTTP/1.1
 *	EINVAL          size is 0
 *
 * A client that expects "100-continue" is told to go on when a streaming handler first waits for the body; one that
 * answers without having read spares it the sending.
 */
ssize_t http_body_read(http_request *request, void *data, size_t size);

/*
 * Attaches a value to the request's context, as ctx_with_value: from on_request or the handler, before others
 * use the context. 0, or -1 with errno ENOMEM, and then value is still the caller's.
 */
int http_request_set(http_request *request, const ctx_key *key, void *value);

/*
 * What a context knows of the request it is or derives from; for what is called deep below a handler and has only
 * the context. Belongs to the context and lives as long. NULL: it is not of a request or a connection. A
 * connection's own context knows only the addresses: the rest is NULL there.
 */
typedef struct http_info {
	const char *peer, *local;
	const char *method, *route; /* route NULL: none matched */
	const char *id, *trace;     /* NULL unless the options ask for traces */
} http_info;
const http_info *http_info_of(const ctx *c);

/* ---- The response ----------------------------------------------------------------------------------- */

/*
 * A response is buffered and sent when the handler returns: 200 with no body unless said otherwise. Out of
 * memory in any of these turns the answer into a bare 500: handlers need not check. Handler's fiber only.
 */
void http_response_status(http_response *response, int status);

/* Sets a header field, replacing one of that name, or adds another. A name or value that could break the head is
 * a programming error: refused, and the answer becomes a 500. Framing fields are the server's own affair. */
void http_response_header(http_response *response, const char *name, const char *value);
void http_response_add_header(http_response *response, const char *name, const char *value);

/* Appends to the buffered body; copied. */
void http_response_append(http_response *response, const void *data, size_t size);

/* The whole answer at once: status, Content-Type text/plain or as given, body (copied). */
void http_response_text(http_response *response, int status, const char *text);
void http_response_body(http_response *response, int status, const char *content_type, const void *data,
                        size_t size);

/* An RFC 9457 application/problem+json: the status's own title, detail may be NULL. Replaces any body so far. */
void http_response_problem(http_response *response, int status, const char *detail);

/*
 * Streams: sends the head on the first call, then the data, and waits while the client is slow (the fiber
 * parks; memory is bounded). The end of the handler ends the body. 0, or -1 when the request's context is
 * done: the handler should then just return. HEAD: counts as written.
 */
int http_write(http_response *response, const void *data, size_t size);

/* Makes a started stream end visibly broken, so that no client takes it for whole. Then return. */
void http_response_fail(http_response *response);

/* ---- The other end ---------------------------------------------------------------------------------- */

/*
 * Asks another server: "GET target", at an address as http_listen takes it, in the clear. It is for looking whether
 * one is well, and no client for the world: no redirects, no TLS, 16 KiB of an answer at most. The status; body (may
 * be NULL) becomes as much of the answer's body as fits, NUL-terminated. Waits as wait_fd() does, on fibers and
 * threads, but for the look-up of a host's name, which blocks. -1 with errno: as connect(2) and wait_fd() have it,
 * EINVAL for an address or target that is none, EPROTO for an answer that is not HTTP.
 */
int http_get(ctx *c, const char *address, const char *target, char *body, size_t body_size);

#endif
