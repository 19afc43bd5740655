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
	char dir[64], configuration[96];
	int port;
	process *process;
};

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
	fprintf(file,
	        "daemon off; master_process off; worker_processes 1; pid %s/pid; error_log stderr;\n"
	        "events { worker_connections 256; }\n"
	        "http {\n"
	        "\taccess_log off;\n"
	        "\tclient_body_temp_path %s/body; proxy_temp_path %s/proxy; fastcgi_temp_path %s/fastcgi;\n"
	        "\tuwsgi_temp_path %s/uwsgi; scgi_temp_path %s/scgi;\n"
	        "\tupstream albums { server 127.0.0.1:%d; keepalive 8; }\n"
	        "\tserver {\n"
	        "\t\tlisten 127.0.0.1:%d;\n"
	        "\t\tlocation / {\n"
	        "\t\t\tproxy_pass %s://albums;\n"
	        "\t\t\tproxy_http_version 1.1;\n"
	        "\t\t\tproxy_set_header Connection \"\";\n"
	        "\t\t\tproxy_read_timeout 120s;\n"
	        "\t\t\tproxy_ignore_client_abort %s;\n",
	        p->dir, p->dir, p->dir, p->dir, p->dir, p->dir, o->server_port, p->port,
	        o->ca ? "https" : "http", o->keeps_going ? "on" : "off");
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
	        "global\n\tmaxconn 256\n\tnbthread 1\n"
	        "defaults\n\tmode http\n\ttimeout connect 10s\n\ttimeout client 120s\n\ttimeout server 120s\n"
	        "\t%soption abortonclose\n\thttp-reuse always\n"
	        "frontend clients\n\tbind 127.0.0.1:%d\n\tdefault_backend albums\n"
	        "backend albums\n\tserver albumd 127.0.0.1:%d",
	        o->keeps_going ? "no " : "", p->port, o->server_port);
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
	rmdir(p->dir);
	free(p);
}
