/* The prefix index: which block holds the KV of which 16 ids after which prefix, for whom.
 *
 *   root    = SHA-256(secret of the domain, epoch)               first 128 bits
 *   key[i]  = SHA-256(key[i-1] or root, 16 ids of block i)       first 128 bits
 *
 * Sharing is a timing oracle (CVE-2025-46570), so the chain starts at a secret that comes from the authenticated tenant
 * and never from the request; a key cannot be guessed or sought without it. Still a hit is verified: the ids, the root,
 * and that the parent is the very content matched before (by serial number) are compared, so that a collision is a miss
 * (R11). The secret enters at the root alone: 80 bytes a key are two compressions, the secret in each key would make it
 * three.
 *
 * The table is open addressing with linear probing over block ids, at least 2 x blocks slots; removal shifts back, so
 * there are no tombstones and probes stay short. The first block of a content is canonical; a later one with equal
 * content stays private to its sequence. No allocation after prefix_cache_init. Engine thread. */
#ifndef SCHEDULER_PREFIX_CACHE_H
#define SCHEDULER_PREFIX_CACHE_H

#include "runtime/base/status.h"
#include "scheduler/block_pool.h"

#include <stdbool.h>
#include <stdint.h>

struct prefix_key {
    uint64_t words[2];
};

enum { PREFIX_SERIAL_ROOT = 0 }; /* the parent of a first block */

struct prefix_entry {
    struct prefix_key key, root;
    uint64_t serial; /* of this content; never reused */
    uint64_t parent; /* serial of the block before, PREFIX_SERIAL_ROOT for the first */
    uint32_t ids[KV_BLOCK_TOKENS];
};

struct prefix_cache {
    struct prefix_entry *entries; /* [blocks]; valid while the block is indexed */
    uint32_t *slots;              /* [mask + 1] block ids or BLOCK_NONE */
    uint32_t mask, blocks, count;
    uint64_t serial_last;
    uint64_t touched;
};

NODISCARD enum status prefix_cache_init(struct prefix_cache *cache, uint32_t blocks); /* ST_NOMEM */
void prefix_cache_free(struct prefix_cache *cache);

/* Pure. epoch changes when cached KV stops being valid (another model or adapter). */
struct prefix_key prefix_cache_root(const uint8_t secret[32], uint64_t epoch);
struct prefix_key prefix_cache_key(struct prefix_key parent, const uint32_t ids[KV_BLOCK_TOKENS]);

/* What a lookup or an insertion is about. */
struct prefix_content {
    struct prefix_key key, root;
    uint64_t parent;
    const uint32_t *ids; /* [KV_BLOCK_TOKENS] */
};

/* The block that holds this content, BLOCK_NONE without one or when the key's owner is something else. */
block_id prefix_cache_find(struct prefix_cache *cache, const struct prefix_content *content);

/* Makes `block` the canonical holder of content unless there is one. Returns the canonical block (block itself when it
 * was new), BLOCK_NONE on a collision: the caller stops indexing that sequence. A canonical block whose parent was
 * evicted and came back as another serial is given the new one. */
block_id prefix_cache_insert(struct prefix_cache *cache, block_id block, const struct prefix_content *content);

/* The block under key whatever its parent, BLOCK_NONE without one: to forget a request's private blocks. */
block_id prefix_cache_holder(struct prefix_cache *cache, struct prefix_key key);

void prefix_cache_remove(struct prefix_cache *cache, block_id block); /* block must be indexed */

#endif
