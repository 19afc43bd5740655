#include "proxy.h"

#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "process.h"
#include "support.h"

struct proxy {
	char dir[64], configuration[96], log[96]; /* nginx logs into a file, HAProxy to its standard output */
	int port;
	process *process;
	bool is_nginx, is_lenient, speaks_http2;
};

/* What each line of their logs begins with that proxy_passed_on reads. */
static const char mark[] = "passed-on ";

/* Debian keeps both out of an ordinary user's PATH. */
static const char *program_of(proxy_program program)
{
	static const char *const places[2][3] = {
		{"/usr/sbin/nginx", "/usr/bin/nginx", "/usr/local/bin/nginx"},
		{"/usr/sbin/haproxy", "/usr/bin/haproxy", "/usr/local/sbin/haproxy"}};
	for (int i = 0; i < 3; i++)
		if (access(places[program][i], X_OK) == 0)
			return places[program][i];
	return NULL;
}

bool proxy_is_there(proxy_program program)
{
	return program_of(program);
}

/* One process, which is the worker, too: it is nobody's but ours. */
static void configure_nginx(const proxy *p, const proxy_options *o, FILE *file)
{
	char access[128] = "off";
	if (o->logs)
		snprintf(access, sizeof(access), "%s passed_on", p->log);
	fprintf(file,
	        "daemon off; master_process off; worker_processes 1; pid %s/pid; error_log stderr;\n"
	        "events { worker_connections 2048; }\n"
	        "http {\n"
	        "\tlog_format passed_on '%s$upstream_addr $upstream_status $request_method $request_uri "
	        "$request_body';\n"
	        "\taccess_log %s;\n"
	        "\tclient_body_temp_path %s/body; proxy_temp_path %s/proxy; fastcgi_temp_path %s/fastcgi;\n"
	        "\tuwsgi_temp_path %s/uwsgi; scgi_temp_path %s/scgi;\n"
	        "\tupstream albums { server 127.0.0.1:%d; keepalive 8; }\n"
	        "\tproxy_next_upstream off;\n",
	        p->dir, mark, access, p->dir, p->dir, p->dir, p->dir, p->dir, o->server_port);
	if (o->logs)
		fprintf(file, "\tclient_header_timeout 1s; client_body_timeout 1s; keepalive_timeout 1s;\n"
		              "\tlingering_time 1s; lingering_timeout 1s;\n");
	if (o->lenient)
		fprintf(file, "\tignore_invalid_headers off; underscores_in_headers on; merge_slashes off;\n"
		              "\tproxy_request_buffering off;\n");
	fprintf(file,
	        "\tserver {\n"
	        "\t\tlisten 127.0.0.1:%d;\n"
	        "\t\tlocation / {\n"
	        "\t\t\tproxy_pass %s://albums;\n"
	        "\t\t\tproxy_http_version 1.1;\n"
	        "\t\t\tproxy_set_header Connection \"\";\n"
	        "\t\t\tproxy_read_timeout 120s;\n"
	        "\t\t\tproxy_ignore_client_abort %s;\n",
	        p->port, o->ca ? "https" : "http", o->keeps_going ? "on" : "off");
	if (o->ca)
		fprintf(file,
		        "\t\t\tproxy_ssl_trusted_certificate %s; proxy_ssl_verify on; proxy_ssl_name "
		        "localhost;\n",
		        o->ca);
	fprintf(file, "\t\t}\n\t}\n}\n");
}

static void configure_haproxy(const proxy *p, const proxy_options *o, FILE *file)
{
	fprintf(file,
	        "global\n\tmaxconn 2048\n\tnbthread 1\n"
	        "defaults\n\tmode http\n\ttimeout connect 10s\n\ttimeout client 120s\n\ttimeout server 120s\n"
	        "\t%soption abortonclose\n\thttp-reuse always\n",
	        o->keeps_going ? "no " : "");
	if (o->logs)
		fprintf(file, "\ttimeout client 1s\n\ttimeout http-request 1s\n\ttimeout http-keep-alive 1s\n"
		              "\tretries 0\n");
	if (o->lenient)
		fprintf(file, "\toption accept-invalid-http-request\n");
	fprintf(file, "frontend clients\n\tbind 127.0.0.1:%d\n\tdefault_backend albums\n", p->port);
	if (o->logs)
		fprintf(file,
		        "\tlog stdout format raw local0\n"
		        "\tlog-format \"%s%%s %%ST %%HM %%HU %%[var(txn.body)]\"\n",
		        mark);
	if (o->logs && !o->lenient)
		fprintf(file,
		        "\toption http-buffer-request\n\thttp-request set-var(txn.body) req.body,hex\n");
	fprintf(file, "backend albums\n\tserver albumd 127.0.0.1:%d", o->server_port);
	if (o->ca)
		fprintf(file, " ssl verify required ca-file %s verifyhost localhost", o->ca);
	if (o->ca && o->http2)
		fprintf(file, " alpn h2");
	else if (o->http2)
		fprintf(file, " proto h2");
	fprintf(file, "\n");
}

