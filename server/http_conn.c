/* Connections over libuv; http_conn.h has the rules C1-C8 that are quoted here.
 *
 * Every event of a connection (bytes read, bytes written, an answer made) ends in conn_advance, the only place where
 * requests are handed to the handler and where a finished one makes room for the next: a loop, not a recursion, however
 * many requests arrive in one packet.
 *
 *   reply:  NONE -> [STREAM ->] DONE (all bytes appended) -> (written, and the request read to its end) -> NONE
 *   phase:  OPEN -> LINGER (our side is shut, more input is dropped) -> CLOSING (uv_close is called) */
#include "server/http_conn.h"

#include "runtime/base/check.h"
#include "runtime/base/clock.h"
#include "runtime/base/limits.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"
#include "server/api.h"
#include "server/http_response.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum {
    READ_BYTES = 65536,
    BACKLOG = 4096,
    LINGER_MS = 2000,      /* for the client to read an answer that ends the connection, before a reset could eat it */
    CHUNK_HEAD_BYTES = 10, /* "0000abcd" CR LF: fixed, so that it can be filled in after rendering */
    TICK_GAP_MAX_MS = 1000,
    RETRY_AFTER_MS = 1000
};

enum reply { REPLY_NONE, REPLY_STREAM, REPLY_DONE };
enum phase { OPEN, LINGER, CLOSING };

struct http_conn {
    uv_tcp_t tcp; /* first: handles are cast to connections */
    struct http_server *server;
    struct http_conn *previous, *next;
    void *user;
    struct sockaddr_storage peer;
    uint8_t phase, reply;
    bool writing, close_after, advancing, input_ended, chunk_open;
    struct http_parser parser;
    struct http_request *requests, *requests_tail; /* the first is the current one; the last may be half read */
    uint32_t requests_count;
    struct buf out;       /* being filled */
    struct buf in_flight; /* being written */
    size_t chunk_start;   /* in out, while chunk_open */
    uv_write_t write;
    uv_shutdown_t shutdown;
    size_t unsent_bytes;  /* of in_flight when last looked at */
    uint64_t progress_ns; /* when the kernel last took bytes */
    uint64_t idle_ns;     /* since when nothing is expected but a new request */
    uint64_t head_ns;     /* first byte of the head being read; 0: none */
    uint64_t body_ns;     /* start of the body being read; 0: none */
    uint64_t linger_ns;
};

struct http_server {
    uv_loop_t *loop;
    uv_tcp_t listener;
    struct http_handler handler;
    struct http_conn *conns;
    uint32_t conns_count, conns_max, port;
    bool listening, accept_waits, closing, close_after_reply, told_closed, listener_open;
    uint64_t now_ns, real_ns;
    uint64_t accept_errors;
    uint64_t bodies_bytes; /* C8 */
    char read_buffer[READ_BYTES];
};

static void conn_advance(struct http_conn *conn);
static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buffer);
static void on_read(uv_stream_t *stream, ssize_t count, const uv_buf_t *buffer);
static void conn_flush(struct http_conn *conn);
static void accept_waiting(struct http_server *server);

static uint64_t ms(uint64_t value)
{
    return value * NS_PER_MS;
}

/* ---- closing ---- */

static void tell_closed(struct http_server *server)
{
    if (!server->closing || server->told_closed || server->conns_count > 0 || server->listener_open) return;
    server->told_closed = true;
    if (server->handler.closed) server->handler.closed(server->handler.state);
}

static void request_free(struct http_server *server, struct http_request *request)
{
    server->bodies_bytes -= request->body.length;
    http_request_destroy(request);
}

