/*
 * HTTP as tests need it: a server in this process, and clients that hold the bare socket in their hands.
 */
#ifndef TESTS_HTTP_PEER_H
#define TESTS_HTTP_PEER_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include <tether/ctx.h>
#include <tether/http.h>

/* ---- A server ---------------------------------------------------------------------------------------- */

typedef struct http_peer_server http_peer_server;

/* A route for http_peer_serve; the last one has no pattern. */
typedef struct http_peer_route {
	const char *pattern;
	http_handler *handler;
	void *data;
} http_peer_route;

/*
 * Serves on 127.0.0.1, on a thread of its own, with options (NULL: defaults) and one worker unless they say
 * otherwise. Aborts if that fails. End it with http_peer_stop.
 */
http_peer_server *http_peer_serve(const http_server_options *options, const http_peer_route *routes);

/* The same with TLS; tls may be NULL. */
http_peer_server *http_peer_serve_tls(const http_server_options *options, const http_peer_route *routes,
                                      http_tls *tls);

/* The same in two steps, for what must be said to the server before it serves (see http_peer_server_of). */
http_peer_server *http_peer_prepare(const http_server_options *options);
void http_peer_begin(http_peer_server *s, http_tls *tls);

/*
 * Serves what the test has made itself and has listen, under a child of base (NULL: the background). It becomes the
 * http_peer_server's, whose address is not known.
 */
http_peer_server *http_peer_start(http_server *server, ctx *base);

/* The server within, for statistics and http_server_abort; its address, "127.0.0.1:12345". Borrowed. */
http_server *http_peer_server_of(const http_peer_server *s);
const char *http_peer_address(const http_peer_server *s);

/* For eventually(): nothing is left on the server, an http_peer_server. */
bool http_peer_is_quiet(void *server);

/* Ends the context it serves under: the drain begins. Returns at once. */
void http_peer_drain(http_peer_server *s);

/* Drains, waits for the end, frees. What http_serve returned. */
int http_peer_stop(http_peer_server *s);

/* ---- A client ---------------------------------------------------------------------------------------- */

/* A connected, blocking socket whose reads and writes give up after a generous while. Aborts on failure. */
int http_peer_connect(const http_peer_server *s);
int http_peer_connect_to(const char *address);                             /* "127.0.0.1:12345" */
int http_peer_connect_from(const http_peer_server *s, const char *source); /* "127.0.0.2" */
/* The same, of one for whom the kernels hold next to nothing: what it reads, the server soon sees it take. */
int http_peer_connect_narrow(const http_peer_server *s);

/* Sends text, or size bytes, all of it. False if the other side is gone. */
bool http_peer_send(int fd, const char *text);
bool http_peer_send_bytes(int fd, const void *data, size_t size);

/* Closes so that the other side gets a reset. */
void http_peer_reset(int fd);

/* The ways in which a client can leave. What is returned is to be closed later, or -1. */
enum http_peer_way { BY_FIN, BY_RESET, BY_HALF_CLOSE, WAYS_TO_LEAVE };
int http_peer_leave(int fd, enum http_peer_way way);

/* A response as it came. */
typedef struct http_peer_response {
	int status; /* 0: none came, only the end of the stream; -1: what came is no whole response */
	char *head; /* status line and fields as sent, NUL-terminated */
	char *body; /* without its chunks, NUL-terminated */
	size_t body_size;
	bool chunked;
} http_peer_response;

/*
 * Reads one response, framed by Content-Length, chunks, or the end of the stream. to_head: it answers a HEAD,
 * so no body follows. The bytes of a pipelined one behind it are left in the socket. Free with _clear.
 */
http_peer_response http_peer_read(int fd, bool to_head);

/* The same from wherever receive gets its bytes, by the rules of read(2). */
typedef ssize_t http_peer_receive(void *arg, char *data, size_t size);
http_peer_response http_peer_read_from(http_peer_receive *receive, void *arg, bool to_head);
void http_peer_clear(http_peer_response *response);

/* The value of a field of the head, valid until the thread's next call; NULL: absent. */
const char *http_peer_field(const http_peer_response *response, const char *name);

/* Whether the other side has ended the stream (read to its end, discarding), within the generous while. */
bool http_peer_closed(int fd);

/* One request on a connection of its own, "Connection: close"; body may be NULL. Free with _clear. */
http_peer_response http_peer_ask(const http_peer_server *s, const char *method, const char *target,
                                 const char *body);
/* The same of a request as it is written here, head and body. */
http_peer_response http_peer_tell(const http_peer_server *s, const char *request);

#endif
