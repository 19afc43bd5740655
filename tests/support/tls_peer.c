#include "tls_peer.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <gnutls/x509.h>

#include "certificates.h"
#include "support.h"

enum { PATIENCE = 20 }; /* seconds until a read is taken for hanging */

struct tls_peer {
	int fd;
	gnutls_session_t session;
	gnutls_certificate_credentials_t credentials;
};

static void must(int result, const char *what)
{
	if (result >= 0)
		return;
	fprintf(stderr, "tls_peer: %s: %s\n", what, gnutls_strerror(result));
	abort();
}

static void set_alpn(tls_peer *p, const char *const names[])
{
	gnutls_datum_t protocols[4];
	unsigned count = 0;
	for (; names[count]; count++)
		protocols[count] = (gnutls_datum_t){(unsigned char *)(uintptr_t)names[count],
		                                    (unsigned)strlen(names[count])};
	if (count)
		must(gnutls_alpn_set_protocols(p->session, protocols, count, 0), "ALPN");
}

tls_peer *tls_peer_new(int fd, const tls_peer_options *options)
{
	const tls_peer_options none = {0};
	tls_peer *p = calloc(1, sizeof(*p));
	if (!p)
		abort();
	if (!options)
		options = &none;
	p->fd = fd;
	must(gnutls_init(&p->session, GNUTLS_CLIENT | GNUTLS_NO_SIGNAL), "session");
	must(gnutls_priority_set_direct(p->session, options->priorities ? options->priorities : "NORMAL",
	                                NULL),
	     "priorities");
	must(gnutls_certificate_allocate_credentials(&p->credentials), "credentials");
	must(gnutls_certificate_set_x509_trust_file(
		     p->credentials, options->ca ? options->ca : certificates_get()->ca, GNUTLS_X509_FMT_PEM),
	     "CA");
	if (options->certificate)
		must(gnutls_certificate_set_x509_key_file(p->credentials, options->certificate, options->key,
		                                          GNUTLS_X509_FMT_PEM),
		     "certificate");
	must(gnutls_credentials_set(p->session, GNUTLS_CRD_CERTIFICATE, p->credentials), "credentials");
	gnutls_session_set_verify_cert(p->session, "127.0.0.1", 0);
	set_alpn(p, options->alpn);
	if (options->resume)
		must(gnutls_session_set_data(p->session, options->resume->data, options->resume->size),
		     "resume");
	gnutls_transport_set_int(p->session, fd);
	/* GnuTLS sends the last of a handshake in two pieces: the second would wait for the first's acknowledgement. */
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
	return p;
}

int tls_peer_handshake(tls_peer *p)
{
	int64_t until = now_ms() + (int64_t)PATIENCE * 1000 * support_patience();
	int result;
	do {
		result = gnutls_handshake(p->session);
	} while (result < 0 && !gnutls_error_is_fatal(result) && now_ms() < until);
	return result;
}

static tls_peer *with_handshake(int fd, const tls_peer_options *options)
{
	tls_peer *p = tls_peer_new(fd, options);
	must(tls_peer_handshake(p), "handshake");
	return p;
}

tls_peer *tls_peer_connect(const http_peer_server *s, const tls_peer_options *options)
{
	return with_handshake(http_peer_connect(s), options);
}

tls_peer *tls_peer_connect_to(int port, const tls_peer_options *options)
{
	struct sockaddr_in in = {.sin_family = AF_INET,
	                         .sin_port = htons((uint16_t)port),
	                         .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	struct timeval patience = {.tv_sec = PATIENCE * support_patience()};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)) != 0 ||
	    connect(fd, (const struct sockaddr *)&in, sizeof(in)) != 0) {
		perror("tls_peer: connect");
		abort();
	}
	return with_handshake(fd, options);
}

gnutls_session_t tls_peer_session(const tls_peer *p)
{
	return p->session;
}

int tls_peer_fd(const tls_peer *p)
{
	return p->fd;
}