static void on_conn_closed(uv_handle_t *handle)
{
    struct http_conn *conn = (struct http_conn *)handle;
    struct http_server *server = conn->server;
    if (conn->user) server->handler.gone(server->handler.state, conn); /* C5 */
    while (conn->requests) {
        struct http_request *request = conn->requests;
        conn->requests = request->next;
        request_free(server, request);
    }
    buf_free(&conn->out);
    buf_free(&conn->in_flight);
    if (conn->previous)
        conn->previous->next = conn->next;
    else
        server->conns = conn->next;
    if (conn->next) conn->next->previous = conn->previous;
    mem_free(conn);
    server->conns_count--;
    accept_waiting(server);
    tell_closed(server);
}

static void conn_close(struct http_conn *conn)
{
    if (conn->phase == CLOSING) return;
    conn->phase = CLOSING;
    uv_close((uv_handle_t *)&conn->tcp, on_conn_closed);
}

/* For peers that do not read: the kernel drops what it still holds for them. */
static void conn_reset(struct http_conn *conn)
{
    if (conn->phase == CLOSING) return;
    conn->phase = CLOSING;
    if (uv_tcp_close_reset(&conn->tcp, on_conn_closed) != 0) uv_close((uv_handle_t *)&conn->tcp, on_conn_closed);
}

static void on_shutdown(uv_shutdown_t *shutdown, int status)
{
    (void)shutdown;
    (void)status;
}

/* All is written and the connection must end: shut our side, let the client read, drop what it still sends. */
static void conn_linger(struct http_conn *conn)
{
    if (conn->phase != OPEN) return;
    conn->phase = LINGER;
    conn->linger_ns = conn->server->now_ns;
    if (conn->input_ended || uv_shutdown(&conn->shutdown, (uv_stream_t *)&conn->tcp, on_shutdown) != 0)
        conn_close(conn);
}

/* ---- writing ---- */

static void conn_sent(struct http_conn *conn)
{
    if (conn->phase != OPEN) return;
    conn->idle_ns = conn->server->now_ns;
    if (conn->reply == REPLY_STREAM && conn->user) conn->server->handler.writable(conn->server->handler.state, conn);
    conn_advance(conn);
}

static void on_written(uv_write_t *write, int status)
{
    struct http_conn *conn = (struct http_conn *)write->handle;
    conn->writing = false;
    buf_clear(&conn->in_flight);
    if (conn->phase != OPEN) return;
    if (status < 0) {
        conn_close(conn);
        return;
    }
    conn_flush(conn);
    if (!conn->writing) conn_sent(conn);
}

static void conn_flush(struct http_conn *conn)
{
    if (conn->phase != OPEN || conn->writing || conn->out.length == 0) return;
    if (!buf_ok(&conn->out)) { /* an answer that does not fit memory cannot be finished */
        conn_reset(conn);
        return;
    }
    uv_buf_t bytes = uv_buf_init(conn->out.data, (unsigned)conn->out.length);
    int sent = uv_try_write((uv_stream_t *)&conn->tcp, &bytes, 1);
    if (sent < 0 && sent != UV_EAGAIN) {
        conn_close(conn);
        return;
    }
    size_t taken = sent > 0 ? (size_t)sent : 0;
    if (taken == conn->out.length) {
        buf_clear(&conn->out);
        return;
    }
    struct buf swap = conn->in_flight;
    conn->in_flight = conn->out;
    conn->out = swap;
    buf_clear(&conn->out);
    bytes = uv_buf_init(conn->in_flight.data + taken, (unsigned)(conn->in_flight.length - taken));
    conn->unsent_bytes = bytes.len;
    conn->progress_ns = conn->server->now_ns;
    conn->writing = true;
    if (uv_write(&conn->write, (uv_stream_t *)&conn->tcp, &bytes, 1, on_written) != 0) {
        conn->writing = false;
        conn_close(conn);
    }
}

static bool wants_close(const struct http_conn *conn, const struct http_request *request)
{
    return conn->close_after || conn->server->closing || conn->server->close_after_reply || !request->keep_alive;
}

static void reply_done(struct http_conn *conn, int http_status)
{
    conn->reply = REPLY_DONE;
    if (conn->server->handler.replied)
        conn->server->handler.replied(conn->server->handler.state, conn->requests, http_status);
}

