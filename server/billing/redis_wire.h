/* The network under the Redis connection: connect, send, receive, close, each within a time it is given.
 *
 * A table of calls, so that a test puts a hostile or failing peer in its place. The machine's own speaks TCP, Unix
 * sockets and TLS. hiredis is used for the protocol alone (redis_reply.h), because the one that Debian 12 has, 0.14.1,
 * has no TLS, does not check a certificate's name in any version up to 1.4.1, waits for a name server and a connect
 * without a bound, raises SIGPIPE, and puts no cap on a reply. A side process for TLS (stunnel) was rejected: one more
 * thing to start, to watch and to explain.
 *
 * A connection is used by one thread at a time; connections do not know of each other. After any status but ST_OK a
 * connection can only be closed: what the peer has seen of the last bytes is not known. */
#ifndef SERVER_BILLING_REDIS_WIRE_H
#define SERVER_BILLING_REDIS_WIRE_H

#include "runtime/base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { REDIS_HOST_MAX = 253, REDIS_PATH_MAX = 107, REDIS_FILE_MAX = 511 };

struct redis_address {
    char host[REDIS_HOST_MAX + 1]; /* name or number; IPv6 without brackets */
    uint16_t port;
    char path[REDIS_PATH_MAX + 1]; /* not empty: this Unix socket instead */
};

/* The peer's certificate must lead to ca_file (or the system's authorities) and be made out to the address' host. */
struct redis_tls {
    bool on;
    char ca_file[REDIS_FILE_MAX + 1];                                 /* PEM; "": the system's */
    char cert_file[REDIS_FILE_MAX + 1], key_file[REDIS_FILE_MAX + 1]; /* ours; "": none is shown */
};

struct redis_wire {
    void *state;
    /* ST_IO (refused, unknown name, certificate: err says which), ST_TIMEOUT, ST_NOMEM, ST_INVAL (our own files). A
     * host that is a name is asked of the system's resolver, whose own time-outs apply. */
    enum status (*open)(void *state, const struct redis_address *address, const struct redis_tls *tls,
                        uint32_t timeout_ms, void **connection, struct error *err);
    /* All of the bytes. ST_IO, ST_TIMEOUT. */
    enum status (*send)(void *state, void *connection, const void *bytes, size_t length, uint32_t timeout_ms,
                        struct error *err);
    /* What is there, at least one byte. ST_IO (also: closed by the peer), ST_TIMEOUT. */
    enum status (*receive)(void *state, void *connection, void *out, size_t room, uint32_t timeout_ms, size_t *length,
                           struct error *err);
    void (*close)(void *state, void *connection);
};

/* The machine's. Static. */
const struct redis_wire *redis_wire_system(void);

/* "host:port" or the path, for messages. out: at least REDIS_HOST_MAX + 10 bytes. */
void redis_address_print(const struct redis_address *address, char *out, size_t room);

#endif
