/* Verified prefix index with backward-shift deletion; see prefix_cache.h. */
#include "scheduler/prefix_cache.h"

#include "runtime/base/check.h"
#include "runtime/base/hash.h"
#include "runtime/base/mem.h"

#include <string.h>

enum status prefix_cache_init(struct prefix_cache *cache, uint32_t blocks)
{
    memset(cache, 0, sizeof *cache);
    uint32_t slots = 16;
    while (slots < 2 * (uint64_t)blocks) slots *= 2;
    cache->blocks = blocks;
    cache->entries = mem_map((size_t)blocks * sizeof *cache->entries);
    cache->slots = mem_alloc(slots, sizeof *cache->slots);
    if (!cache->entries || !cache->slots) {
        prefix_cache_free(cache);
        return ST_NOMEM;
    }
    memset(cache->entries, 0, (size_t)blocks * sizeof *cache->entries); /* no page faults in the step loop */
    cache->mask = slots - 1;
    for (uint32_t i = 0; i < slots; i++) cache->slots[i] = BLOCK_NONE;
    return ST_OK;
}

void prefix_cache_free(struct prefix_cache *cache)
{
    mem_unmap(cache->entries, (size_t)cache->blocks * sizeof *cache->entries);
    mem_free(cache->slots);
    memset(cache, 0, sizeof *cache);
}

static struct prefix_key key_of(const void *message, size_t length)
{
    uint8_t digest[32];
    struct prefix_key key;
    sha256(message, length, digest);
    memcpy(&key, digest, sizeof key);
    return key;
}

struct prefix_key prefix_cache_root(const uint8_t secret[32], uint64_t epoch)
{
    struct {
        char label[16];
        uint64_t epoch;
        uint8_t secret[32];
    } message = {.label = "millrace prefix", .epoch = epoch};
    memcpy(message.secret, secret, sizeof message.secret);
    return key_of(&message, sizeof message);
}

struct prefix_key prefix_cache_key(struct prefix_key parent, const uint32_t ids[KV_BLOCK_TOKENS])
{
    struct {
        struct prefix_key parent;
        uint32_t ids[KV_BLOCK_TOKENS];
    } message = {.parent = parent};
    memcpy(message.ids, ids, sizeof message.ids);
    return key_of(&message, sizeof message);
}

static bool same_key(struct prefix_key a, struct prefix_key b)
{
    return a.words[0] == b.words[0] && a.words[1] == b.words[1];
}

/* The slot that holds key, or the empty one where it would go. */
static uint32_t probe(struct prefix_cache *cache, struct prefix_key key)
{
    uint32_t at = (uint32_t)key.words[0] & cache->mask;
    while (cache->slots[at] != BLOCK_NONE && !same_key(cache->entries[cache->slots[at]].key, key)) {
        cache->touched++;
        at = (at + 1) & cache->mask;
    }
    cache->touched++;
    return at;
}

static bool same_content(const struct prefix_entry *entry, const struct prefix_content *content)
{
    return same_key(entry->root, content->root) && memcmp(entry->ids, content->ids, sizeof entry->ids) == 0;
}

block_id prefix_cache_find(struct prefix_cache *cache, const struct prefix_content *content)
{
    block_id block = cache->slots[probe(cache, content->key)];
    if (block == BLOCK_NONE) return BLOCK_NONE;
    const struct prefix_entry *entry = &cache->entries[block];
    return same_content(entry, content) && entry->parent == content->parent ? block : BLOCK_NONE; /* R9 R11 */
}

block_id prefix_cache_holder(struct prefix_cache *cache, struct prefix_key key)
{
    return cache->slots[probe(cache, key)];
}

block_id prefix_cache_insert(struct prefix_cache *cache, block_id block, const struct prefix_content *content)
{
    CHECK(block < cache->blocks);
    uint32_t at = probe(cache, content->key);
    block_id holder = cache->slots[at];
    if (holder != BLOCK_NONE) {
        if (!same_content(&cache->entries[holder], content)) return BLOCK_NONE;
        cache->entries[holder].parent = content->parent;
        return holder;
    }
    CHECK(cache->count < cache->blocks);
    struct prefix_entry *entry = &cache->entries[block];
    entry->key = content->key;
    entry->root = content->root;
    entry->serial = ++cache->serial_last;
    entry->parent = content->parent;
    memcpy(entry->ids, content->ids, sizeof entry->ids);
    cache->slots[at] = block;
    cache->count++;
    return block;
}

/* Knuth, TAOCP 6.4, algorithm R: pull back every later entry of the run whose home is not after the hole. */
void prefix_cache_remove(struct prefix_cache *cache, block_id block)
{
    uint32_t hole = probe(cache, cache->entries[block].key);
    CHECK(cache->slots[hole] == block);
    for (uint32_t at = (hole + 1) & cache->mask; cache->slots[at] != BLOCK_NONE; at = (at + 1) & cache->mask) {
        uint32_t home = (uint32_t)cache->entries[cache->slots[at]].key.words[0] & cache->mask;
        cache->touched++;
        if (((at - home) & cache->mask) < ((at - hole) & cache->mask)) continue;
        cache->slots[hole] = cache->slots[at];
        hole = at;
    }
    cache->slots[hole] = BLOCK_NONE;
    cache->count--;
}
