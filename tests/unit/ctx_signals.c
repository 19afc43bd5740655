/* Contexts that signals cancel. Each test is a process of its own, which its signals stay in. */
#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

#include <tether/ctx.h>

#include "alloc_fault.h"
#include "support.h"
#include "together.h"
#include "under.h"

static atomic_int caught;

static void catch (int signo)
{
	atomic_store(&caught, signo);
}

static void set_handler(int signo, void (*handler)(int))
{
	struct sigaction action = {.sa_handler = handler};

	cr_assert_eq(sigaction(signo, &action, NULL), 0);
}

static bool handler_is(int signo, void (*handler)(int))
{
	struct sigaction action;

	return sigaction(signo, NULL, &action) == 0 && action.sa_handler == handler;
}

static ctx *on(ctx *parent, int signo)
{
	ctx *c = ctx_with_signals(parent, &signo, 1);

	cr_assert_not_null(c);
	return c;
}

Test(ctx_signals, a_signal_cancels_and_the_cause_says_which, .timeout = 60)
{
	static const int signals[] = {SIGINT, SIGTERM, SIGUSR1};
	ctx_auto *c = ctx_with_signals(ctx_background(), signals, 3);
	ctx_auto *child = ctx_with_timeout(c, 3600 * CTX_SECOND);

	cr_assert_null(ctx_err(c));
	raise(SIGTERM);
	cr_assert_eq(ctx_wait(child), &CTX_CANCELED);
	cr_assert_eq(ctx_err(c), &CTX_CANCELED);
	cr_assert_eq(ctx_cause(child), ctx_signal_error(SIGTERM));
	cr_assert_str_eq(ctx_cause(c)->message, "terminated signal received");
	cr_assert_eq(ctx_cause(c)->code, EINTR);
}

Test(ctx_signals, each_signal_has_one_error, .timeout = 60)
{
	cr_assert_eq(ctx_signal_error(SIGINT), ctx_signal_error(SIGINT));
	cr_assert_neq(ctx_signal_error(SIGINT), ctx_signal_error(SIGTERM));
	cr_assert_str_eq(ctx_signal_error(SIGINT)->message, "interrupt signal received");
	cr_assert_str_eq(ctx_signal_error(40)->message, "signal 40 signal received");
	cr_assert_null(ctx_signal_error(0));
	cr_assert_null(ctx_signal_error(-1));
	cr_assert_null(ctx_signal_error(10000));
}

Test(ctx_signals, several_contexts_share_a_signal, .timeout = 60)
{
	ctx_auto *one = on(ctx_background(), SIGUSR1);
	ctx_auto *two = on(ctx_background(), SIGUSR1);
	ctx_auto *other = on(ctx_background(), SIGUSR2);

	raise(SIGUSR1);
	cr_assert_eq(ctx_wait(one), &CTX_CANCELED);
	cr_assert_eq(ctx_wait(two), &CTX_CANCELED);
	cr_assert_null(ctx_err(other));
	raise(SIGUSR2);
	cr_assert_eq(ctx_wait(other), &CTX_CANCELED);
}

Test(ctx_signals, the_last_context_to_end_puts_the_disposition_back, .timeout = 60)
{
	set_handler(SIGUSR1, catch);
	ctx *one = on(ctx_background(), SIGUSR1);
	ctx *two = on(ctx_background(), SIGUSR1);

	cr_assert_not(handler_is(SIGUSR1, catch));
	ctx_end(one);
	cr_assert_not(handler_is(SIGUSR1, catch), "the other still listens");
	raise(SIGUSR1);
	cr_assert_eq(ctx_wait(two), &CTX_CANCELED);
	cr_assert_eq(caught, 0);
	ctx_end(two);
	cr_assert(handler_is(SIGUSR1, catch));
	raise(SIGUSR1);
	cr_assert_eq(caught, SIGUSR1);
}

Test(ctx_signals, an_ignored_signal_is_ignored_again_afterwards, .timeout = 60)
{
	set_handler(SIGHUP, SIG_IGN);
	ctx *c = on(ctx_background(), SIGHUP);

	raise(SIGHUP);
	cr_assert_eq(ctx_wait(c), &CTX_CANCELED);
	ctx_end(c);
	cr_assert(handler_is(SIGHUP, SIG_IGN));
}

Test(ctx_signals, a_handler_set_meanwhile_by_others_is_left_alone, .timeout = 60)
{
	ctx *c = on(ctx_background(), SIGUSR1);

	set_handler(SIGUSR1, catch);
	ctx_end(c);
	cr_assert(handler_is(SIGUSR1, catch));
}

Test(ctx_signals, release_without_cancel_stops_listening_too, .timeout = 60)
{
	ctx *c = on(ctx_background(), SIGUSR1);

	ctx_release(c);
	cr_assert(handler_is(SIGUSR1, SIG_DFL));
}

Test(ctx_signals, cancel_stops_listening_even_when_done_already, .timeout = 60)
{
	ctx_auto *c = on(ctx_background(), SIGUSR1);

	raise(SIGUSR1);
	cr_assert_eq(ctx_wait(c), &CTX_CANCELED);
	cr_assert_not(handler_is(SIGUSR1, SIG_DFL), "the signal itself does not");
	ctx_cancel(c);
	cr_assert(handler_is(SIGUSR1, SIG_DFL));
	ctx_cancel(c);
	cr_assert_eq(ctx_cause(c), ctx_signal_error(SIGUSR1));
}

