#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "process.h"
#include "relay.h"
#include "support.h"

enum { LINKS_MAX = 64, CHUNK = 65536 };

/* Bytes on their way, or their end. */
typedef struct chunk {
	struct chunk *next;
	int64_t due;
	size_t length, sent;
	char bytes[];
} chunk;

typedef struct way {
	int from, to;
	chunk *first, **last;
	bool ended; /* no more comes from there */
} way;

typedef struct link {
	way ways[2];
	bool used, held;
} link_pair;

struct relay {
	int listener, server_port, latency_ms, port;
	char host[32], near_end[16], far_end[16];
	process *network; /* holds the namespace; NULL: there is none */
	pthread_t thread;
	_Atomic(int) fault;
	_Atomic(bool) stopping;
	link_pair links[LINKS_MAX];
};

/* ---- A network of its own ----------------------------------------------------------------------------- */

static bool run(const char *const argv[])
{
	char *said = NULL;
	bool ok = process_run(argv, NULL, 10000, &said) == 0;
	if (!ok)
		fprintf(stderr, "skipped: no network namespace: %s: %s\n", argv[0], said ? said : "");
	free(said);
	return ok;
}

static bool has_own_network(void *arg)
{
	char path[64], theirs[64] = "", ours[64] = "";
	snprintf(path, sizeof(path), "/proc/%d/ns/net", (int)process_pid(arg));
	return readlink(path, theirs, sizeof(theirs) - 1) > 0 &&
	       readlink("/proc/self/ns/net", ours, sizeof(ours) - 1) > 0 && strcmp(theirs, ours) != 0;
}

/* It lives as long as the process in it, which dies with the test. */
static bool make_network(relay *r)
{
	static int count;
	int number = ((int)getpid() * 4 + count++) % 16000;
	char near_address[32], far_address[32], pid[16];
	if (geteuid() != 0) {
		fprintf(stderr, "skipped: a network namespace takes root\n");
		return false;
	}
	r->network = process_start((const char *const[]){"unshare", "--net", "sleep", "1000", NULL}, NULL);
	if (!r->network || !eventually(has_own_network, r->network, 5000)) {
		fprintf(stderr, "skipped: no network namespace\n");
		return false;
	}
	/* 198.18.0.0/15 is for tests (RFC 2544). */
	snprintf(near_address, sizeof(near_address), "198.18.%d.%d/30", number / 64, number % 64 * 4 + 1);
	snprintf(far_address, sizeof(far_address), "198.18.%d.%d/30", number / 64, number % 64 * 4 + 2);
	snprintf(r->host, sizeof(r->host), "%.*s", (int)strcspn(far_address, "/"), far_address);
	snprintf(r->near_end, sizeof(r->near_end), "tether%dn", number);
	snprintf(r->far_end, sizeof(r->far_end), "tether%df", number);
	snprintf(pid, sizeof(pid), "%d", (int)process_pid(r->network));
	return run((const char *const[]){"ip", "link", "add", r->near_end, "type", "veth", "peer", "name",
	                                 r->far_end, "netns", pid, NULL}) &&
	       run((const char *const[]){"ip", "address", "add", near_address, "dev", r->near_end, NULL}) &&
	       run((const char *const[]){"ip", "link", "set", r->near_end, "up", NULL}) &&
	       run((const char *const[]){"nsenter", "-t", pid, "-n", "ip", "address", "add", far_address,
	                                 "dev", r->far_end, NULL}) &&
	       run((const char *const[]){"nsenter", "-t", pid, "-n", "ip", "link", "set", r->far_end, "up",
	                                 NULL});
}

void relay_cut(relay *r, bool cut)
{
	char pid[16];
	snprintf(pid, sizeof(pid), "%d", (int)process_pid(r->network));
	if (!run((const char *const[]){"nsenter", "-t", pid, "-n", "ip", "link", "set", r->far_end,
	                               cut ? "down" : "up", NULL}))
		abort();
}

/* Sockets stay in the network they were made in. */
static int socket_in(const relay *r)
{
	char path[64];
	snprintf(path, sizeof(path), "/proc/%d/ns/net", (int)process_pid(r->network));
	int theirs = open(path, O_RDONLY | O_CLOEXEC);
	int ours = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
	if (theirs < 0 || ours < 0 || setns(theirs, CLONE_NEWNET) != 0)
		abort();
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (setns(ours, CLONE_NEWNET) != 0)
		abort();
	close(theirs);
	close(ours);
	return fd;
}

/* ---- Relaying ----------------------------------------------------------------------------------------- */

static void add_chunk(relay *r, way *w, const char *bytes, size_t length)
{
	chunk *c = malloc(sizeof(*c) + length);
	if (!c)
		abort();
	*c = (chunk){.due = now_ms() + r->latency_ms, .length = length};
	memcpy(c->bytes, bytes, length);
	*w->last = c;
	w->last = &c->next;
}

static void close_link(link_pair *l)
{
	for (int i = 0; i < 2; i++) {
		for (chunk *c; (c = l->ways[i].first);) {
			l->ways[i].first = c->next;
			free(c);
		}
		close(l->ways[i].from);
	}
	l->used = false;
}

static void reset_link(link_pair *l)
{
	for (int i = 0; i < 2; i++)
		setsockopt(l->ways[i].from, SOL_SOCKET, SO_LINGER, &(struct linger){.l_onoff = 1},
		           sizeof(struct linger));
	close_link(l);
}

