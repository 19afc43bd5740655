/*
 * Runs a fuzz target without libFuzzer: standalone [-runs=N] [-seconds=N] CORPUS…
 *
 * Every file of the corpus as it is, then N mutations of them, the same ones each time. It finds what has been found
 * before, and what lies near it; the search is libFuzzer's (make fuzz). An input that ends the process, or takes
 * more than a minute, is left in <program>.failed.
 */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "fuzz.h"

enum { SEEDS_MAX = 1024, SIZE_MAX_OF_INPUT = 32 * 1024, PATIENCE = 60 };

struct input {
	uint8_t *data;
	size_t size;
};

static struct input seeds[SEEDS_MAX];
static size_t seed_count;

/* ---- What is left behind ----------------------------------------------------------------------------- */

static struct input current;
static char failed_path[4096];

/* Called in a signal handler. */
static void save_current(void)
{
	int fd = open(failed_path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
	bool saved = fd >= 0 && write(fd, current.data, current.size) == (ssize_t)current.size;
	static const char said[] = "the input is in ";
	if (saved && write(STDERR_FILENO, said, sizeof(said) - 1) > 0 &&
	    write(STDERR_FILENO, failed_path, strlen(failed_path)) > 0)
		(void)!write(STDERR_FILENO, "\n", 1);
	if (fd >= 0)
		close(fd);
}

static void on_signal(int number)
{
	save_current();
	signal(number, SIG_DFL);
	raise(number);
}

void __sanitizer_set_death_callback(void (*callback)(void)) __attribute__((weak));

static void save_what_fails(const char *program)
{
	snprintf(failed_path, sizeof(failed_path), "%s.failed", program);
	signal(SIGABRT, on_signal);
	signal(SIGALRM, on_signal);
	if (__sanitizer_set_death_callback) {
		__sanitizer_set_death_callback(save_current);
		return;
	}
	signal(SIGSEGV, on_signal);
	signal(SIGBUS, on_signal);
	signal(SIGFPE, on_signal);
}

/* ---- The corpus -------------------------------------------------------------------------------------- */

static void read_seed(const char *path)
{
	FILE *file = fopen(path, "rb");
	struct input seed = {.data = malloc(SIZE_MAX_OF_INPUT)};
	HOLDS(file && seed.data && seed_count < SEEDS_MAX);
	seed.size = fread(seed.data, 1, SIZE_MAX_OF_INPUT, file);
	fclose(file);
	seeds[seed_count++] = seed;
}

static int not_hidden(const struct dirent *entry)
{
	return entry->d_name[0] != '.';
}

static void read_corpus(const char *path)
{
	struct stat status;
	struct dirent **entries;
	HOLDS(stat(path, &status) == 0);
	if (!S_ISDIR(status.st_mode)) {
		read_seed(path);
		return;
	}
	int count = scandir(path, &entries, not_hidden, alphasort);
	HOLDS(count > 0);
	for (int i = 0; i < count; i++) {
		char name[4096];
		snprintf(name, sizeof(name), "%s/%s", path, entries[i]->d_name);
		read_seed(name);
		free(entries[i]);
	}
	free(entries);
}

/* ---- Mutations --------------------------------------------------------------------------------------- */

static uint64_t random_state = 1;

/* xorshift64*: the same numbers everywhere. */
static size_t below(size_t limit)
{
	random_state ^= random_state >> 12;
	random_state ^= random_state << 25;
	random_state ^= random_state >> 27;
	return limit ? (size_t)((random_state * UINT64_C(0x2545F4914F6CDD1D)) >> 33) % limit : 0;
}

/* Puts data[0..size) in place of input[at..at+gone), as far as there is room. */
static void replace(struct input *input, size_t at, size_t gone, const uint8_t *data, size_t size)
{
	if (gone > input->size - at)
		gone = input->size - at;
	if (input->size - gone + size > SIZE_MAX_OF_INPUT)
		return;
	memmove(input->data + at + size, input->data + at + gone, input->size - at - gone);
	if (size > 0)
		memmove(input->data + at, data, size);
	input->size = input->size - gone + size;
}

static void mutate_once(struct input *input)
{
	static const uint8_t telling[] = {0,   1,   '\t', '\n', '\r', ' ',  '"', '#',  '%',  '&',
	                                  '+', ',', '-',  '.',  '/',  '0',  '9', ':',  ';',  '=',
	                                  '?', 'A', '[',  ']',  '{',  '\\', '}', 0x7f, 0x80, 0xff};
	size_t at = below(input->size + 1);
	const struct input *other = &seeds[below(seed_count)];
	size_t from = below(other->size), length = 1 + below(16);
	uint8_t piece[64];
	if (length > other->size - from)
		length = other->size - from;
	switch (below(7)) {
	case 0:
		if (at < input->size)
			input->data[at] ^= (uint8_t)(1 << below(8));
		break;
	case 1:
		replace(input, at, 1, &telling[below(sizeof(telling))], 1);
		break;
	case 2:
		replace(input, at, 0, &telling[below(sizeof(telling))], 1);
		break;
	case 3:
		replace(input, at, 1 + below(16), NULL, 0);
		break;
	case 4:
		replace(input, at, below(16), other->data + from, length);
		break;
	case 5: /* the rest is another's */
		replace(input, at, input->size, other->data + from, other->size - from);
		break;
	default: /* once more */
		length = 1 + below(sizeof(piece));
		length = length > input->size - at ? input->size - at : length;
		memcpy(piece, input->data + at, length);
		replace(input, at, 0, piece, length);
		break;
	}
}

/* In memory of its exact size, so that a look past its end is seen. */
static void try(struct input input)
{
	current.data = malloc(input.size ? input.size : 1);
	HOLDS(current.data);
	current.size = input.size;
	if (input.size > 0)
		memcpy(current.data, input.data, input.size);
	alarm(PATIENCE);
	LLVMFuzzerTestOneInput(current.data, current.size);
	alarm(0);
	free(current.data);
	current.data = NULL;
}

static int64_t number_of(const char *argument, const char *name, int64_t otherwise)
{
	size_t size = strlen(name);
	return strncmp(argument, name, size) == 0 ? strtoll(argument + size, NULL, 10) : otherwise;
}

int main(int argc, char **argv)
{
	int64_t runs = 0, seconds = PATIENCE, done = 0;
	for (int i = 1; i < argc; i++) {
		runs = number_of(argv[i], "-runs=", runs);
		seconds = number_of(argv[i], "-seconds=", seconds);
		if (argv[i][0] != '-')
			read_corpus(argv[i]);
	}
	save_what_fails(argv[0]);
	for (size_t i = 0; i < seed_count; i++)
		try(seeds[i]);
	struct input mutation = {.data = malloc(SIZE_MAX_OF_INPUT)};
	HOLDS(mutation.data && (seed_count > 0 || runs == 0));
	time_t end = time(NULL) + seconds;
	for (; done < runs && time(NULL) < end; done++) {
		const struct input *seed = &seeds[below(seed_count)];
		memcpy(mutation.data, seed->data, seed->size);
		mutation.size = seed->size;
		for (size_t steps = 1 + below(5); steps > 0; steps--)
			mutate_once(&mutation);
		try(mutation);
	}
	printf("%zu inputs and %lld mutations\n", seed_count, (long long)done);
	free(mutation.data);
	for (size_t i = 0; i < seed_count; i++)
		free(seeds[i].data);
	return 0;
}