Test(ctx_signals, the_parents_end_is_its_end_and_keeps_listening, .timeout = 60)
{
	ctx_auto *parent = ctx_with_cancel(ctx_background());
	ctx *c = on(parent, SIGUSR1);

	ctx_cancel(parent);
	cr_assert_eq(ctx_err(c), &CTX_CANCELED);
	cr_assert_eq(ctx_cause(c), &CTX_CANCELED);
	raise(SIGUSR1); /* would kill */
	ctx_end(c);
	cr_assert(handler_is(SIGUSR1, SIG_DFL));

	ctx_auto *born_done = on(parent, SIGUSR1);

	cr_assert_eq(ctx_err(born_done), &CTX_CANCELED);
	raise(SIGUSR1);
}

Test(ctx_signals, after_the_first_ctrl_c_and_a_cancel_the_second_kills, .timeout = 60, .disabled = UNDER_TSAN)
{
	pid_t pid = fork();
	int status;

	cr_assert_geq(pid, 0);
	if (pid == 0) {
		alarm(30);
		ctx *c = on(ctx_background(), SIGINT);

		raise(SIGINT);
		if (ctx_wait(c) != &CTX_CANCELED)
			_exit(1);
		ctx_cancel(c);
		raise(SIGINT);
		_exit(2);
	}
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	cr_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGINT, "status %#x", (unsigned)status);
}

Test(ctx_signals, an_interrupted_system_call_is_restarted, .timeout = 60)
{
	ctx_auto *c = on(ctx_background(), SIGUSR1);
	struct sigaction action;

	cr_assert_not_null(c);
	cr_assert_eq(sigaction(SIGUSR1, NULL, &action), 0);
	cr_assert(action.sa_flags & SA_RESTART);
}

Test(ctx_signals, refuses_what_cannot_be_listened_to, .timeout = 60)
{
	static const int bad[] = {0, -1, 10000, SIGKILL, SIGSTOP, SIGSEGV, SIGBUS, SIGFPE, SIGILL};

	for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
		int signals[] = {SIGUSR1, bad[i]};

		errno = 0;
		cr_assert_null(ctx_with_signals(ctx_background(), signals, 2), "%d", bad[i]);
		cr_assert_eq(errno, EINVAL);
		cr_assert(handler_is(SIGUSR1, SIG_DFL), "nothing is changed");
	}
	cr_assert_null(ctx_with_signals(ctx_background(), NULL, 0));
	/* A number that looks like a signal's and that the C library keeps for itself fails half-way. */
	int reserved[] = {SIGUSR1, 32};

	errno = 0;
	cr_assert_null(ctx_with_signals(ctx_background(), reserved, 2));
	cr_assert_eq(errno, EINVAL);
	cr_assert(handler_is(SIGUSR1, SIG_DFL), "nothing is changed");
}

Test(ctx_signals, fails_without_memory_or_thread_and_changes_nothing, .timeout = 60)
{
	int signo = SIGUSR1;

	fault_set(FAULT_MEMORY, 1);
	errno = 0;
	cr_assert_null(ctx_with_signals(ctx_background(), &signo, 1));
	cr_assert_eq(errno, ENOMEM);
	fault_clear(FAULT_MEMORY);
	fault_set(FAULT_THREAD, 1);
	errno = 0;
	cr_assert_null(ctx_with_signals(ctx_background(), &signo, 1));
	cr_assert_eq(errno, EAGAIN);
	fault_clear(FAULT_THREAD);
	cr_assert(handler_is(SIGUSR1, SIG_DFL));
	ctx_end(on(ctx_background(), SIGUSR1));
}

/* Signals from one thread while others make and end contexts for them: every handler change happens under fire. */
static void raise_or_derive(void *arg, int index)
{
	atomic_int *left = arg;

	for (int i = 0; index > 0 && i < 5000; i++) {
		ctx *c = on(ctx_background(), index == 1 ? SIGUSR1 : SIGUSR2);

		if (i % 8 == 0 && ctx_wait(c) == &CTX_CANCELED)
			ctx_cancel(c);
		if (i % 2)
			ctx_end(c);
		else
			ctx_release(c);
	}
	if (index > 0) {
		atomic_fetch_sub(left, 1);
		return;
	}
	while (atomic_load(left) > 0) {
		raise(SIGUSR1);
		raise(SIGUSR2);
	}
}

Test(ctx_signals, come_and_go_while_signals_arrive, .timeout = 120)
{
	static atomic_int left = 2;
	/* They make the signal thread's way through all of them longer, to be met on it more often. */
	ctx *bystanders[300];

	set_handler(SIGUSR1, catch);
	set_handler(SIGUSR2, catch);
	for (int i = 0; i < 300; i++)
		bystanders[i] = on(ctx_background(), i % 2 ? SIGUSR1 : SIGUSR2);
	together(3, raise_or_derive, &left);
	for (int i = 0; i < 300; i++)
		ctx_end(bystanders[i]);
	cr_assert(handler_is(SIGUSR1, catch));
	cr_assert(handler_is(SIGUSR2, catch));
}
