/*
 * What the bridge carries: the bytes of both directions, and their ends. The way of a client's:
 *
 *	             pull           decrypt               the short way: take
 *	 outer ─────────► GnuTLS ─────────► text ──► deliver ─────────────────► inner's protocol
 *	        one recv                                └────► the pair ────► inner's socket
 *	                                                         └─ full: rest
 *
 * GnuTLS by itself would ask the kernel twice for each record, for its head and for the rest, and once more in vain.
 * So what has come is read at once, and GnuTLS made to take all of it, whatever inner has room for: nothing that
 * was read stays behind where neither epoll nor anybody else would think of it.
 */
#include <errno.h>
#include <string.h>

#include "bridge_priv.h"
#include "socket.h"

enum {
	RECORD_MAX = 16 * 1024,             /* bytes of text in one */
	CIPHER_MAX = RECORD_MAX + 512,      /* read at once: a whole record, with all its trimmings */
	TEXT_MAX = CIPHER_MAX + RECORD_MAX, /* of these, and of the record whose end was among them */
	PIECES_MAX = 16, /* read or written of one connection in one event, so that the others get theirs */
};

/* ---- To inner ---------------------------------------------------------------------------------------- */

void bridge_drop_rest(bridge *b)
{
	free(b->rest);
	b->rest = NULL;
}

