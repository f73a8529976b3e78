/* Connections to the nodes of a ledger in Redis, their pauses, and single calls; see redis_link.h. Who the master is:
 * redis_master.c.
 *
 *   closed --node_connect: open, AUTH, ROLE, prepare--> open --any failure: node_failed--> closed, paused
 */
#include "server/billing/redis_link_parts.h"

#include "runtime/base/check.h"
#include "runtime/base/mem.h"
#include "runtime/base/random.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

enum { PAUSE_MS_MIN = 50, PAUSE_MS_MAX = 2000, RECEIVE_BYTES = 16384, WAIT_MS = 25 };
/* A server that does not know AUTH may repeat its arguments, whole or cut: so much of a password tells it. */
enum { PASSWORD_TELLS = 4 };
/* A connection that lived this long was a good one: its end is no repetition of earlier failures. */
#define STEADY_NS NS_PER_S

uint64_t link_now_ns(const struct redis_link *link)
{
    return clock_now_ns(link->target->clock);
}

enum status redis_link_create(const struct redis_target *target, redis_prepare_fn prepare, void *state,
                              struct redis_link **link)
{
    CHECK(target->addresses_count > 0 && target->wire != NULL && target->clock != NULL);
    struct redis_link *l = mem_alloc(1, sizeof *l);
    if (l == NULL) return ST_NOMEM;
    l->target = target;
    l->prepare = prepare;
    l->prepare_state = state;
    random_fill(&l->random, sizeof l->random);
    memset(l->map, REDIS_NODES_MAX, sizeof l->map);
    if (target->kind != REDIS_CLUSTER) {
        l->nodes_count = 1;
        l->nodes[0].address = target->addresses[0];
        memset(l->map, 0, sizeof l->map);
    }
    *link = l;
    return ST_OK;
}

static void shut(struct redis_link *l, struct redis_node *n)
{
    if (n->connection != NULL) l->target->wire->close(l->target->wire->state, n->connection);
    n->connection = NULL;
    redis_reader_destroy(n->reader);
    n->reader = NULL;
    buf_free(&n->out);
    n->owed = 0;
}

void redis_link_destroy(struct redis_link *link)
{
    if (link == NULL) return;
    for (uint32_t i = 0; i < link->nodes_count; i++) shut(link, &link->nodes[i]);
    mem_free(link);
}

/* K3 */
static uint64_t next_pause_ns(struct redis_link *l, uint32_t failures)
{
    uint64_t ms = failures >= 7 ? PAUSE_MS_MAX : (uint64_t)PAUSE_MS_MIN << (failures - 1);
    if (ms > PAUSE_MS_MAX) ms = PAUSE_MS_MAX;
    uint64_t half = ms * NS_PER_MS / 2;
    return half + random_next(&l->random) % (half + 1);
}

void redis_node_close(struct redis_link *link, uint32_t node)
{
    struct redis_node *n = &link->nodes[node];
    uint64_t now = link_now_ns(link);
    if (n->connection != NULL && now - n->opened_ns > STEADY_NS) n->failures = 0;
    shut(link, n);
    n->failures++;
    n->retry_ns = now + next_pause_ns(link, n->failures);
    link->map_stale = true;
}

bool redis_node_open(const struct redis_link *link, uint32_t node)
{
    return node < link->nodes_count && link->nodes[node].connection != NULL;
}

uint64_t redis_node_generation(const struct redis_link *link, uint32_t node)
{
    return link->nodes[node].generation;
}

uint32_t redis_link_nodes(const struct redis_link *link)
{
    return link->nodes_count;
}

const char *redis_node_name(const struct redis_link *link, uint32_t node, char room[REDIS_HOST_MAX + 16])
{
    redis_address_print(&link->nodes[node].address, room, REDIS_HOST_MAX + 16);
    return room;
}

uint64_t redis_link_pause_ns(const struct redis_link *link)
{
    uint64_t now = link_now_ns(link), least = UINT64_MAX;
    for (uint32_t i = 0; i < link->nodes_count; i++) {
        const struct redis_node *n = &link->nodes[i];
        if (n->connection == NULL && n->retry_ns < least) least = n->retry_ns;
    }
    if (link->map_retry_ns != 0 && link->map_retry_ns < least && link->map_stale) least = link->map_retry_ns;
    return least <= now || least == UINT64_MAX ? 0 : least - now;
}