int tls_peer_serial(const tls_peer *p)
{
	unsigned count;
	unsigned char serial[32];
	size_t size = sizeof(serial);
	gnutls_x509_crt_t certificate;
	const gnutls_datum_t *der = gnutls_certificate_get_peers(p->session, &count);
	must(der ? gnutls_x509_crt_init(&certificate) : GNUTLS_E_NO_CERTIFICATE_FOUND, "certificate");
	must(gnutls_x509_crt_import(certificate, der, GNUTLS_X509_FMT_DER), "certificate");
	must(gnutls_x509_crt_get_serial(certificate, serial, &size), "serial");
	gnutls_x509_crt_deinit(certificate);
	return serial[size - 1];
}

bool tls_peer_send_bytes(tls_peer *p, const void *data, size_t size)
{
	for (const char *from = data; size > 0;) {
		ssize_t sent = gnutls_record_send(p->session, from, size);
		if (sent == GNUTLS_E_INTERRUPTED)
			continue;
		if (sent <= 0)
			return false;
		from += sent;
		size -= (size_t)sent;
	}
	return true;
}

bool tls_peer_send(tls_peer *p, const char *text)
{
	return tls_peer_send_bytes(p, text, strlen(text));
}

/* GNUTLS_E_AGAIN is what it says after a session ticket, too. */
ssize_t tls_peer_receive(tls_peer *p, void *data, size_t size)
{
	int64_t until = now_ms() + (int64_t)PATIENCE * 1000 * support_patience();
	ssize_t got;
	do {
		got = gnutls_record_recv(p->session, data, size);
	} while (got < 0 && !gnutls_error_is_fatal((int)got) && now_ms() < until);
	return got;
}

static ssize_t receive(void *arg, char *data, size_t size)
{
	return tls_peer_receive(arg, data, size);
}

http_peer_response tls_peer_read(tls_peer *p, bool to_head)
{
	return http_peer_read_from(receive, p, to_head);
}

enum tls_end tls_peer_end(tls_peer *p)
{
	char piece[4096];
	ssize_t got;
	while ((got = tls_peer_receive(p, piece, sizeof(piece))) > 0)
		;
	switch (got) {
	case 0:
		return TLS_CLOSE_NOTIFY;
	case GNUTLS_E_PREMATURE_TERMINATION:
		return TLS_TRUNCATED;
	case GNUTLS_E_PULL_ERROR:
		return TLS_RESET;
	case GNUTLS_E_AGAIN:
		return TLS_HANGS;
	default:
		fprintf(stderr, "tls_peer: ended with %s\n", gnutls_strerror((int)got));
		return TLS_OTHER;
	}
}

void tls_peer_bye(tls_peer *p)
{
	gnutls_bye(p->session, GNUTLS_SHUT_WR);
}

void tls_peer_cut(tls_peer *p)
{
	if (p)
		close(tls_peer_forget(p));
}

int tls_peer_forget(tls_peer *p)
{
	int fd = p->fd;
	gnutls_deinit(p->session);
	gnutls_certificate_free_credentials(p->credentials);
	free(p);
	return fd;
}

void tls_peer_close(tls_peer *p)
{
	if (p)
		tls_peer_bye(p);
	tls_peer_cut(p);
}

void tls_peer_reset(tls_peer *p)
{
	struct linger linger = {.l_onoff = 1};
	if (p)
		setsockopt(p->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
	tls_peer_cut(p);
}

void tls_peer_half_cut(tls_peer *p)
{
	shutdown(p->fd, SHUT_WR);
}

const tls_way tls_ways[TLS_WAYS] = {
	{"close_notify and FIN", tls_peer_close, false},
	{"FIN", tls_peer_cut, false},
	{"reset", tls_peer_reset, false},
	{"close_notify alone", tls_peer_bye, true},
	{"half a FIN", tls_peer_half_cut, true},
};
