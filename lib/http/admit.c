/*
 * Who is let in: limits on connections, on those of one address, and on handlers that run.
 *
 * Each is a count that is taken before anything is spent and given back at the end. What does not get its count is
 * answered at once, 503, and costs no more than that: a server that is asked for more than it can do goes on
 * doing what it can.
 *
 * Addresses are counted in a table that all workers share under a lock; it is asked once for a connection, and not at
 * all unless there is a limit. An address is there as long as it has connections. Of IPv6 a network of 64 bits counts
 * as one address, since that is what one customer is given.
 */
#include <netinet/in.h>
#include <string.h>
#include <sys/random.h>

#include "http_priv.h"

enum { BUCKETS_MIN = 64, BUCKETS_MAX = 16384 };

struct address_count {
	address_count *next; /* of its bucket */
	uint64_t address;
	size_t connections;
};

/* ---- Addresses --------------------------------------------------------------------------------------- */

/* An IPv4 address, also one dressed up as IPv6, or an IPv6 network. False: one that is not counted. */
static bool address_key(const struct sockaddr *address, uint64_t *key)
{
	static const unsigned char mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
	unsigned char bytes[16];
	*key = 0;
	switch (address->sa_family) {
	case AF_INET:
		memcpy(key, &((const struct sockaddr_in *)(const void *)address)->sin_addr, 4);
		return true;
	case AF_INET6:
		memcpy(bytes, &((const struct sockaddr_in6 *)(const void *)address)->sin6_addr, 16);
		if (memcmp(bytes, mapped, sizeof(mapped)) == 0)
			memcpy(key, bytes + 12, 4);
		else
			memcpy(key, bytes, 8);
		return true;
	default:
		return false;
	}
}

/* The seed keeps it from being known which addresses meet in a bucket. */
static address_bucket *bucket_of(const addresses *a, uint64_t key)
{
	uint64_t z = (key ^ a->seed) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 32)) * UINT64_C(0x94d049bb133111eb);
	return &a->buckets[(z >> 32) & (a->bucket_count - 1)];
}

bool admit_init(http_server *server)
{
	addresses *a = &server->addresses;
	pthread_mutex_init(&a->lock, NULL);
	if (server->options.address_connections == 0)
		return true;
	a->bucket_count = BUCKETS_MIN;
	while (a->bucket_count < server->options.connections && a->bucket_count < BUCKETS_MAX)
		a->bucket_count *= 2;
	if (getrandom(&a->seed, sizeof(a->seed), GRND_NONBLOCK) != sizeof(a->seed))
		a->seed = (uint64_t)ctx_now() ^ (uintptr_t)server;
	a->buckets = calloc(a->bucket_count, sizeof(*a->buckets));
	return a->buckets;
}

void admit_free(http_server *server)
{
	free(server->addresses.buckets);
	pthread_mutex_destroy(&server->addresses.lock);
}

/* Counts one more of that address; *counted stays NULL where nothing is counted. False: it has enough, or no memory. */
static bool count_address(http_server *server, const struct sockaddr *address, address_count **counted)
{
	addresses *a = &server->addresses;
	uint64_t key;
	if (!a->buckets || !address_key(address, &key))
		return true;
	pthread_mutex_lock(&a->lock);
	address_bucket *bucket = bucket_of(a, key);
	address_count *found = bucket->first;
	while (found && found->address != key)
		found = found->next;
	if (!found && (found = malloc(sizeof(*found)))) {
		*found = (address_count){.next = bucket->first, .address = key};
		bucket->first = found;
	}
	bool admitted = found && found->connections < server->options.address_connections;
	if (admitted) {
		found->connections++;
		*counted = found;
	}
	pthread_mutex_unlock(&a->lock);
	return admitted;
}

static void uncount_address(http_server *server, address_count *counted)
{
	addresses *a = &server->addresses;
	if (!counted)
		return;
	pthread_mutex_lock(&a->lock);
	if (--counted->connections == 0) {
		address_count **at = &bucket_of(a, counted->address)->first;
		while (*at != counted)
			at = &(*at)->next;
		*at = counted->next;
		free(counted);
	}
	pthread_mutex_unlock(&a->lock);
}

/* ---- Counts ------------------------------------------------------------------------------------------ */

/* One more, if that is not past the limit: exact, whoever else counts. */
static bool take(atomic_size_t *count, size_t limit)
{
	if (atomic_fetch_add_explicit(count, 1, memory_order_relaxed) < limit)
		return true;
	atomic_fetch_sub_explicit(count, 1, memory_order_relaxed);
	return false;
}

static void give_back(atomic_size_t *count)
{
	atomic_fetch_sub_explicit(count, 1, memory_order_relaxed);
}

bool admit_connection(http_server *server, const struct sockaddr *address, address_count **counted)
{
	*counted = NULL;
	atomic_fetch_add_explicit(&server->connections_total, 1, memory_order_relaxed);
	if (take(&server->connections, server->options.connections)) {
		if (count_address(server, address, counted))
			return true;
		give_back(&server->connections);
		atomic_fetch_add_explicit(&server->address_refused, 1, memory_order_relaxed);
	}
	atomic_fetch_add_explicit(&server->connections_refused, 1, memory_order_relaxed);
	return false;
}

void admit_connection_over(http_server *server, address_count *counted)
{
	uncount_address(server, counted);
	give_back(&server->connections);
}

/* ---- Handlers ---------------------------------------------------------------------------------------- */

static void shed(http_request *request)
{
	request_refuse(request, 503, "The server is busy.");
	http_response_header(&request->response, "Retry-After", "1");
	atomic_fetch_add_explicit(&request->conn->worker->server->requests_refused, 1, memory_order_relaxed);
}

void admit_request(http_request *request)
{
	http_server *server = request->conn->worker->server;
	if (!request->refused &&
	    atomic_load_explicit(&server->handlers, memory_order_relaxed) >= server->options.requests)
		shed(request);
}

bool admit_handler(http_request *request)
{
	http_server *server = request->conn->worker->server;
	if (take(&server->handlers, server->options.requests))
		return true;
	shed(request);
	return false;
}

void admit_handler_over(http_request *request)
{
	give_back(&request->conn->worker->server->handlers);
}
