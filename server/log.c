#include "log.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "json.h"

const char *const log_level_names[] = {"debug", "info", "warn", "error", "off", NULL};
const char *const log_format_names[] = {"text", "json", NULL};

/* ---- The writer -------------------------------------------------------------------------------------
 *
 * Two buffers: lines are appended to one under the mutex while the thread writes the other out. After a write
 * the thread lets lines gather for a few milliseconds before it looks again, so that a busy server pays for a
 * wake-up and a write(2) some hundred times a second rather than once a line; a quiet one's line goes out at once.
 */

enum { BUFFER_SIZE = 1 << 20, GATHER_NS = 5000000, CLOSE_MS = 1000, FIELD_SIZE = 1024 };

static struct {
	pthread_mutex_t mutex;
	pthread_cond_t appended;
	pthread_t thread;
	char *filling, *writing;
	size_t filled;
	bool open, idle, closing; /* idle: the thread waits for a line, and has to be woken for it */
	uint64_t dropped, dropped_told;
} writer = {.mutex = PTHREAD_MUTEX_INITIALIZER};

/* The messages of late, by their address, and how often each came. */
enum { MESSAGES = 16, WINDOW_S = 10, WINDOW_MOST = 5 };

static struct repetition {
	const char *message; /* NULL: free */
	log_level level;
	time_t since;
	uint64_t count, untold;
} repetitions[MESSAGES];
static pthread_mutex_t repetitions_mutex = PTHREAD_MUTEX_INITIALIZER;

static void tell_repetitions(bool closing);

static atomic_int level_now = LOG_INFO;
static log_format format_now = LOG_TEXT;

/* Hands everything to the kernel; while closing only as long as somebody takes it. */
static void write_out(const char *data, size_t size, bool closing)
{
	while (size) {
		struct pollfd stderr_poll = {.fd = STDERR_FILENO, .events = POLLOUT};
		if (closing && poll(&stderr_poll, 1, CLOSE_MS) == 0)
			return;
		/* A pipe that polls writable takes this much without blocking. */
		ssize_t written = write(STDERR_FILENO, data, closing && size > 4096 ? 4096 : size);
		if (written < 0 && errno == EAGAIN)
			poll(&stderr_poll, 1, CLOSE_MS);
		else if (written < 0 && errno != EINTR)
			return;
		if (written > 0) {
			data += written;
			size -= (size_t)written;
		}
	}
}

static void gather_locked(void)
{
	struct timespec until;
	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_nsec += GATHER_NS;
	if (until.tv_nsec >= 1000000000) {
		until.tv_nsec -= 1000000000;
		until.tv_sec++;
	}
	while (!writer.closing && pthread_cond_timedwait(&writer.appended, &writer.mutex, &until) == 0)
		;
}

static void *writer_run(void *arg)
{
	(void)arg;
	pthread_mutex_lock(&writer.mutex);
	for (;;) {
		while (!writer.filled && !writer.closing) {
			writer.idle = true;
			pthread_cond_wait(&writer.appended, &writer.mutex);
		}
		writer.idle = false;
		if (!writer.filled)
			break;
		char *data = writer.filling;
		size_t size = writer.filled;
		bool closing = writer.closing;
		uint64_t dropped = writer.dropped - writer.dropped_told;
		writer.dropped_told = writer.dropped;
		writer.filling = writer.writing;
		writer.writing = data;
		writer.filled = 0;
		pthread_mutex_unlock(&writer.mutex);
		write_out(data, size, closing);
		if (dropped) {
			char count[32];
			snprintf(count, sizeof(count), "%llu", (unsigned long long)dropped);
			log_message(LOG_WARN, "log lines dropped: stderr was not read fast enough", "lines",
			            count);
		}
		tell_repetitions(false);
		pthread_mutex_lock(&writer.mutex);
		gather_locked();
	}
	pthread_mutex_unlock(&writer.mutex);
	return NULL;
}

