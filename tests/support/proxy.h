/*
 * nginx and HAProxy between a test's clients and a server on 127.0.0.1, each with a configuration of its own, as the
 * user that runs the tests. The settings that a cancellation needs are in them; see server/README.md.
 */
#ifndef TESTS_PROXY_H
#define TESTS_PROXY_H

#include <stdbool.h>
#include <stddef.h>

typedef struct proxy proxy;

typedef enum proxy_program { PROXY_NGINX, PROXY_HAPROXY } proxy_program;

typedef struct proxy_options {
	proxy_program program;
	int server_port; /* of 127.0.0.1: where it passes requests to */
	const char
		*ca; /* a PEM file: it speaks TLS to the server, whose certificate is by this; NULL: plain */
	bool http2;  /* it speaks HTTP/2 to the server; HAProxy alone can */
	bool keeps_going; /* without the setting that has it pass on a client's leaving */
	bool logs; /* for proxy_passed_on. It gives slow clients up after a second, and asks the server once */
	bool lenient; /* as far as it can be: about names, characters; bodies are passed on as they come */
} proxy_options;

/* Whether the program is on this machine. */
bool proxy_is_there(proxy_program program);

/* Blocks until it listens. The caller ends it with proxy_stop. Aborts on failure, with what it said. */
proxy *proxy_start(const proxy_options *options);

/* Where it listens, on 127.0.0.1. */
int proxy_port(const proxy *p);

/* A request that it says it has passed on. */
typedef struct proxy_request {
	char *method, *target;
	char *body; /* NUL-terminated; NULL: not told, as a lenient one does not know */
	int status; /* of the answer */
} proxy_request;

/* All of them so far, those that are answered; *count of them. The caller frees them, with proxy_requests_free. */
proxy_request *proxy_passed_on(const proxy *p, size_t *count);
void proxy_requests_free(proxy_request *requests, size_t count);

/* NULL is allowed. */
void proxy_stop(proxy *p);

#endif
