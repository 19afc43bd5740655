/* A server in this process, and a client that sends it what an input says. */
#ifndef TESTS_FUZZ_EXCHANGE_H
#define TESTS_FUZZ_EXCHANGE_H

#include <stddef.h>
#include <stdint.h>

#include <tether/http.h>

/*
 * Serves on a unix socket, with one worker, from the first call to the end of the process. The times of the options
 * are its own: short, since an input may run into them; but with TLS those of the options. tls is borrowed; NULL: in
 * the clear. That a server did not come to be ends the process.
 */
http_server *exchange_server(const http_server_options *options, http_tls *tls);

/* After its handlers are added. */
void exchange_serve(http_server *server);

/*
 * A connection: sends the bytes, waiting at each of the offsets until the server has taken what stands before it,
 * and says that there are no more. Then reads until the server closes, and waits until it has no request and no
 * connection left. What it answered, NUL-terminated, valid until the next call.
 */
const char *exchange(http_server *server, const uint8_t *data, size_t size, const size_t *pauses,
                     size_t pause_count, size_t *answer_size);

/*
 * The pieces of it, for a client that says more than bytes: a socket whose reads wait no longer than half a minute; what
 * waits until the server has taken all that was sent, or a while if it does not want it; and what waits until it has no
 * request, no connection and no fiber left.
 */
int exchange_connect(void);
void exchange_wait_until_taken(int fd);
void exchange_wait_until_over(http_server *server);

#endif