static void append(const char *data, size_t size)
{
	pthread_mutex_lock(&writer.mutex);
	bool wake = writer.idle;
	if (!writer.open) {
		write_out(data, size, false);
	} else if (size > BUFFER_SIZE - writer.filled) {
		writer.dropped++;
	} else {
		memcpy(writer.filling + writer.filled, data, size);
		writer.filled += size;
		writer.idle = false;
	}
	pthread_mutex_unlock(&writer.mutex);
	if (wake)
		pthread_cond_signal(&writer.appended);
}

bool log_open(log_level level, log_format format)
{
	atomic_store(&level_now, level);
	format_now = format;
	writer.filling = malloc(BUFFER_SIZE);
	writer.writing = malloc(BUFFER_SIZE);
	pthread_condattr_t attributes;
	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(&writer.appended, &attributes);
	pthread_condattr_destroy(&attributes);
	writer.open = writer.filling && writer.writing &&
	              pthread_create(&writer.thread, NULL, writer_run, NULL) == 0;
	return writer.open;
}

void log_close(void)
{
	tell_repetitions(true);
	pthread_mutex_lock(&writer.mutex);
	bool open = writer.open;
	writer.closing = true;
	pthread_mutex_unlock(&writer.mutex);
	if (open) {
		pthread_cond_signal(&writer.appended);
		pthread_join(writer.thread, NULL);
	}
	/* From here on, and there should be nothing more, lines go out directly. */
	pthread_mutex_lock(&writer.mutex);
	writer.open = false;
	pthread_mutex_unlock(&writer.mutex);
	free(writer.filling);
	free(writer.writing);
	writer.filling = writer.writing = NULL;
}

uint64_t log_dropped(void)
{
	pthread_mutex_lock(&writer.mutex);
	uint64_t dropped = writer.dropped;
	pthread_mutex_unlock(&writer.mutex);
	return dropped;
}

void log_set_level(log_level level)
{
	atomic_store(&level_now, level);
}

bool log_enabled(log_level level)
{
	return (int)level >= atomic_load_explicit(&level_now, memory_order_relaxed);
}

log_format log_format_now(void)
{
	return format_now;
}

/* ---- Lines ------------------------------------------------------------------------------------------ */

/* "2025-11-22T21:40:03.123Z" for machines, "21:40:03.123" on the reader's own clock for people. */
static void write_time(text *t)
{
	static _Thread_local struct {
		time_t second;
		char text[24];
	} last;
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	if (now.tv_sec != last.second) {
		struct tm tm;
		if (format_now == LOG_JSON)
			strftime(last.text, sizeof(last.text), "%Y-%m-%dT%H:%M:%S",
			         gmtime_r(&now.tv_sec, &tm));
		else
			strftime(last.text, sizeof(last.text), "%H:%M:%S", localtime_r(&now.tv_sec, &tm));
		last.second = now.tv_sec;
	}
	int ms = (int)(now.tv_nsec / 1000000);
	text_string(t, last.text);
	text_append(t,
	            (char[]){'.', (char)('0' + ms / 100), (char)('0' + ms / 10 % 10), (char)('0' + ms % 10)},
	            4);
}

/* A value as text for people: as it is where that is one plain word, else as a JSON string. */
static void write_value(text *t, const char *value, bool bare)
{
	size_t size = strnlen(value, FIELD_SIZE);
	bool plain = size > 0;
	for (size_t i = 0; i < size && plain; i++) {
		unsigned char c = (unsigned char)value[i];
		plain = c > ' ' && c < 0x7F && c != '"' && c != '\\' && c != '=';
	}
	if (plain && bare)
		text_append(t, value, size);
	else
		json_write_string(t, value, size);
}

/* A message may hold spaces; anything that needs escaping has it quoted. */
static void write_message(text *t, const char *message)
{
	size_t size = strnlen(message, FIELD_SIZE);
	for (size_t i = 0; i < size; i++) {
		if ((unsigned char)message[i] < ' ' || (unsigned char)message[i] >= 0x7F) {
			json_write_string(t, message, size);
			return;
		}
	}
	text_append(t, message, size);
}

