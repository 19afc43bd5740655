/* A server in this process, and a client that sends it what an input says. */
#ifndef TESTS_FUZZ_EXCHANGE_H
#define TESTS_FUZZ_EXCHANGE_H

#include <stddef.h>
#include <stdint.h>

#include <tether/http.h>

/*
 * Serves on a unix socket, with one worker, from the first call to the end of the process. The times of the options
 * are its own: short, since an input may run into them. NULL: the server did not come to be, which ends the process.
 */
http_server *exchange_server(const http_server_options *options);

/* After its handlers are added. */
void exchange_serve(http_server *server);

/*
 * A connection: sends the bytes, waiting at each of the offsets until the server has taken what stands before it,
 * and says that there are no more. Then reads until the server closes, and waits until it has no request and no
 * connection left. What it answered, NUL-terminated, valid until the next call.
 */
const char *exchange(http_server *server, const uint8_t *data, size_t size, const size_t *pauses,
                     size_t pause_count, size_t *answer_size);

#endif
