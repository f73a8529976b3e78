/* What redis_link.c and redis_master.c share; nobody else includes it. */
#ifndef SERVER_BILLING_REDIS_LINK_PARTS_H
#define SERVER_BILLING_REDIS_LINK_PARTS_H

#include "server/billing/redis_link.h"

struct redis_node {
    struct redis_address address;
    void *connection; /* NULL: closed */
    struct redis_reader *reader;
    struct buf out;      /* commands that are not sent yet */
    uint32_t owed;       /* replies */
    uint32_t failures;   /* in a row */
    uint64_t generation; /* of the connection */
    uint64_t opened_ns, retry_ns;
};

struct redis_link {
    const struct redis_target *target;
    redis_prepare_fn prepare;
    void *prepare_state;
    struct redis_node nodes[REDIS_NODES_MAX];
    uint32_t nodes_count;
    uint8_t map[REDIS_SLOTS]; /* slot to node; REDIS_NODES_MAX: not known */
    bool map_stale;           /* Cluster: ask again who has which slot */
    uint64_t map_retry_ns;    /* not before */
    uint32_t address_next;    /* Sentinel or Cluster node to ask first: the last that answered */
    uint64_t generations, random;
};

uint64_t link_now_ns(const struct redis_link *link);
/* Opens the connection, without a word being said on it. */
NODISCARD enum status link_dial(struct redis_link *link, uint32_t node, struct error *err);
NODISCARD enum status link_authenticate(struct redis_link *link, uint32_t node, struct error *err);

/* Sentinel: sets node 0's address to the master that they name. */
NODISCARD enum status link_find_master(struct redis_link *link, struct error *err);
/* Cluster: reads the map. ST_OK too when that failed but the slot's node is known from before. ST_AGAIN: it was just
 * tried. */
NODISCARD enum status link_read_map(struct redis_link *link, uint16_t slot, struct error *err);
/* The node of an address, a new one if need be; REDIS_NODES_MAX: no room. */
uint32_t link_node_of(struct redis_link *link, const struct redis_address *address);

#endif
