#include "certificates.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <gnutls/gnutls.h>
#include <gnutls/x509.h>

enum { DAY = 86400 };

static certificates made;
static char dir[] = "/tmp/tether-certificates.XXXXXX";
static pid_t maker;

/* An authority, or one who has been vouched for. */
typedef struct holder {
	gnutls_x509_crt_t certificate;
	gnutls_x509_privkey_t key;
} holder;

static void must(int result, const char *what)
{
	if (result >= 0)
		return;
	fprintf(stderr, "certificates: %s: %s\n", what, gnutls_strerror(result));
	abort();
}

static void write_file(const char *path, const gnutls_datum_t *text)
{
	FILE *file = fopen(path, "w");
	if (!file || fwrite(text->data, 1, text->size, file) != text->size || fclose(file) != 0) {
		perror(path);
		abort();
	}
}

static holder new_holder(const char *name, unsigned serial)
{
	holder h;
	unsigned char number[] = {1, (unsigned char)serial};
	const char *error;
	must(gnutls_x509_privkey_init(&h.key), "key");
	must(gnutls_x509_privkey_generate(h.key, GNUTLS_PK_ECDSA,
	                                  GNUTLS_CURVE_TO_BITS(GNUTLS_ECC_CURVE_SECP256R1), 0),
	     "key");
	must(gnutls_x509_crt_init(&h.certificate), "certificate");
	must(gnutls_x509_crt_set_version(h.certificate, 3), "version");
	must(gnutls_x509_crt_set_dn(h.certificate, name, &error), "name");
	must(gnutls_x509_crt_set_serial(h.certificate, number, sizeof(number)), "serial");
	must(gnutls_x509_crt_set_activation_time(h.certificate, time(NULL) - DAY), "time");
	must(gnutls_x509_crt_set_expiration_time(h.certificate, time(NULL) + DAY), "time");
	must(gnutls_x509_crt_set_key(h.certificate, h.key), "key");
	return h;
}

static void sign(const holder *h, const holder *by)
{
	must(gnutls_x509_crt_sign2(h->certificate, by->certificate, by->key, GNUTLS_DIG_SHA256, 0), "sign");
}

static void write_certificate(const holder *h, const char *name, char path[128])
{
	gnutls_datum_t text;
	snprintf(path, 128, "%s/%s.pem", dir, name);
	must(gnutls_x509_crt_export2(h->certificate, GNUTLS_X509_FMT_PEM, &text), "export");
	write_file(path, &text);
	gnutls_free(text.data);
}

static void write_key(const holder *h, const char *name, char path[128])
{
	gnutls_datum_t text;
	snprintf(path, 128, "%s/%s.key", dir, name);
	must(gnutls_x509_privkey_export2_pkcs8(h->key, GNUTLS_X509_FMT_PEM, NULL, GNUTLS_PKCS_PLAIN, &text),
	     "export");
	write_file(path, &text);
	gnutls_free(text.data);
}

static void forget(holder *h)
{
	gnutls_x509_crt_deinit(h->certificate);
	gnutls_x509_privkey_deinit(h->key);
}

static holder make_authority(const char *dn, const char *name, char path[128])
{
	holder h = new_holder(dn, 1);
	must(gnutls_x509_crt_set_basic_constraints(h.certificate, 1, -1), "constraints");
	must(gnutls_x509_crt_set_key_usage(h.certificate, GNUTLS_KEY_KEY_CERT_SIGN | GNUTLS_KEY_CRL_SIGN),
	     "usage");
	sign(&h, &h);
	write_certificate(&h, name, path);
	return h;
}

static void make_server(const holder *authority, const char *name, unsigned serial, char path[128],
                        char key_path[128])
{
	const unsigned char loopback[4] = {127, 0, 0, 1};
	holder h = new_holder("CN=localhost", serial);
	must(gnutls_x509_crt_set_subject_alt_name(h.certificate, GNUTLS_SAN_DNSNAME, "localhost", 9, 0),
	     "name");
	must(gnutls_x509_crt_set_subject_alt_name(h.certificate, GNUTLS_SAN_IPADDRESS, loopback,
	                                          sizeof(loopback), GNUTLS_FSAN_APPEND),
	     "name");
	must(gnutls_x509_crt_set_key_purpose_oid(h.certificate, GNUTLS_KP_TLS_WWW_SERVER, 0), "purpose");
	sign(&h, authority);
	write_certificate(&h, name, path);
	write_key(&h, name, key_path);
	forget(&h);
}

static void make_client(const holder *authority, const char *dn, const char *name, char path[128],
                        char key_path[128])
{
	holder h = new_holder(dn, 7);
	must(gnutls_x509_crt_set_key_purpose_oid(h.certificate, GNUTLS_KP_TLS_WWW_CLIENT, 0), "purpose");
	sign(&h, authority);
	write_certificate(&h, name, path);
	write_key(&h, name, key_path);
	forget(&h);
}

/* A forked child that ends has not made them. */
static void remove_all(void)
{
	const char *const paths[] = {made.ca,       made.other_ca,    made.server, made.server_key,
	                             made.renewed,  made.renewed_key, made.client, made.client_key,
	                             made.stranger, made.stranger_key};
	if (getpid() != maker)
		return;
	for (size_t i = 0; i < sizeof(paths) / sizeof(*paths); i++)
		unlink(paths[i]);
	rmdir(dir);
}

const certificates *certificates_get(void)
{
	if (maker == getpid())
		return &made;
	strcpy(strrchr(dir, '.'), ".XXXXXX");
	if (!mkdtemp(dir)) {
		perror(dir);
		abort();
	}
	maker = getpid();
	made.dir = dir;
	holder authority = make_authority("CN=Example CA", "ca", made.ca);
	holder other = make_authority("CN=Other CA", "other-ca", made.other_ca);
	make_server(&authority, "server", 2, made.server, made.server_key);
	make_server(&authority, "renewed", 3, made.renewed, made.renewed_key);
	make_client(&authority, "CN=alice,O=Example", "client", made.client, made.client_key);
	make_client(&other, "CN=mallory", "stranger", made.stranger, made.stranger_key);
	forget(&authority);
	forget(&other);
	atexit(remove_all);
	return &made;
}

void certificates_replace(const char *path, const char *by)
{
	char next[160];
	gnutls_datum_t text;
	must(gnutls_load_file(by, &text), by);
	snprintf(next, sizeof(next), "%s.next", path);
	write_file(next, &text);
	gnutls_free(text.data);
	if (rename(next, path) != 0) {
		perror(path);
		abort();
	}
}