void log_begin(log_line *line, log_level level, const char *message)
{
	static const char *const padded[] = {"debug ", "info  ", "warn  ", "error "};
	text *t = &line->text;
	*t = TEXT_IN(line->buffer);
	if (format_now == LOG_JSON) {
		text_string(t, "{\"time\":\"");
		write_time(t);
		text_string(t, "Z\",\"level\":\"");
		text_string(t, log_level_names[level]);
		text_string(t, "\",\"msg\":");
		json_write_string(t, message, strnlen(message, FIELD_SIZE));
	} else {
		write_time(t);
		text_char(t, ' ');
		text_string(t, padded[level]);
		write_message(t, message);
	}
}

static void write_name(text *t, const char *name)
{
	text_string(t, format_now == LOG_JSON ? ",\"" : " ");
	text_string(t, name);
	text_string(t, format_now == LOG_JSON ? "\":" : "=");
}

void log_field(log_line *line, const char *name, const char *value)
{
	write_name(&line->text, name);
	write_value(&line->text, value, format_now == LOG_TEXT);
}

void log_field_int(log_line *line, const char *name, int64_t value)
{
	write_name(&line->text, name);
	text_int(&line->text, value);
}

void log_field_bool(log_line *line, const char *name, bool value)
{
	write_name(&line->text, name);
	text_string(&line->text, value ? "true" : "false");
}

void log_field_ms(log_line *line, const char *name, int64_t ns)
{
	text *t = &line->text;
	text_string(t, format_now == LOG_JSON ? ",\"" : " ");
	text_string(t, name);
	text_string(t, format_now == LOG_JSON ? "_ms\":" : "=");
	text_fixed3(t, ns, 1000000);
	if (format_now == LOG_TEXT)
		text_string(t, "ms");
}

void log_end(log_line *line)
{
	if (format_now == LOG_JSON)
		text_char(&line->text, '}');
	text_char(&line->text, '\n');
	/* Out of memory: a line cut in two would be worse than none. */
	if (!line->text.failed)
		append(line->text.data, line->text.size);
	text_free(&line->text);
}

/* ---- Repetition -------------------------------------------------------------------------------------- */

static time_t seconds_now(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec;
}

/* How often those were not written whose ten seconds are over; all, if closing. */
static void tell_repetitions(bool closing)
{
	time_t now = seconds_now();
	for (struct repetition *r = repetitions; r < repetitions + MESSAGES; r++) {
		pthread_mutex_lock(&repetitions_mutex);
		uint64_t untold = closing || now - r->since >= WINDOW_S ? r->untold : 0;
		const char *message = r->message;
		log_level level = r->level;
		r->untold -= untold;
		pthread_mutex_unlock(&repetitions_mutex);
		if (!untold || !log_enabled(level))
			continue;
		log_line line;
		log_begin(&line, level, message);
		log_field_int(&line, "repeated", (int64_t)untold);
		log_end(&line);
	}
}

/* The message's, or one that may be used for it; NULL: all tell of others. */
static struct repetition *repetition_of_locked(const char *message, time_t now)
{
	struct repetition *spare = NULL;
	for (struct repetition *r = repetitions; r < repetitions + MESSAGES; r++) {
		if (r->message == message)
			return r;
		if (!r->message || (!r->untold && now - r->since >= WINDOW_S))
			spare = r;
	}
	return spare;
}

/* Counts it. Whether it is to be written. */
static bool is_news(log_level level, const char *message)
{
	time_t now = seconds_now();
	pthread_mutex_lock(&repetitions_mutex);
	struct repetition *r = repetition_of_locked(message, now);
	if (r && (r->message != message || now - r->since >= WINDOW_S))
		*r = (struct repetition){message, level, now, 0, r->message == message ? r->untold : 0};
	bool news = !r || r->count++ < WINDOW_MOST;
	if (!news)
		r->untold++;
	pthread_mutex_unlock(&repetitions_mutex);
	return news;
}

void log_message(log_level level, const char *message, const char *name, const char *value)
{
	if (!log_enabled(level) || !is_news(level, message))
		return;
	log_line line;
	log_begin(&line, level, message);
	if (name)
		log_field(&line, name, value);
	log_end(&line);
}
