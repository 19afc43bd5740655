/*
 * etag.h — entity tags and the conditions that requests make of them (RFC 9110, 8.8.3 and 13).
 *
 * An album's tag is its row's xmin, the number of the transaction that wrote this version: PostgreSQL keeps it
 * anyway, every change changes it, and a statement can ask for it in the very moment it changes the row.
 */
#ifndef ALBUMD_ETAG_H
#define ALBUMD_ETAG_H

#include <stdbool.h>

#include "handler.h"
#include "text.h"

enum { ETAG_SIZE = 24 };

/* The tag of a version in one of its representations, quotes included: "742", "742-csv". */
void etag_write(char etag[ETAG_SIZE], const char *version, media as);

/* Whether a condition is "*": any version. */
bool etag_is_any(const char *field);

/* Whether an If-None-Match field names the tag, or any: the weak comparison. */
bool etag_is_among(const char *field, const char *etag);

/*
 * The versions that an If-Match or If-None-Match field names, as a PostgreSQL array, "{742,743}": by the strong
 * comparison, to which weak tags equal nothing, or the weak one. What can be no album's is left out.
 */
void etag_versions(const char *field, bool strong, text *array);

#endif
