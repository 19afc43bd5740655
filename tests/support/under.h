/* Which sanitizer this build has, for the few tests that cannot be had under one: `.disabled = UNDER_TSAN`. */
#ifndef TESTS_UNDER_H
#define TESTS_UNDER_H

#include <stdbool.h>

#ifndef __has_feature
#define __has_feature(feature) 0
#endif

/* ThreadSanitizer ends a forked child that starts a thread if its parent had any. */
#if defined(__SANITIZE_THREAD__) || __has_feature(thread_sanitizer)
#define UNDER_TSAN true
#else
#define UNDER_TSAN false
#endif

/* LeakSanitizer stops all threads at exit, and complains when exit() is called on another than the first. */
#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
#define UNDER_ASAN true
#else
#define UNDER_ASAN false
#endif

#endif
