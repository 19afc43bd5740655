/*
 * Pace: how slowly a client may take what it is sent.
 *
 * A client that takes nothing holds an answer, and the memory it lies in, for as long as we let it; and so does one
 * that takes a byte now and then. So time is divided into stretches. At the beginning of each it is noted how much
 * the client is to have taken at its end: PACE for each second of write_timeout, or all that waits now if that is
 * less. When it has, the next stretch begins; when write_timeout has passed and it has not, it is too slow.
 *
 *	            taken >= goal: the next stretch
 *	            ┌──────────────┐
 *	            │              ▼          write_timeout has passed
 *	 restart ─► stretch (goal, since_ms) ─────────────────────────► too slow
 *
 * - Where nothing waits the goal is reached as it is set: of an answer without an end, such as a stream of events,
 *   that its client keeps up with, each look begins a stretch.
 * - What waits counts as it was at the stretch's beginning. So one to whom little is sent, but always something, is
 *   asked for no more than that.
 * - It is what the kernel of the other side has acknowledged that counts, which on the slowest of lines is steady.
 */
#include "http_priv.h"
#include "socket.h"

enum {
	PACE = 500, /* bytes a second: half of what a telephone in a dead spot still takes */
};

static uint64_t write_timeout_ms(const http_server *server)
{
	return (uint64_t)(server->options.write_timeout / CTX_MILLISECOND);
}

void pace_restart(pace *p)
{
	p->goal = 0;
}

bool pace_is_kept(pace *p, const http_server *server, uint64_t taken, uint64_t waiting, uint64_t now)
{
	uint64_t limit = write_timeout_ms(server), least = limit * PACE / 1000 + 1;
	if (taken >= p->goal) {
		p->goal = taken + (waiting < least ? waiting : least);
		p->since_ms = now;
	}
	return now - p->since_ms < limit;
}

/*
 * Bytes that the client of a socket has taken. A unix socket does not count them, and lets go of whole pieces of what
 * was written only: if what waits there is not what waited at the last look, that is progress enough.
 */
static uint64_t taken_of(conn *c, size_t waiting)
{
	if (c->tcp)
		return socket_taken(c->fd);
	if (waiting != c->waiting)
		c->taken += UINT32_MAX;
	c->waiting = waiting;
	return c->taken;
}

/*
 * To be asked again until nothing waits, and then from the next sending on (conn->outstanding). While an answer is sent
 * it is not for us to know when.
 */
bool conn_keeps_pace(conn *c, uint64_t now)
{
	if (!c->outstanding && c->phase != CONN_SENDING)
		return true;
	size_t waiting = socket_waiting(c->fd);
	c->outstanding = waiting > 0;
	return pace_is_kept(&c->pace, c->worker->server, taken_of(c, waiting), waiting, now);
}