void http_conn_reply(struct http_conn *conn, const struct http_reply *reply)
{
    conn->user = NULL;
    if (conn->phase != OPEN) return;
    struct http_request *request = conn->requests;
    CHECK(request != NULL && conn->reply == REPLY_NONE);
    if (reply->close) conn->close_after = true;
    /* A body that the client has announced and will not send (Expect) or that is refused for its size is not waited
     * for. */
    if (!request->complete && (request->expects_continue || request->refused_code)) conn->close_after = true;
    request->discard = true;
    conn->server->bodies_bytes -= request->body.length;
    buf_free(&request->body);
    if (wants_close(conn, request)) conn->close_after = true;
    struct http_response response = {
        .status = reply->status,
        .content_type = reply->content_type ? reply->content_type : "application/json",
        .body = reply->body,
        .allow = reply->allow,
        .retry_after_ms = reply->retry_after_ms,
        .authenticate = reply->authenticate,
        .close = conn->close_after,
        .keep_alive_told = request->http10 && !conn->close_after,
        .head_only = request->method && strcmp(request->method, "HEAD") == 0,
        .headers = &request->answer_headers,
        .request_id = request->id,
        .processing_ns = request->start_ns ? uv_hrtime() - request->start_ns : 0,
    };
    http_response_write(&response, &conn->out);
    reply_done(conn, reply->status);
    conn_flush(conn);
    conn_advance(conn);
}

void http_conn_stream_begin(struct http_conn *conn)
{
    http_conn_stream_begin_as(conn, NULL);
}

void http_conn_stream_begin_as(struct http_conn *conn, const char *content_type)
{
    if (conn->phase != OPEN) return;
    struct http_request *request = conn->requests;
    CHECK(request != NULL && request->complete && conn->reply == REPLY_NONE);
    if (wants_close(conn, request) || request->http10)
        conn->close_after = true; /* 1.0 knows no chunks: the end is the close */
    struct http_response response = {
        .status = 200,
        .content_type = content_type,
        .stream = true,
        .chunked = !request->http10,
        .headers = &request->answer_headers,
        .close = conn->close_after,
        .request_id = request->id,
        .processing_ns = uv_hrtime() - request->start_ns,
    };
    http_response_write(&response, &conn->out);
    conn->reply = REPLY_STREAM;
}

bool http_conn_writable(const struct http_conn *conn)
{
    return conn->phase == OPEN && !conn->writing;
}

struct buf *http_conn_out(struct http_conn *conn)
{
    if (conn->reply == REPLY_STREAM && !conn->chunk_open && !conn->requests->http10) {
        conn->chunk_start = conn->out.length;
        buf_append(&conn->out, "00000000\r\n", CHUNK_HEAD_BYTES);
        conn->chunk_open = true;
    }
    return &conn->out;
}

/* Fills in the size of the chunk being rendered, or takes its head away again when nothing was rendered. */
static void chunk_close(struct http_conn *conn)
{
    if (!conn->chunk_open) return;
    conn->chunk_open = false;
    if (!buf_ok(&conn->out)) return;
    size_t length = conn->out.length - conn->chunk_start - CHUNK_HEAD_BYTES;
    if (length == 0) {
        conn->out.length = conn->chunk_start;
        return;
    }
    for (size_t i = 0; i < 8; i++)
        conn->out.data[conn->chunk_start + i] = "0123456789abcdef"[length >> (28 - 4 * i) & 15];
    buf_append(&conn->out, "\r\n", 2);
}

void http_conn_send(struct http_conn *conn)
{
    chunk_close(conn);
    conn_flush(conn);
}

void http_conn_stream_end(struct http_conn *conn, bool finished)
{
    conn->user = NULL;
    if (conn->phase != OPEN) return;
    CHECK(conn->reply == REPLY_STREAM);
    chunk_close(conn);
    if (!finished)
        conn->close_after = true;
    else if (!conn->requests->http10)
        buf_append_text(&conn->out, "0\r\n\r\n");
    reply_done(conn, 200);
    conn_flush(conn);
    conn_advance(conn);
}

