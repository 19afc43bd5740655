#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "pg_stub.h"
#include "support.h"

enum {
	SESSIONS_MAX = 64,
	MESSAGE_MAX = 65536,
	SSL_REQUEST = 80877103,
	GSS_REQUEST = 80877104,
	CANCEL_REQUEST = 80877102,
	PID_FIRST = 1000,
};

/* One connection, cancel links included. */
typedef struct session {
	pg_stub *stub;
	int fd;
	int pid;
	bool used;
	bool hanging;         /* in the statement "hang" */
	_Atomic(int) cancels; /* that came for it */
	int fences_bad;       /* of the first two */
	char statements[8];   /* what each does, by the number in its name: 'h'ang, 'c'ancel, or nothing */
	char bound;
} session;

struct pg_stub {
	int listener;
	char conninfo[64];
	pthread_t thread;
	_Atomic(int) fault;
	_Atomic(int) cancels, sessions, statements;
	_Atomic(bool) stopping;
	pthread_mutex_t mutex;
	pthread_cond_t change;
	session session[SESSIONS_MAX];
	_Atomic(int) threads;
};

/* ---- Messages ----------------------------------------------------------------------------------------- */

typedef struct message {
	char bytes[1024];
	size_t length;
} message;

static void put(message *m, const void *bytes, size_t n)
{
	memcpy(m->bytes + m->length, bytes, n);
	m->length += n;
}

static void put_int(message *m, uint32_t value)
{
	value = htonl(value);
	put(m, &value, 4);
}

static void put_short(message *m, uint16_t value)
{
	value = htons(value);
	put(m, &value, 2);
}

static void put_text(message *m, const char *text)
{
	put(m, text, strlen(text) + 1);
}

static void send_message(session *s, char type, const message *body)
{
	message m = {0};
	put(&m, &type, 1);
	put_int(&m, (uint32_t)body->length + 4);
	put(&m, body->bytes, body->length);
	(void)!send(s->fd, m.bytes, m.length, MSG_NOSIGNAL);
}

static void send_text(session *s, char type, const char *text)
{
	message m = {0};
	put_text(&m, text);
	send_message(s, type, &m);
}

static void send_empty(session *s, char type)
{
	send_message(s, type, &(message){0});
}

static void send_ready(session *s)
{
	send_message(s, 'Z', &(message){.bytes = "I", .length = 1});
}

static void send_error(session *s, const char *sqlstate, const char *text)
{
	message m = {0};
	put(&m, "S", 1), put_text(&m, "ERROR");
	put(&m, "V", 1), put_text(&m, "ERROR");
	put(&m, "C", 1), put_text(&m, sqlstate);
	put(&m, "M", 1), put_text(&m, text);
	put(&m, "", 1);
	send_message(s, 'E', &m);
}

static void send_parameter(session *s, const char *name, const char *value)
{
	message m = {0};
	put_text(&m, name);
	put_text(&m, value);
	send_message(s, 'S', &m);
}

/* One row of two columns. */
static void send_row(session *s, const char *first, const char *second)
{
	message columns = {0}, row = {0};
	const char *values[] = {first, second};
	put_short(&columns, 2);
	put_short(&row, 2);
	for (int i = 0; i < 2; i++) {
		put_text(&columns, "value");
		put_int(&columns, 0), put_short(&columns, 0);
		put_int(&columns, 25), put_short(&columns, (uint16_t)-1), put_int(&columns, (uint32_t)-1);
		put_short(&columns, 0);
		put_int(&row, (uint32_t)strlen(values[i]));
		put(&row, values[i], strlen(values[i]));
	}
	send_message(s, 'T', &columns);
	send_message(s, 'D', &row);
	send_text(s, 'C', "SELECT 1");
}

static bool receive(session *s, void *to, size_t n)
{
	return n == 0 || recv(s->fd, to, n, MSG_WAITALL) == (ssize_t)n;
}

static bool receive_int(session *s, uint32_t *value)
{
	if (!receive(s, value, 4))
		return false;
	*value = ntohl(*value);
	return true;
}

/* ---- What it does ------------------------------------------------------------------------------------- */

static void pause_ms(int ms)
{
	poll(NULL, 0, ms);
}

static void die(session *s)
{
	/* 'E', a length, and no more. */
	(void)!send(s->fd, "E\0\0\1\0SER", 8, MSG_NOSIGNAL);
	shutdown(s->fd, SHUT_RDWR);
}

/* Carries a cancel out for the process, or not. */
static void cancel_backend(pg_stub *stub, int pid)
{
	stub->cancels++;
	pthread_mutex_lock(&stub->mutex);
	for (int i = 0; i < SESSIONS_MAX; i++)
		if (stub->session[i].used && stub->session[i].pid == pid)
			stub->session[i].cancels++;
	pthread_cond_broadcast(&stub->change);
	pthread_mutex_unlock(&stub->mutex);
}

