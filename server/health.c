#include "health.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <tether/http.h>

#include "complain.h"

/* What the problem that was answered says of itself. */
static void say_not_ready(const char *answer)
{
	json_auto_t *problem = json_loads(answer, 0, NULL);
	const char *detail = json_string_value(json_object_get(problem, "detail"));
	complain("not ready: %s", detail ? detail : "it does not say why");
}

bool health_check(const char *admin_listen)
{
	char answer[2048] = "";
	if (!admin_listen) {
		complain("--admin-listen is off: there is nobody to ask");
		return false;
	}
	ctx_auto *c = ctx_with_timeout(ctx_background(), 2 * CTX_SECOND);
	int status = c ? http_get(c, admin_listen, "/readyz", answer, sizeof(answer)) : -1;
	if (status == 200)
		printf("albumd: %s", answer);
	else if (status > 0)
		say_not_ready(answer);
	else
		complain("nobody answers on %s: %s", admin_listen, strerror(errno));
	return status == 200;
}
