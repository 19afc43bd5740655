/*
 * log.h — the program's log, on stderr: one event a line, text for people or JSON for machines.
 *
 * Writing a line never waits for who reads it: a thread of the log's own hands lines to the kernel. Should
 * the reader be so slow that a megabyte is waiting, lines are dropped, and the log says how many.
 *
 *	log_line line;
 *	log_begin(&line, LOG_WARN, "database is not reachable");
 *	log_field(&line, "error", error.message);
 *	log_end(&line);
 */
#ifndef ALBUMD_LOG_H
#define ALBUMD_LOG_H

#include <stdbool.h>
#include <stdint.h>

#include "text.h"

typedef enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR, LOG_OFF } log_level;
typedef enum log_format { LOG_TEXT, LOG_JSON } log_format;

/* The names of levels and formats, in the order of the enums, NULL at the end. */
extern const char *const log_level_names[];
extern const char *const log_format_names[];

/* Starts the log's thread. Before any other thread is there. false: it could not be started. */
bool log_open(log_level level, log_format format);

/* Writes out what there is, for a second at most if nobody reads it, and ends the thread. */
void log_close(void);

/* What is logged from now on. Any thread. */
void log_set_level(log_level level);

bool log_enabled(log_level level);
log_format log_format_now(void);

/* Lines dropped since the start because nobody read them. */
uint64_t log_dropped(void);

/*
 * A line under construction, on the stack of whoever writes it. All strings may hold anything: what could
 * break a line or fake another is escaped, and each is cut at 1 KiB.
 */
typedef struct log_line {
	text text;
	char buffer[512];
} log_line;

void log_begin(log_line *line, log_level level, const char *message);
void log_field(log_line *line, const char *name, const char *value);
void log_field_int(log_line *line, const char *name, int64_t value);
void log_field_bool(log_line *line, const char *name, bool value);
void log_field_ms(log_line *line, const char *name, int64_t ns); /* milliseconds with three decimals */
void log_end(log_line *line);

/*
 * A line that is only a message, a string constant, and maybe one field; name may be NULL. What says the same again
 * and again is written a few times in ten seconds, and then how often it was not.
 */
void log_message(log_level level, const char *message, const char *name, const char *value);

#endif
