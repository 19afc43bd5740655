/*
 * Lets Criterion's test processes start under ThreadSanitizer.
 *
 * Criterion (its library BoxFort) maps the memory it shares with the process of a test at a random fixed
 * address between 0x200000000000 and 0x600000000000: that base plus 16 MiB times rand_r(). ThreadSanitizer
 * keeps most of that range for itself and refuses the mapping. This rand_r(), found by Criterion before
 * libc's, answers only with what lies in ThreadSanitizer's free range below any program's own addresses,
 * 0x550000000000 to 0x555000000000.
 */
#include <stdlib.h>

#if defined(__SANITIZE_THREAD__)
#define UNDER_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define UNDER_TSAN 1
#endif
#endif

#ifdef UNDER_TSAN
int rand_r(unsigned int *seed)
{
	*seed = *seed * 1103515245u + 12345u;
	return 0x350000 + (int)((*seed >> 8) % 0x5000);
}
#endif
