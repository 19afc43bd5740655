/*
 * complain.h — what albumd says on stderr when it does not serve.
 */
#ifndef ALBUMD_COMPLAIN_H
#define ALBUMD_COMPLAIN_H

/* "albumd: …", a line. Not while serving: then there is the log. */
void complain(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
