/*
 * The contexts of connections and requests, and what they know.
 *
 *	http_serve's c ── the values only ──► server ──► worker ──► connection ──► request
 *
 * Each is a child of the one before it, and ends all below it. What a context says of its connection or request
 * lies in memory of its own, which goes with the context: whoever has retained that may ask at any time.
 */
#include <errno.h>
#include <string.h>

#include "http_priv.h"

static const ctx_key info_key = {"http", free};

/* In one piece with all its texts. NULL: out of memory. */
static http_info *info_copy(const http_info *said)
{
	const char *const texts[] = {said->peer,  said->local, said->method,
	                             said->route, said->id,    said->trace};
	enum { TEXTS = sizeof(texts) / sizeof(*texts) };
	size_t size = 0;
	for (size_t i = 0; i < TEXTS; i++)
		size += texts[i] ? strlen(texts[i]) + 1 : 0;
	http_info *info = malloc(sizeof(*info) + size);
	if (!info)
		return NULL;
	char *at = (char *)(info + 1);
	const char *copies[TEXTS];
	for (size_t i = 0; i < TEXTS; i++) {
		copies[i] = texts[i] ? at : NULL;
		if (texts[i])
			at = stpcpy(at, texts[i]) + 1;
	}
	*info = (http_info){.peer = copies[0],
	                    .local = copies[1],
	                    .method = copies[2],
	                    .route = copies[3],
	                    .id = copies[4],
	                    .trace = copies[5]};
	return info;
}

const http_info *http_info_of(const ctx *c)
{
	return ctx_value(c, &info_key);
}

/* ---- Connections ------------------------------------------------------------------------------------- */

static void local_text(int fd, char *text, size_t size)
{
	struct sockaddr_storage address = {0};
	socklen_t length = sizeof(address);
	if (getsockname(fd, (struct sockaddr *)&address, &length) == 0)
		address_text((struct sockaddr *)&address, text, size);
	else
		snprintf(text, size, "unknown");
}

bool conn_context(conn *c, const struct sockaddr *peer)
{
	const http_server_options *options = &c->worker->server->options;
	char peer_address[ADDRESS_TEXT], local_address[ADDRESS_TEXT];
	address_text(peer, peer_address, sizeof(peer_address));
	local_text(c->fd, local_address, sizeof(local_address));
	http_info *info = info_copy(&(http_info){.peer = peer_address, .local = local_address});
	c->root = info ? ctx_with_cancel(c->worker->base) : NULL;
	c->ctx = c->root ? ctx_with_value(c->root, &info_key, info) : NULL;
	if (!c->ctx) {
		free(info);
		ctx_release(c->root);
		return false;
	}
	c->info = info;
	ctx *derived = options->on_connection ? options->on_connection(c->ctx, options->data) : c->ctx;
	if (!derived) {
		conn_context_end(c, &HTTP_CONNECTION_CLOSED);
		conn_context_release(c);
		errno = ECONNREFUSED;
		return false;
	}
	if (http_info_of(derived) != info)
		http_misuse("on_connection", "returned a context not derived from the connection's");
	if (derived != c->ctx)
		ctx_release(c->ctx);
	c->ctx = derived;
	return true;
}

void conn_context_end(conn *c, const ctx_error *cause)
{
	ctx_cancel_cause(c->root, cause);
}

void conn_context_release(conn *c)
{
	ctx_release(c->ctx);
	ctx_release(c->root);
}

/* ---- Requests ---------------------------------------------------------------------------------------- */

bool request_context_info(http_request *request)
{
	http_info *info = info_copy(&(http_info){.peer = request->conn->info->peer,
	                                         .local = request->conn->info->local,
	                                         .method = request->method,
	                                         .route = http_request_route(request),
	                                         .id = request->id,
	                                         .trace = request->trace});
	if (info && http_request_set(request, &info_key, info) == 0)
		return true;
	free(info);
	return false;
}
