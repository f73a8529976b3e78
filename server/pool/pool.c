/* The pool's queues and its thread; see pool.h.
 *
 *   io --commands--> [ a call each | every LOOK_MS: look at what is offered, renew what runs, pull ] --news--> io
 *
 * The first command of the queue is the thread's alone, so that it is made without a lock held. */
#include "server/pool/pool.h"

#include "runtime/base/clock.h"
#include "runtime/base/doorbell.h"
#include "runtime/base/limits.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"
#include "server/pool/pool_redis.h"

#include <pthread.h>
#include <string.h>

enum { LOOK_MS = 500, AWAY_MS = 1000, CLOSE_MS = 1500, TAKE_MAX = 16 };

enum command_kind { OFFER, WITHDRAW, FORGET, FINISH, RETURN };

/* A command, and later the news that it has made. */
struct item {
    struct item *next;
    enum command_kind command;
    struct pool_news news;
    uint64_t ttl_ms;
    bool again;
};

struct queue {
    struct item *first, **last;
};

struct watched {
    uint8_t id[POOL_ID_BYTES];
    char state;
};

struct pool {
    struct pool_config config;
    char group[POOL_GROUP_MAX + 1];
    pthread_t thread;
    struct doorbell doorbell;
    pthread_mutex_t mutex; /* guards commands, news, model, served */
    struct queue commands, news;
    uint8_t model[32];
    bool served;
    _Atomic bool stop, up;
    _Atomic uint32_t wanted;
    _Atomic uint64_t offered, refused, pulled, results, returned, gone;
    /* the thread's */
    struct pool_redis redis;
    bool serves;
    struct watched *watched;
    uint32_t watched_count, watched_capacity;
    struct pool_held *held;
    uint32_t held_count, held_capacity;
    uint64_t away_ns, look_ns, renew_ns;
    bool told_away;
};

static uint64_t now_ns(void)
{
    return clock_now_ns(clock_system());
}

/* ---- queues ---- */

static void push(struct queue *queue, struct item *item)
{
    item->next = NULL;
    *queue->last = item;
    queue->last = &item->next;
}

static struct item *pop(struct queue *queue)
{
    struct item *item = queue->first;
    if (!item) return NULL;
    queue->first = item->next;
    if (!queue->first) queue->last = &queue->first;
    return item;
}

static void item_free(struct item *item)
{
    buf_free(&item->news.bytes);
    mem_free(item);
}

static struct item *item_make(enum command_kind kind, const uint8_t id[POOL_ID_BYTES])
{
    struct item *item = mem_alloc(1, sizeof *item);
    if (!item) return NULL;
    item->command = kind;
    memcpy(item->news.id, id, POOL_ID_BYTES);
    buf_init(&item->news.bytes, 0);
    return item;
}

static void tell(struct pool *pool, struct item *item, enum pool_news_kind kind)
{
    item->news.kind = kind;
    pthread_mutex_lock(&pool->mutex);
    push(&pool->news, item);
    pthread_mutex_unlock(&pool->mutex);
    pool->config.wake(pool->config.wake_state);
}

/* false: no memory; it is told another time. */
static bool tell_id(struct pool *pool, const uint8_t id[POOL_ID_BYTES], enum pool_news_kind kind)
{
    struct item *item = item_make(OFFER, id);
    if (item) tell(pool, item, kind);
    return item != NULL;
}

static void send_command(struct pool *pool, struct item *item)
{
    pthread_mutex_lock(&pool->mutex);
    push(&pool->commands, item);
    pthread_mutex_unlock(&pool->mutex);
    doorbell_ring(&pool->doorbell);
}

static struct item *first_command(struct pool *pool)
{
    pthread_mutex_lock(&pool->mutex);
    struct item *item = pool->commands.first;
    pthread_mutex_unlock(&pool->mutex);
    return item;
}

static struct item *pop_command(struct pool *pool)
{
    pthread_mutex_lock(&pool->mutex);
    struct item *item = pop(&pool->commands);
    pthread_mutex_unlock(&pool->mutex);
    return item;
}

/* ---- what is watched and held ---- */

static bool grow(void **items, uint32_t count, uint32_t *capacity, size_t size)
{
    if (count < *capacity) return true;
    uint32_t more = *capacity ? *capacity * 2 : 64;
    void *larger = mem_resize(*items, more, size);
    if (!larger) return false;
    *items = larger;
    *capacity = more;
    return true;
}

