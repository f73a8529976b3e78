/* Sockets and TLS for the Redis connection; see redis_wire.h.
 *
 * Sockets do not block; each wait is a poll() with what is left of the call's time. TLS runs over two memory buffers:
 *
 *     SSL_write -> outgoing buffer -> send(MSG_NOSIGNAL)        recv() -> incoming buffer -> SSL_read
 *
 * so that OpenSSL never touches the socket: one pair of functions holds all time-outs, and no path of it can raise
 * SIGPIPE (OpenSSL's own socket buffer calls write()). */
#include "server/billing/redis_wire.h"

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { CHUNK_BYTES = 16384 };

struct connection {
    int fd;
    SSL_CTX *context; /* NULL: no TLS */
    SSL *ssl;
    BIO *incoming, *outgoing; /* of ssl */
    char name[REDIS_HOST_MAX + 16];
};

void redis_address_print(const struct redis_address *address, char *out, size_t room)
{
    if (address->path[0] != '\0')
        snprintf(out, room, "%s", address->path);
    else if (strchr(address->host, ':') != NULL)
        snprintf(out, room, "[%s]:%u", address->host, address->port);
    else
        snprintf(out, room, "%s:%u", address->host, address->port);
}

static uint64_t deadline_after(uint32_t timeout_ms)
{
    return clock_now_ns(clock_system()) + timeout_ms * NS_PER_MS;
}

/* Waits for events on the socket until the deadline. */
static enum status wait_for(const struct connection *c, short events, uint64_t deadline_ns, struct error *err)
{
    for (;;) {
        uint64_t now = clock_now_ns(clock_system());
        if (now >= deadline_ns) return error_set(err, ST_TIMEOUT, "Redis %s does not answer in time", c->name);
        struct pollfd p = {c->fd, events, 0};
        int n = poll(&p, 1, (int)((deadline_ns - now + NS_PER_MS - 1) / NS_PER_MS));
        if (n > 0) return ST_OK; /* errors and hang-ups show in the next call on the socket */
        if (n < 0 && errno != EINTR) return error_set(err, ST_IO, "Redis %s: poll: %s", c->name, strerror(errno));
    }
}

static enum status send_plain(const struct connection *c, const char *bytes, size_t length, uint64_t deadline_ns,
                              struct error *err)
{
    while (length > 0) {
        ssize_t n = send(c->fd, bytes, length, MSG_NOSIGNAL);
        if (n > 0) {
            bytes += n;
            length -= (size_t)n;
        } else if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            TRY(wait_for(c, POLLOUT, deadline_ns, err));
        } else if (n == 0 || errno != EINTR) {
            return error_set(err, ST_IO, "Redis %s: send: %s", c->name, n == 0 ? "nothing taken" : strerror(errno));
        }
    }
    return ST_OK;
}

static enum status receive_plain(const struct connection *c, char *out, size_t room, uint64_t deadline_ns,
                                 size_t *length, struct error *err)
{
    for (;;) {
        ssize_t n = recv(c->fd, out, room, 0);
        if (n > 0) {
            *length = (size_t)n;
            return ST_OK;
        }
        if (n == 0) return error_set(err, ST_IO, "Redis %s closed the connection", c->name);
        if (errno == EAGAIN || errno == EWOULDBLOCK)
            TRY(wait_for(c, POLLIN, deadline_ns, err));
        else if (errno != EINTR)
            return error_set(err, ST_IO, "Redis %s: receive: %s", c->name, strerror(errno));
    }
}

/* ---- TLS ---- */

/* What OpenSSL's queue of errors says, or why the certificate was refused. */
static enum status tls_error(const struct connection *c, const char *what, enum status status, struct error *err)
{
    unsigned long code = ERR_get_error();
    long verify = c->ssl != NULL ? SSL_get_verify_result(c->ssl) : X509_V_OK;
    const char *reason = code != 0 ? ERR_reason_error_string(code) : NULL;
    ERR_clear_error();
    if (verify != X509_V_OK)
        return error_set(err, status, "Redis %s: its certificate was refused: %s", c->name,
                         X509_verify_cert_error_string(verify));
    return error_set(err, status, "Redis %s: %s: %s", c->name, what, reason != NULL ? reason : "TLS failed");
}

/* Sends what OpenSSL has put into its buffer. */
static enum status tls_flush(struct connection *c, uint64_t deadline_ns, struct error *err)
{
    char chunk[CHUNK_BYTES];
    int n;
    while ((n = BIO_read(c->outgoing, chunk, sizeof chunk)) > 0) TRY(send_plain(c, chunk, (size_t)n, deadline_ns, err));
    return ST_OK;
}

