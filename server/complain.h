/*
 * complain.h — what albumd says when it does not serve, or not as it was told to.
 */
#ifndef ALBUMD_COMPLAIN_H
#define ALBUMD_COMPLAIN_H

/* "albumd: …", a line on stderr; or, while it serves, one of the log. */
void complain(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* From now on complaints go to the log. */
void complain_in_log(void);

#endif