static struct watched *find_watched(struct pool *pool, const uint8_t id[POOL_ID_BYTES])
{
    for (uint32_t i = 0; i < pool->watched_count; i++)
        if (memcmp(pool->watched[i].id, id, POOL_ID_BYTES) == 0) return &pool->watched[i];
    return NULL;
}

static void unwatch(struct pool *pool, const uint8_t id[POOL_ID_BYTES])
{
    struct watched *watched = find_watched(pool, id);
    if (watched) *watched = pool->watched[--pool->watched_count];
}

static bool watch(struct pool *pool, const uint8_t id[POOL_ID_BYTES])
{
    if (find_watched(pool, id)) return true;
    if (!grow((void **)&pool->watched, pool->watched_count, &pool->watched_capacity, sizeof *pool->watched))
        return false;
    struct watched *watched = &pool->watched[pool->watched_count++];
    memcpy(watched->id, id, POOL_ID_BYTES);
    watched->state = 'o';
    return true;
}

static struct pool_held *find_held(struct pool *pool, const uint8_t id[POOL_ID_BYTES])
{
    for (uint32_t i = 0; i < pool->held_count; i++)
        if (memcmp(pool->held[i].id, id, POOL_ID_BYTES) == 0) return &pool->held[i];
    return NULL;
}

static void unhold(struct pool *pool, const uint8_t id[POOL_ID_BYTES])
{
    struct pool_held *held = find_held(pool, id);
    if (held) *held = pool->held[--pool->held_count];
}

/* ---- up and away ---- */

static void refuse(struct pool *pool, struct item *item)
{
    atomic_fetch_add(&pool->refused, 1);
    tell(pool, item, POOL_REFUSED);
}

/* O4: whoever offers goes on without Redis; the rest of the queue waits for it. */
static void refuse_offers(struct pool *pool)
{
    struct queue kept = {NULL, &kept.first};
    struct item *item;
    for (uint32_t i = 0; (item = pop_command(pool)) != NULL; i++) {
        if (item->command == OFFER)
            refuse(pool, item);
        else
            push(&kept, item);
    }
    pthread_mutex_lock(&pool->mutex); /* what was kept stands before what has come meanwhile */
    if (kept.first) {
        *kept.last = pool->commands.first;
        if (!pool->commands.first) pool->commands.last = kept.last;
        pool->commands.first = kept.first;
    }
    pthread_mutex_unlock(&pool->mutex);
}

/* Whether the call was made. */
static bool made(struct pool *pool, enum status status, const struct error *err)
{
    if (status == ST_OK) {
        if (!atomic_load(&pool->up)) log_line(LOG_INFO, "pool", "up tag=\"%s\"", pool->redis.tag);
        atomic_store(&pool->up, true);
        pool->told_away = false;
        return true;
    }
    pool->away_ns = now_ns() + AWAY_MS * NS_PER_MS;
    if (!pool->told_away)
        log_line(LOG_WARN, "pool", "away note=\"work stays with whoever accepted it\" reason=\"%s\"", err->message);
    pool->told_away = true;
    atomic_store(&pool->up, false);
    refuse_offers(pool);
    return false;
}

/* ---- commands ---- */

static enum status make_offer(struct pool *pool, struct item *item, bool *offered, struct error *err)
{
    enum pool_offered answer = POOL_IS_FULL;
    *offered = false;
    if (!watch(pool, item->news.id)) return ST_OK;
    enum status status = pool_redis_offer(&pool->redis, item->news.id, &item->news.bytes, item->ttl_ms, &answer, err);
    *offered = status == ST_OK && answer != POOL_IS_FULL;
    if (!*offered) unwatch(pool, item->news.id);
    return status;
}

static struct pool_held held_of(const struct item *item)
{
    struct pool_held held;
    memcpy(held.id, item->news.id, sizeof held.id);
    memcpy(held.entry, item->news.entry, sizeof held.entry);
    return held;
}

