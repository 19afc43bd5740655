#include <libpq-fe.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "haproxy.h"
#include "process.h"
#include "support.h"

static const char program[] = "/usr/sbin/haproxy"; /* Debian keeps it out of an ordinary user's PATH */

struct haproxy {
	char configuration[64], url[256];
	process *process;
};

bool haproxy_is_there(void)
{
	if (access(program, X_OK) == 0)
		return true;
	fprintf(stderr, "skipped: there is no %s\n", program);
	return false;
}

static char *option(const char *url, const char *keyword)
{
	PQconninfoOption *options = PQconninfoParse(url, NULL);
	char *value = NULL;
	for (PQconninfoOption *o = options; !value && o && o->keyword; o++)
		if (strcmp(o->keyword, keyword) == 0 && o->val)
			value = strdup(o->val);
	PQconninfoFree(options);
	if (!value)
		abort();
	return value;
}

static void write_configuration(const haproxy *h, const char *const urls[2], bool spread, int port)
{
	FILE *file = fopen(h->configuration, "w");
	if (!file)
		abort();
	fprintf(file,
	        "defaults\n"
	        "  mode tcp\n"
	        "  timeout connect 2s\n  timeout client 1h\n  timeout server 1h\n  timeout check 1s\n"
	        "listen postgresql\n"
	        "  bind 127.0.0.1:%d\n"
	        "  balance roundrobin\n",
	        port);
	for (int i = 0; i < 2; i++) {
		char *to = option(urls[i], "port");
		fprintf(file,
		        "  server s%d 127.0.0.1:%s check inter 200 rise 1 fall 1"
		        " on-marked-down shutdown-sessions%s\n",
		        i, to, i == 1 && !spread ? " backup" : "");
		free(to);
	}
	fclose(file);
}

static bool answers(void *arg)
{
	return PQping(((haproxy *)arg)->url) == PQPING_OK;
}

haproxy *haproxy_start(const char *first_url, const char *second_url, bool spread)
{
	haproxy *h = calloc(1, sizeof(*h));
	int port = support_free_port();
	if (!h)
		abort();
	snprintf(h->configuration, sizeof(h->configuration), "/tmp/tether-haproxy.%d.%d", (int)getpid(),
	         port);
	write_configuration(h, (const char *const[]){first_url, second_url}, spread, port);
	char *user = option(first_url, "user"), *password = option(first_url, "password"),
	     *database = option(first_url, "dbname");
	snprintf(h->url, sizeof(h->url), "postgresql://%s:%s@127.0.0.1:%d/%s", user, password, port,
	         database);
	free(user);
	free(password);
	free(database);
	h->process = process_start((const char *const[]){program, "-db", "-f", h->configuration, NULL}, NULL);
	if (!h->process || !eventually(answers, h, 10000)) {
		char *said = h->process ? process_output(h->process) : NULL;
		fprintf(stderr, "haproxy: %s\n", said ? said : "cannot be started");
		abort();
	}
	return h;
}

const char *haproxy_url(const haproxy *h)
{
	return h->url;
}

void haproxy_stop(haproxy *h)
{
	if (!h)
		return;
	process_stop(h->process);
	unlink(h->configuration);
	free(h);
}