/* ---- commands and replies ---- */

enum status redis_node_send(struct redis_link *link, uint32_t node, const struct redis_command *command)
{
    struct redis_node *n = &link->nodes[node];
    if (n->connection == NULL) return ST_IO;
    TRY(redis_command_print(command, &n->out));
    n->owed++;
    return ST_OK;
}

enum status redis_node_flush(struct redis_link *link, uint32_t node, struct error *err)
{
    struct redis_node *n = &link->nodes[node];
    if (n->connection == NULL) return error_set(err, ST_IO, "Redis: the connection is closed");
    if (n->out.length == 0) return ST_OK;
    const struct redis_wire *wire = link->target->wire;
    enum status status =
        wire->send(wire->state, n->connection, n->out.data, n->out.length, link->target->timeout_ms, err);
    buf_clear(&n->out);
    if (status != ST_OK) redis_node_close(link, node);
    return status;
}

/* The next reply, or push; the node stays as it is whatever comes. */
static enum status read_next(struct redis_link *link, uint32_t node, uint32_t timeout_ms, struct redis_reply **reply,
                             struct error *err)
{
    struct redis_node *n = &link->nodes[node];
    const struct redis_wire *wire = link->target->wire;
    uint64_t deadline = link_now_ns(link) + timeout_ms * NS_PER_MS;
    enum status status;
    while ((status = redis_reader_next(n->reader, reply, err)) == ST_AGAIN) {
        char bytes[RECEIVE_BYTES];
        size_t length = 0;
        uint64_t now = link_now_ns(link);
        if (now >= deadline) {
            /* also against a peer that sends a byte now and then */
            status = error_set(err, ST_TIMEOUT, "Redis does not answer in time");
            break;
        }
        status = wire->receive(wire->state, n->connection, bytes, sizeof bytes,
                               (uint32_t)((deadline - now + NS_PER_MS - 1) / NS_PER_MS), &length, err);
        if (status == ST_OK) status = redis_reader_feed(n->reader, bytes, length, err);
        if (status != ST_OK) break;
    }
    return status;
}

enum status redis_node_receive(struct redis_link *link, uint32_t node, uint32_t timeout_ms, struct redis_reply **reply,
                               struct error *err)
{
    struct redis_node *n = &link->nodes[node];
    if (n->connection == NULL) return error_set(err, ST_IO, "Redis: the connection is closed");
    CHECK(n->owed > 0);
    enum status status = read_next(link, node, timeout_ms, reply, err);
    if (status != ST_OK)
        redis_node_close(link, node);
    else
        n->owed--;
    return status;
}

enum status redis_node_listen(struct redis_link *link, uint32_t node, uint32_t timeout_ms, struct redis_reply **reply,
                              struct error *err)
{
    struct redis_node *n = &link->nodes[node];
    if (n->connection == NULL) return error_set(err, ST_IO, "Redis: the connection is closed");
    CHECK(n->owed == 0);
    enum status status = read_next(link, node, timeout_ms, reply, err);
    if (status != ST_OK && status != ST_TIMEOUT) redis_node_close(link, node);
    return status;
}

enum status redis_node_call(struct redis_link *link, uint32_t node, const struct redis_command *command,
                            struct redis_reply **reply, struct error *err)
{
    CHECK(link->nodes[node].owed == 0);
    if (redis_node_send(link, node, command) != ST_OK) return error_set(err, ST_NOMEM, "no memory for a Redis command");
    TRY(redis_node_flush(link, node, err));
    return redis_node_receive(link, node, link->target->timeout_ms, reply, err);
}

/* ---- connecting ---- */

/* A call whose reply decides whether the connection is good: the reply must be no error. */
static enum status must(struct redis_link *l, uint32_t node, const struct redis_command *command, const char *what,
                        struct redis_reply **reply, struct error *err)
{
    TRY(redis_node_call(l, node, command, reply, err));
    if ((*reply)->type != REDIS_ERROR) return ST_OK;
    char name[REDIS_HOST_MAX + 16];
    enum status status = error_set(err, redis_fault_of(*reply) == REDIS_FAULT_RIGHTS ? ST_INVAL : ST_IO,
                                   "Redis %s: %s: %s", redis_node_name(l, node, name), what, (*reply)->text);
    redis_reply_free(*reply);
    *reply = NULL;
    return status;
}