/* Does what the last call of OpenSSL, which returned `result`, waits for. */
static enum status tls_continue(struct connection *c, int result, uint64_t deadline_ns, const char *what,
                                struct error *err)
{
    int wants = SSL_get_error(c->ssl, result);
    /* also after a failure: the alert tells the peer why */
    enum status flushed = tls_flush(c, deadline_ns, err);
    if (wants == SSL_ERROR_ZERO_RETURN) return error_set(err, ST_IO, "Redis %s closed the connection", c->name);
    if (wants != SSL_ERROR_WANT_READ && wants != SSL_ERROR_WANT_WRITE) return tls_error(c, what, ST_IO, err);
    TRY(flushed);
    if (wants == SSL_ERROR_WANT_WRITE) return ST_OK;
    /* a peer may feed records without content for ever */
    if (clock_now_ns(clock_system()) >= deadline_ns)
        return error_set(err, ST_TIMEOUT, "Redis %s does not answer in time", c->name);
    char chunk[CHUNK_BYTES];
    size_t length = 0;
    TRY(receive_plain(c, chunk, sizeof chunk, deadline_ns, &length, err));
    if (BIO_write(c->incoming, chunk, (int)length) != (int)length)
        return error_set(err, ST_NOMEM, "Redis %s: no memory for TLS", c->name);
    return ST_OK;
}

/* A key file that asks for a pass phrase is refused, instead of asking on the terminal. */
static int no_pass_phrase(char *out, int room, int writing, void *state)
{
    (void)out, (void)room, (void)writing, (void)state;
    return -1;
}

/* Files of ours, and whom the peer must be. */
static enum status tls_settings(struct connection *c, const struct redis_address *address, const struct redis_tls *tls,
                                struct error *err)
{
    SSL_CTX_set_verify(c->context, SSL_VERIFY_PEER, NULL);
    SSL_CTX_set_default_passwd_cb(c->context, no_pass_phrase);
    if (SSL_CTX_set_min_proto_version(c->context, TLS1_2_VERSION) != 1) return tls_error(c, "TLS 1.2", ST_INVAL, err);
    if (tls->ca_file[0] != '\0') {
        if (SSL_CTX_load_verify_locations(c->context, tls->ca_file, NULL) != 1)
            return tls_error(c, "the file of --redis-ca-file holds no certificates that can be read", ST_INVAL, err);
    } else if (SSL_CTX_set_default_verify_paths(c->context) != 1) {
        return tls_error(c, "the system's certificates", ST_INVAL, err);
    }
    if (tls->cert_file[0] != '\0') {
        if (SSL_CTX_use_certificate_chain_file(c->context, tls->cert_file) != 1)
            return tls_error(c, "the file of --redis-cert-file", ST_INVAL, err);
        const char *key = tls->key_file[0] != '\0' ? tls->key_file : tls->cert_file;
        if (SSL_CTX_use_PrivateKey_file(c->context, key, SSL_FILETYPE_PEM) != 1 ||
            SSL_CTX_check_private_key(c->context) != 1)
            return tls_error(c, "the file of --redis-key-file", ST_INVAL, err);
    }
    c->ssl = SSL_new(c->context);
    c->incoming = BIO_new(BIO_s_mem());
    c->outgoing = BIO_new(BIO_s_mem());
    if (c->ssl == NULL || c->incoming == NULL || c->outgoing == NULL) {
        BIO_free(c->incoming);
        BIO_free(c->outgoing);
        return error_set(err, ST_NOMEM, "Redis %s: no memory for TLS", c->name);
    }
    SSL_set_bio(c->ssl, c->incoming, c->outgoing);
    unsigned char number[16];
    char host[sizeof address->host]; /* OpenSSL's macro wants it without const, and copies it */
    memcpy(host, address->host, sizeof host);
    bool is_number = inet_pton(AF_INET, address->host, number) == 1 || inet_pton(AF_INET6, address->host, number) == 1;
    bool named = is_number ? X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(c->ssl), address->host) == 1
                           : SSL_set1_host(c->ssl, address->host) == 1 && SSL_set_tlsext_host_name(c->ssl, host) == 1;
    return named ? ST_OK : tls_error(c, "host name", ST_INVAL, err);
}

static enum status tls_open(struct connection *c, const struct redis_address *address, const struct redis_tls *tls,
                            uint64_t deadline_ns, struct error *err)
{
    ERR_clear_error();
    c->context = SSL_CTX_new(TLS_client_method());
    if (c->context == NULL) return error_set(err, ST_NOMEM, "Redis %s: no memory for TLS", c->name);
    TRY(tls_settings(c, address, tls, err));
    for (;;) {
        ERR_clear_error();
        int n = SSL_connect(c->ssl);
        if (n == 1) return tls_flush(c, deadline_ns, err);
        TRY(tls_continue(c, n, deadline_ns, "TLS handshake", err));
    }
}

/* ---- the table ---- */

static void wire_close(void *state, void *connection)
{
    (void)state;
    struct connection *c = connection;
    SSL_free(c->ssl); /* and its buffers */
    SSL_CTX_free(c->context);
    if (c->fd >= 0) close(c->fd);
    mem_free(c);
}

