/*
 * Somebody else's poll loop, which knows nothing of contexts, made to end with one: the context's descriptor is just
 * another in its set. Copies lines from standard input until there are no more, or the time is up.
 *
 *	ctx_poll_loop [MILLISECONDS]	(1000)
 */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <tether/ctx.h>

int main(int argc, char **argv)
{
	ctx_auto *c = ctx_with_timeout(ctx_background(),
	                               (argc > 1 ? strtol(argv[1], NULL, 10) : 1000) * CTX_MILLISECOND);
	int done = c ? ctx_done_fd(c) : -1;
	struct pollfd fds[] = {{.fd = STDIN_FILENO, .events = POLLIN}, {.fd = done, .events = POLLIN}};
	char buffer[4096];

	if (done < 0) {
		perror("ctx_done_fd");
		return 1;
	}
	while (poll(fds, 2, -1) > 0) {
		ssize_t n;

		/* Readable once the context is done, and from then on: it is not read. */
		if (fds[1].revents) {
			printf("%s\n", ctx_err(c)->message);
			return 2;
		}
		n = read(STDIN_FILENO, buffer, sizeof buffer);
		if (n <= 0)
			break;
		fwrite(buffer, 1, (size_t)n, stdout);
	}
	printf("end of input\n");
	return 0;
}
