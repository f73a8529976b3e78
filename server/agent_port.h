/* The port of HAProxy's agent check: whoever connects gets one line and the end of the connection. It needs no key and
 * reads nothing: the line holds no more than a weight, and the port listens on --agent-host alone.
 *
 * AGENT_CONNS_MAX at a time, each for AGENT_CONN_MS at most; the kernel's queue holds the others. What a client sends
 * is read and dropped until it closes: closing on unread bytes would send a reset that can overtake the line. io
 * thread only. */
#ifndef SERVER_AGENT_PORT_H
#define SERVER_AGENT_PORT_H

#include "runtime/base/status.h"

#include <uv.h>

#include <stddef.h>
#include <stdint.h>

enum { AGENT_CONNS_MAX = 32, AGENT_CONN_MS = 1000, AGENT_LINE_BYTES_MAX = 64 };

struct agent_port;

struct agent_handler {
    void *state;
    /* The line, at most AGENT_LINE_BYTES_MAX bytes; returns its length. */
    size_t (*line)(void *state, char *line);
    void (*closed)(void *state); /* after agent_port_close: nothing of it is in the loop any more */
};

/* Listens. ST_INVAL: the address; ST_IO: bind or listen, err says what; in both cases *port is set all the same, to be
 * closed and destroyed (a socket closes in the loop). ST_NOMEM: it is not. number 0: any free one. */
NODISCARD enum status agent_port_create(uv_loop_t *loop, const char *host, uint32_t number,
                                        const struct agent_handler *handler, struct agent_port **port,
                                        struct error *err);
uint32_t agent_port_number(const struct agent_port *port);
void agent_port_tick(struct agent_port *port, uint64_t now_ns); /* closes what is late, accepts what waits */
void agent_port_close(struct agent_port *port);                 /* handler.closed follows; again: nothing */
void agent_port_destroy(struct agent_port *port);               /* after handler.closed; NULL is fine */

#endif
