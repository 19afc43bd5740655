/*
 * TLS: certificates, and what a session may agree on. The sessions themselves are bridge.c's.
 *
 * A certificate, its key, the authorities for clients and the key of the session tickets are one generation.
 * A reload makes the next one; a session holds on to the one it began with. As the tickets' key changes too,
 * nobody resumes a session of an authority that is no longer trusted. Within a generation GnuTLS derives the
 * keys that encrypt the tickets from it anew every few hours.
 */
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>

#include <gnutls/x509.h>

#include "tls.h"

enum {
	FILE_MAX = 1 << 20,       /* bytes of a PEM file */
	HANDSHAKE_MAX = 32 << 10, /* bytes of one handshake message: a client's chain of certificates */
};

static const size_t fingerprint_size = 32; /* of a SHA-256 */

/*
 * TLS 1.3, and of 1.2 what has forward secrecy and authenticated encryption. Without finite-field groups: the
 * client chooses, and the largest would cost us a tenth of a second each.
 */
static const char priorities[] =
	"NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2:-KX-ALL:+ECDHE-ECDSA:+ECDHE-RSA:-CIPHER-ALL:+AES-128-GCM:"
	"+AES-256-GCM:+CHACHA20-POLY1305:-MAC-ALL:+AEAD:-SIGN-RSA-SHA1:-SIGN-ECDSA-SHA1:-GROUP-FFDHE2048:"
	"-GROUP-FFDHE3072:-GROUP-FFDHE4096:-GROUP-FFDHE6144:-GROUP-FFDHE8192:%SERVER_PRECEDENCE";

struct tls_keys {
	atomic_uint references;
	gnutls_certificate_credentials_t credentials;
	gnutls_datum_t ticket_key;
};

struct http_tls {
	atomic_uint references;
	char *certificate, *key, *client_ca; /* paths */
	bool client_optional;
	gnutls_priority_t priorities;
	pthread_mutex_t lock; /* guards keys */
	tls_keys *keys;
};

/* ---- Complaints -------------------------------------------------------------------------------------- */

typedef struct complaint {
	char *text;
	size_t size;
	int error; /* what errno will be */
} complaint;

/* Nothing so far. */
static complaint complaint_in(char *text, size_t size)
{
	if (size > 0)
		*text = '\0';
	return (complaint){.text = text, .size = size};
}

__attribute__((format(printf, 3, 4))) static void complain(complaint *c, int error, const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(c->text, c->size, format, arguments);
	va_end(arguments);
	c->error = error;
}

static void complain_of_memory(complaint *c)
{
	complain(c, ENOMEM, "out of memory");
}

/* What GnuTLS has to say of a file. */
static void complain_of(complaint *c, const char *what, const char *path, int error)
{
	if (error == GNUTLS_E_MEMORY_ERROR)
		complain_of_memory(c);
	else
		complain(c, EINVAL, "%s %s: %s", what, path, gnutls_strerror(error));
}

/* ---- Reading files ----------------------------------------------------------------------------------- */

static void forget(gnutls_datum_t *secret)
{
	if (secret->data)
		gnutls_memset(secret->data, 0, secret->size);
	gnutls_free(secret->data);
	*secret = (gnutls_datum_t){0};
}

static bool read_stream(FILE *file, gnutls_datum_t *text)
{
	struct stat about;
	if (fstat(fileno(file), &about) != 0)
		return false;
	if (S_ISDIR(about.st_mode)) {
		errno = EISDIR;
		return false;
	}
	text->data = gnutls_malloc(FILE_MAX + 1);
	if (!text->data)
		return false;
	text->size = (unsigned)fread(text->data, 1, FILE_MAX + 1, file);
	if (text->size > FILE_MAX)
		errno = EFBIG;
	return !ferror(file) && text->size <= FILE_MAX;
}

/* The caller gives it back with forget. */
static bool read_file(const char *what, const char *path, gnutls_datum_t *text, complaint *c)
{
	FILE *file = fopen(path, "re");
	bool whole = file && read_stream(file, text);
	int error = errno;
	if (file)
		fclose(file);
	if (!whole) {
		complain(c, error, "%s %s: %s", what, path, strerror(error));
		forget(text);
	}
	return whole;
}

/* ---- A generation ------------------------------------------------------------------------------------ */

static void keys_unref(tls_keys *keys)
{
	if (!keys || atomic_fetch_sub(&keys->references, 1) > 1)
		return;
	gnutls_certificate_free_credentials(keys->credentials);
	forget(&keys->ticket_key);
	free(keys);
}

/* GnuTLS would not say which of the two files it cannot make sense of. */
static bool is_certificate(const gnutls_datum_t *pem, int *error)
{
	gnutls_x509_crt_t *chain;
	unsigned count;
	*error = gnutls_x509_crt_list_import2(&chain, &count, pem, GNUTLS_X509_FMT_PEM, 0);
	if (*error < 0)
		return false;
	for (unsigned i = 0; i < count; i++)
		gnutls_x509_crt_deinit(chain[i]);
	gnutls_free(chain);
	return true;
}

