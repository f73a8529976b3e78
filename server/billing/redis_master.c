/* Who the master is: Sentinels and Cluster maps; see redis_link.h. What they say is a hint; that a node is a master it
 * must say itself (K1).
 *
 * Both ask over a connection of its own for the question, in place of keeping one: questions are rare, and a Sentinel
 * or node that has been silent for days may be gone without a sign. Pub/sub for failovers was rejected: the first call
 * that fails tells the same, and cannot be missed. */
#include "server/billing/redis_link_parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAP_PAUSE_MS = 200 };

/* CRC-16/XMODEM, the one that Redis Cluster's specification names (appendix A). */
uint16_t redis_slot(const char *key)
{
    const char *open = strchr(key, '{'), *end = open != NULL ? strchr(open, '}') : NULL;
    size_t length = strlen(key);
    if (open != NULL && end != NULL && end > open + 1) {
        key = open + 1;
        length = (size_t)(end - key);
    }
    uint32_t crc = 0;
    for (size_t i = 0; i < length; i++) {
        crc ^= (uint32_t)(unsigned char)key[i] << 8;
        for (int bit = 0; bit < 8; bit++) crc = (crc & 0x8000) != 0 ? (crc << 1) ^ 0x1021 : crc << 1;
        crc &= 0xffff;
    }
    return (uint16_t)(crc % REDIS_SLOTS);
}

/* One question to one address, on a connection that is closed again. A Sentinel may ask for a password or not, so it is
 * given when it asks. */
static enum status ask(struct redis_link *l, const struct redis_address *address, const struct redis_command *command,
                       struct redis_reply **reply, struct error *err)
{
    struct redis_target target = *l->target;
    target.kind = REDIS_SINGLE;
    target.addresses[0] = *address;
    target.addresses_count = 1;
    struct redis_link *one = NULL;
    enum status status = redis_link_create(&target, NULL, NULL, &one);
    explicit_bzero(target.password, sizeof target.password);
    if (status != ST_OK) return error_set(err, status, "no memory for a Redis connection");
    one->target = l->target;
    status = link_dial(one, 0, err);
    if (status == ST_OK && l->target->kind == REDIS_CLUSTER) status = link_authenticate(one, 0, err);
    if (status == ST_OK) status = redis_node_call(one, 0, command, reply, err);
    if (status == ST_OK && redis_fault_of(*reply) == REDIS_FAULT_RIGHTS && l->target->kind == REDIS_SENTINEL) {
        redis_reply_free(*reply);
        *reply = NULL;
        status = link_authenticate(one, 0, err);
        if (status == ST_OK) status = redis_node_call(one, 0, command, reply, err);
    }
    redis_link_destroy(one);
    char name[REDIS_HOST_MAX + 16];
    redis_address_print(address, name, sizeof name);
    if (status == ST_OK && (*reply)->type == REDIS_ERROR) {
        status = error_set(err, ST_IO, "Redis %s: %s %s: %s", name, command->arguments[0], command->arguments[1],
                           (*reply)->text);
        redis_reply_free(*reply);
        *reply = NULL;
    }
    return status;
}

/* A port as a Sentinel writes it. 0: none. */
static uint16_t read_port(const char *text)
{
    char *end = NULL;
    unsigned long n = text == NULL ? 0 : strtoul(text, &end, 10);
    return n > UINT16_MAX || (n > 0 && *end != '\0') ? 0 : (uint16_t)n;
}

enum status link_find_master(struct redis_link *link, struct error *err)
{
    const struct redis_target *target = link->target;
    const char *arguments[] = {"SENTINEL", "get-master-addr-by-name", target->master};
    const struct redis_command command = {3, arguments, NULL};
    enum status status = ST_IO;
    for (uint32_t i = 0; i < target->addresses_count; i++) {
        uint32_t which = (link->address_next + i) % target->addresses_count;
        struct redis_reply *reply = NULL;
        status = ask(link, &target->addresses[which], &command, &reply, err);
        if (status != ST_OK) continue;
        const char *host = redis_reply_text_at(reply, 0);
        uint16_t port = read_port(redis_reply_text_at(reply, 1));
        if (host != NULL && port != 0 && strlen(host) <= REDIS_HOST_MAX) {
            struct redis_node *n = &link->nodes[0];
            snprintf(n->address.host, sizeof n->address.host, "%s", host);
            n->address.port = port;
            /* should this one be late, the next attempt asks another */
            link->address_next = (which + 1) % target->addresses_count;
            redis_reply_free(reply);
            return ST_OK;
        }
        status = error_set(err, ST_IO, "Redis' Sentinels know no master named \"%s\"", target->master);
        redis_reply_free(reply);
    }
    return status;
}

