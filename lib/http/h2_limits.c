/*
 * What a client may cost us over HTTP/2: in time, and for nothing.
 *
 * A stream has the times of an HTTP/1.1 request: for its head, for its body, for the client to take the answer. What
 * is different is that the client can hold an answer up not only by its socket (see pace.c) but by its flow-control
 * windows. A stream whose own window is shut must let go of its answer at the pace that a socket must keep; while
 * the connection's is shut, all answers together must, for what one gets of it is not the client's choice alone.
 *
 * And a client can keep us busy at little cost to itself: it resets requests as soon as they have begun
 * (CVE-2023-44487), or has us reset them by breaking the rules within its streams (CVE-2025-8671); it sends
 * frames that carry nothing (CVE-2019-9512, -9515, -9518, CVE-2024-27316), or opens the window byte by byte
 * (CVE-2019-9511). Of both there is a budget that refills with time and with honest work. Past it the
 * connection ends with ENHANCE_YOUR_CALM, which cancels all that it has begun.
 */
#include <string.h>

#include "h2_priv.h"

enum {
	RESETS = 2 * STREAMS_MAX, /* a page that is left, twice */
	RESETS_PER_SECOND = 20,
	OVERHEADS = 500, /* fewer than nghttp2 would let wait: it ends without a word */
	OVERHEADS_PER_SECOND = 200,
	PROGRESS_WORTH = 2, /* frames of the client's that our DATA, or an answer's end, may bring about */
};

/* ---- Budgets ----------------------------------------------------------------------------------------- */

static void budget_init(budget *b, int most, unsigned per_second, uint64_t now)
{
	*b = (budget){.left = most * 1000LL, .most = most * 1000LL, .per_second = per_second, .at_ms = now};
}

static void budget_earn(budget *b, int64_t count)
{
	b->left += count * 1000;
	if (b->left > b->most)
		b->left = b->most;
}

static void spend(h2 *h, budget *b)
{
	uint64_t now = h2_now(h);
	b->left += (int64_t)(now - b->at_ms) * b->per_second;
	b->at_ms = now;
	budget_earn(b, 0);
	b->left -= 1000;
	if (b->left < 0)
		h2_terminate(h, NGHTTP2_ENHANCE_YOUR_CALM);
}

void h2_limits_init(h2 *h)
{
	uint64_t now = h2_now(h);
	budget_init(&h->resets, RESETS, RESETS_PER_SECOND, now);
	budget_init(&h->overheads, OVERHEADS, OVERHEADS_PER_SECOND, now);
}

void h2_limit_frame(h2 *h, const nghttp2_frame_hd *frame)
{
	bool begins = frame->type == NGHTTP2_HEADERS && frame->stream_id > h->newest;
	if (begins)
		h->newest = frame->stream_id;
	else if (frame->type != NGHTTP2_DATA)
		spend(h, &h->overheads);
}

void h2_limit_data(h2 *h, const nghttp2_frame *frame)
{
	if (frame->hd.length == frame->data.padlen && !(frame->hd.flags & NGHTTP2_FLAG_END_STREAM))
		spend(h, &h->overheads);
}

void h2_limit_progress(h2 *h)
{
	budget_earn(&h->overheads, PROGRESS_WORTH);
}

void h2_limit_end(h2 *h, bool finished)
{
	if (!finished) {
		spend(h, &h->resets);
		return;
	}
	budget_earn(&h->resets, 1);
	budget_earn(&h->overheads, PROGRESS_WORTH);
}

/* ---- Times ------------------------------------------------------------------------------------------- */

/* Bytes of the answer that are there to be sent. */
static uint64_t left_of(const h2_stream *s)
{
	const http_response *response = &s->request->response;
	return s->answered ? response->body_size - response->pulled : 0;
}

static bool all_are_shut(const h2 *h)
{
	return nghttp2_session_get_remote_window_size(h->session) <= 0;
}

/*
 * A stretch goes on while there is something to send, whichever window is shut at this moment: or a client could shut
 * them in turns.
 */
static bool client_keeps_pace(h2 *h, uint64_t now)
{
	uint64_t left = 0;
	for (const h2_stream *s = h->streams; s; s = s->next)
		left += left_of(s);
	if (left == 0 || h->waiting)
		pace_restart(&h->pace);
	return pace_is_kept(&h->pace, h->conn->worker->server, h->sent, all_are_shut(h) ? left : 0, now);
}

static bool stream_keeps_pace(h2_stream *s, uint64_t now)
{
	const h2 *h = s->h2;
	bool shut = nghttp2_session_get_stream_remote_window_size(h->session, s->id) <= 0;
	if (h->waiting || all_are_shut(h))
		pace_restart(&s->pace);
	return pace_is_kept(&s->pace, h->conn->worker->server, s->sent, shut ? left_of(s) : 0, now);
}

/* Whatever it is that holds this one up, the client is too slow with it. */
static void look_at_answer(h2_stream *s, bool client_is_slow, uint64_t now)
{
	bool slow = !stream_keeps_pace(s, now) || client_is_slow;
	if (slow && left_of(s) > 0 && !s->h2->waiting) {
		pace_restart(&s->pace); /* not again at the next tick */
		h2_stream_reset(s, NGHTTP2_CANCEL);
	}
}

/* Whether it is for the client to send some of a streamed body, not for the handler to read it or ask for it. */
static bool may_send_body(const h2_stream *s)
{
	return body_waiting(s->request) == 0 && (s->continued || !http_header(s->request, "expect"));
}

static void look_at(h2_stream *s, bool client_is_slow, uint64_t now)
{
	const http_server_options *options = &s->h2->conn->worker->server->options;
	uint64_t lasted = now - s->since_ms;
	if (!s->request->begun) {
		/* Nothing else can come in between a head's frames: all of the connection stands still. */
		if (lasted >= (uint64_t)(options->header_timeout / CTX_MILLISECOND))
			h2_terminate(s->h2, NGHTTP2_ENHANCE_YOUR_CALM);
	} else if (s->receiving && !s->answered) {
		if (s->streaming && !may_send_body(s))
			s->since_ms = now;
		else if (lasted >= (uint64_t)(options->body_timeout / CTX_MILLISECOND))
			h2_stream_late(s);
	} else if (s->answered) {
		look_at_answer(s, client_is_slow, now);
	}
}

/* Resets the oldest so many, unless they have ended by themselves. */
static void stop_uploads(h2 *h, size_t count)
{
	for (size_t i = 0; i < count; i++)
		if (nghttp2_session_find_stream(h->session, h->uploads[i]))
			h->dead |= nghttp2_submit_rst_stream(h->session, NGHTTP2_FLAG_NONE, h->uploads[i],
			                                     NGHTTP2_NO_ERROR) != 0;
	if (count > 0)
		h2_touch(h);
	h->upload_count -= count;
	memmove(h->uploads, h->uploads + count, h->upload_count * sizeof(*h->uploads));
}

void h2_limit_upload(h2 *h, int32_t id)
{
	if (h->upload_count == UPLOADS_MAX) {
		stop_uploads(h, 1);
		h->upload_old -= h->upload_old > 0;
	}
	h->uploads[h->upload_count++] = id;
}

void h2_limit_times(h2 *h, uint64_t now)
{
	stop_uploads(h, h->upload_old);
	h->upload_old = h->upload_count; /* to be reset at the next tick */
	bool client_is_slow = !client_keeps_pace(h, now);
	for (h2_stream *s = h->streams; s; s = s->next)
		look_at(s, client_is_slow, now);
}
