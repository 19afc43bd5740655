#include "auth.h"

#include <string.h>
#include <strings.h>

#include "access.h"

/* In a time that depends on the length of what was sent alone: how much of it was right must not be measurable. */
static bool is_same(const char *sent, const char *token)
{
	size_t size = strlen(token), sent_size = strlen(sent);
	unsigned char difference = size != sent_size;
	for (size_t i = 0; i < sent_size; i++)
		difference |= (unsigned char)(sent[i] ^ token[i % size]);
	return !difference;
}

bool auth_bears(http_request *request, http_response *response, const char *token)
{
	const char *sent = http_header(request, "Authorization");
	if (!token[0])
		return true;
	bool bearer = sent && strncasecmp(sent, "Bearer ", 7) == 0;
	if (bearer && is_same(sent + 7 + strspn(sent + 7, " "), token))
		return true;
	access_failed(request, REASON_UNAUTHORIZED, NULL);
	http_response_problem(response, 401,
	                      bearer ? "The token is not the right one." : "A bearer token is needed.");
	http_response_header(response, "WWW-Authenticate",
	                     bearer ? "Bearer error=\"invalid_token\"" : "Bearer");
	return false;
}
