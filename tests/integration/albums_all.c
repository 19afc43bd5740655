/* GET /albums?limit=all: as many rows as there are, in memory that does not grow with them. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "client.h"
#include "private_db.h"
#include "service.h"
#include "support.h"

enum { ROWS = 1000000, GROWTH = 8 << 20, TAIL = 8 };

/* The most memory that the process has ever had, in bytes. */
static double peak_memory(pid_t pid)
{
	char path[64], line[256];
	double peak = 0;

	snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
	FILE *status = fopen(path, "re");
	cr_assert_not_null(status);
	while (fgets(line, sizeof line, status)) {
		if (strncmp(line, "VmHWM:", 6) == 0)
			peak = strtod(line + 6, NULL) * 1024;
	}
	fclose(status);
	return peak;
}

/* The socket does not block. False: nothing comes any more. */
static bool readable(client *c)
{
	struct pollfd fd = {.fd = client_fd(c), .events = POLLIN};

	return poll(&fd, 1, 20000 * support_patience()) == 1;
}

/* The last bytes of all that came. */
static void keep_tail(char tail[TAIL + 1], const char *piece, size_t size)
{
	size_t kept = strlen(tail), fresh = size < TAIL ? size : TAIL;
	size_t old = kept + fresh > TAIL ? TAIL - fresh : kept;

	memmove(tail, tail + kept - old, old);
	memcpy(tail + old, piece + size - fresh, fresh);
	tail[old + fresh] = '\0';
}

/* Reads to the end of the connection and keeps nothing: how many albums, and in tail how it ended. */
static long count_albums(client *c, double *bytes, char tail[TAIL + 1])
{
	static char piece[64 << 10];
	long albums = 0;
	ssize_t size;

	*bytes = 0;
	tail[0] = '\0';
	while (readable(c) && (size = recv(client_fd(c), piece, sizeof piece, 0)) > 0) {
		for (ssize_t i = 0; i < size; i++)
			albums += piece[i] == '{';
		keep_tail(tail, piece, (size_t)size);
		*bytes += (double)size;
	}
	return albums;
}

Test(albums_all, a_million_rows_in_constant_memory, .timeout = 300)
{
	private_db *db = private_db_start(&(private_db_options){.empty = true});
	char tail[TAIL + 1];
	double before, after, bytes;

	cr_assert_not_null(db);
	activity *filler = activity_open(private_db_url(db));
	cr_assert_not_null(filler);
	free(activity_sql(
		filler, "CREATE TABLE album AS SELECT n::bigint AS id, 'A title of a usual length' AS title,"
			" 'An artist' AS artist, 12.50::numeric(10, 2) AS price"
			" FROM generate_series(1, 1000000) n"));
	free(activity_sql(filler, "CREATE UNIQUE INDEX ON album (id)"));
	activity_close(filler);
	service *s = service_start_on(private_db_url(db),
	                              (const char *const[]){"--allow-all", "--query-timeout", "200s", NULL});
	cr_assert(eq(int, client_get(s->port, "/albums?limit=1000", NULL, 20000), 200));
	before = peak_memory(service_pid(s));

	client *c = client_connect(s->port);
	int64_t asked = service_now();
	cr_assert(client_send(c, "GET /albums?limit=all HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"));
	long albums = count_albums(c, &bytes, tail);
	double seconds = (double)(service_now() - asked) / 1e9;
	after = peak_memory(service_pid(s));
	cr_expect(eq(long, albums, (long)ROWS));
	cr_expect_not_null(strstr(tail, "\r\n0\r\n\r\n"), "the list did not come to its end: %s", tail);
	fprintf(stderr, "%.0f MB in %.1f s; the peak of memory was %.1f MiB before, %.1f after\n",
	        bytes / 1e6, seconds, before / (1 << 20), after / (1 << 20));
	/* AddressSanitizer keeps for a while what was freed, a quarter of a gigabyte of it. */
	cr_expect(after - before <= (support_patience() > 1 ? 400 << 20 : GROWTH), "grown by %.1f MiB",
	          (after - before) / (1 << 20));
	client_close(c);
	service_stop(s);
	private_db_stop(db);
}
