/*
 * parse.h — reading the values that people write: durations, counts, addresses, prices.
 *
 * Each is given the whole text of a value and wants all of it; on failure *value is left alone.
 */
#ifndef ALBUMD_PARSE_H
#define ALBUMD_PARSE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* "250ms", "5s", "1.5s", "1m30s" in nanoseconds: Go's durations without a sign. "0" is one, "5" is not. */
bool parse_duration(const char *text, int64_t *ns);

/* A whole number in decimal digits alone, at most `most`. */
bool parse_uint(const char *text, uint64_t most, uint64_t *value);

/* "on", "true", "yes", "1", or their opposites. */
bool parse_bool(const char *text, bool *value);

/* Whether text has the form of an address to listen on: host:port, [v6]:port, :port or unix:/path. */
bool parse_is_address(const char *text);

/*
 * The amount that a JSON number spells, to the cent and exactly: "5.699e1" is written to price as "56.99".
 * NULL if it fits; else why not, in words that follow the field's name.
 */
#define PRICE_SIZE sizeof("99999999.99")
const char *parse_price(const char *number, size_t size, char price[PRICE_SIZE]);

#endif