enum status link_authenticate(struct redis_link *l, uint32_t node, struct error *err)
{
    if (l->target->password[0] == '\0') return ST_OK;
    bool named = l->target->user[0] != '\0';
    const char *arguments[3] = {"AUTH", named ? l->target->user : l->target->password, l->target->password};
    struct redis_reply *reply = NULL;
    enum status status = must(l, node, &(struct redis_command){named ? 3 : 2, arguments, NULL}, "AUTH", &reply, err);
    redis_reply_free(reply);
    char begin[PASSWORD_TELLS + 1], name[REDIS_HOST_MAX + 16]; /* K4 */
    snprintf(begin, sizeof begin, "%.*s", PASSWORD_TELLS, l->target->password);
    if (status != ST_OK && strstr(err->message, begin) != NULL)
        status = error_set(err, status, "Redis %s: AUTH is refused, in words that may hold what was sent",
                           redis_node_name(l, node, name));
    explicit_bzero(begin, sizeof begin);
    return status;
}

/* K1 */
static enum status check_role(struct redis_link *l, uint32_t node, struct error *err)
{
    const char *arguments[] = {"ROLE"};
    struct redis_reply *reply = NULL;
    TRY(must(l, node, &(struct redis_command){1, arguments, NULL}, "ROLE", &reply, err));
    const char *role = redis_reply_text_at(reply, 0);
    char name[REDIS_HOST_MAX + 16];
    enum status status = ST_OK;
    if (role == NULL)
        status =
            error_set(err, ST_PROTO, "Redis %s: ROLE has no answer that can be read", redis_node_name(l, node, name));
    else if (strcmp(role, "master") != 0)
        status = error_set(err, ST_IO, "Redis %s is no master but a %.16s", redis_node_name(l, node, name), role);
    redis_reply_free(reply);
    return status;
}

enum status link_dial(struct redis_link *l, uint32_t node, struct error *err)
{
    struct redis_node *n = &l->nodes[node];
    const struct redis_wire *wire = l->target->wire;
    if (redis_reader_create(&n->reader) != ST_OK) return error_set(err, ST_NOMEM, "no memory for a Redis connection");
    void *connection = NULL;
    enum status status = wire->open(wire->state, &n->address, &l->target->tls, l->target->timeout_ms, &connection, err);
    if (status != ST_OK) {
        redis_reader_destroy(n->reader);
        n->reader = NULL;
        return status;
    }
    n->connection = connection;
    n->generation = ++l->generations;
    n->opened_ns = link_now_ns(l);
    return ST_OK;
}

enum status redis_node_connect(struct redis_link *link, uint32_t node, struct error *err)
{
    struct redis_node *n = &link->nodes[node];
    if (n->connection != NULL) return ST_OK;
    if (link_now_ns(link) < n->retry_ns) return ST_AGAIN;
    enum status status = link->target->kind == REDIS_SENTINEL ? link_find_master(link, err) : ST_OK;
    if (status == ST_OK) status = link_dial(link, node, err);
    if (status == ST_OK) status = link_authenticate(link, node, err);
    if (status == ST_OK) status = check_role(link, node, err);
    if (status == ST_OK && link->prepare != NULL) status = link->prepare(link->prepare_state, link, node, err);
    if (status != ST_OK) redis_node_close(link, node);
    return status == ST_AGAIN ? ST_IO : status;
}

enum status redis_link_route(struct redis_link *link, uint16_t slot, uint32_t *node, struct error *err)
{
    CHECK(slot < REDIS_SLOTS);
    if (link->target->kind == REDIS_CLUSTER && (link->map_stale || link->map[slot] == REDIS_NODES_MAX))
        TRY(link_read_map(link, slot, err));
    uint32_t i = link->map[slot];
    TRY(redis_node_connect(link, i, err));
    *node = i;
    return ST_OK;
}

