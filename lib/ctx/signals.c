/*
 * Contexts that signals cancel.
 *
 * The handler may do next to nothing, so it notes the signal and posts a semaphore; a thread of the library, which
 * the first such context starts, ends the contexts that asked for it.
 */
#include "ctx_priv.h"

#include <errno.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

/* CTX_KIND_SIGNALS */
struct ctx_signals {
	struct ctx_node node;
	struct ctx_link_ link; /* on the ring watch.contexts while it is watched */
	bool watched;          /* guarded by watch.mutex */
	unsigned long round;   /* in which the signal thread last came by; guarded by watch.mutex */
	size_t n;
	int signals[];
};

static struct {
	pthread_mutex_t mutex;         /* guards what is not atomic */
	struct ctx_link_ *contexts;    /* ring */
	size_t watchers[NSIG];         /* how many contexts want the signal */
	struct sigaction before[NSIG]; /* what the first of them found */
	pthread_t thread;
	bool running;
	sem_t arrived;
	unsigned long rounds; /* the signal thread's */
	atomic_bool pending[NSIG];
	atomic_bool stop;
} watch = {.mutex = PTHREAD_MUTEX_INITIALIZER};

/* ---- Names and errors -------------------------------------------------------- */

static char names[NSIG][32];
static char messages[NSIG][64];
static ctx_error errors[NSIG];
static pthread_once_t errors_once = PTHREAD_ONCE_INIT;

/* As Go names them; strsignal() says it differently from system to system, and in the user's language. */
static void init_errors(void)
{
	static const char *const known[NSIG] = {
		[SIGHUP] = "hangup",
		[SIGINT] = "interrupt",
		[SIGQUIT] = "quit",
		[SIGABRT] = "aborted",
		[SIGUSR1] = "user defined signal 1",
		[SIGUSR2] = "user defined signal 2",
		[SIGPIPE] = "broken pipe",
		[SIGALRM] = "alarm clock",
		[SIGTERM] = "terminated",
		[SIGCHLD] = "child exited",
		[SIGCONT] = "continued",
		[SIGTSTP] = "stopped",
		[SIGTTIN] = "stopped (tty input)",
		[SIGTTOU] = "stopped (tty output)",
		[SIGURG] = "urgent I/O condition",
		[SIGXCPU] = "CPU time limit exceeded",
		[SIGXFSZ] = "file size limit exceeded",
		[SIGVTALRM] = "virtual timer expired",
		[SIGPROF] = "profiling timer expired",
		[SIGWINCH] = "window changed",
		[SIGIO] = "I/O possible",
	};

	for (int signo = 1; signo < NSIG; signo++) {
		if (known[signo])
			snprintf(names[signo], sizeof(names[signo]), "%s", known[signo]);
		else
			snprintf(names[signo], sizeof(names[signo]), "signal %d", signo);
		snprintf(messages[signo], sizeof(messages[signo]), "%s signal received", names[signo]);
		errors[signo] = (ctx_error){EINTR, messages[signo]};
	}
}

const ctx_error *ctx_signal_error(int signo)
{
	if (signo < 1 || signo >= NSIG)
		return NULL;
	pthread_once(&errors_once, init_errors);
	return &errors[signo];
}

const char *ctx_signal_name(int signo)
{
	pthread_once(&errors_once, init_errors);
	return names[signo];
}

static struct ctx_signals *as_signals(const struct ctx_node *n)
{
	return (struct ctx_signals *)(void *)n;
}

size_t ctx_signals_list(const ctx *c, const int **signals)
{
	const struct ctx_signals *s = as_signals(ctx_node_of(c));

	*signals = s->signals;
	return s->n;
}

/* ---- Delivery ------------------------------------------------------------------ */

static void handle(int signo)
{
	int saved = errno;

	atomic_store(&watch.pending[signo], true);
	sem_post(&watch.arrived);
	errno = saved;
}

static bool wants(const struct ctx_signals *s, int signo)
{
	for (size_t i = 0; i < s->n; i++) {
		if (s->signals[i] == signo)
			return true;
	}
	return false;
}

/* Once around the ring, one context at a time with the mutex off: ending runs hooks, which may end others. */
static void deliver(int signo)
{
	unsigned long round = ++watch.rounds;

	pthread_mutex_lock(&watch.mutex);
	while (watch.contexts) {
		struct ctx_signals *s = ctx_container(watch.contexts, struct ctx_signals, link);

		if (s->round == round)
			break;
		s->round = round;
		watch.contexts = watch.contexts->next;
		if (!wants(s, signo))
			continue;
		ctx_node_pin(&s->node);
		pthread_mutex_unlock(&watch.mutex);
		ctx_node_finish(&s->node, &CTX_CANCELED, ctx_signal_error(signo));
		ctx_node_unpin(&s->node);
		pthread_mutex_lock(&watch.mutex);
	}
	pthread_mutex_unlock(&watch.mutex);
}

