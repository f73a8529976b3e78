/* Connections: sockets, time-outs, keep-alive, pipelining, and the writing of answers. What a request means is the
 * handler's business; this module knows no route.
 *
 *   accept -> [ read head -> handler.head -> read body -> handler.request -> reply -> written ]* -> linger -> close
 *
 * C1  Requests of a connection are handled one after another, in order; up to http_pipelined are read ahead, with at
 *     most http_body_bytes of bodies. A connection that sends more is closed.
 * C2  At most one buffer is in flight. A stream is asked for more (handler.writable) only when all before has been
 *     accepted by the kernel: what a slow reader has not read is not even rendered.
 * C3  A reader that accepts nothing for stream_stall_ms is cut off with a reset.
 * C4  End of input counts as "client gone", also in the middle of an answer: handler.gone in the same turn of the loop.
 * C5  handler.gone comes from the loop's closing phase, never from inside a call of this module; until then every
 *     http_conn_* call on the dying connection is allowed and does nothing.
 * C6  Time is virtual: a pause of the whole process (suspend, debugger) counts as one tick and ends no connection.
 * C7  Without a free place no connection is accepted; the kernel's queue holds them until one closes. Descriptors are
 *     kept in reserve, so accept itself does not run out of them.
 * C8  The bodies of all connections and of the pool together pass http_bodies_bytes by one read at most: the request
 *     that does so is refused with 503.
 *
 * C9  A body that streams stays in memory only until its handler takes it; the handler pauses the reading (C4 too) while
 *     it has enough. If the rest of it is refused, handler.gone tells, and the connection answers.
 *
 * Deadlines are looked at once a tick, over all connections: no timer a connection. io thread only. */
#ifndef SERVER_HTTP_CONN_H
#define SERVER_HTTP_CONN_H

#include "runtime/base/buf.h"
#include "runtime/base/status.h"
#include "server/http_request.h"

#include <uv.h>

#include <stdbool.h>
#include <stdint.h>

struct http_server;
struct http_conn;

struct http_handler {
    void *state;
    /* The head is read. May reply at once: the body is then read and dropped. */
    void (*head)(void *state, struct http_conn *conn, struct http_request *request);
    /* NULL: bodies have at most http_body_bytes. Else how many a request may have whose head is read; bodies_max: the
     * most that this ever says. */
    uint64_t (*body_max)(void *state, const struct http_request *request);
    uint64_t bodies_max;
    /* More of the body of the current request, which `streams`, with http_conn_user set; http_conn_take_body takes it. */
    void (*body)(void *state, struct http_conn *conn, struct http_request *request);
    /* Head and body are read, and nothing has been replied. Reply now or later. */
    void (*request)(void *state, struct http_conn *conn, struct http_request *request);
    /* A stream's bytes have all been accepted by the kernel. */
    void (*writable)(void *state, struct http_conn *conn);
    /* The connection is gone while http_conn_user is set. It is freed after this call. */
    void (*gone)(void *state, struct http_conn *conn);
    /* A whole answer or a stream has been put on its way with this status. For metrics. */
    void (*replied)(void *state, const struct http_request *request, int http_status);
    /* The last connection has closed after http_server_close. */
    void (*closed)(void *state);
};

struct http_reply {
    int status;
    const char *content_type; /* NULL: application/json */
    const struct buf *body;   /* borrowed for the call; NULL: empty */
    const char *allow;        /* an Allow header, or NULL */
    uint32_t retry_after_ms;  /* 0: none; else Retry-After and retry-after-ms */
    bool authenticate;        /* WWW-Authenticate: Bearer */
    bool close;               /* close after this answer */
};

/* Listens on host:port (0: any free one; http_server_port tells). ST_INVAL: the address; ST_IO: bind or listen, err
 * says what; in both cases *server is set all the same, to be closed and destroyed (a socket closes in the loop).
 * ST_NOMEM: it is not. connections_max: besides limits.connections, how many descriptors allow. */
NODISCARD enum status http_server_create(uv_loop_t *loop, const char *host, uint32_t port, uint32_t connections_max,
                                         const struct http_handler *handler, struct http_server **server,
                                         struct error *err);
uint32_t http_server_port(const struct http_server *server);
uint64_t http_server_now_ns(const struct http_server *server); /* virtual time (C6) */
uint32_t http_server_connections(const struct http_server *server);

/* Time passes: call every HTTP_TICK_MS. Closes what is late and accepts what waits. */
void http_server_tick(struct http_server *server);
enum { HTTP_TICK_MS = 100 };

void http_server_stop_listening(struct http_server *server);    /* running connections go on */
void http_server_close_after_reply(struct http_server *server); /* every answer from now on says Connection: close */
/* Closes listener and idle connections; the others after their answer. handler.closed follows when all are gone. */
void http_server_close(struct http_server *server);
void http_server_close_now(struct http_server *server); /* the others too, as they are */
void http_server_destroy(struct http_server *server);   /* after handler.closed */

/* A whole answer to the current request. */
void http_conn_reply(struct http_conn *conn, const struct http_reply *reply);

/* A streamed answer: begin, then bytes appended to http_conn_out and sent with http_conn_send, then end. The status and
 * headers are those of server-sent events. Each send makes one HTTP chunk. */
void http_conn_stream_begin(struct http_conn *conn);
/* Bytes of another type instead, sent in the same way. */
void http_conn_stream_begin_as(struct http_conn *conn, const char *content_type);
bool http_conn_writable(const struct http_conn *conn); /* nothing in flight: render now */
struct buf *http_conn_out(struct http_conn *conn);     /* append rendered bytes here; only between writable and send */
void http_conn_send(struct http_conn *conn);
/* finished: the last chunk is sent and the connection may be used again. Otherwise it is closed without the last chunk,
 * so that a failed stream never looks whole. What has been appended is sent first. */
void http_conn_stream_end(struct http_conn *conn, bool finished);

/* No byte is read from the connection until it is told false. */
void http_conn_pause(struct http_conn *conn, bool paused);

/* Moves the current request's body into *body (an empty buffer). It counts for C8 until http_server_body_freed is told
 * its length. */
void http_conn_take_body(struct http_conn *conn, struct buf *body);
void http_server_body_freed(struct http_server *server, size_t length);

void http_conn_user_set(struct http_conn *conn, void *user); /* the answer in the making; NULL when there is none */
void *http_conn_user(const struct http_conn *conn);
struct http_request *http_conn_request(struct http_conn *conn); /* the current one */
enum { HTTP_PEER_BYTES = 46 };
void http_conn_peer(const struct http_conn *conn, char out[HTTP_PEER_BYTES]); /* its address, without the port */

#endif
