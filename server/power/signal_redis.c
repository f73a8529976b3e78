/* The provider of --power-signal redis:HUB: the hash mr:power:HUB with the fields of signal_table.h, of a hub that many
 * nodes follow.
 *
 *   listen: SUBSCRIBE mr:power:HUB --a message, whatever it says--\
 *                                  --connected (again)--------------> HGETALL mr:power:HUB --> the source's whole word
 *   each period= (10 s), if nothing was said -----------------------/
 *
 * A message is only a hint, so that a lost one costs a period and no more; a node with a Redis that refuses SUBSCRIBE
 * lives by the period alone. Without t0_ms the hash holds until it changes; with it dur_s is a quarter of an hour where
 * it is not told. With recv_ms (when the hub said so) the source counts as heard only when recv_ms moves: a hash whose
 * writer has died ages. So does one that is gone: to lift a cap the hub writes another word, it does not fall silent.
 *
 * The way, K1-K4, TLS and passwords: billing/redis_link.h. The ledger's password goes to --redis alone, never to url=.
 */
#include "server/power/signal_providers.h"

#include "runtime/base/log.h"
#include "runtime/base/mem.h"
#include "server/power/signal_table.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LISTEN_MS = 200, TIMEOUT_MS = 1000, FIELDS_MAX = 64, HOLDS_S = 100 * 86400, SUBSCRIBE_AGAIN_MS = 60000 };

struct signal_redis {
    const struct signal_ear *ear;
    struct redis_target target;
    struct redis_link *ask, *hear;
    char key[sizeof "mr:power:" + SIGNAL_PLACE_BYTES];
    uint16_t slot;
    bool asked, hinted; /* once at least; since the last time */
    int64_t asked_ms, refused_ms, told_ms;
    bool failing; /* the last call failed: told in the log once */
};

static enum status read_target(const struct signal_ear *ear, struct redis_target *target, struct error *err)
{
    const struct signal_spec *spec = ear->spec;
    const struct redis_settings *given = ear->setup->redis;
    bool secret = spec->secret_env[0] || spec->secret_file[0];
    if (!spec->url[0] && (secret || spec->ca_file[0]))
        return error_set(err, ST_INVAL, "secret_env=, secret_file= and ca_file= go with url=; --redis has its own");
    if (!spec->url[0] && (!given || !given->url)) return error_set(err, ST_INVAL, "it needs --redis, or url=");
    if (!spec->url[0]) return redis_target_read(given, target, err);
    struct redis_settings own = {.url = spec->url,
                                 .password = spec->secret_env[0] ? getenv(spec->secret_env) : NULL,
                                 .password_file = spec->secret_file[0] ? spec->secret_file : NULL,
                                 .ca_file = spec->ca_file[0] ? spec->ca_file : NULL};
    if (spec->secret_env[0] && !own.password)
        return error_set(err, ST_INVAL, "the environment has no %s", spec->secret_env);
    return redis_target_read(&own, target, err);
}

static void redis_close(void *feed)
{
    struct signal_redis *redis = feed;
    redis_link_destroy(redis->ask);
    redis_link_destroy(redis->hear);
    explicit_bzero(redis->target.password, sizeof redis->target.password);
    mem_free(redis);
}

static enum status redis_open(const struct signal_ear *ear, void **feed, struct error *err)
{
    struct signal_redis *redis = mem_alloc(1, sizeof *redis);
    struct error reason = {""};
    if (!redis) return error_set(err, ST_NOMEM, "no memory for a power signal");
    redis->ear = ear;
    (void)snprintf(redis->key, sizeof redis->key, "mr:power:%s", ear->spec->place);
    redis->slot = redis_slot(redis->key);
    enum status status = read_target(ear, &redis->target, &reason);
    redis->target.timeout_ms = TIMEOUT_MS;
    if (status == ST_OK) status = redis_link_create(&redis->target, NULL, NULL, &redis->ask);
    if (status == ST_OK) status = redis_link_create(&redis->target, NULL, NULL, &redis->hear);
    if (status == ST_OK) {
        *feed = redis;
        return ST_OK;
    }
    redis_close(redis);
    return error_set(err, status, "--power-signal redis:%.64s: %.300s", ear->spec->place, reason.message);
}

static void tell_failure(struct signal_redis *redis, enum signal_why why, const char *message)
{
    const struct signal_ear *ear = redis->ear;
    signal_failed(ear->signals, ear->source, why, message);
    if (!redis->failing)
        log_line(LOG_WARN, "signal", "source=\"%s\" kept=\"what was told before, ageing\" reason=\"%s\"",
                 ear->spec->name, message);
    redis->failing = true;
}

/* ---- the hash ---- */

static enum status read_hash(const struct redis_reply *reply, struct power_slot *slot, struct error *err)
{
    *slot = (struct power_slot){.have = 0};
    if (reply->type != REDIS_ARRAY || reply->count > 2 * FIELDS_MAX)
        return error_set(err, ST_INVAL, "it is no hash of at most %d fields", FIELDS_MAX);
    for (uint32_t i = 0; i < reply->count; i += 2) {
        const char *name = redis_reply_text_at(reply, i), *text = redis_reply_text_at(reply, i + 1);
        if (!name || !text || strlen(text) != reply->items[i + 1]->length)
            return error_set(err, ST_INVAL, "a field is no text");
        if (!text[0] || strcmp(name, "source") == 0) continue; /* not told; who said it to the hub */
        enum status status = signal_field_set(slot, name, text, err);
        if (status != ST_OK) return status == ST_NOTFOUND ? ST_INVAL : status;
    }
    return ST_OK;
}

