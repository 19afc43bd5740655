/*
 * JSON Schema 2020-12, as much of it as an OpenAPI document of ours uses. A keyword that is not known here is a fault
 * of the schema, so that nothing passes for not having been looked at.
 */
#ifndef TESTS_SCHEMA_H
#define TESTS_SCHEMA_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

/* Follows "$ref": "#/…" within the document. Aborts the test if it leads nowhere. Borrowed. */
json_t *schema_resolve(json_t *document, json_t *node);

/* Whether value is as the schema says; if not, fault tells what is wrong, and where in the value. */
bool schema_accepts(json_t *document, json_t *schema, const json_t *value, char *fault, size_t fault_size);

#endif
