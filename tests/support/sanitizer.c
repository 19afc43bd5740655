/* What makes Criterion and the sanitizers get along. Empty in a plain build. */
#include <stdlib.h>

#ifndef __has_feature /* clang's way to tell; gcc defines __SANITIZE_…__ */
#define __has_feature(feature) 0
#endif

#if defined(__SANITIZE_THREAD__) || __has_feature(thread_sanitizer)
/*
 * Criterion (its library BoxFort) maps the memory it shares with the process of a test at a random fixed
 * address between 0x200000000000 and 0x600000000000: that base plus 16 MiB times rand_r(). ThreadSanitizer
 * keeps most of that range for itself and refuses the mapping. This rand_r(), found by Criterion before
 * libc's, answers only with what lies in ThreadSanitizer's free range below any program's own addresses,
 * 0x550000000000 to 0x555000000000.
 */
int rand_r(unsigned int *seed)
{
	*seed = *seed * 1103515245u + 12345u;
	return 0x350000 + (int)((*seed >> 8) % 0x5000);
}
#endif

#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
int __lsan_is_turned_off(void);

/*
 * Leaks are looked for in the processes that run tests, which BoxFort gives BXFI_MAP, and not in the one that
 * starts them, where what leaks is Criterion's own.
 */
int __lsan_is_turned_off(void)
{
	return getenv("BXFI_MAP") == NULL;
}
#endif