void http_conn_take_body(struct http_conn *conn, struct buf *body)
{
    *body = conn->requests->body;
    buf_init(&conn->requests->body, 0);
}

void http_server_body_freed(struct http_server *server, size_t length)
{
    CHECK(server->bodies_bytes >= length);
    server->bodies_bytes -= length;
}

void http_conn_pause(struct http_conn *conn, bool paused)
{
    if (conn->phase != OPEN) return;
    if (paused)
        (void)uv_read_stop((uv_stream_t *)&conn->tcp);
    else if (uv_read_start((uv_stream_t *)&conn->tcp, on_alloc, on_read) != 0)
        conn_close(conn);
}

void http_conn_user_set(struct http_conn *conn, void *user)
{
    conn->user = user;
}
void *http_conn_user(const struct http_conn *conn)
{
    return conn->user;
}
struct http_request *http_conn_request(struct http_conn *conn)
{
    return conn->requests;
}

void http_conn_peer(const struct http_conn *conn, char out[HTTP_PEER_BYTES])
{
    if (uv_ip_name((const struct sockaddr *)&conn->peer, out, HTTP_PEER_BYTES) != 0) out[0] = '\0';
}

/* ---- reading ---- */

static void reply_refused(struct http_conn *conn, struct http_request *request)
{
    struct api_error error;
    api_error_set(&error, request->refused_code,
                  request->refused_code >= 500 ? "server_error" : "invalid_request_error",
                  request->refused_code == 408   ? "request_timeout"
                  : request->refused_code == 400 ? NULL
                  : request->refused_code >= 500 ? "overloaded"
                                                 : "request_too_large",
                  "", "%s", request->refused_reason);
    struct buf body;
    buf_init(&body, 0);
    api_error_body(&error, &body);
    http_conn_reply(conn, &(struct http_reply){.status = request->refused_code,
                                               .body = &body,
                                               .retry_after_ms = request->refused_code == 503 ? RETRY_AFTER_MS : 0,
                                               .close = true});
    buf_free(&body);
}

/* C9 */
static void body_tell(struct http_conn *conn, struct http_request *request)
{
    const struct http_handler *handler = &conn->server->handler;
    if (!request->streams || !conn->user) return;
    if (request->refused_code) {
        handler->gone(handler->state, conn);
        conn->user = NULL;
    } else if (conn->reply == REPLY_NONE && request->body.length > 0) {
        handler->body(handler->state, conn, request);
    }
}

/* Gives the head of the queue to the handler as far as it has been read; true: it is finished and gone. */
static bool advance_first(struct http_conn *conn)
{
    const struct http_handler *handler = &conn->server->handler;
    struct http_request *request = conn->requests;
    if (request->head_seen && !request->body_seen) body_tell(conn, request);
    if (request->refused_code && conn->reply == REPLY_NONE && !conn->user)
        reply_refused(conn, request);
    else if (request->refused_code && conn->reply == REPLY_DONE)
        conn->close_after = true;
    if (request->head_complete && !request->head_seen && conn->reply == REPLY_NONE) {
        request->head_seen = true;
        handler->head(handler->state, conn, request);
        if (conn->phase == OPEN && conn->reply == REPLY_NONE && request->expects_continue && !request->complete &&
            request->body_length == 0) {
            buf_append_text(&conn->out, "HTTP/1.1 100 Continue\r\n\r\n");
            conn_flush(conn);
        }
    }
    if (conn->phase == OPEN && request->complete && !request->body_seen && conn->reply == REPLY_NONE) {
        request->body_seen = true;
        handler->request(handler->state, conn, request);
    }
    if (conn->phase != OPEN || conn->reply != REPLY_DONE || conn->writing || conn->out.length > 0) return false;
    if (conn->close_after) {
        conn_linger(conn);
        return false;
    }
    if (!request->complete) return false;
    conn->requests = request->next;
    if (!conn->requests) conn->requests_tail = NULL;
    conn->requests_count--;
    conn->reply = REPLY_NONE;
    request_free(conn->server, request);
    if (!conn->requests) { /* an idle connection holds no buffers */
        buf_free(&conn->out);
        buf_free(&conn->in_flight);
        conn->idle_ns = conn->server->now_ns;
    } else if (conn->requests == conn->parser.request) { /* half read ahead: its time starts now */
        if (conn->head_ns) conn->head_ns = conn->server->now_ns;
        if (conn->body_ns) conn->body_ns = conn->server->now_ns;
    }
    return true;
}

