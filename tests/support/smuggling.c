#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "smuggling.h"

#define HOST       "Host: h\r\n"
#define GET        "GET /### HTTP/1.1\r\n" HOST
#define POST       "POST /### HTTP/1.1\r\n" HOST
#define MARKER     "GET " SMUGGLED "### HTTP/1.1\r\n" HOST "\r\n"
#define CODED      "Transfer-Encoding: chunked\r\n"
#define CHUNKED    POST CODED "\r\n"
#define LAST_CHUNK "0\r\n\r\n"

/* A body as long as MARKER; the same behind a last chunk. In a chunk's size it is 24. */
#define LENGTH "Content-Length: 36\r\n"
#define LONGER "Content-Length: 41\r\n"
_Static_assert(sizeof(MARKER) - 1 == 36, "LENGTH is not MARKER's");

#define R(status, ...)                                                      \
	{                                                                   \
		__VA_ARGS__, sizeof(__VA_ARGS__) - 1, status, REFUSED, NULL \
	}
#define W(...)                                                            \
	{                                                                 \
		__VA_ARGS__, sizeof(__VA_ARGS__) - 1, 400, WORDLESS, NULL \
	}
#define S(fate, requests, ...)                                            \
	{                                                                 \
		__VA_ARGS__, sizeof(__VA_ARGS__) - 1, 400, fate, requests \
	}

/* A field about the coding, where one reader goes by the length: the marker is in the body, or behind it. */
#define LENGTH_OR(status, fields)      R(status, POST LONGER fields "\r\n" LAST_CHUNK MARKER)
/* The same where the other reader sees no body at all. */
#define CODED_OR_NOT(status, fields)   R(status, POST fields "\r\n" MARKER)
/* A length that is one for some, and for others another or none. */
#define LENGTH_OR_NONE(status, fields) R(status, POST fields "\r\n" MARKER)

