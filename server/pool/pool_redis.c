/* See pool_redis.h. */
#include "server/pool/pool_redis.h"

#include "runtime/base/limits.h"
#include "runtime/base/random.h"
#include "server/pool/pool_lua.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { TIMEOUT_MS = 2000, KEY_BYTES = POOL_TAG_MAX + 2 * POOL_ID_BYTES + 3, ARGUMENTS_MAX = 8 + 2 * POOL_LOOK_MAX };

static void print_hex(const uint8_t *bytes, size_t count, char *out)
{
    for (size_t i = 0; i < count; i++) (void)snprintf(out + 2 * i, 3, "%02x", bytes[i]);
}

static int digit(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

bool pool_id_read(const char *text, size_t length, uint8_t id[POOL_ID_BYTES])
{
    if (length != 2 * POOL_ID_BYTES) return false;
    for (size_t i = 0; i < POOL_ID_BYTES; i++) {
        int high = digit(text[2 * i]), low = digit(text[2 * i + 1]);
        if (high < 0 || low < 0) return false;
        id[i] = (uint8_t)(high << 4 | low);
    }
    return true;
}

/* "jobs", or "j:" and "r:" with an id. */
static void key_of(const struct pool_redis *redis, const char *what, const uint8_t *id, char key[KEY_BYTES])
{
    int length = snprintf(key, KEY_BYTES, "%s%s", redis->tag, what);
    if (id) print_hex(id, POOL_ID_BYTES, key + length);
}

/* ---- a node ---- */

static enum status read_version(struct redis_link *link, uint32_t node, bool *loaded, struct error *err)
{
    const char *version[] = {"FCALL", "mr_pool_version", "0"};
    struct redis_reply *reply = NULL;
    TRY(redis_node_call(link, node, &(struct redis_command){3, version, NULL}, &reply, err));
    enum status status = ST_OK;
    *loaded = reply->type == REDIS_INTEGER && reply->integer >= POOL_LUA_VERSION;
    if (reply->type == REDIS_ERROR && redis_fault_of(reply) != REDIS_FAULT_FUNCTION)
        status = error_set(err, ST_IO, "Redis: FCALL: %s", reply->text);
    redis_reply_free(reply);
    return status;
}

static enum status load_library(void *state, struct redis_link *link, uint32_t node, struct error *err)
{
    const char *load[] = {"FUNCTION", "LOAD", "REPLACE", pool_lua};
    struct redis_reply *reply = NULL;
    bool loaded;
    (void)state;
    TRY(read_version(link, node, &loaded, err));
    if (loaded) return ST_OK;
    TRY(redis_node_call(link, node, &(struct redis_command){4, load, NULL}, &reply, err));
    enum status status = ST_OK;
    if (!redis_reply_is(reply, "mrpool"))
        status = error_set(err, ST_IO, "Redis: FUNCTION LOAD: %s",
                           reply->type == REDIS_ERROR ? reply->text : "an answer that cannot be read");
    redis_reply_free(reply);
    return status;
}

enum status pool_redis_open(struct pool_redis *redis, const struct redis_settings *settings, struct error *err)
{
    uint8_t chance[POOL_CONSUMER_CHARS / 2];
    random_fill(chance, sizeof chance);
    print_hex(chance, sizeof chance, redis->consumer);
    TRY(redis_target_read(settings, &redis->target, err));
    redis->target.timeout_ms = TIMEOUT_MS;
    return redis_link_create(&redis->target, load_library, redis, &redis->link);
}

void pool_redis_close(struct pool_redis *redis)
{
    if (redis->link) redis_link_destroy(redis->link);
    redis->link = NULL;
    explicit_bzero(redis->target.password, sizeof redis->target.password);
}

void pool_redis_serve(struct pool_redis *redis, const char *group, const uint8_t model[32])
{
    char digits[17];
    print_hex(model, 8, digits);
    (void)snprintf(redis->tag, sizeof redis->tag, "mr:{pool:%s:%s}:", group, digits);
    redis->slot = redis_slot(redis->tag);
}

/* ---- calls ---- */

struct call {
    const char *arguments[ARGUMENTS_MAX];
    size_t lengths[ARGUMENTS_MAX];
    int count;
};

static void add_bytes(struct call *call, const char *bytes, size_t length)
{
    call->arguments[call->count] = bytes;
    call->lengths[call->count++] = length;
}

static void add(struct call *call, const char *text)
{
    add_bytes(call, text, strlen(text));
}

static enum status make(struct pool_redis *redis, const struct call *call, struct redis_reply **out, struct error *err)
{
    const struct redis_command command = {call->count, (const char **)(uintptr_t)call->arguments, call->lengths};
    struct redis_reply *reply = NULL;
    TRY(redis_link_call(redis->link, redis->slot, &command, TIMEOUT_MS, &reply, err));
    if (reply->type != REDIS_ERROR) {
        *out = reply;
        return ST_OK;
    }
    bool other = redis_fault_of(reply) == REDIS_FAULT_OTHER;
    enum status status = error_set(err, other ? ST_PROTO : ST_IO, "Redis: %s: %s", call->arguments[1], reply->text);
    redis_reply_free(reply);
    return status;
}

static enum status bad_answer(const char *function, struct error *err)
{
    return error_set(err, ST_PROTO, "Redis: %s has an answer that is not pool.lua's", function);
}

static enum status make_integer(struct pool_redis *redis, const struct call *call, int64_t *value, struct error *err)
{
    struct redis_reply *reply = NULL;
    TRY(make(redis, call, &reply, err));
    enum status status = reply->type == REDIS_INTEGER ? ST_OK : bad_answer(call->arguments[1], err);
    *value = reply->integer;
    redis_reply_free(reply);
    return status;
}

enum status pool_redis_offer(struct pool_redis *redis, const uint8_t id[POOL_ID_BYTES], const struct buf *bytes,
                             uint64_t ttl_ms, enum pool_offered *offered, struct error *err)
{
    char jobs[KEY_BYTES], job[KEY_BYTES], result[KEY_BYTES], digits[2 * POOL_ID_BYTES + 1], ttl[24], most[24];
    struct call call = {.count = 0};
    struct redis_reply *reply = NULL;
    key_of(redis, "jobs", NULL, jobs);
    key_of(redis, "j:", id, job);
    key_of(redis, "r:", id, result);
    print_hex(id, POOL_ID_BYTES, digits);
    (void)snprintf(ttl, sizeof ttl, "%" PRIu64, ttl_ms);
    (void)snprintf(most, sizeof most, "%" PRIu64, limits.pool_entries);
    const char *first[] = {"FCALL", "mr_pool_offer", "3", jobs, job, result, digits};
    for (size_t i = 0; i < sizeof first / sizeof *first; i++) add(&call, first[i]);
    add_bytes(&call, bytes->data, bytes->length);
    add(&call, ttl);
    add(&call, most);
    TRY(make(redis, &call, &reply, err));
    enum status status = ST_OK;
    if (redis_reply_is(reply, "offered") || redis_reply_is(reply, "held"))
        *offered = POOL_IS_OFFERED;
    else if (redis_reply_is(reply, "full"))
        *offered = POOL_IS_FULL;
    else if (redis_reply_is(reply, "done"))
        *offered = POOL_IS_DONE;
    else
        status = bad_answer("mr_pool_offer", err);
    redis_reply_free(reply);
    return status;
}

enum status pool_redis_withdraw(struct pool_redis *redis, const uint8_t id[POOL_ID_BYTES], struct error *err)
{
    char job[KEY_BYTES], result[KEY_BYTES];
    struct call call = {.count = 0};
    int64_t there;
    key_of(redis, "j:", id, job);
    key_of(redis, "r:", id, result); /* of whoever was faster than this call */
    const char *all[] = {"FCALL", "mr_pool_withdraw", "2", job, result};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) add(&call, all[i]);
    return make_integer(redis, &call, &there, err);
}