static bool is_canceled(session *s)
{
	int fault = s->stub->fault;
	return s->cancels > (fault == STUB_DEAF_AT_FIRST ? 3 : 0) && fault != STUB_DEAF;
}

/* The peer closes, or the cancel comes. */
static bool hang_until_canceled(session *s)
{
	int64_t start = now_ms();
	bool canceled = false, gone = false;
	s->cancels = 0;
	while (!canceled && !gone && !s->stub->stopping) {
		struct pollfd peer = {.fd = s->fd, .events = POLLRDHUP};
		gone = poll(&peer, 1, 1) > 0;
		pthread_mutex_lock(&s->stub->mutex);
		canceled = is_canceled(s);
		pthread_mutex_unlock(&s->stub->mutex);
		if (s->stub->fault == STUB_ENDS_ITSELF && now_ms() - start > 50)
			return false;
	}
	return canceled;
}

/* The end of the statement "hang"; ready comes with it where `simple`, or else with Sync. */
static bool end_hanging(session *s)
{
	int fault = s->stub->fault;
	if (fault == STUB_ENDS_ITSELF) {
		send_text(s, 'C', "SELECT 0");
		return true;
	}
	if (fault == STUB_ERROR_LATE)
		pause_ms(200);
	if (fault == STUB_DIES) {
		die(s);
		return false;
	}
	send_error(s, "57014", "canceling statement due to user request");
	return true;
}

static void answer_simple(session *s, const char *sql)
{
	pg_stub *stub = s->stub;
	char pid[16];
	if (!*sql) {
		if (stub->fault == STUB_NO_FENCE && s->cancels)
			return;
		if (stub->fault == STUB_FENCE_CANCELED && s->cancels && s->fences_bad++ < 2)
			send_error(s, "57014", "canceling statement due to user request");
		else
			send_empty(s, 'I');
	} else if (strstr(sql, "pg_backend_pid")) {
		snprintf(pid, sizeof(pid), "%d", s->pid + (stub->fault == STUB_POOLER));
		send_row(s, pid, "1700000000.5");
	} else if (strcmp(sql, "COMMIT") == 0 && stub->fault == STUB_NO_COMMIT) {
		die(s);
		return;
	} else {
		send_text(s, 'C', strncmp(sql, "SET", 3) == 0 ? "SET" : sql);
	}
	send_ready(s);
}

/* Cancels what the array parameter of a Bind message names: "{1000,1001}". */
static void cancel_named(pg_stub *stub, const char *bytes, size_t length)
{
	const char *open = memchr(bytes, '{', length);
	while (open && *open != '}') {
		cancel_backend(stub, (int)strtol(open + 1, NULL, 10));
		open = strpbrk(open + 1, ",}");
	}
}

/* lib/pg calls its statements s1, s2, …; the one without a name is number 0. */
static char *statement_named(session *s, const char *name)
{
	return &s->statements[*name ? strtol(name + 1, NULL, 10) % 8 : 0];
}

static char what_it_does(const char *sql)
{
	if (strstr(sql, "pg_cancel_backend"))
		return 'c';
	return strcmp(sql, "hang") == 0 ? 'h' : 0;
}

/* false: the session is over. */
static bool answer(session *s, char type, const char *body, size_t length)
{
	pg_stub *stub = s->stub;
	switch (type) {
	case 'Q':
		answer_simple(s, body);
		return true;
	case 'P': /* name, text */
		*statement_named(s, body) = what_it_does(body + strlen(body) + 1);
		send_empty(s, '1');
		return true;
	case 'B': /* portal, statement, … */
		s->bound = *statement_named(s, body + strlen(body) + 1);
		if (s->bound == 'c')
			cancel_named(stub, body, length);
		send_empty(s, '2');
		return true;
	case 'D':
		send_empty(s, 'n');
		return true;
	case 'E':
		if (s->bound == 'h') {
			hang_until_canceled(s);
			return end_hanging(s);
		}
		stub->statements++;
		send_text(s, 'C', "SELECT 0");
		return true;
	case 'S':
		if (stub->fault != STUB_NO_READY || !s->cancels)
			send_ready(s);
		return true;
	case 'H':
	case 'C':
		return true;
	default:
		return false;
	}
}

static void take_cancel(session *s)
{
	uint32_t pid, key;
	if (!receive_int(s, &pid) || !receive_int(s, &key))
		return;
	cancel_backend(s->stub, (int)pid);
	if (s->stub->fault == STUB_LINK_STAYS_OPEN) {
		char byte;
		(void)!recv(s->fd, &byte, 1, 0);
	} else if (s->stub->fault == STUB_LINK_RESET) {
		setsockopt(s->fd, SOL_SOCKET, SO_LINGER, &(struct linger){.l_onoff = 1},
		           sizeof(struct linger));
	}
}