static void *signal_thread(void *arg)
{
	while (!atomic_load(&watch.stop)) {
		if (sem_wait(&watch.arrived) != 0)
			continue;
		for (int signo = 1; signo < NSIG; signo++) {
			if (atomic_load_explicit(&watch.pending[signo], memory_order_relaxed) &&
			    atomic_exchange(&watch.pending[signo], false))
				deliver(signo);
		}
	}
	return arg;
}

/* ---- Watching -------------------------------------------------------------------- */

static void before_fork(void)
{
	pthread_mutex_lock(&watch.mutex);
}

static void after_fork_in_parent(void)
{
	pthread_mutex_unlock(&watch.mutex);
}

/* The contexts inherited are cancelled again once the child makes one of its own. */
static void after_fork_in_child(void)
{
	pthread_mutex_init(&watch.mutex, NULL);
	watch.running = false;
}

static void init_once(void)
{
	sem_init(&watch.arrived, 0, 0);
	pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

/* 0 or an errno value. */
static int start_locked(void)
{
	int error;

	if (watch.running)
		return 0;
	error = ctx_thread_start(signal_thread, NULL, &watch.thread);
	watch.running = error == 0;
	return error;
}

static int watch_signal_locked(int signo)
{
	struct sigaction action;

	if (watch.watchers[signo] == 0) {
		memset(&action, 0, sizeof(action));
		action.sa_handler = handle;
		action.sa_flags = SA_RESTART | SA_ONSTACK;
		sigfillset(&action.sa_mask);
		if (sigaction(signo, &action, &watch.before[signo]) != 0)
			return errno;
	}
	watch.watchers[signo]++;
	return 0;
}

/* Puts the former disposition back, unless somebody has meanwhile put another in place of ours. */
static void unwatch_signal_locked(int signo)
{
	struct sigaction action;

	if (--watch.watchers[signo] == 0 && sigaction(signo, NULL, &action) == 0 &&
	    action.sa_handler == handle)
		sigaction(signo, &watch.before[signo], NULL);
}

static int start_watching(struct ctx_signals *s)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	size_t i = 0;

	pthread_once(&once, init_once);
	pthread_mutex_lock(&watch.mutex);
	int error = start_locked();

	while (!error && i < s->n) {
		error = watch_signal_locked(s->signals[i]);
		if (!error)
			i++;
	}
	if (error) {
		while (i-- > 0)
			unwatch_signal_locked(s->signals[i]);
	} else {
		ctx_ring_append(&watch.contexts, &s->link);
		s->watched = true;
	}
	pthread_mutex_unlock(&watch.mutex);
	return error;
}

void ctx_signals_stop(struct ctx_node *n)
{
	struct ctx_signals *s = as_signals(n);

	pthread_mutex_lock(&watch.mutex);
	if (s->watched) {
		ctx_ring_remove(&watch.contexts, &s->link);
		s->watched = false;
		for (size_t i = 0; i < s->n; i++)
			unwatch_signal_locked(s->signals[i]);
	}
	pthread_mutex_unlock(&watch.mutex);
}

/* At exit. */
void ctx_signals_shutdown(void)
{
	pthread_mutex_lock(&watch.mutex);
	bool join = watch.running && !pthread_equal(watch.thread, pthread_self());

	watch.running = false;
	atomic_store(&watch.stop, true);
	if (join)
		sem_post(&watch.arrived);
	pthread_mutex_unlock(&watch.mutex);
	if (join)
		ctx_thread_join(watch.thread);
}

static bool can_be_watched(int signo)
{
	static const int never[] = {SIGKILL, SIGSTOP, SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS};

	for (size_t i = 0; i < sizeof(never) / sizeof(never[0]); i++) {
		if (signo == never[i])
			return false;
	}
	return signo >= 1 && signo < NSIG;
}

ctx *ctx_with_signals(ctx *parent, const int *signals, size_t n)
{
	if (!parent)
		ctx_misuse("ctx_with_signals", "the parent is NULL");
	if (!signals && n > 0)
		ctx_misuse("ctx_with_signals", "the array of signals is NULL");

	bool valid = n > 0 && n <= NSIG;

	for (size_t i = 0; valid && i < n; i++)
		valid = can_be_watched(signals[i]);
	if (!valid) {
		errno = EINVAL;
		return NULL;
	}

	struct ctx_signals *s = (struct ctx_signals *)(void *)ctx_node_new(
		sizeof(*s) + n * sizeof(signals[0]), CTX_KIND_SIGNALS, parent);

	if (!s)
		return NULL;
	s->watched = false;
	s->round = 0;
	s->n = n;
	memcpy(s->signals, signals, n * sizeof(signals[0]));

	int error = start_watching(s);

	if (error) {
		ctx_node_discard(&s->node);
		errno = error;
		return NULL;
	}
	ctx_node_join(&s->node);
	return &s->node.base;
}