uint32_t link_node_of(struct redis_link *link, const struct redis_address *address)
{
    uint32_t room = link->nodes_count < REDIS_NODES_MAX ? link->nodes_count : REDIS_NODES_MAX;
    for (uint32_t i = 0; i < link->nodes_count; i++) {
        const struct redis_address *a = &link->nodes[i].address;
        if (a->port == address->port && strcmp(a->host, address->host) == 0) return i;
    }
    /* full: the place of one that serves nothing any more */
    for (uint32_t i = 0; room == REDIS_NODES_MAX && i < REDIS_NODES_MAX; i++)
        if (link->nodes[i].connection == NULL && memchr(link->map, (int)i, sizeof link->map) == NULL) room = i;
    if (room == REDIS_NODES_MAX) return REDIS_NODES_MAX;
    if (room == link->nodes_count) link->nodes_count++;
    struct redis_node *n = &link->nodes[room];
    memset(n, 0, sizeof *n);
    n->address = *address;
    return room;
}

/* One row of CLUSTER SLOTS: [first, last, [host, port, id, ..], replicas ..]. */
static bool read_row(struct redis_link *l, const struct redis_reply *row, const char *asked_host)
{
    if (row->type != REDIS_ARRAY || row->count < 3 || row->items[0]->type != REDIS_INTEGER ||
        row->items[1]->type != REDIS_INTEGER)
        return false;
    int64_t first = row->items[0]->integer, last = row->items[1]->integer;
    const struct redis_reply *master = row->items[2];
    if (first < 0 || last >= REDIS_SLOTS || first > last || master->type != REDIS_ARRAY || master->count < 2 ||
        master->items[1]->type != REDIS_INTEGER)
        return false;
    const char *host = redis_reply_text_at(master, 0);
    int64_t port = master->items[1]->integer;
    if (host == NULL || host[0] == '\0') host = asked_host; /* "the address that you asked" */
    if (strcmp(host, "?") == 0 || strlen(host) > REDIS_HOST_MAX || port <= 0 || port > UINT16_MAX) return false;
    struct redis_address address = {.port = (uint16_t)port};
    snprintf(address.host, sizeof address.host, "%s", host);
    uint32_t node = link_node_of(l, &address);
    if (node == REDIS_NODES_MAX) return false;
    memset(l->map + first, (int)node, (size_t)(last - first + 1));
    return true;
}

static enum status read_map_from(struct redis_link *l, const struct redis_address *address, struct error *err)
{
    const char *arguments[] = {"CLUSTER", "SLOTS"};
    struct redis_reply *reply = NULL;
    TRY(ask(l, address, &(struct redis_command){2, arguments, NULL}, &reply, err));
    bool good = reply->type == REDIS_ARRAY && reply->count > 0;
    for (uint32_t i = 0; good && i < reply->count; i++) good = read_row(l, reply->items[i], address->host);
    redis_reply_free(reply);
    return good ? ST_OK : error_set(err, ST_IO, "Redis: CLUSTER SLOTS names no masters that can be used");
}

enum status link_read_map(struct redis_link *link, uint16_t slot, struct error *err)
{
    uint64_t now = link_now_ns(link);
    bool known = link->map[slot] != REDIS_NODES_MAX;
    if (now < link->map_retry_ns) return known ? ST_OK : ST_AGAIN;
    link->map_retry_ns = now + MAP_PAUSE_MS * NS_PER_MS;
    enum status status = ST_IO;
    for (uint32_t i = 0; i < link->nodes_count; i++) { /* those that answer us first */
        if (link->nodes[i].connection == NULL) continue;
        const struct redis_address address = link->nodes[i].address;
        status = read_map_from(link, &address, err);
        if (status == ST_OK) break;
    }
    for (uint32_t i = 0; status != ST_OK && i < link->target->addresses_count; i++) {
        uint32_t which = (link->address_next + i) % link->target->addresses_count;
        status = read_map_from(link, &link->target->addresses[which], err);
        if (status == ST_OK) link->address_next = which;
    }
    if (status == ST_OK) {
        link->map_stale = false;
        return link->map[slot] != REDIS_NODES_MAX ? ST_OK
                                                  : error_set(err, ST_IO, "Redis Cluster: slot %u has no master", slot);
    }
    link->map_retry_ns = link_now_ns(link) + MAP_PAUSE_MS * NS_PER_MS;
    return known ? ST_OK : status;
}