enum status pool_redis_forget(struct pool_redis *redis, const uint8_t id[POOL_ID_BYTES], struct error *err)
{
    char job[KEY_BYTES], result[KEY_BYTES];
    struct call call = {.count = 0};
    int64_t there;
    key_of(redis, "j:", id, job); /* still there beside a result that nobody's run has made */
    key_of(redis, "r:", id, result);
    add(&call, "DEL");
    add(&call, job);
    add(&call, result);
    return make_integer(redis, &call, &there, err);
}

enum status pool_redis_look(struct pool_redis *redis, const uint8_t (*ids)[POOL_ID_BYTES], uint32_t count, char *states,
                            struct error *err)
{
    char keys[2 * POOL_LOOK_MAX][KEY_BYTES], keys_count[12];
    struct call call = {.count = 0};
    struct redis_reply *reply = NULL;
    (void)snprintf(keys_count, sizeof keys_count, "%u", 2 * count);
    add(&call, "FCALL");
    add(&call, "mr_pool_look");
    add(&call, keys_count);
    for (uint32_t i = 0; i < 2 * count; i++) {
        key_of(redis, i % 2 ? "r:" : "j:", ids[i / 2], keys[i]);
        add(&call, keys[i]);
    }
    TRY(make(redis, &call, &reply, err));
    bool good = reply->type == REDIS_STRING && reply->length == count;
    if (good) memcpy(states, reply->text, count);
    redis_reply_free(reply);
    return good ? ST_OK : bad_answer("mr_pool_look", err);
}

enum status pool_redis_result(struct pool_redis *redis, const uint8_t id[POOL_ID_BYTES], struct buf *bytes,
                              struct error *err)
{
    char result[KEY_BYTES];
    struct call call = {.count = 0};
    struct redis_reply *reply = NULL;
    key_of(redis, "r:", id, result);
    add(&call, "GET");
    add(&call, result);
    TRY(make(redis, &call, &reply, err));
    enum status status = reply->type == REDIS_STRING ? ST_OK : ST_NOTFOUND;
    if (status == ST_OK) buf_append(bytes, reply->text, reply->length);
    redis_reply_free(reply);
    return status;
}