static void accept_link(relay *r)
{
	struct sockaddr_in address = {.sin_family = AF_INET,
	                              .sin_port = htons((uint16_t)r->server_port),
	                              .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int near = accept4(r->listener, NULL, NULL, SOCK_CLOEXEC);
	int far = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (near < 0 || far < 0)
		abort();
	link_pair *l = r->links;
	while (l < r->links + LINKS_MAX && l->used)
		l++;
	if (l == r->links + LINKS_MAX)
		abort();
	*l = (link_pair){.used = true, .held = r->fault == RELAY_HOLD_NEW};
	l->ways[0] = (way){.from = near, .to = far, .last = &l->ways[0].first};
	l->ways[1] = (way){.from = far, .to = near, .last = &l->ways[1].first};
	if (connect(far, (struct sockaddr *)&address, sizeof(address)) != 0) {
		reset_link(l);
		return;
	}
	/* It stands for the server also in noticing a client whose network is gone. */
	setsockopt(near, SOL_SOCKET, SO_KEEPALIVE, &(int){1}, sizeof(int));
	setsockopt(near, IPPROTO_TCP, TCP_KEEPIDLE, &(int){1}, sizeof(int));
	setsockopt(near, IPPROTO_TCP, TCP_KEEPINTVL, &(int){1}, sizeof(int));
	setsockopt(near, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
	setsockopt(far, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
}

/* false: the connection was reset. */
static bool take_in(relay *r, way *w)
{
	char bytes[CHUNK];
	ssize_t n = recv(w->from, bytes, sizeof(bytes), MSG_DONTWAIT);
	if (n < 0)
		return false;
	w->ended = n == 0;
	add_chunk(r, w, bytes, (size_t)n);
	return true;
}

/* Sends what is due. false: the connection is over. */
static bool pass_on(way *w)
{
	for (chunk *c; (c = w->first) && c->due <= now_ms();) {
		if (c->length == 0) {
			shutdown(w->to, SHUT_WR);
		} else {
			ssize_t n = send(w->to, c->bytes + c->sent, c->length - c->sent,
			                 MSG_DONTWAIT | MSG_NOSIGNAL);
			if (n < 0)
				return true; /* later; if it is broken, the reading will tell */
			c->sent += (size_t)n;
			if (c->sent < c->length)
				return true;
		}
		w->first = c->next;
		if (!w->first)
			w->last = &w->first;
		free(c);
	}
	return true;
}

static bool is_over(const link_pair *l)
{
	return l->ways[0].ended && l->ways[1].ended && !l->ways[0].first && !l->ways[1].first;
}

static void serve_link(relay *r, link_pair *l, const short ready[2])
{
	if (r->fault == RELAY_RESET) {
		reset_link(l);
		return;
	}
	if (l->held || r->fault == RELAY_HOLD)
		return;
	for (int i = 0; i < 2; i++) {
		way *w = &l->ways[i];
		if ((ready[i] && !w->ended && !take_in(r, w)) || !pass_on(w)) {
			reset_link(l);
			return;
		}
	}
	if (is_over(l))
		close_link(l);
}

static void *relay_main(void *arg)
{
	relay *r = arg;
	while (!r->stopping) {
		struct pollfd polled[1 + 2 * LINKS_MAX];
		polled[0] = (struct pollfd){.fd = r->listener, .events = POLLIN};
		for (int i = 0; i < 2 * LINKS_MAX; i++) {
			const link_pair *l = &r->links[i / 2];
			bool wanted = l->used && !l->held && !l->ways[i % 2].ended && r->fault != RELAY_HOLD;
			polled[1 + i] =
				(struct pollfd){.fd = wanted ? l->ways[i % 2].from : -1, .events = POLLIN};
		}
		poll(polled, 1 + 2 * LINKS_MAX, 1);
		for (int i = 0; i < LINKS_MAX; i++)
			if (r->links[i].used)
				serve_link(r, &r->links[i],
				           (short[]){polled[1 + 2 * i].revents, polled[2 + 2 * i].revents});
		if (polled[0].revents)
			accept_link(r);
	}
	for (int i = 0; i < LINKS_MAX; i++)
		if (r->links[i].used)
			close_link(&r->links[i]);
	return NULL;
}

relay *relay_start(int port, int latency_ms, bool cut_off)
{
	relay *r = calloc(1, sizeof(*r));
	if (!r)
		abort();
	r->server_port = port;
	r->latency_ms = latency_ms;
	snprintf(r->host, sizeof(r->host), "127.0.0.1");
	if (cut_off && !make_network(r)) {
		process_stop(r->network);
		free(r);
		return NULL;
	}
	struct sockaddr_in address = {.sin_family = AF_INET};
	socklen_t size = sizeof(address);
	inet_pton(AF_INET, r->host, &address.sin_addr);
	r->listener = cut_off ? socket_in(r) : socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (bind(r->listener, (struct sockaddr *)&address, size) != 0 ||
	    listen(r->listener, LINKS_MAX) != 0 ||
	    getsockname(r->listener, (struct sockaddr *)&address, &size) != 0)
		abort();
	r->port = ntohs(address.sin_port);
	if (pthread_create(&r->thread, NULL, relay_main, r) != 0)
		abort();
	return r;
}

const char *relay_host(const relay *r)
{
	return r->host;
}

int relay_port(const relay *r)
{
	return r->port;
}

void relay_set(relay *r, relay_fault fault)
{
	r->fault = (int)fault;
}

void relay_stop(relay *r)
{
	r->stopping = true;
	pthread_join(r->thread, NULL);
	close(r->listener);
	process_stop(r->network);
	free(r);
}