static void conn_advance(struct http_conn *conn)
{
    if (conn->advancing) return;
    conn->advancing = true;
    while (conn->phase == OPEN && conn->requests && advance_first(conn))
        ;
    conn->advancing = false;
    if (conn->phase == OPEN && conn->server->closing && !conn->requests && !conn->writing) conn_linger(conn);
}

static bool id_is_sane(const char *id)
{
    size_t length = strlen(id);
    if (length == 0 || length > HTTP_REQUEST_ID_MAX) return false;
    for (size_t i = 0; i < length; i++) {
        char c = id[i];
        bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
        if (!letter && c != '-' && c != '_' && c != '.' && c != ':') return false;
    }
    return true;
}

static void name_request(struct http_request *request)
{
    const char *given = request->head_complete ? http_request_header(request, "x-request-id", NULL) : NULL;
    if (given && id_is_sane(given))
        memcpy(request->id, given, strlen(given) + 1);
    else
        http_response_make_id(request->id);
    request->start_ns = uv_hrtime();
}

static bool bodies_fit(const struct http_conn *conn)
{
    uint64_t waiting = 0;
    for (const struct http_request *request = conn->requests; request; request = request->next)
        if (request != conn->requests) waiting += request->body.length;
    return waiting <= limits.http_body_bytes;
}

static struct http_request *begin_request(struct http_conn *conn)
{
    if (conn->requests_count > limits.http_pipelined) return NULL; /* C1: the current one is not "ahead" */
    struct http_request *request = http_request_create();
    if (!request) return NULL;
    if (conn->requests_tail)
        conn->requests_tail->next = request;
    else
        conn->requests = request;
    conn->requests_tail = request;
    conn->requests_count++;
    http_parser_begin(&conn->parser, request);
    if (conn->server->handler.body_max) conn->parser.check.body_max = conn->server->handler.bodies_max;
    conn->head_ns = conn->server->now_ns;
    return request;
}

/* The head says how long the body is, and whose it is how long it may be. */
static enum http_progress check_length(struct http_conn *conn, struct http_request *request)
{
    struct http_check *check = &conn->parser.check;
    if (!conn->server->handler.body_max) return HTTP_HEAD_READ;
    check->body_max = conn->server->handler.body_max(conn->server->handler.state, request);
    if (!check->has_length || check->content_length <= check->body_max) return HTTP_HEAD_READ;
    request->refused_code = 413;
    request->refused_reason = "the request body is too large";
    conn->parser.request = NULL;
    return HTTP_REFUSED;
}