static bool held_of(const struct redis_reply *item, struct pool_held *held)
{
    const char *entry = redis_reply_text_at(item, 0), *id = redis_reply_text_at(item, 1);
    if (!entry || !id || item->items[0]->length > POOL_ENTRY_NAME_MAX || !redis_reply_text_at(item, 2)) return false;
    if (!pool_id_read(id, item->items[1]->length, held->id)) return false;
    memcpy(held->entry, entry, item->items[0]->length);
    held->entry[item->items[0]->length] = '\0';
    return true;
}

enum status pool_redis_take(struct pool_redis *redis, uint32_t count,
                            void (*visit)(void *state, const struct pool_held *held, const char *bytes, size_t length),
                            void *state, struct error *err)
{
    char jobs[KEY_BYTES], most[12], idle[24], tries[12], budget[24];
    struct call call = {.count = 0};
    struct redis_reply *reply = NULL;
    struct pool_held held;
    key_of(redis, "jobs", NULL, jobs);
    (void)snprintf(most, sizeof most, "%u", count);
    (void)snprintf(idle, sizeof idle, "%" PRIu64, limits.pool_reclaim_ms);
    (void)snprintf(tries, sizeof tries, "%d", POOL_DELIVERIES_MAX);
    (void)snprintf(budget, sizeof budget, "%" PRIu64, limits.redis_reply_bytes / 4);
    const char *all[] = {"FCALL", "mr_pool_take", "1", jobs, redis->consumer, most, idle, tries, budget, redis->tag};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) add(&call, all[i]);
    TRY(make(redis, &call, &reply, err));
    bool good = reply->type == REDIS_ARRAY && reply->count <= count;
    for (uint32_t i = 0; good && i < reply->count; i++) {
        const struct redis_reply *item = reply->items[i];
        if (held_of(item, &held)) visit(state, &held, item->items[2]->text, item->items[2]->length);
    }
    redis_reply_free(reply);
    return good ? ST_OK : bad_answer("mr_pool_take", err);
}

enum status pool_redis_renew(struct pool_redis *redis, const struct pool_held *held, uint32_t count, bool *lost,
                             struct error *err)
{
    char jobs[KEY_BYTES], digits[POOL_LOOK_MAX][2 * POOL_ID_BYTES + 1];
    struct call call = {.count = 0};
    struct redis_reply *reply = NULL;
    key_of(redis, "jobs", NULL, jobs);
    const char *first[] = {"FCALL", "mr_pool_renew", "1", jobs, redis->consumer, redis->tag};
    for (size_t i = 0; i < sizeof first / sizeof *first; i++) add(&call, first[i]);
    for (uint32_t i = 0; i < count; i++) {
        print_hex(held[i].id, POOL_ID_BYTES, digits[i]);
        add(&call, held[i].entry);
        add(&call, digits[i]);
        lost[i] = false;
    }
    TRY(make(redis, &call, &reply, err));
    bool good = reply->type == REDIS_ARRAY;
    for (uint32_t i = 0; good && i < reply->count; i++) {
        const char *entry = redis_reply_text_at(reply, i);
        for (uint32_t k = 0; entry && k < count; k++) lost[k] = lost[k] || strcmp(held[k].entry, entry) == 0;
    }
    redis_reply_free(reply);
    return good ? ST_OK : bad_answer("mr_pool_renew", err);
}

enum status pool_redis_finish(struct pool_redis *redis, const struct pool_held *held, const struct buf *bytes,
                              uint64_t ttl_ms, bool *counts, struct error *err)
{
    char jobs[KEY_BYTES], job[KEY_BYTES], result[KEY_BYTES], ttl[24];
    struct call call = {.count = 0};
    int64_t first;
    key_of(redis, "jobs", NULL, jobs);
    key_of(redis, "j:", held->id, job);
    key_of(redis, "r:", held->id, result);
    (void)snprintf(ttl, sizeof ttl, "%" PRIu64, ttl_ms);
    const char *all[] = {"FCALL", "mr_pool_finish", "3", jobs, job, result, held->entry};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) add(&call, all[i]);
    add_bytes(&call, bytes->data, bytes->length);
    add(&call, ttl);
    TRY(make_integer(redis, &call, &first, err));
    *counts = first == 1;
    return ST_OK;
}

enum status pool_redis_return(struct pool_redis *redis, const struct pool_held *held, bool again, struct error *err)
{
    char jobs[KEY_BYTES], job[KEY_BYTES], digits[2 * POOL_ID_BYTES + 1];
    struct call call = {.count = 0};
    int64_t waits;
    key_of(redis, "jobs", NULL, jobs);
    key_of(redis, "j:", held->id, job);
    print_hex(held->id, POOL_ID_BYTES, digits);
    const char *all[] = {"FCALL", "mr_pool_return", "2", jobs, job, redis->consumer, held->entry,
                         digits,  again ? "1" : "0"};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) add(&call, all[i]);
    return make_integer(redis, &call, &waits, err);
}