static void take_hash(struct signal_redis *redis, const struct redis_reply *reply, int64_t now_ms)
{
    const struct signal_ear *ear = redis->ear;
    struct power_slot slot;
    struct error err = {""};
    if (reply->type == REDIS_ERROR) {
        bool rights = redis_fault_of(reply) == REDIS_FAULT_RIGHTS;
        tell_failure(redis, rights ? SIGNAL_DENIED : SIGNAL_UNREADABLE, reply->text);
        return;
    }
    if (reply->type == REDIS_ARRAY && reply->count == 0) {
        tell_failure(redis, SIGNAL_UNREACHABLE, "there is no such hash");
        return;
    }
    if (read_hash(reply, &slot, &err) != ST_OK) {
        tell_failure(redis, SIGNAL_UNREADABLE, err.message);
        return;
    }
    if (slot.received_ms && slot.received_ms == redis->told_ms) return; /* no news: nothing is heard */
    int64_t told_ms = slot.received_ms;
    if (slot.t0_ms == 0) {
        slot.t0_ms = now_ms - now_ms % SIGNAL_SLOT_MS;
        slot.dur_s = HOLDS_S;
    } else if (slot.dur_s == 0) {
        slot.dur_s = SIGNAL_QUARTER_S;
    }
    if (!signal_replace(ear->signals, ear->source, &slot, 1, now_ms)) {
        struct signal_state state;
        signal_read_state(ear->signals, ear->source, now_ms, &state);
        if (!redis->failing) log_line(LOG_WARN, "signal", "source=\"%s\" %s", ear->spec->name, state.message);
        redis->failing = true;
        return;
    }
    redis->told_ms = told_ms;
    if (redis->failing) log_line(LOG_INFO, "signal", "source=\"%s\" heard again", ear->spec->name);
    redis->failing = false;
}

static void ask(struct signal_redis *redis, int64_t now_ms)
{
    const char *arguments[] = {"HGETALL", redis->key};
    struct redis_reply *reply = NULL;
    struct error err = {""};
    redis->hinted = false;
    redis->asked = true;
    redis->asked_ms = now_ms;
    enum status status =
        redis_link_call(redis->ask, redis->slot, &(struct redis_command){2, arguments, NULL}, TIMEOUT_MS, &reply, &err);
    if (status != ST_OK)
        tell_failure(redis, status == ST_INVAL ? SIGNAL_DENIED : SIGNAL_UNREACHABLE, err.message);
    else
        take_hash(redis, reply, now_ms);
    redis_reply_free(reply);
}

/* ---- the hints ---- */

/* Whether the node that serves the key is listened to; subscribes where it is new. */
static bool listens(struct signal_redis *redis, int64_t now_ms, uint32_t *node)
{
    struct redis_reply *reply = NULL;
    struct error err = {""};
    const char *arguments[] = {"SUBSCRIBE", redis->key};
    if (redis->refused_ms && now_ms - redis->refused_ms < SUBSCRIBE_AGAIN_MS && now_ms >= redis->refused_ms)
        return false;
    for (uint32_t i = 0; i < redis_link_nodes(redis->hear); i++)
        if (redis_node_open(redis->hear, i)) {
            *node = i;
            return true;
        }
    if (redis_link_route(redis->hear, redis->slot, node, &err) != ST_OK) return false;
    if (redis_node_call(redis->hear, *node, &(struct redis_command){2, arguments, NULL}, &reply, &err) != ST_OK)
        return false;
    bool refused = reply->type == REDIS_ERROR;
    if (refused) {
        log_line(LOG_WARN, "signal", "source=\"%s\" note=\"changes are seen each period only\" reason=\"%s\"",
                 redis->ear->spec->name, reply->text);
        redis->refused_ms = now_ms;
        redis_node_close(redis->hear, *node);
    }
    redis_reply_free(reply);
    redis->hinted = true; /* what was said before nobody heard */
    return !refused;
}

/* True: somebody has said something, or what was asked first is due. */
static bool listen_for_hint(struct signal_redis *redis, uint32_t node)
{
    struct redis_reply *message = NULL;
    struct error err;
    if (redis_node_listen(redis->hear, node, LISTEN_MS, &message, &err) != ST_OK) return false;
    redis_reply_free(message);
    return true;
}

static uint32_t redis_look(void *feed, int64_t now_ms)
{
    struct signal_redis *redis = feed;
    uint32_t node = 0;
    bool heard = listens(redis, now_ms, &node);
    bool due = !redis->asked || now_ms - redis->asked_ms >= redis->ear->spec->period_ms || now_ms < redis->asked_ms;
    if (due || redis->hinted) {
        ask(redis, now_ms);
        return 0; /* listening is the pause */
    }
    if (!heard) return LISTEN_MS;
    if (!atomic_load(redis->ear->stop)) redis->hinted = listen_for_hint(redis, node);
    return 0;
}

const struct signal_provider signal_redis = {
    .limits = true, .at_once = false, .open = redis_open, .look = redis_look, .close = redis_close};
