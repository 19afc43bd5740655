/*
 * Fibers: stacks and the switch between them.
 *
 * A stack is entered once with makecontext and from then on only switched to with _setjmp and _longjmp,
 * which, unlike swapcontext, make no system call for the signal mask (all fibers of a thread share one).
 * A fiber whose function has returned stays inside fiber_main, in the pool, and begins its next function
 * from there.
 */

/*
 * glibc's fortified longjmp refuses to jump to a frame that is not further up the same stack ("longjmp
 * causes uninitialized stack frame"). Another stack is where we are going.
 */
#undef _FORTIFY_SOURCE

#include <errno.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include "loop_priv.h"

#if defined(__CET__) && (__CET__ & 2)
#error "compile this file with -fcf-protection=none: a shadow stack does not follow longjmp to another stack"
#endif

/* ---- What the tools must be told -------------------------------------------------------------------- */

#ifdef __has_feature
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#if __has_feature(thread_sanitizer)
#define __SANITIZE_THREAD__ 1
#endif
#endif

#ifdef __SANITIZE_ADDRESS__
#include <dlfcn.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#endif
#if __has_include(<valgrind/valgrind.h>)
#include <valgrind/valgrind.h>
#endif

/* Frames grow by redzones and spilled registers under a sanitizer. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define STACK_FACTOR 4
#else
#define STACK_FACTOR 1
#endif

/* Instrumentation inside the switch itself would be accounted to the wrong stack. */
#define SWITCHES_STACKS __attribute__((noinline, no_sanitize_address, no_sanitize_thread))

/*
 * ASan's own _longjmp takes the frames of the stack it leaves for gone and lifts all their redzones: after its first
 * wait a fiber could overrun its buffers unseen. So under ASan the jump is the C library's.
 */
#ifdef __SANITIZE_ADDRESS__
static void (*jump)(jmp_buf to, int value);

static void tools_find_jump(void)
{
	void *libc = dlopen("libc.so.6", RTLD_LAZY | RTLD_NOLOAD);
	jump = (void (*)(jmp_buf, int))dlsym(libc, "_longjmp");
}
#else
#define jump _longjmp
static void tools_find_jump(void)
{
}
#endif

static void tools_add_stack(fiber *f, size_t size)
{
#ifdef __SANITIZE_THREAD__
	f->sanitizer_fiber = __tsan_create_fiber(0);
#endif
#ifdef VALGRIND_STACK_REGISTER
	f->valgrind_id = VALGRIND_STACK_REGISTER(f->stack, (char *)f->stack + size);
#endif
	(void)f, (void)size;
}

static void tools_remove_stack(fiber *f, size_t size)
{
#ifdef __SANITIZE_ADDRESS__
	/* The frames of fiber_main never return; whoever maps this memory next must not meet their redzones. */
	__asan_unpoison_memory_region(f->stack, size);
#endif
#ifdef __SANITIZE_THREAD__
	__tsan_destroy_fiber(f->sanitizer_fiber);
#endif
#ifdef VALGRIND_STACK_DEREGISTER
	VALGRIND_STACK_DEREGISTER(f->valgrind_id);
#endif
	(void)f, (void)size;
}

/* ---- Stacks ----------------------------------------------------------------------------------------- */

enum {
	FIBER_MAGIC = 0x66696265,
	STACK_DEFAULT = 64 * 1024,
	STACK_MIN = 16 * 1024,
	KEPT_DEFAULT = 256,
	WARM_MAX = 64, /* free stacks that keep their pages, so that a steady load faults none in */
	/*
	 * No memory, only addresses: wider than a page, so that a frame of a library built without stack probes
	 * does not step over it.
	 */
	GUARD = 64 * 1024,
};

static size_t page_size(void)
{
	return (size_t)sysconf(_SC_PAGESIZE);
}

int stack_pool_init(stack_pool *pool, size_t stack_size, size_t kept_max)
{
	size_t page = page_size();
	if (stack_size == 0)
		stack_size = STACK_DEFAULT;
	if (stack_size < STACK_MIN)
		stack_size = STACK_MIN;
	if (stack_size > SIZE_MAX / STACK_FACTOR / 2) {
		errno = ENOMEM;
		return -1;
	}
	*pool = (stack_pool){
		.stack_size = (stack_size * STACK_FACTOR + page - 1) / page * page,
		.kept_max = kept_max ? kept_max : KEPT_DEFAULT,
	};
	pthread_mutex_init(&pool->mutex, NULL);
	tools_find_jump();
	return 0;
}

