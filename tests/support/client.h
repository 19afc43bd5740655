/*
 * An HTTP/1.1 client of raw sockets, for what a well-behaved one would not do: leave at a chosen moment, by FIN,
 * by RST or by half; send a request in pieces, or two at once; hold a thousand connections on one thread.
 */
#ifndef TESTS_CLIENT_H
#define TESTS_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct client client;

/* Connects to 127.0.0.1:port. The caller ends it with client_close or client_reset. NULL on failure. */
client *client_connect(int port);

/* Sends all of it, or as much as the peer takes within ten seconds: false if that was not all. */
bool client_send(client *c, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Sends "GET target" for a connection that is kept. */
bool client_send_get(client *c, const char *target);

/* To poll(2) on. */
int client_fd(const client *c);

/* Ends the connection and frees c, NULL or not: with FIN, or with RST. */
void client_close(client *c);
void client_reset(client *c);

/* Sends FIN, and can still receive. */
void client_half_close(client *c);

/* A response, whole. */
typedef struct reply {
	int status;
	char *head;  /* from the status line to the last header, each line ended by \r\n */
	char *body;  /* NUL-terminated, chunks put together */
	size_t size; /* of the body */
} reply;

/* The next response, if it has arrived whole: 1. 0: not yet. -1: the connection ended without. Never waits. */
int client_poll(client *c, reply *r);

/* Waits for the next response: true. false: the connection ended without, or timeout_ms have passed. */
bool client_receive(client *c, reply *r, int timeout_ms);

/* The value of a header (the first) as a string that the caller frees; NULL if there is none. */
char *reply_header(const reply *r, const char *name);
void reply_free(reply *r);

/* A connection, one GET, its answer, the end. The status, or -1; r may be NULL. */
int client_get(int port, const char *target, reply *r, int timeout_ms);

/* The same with any method, further header lines (each ended by \r\n, "" for none), and a body, NULL for none. */
int client_request(int port, const char *method, const char *target, const char *headers, const char *body,
                   reply *r, int timeout_ms);

#endif