static void conn_input(struct http_conn *conn, const char *data, size_t length)
{
    while (conn->phase == OPEN && !conn->close_after) {
        if (conn->requests_tail && conn->requests_tail->refused_code) return;
        if (!conn->parser.request && (length == 0 || !begin_request(conn))) {
            if (length > 0) conn_reset(conn);
            return;
        }
        struct http_request *request = conn->parser.request;
        size_t used, held = request->body.length;
        enum http_progress progress = http_parser_feed(&conn->parser, data, length, &used);
        data += used;
        length -= used;
        conn->server->bodies_bytes += request->body.length - held;
        if (conn->server->bodies_bytes > limits.http_bodies_bytes && request->body.length > held) { /* C8 */
            progress = HTTP_REFUSED;
            request->refused_code = 503;
            request->refused_reason = "too many request bodies are being read";
            request->complete = false;
            conn->parser.request = NULL;
        }
        if (progress == HTTP_MORE) {
            if (conn->requests == request) body_tell(conn, request);
            break;
        }
        if (progress == HTTP_HEAD_READ) progress = check_length(conn, request);
        conn->head_ns = 0;
        conn->body_ns = progress == HTTP_HEAD_READ && request->has_body ? conn->server->now_ns : 0;
        if (progress == HTTP_HEAD_READ || !request->head_complete) name_request(request);
        conn_advance(conn);
    }
    if (conn->phase == OPEN && !bodies_fit(conn)) conn_reset(conn); /* C1 */
}

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buffer)
{
    (void)suggested; /* one buffer for all: its bytes are consumed before the loop reads again */
    struct http_server *server = ((struct http_conn *)handle)->server;
    *buffer = uv_buf_init(server->read_buffer, sizeof server->read_buffer);
}

static void on_read(uv_stream_t *stream, ssize_t count, const uv_buf_t *buffer)
{
    struct http_conn *conn = (struct http_conn *)stream;
    if (count == 0 || conn->phase == CLOSING) return;
    if (count < 0) { /* C4; an answer that is complete and only needs sending may still be sent */
        conn->input_ended = true;
        if (conn->phase == OPEN && conn->reply == REPLY_DONE && conn->writing)
            conn->close_after = true;
        else
            conn_close(conn);
        return;
    }
    if (conn->phase == OPEN) conn_input(conn, buffer->base, (size_t)count);
}

/* ---- time ---- */

/* A time-out of reading: an answer if the client can still get one, else just the end. */
static void time_out(struct http_conn *conn, const char *reason)
{
    struct http_request *request = conn->parser.request;
    conn->head_ns = conn->body_ns = 0;
    if (request == NULL || request != conn->requests || conn->reply != REPLY_NONE || conn->user) {
        conn_close(conn);
        return;
    }
    request->refused_code = 408;
    request->refused_reason = reason;
    conn->parser.request = NULL;
    if (!request->head_complete) name_request(request);
    conn_advance(conn);
}

static void write_tick(struct http_conn *conn, uint64_t now)
{
    size_t unsent = uv_stream_get_write_queue_size((uv_stream_t *)&conn->tcp);
    if (unsent != conn->unsent_bytes) {
        conn->unsent_bytes = unsent;
        conn->progress_ns = now;
    } else if (now - conn->progress_ns > ms(limits.stream_stall_ms))
        conn_reset(conn); /* C3 */
}

/* Time-outs of reading. A request that is read ahead has time until it is the current one. */
static void read_tick(struct http_conn *conn, uint64_t now)
{
    const struct http_request *request = conn->parser.request;
    if (request && !http_parser_begun(&conn->parser)) { /* an empty line before a request is not one */
        conn->head_ns = now;
        request = NULL;
    }
    if (request && request != conn->requests) return;
    if (!request) {
        bool idle = !conn->requests || conn->requests == conn->parser.request;
        if (idle && !conn->writing && now - conn->idle_ns > ms(limits.http_idle_timeout_ms)) conn_linger(conn);
    } else if (conn->head_ns) {
        if (now - conn->head_ns > ms(limits.http_head_timeout_ms)) time_out(conn, "the headers took too long");
    } else if (conn->body_ns) {
        uint64_t elapsed = now - conn->body_ns, grace = ms(limits.http_body_grace_ms);
        uint64_t due = elapsed > grace ? (elapsed - grace) / NS_PER_MS * limits.http_body_rate_min / 1000 : 0;
        if (request->body_length < due) time_out(conn, "the body came too slowly");
    }
}

static void conn_tick(struct http_conn *conn, uint64_t now)
{
    if (conn->phase == LINGER && now - conn->linger_ns > ms(LINGER_MS)) conn_close(conn);
    if (conn->phase == OPEN && conn->writing) write_tick(conn, now);
    if (conn->phase == OPEN) read_tick(conn, now);
}