const smuggling_vector smuggling_vectors[] = {
	/* A length and a coding: CL.TE, TE.CL. */
	R(400, POST LONGER CODED "\r\n" LAST_CHUNK MARKER),
	R(400, POST CODED LONGER "\r\n" LAST_CHUNK MARKER),
	R(400, POST CODED "Content-Length: 4\r\n\r\n24\r\n" MARKER "\r\n" LAST_CHUNK),
	R(400, POST "Content-Length: 0\r\n" CODED "\r\n24\r\n" MARKER "\r\n" LAST_CHUNK),
	R(400, GET LONGER CODED "\r\n" LAST_CHUNK MARKER),
	R(400, "POST /### HTTP/1.0\r\n" HOST LONGER CODED "\r\n" LAST_CHUNK MARKER),

	/* Codings that only some recognize: TE.TE. */
	LENGTH_OR(400, "Transfer-Encoding: xchunked\r\n"),
	LENGTH_OR(400, "Transfer-Encoding:chunked\r\n"),
	LENGTH_OR(400, "tRANSFER-eNCODING: CHUNKED\r\n"),
	LENGTH_OR(400, "Transfer-Encoding:\tchunked\t\r\n"),
	LENGTH_OR(400, "Transfer-Encoding: \x0b"
                       "chunked\r\n"),
	LENGTH_OR(400, "Transfer-Encoding: chunked\x0c\r\n"),
	LENGTH_OR(400, "Transfer-Encoding: chunked\xa0\r\n"),
	LENGTH_OR(400, "Transfer-Encoding: \"chunked\"\r\n"),
	LENGTH_OR(400, "Transfer-Encoding: 'chunked'\r\n"),
	LENGTH_OR(400, "Transfer-Encoding: chunked;q=1\r\n"),
	LENGTH_OR(400, "Transfer-Encoding: chunked, identity\r\n"),
	LENGTH_OR(400, "Transfer-Encoding: identity\r\n"),
	LENGTH_OR(400, "Transfer-Encoding:\r\n"),
	LENGTH_OR(400, CODED "Transfer-Encoding: x\r\n"),
	LENGTH_OR(400, "Transfer-Encoding: x\r\n" CODED),
	LENGTH_OR(400, "Transfer-Encoding : chunked\r\n"),
	LENGTH_OR(400, "Transfer-Encoding\t: chunked\r\n"),
	LENGTH_OR(400, " Transfer-Encoding: chunked\r\n"),
	LENGTH_OR(400, "\tTransfer-Encoding: chunked\r\n"),
	LENGTH_OR(400, "Transfer-Encoding:\r\n chunked\r\n"),
	LENGTH_OR(400, "Transfer-Encoding:\n chunked\r\n"),
	LENGTH_OR(400, "Transfer-Encoding: chun\r\n ked\r\n"),
	LENGTH_OR(400, "Transfer\r\n-Encoding: chunked\r\n"),
	LENGTH_OR(400, "X: y\n" CODED),
	LENGTH_OR(400, "X: y\r" CODED),
	LENGTH_OR(400, "X: y\r\n\r" CODED),
	LENGTH_OR(400, "X: y\r\n\x0b" CODED),
	LENGTH_OR(400, "X: y\0" CODED),
	LENGTH_OR(400, "Transfer-Encoding: chunked\0\r\n"),
	LENGTH_OR(400, "Transfer-Encoding: \0chunked\r\n"),
	LENGTH_OR(400, "Transfer-Encoding\0: chunked\r\n"),
	LENGTH_OR(400, "Transfer-Encod\xc4\xb1ng: chunked\r\n"),
	LENGTH_OR(400, "Transfer Encoding: chunked\r\n"),
	S(SERVED, "POST /### " LAST_CHUNK MARKER "|",
          POST LONGER "Transfer_Encoding: chunked\r\n\r\n" LAST_CHUNK MARKER),
	S(SERVED, "POST /### " LAST_CHUNK MARKER "|",
          POST LONGER "X-Transfer-Encoding: chunked\r\n\r\n" LAST_CHUNK MARKER),
	S(SERVED, "POST /### " LAST_CHUNK MARKER "|", POST LONGER "TE: chunked\r\n\r\n" LAST_CHUNK MARKER),
	CODED_OR_NOT(400, "Transfer-Encoding: xchunked\r\n"),
	CODED_OR_NOT(501, "Transfer-Encoding: gzip, chunked\r\n"),
	CODED_OR_NOT(501, "Transfer-Encoding: identity, chunked\r\n"),
	CODED_OR_NOT(400, "Transfer-Encoding: chunked, chunked\r\n"),
	CODED_OR_NOT(400, "Transfer-Encoding: ,chunked\r\n"),
	CODED_OR_NOT(400, "Transfer-Encoding: chunked,\r\n"),
	CODED_OR_NOT(400, "Transfer-Encoding: gzip\r\n"),
	CODED_OR_NOT(400, "Transfer-Encoding: identity\r\n"),
	CODED_OR_NOT(400, "Transfer-Encoding:\r\n"),
	CODED_OR_NOT(400, CODED CODED),
	R(400, "POST /### HTTP/1.0\r\n" HOST CODED "\r\n" MARKER),
	R(400, "POST /### HTTP/1.0\r\n" HOST "Connection: keep-alive\r\n" CODED "\r\n" LAST_CHUNK MARKER),
	S(SERVED_CHUNKED, "GET /### hello|", GET CODED "\r\n5\r\nhello\r\n" LAST_CHUNK),
	S(SERVED_CHUNKED, "POST /### |", POST "transfer-encoding:Chunked\r\n\r\n" LAST_CHUNK),

	/* Lengths that not all read alike. */
	LENGTH_OR_NONE(400, LENGTH LENGTH),
	LENGTH_OR_NONE(400, LENGTH "content-length: 36\r\n"),
	LENGTH_OR_NONE(400, "Content-Length: 0\r\n" LENGTH),
	LENGTH_OR_NONE(400, LENGTH "Content-Length: 0\r\n"),
	LENGTH_OR_NONE(400, "Content-Length: 36, 36\r\n"),
	LENGTH_OR_NONE(400, "Content-Length: 0, 36\r\n"),
	LENGTH_OR_NONE(400, "Content-Length: 36,\r\n"),
	LENGTH_OR_NONE(400, "Content-Length: +36\r\n"),
	LENGTH_OR_NONE(400, "Content-Length: -36\r\n"),
	LENGTH_OR_NONE(400, "Content-Length: -0\r\n"),
	LENGTH_OR_NONE(400, "Content-Length: 0x24\r\n"),
	LENGTH_OR_NONE(400, "Content-Length: 24h\r\n"),
	LENGTH_OR_NONE(400, "Content-Length: 3 6\r\n"),
	LENGTH_OR_NONE(400, "Content-Length: 36.0\r\n"),
	LENGTH_OR_NONE(400, "Content-Length: 36;x\r\n"),
	LENGTH_OR_NONE(400, "Content-Length: \"36\"\r\n"),
	LENGTH_OR_NONE(400, "Content-Length: 3_6\r\n"),
	LENGTH_OR_NONE(400, "Content-Length: 36\x0b\r\n"),
	LENGTH_OR_NONE(400, "Content-Length: \x0c"
                            "36\r\n"),
	LENGTH_OR_NONE(400, "Content-Length: \xc2\xa0"
                            "36\r\n"),
	LENGTH_OR_NONE(400, "Content-Length: \xef\xbc\x93\xef\xbc\x96\r\n"),
	LENGTH_OR_NONE(400, "Content-Length:\r\n"),
	LENGTH_OR_NONE(400, "Content-Length: 36\0\r\n"),
	LENGTH_OR_NONE(400, "Content-Length: \0"
                            "36\r\n"),
	LENGTH_OR_NONE(400, "Content-Length\0: 36\r\n"),
	LENGTH_OR_NONE(400, "Content-Length : 36\r\n"),
	LENGTH_OR_NONE(400, "Content-Length\t: 36\r\n"),
	LENGTH_OR_NONE(400, "Content Length: 36\r\n"),
	LENGTH_OR_NONE(400, " Content-Length: 36\r\n"),
	LENGTH_OR_NONE(400, "Content-Length:\r\n 36\r\n"),
	LENGTH_OR_NONE(400, "Content-Length: 3\r\n 6\r\n"),
	LENGTH_OR_NONE(400, "X: y\n" LENGTH),
	LENGTH_OR_NONE(400, "X: y\r" LENGTH),
	LENGTH_OR_NONE(413, "Content-Length: 4294967332\r\n"),           /* 2^32 more */
	LENGTH_OR_NONE(413, "Content-Length: 18446744073709551652\r\n"), /* 2^64 more */
	LENGTH_OR_NONE(413, "Content-Length: 18446744073709551615\r\n"), /* what some take for "unknown" */
	LENGTH_OR_NONE(413, "Content-Length: 99999999999999999999999\r\n"),
	S(SERVED, "POST /### " MARKER "|", POST LENGTH "\r\n" MARKER),
	S(SERVED, "POST /### " MARKER "|", POST "CONTENT-LENGTH:\t 0036\r\n\r\n" MARKER),
	S(NEW_SERVES, "POST /### " MARKER "|", POST "Content-Length: 36 \t\r\n\r\n" MARKER),
	S(SERVED, "POST /### |", POST "Content_Length: 36\r\n\r\n"),
	R(408, POST "Content-Length: 200\r\n\r\n" MARKER),

	/* Bodies where some expect none: CL.0. Behind an answer that needs none the rest is still a body. */
	S(SERVED, "GET /### " MARKER "|", GET LENGTH "\r\n" MARKER),
	S(SERVED, "HEAD /### " MARKER "|", "HEAD /### HTTP/1.1\r\n" HOST LENGTH "\r\n" MARKER),
	S(SERVED, "DELETE /### " MARKER "|", "DELETE /### HTTP/1.1\r\n" HOST LENGTH "\r\n" MARKER),
	S(SERVED, "OPTIONS /### " MARKER "|", "OPTIONS /### HTTP/1.1\r\n" HOST LENGTH "\r\n" MARKER),
	S(SERVED, "TRACE /### " MARKER "|", "TRACE /### HTTP/1.1\r\n" HOST LENGTH "\r\n" MARKER),
	S(SERVED, "UNKNOWN /### " MARKER "|", "UNKNOWN /### HTTP/1.1\r\n" HOST LENGTH "\r\n" MARKER),
	S(SERVED, "", "POST /none/such/### HTTP/1.1\r\n" HOST LENGTH "\r\n" MARKER),
	S(SERVED, "", "POST /get/### HTTP/1.1\r\n" HOST LENGTH "\r\n" MARKER),
	S(SERVED, "", "POST //### HTTP/1.1\r\n" HOST LENGTH "\r\n" MARKER),
	S(SERVED, "POST /### " MARKER "|", POST LENGTH "Expect: 100-continue\r\n\r\n" MARKER),
	S(SERVED, "POST /### " MARKER "|", POST LENGTH "Connection: Content-Length\r\n\r\n" MARKER),
	S(SERVED_CHUNKED, "POST /### " MARKER "|",
          POST CODED "Connection: Transfer-Encoding\r\n\r\n24\r\n" MARKER "\r\n" LAST_CHUNK),
	S(SERVED_CHUNKED, "",
          "POST /none/such/### HTTP/1.1\r\n" HOST CODED "\r\n24\r\n" MARKER "\r\n" LAST_CHUNK),
	R(417, POST LENGTH "Expect: 100-continue, x\r\n\r\n" MARKER),
	R(417, POST LENGTH "Expect: 100-continue\r\nExpect: x\r\n\r\n" MARKER),
	R(417, POST LENGTH "Expect:\r\n\r\n" MARKER),
	R(417, GET "Expect: x\r\n\r\n" MARKER),

	/* Chunks. */
	R(400, CHUNKED "0x5\r\nhello\r\n" LAST_CHUNK MARKER),
	R(400, CHUNKED "0x0\r\n\r\n" MARKER),
	R(400, CHUNKED "+0\r\n\r\n" MARKER),
	R(400, CHUNKED "-0\r\n\r\n" MARKER),
	R(400, CHUNKED " 0\r\n\r\n" MARKER),
	R(400, CHUNKED "0 \r\n\r\n" MARKER),
	R(400, CHUNKED "0\t\r\n\r\n" MARKER),
	R(400, CHUNKED "0 ;x\r\n\r\n" MARKER),
	R(400, CHUNKED "0\x0b\r\n\r\n" MARKER),
	R(400, CHUNKED "0\0\r\n\r\n" MARKER),
	R(400, CHUNKED "0.\r\n\r\n" MARKER),
	R(400, CHUNKED "0,0\r\n\r\n" MARKER),
	R(400, CHUNKED "\r\n\r\n" MARKER),
	R(400, CHUNKED ";x\r\n\r\n" MARKER),
	R(400, CHUNKED "O\r\n\r\n" MARKER),
	R(400, CHUNKED MARKER LAST_CHUNK),
	R(400, CHUNKED "5\r\nhello" LAST_CHUNK MARKER),
	R(400, CHUNKED "5\r\nhelloXX" LAST_CHUNK MARKER),
	R(400, CHUNKED "5\r\nhello\r\r\n" LAST_CHUNK MARKER),
	R(400, CHUNKED "3\r\nhello\r\n" LAST_CHUNK MARKER),
	R(400, CHUNKED "5\rhello\r\n" LAST_CHUNK MARKER),
	R(400, CHUNKED "5\r\r\nhello\r\n" LAST_CHUNK MARKER),
	R(400, CHUNKED "5\r;\nhello\r\n" LAST_CHUNK MARKER),
	R(408, CHUNKED "100000024\r\n" MARKER "\r\n" LAST_CHUNK),
	R(413, CHUNKED "10000000000000024\r\n" MARKER "\r\n" LAST_CHUNK),
	R(408, CHUNKED "ffffffffffffffff\r\n" MARKER "\r\n" LAST_CHUNK),
	R(413, CHUNKED "fffffffffffffffffffffffff\r\n" MARKER "\r\n" LAST_CHUNK),
	S(SERVED_CHUNKED, "POST /### " MARKER "|",
          CHUNKED "000000000000000000000000000000024\r\n" MARKER "\r\n00000000000000000000000\r\n\r\n"),
	S(SERVED_CHUNKED, "POST /### " MARKER "|",
          CHUNKED "1\r\nG\r\n0023\r\nET " SMUGGLED "### HTTP/1.1\r\n" HOST "\r\n\r\n" LAST_CHUNK),
	S(OLD_SERVES_ALONE, "POST /### hello|", CHUNKED "5\nhello\r\n" LAST_CHUNK MARKER),
	S(OLD_SERVES_ALONE, "POST /### hello|", CHUNKED "5\r\nhello\n" LAST_CHUNK MARKER),
	S(OLD_SERVES_ALONE, "POST /### |", CHUNKED "0\n\r\n" MARKER),
	S(OLD_SERVES_ALONE, "POST /### |", CHUNKED "0\r\n\n" MARKER),
	S(OLD_SERVES_ALONE, "POST /### |", CHUNKED "0\n\n" MARKER),
	R(400, CHUNKED "0\r\n\r" MARKER),
	R(400, CHUNKED "0\r\n" MARKER), /* the final CRLF is missing: the marker is a trailer */

	/* Extensions of chunks, which the newer library does not take at all. */
	S(OLD_SERVES_ALONE, "POST /### hello|", CHUNKED "5;a=b\r\nhello\r\n0;c=\"d;e\"\r\n\r\n" MARKER),
	S(OLD_SERVES_ALONE, "POST /### hello|", CHUNKED "5;a\nhello\r\n" LAST_CHUNK MARKER),
	S(OLD_SERVES_ALONE, "POST /### hello|", CHUNKED "5;a\rb\r\nhello\r\n" LAST_CHUNK MARKER),
	S(OLD_SERVES_ALONE, "POST /### hello|", CHUNKED "5;\0\r\nhello\r\n" LAST_CHUNK MARKER),
	R(400, CHUNKED "0;\nxx\r\n24\r\n\r\n" MARKER "\r\n" LAST_CHUNK),
	R(400, CHUNKED "5;a=\"\r\nhello\r\n\"" LAST_CHUNK MARKER),
	R(400, CHUNKED "1;\nX;\r\n24\r\n" MARKER "\r\n" LAST_CHUNK),

	/* Trailers. */
	R(400, CHUNKED "0\r\nContent-Length: 36\r\n\r\n" MARKER),
	R(400, CHUNKED "0\r\nTransfer-Encoding: chunked\r\n\r\n" MARKER),
	R(400, CHUNKED "0\r\nHost: i\r\n\r\n" MARKER),
	R(400, CHUNKED "0\r\nConnection: close\r\n\r\n" MARKER),
	R(400, CHUNKED "0\r\nX : y\r\n\r\n" MARKER),
	R(400, CHUNKED "0\r\nX\r\n\r\n" MARKER),
	S(OLD_SERVES_ALONE, "POST /### |", CHUNKED "0\r\n: y\r\n\r\n" MARKER),
	R(400, CHUNKED "0\r\nX: y\r\n z\r\n\r\n" MARKER),
	R(400, CHUNKED "0\r\nX: y\rz\r\n\r\n" MARKER),
	S(OLD_SERVES_ALONE, "POST /### |", CHUNKED "0\r\n\0\r\n\r\n" MARKER),
	S(SERVED_CHUNKED, "POST /### |", CHUNKED "0\r\nX: y\r\nX-Z: \t\r\n\r\n"),

	/* Request lines. */
	R(400, "GET /### HTTP/1.1\n" HOST "\r\n" MARKER),
	R(400, "GET /### HTTP/1.1\r\r\n" HOST "\r\n" MARKER),
	R(400, "GET /### HTTP/1.1\r" HOST "\r\n" MARKER),
	R(400, "GET  /### HTTP/1.1\r\n" HOST "\r\n" MARKER),
	R(400, "GET /###  HTTP/1.1\r\n" HOST "\r\n" MARKER),
	W("GET\t/### HTTP/1.1\r\n" HOST "\r\n" MARKER),
	R(400, "GET /###\tHTTP/1.1\r\n" HOST "\r\n" MARKER),
	W("GET\x0b/### HTTP/1.1\r\n" HOST "\r\n" MARKER),
	R(400, "GET /### HTTP/1.1 \r\n" HOST "\r\n" MARKER),
	W(" GET /### HTTP/1.1\r\n" HOST "\r\n" MARKER),
	W("\tGET /### HTTP/1.1\r\n" HOST "\r\n" MARKER),
	R(400, "GET /### x HTTP/1.1\r\n" HOST "\r\n" MARKER),
	R(400, "GET /### HTTP/1.1 HTTP/1.1\r\n" HOST "\r\n" MARKER),
	W("GET /### HTTP/1.1\x0b\r\n" HOST "\r\n" MARKER),
	R(400, "GET /###\x01 HTTP/1.1\r\n" HOST "\r\n" MARKER),
	R(400, "GET /###\x7f HTTP/1.1\r\n" HOST "\r\n" MARKER),
	W("GET /###\0 HTTP/1.1\r\n" HOST "\r\n" MARKER),
	W("GET\0 /### HTTP/1.1\r\n" HOST "\r\n" MARKER),
	W("GET /### HTTP/1.1\0\r\n" HOST "\r\n" MARKER),
	R(400, "GET /###\rX HTTP/1.1\r\n" HOST "\r\n" MARKER),
	R(400, "GET /###%00 HTTP/1.1\r\n" HOST "\r\n" MARKER),
	R(400, "GET /###%0 HTTP/1.1\r\n" HOST "\r\n" MARKER),
	R(400, "GET /####x HTTP/1.1\r\n" HOST "\r\n" MARKER),
	R(400, "GET ### HTTP/1.1\r\n" HOST "\r\n" MARKER),
	R(400, "GET \\### HTTP/1.1\r\n" HOST "\r\n" MARKER),
	R(400, "GET http://h/### HTTP/1.1\r\n" HOST "\r\n" MARKER),
	R(400, "GET http://i/### HTTP/1.1\r\n" HOST "\r\n" MARKER),
	R(400, "GET h:80 HTTP/1.1\r\n" HOST "\r\n" MARKER),
	R(400, "CONNECT h:80 HTTP/1.1\r\n" HOST "\r\n" MARKER),
	R(400, "OPTIONS * HTTP/1.1\r\n" HOST "\r\n" MARKER),
	R(400, "G(T /### HTTP/1.1\r\n" HOST "\r\n" MARKER),
	R(400, "G\xc3\x89T /### HTTP/1.1\r\n" HOST "\r\n" MARKER),
	R(400, "GET: /### HTTP/1.1\r\n" HOST "\r\n" MARKER),
	R(400, "GET /###\r\n" HOST "\r\n" MARKER), /* HTTP/0.9 */
	R(400, "GET /### \r\n" HOST "\r\n" MARKER),
	W("GET\r\n" HOST "\r\n" MARKER),
	R(400, "GET /### http/1.1\r\n" HOST "\r\n" MARKER),
	R(400, "GET /### HTTP/1\r\n" HOST "\r\n" MARKER),
	R(400, "GET /### HTTP/1,1\r\n" HOST "\r\n" MARKER),
	R(400, "GET /### HTTP/01.1\r\n" HOST "\r\n" MARKER),
	R(400, "GET /### HTTP/1.10\r\n" HOST "\r\n" MARKER),
	R(400, "GET /### HTTP/1.1x\r\n" HOST "\r\n" MARKER),
	R(400, "GET /### HTTPS/1.1\r\n" HOST "\r\n" MARKER),
	R(400, "GET /### ICY/1.1\r\n" HOST "\r\n" MARKER),
	R(505, "GET /### HTTP/0.9\r\n" HOST "\r\n" MARKER),
	R(505, "GET /### HTTP/2.0\r\n" HOST "\r\n" MARKER),
	R(505, "GET /### HTTP/3.0\r\n" HOST "\r\n" MARKER),
	R(505, "GET /### HTTP/9.9\r\n" HOST "\r\n" MARKER),
	S(SERVED, "GET /### |", "GET /### HTTP/1.2\r\n" HOST "\r\n"), /* as by 1.1, RFC 9110, 2.5 */
	S(SERVED, "get /### |", "get /### HTTP/1.1\r\n" HOST "\r\n"),
	S(SERVED, "POST! /### " MARKER "|", "POST! /### HTTP/1.1\r\n" HOST LENGTH "\r\n" MARKER),
	S(SERVED, "GET /### |", "\r\n" GET "\r\n"),
	S(SERVED, "POST /### hello|GET /### |", POST "Content-Length: 5\r\n\r\nhello\r\n" GET "\r\n"),
	S(OLD_SERVES, "GET /### |", "\r\n\r\n\r\n" GET "\r\n"),
	S(OLD_SERVES, "GET /### |", "\n" GET "\r\n"),
	S(OLD_SERVES, "GET /### |", "\0x\r\n" GET "\r\n"), /* a line that begins with a NUL is an empty one */
	S(SERVED_ALONE, "GET /### |", "GET /### HTTP/1.0\r\n\r\n" MARKER),
	S(SERVED_ALONE, "POST /### " MARKER "|", "POST /### HTTP/1.0\r\n" LENGTH "\r\n" MARKER MARKER),
	S(SERVED, "GET /### |", "GET /### HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"),

	/* Fields and their lines. */
	R(400, GET "X : y\r\n\r\n" MARKER),
	R(400, GET "X\t: y\r\n\r\n" MARKER),
	R(400, GET "X\x0b: y\r\n\r\n" MARKER),
	R(400, GET "X Y: z\r\n\r\n" MARKER),
	R(400, GET "X\r\n\r\n" MARKER),
	R(400, GET ": y\r\n\r\n" MARKER),
	R(400, GET "X\xc3\xa9: y\r\n\r\n" MARKER),
	R(400, GET "X(: y\r\n\r\n" MARKER),
	R(400, GET "X: y\r\n z\r\n\r\n" MARKER),
	R(400, GET "X: y\r\n\tz\r\n\r\n" MARKER),
	R(400, GET "X: y\r\n \r\n\r\n" MARKER),
	R(400, "GET /### HTTP/1.1\r\n X: y\r\n" HOST "\r\n" MARKER),
	R(400, GET "X: y\n\r\n" MARKER),
	R(400, GET "X: y\r\n\n" MARKER),
	R(400, GET "\n" MARKER),
	R(400, GET "X: y\n\n" MARKER),
	R(400, GET "X: y\rz\r\n\r\n" MARKER),
	R(400, GET "X: y\r\r\n\r\n" MARKER),
	R(400, GET "X: y\r\n\r\r\n" MARKER),
	R(400, GET "X: y\r\n\r" MARKER),
	R(400, GET "X: y\x01\r\n\r\n" MARKER),
	R(400, GET "X: y\x0bz\r\n\r\n" MARKER),
	R(400, GET "X: y\x7f\r\n\r\n" MARKER),
	R(400, GET "X: y\0z\r\n\r\n" MARKER),
	R(400, GET "X: y\0\r\n\r\n" MARKER),
	R(400, GET "X\0: y\r\n\r\n" MARKER),
	R(400, GET "\0X: y\r\n\r\n" MARKER),
	R(400, GET "\0\r\n" MARKER "\r\n"),
	R(400, GET "X: y\n:z\n" MARKER),
	R(400, GET "X: y\n\0z\n" MARKER),
	/*
	 * The old library takes a line for empty that begins with a NUL or a colon, and an LF for a line's end, and
	 * leaves NULs of all of them. These are as long as what they stand for, and cannot be told from it any more.
	 */
	S(OLD_SERVES, "GET /### |", GET "\0\n"),
	S(OLD_SERVES, "GET /### |", GET "X: y\0\n\r\n"),
	S(OLD_SERVES, "GET /### |", GET "X: y\n\0\r\n"),
	S(OLD_SERVES, "GET /### |", GET ":\n"),
	S(OLD_SERVES, "GET /### |", GET "X: y\n:\r\n"),
	S(SERVED, "GET /### |", GET "X:\r\nY: \t\r\nZ:\xc3\xa9\tz \r\n\r\n"),

	/* Hosts. */
	R(400, "GET /### HTTP/1.1\r\n\r\n" MARKER),
	R(400, "GET /### HTTP/1.1\r\nX: y\r\n\r\n" MARKER),
	R(400, GET HOST "\r\n" MARKER),
	R(400, GET "host: i\r\n\r\n" MARKER),
	R(400, "GET /### HTTP/1.0\r\n" HOST "Host: i\r\n\r\n" MARKER),
	R(400, "GET /### HTTP/1.1\r\nHost: h i\r\n\r\n" MARKER),
	R(400, "GET /### HTTP/1.1\r\nHost: h, i\r\n\r\n" MARKER),
	R(400, "GET /### HTTP/1.1\r\nHost: h@i\r\n\r\n" MARKER),
	R(400, "GET /### HTTP/1.1\r\nHost: h/i\r\n\r\n" MARKER),
	R(400, "GET /### HTTP/1.1\r\nHost: h#i\r\n\r\n" MARKER),
	R(400, "GET /### HTTP/1.1\r\nHost: h?i\r\n\r\n" MARKER),
	R(400, "GET /### HTTP/1.1\r\nHost: h:80:80\r\n\r\n" MARKER),
	R(400, "GET /### HTTP/1.1\r\nHost: h:http\r\n\r\n" MARKER),
	R(400, "GET /### HTTP/1.1\r\nHost: [::1\r\n\r\n" MARKER),
	R(400, "GET /### HTTP/1.1\r\nHost: [::1]x\r\n\r\n" MARKER),
	R(400, "GET /### HTTP/1.1\r\nHost: http://h\r\n\r\n" MARKER),
	R(400, "GET /### HTTP/1.1\r\nHost : h\r\n\r\n" MARKER),
	S(SERVED, "GET /### |", "GET /### HTTP/1.1\r\nHost:\r\n\r\n"),
	S(SERVED, "GET /### |", "GET /### HTTP/1.1\r\nhOST: [::1]:80\r\n\r\n"),

	/* What is about the connection. A server that does not upgrade goes on as it was. */
	S(SERVED_ALONE, "GET /### |", GET "Connection: close\r\n\r\n" MARKER),
	S(SERVED_ALONE, "GET /### |", GET "Connection: x, Close\r\n\r\n" MARKER),
	S(SERVED_ALONE, "POST /### " MARKER "|", POST LENGTH "Connection: close\r\n\r\n" MARKER MARKER),
	S(SERVED, "GET /### |", GET "Connection: Host\r\n\r\n"),
	S(SERVED, "GET /### |", GET "Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"),
	S(SERVED, "GET /### |",
          GET
          "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"),
	S(SERVED_ALONE, "GET /### |", GET "\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" MARKER),
	R(505, "PRI * HTTP/2.0\r\n\r\nsm\r\n\r\n" MARKER),

	/* Ordinary ones, for comparison. */
	S(SERVED, "GET /### |", GET "\r\n"),
	S(SERVED, "POST /### hello|POST /### |PUT /### x|",
          POST "Content-Length: 5\r\n\r\nhello" POST "Content-Length: 0\r\n\r\nPUT /### HTTP/1.1\r\n" HOST
               "Content-Length: 1\r\n\r\nx"),
};

