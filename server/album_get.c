/* GET /albums/{id}. The hot path: one statement, one short answer. */
#include "album.h"
#include "answer.h"
#include "etag.h"
#include "handler.h"

void get_album(const albums *a, http_request *request, http_response *response)
{
	const char *id = path_id(request, response);
	media as = id ? negotiate(request, response) : MEDIA_NONE;
	if (as == MEDIA_NONE)
		return;
	ctx_auto *query_ctx = query_context(a, request, response);
	if (!query_ctx)
		return;
	pg_rows_auto *row = pg_query_row(
		query_ctx, a->pool, "SELECT " ALBUM_COLUMNS ", " ALBUM_VERSION " FROM album WHERE id = $1",
		PG_PARAMS(id));
	if (pg_rows_error(row)) {
		answer_failed(request, response, pg_rows_error(row));
		return;
	}
	char etag[ETAG_SIZE];
	etag_write(etag, pg_rows_text(row, ALBUM_XMIN), as);
	http_response_header(response, "ETag", etag);
	const char *known = http_header(request, "If-None-Match");
	if (known && etag_is_among(known, etag)) {
		http_response_status(response, 304);
		return;
	}
	char buffer[1024];
	text_auto body = TEXT_IN(buffer);
	if (as == MEDIA_CSV)
		text_string(&body, ALBUM_CSV_HEAD);
	album_write(&body, row, as);
	answer(response, 200, media_types[as], &body);
}