/* Connects a socket to one address. */
static enum status connect_to(struct connection *c, int family, const struct sockaddr *address, socklen_t length,
                              uint64_t deadline_ns, struct error *err)
{
    c->fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (c->fd < 0) return error_set(err, ST_IO, "Redis %s: socket: %s", c->name, strerror(errno));
    int failure = 0;
    enum status status = ST_OK;
    if (connect(c->fd, address, length) != 0) {
        failure = errno;
        if (failure == EINPROGRESS || failure == EINTR) {
            status = wait_for(c, POLLOUT, deadline_ns, err);
            socklen_t bytes = sizeof failure;
            if (status == ST_OK && getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &failure, &bytes) != 0) failure = errno;
        }
    }
    if (status == ST_OK && failure != 0)
        status = error_set(err, ST_IO, "Redis %s: connect: %s", c->name, strerror(failure));
    if (status != ST_OK) {
        close(c->fd);
        c->fd = -1;
    }
    return status;
}

static enum status connect_name(struct connection *c, const struct redis_address *address, uint64_t deadline_ns,
                                struct error *err)
{
    char port[8];
    snprintf(port, sizeof port, "%u", address->port);
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV}, *list = NULL;
    int failure = getaddrinfo(address->host, port, &hints, &list);
    if (failure != 0) return error_set(err, ST_IO, "Redis %s: %s", c->name, gai_strerror(failure));
    enum status status = ST_IO;
    for (const struct addrinfo *a = list; a != NULL; a = a->ai_next) {
        status = connect_to(c, a->ai_family, a->ai_addr, a->ai_addrlen, deadline_ns, err);
        if (status == ST_OK) break;
    }
    freeaddrinfo(list);
    if (status != ST_OK) return status;
    int on = 1;
    (void)setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    (void)setsockopt(c->fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    return ST_OK;
}

static enum status connect_path(struct connection *c, const struct redis_address *address, uint64_t deadline_ns,
                                struct error *err)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    _Static_assert(sizeof a.sun_path == REDIS_PATH_MAX + 1, "a path that fits");
    memcpy(a.sun_path, address->path, sizeof a.sun_path);
    return connect_to(c, AF_UNIX, (const struct sockaddr *)&a, sizeof a, deadline_ns, err);
}

static enum status wire_open(void *state, const struct redis_address *address, const struct redis_tls *tls,
                             uint32_t timeout_ms, void **connection, struct error *err)
{
    struct connection *c = mem_alloc(1, sizeof *c);
    if (c == NULL) return error_set(err, ST_NOMEM, "no memory for a connection to Redis");
    c->fd = -1;
    redis_address_print(address, c->name, sizeof c->name);
    uint64_t deadline_ns = deadline_after(timeout_ms);
    enum status status = address->path[0] != '\0' ? connect_path(c, address, deadline_ns, err)
                                                  : connect_name(c, address, deadline_ns, err);
    if (status == ST_OK && tls->on) status = tls_open(c, address, tls, deadline_ns, err);
    if (status == ST_OK)
        *connection = c;
    else
        wire_close(state, c);
    return status;
}

static enum status wire_send(void *state, void *connection, const void *bytes, size_t length, uint32_t timeout_ms,
                             struct error *err)
{
    (void)state;
    struct connection *c = connection;
    uint64_t deadline_ns = deadline_after(timeout_ms);
    if (c->ssl == NULL) return send_plain(c, bytes, length, deadline_ns, err);
    const char *from = bytes;
    while (length > 0) {
        ERR_clear_error();
        int n = SSL_write(c->ssl, from, (int)(length < CHUNK_BYTES ? length : CHUNK_BYTES));
        if (n <= 0) {
            TRY(tls_continue(c, n, deadline_ns, "TLS write", err));
            continue;
        }
        from += n;
        length -= (size_t)n;
        TRY(tls_flush(c, deadline_ns, err));
    }
    return ST_OK;
}

static enum status wire_receive(void *state, void *connection, void *out, size_t room, uint32_t timeout_ms,
                                size_t *length, struct error *err)
{
    (void)state;
    struct connection *c = connection;
    uint64_t deadline_ns = deadline_after(timeout_ms);
    if (c->ssl == NULL) return receive_plain(c, out, room, deadline_ns, length, err);
    for (;;) {
        ERR_clear_error();
        int n = SSL_read(c->ssl, out, (int)(room < CHUNK_BYTES ? room : CHUNK_BYTES));
        if (n > 0) {
            *length = (size_t)n;
            return ST_OK;
        }
        TRY(tls_continue(c, n, deadline_ns, "TLS read", err));
    }
}

const struct redis_wire *redis_wire_system(void)
{
    static const struct redis_wire wire = {NULL, wire_open, wire_send, wire_receive, wire_close};
    return &wire;
}
