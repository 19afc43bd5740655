/*
 * The configuration file.
 *
 * An input is one. It is taken or refused as a whole, and likewise when it is read again; and what has been taken is
 * within the bounds that each setting has.
 */
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "complain.h"
#include "config.h"
#include "fuzz.h"
#include "parse.h"
#include "setting.h"

static config_action read_it(config *c, int file, const char *question)
{
	char path[48], *argv[] = {(char[]){"albumd"}, path, strdup(question), NULL};
	HOLDS(argv[2]);
	snprintf(path, sizeof(path), "--config=/proc/self/fd/%d", file);
	config_action action = config_read(c, 3, argv);
	free(argv[2]);
	return action;
}

static void check_bounds(const config *c)
{
	for (const setting *s = settings; s < settings + SETTINGS; s++) {
		uint64_t value = 0;
		if (s->most > 0)
			memcpy(&value, (const char *)c + s->offset, sizeof(value));
		HOLDS(s->most == 0 || (value >= s->least && value <= s->most));
	}
	HOLDS(parse_is_address(c->listen) && (!c->admin_listen || parse_is_address(c->admin_listen)));
	HOLDS(c->log_level <= LOG_OFF && c->log_format <= LOG_JSON);
}

static void is_other(const char *name, bool reloaded)
{
	(void)name, (void)reloaded;
	HOLDS(false && "read again it says something else");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static bool quiet;
	if (!quiet) {
		complain_in_log();
		log_set_level(LOG_OFF);
		quiet = clearenv() == 0;
	}
	config first, again;
	int file = memfd_create("albumd.conf", MFD_CLOEXEC);
	HOLDS(file >= 0 && write(file, data, size) == (ssize_t)size);
	config_action action = read_it(&first, file, "--check-config");
	HOLDS(action == CONFIG_CHECK || action == CONFIG_WRONG);
	HOLDS(action == CONFIG_WRONG || size == 0 || !memchr(data, '\0', size));
	HOLDS(read_it(&again, file, "--check-config") == action);
	if (action == CONFIG_CHECK) {
		check_bounds(&first);
		/* The strings are another's. */
		first.file = again.file = NULL;
		config_compare(&first, &again, is_other);
	}
	close(file);
	return 0;
}
