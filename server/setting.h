/*
 * setting.h — the table of albumd's settings, from which parsing, help and messages are made.
 */
#ifndef ALBUMD_SETTING_H
#define ALBUMD_SETTING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "config.h"

enum {
	SETTING_RELOADED = 1, /* may change while albumd serves */
	SETTING_SECRET = 2,   /* may hold a password: not to be printed as it is */
};

typedef struct setting setting;
struct setting {
	const char *name; /* --name; the environment variable is the same in capitals */
	const char *value, *help;
	size_t offset; /* into config */
	/* Reads a value into the config: NULL, or what it should have been. */
	const char *(*read)(const setting *s, const char *value, void *field);
	const char *fallback; /* the default, as one would write it; NULL: computed */
	uint64_t least, most;
	const char *const *names; /* of an enum */
	int flags;
};

enum { SETTINGS = 38 };
extern const setting settings[SETTINGS];

/* The setting of that name; NULL: there is none. */
const setting *setting_find(const char *name, size_t length);

/* Whether two configs have the same for it. */
bool setting_is_same(const setting *s, const config *before, const config *after);

/* A copy that lasts as long as the process, one for all equal texts. NULL: out of memory. */
const char *setting_keep(const char *value);

#endif