void http_server_tick(struct http_server *server)
{
    uint64_t real = uv_hrtime(), gap = real - server->real_ns;
    server->real_ns = real;
    server->now_ns += gap < ms(TICK_GAP_MAX_MS) ? gap : ms(TICK_GAP_MAX_MS); /* C6 */
    for (struct http_conn *conn = server->conns, *next; conn; conn = next) {
        next = conn->next; /* closing is deferred to the loop: the list does not change here */
        conn_tick(conn, server->now_ns);
    }
    accept_waiting(server);
}

/* ---- accepting ---- */

static bool same_address(const struct sockaddr_storage *a, const struct sockaddr_storage *b)
{
    if (a->ss_family != b->ss_family) return false;
    if (a->ss_family == AF_INET)
        return ((const struct sockaddr_in *)a)->sin_addr.s_addr == ((const struct sockaddr_in *)b)->sin_addr.s_addr;
    return memcmp(&((const struct sockaddr_in6 *)a)->sin6_addr, &((const struct sockaddr_in6 *)b)->sin6_addr,
                  sizeof(struct in6_addr)) == 0;
}

/* Only walked where the limit can bind: the default allows one address all connections. */
static bool address_fits(const struct http_server *server, const struct http_conn *conn)
{
    if (limits.connections_per_address >= server->conns_max) return true;
    uint64_t same = 0;
    for (const struct http_conn *other = server->conns; other; other = other->next)
        same += same_address(&other->peer, &conn->peer);
    return same <= limits.connections_per_address;
}

static void set_options(struct http_conn *conn)
{
    uv_tcp_nodelay(&conn->tcp, 1);
    int fd;
    int low_water = (int)limits.stream_unsent_bytes;
    if (uv_fileno((uv_handle_t *)&conn->tcp, &fd) ==
        0) /* best effort: the kernel then refuses more unsent bytes than this */
        (void)setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &low_water, sizeof low_water);
}

static bool accept_one(struct http_server *server)
{
    struct http_conn *conn = mem_alloc(1, sizeof *conn);
    if (!conn) return false; /* tried again at the next tick */
    conn->server = server;
    conn->idle_ns = server->now_ns;
    if (uv_tcp_init(server->loop, &conn->tcp) != 0) {
        mem_free(conn);
        return false;
    }
    conn->next = server->conns;
    if (conn->next) conn->next->previous = conn;
    server->conns = conn;
    server->conns_count++;
    if (uv_accept((uv_stream_t *)&server->listener, (uv_stream_t *)&conn->tcp) != 0) {
        conn_close(conn);
        return true;
    }
    int length = sizeof conn->peer;
    if (uv_tcp_getpeername(&conn->tcp, (struct sockaddr *)&conn->peer, &length) != 0 || !address_fits(server, conn)) {
        conn_reset(conn);
        return true;
    }
    set_options(conn);
    if (uv_read_start((uv_stream_t *)&conn->tcp, on_alloc, on_read) != 0) conn_close(conn);
    return true;
}

/* libuv holds the connection it has told us of, and polls the listener again only after uv_accept: not calling it is
 * the pause (C7). */
static void accept_waiting(struct http_server *server)
{
    if (!server->accept_waits || !server->listening || server->conns_count >= server->conns_max) return;
    server->accept_waits = false;
    if (!accept_one(server)) server->accept_waits = true;
}

static void on_connection(uv_stream_t *listener, int status)
{
    struct http_server *server = listener->data;
    if (status < 0) {
        if (server->accept_errors++ % 1000 == 0)
            log_line(LOG_WARN, "http", "accept failed reason=\"%s\" times=%llu", uv_strerror(status),
                     (unsigned long long)server->accept_errors);
        return;
    }
    server->accept_waits = true;
    accept_waiting(server);
}

