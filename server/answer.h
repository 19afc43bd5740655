/*
 * answer.h — the answers that handlers have in common.
 */
#ifndef ALBUMD_ANSWER_H
#define ALBUMD_ANSWER_H

#include <tether/http.h>
#include <tether/pg.h>

#include "text.h"

/* The whole answer. A body that memory ran out for becomes a 500. */
void answer(http_response *response, int status, const char *content_type, const text *body);

/* A query failed: answers as reason.h has it, and tells the request's record. NULL: out of memory. */
void answer_failed(http_request *request, http_response *response, const pg_error *error);

/* One field of a request's body that is not acceptable, and why, in words that follow the field's name. */
typedef struct answer_fault {
	const char *field, *fault;
} answer_fault;

/* 422, naming each field that is at fault. */
void answer_invalid(http_response *response, const answer_fault *faults, size_t count);

#endif
