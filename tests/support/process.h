/*
 * Programs that a test starts, with their output kept. They die with the test, whatever ends it: on Linux they
 * get SIGKILL when the thread that started them is gone, so start them from the test's own thread.
 */
#ifndef TESTS_PROCESS_H
#define TESTS_PROCESS_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

typedef struct process process;

/*
 * Starts argv[0] (looked up in PATH) with the arguments argv, NULL-terminated. `env`, NULL-terminated, are
 * "NAME=value" to set and "NAME" to unset in its environment; it may be NULL. Standard input is empty;
 * standard output and error are kept together. The caller ends it with process_stop. NULL on failure.
 */
process *process_start(const char *const argv[], const char *const env[]);

/* The same with fd, unless negative, as its descriptor 3. */
process *process_start_handed(const char *const argv[], const char *const env[], int fd);

pid_t process_pid(const process *p);

/* Sends a signal; false if the process has been waited for already. */
bool process_signal(process *p, int signal);

/* Waits for its end. The exit status, 128 + N after signal N as a shell has it, or -1: still running. */
int process_wait(process *p, int timeout_ms);

/* What it has written so far, as a string that the caller frees. NULL when out of memory. */
char *process_output(const process *p);

/* Waits until it has written `text`. False after timeout_ms, or when it has ended without. */
bool process_wait_for(process *p, const char *text, int timeout_ms);

/*
 * Ends it, if it has not ended: SIGTERM, and SIGKILL after ten seconds. Frees p. Returns the exit status as
 * process_wait does. NULL is allowed (-1).
 */
int process_stop(process *p);

/*
 * Runs a program to its end and returns its exit status, or -1 on failure or after timeout_ms (it is killed).
 * *output, if output is not NULL, is what it wrote, without newlines at the end; the caller frees it.
 */
int process_run(const char *const argv[], const char *const env[], int timeout_ms, char **output);

/* Whether there is such a process at all, its own or another's. One that has died does not count, reaped or not. */
bool process_exists(pid_t pid);

#endif