void redis_link_learn(struct redis_link *link, uint16_t slot, uint32_t node, const struct redis_reply *reply,
                      uint32_t *asked)
{
    *asked = REDIS_NODES_MAX;
    enum redis_fault fault = redis_fault_of(reply);
    if (fault == REDIS_FAULT_MASTER) redis_node_close(link, node);
    if (fault != REDIS_FAULT_MOVED && fault != REDIS_FAULT_ASK) return;
    if (link->target->kind != REDIS_CLUSTER) return; /* a Cluster addressed as a single server stays an error */
    struct redis_address address = {.port = 0};
    uint16_t named = 0;
    if (!redis_fault_target(reply, &named, address.host, sizeof address.host, &address.port) || named != slot) return;
    if (address.host[0] == '\0') snprintf(address.host, sizeof address.host, "%s", link->nodes[node].address.host);
    uint32_t found = link_node_of(link, &address);
    if (found == REDIS_NODES_MAX) return;
    if (fault == REDIS_FAULT_ASK) {
        *asked = found;
        return;
    }
    link->map[slot] = (uint8_t)found;
    link->map_stale = true;
}

/* ---- single calls ---- */

static void wait_ms(uint64_t ms)
{
    struct timespec t = {(time_t)(ms / 1000), (long)(ms % 1000) * 1000000};
    (void)nanosleep(&t, NULL);
}

/* Sends the command to a node, behind ASKING when it only holds the slot for those who ask. */
static enum status call_node(struct redis_link *l, uint32_t node, bool asking, const struct redis_command *command,
                             struct redis_reply **reply, struct error *err)
{
    if (!asking) return redis_node_call(l, node, command, reply, err);
    const char *arguments[] = {"ASKING"};
    TRY(redis_node_call(l, node, &(struct redis_command){1, arguments, NULL}, reply, err));
    redis_reply_free(*reply);
    *reply = NULL;
    return redis_node_call(l, node, command, reply, err);
}

/* Whether the peer has closed an idle connection meanwhile, or said something that nobody asked for. Found out before a
 * command is sent, that is no outcome which is not known. */
static bool gone(struct redis_link *l, uint32_t node)
{
    char byte;
    size_t length;
    struct error err;
    const struct redis_wire *wire = l->target->wire;
    if (wire->receive(wire->state, l->nodes[node].connection, &byte, 1, 0, &length, &err) == ST_TIMEOUT) return false;
    redis_node_close(l, node);
    return true;
}

enum status redis_link_call(struct redis_link *link, uint16_t slot, const struct redis_command *command,
                            uint32_t timeout_ms, struct redis_reply **reply, struct error *err)
{
    uint64_t deadline = link_now_ns(link) + timeout_ms * NS_PER_MS;
    uint32_t asked = REDIS_NODES_MAX;
    error_set(err, ST_OK, "Redis does not answer");
    for (;;) {
        uint32_t node = asked;
        enum status status =
            asked != REDIS_NODES_MAX ? redis_node_connect(link, asked, err) : redis_link_route(link, slot, &node, err);
        if (status == ST_NOMEM || status == ST_INVAL) return status;
        if (status == ST_OK && gone(link, node)) status = ST_IO;
        bool again = status != ST_OK;
        if (status == ST_OK) {
            struct redis_reply *answer = NULL;
            TRY(call_node(link, node, asked != REDIS_NODES_MAX, command, &answer, err));
            enum redis_fault fault = redis_fault_of(answer);
            redis_link_learn(link, slot, node, answer, &asked);
            again = fault == REDIS_FAULT_WAIT || fault == REDIS_FAULT_MASTER;
            bool now = (fault == REDIS_FAULT_MOVED && link->target->kind == REDIS_CLUSTER) ||
                       (fault == REDIS_FAULT_ASK && asked != REDIS_NODES_MAX);
            if (fault == REDIS_FAULT_FUNCTION && link->prepare != NULL) {
                status = link->prepare(link->prepare_state, link, node, err);
                if (status != ST_OK) redis_node_close(link, node);
                now = true;
            }
            if ((!again && !now) || link_now_ns(link) >= deadline) {
                *reply = answer; /* the error is the answer */
                return ST_OK;
            }
            error_set(err, ST_OK, "Redis: %s", answer->text);
            redis_reply_free(answer);
        } else {
            asked = REDIS_NODES_MAX;
        }
        if (link_now_ns(link) >= deadline) return status == ST_AGAIN || status == ST_OK ? ST_TIMEOUT : status;
        if (again) wait_ms(WAIT_MS);
    }
}