static bool load_certificate(const http_tls *tls, tls_keys *keys, complaint *c)
{
	gnutls_datum_t certificate = {0}, key = {0};
	const char *key_path = tls->key ? tls->key : tls->certificate;
	bool loaded = false;
	int error;
	if (!read_file("certificate", tls->certificate, &certificate, c) ||
	    !read_file("key", key_path, &key, c))
		goto forget;
	if (!is_certificate(&certificate, &error)) {
		complain_of(c, "certificate", tls->certificate, error);
		goto forget;
	}
	error = gnutls_certificate_set_x509_key_mem2(keys->credentials, &certificate, &key,
	                                             GNUTLS_X509_FMT_PEM, NULL, 0);
	loaded = error >= 0;
	if (error == GNUTLS_E_CERTIFICATE_KEY_MISMATCH)
		complain(c, EINVAL, "key %s: is not the key of the certificate %s", key_path,
		         tls->certificate);
	else if (!loaded)
		complain_of(c, "key", key_path, error);
forget:
	forget(&certificate);
	forget(&key);
	return loaded;
}

/* In the handshake, when the client's certificate has come. */
static int verify_client(gnutls_session_t session)
{
	unsigned count = 0, status;
	gnutls_typed_vdata_st purpose = {.type = GNUTLS_DT_KEY_PURPOSE_OID,
	                                 .data = (unsigned char *)(uintptr_t)GNUTLS_KP_TLS_WWW_CLIENT};
	if (!gnutls_certificate_get_peers(session, &count) || count == 0)
		return 0; /* where it must have one, GnuTLS has refused it already */
	int error = gnutls_certificate_verify_peers(session, &purpose, 1, &status);
	return error < 0 || status != 0 ? GNUTLS_E_CERTIFICATE_ERROR : 0;
}

static bool load_client_ca(const http_tls *tls, tls_keys *keys, complaint *c)
{
	gnutls_datum_t pem = {0};
	if (!tls->client_ca)
		return true;
	if (!read_file("client CA", tls->client_ca, &pem, c))
		return false;
	int count = gnutls_certificate_set_x509_trust_mem(keys->credentials, &pem, GNUTLS_X509_FMT_PEM);
	forget(&pem);
	if (count < 0)
		complain_of(c, "client CA", tls->client_ca, count);
	else if (count == 0)
		complain(c, EINVAL, "client CA %s: has no certificate in it", tls->client_ca);
	gnutls_certificate_set_verify_function(keys->credentials, verify_client);
	return count > 0;
}

static tls_keys *load_keys(const http_tls *tls, complaint *c)
{
	tls_keys *keys = calloc(1, sizeof(*keys));
	if (!keys || gnutls_certificate_allocate_credentials(&keys->credentials) < 0) {
		free(keys);
		complain_of_memory(c);
		return NULL;
	}
	atomic_init(&keys->references, 1);
	if (load_certificate(tls, keys, c) && load_client_ca(tls, keys, c)) {
		if (gnutls_session_ticket_key_generate(&keys->ticket_key) >= 0)
			return keys;
		complain_of_memory(c);
	}
	keys_unref(keys);
	return NULL;
}

static tls_keys *current_keys(http_tls *tls)
{
	pthread_mutex_lock(&tls->lock);
	tls_keys *keys = tls->keys;
	atomic_fetch_add(&keys->references, 1);
	pthread_mutex_unlock(&tls->lock);
	return keys;
}

/* ---- The public side --------------------------------------------------------------------------------- */

/* A copy, if there is something to copy. False: out of memory. */
static bool copy_path(char **copy, const char *path)
{
	*copy = path ? strdup(path) : NULL;
	return *copy || !path;
}

static bool configure(http_tls *tls, const http_tls_options *options, complaint *c)
{
	tls->client_optional = options->client_optional;
	if (!options->certificate) {
		complain(c, EINVAL, "no certificate");
	} else if (!copy_path(&tls->certificate, options->certificate) ||
	           !copy_path(&tls->key, options->key) || !copy_path(&tls->client_ca, options->client_ca) ||
	           gnutls_priority_init(&tls->priorities, priorities, NULL) < 0) {
		complain_of_memory(c);
	} else {
		tls->keys = load_keys(tls, c);
	}
	return tls->keys;
}

http_tls *http_tls_new(const http_tls_options *options, char *error, size_t error_size)
{
	complaint c = complaint_in(error, error_size);
	http_tls *tls = calloc(1, sizeof(*tls));
	if (!tls) {
		complain_of_memory(&c);
		return NULL;
	}
	atomic_init(&tls->references, 1);
	pthread_mutex_init(&tls->lock, NULL);
	if (configure(tls, options, &c))
		return tls;
	http_tls_free(tls);
	errno = c.error;
	return NULL;
}

int http_tls_reload(http_tls *tls, char *error, size_t error_size)
{
	complaint c = complaint_in(error, error_size);
	tls_keys *keys = load_keys(tls, &c);
	if (!keys) {
		errno = c.error;
		return -1;
	}
	pthread_mutex_lock(&tls->lock);
	tls_keys *before = tls->keys;
	tls->keys = keys;
	pthread_mutex_unlock(&tls->lock);
	keys_unref(before);
	return 0;
}