/* false: it was a cancel, or nonsense. */
static bool greet(session *s)
{
	uint32_t length, code;
	char startup[MESSAGE_MAX];
	for (;;) {
		if (!receive_int(s, &length) || !receive_int(s, &code) || length > sizeof(startup))
			return false;
		if (code != SSL_REQUEST && code != GSS_REQUEST)
			break;
		(void)!send(s->fd, "N", 1, MSG_NOSIGNAL);
	}
	if (code == CANCEL_REQUEST) {
		take_cancel(s);
		return false;
	}
	if (!receive(s, startup, length - 8))
		return false;
	message m = {0};
	put_int(&m, 0);
	send_message(s, 'R', &m);
	send_parameter(s, "server_version", "15.0");
	send_parameter(s, "client_encoding", "UTF8");
	send_parameter(s, "standard_conforming_strings", "on");
	m.length = 0;
	put_int(&m, (uint32_t)s->pid);
	put_int(&m, 4711);
	send_message(s, 'K', &m);
	send_ready(s);
	return true;
}

static void *serve(void *arg)
{
	session *s = arg;
	pg_stub *stub = s->stub;
	char *body = malloc(MESSAGE_MAX);
	if (body && greet(s)) {
		char type;
		uint32_t length;
		stub->sessions++;
		while (receive(s, &type, 1) && receive_int(s, &length) && length - 4 < MESSAGE_MAX &&
		       receive(s, body, length - 4)) {
			body[length - 4] = '\0';
			if (!answer(s, type, body, length - 4))
				break;
		}
		stub->sessions--;
	}
	free(body);
	pthread_mutex_lock(&stub->mutex);
	close(s->fd);
	s->used = false;
	pthread_mutex_unlock(&stub->mutex);
	stub->threads--;
	return NULL;
}

/* ---- Sessions ----------------------------------------------------------------------------------------- */

static session *take_session(pg_stub *stub, int fd)
{
	static int pid = PID_FIRST;
	session *s = NULL;
	pthread_mutex_lock(&stub->mutex);
	for (int i = 0; i < SESSIONS_MAX && !s; i++)
		if (!stub->session[i].used)
			s = &stub->session[i];
	if (s)
		*s = (session){.stub = stub, .fd = fd, .pid = pid += 10, .used = true};
	pthread_mutex_unlock(&stub->mutex);
	return s;
}

static void *accept_all(void *arg)
{
	pg_stub *stub = arg;
	int fd;
	while ((fd = accept(stub->listener, NULL, NULL)) >= 0) {
		pthread_t thread;
		session *s = take_session(stub, fd);
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
		stub->threads++;
		if (!s || pthread_create(&thread, NULL, serve, s) != 0)
			abort();
		pthread_detach(thread);
	}
	return NULL;
}

pg_stub *pg_stub_start(pg_stub_fault fault)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t size = sizeof(address);
	pg_stub *stub = calloc(1, sizeof(*stub));
	if (!stub)
		abort();
	stub->fault = (int)fault;
	pthread_mutex_init(&stub->mutex, NULL);
	pthread_cond_init(&stub->change, NULL);
	stub->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (bind(stub->listener, (struct sockaddr *)&address, size) != 0 || listen(stub->listener, 64) != 0 ||
	    getsockname(stub->listener, (struct sockaddr *)&address, &size) != 0)
		abort();
	snprintf(stub->conninfo, sizeof(stub->conninfo), "host=127.0.0.1 port=%d user=x sslmode=disable",
	         ntohs(address.sin_port));
	if (pthread_create(&stub->thread, NULL, accept_all, stub) != 0)
		abort();
	return stub;
}

const char *pg_stub_conninfo(const pg_stub *s)
{
	return s->conninfo;
}

void pg_stub_set(pg_stub *s, pg_stub_fault fault)
{
	s->fault = (int)fault;
}

int pg_stub_cancels(const pg_stub *s)
{
	return s->cancels;
}

int pg_stub_sessions(const pg_stub *s)
{
	return s->sessions;
}

int pg_stub_statements(const pg_stub *s)
{
	return s->statements;
}

void pg_stub_send(pg_stub *s, const void *bytes, size_t size)
{
	pthread_mutex_lock(&s->mutex);
	for (int i = 0; i < SESSIONS_MAX; i++)
		if (s->session[i].used)
			(void)!send(s->session[i].fd, bytes, size, MSG_NOSIGNAL);
	pthread_mutex_unlock(&s->mutex);
}

static bool has_no_threads(void *arg)
{
	return ((pg_stub *)arg)->threads == 0;
}

void pg_stub_stop(pg_stub *s)
{
	s->stopping = true;
	shutdown(s->listener, SHUT_RDWR);
	pthread_join(s->thread, NULL);
	close(s->listener);
	pthread_mutex_lock(&s->mutex);
	for (int i = 0; i < SESSIONS_MAX; i++)
		if (s->session[i].used)
			shutdown(s->session[i].fd, SHUT_RDWR);
	pthread_mutex_unlock(&s->mutex);
	if (!eventually(has_no_threads, s, 10000))
		abort();
	pthread_mutex_destroy(&s->mutex);
	pthread_cond_destroy(&s->change);
	free(s);
}