static bool listens(void *arg)
{
	struct sockaddr_in in = {.sin_family = AF_INET,
	                         .sin_port = htons((uint16_t)((proxy *)arg)->port),
	                         .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	bool connected = fd >= 0 && connect(fd, (struct sockaddr *)&in, sizeof(in)) == 0;
	if (fd >= 0)
		close(fd);
	return connected;
}

proxy *proxy_start(const proxy_options *options)
{
	const char *program = program_of(options->program);
	proxy *p = calloc(1, sizeof(*p));
	if (!p || !program)
		abort();
	snprintf(p->dir, sizeof(p->dir), "/tmp/tether-proxy.XXXXXX");
	if (!mkdtemp(p->dir))
		abort();
	snprintf(p->configuration, sizeof(p->configuration), "%s/configuration", p->dir);
	snprintf(p->log, sizeof(p->log), "%s/log", p->dir);
	p->is_nginx = options->program == PROXY_NGINX;
	p->is_lenient = options->lenient;
	p->speaks_http2 = options->http2;
	p->port = support_free_port();
	FILE *file = fopen(p->configuration, "w");
	if (!file)
		abort();
	(options->program == PROXY_NGINX ? configure_nginx : configure_haproxy)(p, options, file);
	fclose(file);
	const char *const nginx[] = {program, "-p", p->dir, "-c", p->configuration, NULL};
	const char *const haproxy[] = {program, "-db", "-f", p->configuration, NULL};
	p->process = process_start(options->program == PROXY_NGINX ? nginx : haproxy, NULL);
	if (!p->process || !eventually(listens, p, 10000)) {
		char *said = p->process ? process_output(p->process) : NULL;
		fprintf(stderr, "%s: %s\n", program, said ? said : "cannot be started");
		abort();
	}
	return p;
}

int proxy_port(const proxy *p)
{
	return p->port;
}

/* ---- What it has passed on ---------------------------------------------------------------------------- */

/* As a string that the caller frees. */
static char *log_of(const proxy *p)
{
	char *said = NULL;
	size_t size = 0;
	FILE *file = p->is_nginx ? fopen(p->log, "r") : NULL;
	if (!p->is_nginx)
		return process_output(p->process);
	if (!file || (getdelim(&said, &size, '\0', file) < 0 && !said))
		said = strdup("");
	if (file)
		fclose(file);
	return said;
}

/* "\x0D" becomes the byte in place, and where digits are all there is, as in HAProxy's bodies, "0D". */
static void decode(char *text, const char *escape)
{
	size_t skip = strlen(escape);
	unsigned byte;
	char *to = text;
	while (*text) {
		if (strncmp(text, escape, skip) == 0 && sscanf(text + skip, "%2x", &byte) == 1) {
			*to++ = (char)byte;
			text += skip + 2;
		} else {
			*to++ = *text++;
		}
	}
	*to = '\0';
}

/* "http://h/a" becomes "/a", what is no path nothing: over HTTP/2 the rest is not in the path. */
static void leave_path(char *target)
{
	char *path = strstr(target, "://");
	path = path ? strchr(path + 3, '/') : *target == '/' || *target == '*' ? target : NULL;
	memmove(target, path ? path : "", path ? strlen(path) + 1 : 1);
}

/* Takes a line apart. False: it is not about a request that was passed on, or that is all it says. */
static bool read_line(const proxy *p, const char *line, proxy_request *made)
{
	char server[64], status[8];
	int body;
	*made = (proxy_request){0};
	if (strncmp(line, mark, sizeof(mark) - 1) != 0 ||
	    sscanf(line + sizeof(mark) - 1, "%63s %7s %ms %ms%n", server, status, &made->method,
	           &made->target, &body) != 4 ||
	    strchr("-<", *server)) {
		free(made->method);
		free(made->target);
		return false;
	}
	made->status = atoi(status);
	decode(made->target, p->is_nginx ? "\\x" : "#");
	if (p->speaks_http2)
		leave_path(made->target);
	const char *told = line + sizeof(mark) - 1 + body;
	told += strspn(told, " ");
	if (!p->is_lenient) {
		made->body = strdup(strcmp(told, "-") == 0 ? "" : told);
		if (!made->body)
			abort();
		decode(made->body, p->is_nginx ? "\\x" : "");
	}
	return true;
}

proxy_request *proxy_passed_on(const proxy *p, size_t *count)
{
	char *log = log_of(p), *rest = log, *line;
	proxy_request *requests = NULL;
	*count = 0;
	while (log && (line = strsep(&rest, "\n"))) {
		requests = realloc(requests, (*count + 1) * sizeof(*requests));
		if (!requests)
			abort();
		*count += read_line(p, line, &requests[*count]);
	}
	free(log);
	return requests;
}

void proxy_requests_free(proxy_request *requests, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		free(requests[i].method);
		free(requests[i].target);
		free(requests[i].body);
	}
	free(requests);
}

void proxy_stop(proxy *p)
{
	const char *const directories[] = {"body", "proxy", "fastcgi", "uwsgi", "scgi"};
	char path[96];
	if (!p)
		return;
	process_stop(p->process);
	for (size_t i = 0; i < sizeof(directories) / sizeof(*directories); i++) {
		snprintf(path, sizeof(path), "%s/%s", p->dir, directories[i]);
		rmdir(path);
	}
	snprintf(path, sizeof(path), "%s/pid", p->dir);
	unlink(path);
	unlink(p->configuration);
	unlink(p->log);
	rmdir(p->dir);
	free(p);
}
