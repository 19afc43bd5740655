/*
 * Requests as they are smuggled: each vector is a stream that two careless readers would take apart differently, with
 * a request hidden where the difference would let it out. One table, for whoever is to read it.
 */
#ifndef TESTS_SMUGGLING_H
#define TESTS_SMUGGLING_H

#include <stddef.h>

/* What RFC 9112 has a strict server do, or lets it. "Old" is libmicrohttpd before 1.0, see lib/http/h1_fields.c. */
typedef enum smuggling_fate {
	REFUSED,        /* nothing of it is served, and the connection closed */
	WORDLESS,       /* REFUSED, and there may be no answer */
	SERVED,         /* what it says, and what follows on the connection */
	SERVED_ALONE,   /* what it says, and nothing that follows */
	SERVED_CHUNKED, /* SERVED, or by an old one SERVED_ALONE: what came between the chunks nobody knows */
	OLD_SERVES,     /* SERVED by an old one, else REFUSED */
	OLD_SERVES_ALONE, /* SERVED_ALONE by an old one, or REFUSED */
	NEW_SERVES,       /* SERVED, but REFUSED by an old one */
} smuggling_fate;

typedef struct smuggling_vector {
	const char *bytes; /* with ### where the vector's number goes */
	size_t size;
	int status; /* of a refusal */
	smuggling_fate fate;
	const char *requests; /* what is served: "POST /### body|GET /### |" */
} smuggling_vector;

extern const smuggling_vector smuggling_vectors[];
extern const size_t smuggling_count;

/* How the hidden ones are called, and the one that follows each vector: to be served only where the fate says so. */
#define SMUGGLED       "/marker"
#define SMUGGLING_NEXT "GET /next### HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"

/*
 * The bytes of vector i and what follows it, with its number; of *size bytes. The text with its number (NULL: ""). The
 * caller frees both. They abort when out of memory.
 */
char *smuggling_stream(size_t i, size_t *size);
char *smuggling_text(size_t i, const char *text);

#endif
