/* See agent_port.h. */
#include "server/agent_port.h"

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"

#include <arpa/inet.h>
#include <string.h>

enum { BACKLOG = 64 };

struct agent_conn {
    struct agent_port *port;
    uv_tcp_t tcp;
    uv_write_t write;
    uv_shutdown_t shutdown;
    char line[AGENT_LINE_BYTES_MAX];
    char dropped[256]; /* what the client sent */
    uint64_t since_ns; /* 0: looked at by no tick yet */
    bool taken;
};

struct agent_port {
    uv_loop_t *loop;
    struct agent_handler handler;
    uv_tcp_t listener;
    uint32_t number;
    uint32_t open; /* handles that the loop still has, the listener too */
    bool closing, accept_waits;
    struct agent_conn conns[AGENT_CONNS_MAX];
};

static void tell_closed(struct agent_port *port)
{
    if (--port->open == 0) port->handler.closed(port->handler.state);
}

static void on_conn_closed(uv_handle_t *handle)
{
    struct agent_conn *conn = handle->data;
    conn->taken = false;
    tell_closed(conn->port);
}

static void end_conn(struct agent_conn *conn)
{
    if (!uv_is_closing((uv_handle_t *)&conn->tcp)) uv_close((uv_handle_t *)&conn->tcp, on_conn_closed);
}

static void on_alloc(uv_handle_t *handle, size_t wanted, uv_buf_t *buf)
{
    struct agent_conn *conn = handle->data;
    (void)wanted;
    *buf = uv_buf_init(conn->dropped, sizeof conn->dropped);
}

static void on_read(uv_stream_t *stream, ssize_t length, const uv_buf_t *buf)
{
    (void)buf;
    if (length < 0) end_conn(stream->data);
}

static void on_shut(uv_shutdown_t *shutdown, int status)
{
    struct agent_conn *conn = shutdown->data;
    if (status != 0) end_conn(conn);
}

static void on_written(uv_write_t *write, int status)
{
    struct agent_conn *conn = write->data;
    if (status != 0 || uv_shutdown(&conn->shutdown, (uv_stream_t *)&conn->tcp, on_shut) != 0) end_conn(conn);
}

static void accept_one(struct agent_port *port, struct agent_conn *conn)
{
    if (uv_tcp_init(port->loop, &conn->tcp) != 0) return; /* without descriptors it waits for the next tick */
    *conn = (struct agent_conn){.port = port, .tcp = conn->tcp, .taken = true};
    conn->tcp.data = conn->write.data = conn->shutdown.data = conn;
    port->open++;
    port->accept_waits = false;
    uv_buf_t line = uv_buf_init(conn->line, (unsigned)port->handler.line(port->handler.state, conn->line));
    uv_stream_t *stream = (uv_stream_t *)&conn->tcp;
    if (uv_accept((uv_stream_t *)&port->listener, stream) != 0 || uv_read_start(stream, on_alloc, on_read) != 0 ||
        uv_write(&conn->write, stream, &line, 1, on_written) != 0)
        end_conn(conn);
}

/* libuv polls the listener again only after uv_accept: not calling it is the pause. */
static void accept_waiting(struct agent_port *port)
{
    for (uint32_t i = 0; i < AGENT_CONNS_MAX && port->accept_waits && !port->closing; i++)
        if (!port->conns[i].taken) {
            accept_one(port, &port->conns[i]);
            return;
        }
}

static void on_connection(uv_stream_t *listener, int status)
{
    struct agent_port *port = listener->data;
    if (status < 0) return; /* the next one is told of again */
    port->accept_waits = true;
    accept_waiting(port);
}

void agent_port_tick(struct agent_port *port, uint64_t now_ns)
{
    for (uint32_t i = 0; i < AGENT_CONNS_MAX; i++) {
        struct agent_conn *conn = &port->conns[i];
        if (!conn->taken) continue;
        if (conn->since_ns == 0) conn->since_ns = now_ns;
        if (now_ns - conn->since_ns >= AGENT_CONN_MS * NS_PER_MS) end_conn(conn);
    }
    accept_waiting(port);
}

static void on_listener_closed(uv_handle_t *handle)
{
    tell_closed(handle->data);
}

void agent_port_close(struct agent_port *port)
{
    if (port->closing) return;
    port->closing = true;
    uv_close((uv_handle_t *)&port->listener, on_listener_closed);
    for (uint32_t i = 0; i < AGENT_CONNS_MAX; i++)
        if (port->conns[i].taken) end_conn(&port->conns[i]);
}

static enum status listen_on(struct agent_port *port, const char *host, uint32_t number, struct error *err)
{
    struct sockaddr_storage address;
    if (uv_ip4_addr(host, (int)number, (struct sockaddr_in *)&address) != 0 &&
        uv_ip6_addr(host, (int)number, (struct sockaddr_in6 *)&address) != 0)
        return error_set(err, ST_INVAL, "agent-host \"%s\" is not an IP address (use 0.0.0.0 for all)", host);
    int result = uv_tcp_bind(&port->listener, (struct sockaddr *)&address, 0);
    if (result == 0) result = uv_listen((uv_stream_t *)&port->listener, BACKLOG, on_connection);
    int length = sizeof address;
    if (result == 0) result = uv_tcp_getsockname(&port->listener, (struct sockaddr *)&address, &length);
    if (result != 0)
        return error_set(err, ST_IO, "cannot listen on %s agent-port %u: %s", host, number, uv_strerror(result));
    port->number = ntohs(address.ss_family == AF_INET ? ((struct sockaddr_in *)&address)->sin_port
                                                      : ((struct sockaddr_in6 *)&address)->sin6_port);
    return ST_OK;
}

enum status agent_port_create(uv_loop_t *loop, const char *host, uint32_t number, const struct agent_handler *handler,
                              struct agent_port **port, struct error *err)
{
    struct agent_port *made = mem_alloc(1, sizeof *made);
    if (!made) return error_set(err, ST_NOMEM, "out of memory");
    made->loop = loop;
    made->handler = *handler;
    int result = uv_tcp_init(loop, &made->listener);
    if (result != 0) {
        mem_free(made);
        return error_set(err, ST_IO, "cannot make a socket: %s", uv_strerror(result));
    }
    made->listener.data = made;
    made->open = 1;
    *port = made;
    return listen_on(made, host, number, err);
}

uint32_t agent_port_number(const struct agent_port *port)
{
    return port->number;
}

void agent_port_destroy(struct agent_port *port)
{
    mem_free(port);
}