/* As many bytes as inner has room for; -1: it does not read any more. */
static ssize_t give(bridge *b, const char *data, size_t size)
{
	ssize_t given = send(b->pair, data, size, MSG_NOSIGNAL | MSG_DONTWAIT);
	if (given < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	return given;
}

/* False: out of memory. */
static bool give_or_keep(bridge *b, const char *data, size_t size)
{
	ssize_t given = give(b, data, size);
	if (given < 0 || (size_t)given == size)
		return true;
	b->rest_size = size - (size_t)given;
	b->rest_given = 0;
	b->rest = malloc(b->rest_size);
	if (!b->rest)
		return false;
	memcpy(b->rest, data + given, b->rest_size);
	return true;
}

void bridge_give_rest(bridge *b)
{
	ssize_t given = give(b, b->rest + b->rest_given, b->rest_size - b->rest_given);
	if (given >= 0)
		b->rest_given += (size_t)given;
	if (given >= 0 && b->rest_given < b->rest_size)
		return;
	bridge_drop_rest(b);
	if (b->client_ended)
		shutdown(b->pair, SHUT_WR);
}

/* False: inner must be given them by its socket, and behind what is in there. */
static bool give_directly(bridge *b, const char *data, size_t size)
{
	conn *inner = b->inner;
	if (!inner->open || !inner->protocol->take)
		return false;
	if (b->piped && socket_unread(inner->fd) > 0)
		return false;
	b->piped = false;
	return inner->protocol->take(inner, data, size);
}

/* False: out of memory. */
static bool deliver(bridge *b, const char *data, size_t size)
{
	conn *inner = b->inner;
	if (give_directly(b, data, size))
		return true;
	b->piped = true;
	if (!give_or_keep(b, data, size))
		return false;
	if (inner->open && inner->protocol->delivered)
		inner->protocol->delivered(inner);
	return true;
}

void bridge_client_left(bridge *b)
{
	b->client_ended = true;
	bridge_drop_rest(b);
	shutdown(b->pair, SHUT_WR);
	hangup_tell(b->inner);
}

/* By a close_notify, after which it may still read. What came with it comes first. */
static void client_ended(bridge *b)
{
	if (!bridge_half_close_is_waiting(b)) {
		bridge_client_left(b);
		return;
	}
	b->client_ended = true;
	if (!b->rest)
		shutdown(b->pair, SHUT_WR);
}

/* ---- From the client --------------------------------------------------------------------------------- */

/* By the rules of recv(2). GnuTLS asks for a record's head, then for the rest of it, and then for another's head. */
static ssize_t pull(gnutls_transport_ptr_t arg, void *data, size_t size)
{
	bridge *b = arg;
	if (!b->cipher)
		return recv(b->outer->fd, data, size, MSG_DONTWAIT);
	if (b->cipher_size == 0) {
		errno = EAGAIN;
		return -1;
	}
	size = size < b->cipher_size ? size : b->cipher_size;
	memcpy(data, b->cipher, size);
	b->cipher += size;
	b->cipher_size -= size;
	return (ssize_t)size;
}

void bridge_set_transport(bridge *b)
{
	gnutls_transport_set_ptr2(b->session, b, (gnutls_transport_ptr_t)(intptr_t)b->outer->fd);
	gnutls_transport_set_pull_function(b->session, pull);
}

/*
 * Decrypts what was read, into text of TEXT_MAX bytes: *size of them. 1; 0: close_notify; or the error that ends the
 * session. GNUTLS_E_AGAIN is what GnuTLS says of a record that is not the client's but its own, too.
 */
static ssize_t decrypt(bridge *b, char *text, size_t *size)
{
	*size = 0;
	for (;;) {
		size_t before = b->cipher_size;
		ssize_t got = gnutls_record_recv(b->session, text + *size, TEXT_MAX - *size);
		if (got > 0)
			*size += (size_t)got;
		else if (got == 0 || got == GNUTLS_E_REHANDSHAKE ||
		         (!bridge_must_wait(got) && gnutls_error_is_fatal((int)got)))
			return got;
		else if (bridge_must_wait(got) && b->cipher_size == 0)
			return 1;
		else if (b->cipher_size == before)
			return GNUTLS_E_INTERNAL_ERROR; /* it does not get on */
	}
}

/* Reads some and decrypts it. *more: there may be more to read. The rest as decrypt. */
static ssize_t read_text(bridge *b, char *text, size_t *size, bool *more)
{
	char cipher[CIPHER_MAX];
	ssize_t got = recv(b->outer->fd, cipher, sizeof(cipher), MSG_DONTWAIT);
	bool waits = got < 0 && (errno == EAGAIN || errno == EINTR);
	b->cipher = got > 0 || waits ? cipher : NULL; /* the end of the stream GnuTLS is to see for itself */
	b->cipher_size = got > 0 ? (size_t)got : 0;
	*more = got == (ssize_t)sizeof(cipher);
	got = decrypt(b, text, size);
	b->cipher = NULL;
	b->cipher_size = 0;
	return got;
}

/*
 * Reads while there is something and inner takes it.
 * A client that wants to renegotiate (TLS 1.2) is not obliged, nor talked to any longer.
 */
bool bridge_pump_in(bridge *b)
{
	char text[TEXT_MAX];
	bool more = true;
	for (int i = 0; i < PIECES_MAX && more && !b->rest && !b->client_ended; i++) {
		size_t size;
		ssize_t result = read_text(b, text, &size, &more);
		if (size > 0 && !deliver(b, text, size)) {
			bridge_close(b);
			return false;
		}
		if (result < 0) {
			bridge_fail(b, (int)result);
			return false;
		}
		if (result == 0)
			client_ended(b);
	}
	return true;
}

/* ---- To the client ----------------------------------------------------------------------------------- */

/* False: the client cannot be written to, the bridge is closed. */
static bool sent(bridge *b, ssize_t result)
{
	b->blocked = bridge_must_wait(result);
	b->outer->outstanding = true;
	if (result >= 0 || b->blocked)
		return true;
	bridge_close(b);
	return false;
}

/* The server's side has ended and all of it is sent: so does ours. False: the bridge is closed. */
static bool end_stream(bridge *b)
{
	b->server_ended = true;
	if (!sent(b, gnutls_bye(b->session, GNUTLS_SHUT_WR)))
		return false;
	if (!b->blocked)
		shutdown(b->outer->fd, SHUT_WR);
	return true;
}

static size_t record_size(const bridge *b)
{
	size_t size = gnutls_record_get_max_size(b->session);
	return size < RECORD_MAX ? size : RECORD_MAX;
}

/* Takes what inner has written while the client takes it. */
bool bridge_pump_out(bridge *b)
{
	char record[RECORD_MAX];
	const size_t size = record_size(b);
	for (int i = 0; i < PIECES_MAX && !b->blocked && !b->server_ended; i++) {
		ssize_t got = recv(b->pair, record, size, MSG_DONTWAIT);
		if (got < 0 && (errno == EAGAIN || errno == EINTR))
			return true;
		if (got <= 0) /* a reset is inner's close with bytes it had not read */
			return end_stream(b);
		if (!sent(b, gnutls_record_send(b->session, record, (size_t)got)))
			return false;
		if ((size_t)got < size) /* that was all */
			break;
	}
	return true;
}

bool bridge_go_on_sending(bridge *b)
{
	conn *inner = b->inner;
	if (b->server_ended)
		return end_stream(b);
	if (!sent(b, gnutls_record_send(b->session, NULL, 0)) || !bridge_pump_out(b))
		return false;
	if (!b->blocked && inner->open && inner->protocol->room)
		inner->protocol->room(inner);
	return true;
}

/* It may be inner's turn: nothing is closed here. What cannot be sent ends inner, whose end is the bridge's. */
ssize_t bridge_send(conn *outer, const char *data, size_t size)
{
	bridge *b = outer->bridge;
	size_t taken = 0;
	if (!b || b->server_ended) {
		errno = EPIPE;
		return -1;
	}
	while (taken < size && !b->blocked) {
		size_t piece = record_size(b);
		piece = piece < size - taken ? piece : size - taken;
		ssize_t result = gnutls_record_send(b->session, data + taken, piece);
		if (result < 0 && !bridge_must_wait(result)) {
			errno = EPIPE;
			return -1;
		}
		b->outer->outstanding = true;
		b->blocked = result < 0; /* and GnuTLS has it */
		taken += b->blocked ? piece : (size_t)result;
	}
	bridge_watch(b);
	return (ssize_t)taken;
}