http_tls *tls_ref(http_tls *tls)
{
	atomic_fetch_add(&tls->references, 1);
	return tls;
}

void http_tls_free(http_tls *tls)
{
	if (!tls || atomic_fetch_sub(&tls->references, 1) > 1)
		return;
	keys_unref(tls->keys);
	if (tls->priorities)
		gnutls_priority_deinit(tls->priorities);
	pthread_mutex_destroy(&tls->lock);
	free(tls->certificate);
	free(tls->key);
	free(tls->client_ca);
	free(tls);
}

/* ---- Sessions ---------------------------------------------------------------------------------------- */

static bool set_up(const http_tls *tls, const tls_keys *keys, gnutls_session_t session)
{
	static const gnutls_datum_t protocols[] = {{(unsigned char *)(uintptr_t) "h2", 2},
	                                           {(unsigned char *)(uintptr_t) "http/1.1", 8}};
	const unsigned count = sizeof(protocols) / sizeof(*protocols);
	if (tls->client_ca)
		gnutls_certificate_server_set_request(session, tls->client_optional ? GNUTLS_CERT_REQUEST
		                                                                    : GNUTLS_CERT_REQUIRE);
	gnutls_handshake_set_max_packet_length(session, HANDSHAKE_MAX);
	return gnutls_priority_set(session, tls->priorities) >= 0 &&
	       gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, keys->credentials) >= 0 &&
	       gnutls_session_ticket_enable_server(session, &keys->ticket_key) >= 0 &&
	       gnutls_alpn_set_protocols(session, protocols, count,
	                                 GNUTLS_ALPN_MANDATORY | GNUTLS_ALPN_SERVER_PRECEDENCE) >= 0;
}

bool tls_session_new(http_tls *tls, int fd, gnutls_session_t *session, tls_keys **keys)
{
	gnutls_session_t made;
	if (gnutls_init(&made, GNUTLS_SERVER | GNUTLS_NONBLOCK | GNUTLS_NO_SIGNAL) < 0)
		return false;
	tls_keys *current = current_keys(tls);
	if (!set_up(tls, current, made)) {
		tls_session_free(made, current);
		return false;
	}
	gnutls_transport_set_int(made, fd);
	*session = made;
	*keys = current;
	return true;
}

void tls_session_free(gnutls_session_t session, tls_keys *keys)
{
	gnutls_deinit(session);
	keys_unref(keys);
}

enum http_version tls_version(gnutls_session_t session)
{
	gnutls_datum_t chosen;
	bool is_h2 = gnutls_alpn_get_selected_protocol(session, &chosen) >= 0 && chosen.size == 2 &&
	             memcmp(chosen.data, "h2", 2) == 0;
	return is_h2 ? HTTP_2 : HTTP_1_1;
}

/* ---- Who the client is ------------------------------------------------------------------------------- */

/* All of it in one piece of memory: the struct, the subject, the fingerprint's digits, the certificate. */
static http_client_certificate *describe(const gnutls_datum_t *der, const gnutls_datum_t *subject,
                                         const unsigned char *fingerprint)
{
	http_client_certificate *made =
		malloc(sizeof(*made) + subject->size + 1 + 2 * fingerprint_size + 1 + der->size);
	if (!made)
		return NULL;
	char *name = (char *)(made + 1), *digits = name + subject->size + 1;
	if (subject->size > 0)
		memcpy(name, subject->data, subject->size);
	name[subject->size] = '\0';
	for (size_t i = 0; i < fingerprint_size; i++)
		snprintf(digits + 2 * i, 3, "%02x", fingerprint[i]);
	void *copy = memcpy(digits + 2 * fingerprint_size + 1, der->data, der->size);
	*made = (http_client_certificate){
		.subject = name, .fingerprint = digits, .der = copy, .der_size = der->size};
	return made;
}

/* False: out of memory. */
static bool subject_of(gnutls_x509_crt_t certificate, gnutls_datum_t *subject)
{
	int error = gnutls_x509_crt_get_dn3(certificate, subject, 0);
	return error >= 0 || error == GNUTLS_E_REQUESTED_DATA_NOT_AVAILABLE; /* it names itself otherwise */
}

bool tls_client_certificate(gnutls_session_t session, http_client_certificate **made)
{
	unsigned count = 0;
	const gnutls_datum_t *der = gnutls_certificate_get_peers(session, &count);
	gnutls_x509_crt_t certificate;
	gnutls_datum_t subject = {0};
	unsigned char fingerprint[32];
	size_t size = sizeof(fingerprint);
	*made = NULL;
	if (!der || count == 0)
		return true;
	if (gnutls_x509_crt_init(&certificate) < 0)
		return false;
	if (gnutls_x509_crt_import(certificate, der, GNUTLS_X509_FMT_DER) >= 0 &&
	    subject_of(certificate, &subject) &&
	    gnutls_x509_crt_get_fingerprint(certificate, GNUTLS_DIG_SHA256, fingerprint, &size) >= 0)
		*made = describe(der, &subject, fingerprint);
	gnutls_free(subject.data);
	gnutls_x509_crt_deinit(certificate);
	return *made;
}
