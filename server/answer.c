#include "answer.h"

#include <string.h>

#include "access.h"
#include "json.h"
#include "reason.h"

void answer(http_response *response, int status, const char *content_type, const text *body)
{
	if (body->failed)
		http_response_problem(response, 500, NULL);
	else
		http_response_body(response, status, content_type, body->data, body->size);
}

void answer_failed(http_request *request, http_response *response, const pg_error *error)
{
	reason why = error ? reason_of_error(error) : REASON_ERROR;
	const reason_answer *told = &reason_answers[why];
	access_failed(request, why, error);
	if (why == REASON_CLIENT_DISCONNECT)
		return;
	http_response_problem(response, told->status, told->detail);
	if (told->retry)
		http_response_header(response, "Retry-After", "1");
}

static void write_string(text *t, const char *string)
{
	json_write_string(t, string, strlen(string));
}

void answer_invalid(http_response *response, const answer_fault *faults, size_t count)
{
	char buffer[1024];
	text_auto body = TEXT_IN(buffer);
	text_string(&body, "{\"type\":\"about:blank\",\"title\":\"Unprocessable "
	                   "Content\",\"status\":422,\"detail\":");
	char sentence_buffer[512];
	text_auto sentence = TEXT_IN(sentence_buffer);
	for (size_t i = 0; i < count; i++)
		text_format(&sentence, "%s%s %s", i ? "; " : "", faults[i].field, faults[i].fault);
	json_write_string(&body, sentence.data, sentence.size);
	text_string(&body, ",\"errors\":[");
	for (size_t i = 0; i < count; i++) {
		text_string(&body, i ? ",{\"field\":" : "{\"field\":");
		write_string(&body, faults[i].field);
		text_string(&body, ",\"reason\":");
		write_string(&body, faults[i].fault);
		text_char(&body, '}');
	}
	text_string(&body, "]}");
	if (body.failed || sentence.failed)
		http_response_problem(response, 500, NULL);
	else
		http_response_body(response, 422, "application/problem+json", body.data, body.size);
}
