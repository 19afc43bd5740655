#include "live_json.h"

#include <inttypes.h>
#include <string.h>

#include "json.h"

/* ---- Values ------------------------------------------------------------------------------------------- */

static void write_string(text *t, const char *name, const char *value)
{
	text_format(t, "\"%s\":", name);
	json_write_string(t, value, strlen(value));
	text_char(t, ',');
}

/* A time of ctx_now(); 0 is none. */
static void write_time(text *t, const live_snapshot *s, const char *name, int64_t ns)
{
	if (ns)
		text_format(t, "\"%s\":%" PRId64 ",", name, (ns + s->wall) / CTX_MILLISECOND);
	else
		text_format(t, "\"%s\":null,", name);
}

static void write_duration(text *t, const char *name, int64_t ns)
{
	text_format(t, "\"%s\":", name);
	text_fixed3(t, ns, CTX_MILLISECOND);
	text_char(t, ',');
}

static void write_count(text *t, const char *name, uint64_t n)
{
	text_format(t, "\"%s\":%" PRIu64 ",", name, n);
}

static void write_bool(text *t, const char *name, bool value)
{
	text_format(t, "\"%s\":%s,", name, value ? "true" : "false");
}

/* Every member above ends with a comma; the last one's becomes what closes the object or array, and a comma. */
static void close_with(text *t, char c)
{
	if (t->size && t->data[t->size - 1] == ',')
		t->size--;
	text_char(t, c);
	text_char(t, ',');
}

static void open_array(text *t, const char *name)
{
	text_format(t, "\"%s\":[", name);
}

static void end_members(text *t)
{
	if (t->size && t->data[t->size - 1] == ',')
		t->size--;
}

/* ---- The tree ----------------------------------------------------------------------------------------- */

static void write_query(text *t, const live_snapshot *s, const live_view *v)
{
	if (v->stage < LIVE_QUEUED) {
		text_string(t, "\"query\":null,");
		return;
	}
	text_string(t, "\"query\":{");
	write_string(t, "stage", live_stage_names[v->stage]);
	write_string(t, "sql", v->sql);
	write_time(t, s, "since", v->query.since);
	write_time(t, s, "deadline", v->query.deadline);
	if (v->query.backend)
		write_count(t, "backend", (uint64_t)v->query.backend);
	else
		text_string(t, "\"backend\":null,");
	close_with(t, '}');
}

static void write_request(text *t, const live_snapshot *s, const live_view *v)
{
	text_char(t, '{');
	write_count(t, "id", v->id);
	write_string(t, "method", v->method);
	write_string(t, "target", v->target);
	write_string(t, "stage", live_stage_names[v->stage]);
	write_bool(t, "over", v->over);
	write_time(t, s, "since", v->since);
	write_time(t, s, "deadline", v->deadline);
	write_query(t, s, v);
	close_with(t, '}');
}

/* A socket in the file system has nameless peers: each request counts as on a connection of its own. */
static bool share_connection(const live_view *a, const live_view *b)
{
	return strcmp(a->peer, b->peer) == 0 && strcmp(a->peer, "unix") != 0;
}

static void write_connection(text *t, const live_snapshot *s, size_t first, bool done[])
{
	text_char(t, '{');
	write_string(t, "peer", s->views[first].peer);
	open_array(t, "requests");
	for (size_t i = first; i < s->view_count; i++) {
		if (done[i] || (i > first && !share_connection(&s->views[first], &s->views[i])))
			continue;
		done[i] = true;
		write_request(t, s, &s->views[i]);
	}
	close_with(t, ']');
	close_with(t, '}');
}

void live_write_connections(text *t, const live_snapshot *s)
{
	bool done[LIVE_VIEWS] = {false};
	open_array(t, "connections");
	for (size_t i = 0; i < s->view_count; i++) {
		if (!done[i])
			write_connection(t, s, i, done);
	}
	close_with(t, ']');
	write_count(t, "more", s->more);
	end_members(t);
}

/* ---- What was cancelled ------------------------------------------------------------------------------- */

static void write_cancellation(text *t, const live_snapshot *s, const live_cancellation *c)
{
	text_char(t, '{');
	write_count(t, "number", c->number);
	write_count(t, "id", c->id);
	write_time(t, s, "at", c->at);
	write_string(t, "method", c->method);
	write_string(t, "target", c->target);
	write_string(t, "peer", c->peer);
	write_string(t, "reason", reason_answers[c->why].name);
	write_string(t, "struck", live_stage_names[c->struck]);
	write_count(t, "status", (uint64_t)c->status);
	write_duration(t, "duration", c->duration);
	write_string(t, "sql", c->sql);
	if (c->stop >= 0)
		write_duration(t, "stop", c->stop);
	else
		text_string(t, "\"stop\":null,");
	write_count(t, "cancels", c->cancels);
	if (c->in_flight)
		write_string(t, "connection", c->kept ? "kept" : "closed");
	else
		text_string(t, "\"connection\":null,");
	close_with(t, '}');
}

void live_write_cancellations(text *t, const live_snapshot *s)
{
	open_array(t, "cancellations");
	for (size_t i = 0; i < s->cancellation_count; i++)
		write_cancellation(t, s, &s->cancellations[i]);
	close_with(t, ']');
	end_members(t);
}

/* ---- The pool and the server -------------------------------------------------------------------------- */

void live_write_samples(text *t, const live_snapshot *s)
{
	open_array(t, "samples");
	for (size_t i = 0; i < s->sample_count; i++) {
		const live_sample *one = &s->samples[i];
		text_char(t, '{');
		write_time(t, s, "at", one->at);
		write_count(t, "size", one->size);
		write_count(t, "idle", one->idle);
		write_count(t, "busy", one->busy);
		write_count(t, "ending", one->ending);
		write_count(t, "connecting", one->connecting);
		write_count(t, "waiting", one->waiting);
		close_with(t, '}');
	}
	close_with(t, ']');
	end_members(t);
}

void live_write_server(text *t, const live_snapshot *s, const char *listens_on)
{
	const live_sample *last = &s->samples[s->sample_count - 1];
	text_string(t, "\"server\":{");
	write_string(t, "version", TETHER_VERSION);
	write_string(t, "listen", listens_on);
	write_time(t, s, "now", last->at);
	write_bool(t, "draining", last->draining);
	write_count(t, "connections", last->connections);
	write_count(t, "requests", last->requests);
	write_count(t, "requests_total", last->requests_total);
	write_count(t, "disconnects_total", last->disconnects_total);
	write_count(t, "cancels_total", last->cancels);
	write_count(t, "connections_kept_total", last->kept);
	write_count(t, "connections_closed_total", last->closed);
	close_with(t, '}');
	end_members(t);
}