/* false: Redis is away, and it stays in the queue (an offer is refused). */
static bool run_command(struct pool *pool, struct item *item)
{
    struct error err = {""};
    const struct pool_held held = held_of(item);
    enum status status = ST_OK;
    bool offered = false;
    switch (item->command) {
    case OFFER: status = make_offer(pool, item, &offered, &err); break;
    case WITHDRAW:
        unwatch(pool, held.id);
        status = pool_redis_withdraw(&pool->redis, held.id, &err);
        break;
    case FORGET: status = pool_redis_forget(&pool->redis, held.id, &err); break;
    case FINISH:
        status = pool_redis_finish(&pool->redis, &held, &item->news.bytes, item->ttl_ms, &item->news.counts, &err);
        break;
    case RETURN: status = pool_redis_return(&pool->redis, &held, item->again, &err); break;
    }
    bool refused = status == ST_PROTO; /* it would be so again: nobody waits for that */
    if (refused) log_line(LOG_WARN, "pool", "a call was refused reason=\"%s\"", err.message);
    if (!refused && !made(pool, status, &err)) return false;
    (void)pop_command(pool);
    if (item->command == FINISH || item->command == RETURN) unhold(pool, held.id);
    if (item->command == OFFER || item->command == FINISH) buf_free(&item->news.bytes);
    if (item->command == OFFER && !offered) {
        refuse(pool, item);
    } else if (item->command == OFFER) {
        atomic_fetch_add(&pool->offered, 1);
        tell(pool, item, POOL_OFFERED);
    } else if (item->command == FINISH) {
        tell(pool, item, POOL_FINISHED);
    } else {
        if (item->command == RETURN) atomic_fetch_add(&pool->returned, 1);
        item_free(item);
    }
    return true;
}

/* ---- looks ---- */

static bool take_result(struct pool *pool, const uint8_t id[POOL_ID_BYTES])
{
    struct error err = {""};
    struct item *item = item_make(OFFER, id);
    if (!item) return true;
    enum status status = pool_redis_result(&pool->redis, id, &item->news.bytes, &err);
    if (status != ST_NOTFOUND && !made(pool, status, &err)) {
        item_free(item);
        return false;
    }
    atomic_fetch_add(status == ST_OK ? &pool->results : &pool->gone, 1);
    unwatch(pool, id);
    tell(pool, item, status == ST_OK ? POOL_RESULT : POOL_GONE);
    return true;
}

/* What the look has told of one. false: Redis is away. */
static bool take_state(struct pool *pool, const uint8_t id[POOL_ID_BYTES], char state)
{
    struct watched *watched = find_watched(pool, id);
    if (!watched || watched->state == state) return true;
    if (state == 'd') return take_result(pool, id);
    if (state == '-') {
        if (!tell_id(pool, id, POOL_GONE)) return true;
        atomic_fetch_add(&pool->gone, 1);
        unwatch(pool, id);
    } else if (tell_id(pool, id, state == 't' ? POOL_TAKEN : POOL_OPEN)) {
        watched->state = state;
    }
    return true;
}

static void look(struct pool *pool)
{
    uint8_t ids[POOL_LOOK_MAX][POOL_ID_BYTES];
    char states[POOL_LOOK_MAX];
    struct error err = {""};
    for (uint32_t left = pool->watched_count; left > 0;) {
        uint32_t count = left < POOL_LOOK_MAX ? left : POOL_LOOK_MAX;
        left -= count;
        for (uint32_t i = 0; i < count; i++) memcpy(ids[i], pool->watched[left + i].id, POOL_ID_BYTES);
        if (!made(pool, pool_redis_look(&pool->redis, ids, count, states, &err), &err)) return;
        for (uint32_t i = 0; i < count; i++)
            if (!take_state(pool, ids[i], states[i])) return;
    }
}

static void renew(struct pool *pool)
{
    bool lost[POOL_LOOK_MAX];
    struct error err = {""};
    for (uint32_t left = pool->held_count; left > 0;) {
        uint32_t count = left < POOL_LOOK_MAX ? left : POOL_LOOK_MAX;
        left -= count;
        if (!made(pool, pool_redis_renew(&pool->redis, &pool->held[left], count, lost, &err), &err)) return;
        for (uint32_t i = count; i-- > 0;) {
            struct pool_held *held = &pool->held[left + i];
            if (!lost[i] || !tell_id(pool, held->id, POOL_LOST)) continue;
            *held = pool->held[--pool->held_count];
        }
    }
}

