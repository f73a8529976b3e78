/* The way to a ledger in Redis: one server, the master that Sentinels name, or the masters of a Cluster.
 *
 *   --redis URL --redis_target_read--> target --redis_link_create--> link --redis_link_route(slot)--> node (a master)
 *                                                             commands out, replies in, in order, many in flight
 *
 * K1  A node is a server that said of itself "master" on this very connection; a replica is never written to (a
 *     Sentinel's word alone is not enough: it may be late).
 * K2  After any failure a connection is closed: whether Redis did the last call is not known, and asking again is the
 *     caller's business, who has a high-water mark for that. redis_node_generation changes with each connection.
 * K3  A failed node is tried again after 50 ms, twice that, .. 2 s, each between a half and the whole of it by chance,
 *     so that many nodes do not come back at once. Every wait has an end.
 * K4  A password is never in a URL, a message or a log.
 *
 * Rights that a user needs: README.md of this folder. One thread a link. */
#ifndef SERVER_BILLING_REDIS_LINK_H
#define SERVER_BILLING_REDIS_LINK_H

#include "runtime/base/clock.h"
#include "server/billing/redis_reply.h"
#include "server/billing/redis_wire.h"

enum { REDIS_ADDRESSES_MAX = 16, REDIS_NODES_MAX = 64, REDIS_SLOTS = 16384, REDIS_NAME_MAX = 127 };
enum { REDIS_PASSWORD_MAX = 511, REDIS_TIMEOUT_MS = 2000 };

enum redis_kind { REDIS_SINGLE, REDIS_SENTINEL, REDIS_CLUSTER };

struct redis_target {
    enum redis_kind kind;
    struct redis_address addresses[REDIS_ADDRESSES_MAX]; /* server, Sentinels, or some of the Cluster's nodes */
    uint32_t addresses_count;
    char master[REDIS_NAME_MAX + 1]; /* Sentinel's name for it */
    char user[REDIS_NAME_MAX + 1];   /* "": the default user */
    char password[REDIS_PASSWORD_MAX + 1];
    struct redis_tls tls;
    uint32_t timeout_ms; /* of a connect, and of a reply */
    /* Seams; redis_target_read sets the machine's. */
    const struct redis_wire *wire;
    const struct clock *clock;
};

/* As the options of these names hold them; NULL: not given. */
struct redis_settings {
    const char *url, *password, *password_file, *ca_file, *cert_file, *key_file;
};
/* Forms: --redis in options.c. ST_INVAL: err says what is wrong; ST_IO: the password file. */
NODISCARD enum status redis_target_read(const struct redis_settings *settings, struct redis_target *target,
                                        struct error *err);

struct redis_link;

/* Called after each connect, before anything else is sent, with a node that is a master: loads the library, checks
 * settings. A failure closes the node again and is the failure of redis_link_route. */
typedef enum status (*redis_prepare_fn)(void *state, struct redis_link *link, uint32_t node, struct error *err);

/* target is borrowed for the link's life. Connects nothing. ST_NOMEM. */
NODISCARD enum status redis_link_create(const struct redis_target *target, redis_prepare_fn prepare, void *state,
                                        struct redis_link **link);
void redis_link_destroy(struct redis_link *link);

/* The slot of a key: CRC16 of what stands in its first braces, or of all of it (Redis Cluster specification). */
uint16_t redis_slot(const char *key);

/* The node that serves a slot, connected. ST_AGAIN: it failed and its pause is not over; ST_IO, ST_TIMEOUT, ST_PROTO,
 * ST_NOMEM, ST_INVAL (err). */
NODISCARD enum status redis_link_route(struct redis_link *link, uint16_t slot, uint32_t *node, struct error *err);
/* What a fault of a slot's reply says about the way: MOVED changes the map, READONLY closes the node and asks who the
 * master is. asked: set to the node that an ASK names, for redis_node_ask; else REDIS_NODES_MAX. */
void redis_link_learn(struct redis_link *link, uint16_t slot, uint32_t node, const struct redis_reply *reply,
                      uint32_t *asked);
/* How long until a node may be tried again; 0: now. */
uint64_t redis_link_pause_ns(const struct redis_link *link);
uint32_t redis_link_nodes(const struct redis_link *link); /* known ones, so that all can be visited */

/* Commands to a node. send only queues; flush writes; receive waits for the next reply, within timeout_ms from its
 * call. After a failure the node is closed and all its outstanding replies are lost. */
NODISCARD enum status redis_node_send(struct redis_link *link, uint32_t node, const struct redis_command *command);
NODISCARD enum status redis_node_flush(struct redis_link *link, uint32_t node, struct error *err);
NODISCARD enum status redis_node_receive(struct redis_link *link, uint32_t node, uint32_t timeout_ms,
                                         struct redis_reply **reply, struct error *err);
/* What comes unasked after a SUBSCRIBE. ST_TIMEOUT: nothing has, and the node stays open; any other failure closes it.
 */
NODISCARD enum status redis_node_listen(struct redis_link *link, uint32_t node, uint32_t timeout_ms,
                                        struct redis_reply **reply, struct error *err);
void redis_node_close(struct redis_link *link, uint32_t node);
bool redis_node_open(const struct redis_link *link, uint32_t node);
uint64_t redis_node_generation(const struct redis_link *link, uint32_t node); /* of the open connection */
/* Connects a node that an ASK has named, or that is only asked about its settings. */
NODISCARD enum status redis_node_connect(struct redis_link *link, uint32_t node, struct error *err);
const char *redis_node_name(const struct redis_link *link, uint32_t node, char room[REDIS_HOST_MAX + 16]);

/* One command and its reply on an open node, without redirection. */
NODISCARD enum status redis_node_call(struct redis_link *link, uint32_t node, const struct redis_command *command,
                                      struct redis_reply **reply, struct error *err);
/* One command to the master of a slot: follows MOVED and ASK, waits out what passes (LOADING, TRYAGAIN, a failover)
 * until timeout_ms is over. The reply may be an error of another kind. A command whose outcome is not known is not
 * sent again: ST_IO, ST_TIMEOUT. */
NODISCARD enum status redis_link_call(struct redis_link *link, uint16_t slot, const struct redis_command *command,
                                      uint32_t timeout_ms, struct redis_reply **reply, struct error *err);

#endif