static enum status listen_on(struct http_server *server, const char *host, uint32_t port, struct error *err)
{
    struct sockaddr_storage address;
    if (port > 65535) return error_set(err, ST_INVAL, "port %u is above 65535", port);
    if (uv_ip4_addr(host, (int)port, (struct sockaddr_in *)&address) != 0 &&
        uv_ip6_addr(host, (int)port, (struct sockaddr_in6 *)&address) != 0) {
        if (strcmp(host, "localhost") != 0)
            return error_set(err, ST_INVAL, "host \"%s\" is not an IP address (use 0.0.0.0 for all)", host);
        (void)uv_ip4_addr("127.0.0.1", (int)port, (struct sockaddr_in *)&address);
    }
    int result = uv_tcp_bind(&server->listener, (struct sockaddr *)&address, 0);
    if (result == 0) result = uv_listen((uv_stream_t *)&server->listener, BACKLOG, on_connection);
    if (result != 0) return error_set(err, ST_IO, "cannot listen on %s port %u: %s", host, port, uv_strerror(result));
    int length = sizeof address;
    result = uv_tcp_getsockname(&server->listener, (struct sockaddr *)&address, &length);
    if (result != 0) return error_set(err, ST_IO, "cannot read the listening port: %s", uv_strerror(result));
    server->port = ntohs(address.ss_family == AF_INET ? ((struct sockaddr_in *)&address)->sin_port
                                                      : ((struct sockaddr_in6 *)&address)->sin6_port);
    server->listening = true;
    return ST_OK;
}

static void on_listener_closed(uv_handle_t *handle)
{
    struct http_server *server = handle->data;
    server->listener_open = false;
    tell_closed(server);
}

enum status http_server_create(uv_loop_t *loop, const char *host, uint32_t port, uint32_t connections_max,
                               const struct http_handler *handler, struct http_server **server, struct error *err)
{
    struct http_server *made = mem_alloc(1, sizeof *made);
    if (!made) return error_set(err, ST_NOMEM, "out of memory");
    made->loop = loop;
    made->handler = *handler;
    made->conns_max = limits.connections < connections_max ? (uint32_t)limits.connections : connections_max;
    made->real_ns = made->now_ns = uv_hrtime();
    int result = uv_tcp_init(loop, &made->listener);
    if (result != 0) {
        mem_free(made);
        return error_set(err, ST_IO, "cannot make a socket: %s", uv_strerror(result));
    }
    made->listener.data = made;
    made->listener_open = true;
    enum status status = listen_on(made, host, port, err);
    *server = made;
    if (status != ST_OK) http_server_close(made); /* the caller runs the loop until handler.closed, then destroys */
    return status;
}

uint32_t http_server_port(const struct http_server *server)
{
    return server->port;
}
uint64_t http_server_now_ns(const struct http_server *server)
{
    return server->now_ns;
}
uint32_t http_server_connections(const struct http_server *server)
{
    return server->conns_count;
}

void http_server_close_after_reply(struct http_server *server)
{
    server->close_after_reply = true;
}

void http_server_stop_listening(struct http_server *server)
{
    if (uv_is_closing((uv_handle_t *)&server->listener)) return;
    server->listening = server->accept_waits = false;
    uv_close((uv_handle_t *)&server->listener, on_listener_closed);
}

void http_server_close(struct http_server *server)
{
    server->closing = true;
    http_server_stop_listening(server);
    for (struct http_conn *conn = server->conns; conn; conn = conn->next) {
        bool idle = !conn->requests || (!conn->requests->head_complete && conn->reply == REPLY_NONE);
        if (conn->phase == OPEN && idle && !conn->writing) conn_close(conn);
    }
    tell_closed(server);
}

void http_server_close_now(struct http_server *server)
{
    http_server_close(server);
    for (struct http_conn *conn = server->conns; conn; conn = conn->next) conn_close(conn);
}

void http_server_destroy(struct http_server *server)
{
    if (!server) return;
    CHECK(server->told_closed);
    mem_free(server);
}