/* Below the stack lies the guard: an overflow dies by SIGSEGV where it happens, not later in a neighbour's data. */
static fiber *stack_map(stack_pool *pool)
{
	char *memory = mmap(NULL, GUARD + pool->stack_size, PROT_NONE,
	                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
	if (memory == MAP_FAILED) {
		errno = ENOMEM;
		return NULL;
	}
	if (mprotect(memory + GUARD, pool->stack_size, PROT_READ | PROT_WRITE) != 0) {
		munmap(memory, GUARD + pool->stack_size);
		errno = ENOMEM;
		return NULL;
	}
	atomic_fetch_add_explicit(&pool->mapped, 1, memory_order_relaxed);
	size_t top = (sizeof(fiber) + 63) / 64 * 64;
	fiber *f = (fiber *)(void *)(memory + GUARD + pool->stack_size - top);
	f->magic = FIBER_MAGIC;
	f->stack = memory + GUARD;
	tools_add_stack(f, pool->stack_size);
	return f;
}

static void stack_unmap(stack_pool *pool, fiber *f)
{
	char *memory = (char *)f->stack - GUARD;
	tools_remove_stack(f, pool->stack_size);
	munmap(memory, GUARD + pool->stack_size);
	atomic_fetch_sub_explicit(&pool->mapped, 1, memory_order_relaxed);
}

/* Gives the pages back to the system, but for those at the top in which fiber_main waits. */
static void stack_trim(stack_pool *pool, fiber *f)
{
	size_t top = 2 * page_size();
	if (pool->stack_size > top)
		madvise(f->stack, pool->stack_size - top, MADV_DONTNEED);
}

static fiber *stack_pop(fiber **list, size_t *count)
{
	fiber *f = *list;
	if (f) {
		*list = f->next;
		--*count;
	}
	return f;
}

static void stack_push(fiber **list, size_t *count, fiber *f)
{
	f->next = *list;
	*list = f;
	++*count;
}

void stack_pool_destroy(stack_pool *pool)
{
	fiber *f;
	while ((f = stack_pop(&pool->warm, &pool->warm_count)))
		stack_unmap(pool, f);
	while ((f = stack_pop(&pool->cold, &pool->cold_count)))
		stack_unmap(pool, f);
	pthread_mutex_destroy(&pool->mutex);
}

fiber *fiber_take(loop *l, void (*fn)(void *arg), void *arg)
{
	stack_pool *pool = &l->stacks;
	pthread_mutex_lock(&pool->mutex);
	fiber *f = stack_pop(&pool->warm, &pool->warm_count);
	if (!f)
		f = stack_pop(&pool->cold, &pool->cold_count);
	pthread_mutex_unlock(&pool->mutex);
	if (!f && !(f = stack_map(pool)))
		return NULL;
	f->loop = l;
	f->fn = fn;
	f->arg = arg;
	f->woken = false;
	return f;
}

void fiber_give_back(fiber *f)
{
	stack_pool *pool = &f->loop->stacks;
	pthread_mutex_lock(&pool->mutex);
	bool warm = pool->warm_count < WARM_MAX && pool->warm_count < pool->kept_max;
	bool cold = !warm && pool->warm_count + pool->cold_count < pool->kept_max;
	if (warm)
		stack_push(&pool->warm, &pool->warm_count, f);
	pthread_mutex_unlock(&pool->mutex);
	if (warm)
		return;
	if (!cold) {
		stack_unmap(pool, f);
		return;
	}
	stack_trim(pool, f);
	pthread_mutex_lock(&pool->mutex);
	stack_push(&pool->cold, &pool->cold_count, f);
	pthread_mutex_unlock(&pool->mutex);
}

/* ---- The switch ------------------------------------------------------------------------------------- */

static _Noreturn void fiber_main(void);

SWITCHES_STACKS static void stack_switch(jmp_buf from, jmp_buf to)
{
	if (_setjmp(from) == 0)
		jump(to, 1);
}

SWITCHES_STACKS static void stack_enter(jmp_buf from, fiber *f)
{
	ucontext_t context;
	getcontext(&context);
	context.uc_stack.ss_sp = f->stack;
	context.uc_stack.ss_size = (size_t)((char *)f - (char *)f->stack);
	context.uc_link = NULL;
	makecontext(&context, fiber_main, 0);
	if (_setjmp(from) == 0)
		setcontext(&context);
}

SWITCHES_STACKS bool fiber_resume(fiber *f)
{
	loop *l = f->loop;
	if (f->magic != FIBER_MAGIC)
		loop_misuse("loop", "a fiber's memory was overwritten");
	l->running = f;
#ifdef __SANITIZE_ADDRESS__
	__sanitizer_start_switch_fiber(&l->sanitizer_stack, f->stack, l->stacks.stack_size);
#endif
#ifdef __SANITIZE_THREAD__
	l->sanitizer_fiber = __tsan_get_current_fiber();
	__tsan_switch_to_fiber(f->sanitizer_fiber, 0);
#endif
	if (f->entered) {
		stack_switch(l->context, f->context);
	} else {
		f->entered = true;
		stack_enter(l->context, f);
	}
#ifdef __SANITIZE_ADDRESS__
	__sanitizer_finish_switch_fiber(l->sanitizer_stack, NULL, NULL);
#endif
	l->running = NULL;
	if (f->fn)
		return false;
	fiber_give_back(f);
	atomic_fetch_sub_explicit(&l->fibers, 1, memory_order_relaxed);
	return true;
}

/* Back to the loop. Without fake_stack ASan forgets what the fiber's frames were: its function has ended. */
SWITCHES_STACKS static void fiber_leave(fiber *f, void **fake_stack)
{
	loop *l = f->loop;
#ifdef __SANITIZE_ADDRESS__
	__sanitizer_start_switch_fiber(fake_stack, l->stack_bottom, l->stack_size);
#endif
#ifdef __SANITIZE_THREAD__
	__tsan_switch_to_fiber(l->sanitizer_fiber, 0);
#endif
	stack_switch(f->context, l->context);
#ifdef __SANITIZE_ADDRESS__
	__sanitizer_finish_switch_fiber(fake_stack ? *fake_stack : NULL, &l->stack_bottom, &l->stack_size);
#endif
	(void)fake_stack;
}

SWITCHES_STACKS static _Noreturn void fiber_main(void)
{
	fiber *f = loop_current()->running;
#ifdef __SANITIZE_ADDRESS__
	__sanitizer_finish_switch_fiber(NULL, &f->loop->stack_bottom, &f->loop->stack_size);
#endif
	for (;;) {
		f->fn(f->arg);
		f->fn = NULL;
		fiber_leave(f, NULL);
	}
}

void fiber_park(fiber *f)
{
	if (f->woken) {
		f->woken = false;
		return;
	}
	int saved = errno;
	fiber_leave(f, &f->sanitizer_stack);
	errno = saved;
}
