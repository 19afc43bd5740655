#include "complain.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>

#include "log.h"

static atomic_bool in_log;

void complain_in_log(void)
{
	atomic_store(&in_log, true);
}

void complain(const char *format, ...)
{
	char complaint[1024];
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(complaint, sizeof(complaint), format, arguments);
	va_end(arguments);
	if (!atomic_load(&in_log)) {
		fprintf(stderr, "albumd: %s\n", complaint);
	} else if (log_enabled(LOG_ERROR)) {
		log_line line;
		log_begin(&line, LOG_ERROR, complaint);
		log_end(&line);
	}
}
