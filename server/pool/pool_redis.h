/* The pool's calls to Redis, one at a time, and what their answers may be; see pool.lua for what they do. Bytes that
 * come back are bounded by redis_reply.h, and checked here for their shape.
 *
 * ST_PROTO: Redis was asked and refuses this very call, or its answer is nonsense; it would be so again. A call whose
 * outcome is not known (ST_IO, ST_TIMEOUT) may be made again: all but pool_redis_take change nothing the
 * second time, and what a take has lost others get after pool_reclaim_ms. The pool's thread. */
#ifndef SERVER_POOL_POOL_REDIS_H
#define SERVER_POOL_POOL_REDIS_H

#include "server/pool/pool.h"

enum { POOL_TAG_MAX = POOL_GROUP_MAX + 48, POOL_CONSUMER_CHARS = 16 };

struct pool_redis {
    struct redis_target target;
    struct redis_link *link;
    char tag[POOL_TAG_MAX]; /* "mr:{pool:<group>:<model>}:" */
    char consumer[POOL_CONSUMER_CHARS + 1];
    uint16_t slot;
};

struct pool_held { /* an entry that this process runs */
    uint8_t id[POOL_ID_BYTES];
    char entry[POOL_ENTRY_NAME_MAX + 1];
};

NODISCARD enum status pool_redis_open(struct pool_redis *redis, const struct redis_settings *settings,
                                      struct error *err);
void pool_redis_close(struct pool_redis *redis);
void pool_redis_serve(struct pool_redis *redis, const char *group, const uint8_t model[32]);

enum pool_offered { POOL_IS_OFFERED, POOL_IS_FULL, POOL_IS_DONE };
NODISCARD enum status pool_redis_offer(struct pool_redis *redis, const uint8_t id[POOL_ID_BYTES],
                                       const struct buf *bytes, uint64_t ttl_ms, enum pool_offered *offered,
                                       struct error *err);
NODISCARD enum status pool_redis_withdraw(struct pool_redis *redis, const uint8_t id[POOL_ID_BYTES], struct error *err);
NODISCARD enum status pool_redis_forget(struct pool_redis *redis, const uint8_t id[POOL_ID_BYTES], struct error *err);
/* states[count]: '-' gone, 'o' open, 't' taken, 'd' done. count: 1 .. POOL_LOOK_MAX. */
enum { POOL_LOOK_MAX = 64 };
NODISCARD enum status pool_redis_look(struct pool_redis *redis, const uint8_t (*ids)[POOL_ID_BYTES], uint32_t count,
                                      char *states, struct error *err);
/* ST_NOTFOUND: it has expired since. */
NODISCARD enum status pool_redis_result(struct pool_redis *redis, const uint8_t id[POOL_ID_BYTES], struct buf *bytes,
                                        struct error *err);
/* visit: each, its bytes only during the call. */
NODISCARD enum status pool_redis_take(struct pool_redis *redis, uint32_t count,
                                      void (*visit)(void *state, const struct pool_held *held, const char *bytes,
                                                    size_t length),
                                      void *state, struct error *err);
/* lost[i]: the entry is not ours any more. count: 1 .. POOL_LOOK_MAX. */
NODISCARD enum status pool_redis_renew(struct pool_redis *redis, const struct pool_held *held, uint32_t count,
                                       bool *lost, struct error *err);
NODISCARD enum status pool_redis_finish(struct pool_redis *redis, const struct pool_held *held, const struct buf *bytes,
                                        uint64_t ttl_ms, bool *counts, struct error *err);
NODISCARD enum status pool_redis_return(struct pool_redis *redis, const struct pool_held *held, bool again,
                                        struct error *err);

/* Exactly 32 hex digits, lower case. */
bool pool_id_read(const char *text, size_t length, uint8_t id[POOL_ID_BYTES]);

#endif
