/*
 * Certificates made on the spot, with ECDSA keys, in a directory that is gone when the process is. No key that
 * anybody has ever seen is in use anywhere.
 */
#ifndef TESTS_CERTIFICATES_H
#define TESTS_CERTIFICATES_H

#include <stdbool.h>

typedef struct certificates {
	const char *dir;
	char ca[128], other_ca[128];           /* two authorities that know nothing of each other */
	char server[128], server_key[128];     /* for localhost and 127.0.0.1, by ca */
	char renewed[128], renewed_key[128];   /* the same name, another serial number and key */
	char client[128], client_key[128];     /* CN=alice,O=Example, for TLS clients, by ca */
	char stranger[128], stranger_key[128]; /* CN=mallory, for TLS clients, by other_ca */
} certificates;

/* Makes them on the first call in a process, and the same again later. Aborts on failure. */
const certificates *certificates_get(void);

/* Replaces a file's content by another's, at once, as those who renew certificates do. Aborts on failure. */
void certificates_replace(const char *path, const char *by);

#endif