static void on_pulled(void *state, const struct pool_held *held, const char *bytes, size_t length)
{
    struct pool *pool = state;
    if (find_held(pool, held->id)) return; /* it runs here */
    struct item *item = item_make(OFFER, held->id);
    bool room = item && grow((void **)&pool->held, pool->held_count, &pool->held_capacity, sizeof *pool->held);
    if (room) {
        memcpy(item->news.entry, held->entry, sizeof item->news.entry);
        buf_append(&item->news.bytes, bytes, length);
        room = buf_ok(&item->news.bytes);
    }
    if (!room) { /* others get it after pool_reclaim_ms */
        if (item) item_free(item);
        return;
    }
    pool->held[pool->held_count++] = *held;
    atomic_fetch_add(&pool->pulled, 1);
    tell(pool, item, POOL_PULLED);
}

static void pull(struct pool *pool)
{
    struct error err = {""};
    uint32_t wanted = atomic_load(&pool->wanted);
    if (wanted > 0)
        (void)made(pool, pool_redis_take(&pool->redis, wanted < TAKE_MAX ? wanted : TAKE_MAX, on_pulled, pool, &err),
                   &err);
    atomic_store(&pool->wanted, 0);
}

/* ---- the thread ---- */

static bool serves(struct pool *pool)
{
    if (pool->serves) return true;
    pthread_mutex_lock(&pool->mutex);
    if (pool->served) pool_redis_serve(&pool->redis, pool->group, pool->model);
    pool->serves = pool->served;
    pthread_mutex_unlock(&pool->mutex);
    return pool->serves;
}

static void turn(struct pool *pool)
{
    struct item *item;
    if (!serves(pool)) return;
    if (pool->away_ns > now_ns()) {
        refuse_offers(pool);
        atomic_store(&pool->wanted, 0);
        return;
    }
    while ((item = first_command(pool)) != NULL)
        if (!run_command(pool, item)) return;
    if (now_ns() < pool->look_ns) return;
    pool->look_ns = now_ns() + LOOK_MS * NS_PER_MS;
    look(pool);
    if (now_ns() >= pool->renew_ns) {
        pool->renew_ns = now_ns() + limits.pool_reclaim_ms / 4 * NS_PER_MS;
        renew(pool);
    }
    if (pool->away_ns <= now_ns()) pull(pool);
}

/* What is queued, then what is held goes back at once, as far as there is time. */
static void last_turn(struct pool *pool)
{
    uint64_t until_ns = now_ns() + CLOSE_MS * NS_PER_MS;
    struct item *item;
    struct error err;
    if (!pool->serves || pool->away_ns > now_ns()) return;
    while (now_ns() < until_ns && (item = first_command(pool)) != NULL)
        if (!run_command(pool, item)) return;
    while (now_ns() < until_ns && pool->held_count > 0)
        if (pool_redis_return(&pool->redis, &pool->held[--pool->held_count], true, &err) != ST_OK) return;
}

static void *pool_thread(void *state)
{
    struct pool *pool = state;
    for (;;) {
        uint32_t heard = doorbell_rings(&pool->doorbell);
        if (atomic_load(&pool->stop)) break;
        turn(pool);
        doorbell_sleep(&pool->doorbell, heard, LOOK_MS * NS_PER_MS);
    }
    last_turn(pool);
    return NULL;
}

/* ---- io ---- */

