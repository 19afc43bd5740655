/*
 * HTTP/1.1: a request's fields, as libmicrohttpd has them, and whether they were sent as fields must be.
 */
#include <string.h>

#include "h1_priv.h"

/* MHD's list of fields, walked. */
struct fields {
	http_request *request;
	size_t most;    /* bytes of a head */
	const char *at; /* where in memory the next one should begin */
	bool scattered; /* and one did not */
	unsigned count;
	bool out_of_memory;
	bool good;
};

/*
 * Before its release 1.0 MHD takes bare LFs, folded lines, stray spaces and NULs, and does not tell: a line
 * comes out as its name and value. But both are still where they were read, in one piece of memory, in which
 * MHD has put NULs for the colon and for the line's end. So a line that was more than name, colon, optional
 * white space, value, CR and LF is one whose successor is not where it should be.
 *
 * What cannot be told is what a NUL was before. "\0\n" passes for a line's end; and as MHD takes for the empty
 * line one that begins with a NUL or a colon, so do "\0\n" and ":\n" for the end of the head, or "\n\0\r\n" and
 * "\n:\r\n" for its last four bytes. No one in front of us who is strict passes any of these on.
 *
 * Of what stood between two chunks, or in a trailer, nothing is left to be seen. But it can do harm only where
 * another request follows, begun by us elsewhere than by a stricter reader in front: so behind a chunked body
 * none does, and the connection is closed.
 */
bool h1_is_lenient(void)
{
	return strncmp(MHD_get_version(), "0.", 2) == 0;
}

static void check_place(struct fields *fields, const char *name, size_t name_size, const char *value,
                        size_t value_size)
{
	const char *gap = name + name_size + 1;
	if (name != fields->at || !value || value < gap || value > gap + fields->most)
		fields->scattered = true;
	for (; !fields->scattered && gap < value; gap++)
		if (*gap != ' ' && *gap != '\t')
			fields->scattered = true;
	fields->at = value ? value + value_size + 2 : NULL;
}

static enum MHD_Result on_field(void *arg, enum MHD_ValueKind kind, const char *name, size_t name_size,
                                const char *value, size_t value_size)
{
	struct fields *fields = arg;
	(void)kind;
	fields->count++;
	fields->request->last_name = name;
	check_place(fields, name, name_size, value, value_size);
	while (value && value_size > 0 && (value[value_size - 1] == ' ' || value[value_size - 1] == '\t'))
		value_size--;
	fields->out_of_memory =
		!request_add_field(fields->request, name, name_size, value ? value : "", value_size);
	return fields->out_of_memory ? MHD_NO : MHD_YES;
}

/*
 * A trailer, or what MHD takes for one: before its release 1.0 it lists the head's last field again, if the first line
 * behind the body has come in pieces.
 */
static enum MHD_Result on_trailer(void *arg, enum MHD_ValueKind kind, const char *name, size_t name_size,
                                  const char *value, size_t value_size)
{
	struct fields *fields = arg;
	(void)kind;
	if (name == fields->request->last_name)
		return MHD_YES;
	if (fields->count++ == 0)
		fields->at = name; /* where the body ended nobody tells */
	check_place(fields, name, name_size, value, value_size);
	fields->good = fields->good && is_trailer(name, name_size, value ? value : "", value_size);
	return MHD_YES;
}

/* What MHD has left for the answer's head. */
static size_t room_for_answer(const http_request *request, size_t head_size)
{
	size_t pool = h1_pool_size(request->conn->worker->server), cookies = 0;
	int noted = MHD_get_connection_values_n(
		request->mhd, (enum MHD_ValueKind)(MHD_HEADER_KIND | MHD_COOKIE_KIND | MHD_GET_ARGUMENT_KIND),
		NULL, NULL);
	MHD_lookup_connection_value_n(request->mhd, MHD_HEADER_KIND, "Cookie", strlen("Cookie"), NULL,
	                              &cookies);
	size_t used = head_size + cookies + (size_t)noted * FIELD_COST;
	return used < pool ? pool - used : 0;
}

bool h1_copy_fields(http_request *request)
{
	struct fields fields = {.request = request};
	MHD_get_connection_values_n(request->mhd, MHD_HEADER_KIND, on_field, &fields);
	return !fields.out_of_memory;
}

/* MHD has put NULs for the last line's CR and LF and for those of the empty line, and the head ends there. */
static bool ends_emptily(const char *at, const char *end)
{
	return at + 2 == end && memcmp(at - 2, "\0\0\0", 4) == 0;
}

bool h1_take_fields(http_request *request, const char *method, const char *version)
{
	const char *target = method + strlen(method) + 1;
	const char *after_target = target + strlen(request->target) + 1;
	size_t most = h1_head_max(request->conn->worker->server);
	struct fields fields = {.request = request, .most = most, .at = version + strlen(version) + 2};
	fields.scattered = target != request->raw_target || version != after_target;
	MHD_get_connection_values_n(request->mhd, MHD_HEADER_KIND, on_field, &fields);
	const union MHD_ConnectionInfo *info =
		MHD_get_connection_info(request->mhd, MHD_CONNECTION_INFO_REQUEST_HEADER_SIZE);
	size_t size = info ? info->header_size : 0;
	if (strlen(request->target) > TARGET_MAX)
		request_refuse_and_close(request, 414, NULL);
	request->answer_room = room_for_answer(request, size);
	if (fields.count > FIELDS_MAX || size > most || request->answer_room < ANSWER_HEAD_LEAST)
		request_refuse_and_close(request, 431, NULL);
	if (h1_is_lenient() && (fields.scattered || !ends_emptily(fields.at, method + size)))
		request_refuse_and_close(request, 400, "The head is malformed.");
	return !fields.out_of_memory;
}

/* Fields behind a chunked body are held to what holds for a head's, and then dropped (RFC 9110, 6.5.1). */
bool h1_trailers_are_good(http_request *request)
{
	size_t most = h1_head_max(request->conn->worker->server);
	struct fields trailers = {.request = request, .most = most, .good = true};
	MHD_get_connection_values_n(request->mhd, MHD_FOOTER_KIND, on_trailer, &trailers);
	return trailers.good && trailers.count <= FIELDS_MAX && !(h1_is_lenient() && trailers.scattered);
}