const size_t smuggling_count = sizeof(smuggling_vectors) / sizeof(*smuggling_vectors);

static char *copy(const char *bytes, size_t size)
{
	char *made = malloc(size + 1);
	if (!made)
		abort();
	memcpy(made, bytes, size);
	made[size] = '\0';
	return made;
}

static void number(size_t i, char *bytes, size_t size)
{
	char digits[4];
	snprintf(digits, sizeof(digits), "%03u", (unsigned)i % 1000);
	for (size_t at = 0; at + 3 <= size; at++)
		if (memcmp(bytes + at, "###", 3) == 0)
			memcpy(bytes + at, digits, 3);
}

char *smuggling_stream(size_t i, size_t *size)
{
	const smuggling_vector *v = &smuggling_vectors[i];
	char *stream = malloc(v->size + sizeof(SMUGGLING_NEXT));
	if (!stream)
		abort();
	memcpy(stream, v->bytes, v->size);
	memcpy(stream + v->size, SMUGGLING_NEXT, sizeof(SMUGGLING_NEXT));
	*size = v->size + sizeof(SMUGGLING_NEXT) - 1;
	number(i, stream, *size);
	return stream;
}

char *smuggling_text(size_t i, const char *text)
{
	char *made = copy(text ? text : "", text ? strlen(text) : 0);
	number(i, made, strlen(made));
	return made;
}