static bool group_is_good(const char *group)
{
    size_t length = strlen(group);
    return length > 0 && length <= POOL_GROUP_MAX &&
           strspn(group, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") == length;
}

static void pool_free(struct pool *pool)
{
    struct item *item;
    while ((item = pop(&pool->commands)) != NULL) item_free(item);
    while ((item = pop(&pool->news)) != NULL) item_free(item);
    pool_redis_close(&pool->redis);
    mem_free(pool->watched);
    mem_free(pool->held);
    doorbell_free(&pool->doorbell);
    pthread_mutex_destroy(&pool->mutex);
    mem_free(pool);
}

enum status pool_open(const struct pool_config *config, struct pool **out, struct error *err)
{
    struct error reason = {""};
    if (!group_is_good(config->group))
        return error_set(err, ST_INVAL, "--pool-group: 1 to %d letters, digits, '-', '_' and '.'", POOL_GROUP_MAX);
    struct pool *pool = mem_alloc(1, sizeof *pool);
    if (!pool) return error_set(err, ST_NOMEM, "no memory for the pool");
    pool->config = *config;
    memcpy(pool->group, config->group, strlen(config->group) + 1);
    doorbell_init(&pool->doorbell);
    pthread_mutex_init(&pool->mutex, NULL);
    pool->commands.last = &pool->commands.first;
    pool->news.last = &pool->news.first;
    enum status status = pool_redis_open(&pool->redis, &config->redis, &reason);
    if (status == ST_OK && pthread_create(&pool->thread, NULL, pool_thread, pool) != 0)
        status = error_set(&reason, ST_NOMEM, "the system gives no thread");
    if (status != ST_OK) {
        pool_free(pool);
        return error_set(err, status, "--pool: %.400s", reason.message);
    }
    *out = pool;
    return ST_OK;
}

void pool_close(struct pool *pool)
{
    if (!pool) return;
    atomic_store(&pool->stop, true);
    doorbell_ring(&pool->doorbell);
    (void)pthread_join(pool->thread, NULL);
    pool_free(pool);
}

void pool_serve(struct pool *pool, const uint8_t model[32])
{
    pthread_mutex_lock(&pool->mutex);
    memcpy(pool->model, model, sizeof pool->model);
    pool->served = true;
    pthread_mutex_unlock(&pool->mutex);
    doorbell_ring(&pool->doorbell);
}

bool pool_serves(const struct pool *pool)
{
    return pool->served; /* io alone writes it */
}

bool pool_offer(struct pool *pool, const uint8_t id[POOL_ID_BYTES], struct buf *bytes, uint64_t ttl_ms)
{
    struct item *item = item_make(OFFER, id);
    if (!item) {
        buf_free(bytes);
        return false;
    }
    item->news.bytes = *bytes;
    buf_init(bytes, 0);
    item->ttl_ms = ttl_ms;
    send_command(pool, item);
    return true;
}

void pool_withdraw(struct pool *pool, const uint8_t id[POOL_ID_BYTES])
{
    struct item *item = item_make(WITHDRAW, id);
    if (item) send_command(pool, item); /* else its result, if one comes, is waste */
}

void pool_forget(struct pool *pool, const uint8_t id[POOL_ID_BYTES])
{
    struct item *item = item_make(FORGET, id);
    if (item) send_command(pool, item); /* else it expires */
}

static void name_entry(struct item *item, const char *entry)
{
    strncpy(item->news.entry, entry, POOL_ENTRY_NAME_MAX);
}

bool pool_finish(struct pool *pool, const char *entry, const uint8_t id[POOL_ID_BYTES], struct buf *bytes,
                 uint64_t ttl_ms)
{
    struct item *item = item_make(FINISH, id);
    if (!item) {
        buf_free(bytes);
        return false;
    }
    name_entry(item, entry);
    item->news.bytes = *bytes;
    buf_init(bytes, 0);
    item->ttl_ms = ttl_ms;
    send_command(pool, item);
    return true;
}

void pool_return(struct pool *pool, const char *entry, const uint8_t id[POOL_ID_BYTES], bool again)
{
    struct item *item = item_make(RETURN, id);
    if (!item) return; /* others get it later */
    name_entry(item, entry);
    item->again = again;
    send_command(pool, item);
}

void pool_want(struct pool *pool, uint32_t count)
{
    atomic_store(&pool->wanted, count);
}

bool pool_came(struct pool *pool)
{
    return atomic_load(&pool->wanted) == 0;
}

bool pool_take(struct pool *pool, struct pool_news *news)
{
    pthread_mutex_lock(&pool->mutex);
    struct item *item = pop(&pool->news);
    pthread_mutex_unlock(&pool->mutex);
    if (!item) return false;
    *news = item->news;
    mem_free(item);
    return true;
}

void pool_read_stats(struct pool *pool, struct pool_stats *stats)
{
    *stats = (struct pool_stats){.up = atomic_load(&pool->up),
                                 .offered = atomic_load(&pool->offered),
                                 .refused = atomic_load(&pool->refused),
                                 .pulled = atomic_load(&pool->pulled),
                                 .results = atomic_load(&pool->results),
                                 .returned = atomic_load(&pool->returned),
                                 .gone = atomic_load(&pool->gone)};
}
