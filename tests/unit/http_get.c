/* http_get: asking another server how it is, on a thread and on a fiber. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include <tether/http.h>
#include <tether/loop.h>

#include "http_peer.h"
#include "support.h"

static char address[64];

static void well(http_request *request, http_response *response)
{
	(void)request;
	http_response_text(response, 203, "all is well\n");
}

static void slow(http_request *request, http_response *response)
{
	wait_done(http_request_ctx(request));
	http_response_text(response, 200, "too late");
}

/* Asks the very server that it runs in, which a blocked thread could not answer. */
static void asks(http_request *request, http_response *response)
{
	char body[64] = "";
	int status = http_get(http_request_ctx(request), address, "/well", body, sizeof body);
	http_response_text(response, status == 203 ? 200 : 500, body);
}

static http_peer_server *serve(void)
{
	static const http_peer_route routes[] = {
		{"/well", well, NULL}, {"/slow", slow, NULL}, {"/asks", asks, NULL}, {0}};
	http_peer_server *s = http_peer_serve(NULL, routes);
	snprintf(address, sizeof address, "%s", http_peer_address(s));
	return s;
}

Test(http_get, tells_status_and_body, .timeout = 60)
{
	http_peer_server *s = serve();
	char body[64] = "", little[8] = "", with_host[64];
	cr_expect(eq(int, http_get(ctx_background(), address, "/well", body, sizeof body), 203));
	cr_expect(eq(str, body, "all is well\n"));
	cr_expect(eq(int, http_get(ctx_background(), address, "/well", little, sizeof little), 203));
	cr_expect(eq(str, little, "all is "));
	cr_expect(eq(int, http_get(ctx_background(), address, "/nowhere", NULL, 0), 404));
	/* No host is this machine. */
	snprintf(with_host, sizeof with_host, "%s", strchr(address, ':'));
	cr_expect(eq(int, http_get(ctx_background(), with_host, "/well", NULL, 0), 203));
	cr_expect(eq(int, http_peer_stop(s), 0));
}

Test(http_get, parks_a_fiber, .timeout = 60)
{
	http_peer_server *s = serve();
	http_peer_response r = http_peer_ask(s, "GET", "/asks", NULL);
	cr_expect(eq(int, r.status, 200));
	cr_expect(eq(str, r.body, "all is well\n"));
	http_peer_clear(&r);
	cr_expect(eq(int, http_peer_stop(s), 0));
}

Test(http_get, ends_with_its_context, .timeout = 60)
{
	http_peer_server *s = serve();
	ctx_auto *c = ctx_with_timeout(ctx_background(), 50 * CTX_MILLISECOND);
	cr_expect(eq(int, http_get(c, address, "/slow", NULL, 0), -1));
	cr_expect(eq(int, errno, ETIMEDOUT));
	cr_expect(eq(int, http_peer_stop(s), 0));
}

Test(http_get, says_what_went_wrong, .timeout = 60)
{
	char nobody[32];
	snprintf(nobody, sizeof nobody, "127.0.0.1:%d", support_free_port());
	cr_expect(eq(int, http_get(ctx_background(), nobody, "/", NULL, 0), -1));
	cr_expect(eq(int, errno, ECONNREFUSED));
	cr_expect(eq(int, http_get(ctx_background(), "unix:/nonexistent/socket", "/", NULL, 0), -1));
	cr_expect(eq(int, errno, ENOENT));
	cr_expect(eq(int, http_get(ctx_background(), "nonsense", "/", NULL, 0), -1));
	cr_expect(eq(int, errno, EINVAL));
	/* A target is no place for another request. */
	cr_expect(eq(int, http_get(ctx_background(), nobody, "/ HTTP/1.1\r\nX: y", NULL, 0), -1));
	cr_expect(eq(int, errno, EINVAL));
}
