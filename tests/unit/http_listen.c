/*
 * Listening on a path: what stands in the way, and what becomes of it.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <tether/http.h>

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
