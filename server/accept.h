/*
 * accept.h — content negotiation (RFC 9110, 12.5.1).
 */
#ifndef ALBUMD_ACCEPT_H
#define ALBUMD_ACCEPT_H

#include <stdbool.h>
#include <stddef.h>

/*
 * Which of the media types, "text/csv", an Accept field asks for most: its index; the first of those it asks for
 * equally; -1 if for none of them. A NULL field asks for anything.
 */
int accept_best(const char *field, const char *const types[], int count);

/*
 * The next element of a comma-separated list, without the blanks around it; NULL at the end. For fields in which no
 * quoted string holds a comma.
 */
const char *list_next(const char **list, size_t *size);

/* Whether an element is that word, whatever its case. */
bool list_is(const char *element, size_t size, const char *word);

#endif
