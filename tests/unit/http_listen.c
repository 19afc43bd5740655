/*
 * Where a server listens: the addresses it takes and refuses, and what stands in the way of listening on a path.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <curl/curl.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <tether/http.h>

#include "http_peer.h"

static char address[64];
static const char *path;

static void choose_path(void)
{
	snprintf(address, sizeof(address), "unix:/tmp/tether-listen-%d", (int)getpid());
	path = address + strlen("unix:");
}

static void remove_path(void)
{
	unlink(path);
}

TestSuite(http_listen, .init = choose_path, .fini = remove_path, .timeout = 60);

static void say_hello(http_request *request, http_response *response)
{
	(void)request;
	http_response_text(response, 200, "hello");
}

Test(http_listen, addresses)
{
	static const char *const bad[] = {"",
	                                  "8080",
	                                  "127.0.0.1",
	                                  "127.0.0.1:",
	                                  "127.0.0.1:x",
	                                  "127.0.0.1:70000",
	                                  ":99999",
	                                  "::1:80",
	                                  "[::1]",
	                                  "no.such.host.invalid:80",
	                                  "unix:"};
	http_server *server = http_server_new(NULL);
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		errno = 0;
		cr_expect(eq(int, http_listen(server, bad[i], NULL, 0), -1), "%s", bad[i]);
		cr_expect(ne(int, errno, 0), "%s", bad[i]);
	}
	char bound[64];
	cr_expect(eq(int, http_listen(server, "127.0.0.1:0", bound, sizeof(bound)), 0));
	cr_expect(eq(int, http_listen(server, bound, NULL, 0), -1));
	cr_expect(eq(int, errno, EADDRINUSE));
	cr_expect(eq(int, http_listen(server, ":0", bound, sizeof(bound)), 0));
	cr_expect(ne(str, strrchr(bound, ':'), ":0"));
	http_server_free(server);
}

static size_t add_to(char *data, size_t size, size_t n, void *string)
{
	strncat(string, data, size * n);
	return size * n;
}

Test(http_listen, a_path_serves_and_is_removed_at_the_end)
{
	char bound[64], body[64] = "";
	http_server *server = NULL;
	/* The socket that a server which died has left does not stand in the way; one in use does. */
	for (int round = 0; round < 2; round++) {
		server = http_server_new(NULL);
		cr_assert(eq(int, http_listen(server, address, bound, sizeof(bound)), 0));
		cr_expect(eq(str, bound, address));
		if (round == 1)
			break;
		http_server *second = http_server_new(NULL);
		cr_expect(eq(int, http_listen(second, address, NULL, 0), -1));
		http_server_free(second);
		http_server_free(server);
	}
	cr_assert(eq(int, http_handle(server, "GET /", say_hello, NULL), 0));
	http_peer_server *serving = http_peer_start(server, NULL);
	CURL *curl = curl_easy_init();
	curl_easy_setopt(curl, CURLOPT_URL, "http://localhost/");
	curl_easy_setopt(curl, CURLOPT_UNIX_SOCKET_PATH, path);
	curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, add_to);
	curl_easy_setopt(curl, CURLOPT_WRITEDATA, body);
	cr_expect(eq(int, (int)curl_easy_perform(curl), CURLE_OK));
	cr_expect(eq(str, body, "hello"));
	curl_easy_cleanup(curl);
	http_peer_stop(serving);
	cr_expect(eq(int, access(path, F_OK), -1));
}

static int listen_there(void)
{
	http_server *server = http_server_new(NULL);
	int result = http_listen(server, address, NULL, 0);
	int error = errno;
	http_server_free(server);
	errno = error;
	return result;
}

/*
 * connect(2) says ECONNREFUSED of anything at the path that is no socket, as of a socket whose server has died: a file of
 * the user's, named by mistake, was removed for one.
 */
Test(http_listen, a_file_that_is_no_socket_is_left_alone)
{
	int fd = open(path, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);
	cr_assert(ge(int, fd, 0));
	close(fd);
	cr_expect(eq(int, listen_there(), -1));
	cr_expect(eq(int, errno, EADDRINUSE));
	struct stat about = {0};
	cr_expect(eq(int, lstat(path, &about), 0));
	cr_expect(eq(uint, about.st_mode & S_IFMT, S_IFREG));
}

Test(http_listen, a_socket_that_a_server_which_died_has_left_is_replaced)
{
	struct sockaddr_un un = {.sun_family = AF_UNIX};
	memcpy(un.sun_path, path, strlen(path) + 1);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	cr_assert(eq(int, bind(fd, (struct sockaddr *)&un, sizeof(un)), 0));
	cr_assert(eq(int, listen(fd, 1), 0));
	cr_expect(eq(int, listen_there(), -1));
	cr_expect(eq(int, errno, EADDRINUSE), "it is in use");
	close(fd);
	cr_expect(eq(int, listen_there(), 0));
	cr_expect(eq(int, access(path, F_OK), -1), "and removed at the end");
}
