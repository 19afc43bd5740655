/*
 * An HTTP/2 client that can break every rule: it writes frames as told and keeps book of those that come. For
 * a server of http_peer.h, over a bare socket or TLS.
 */
#ifndef TESTS_H2_PEER_H
#define TESTS_H2_PEER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "http_peer.h"
#include "tls_peer.h"

enum {
	H2_DATA,
	H2_HEADERS,
	H2_PRIORITY,
	H2_RST_STREAM,
	H2_SETTINGS,
	H2_PUSH_PROMISE,
	H2_PING,
	H2_GOAWAY,
	H2_WINDOW_UPDATE,
	H2_CONTINUATION,
	H2_TYPES,
};

enum { H2_END_STREAM = 1, H2_ACK = 1, H2_END_HEADERS = 4, H2_PADDED = 8, H2_PRIORITIES = 0x20 };

enum {
	H2_NO_ERROR,
	H2_PROTOCOL_ERROR,
	H2_INTERNAL_ERROR,
	H2_FLOW_CONTROL_ERROR,
	H2_SETTINGS_TIMEOUT,
	H2_STREAM_CLOSED,
	H2_FRAME_SIZE_ERROR,
	H2_REFUSED_STREAM,
	H2_CANCEL,
	H2_COMPRESSION_ERROR,
	H2_CONNECT_ERROR,
	H2_ENHANCE_YOUR_CALM,
};

/* What came on a stream. */
typedef struct h2_answer {
	uint32_t id;
	int status;   /* 0: no head yet; of several the last */
	int interim;  /* heads with 1xx before it */
	char *fields; /* "name: value\n"…, of all heads; NULL: none */
	char *body;   /* NUL-terminated; NULL: none */
	size_t body_size;
	bool ended;      /* END_STREAM */
	bool reset;      /* RST_STREAM */
	uint32_t reason; /* its */
	int64_t window;  /* bytes that may be sent on it: who sends some takes them off */
} h2_answer;

typedef struct h2_peer {
	int fd;
	tls_peer *tls; /* whose socket it is; NULL: bare */
	bool silent; /* no acknowledgement of SETTINGS and PING, no WINDOW_UPDATE: unset by h2_peer_connect */
	bool closed; /* the other side has ended the connection */
	int goaways; /* that came */
	uint32_t goaway_reason, goaway_last; /* of the last */
	size_t frames[H2_TYPES];             /* how many of each type came */
	int64_t window;                      /* the same of the connection */
	uint32_t settings[16]; /* the server's, by their number; those not sent are UINT32_MAX */
	struct h2_peer_private *private;
} h2_peer;

/* Connects; sends the preface and empty SETTINGS. Aborts the test if that fails. h2_peer_close ends it. */
h2_peer *h2_peer_connect(const http_peer_server *s);
/* The same by TLS. */
h2_peer *h2_peer_connect_tls(const http_peer_server *s);
/* The same to 127.0.0.1:port. */
h2_peer *h2_peer_dial(int port);
/* The same on a socket that is connected, and is the peer's from now on; sends nothing. */
h2_peer *h2_peer_open(int fd);
/* Closes the socket, or the session, if fd is not negative, and frees. */
void h2_peer_close(h2_peer *p);

/* Sends a frame as it is said to be. False: the other side is gone. */
bool h2_peer_frame(h2_peer *p, uint8_t type, uint8_t flags, uint32_t stream, const void *payload,
                   size_t size);
bool h2_peer_bytes(h2_peer *p, const void *data, size_t size);
bool h2_peer_preface(h2_peer *p); /* and empty SETTINGS */

/* A four-byte number as payload: RST_STREAM's reason, WINDOW_UPDATE's increment. */
bool h2_peer_number(h2_peer *p, uint8_t type, uint32_t stream, uint32_t number);

/*
 * A header block: names and values alternating, as literals that leave the dynamic table alone. Returns the size;
 * aborts if it does not fit.
 */
size_t h2_block(uint8_t *block, size_t room, const char *const *fields);
/* The same with given sizes, for what strings cannot hold. */
size_t h2_block_field(uint8_t *block, size_t room, const void *name, size_t name_size, const void *value,
                      size_t value_size);

/* HEADERS, and CONTINUATION as needed, of these fields (a NULL ends them). flags: H2_END_STREAM or 0. */
bool h2_peer_headers(h2_peer *p, uint32_t stream, uint8_t flags, const char *const *fields);

/* A request without a body: method and path, http, authority "h". */
bool h2_peer_ask(h2_peer *p, uint32_t stream, const char *method, const char *path);

/* Its head alone, the body to follow. */
bool h2_peer_begin(h2_peer *p, uint32_t stream, const char *method, const char *path);

/* Reads the next frame and books it. False: the connection has ended, or nothing came for a generous while. */
bool h2_peer_step(h2_peer *p);

/* What has come on that stream so far; never NULL, valid until the next call for another stream. */
h2_answer *h2_peer_so_far(h2_peer *p, uint32_t stream);

/* Reads until the stream is ended or reset, or the connection has ended. */
h2_answer *h2_peer_answer(h2_peer *p, uint32_t stream);

/* Reads until so many GOAWAYs have come in all, or the connection has ended. Whether they have. */
bool h2_peer_goes_away(h2_peer *p, int goaways);

/* Reads until the connection has ended. Whether it has. */
bool h2_peer_ends(h2_peer *p);

/* Sends a PING and reads until it has been acknowledged: then all sent before has been dealt with. */
bool h2_peer_ping(h2_peer *p);

/* The value of a field of an answer, valid until the next call; NULL: absent. */
const char *h2_answer_field(const h2_answer *answer, const char *name);

#endif
