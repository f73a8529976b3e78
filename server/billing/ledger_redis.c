/* A ledger in Redis as ledger_client.h's calls, and what a node must be before it is used; see ledger_redis.h. Reading
 * balances and the directory: ledger_redis_read.c.
 *
 * Settings that are refused, and why: without the AOF Redis forgets at each stop; another policy than noeviction lets
 * it drop balances; with aof-load-truncated an AOF that was cut within a transaction is loaded without its rest, and
 * the start after that one runs the half transaction with the next one: tokens counted twice (valkey #4342). */
#include "server/billing/ledger_redis_parts.h"

#include "runtime/base/check.h"
#include "runtime/base/mem.h"
#include "server/billing/ledger_lua.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* ---- a node ---- */

static enum status refused(struct redis_link *link, uint32_t node, const struct redis_reply *reply, const char *what,
                           const char *allow, struct error *err)
{
    char name[REDIS_HOST_MAX + 16];
    redis_node_name(link, node, name);
    if (redis_fault_of(reply) == REDIS_FAULT_RIGHTS)
        return error_set(err, ST_INVAL, "Redis %s: our user may not call %s; allow it: ACL SETUSER .. %s", name, what,
                         allow);
    return error_set(err, ST_IO, "Redis %s: %s: %s", name, what,
                     reply->type == REDIS_ERROR ? reply->text : "an answer that cannot be read");
}

/* Loads the library when the node has none, or an older one; a newer one serves us too. */
static enum status load_library(struct redis_link *link, uint32_t node, struct error *err)
{
    const char *version[] = {"FCALL", "mr_version", "0"};
    struct redis_reply *reply = NULL;
    TRY(redis_node_call(link, node, &(struct redis_command){3, version, NULL}, &reply, err));
    enum status status = ST_OK;
    bool missing = redis_fault_of(reply) == REDIS_FAULT_FUNCTION;
    if (!missing && reply->type != REDIS_INTEGER)
        status = refused(link, node, reply, "FCALL", "+fcall", err);
    else if (!missing && reply->integer >= LEDGER_LUA_VERSION)
        missing = false;
    else
        missing = true;
    redis_reply_free(reply);
    if (status != ST_OK || !missing) return status;
    const char *load[] = {"FUNCTION", "LOAD", "REPLACE", ledger_lua};
    TRY(redis_node_call(link, node, &(struct redis_command){4, load, NULL}, &reply, err));
    if (!redis_reply_is(reply, "mr")) status = refused(link, node, reply, "FUNCTION LOAD", "+function", err);
    redis_reply_free(reply);
    return status;
}

static enum status check_setting(struct redis_link *link, uint32_t node, const char *setting, const char *wanted,
                                 const char *why, struct error *err)
{
    const char *get[] = {"CONFIG", "GET", setting};
    struct redis_reply *reply = NULL;
    TRY(redis_node_call(link, node, &(struct redis_command){3, get, NULL}, &reply, err));
    const char *value = redis_reply_text_at(reply, 1);
    char name[REDIS_HOST_MAX + 16];
    enum status status = ST_OK;
    if (value == NULL)
        status = refused(link, node, reply, "CONFIG GET, which shows that no balance can be lost unseen", "+config|get",
                         err);
    else if (strcmp(value, wanted) != 0)
        status = error_set(err, ST_INVAL, "Redis %s has %s %.24s: %s. Set: CONFIG SET %s %s, and in its file",
                           redis_node_name(link, node, name), setting, value, why, setting, wanted);
    redis_reply_free(reply);
    return status;
}

enum status ledger_redis_prepare(void *state, struct redis_link *link, uint32_t node, struct error *err)
{
    (void)state;
    TRY(check_setting(link, node, "appendonly", "yes", "it would forget balances when it stops", err));
    TRY(check_setting(link, node, "maxmemory-policy", "noeviction", "it may drop balances", err));
    TRY(check_setting(link, node, "aof-load-truncated", "no", "after a crash it may count a torn transaction twice",
                      err));
    return load_library(link, node, err);
}

/* ---- calls ---- */

void ledger_redis_account_key(uint64_t account, char key[LEDGER_KEY_MAX])
{
    snprintf(key, LEDGER_KEY_MAX, "mr:{b%03u}:a:%" PRIu64, record_partition(account), account);
}

enum status ledger_redis_call(struct redis_link *link, const char *key, uint32_t timeout_ms, const char **arguments,
                              int count, struct redis_reply **reply, struct error *err)
{
    TRY(redis_link_call(link, redis_slot(key), &(struct redis_command){count, arguments, NULL}, timeout_ms, reply,
                        err));
    if ((*reply)->type != REDIS_ERROR) return ST_OK;
    enum redis_fault fault = redis_fault_of(*reply);
    enum status status = error_set(err, fault == REDIS_FAULT_WAIT || fault == REDIS_FAULT_MASTER ? ST_IO : ST_INVAL,
                                   "Redis: %s %s: %s", arguments[0], arguments[1], (*reply)->text);
    redis_reply_free(*reply);
    *reply = NULL;
    return status;
}

/* The answer of a Function whose reply begins with it. */
static enum status call_function(struct ledger_redis *l, const char *key, const char **arguments, int count,
                                 enum ledger_answer *answer, struct redis_reply **reply_out, struct error *err)
{
    struct redis_reply *reply = NULL;
    TRY(ledger_redis_call(l->link, key, CALL_MS, arguments, count, &reply, err));
    const char *text = redis_reply_text_at(reply, 0);
    if (text == NULL || !ledger_answer_parse(text, answer)) {
        redis_reply_free(reply);
        return error_set(err, ST_PROTO, "Redis: %s has an answer that is not ledger.lua's", arguments[1]);
    }
    if (reply_out != NULL)
        *reply_out = reply;
    else
        redis_reply_free(reply);
    return ST_OK;
}

/* The identity that a partition has; "": none. */
static enum status partition_uuid(struct ledger_redis *l, uint16_t partition, char uuid[LEDGER_UUID_CHARS + 1],
                                  struct error *err)
{
    char key[LEDGER_KEY_MAX];
    ledger_redis_key(partition, "hwm", key);
    const char *get[] = {"HGET", key, "uuid"};
    struct redis_reply *reply = NULL;
    TRY(ledger_redis_call(l->link, key, CALL_MS, get, 3, &reply, err));
    enum status status = ST_OK;
    if (reply->type == REDIS_NIL)
        uuid[0] = '\0';
    else if (reply->type == REDIS_STRING && reply->length > 0 && reply->length <= LEDGER_UUID_CHARS)
        memcpy(uuid, reply->text, reply->length + 1);
    else
        status = error_set(err, ST_PROTO, "Redis: %s holds no identity of a ledger", key);
    redis_reply_free(reply);
    return status;
}

static enum status client_uuid(void *state, char uuid[LEDGER_UUID_CHARS + 1], struct error *err)
{
    struct ledger_redis *l = state;
    uint32_t with = 0;
    char first[LEDGER_UUID_CHARS + 1] = "", one[LEDGER_UUID_CHARS + 1];
    uint16_t lost = 0;
    for (uint16_t p = 0; p < PARTITIONS; p++) {
        TRY(partition_uuid(l, p, one, err));
        if (one[0] == '\0') {
            lost = p;
            continue;
        }
        if (with++ == 0) memcpy(first, one, sizeof first);
        if (strcmp(first, one) != 0)
            return error_set(err, ST_INVAL, "this Redis holds parts of two ledgers: %s and, in b%03u, %s", first, p,
                             one);
    }
    if (with > 0 && with < PARTITIONS)
        return error_set(err, ST_INVAL,
                         "this Redis has lost part of its ledger (b%03u of %s; %u of %d are left), or `millrace bill "
                         "init` was cut off: run init again, or rebuild",
                         lost, first, with, PARTITIONS);
    memcpy(uuid, first, sizeof first);
    return ST_OK;
}

/* Whose calls all carry the identity. "" when the ledger has none. */
static enum status identity(struct ledger_redis *l, struct error *err)
{
    return l->uuid[0] != '\0' ? ST_OK : client_uuid(l, l->uuid, err);
}

struct marks_seen {
    uint32_t count;
};
static void count_mark(void *visitor, uint64_t producer, uint64_t epoch, uint64_t hwm, const char *hash8)
{
    (void)producer, (void)epoch, (void)hash8;
    if (hwm > 0) ((struct marks_seen *)visitor)->count++;
}

/* Completes an init that was cut off, and nothing else: a ledger of which a part has records and a part is gone has
 * been lost in part, and a mark of 0 there would count everything twice. */
static enum status check_unused(struct ledger_redis *l, const char *uuid, struct error *err)
{
    bool gap = false;
    struct marks_seen seen = {0};
    for (uint16_t p = 0; p < PARTITIONS; p++) {
        char one[LEDGER_UUID_CHARS + 1];
        TRY(partition_uuid(l, p, one, err));
        if (one[0] == '\0') gap = true;
        if (strcmp(one, uuid) == 0) TRY(ledger_redis_marks(l, p, count_mark, &seen, err));
    }
    if (!gap || seen.count == 0) return ST_OK;
    return error_set(err, ST_INVAL, "this Redis has lost part of ledger %s, which has records: rebuild it", uuid);
}

static enum status client_init(void *state, const char *uuid, enum ledger_answer *answer, struct error *err)
{
    struct ledger_redis *l = state;
    TRY(check_unused(l, uuid, err));
    *answer = LEDGER_DUP;
    for (uint16_t p = 0; p < PARTITIONS; p++) {
        char hwm[LEDGER_KEY_MAX], log[LEDGER_KEY_MAX];
        ledger_redis_key(p, "hwm", hwm);
        ledger_redis_key(p, "log", log);
        const char *arguments[] = {"FCALL", "mr_init", "2", hwm, log, uuid};
        enum ledger_answer one;
        TRY(call_function(l, hwm, arguments, 6, &one, NULL, err));
        if (one == LEDGER_OK) *answer = LEDGER_OK;
        if (one != LEDGER_OK && one != LEDGER_DUP) {
            *answer = one;
            return ST_OK;
        }
    }
    snprintf(l->uuid, sizeof l->uuid, "%s", uuid);
    return ST_OK;
}

/* The first six arguments of a Function on one account. */
struct account_call {
    char hwm[LEDGER_KEY_MAX], log[LEDGER_KEY_MAX], key[LEDGER_KEY_MAX];
};
static void account_call(const struct ledger_redis *l, struct account_call *c, const char *function, uint64_t account,
                         const char **arguments)
{
    uint16_t partition = record_partition(account);
    ledger_redis_key(partition, "hwm", c->hwm);
    ledger_redis_key(partition, "log", c->log);
    ledger_redis_account_key(account, c->key);
    const char *first[] = {"FCALL", function, "3", c->hwm, c->log, c->key, l->uuid};
    memcpy(arguments, first, sizeof first);
}

static enum status client_order(void *state, const struct order *order, enum ledger_answer *answer, struct error *err)
{
    struct ledger_redis *l = state;
    static const char *const ops[PACKAGE_OPS] = {"add", "inc", "void", NULL};
    *answer = LEDGER_BADARG;
    if (order->op > PACKAGE_VOID) return ST_OK;
    TRY(identity(l, err));
    *answer = LEDGER_NOLEDGER;
    if (l->uuid[0] == '\0') return ST_OK;
    struct account_call c;
    char numbers[6][24];
    const uint64_t values[6] = {order->units,      order->priority,   order->effective_ms,
                                order->expires_ms, order->created_ms, order->class_mask};
    const char *arguments[16];
    account_call(l, &c, "mr_order", order->account, arguments);
    arguments[7] = order->id;
    arguments[8] = ops[order->op];
    arguments[9] = order->package;
    for (int i = 0; i < 6; i++) {
        snprintf(numbers[i], sizeof numbers[i], "%" PRIu64, values[i]);
        arguments[10 + i] = numbers[i];
    }
    return call_function(l, c.hwm, arguments, 16, answer, NULL, err);
}

static enum status client_account_set(void *state, uint64_t account, const char *order_id, bool open,
                                      enum ledger_answer *answer, struct error *err)
{
    struct ledger_redis *l = state;
    TRY(identity(l, err));
    *answer = LEDGER_NOLEDGER;
    if (l->uuid[0] == '\0') return ST_OK;
    struct account_call c;
    const char *arguments[9];
    account_call(l, &c, "mr_account", account, arguments);
    arguments[7] = order_id;
    arguments[8] = open ? "open" : "close";
    return call_function(l, c.hwm, arguments, 9, answer, NULL, err);
}

static enum status client_reap(void *state, uint64_t account, uint64_t grace_ms, uint32_t *leases, uint32_t *packages,
                               enum ledger_answer *answer, struct error *err)
{
    struct ledger_redis *l = state;
    TRY(identity(l, err));
    *answer = LEDGER_NOLEDGER;
    *leases = *packages = 0;
    if (l->uuid[0] == '\0') return ST_OK;
    struct account_call c;
    char grace[24];
    const char *arguments[8];
    account_call(l, &c, "mr_reap", account, arguments);
    snprintf(grace, sizeof grace, "%" PRIu64, grace_ms);
    arguments[7] = grace;
    struct redis_reply *reply = NULL;
    TRY(call_function(l, c.hwm, arguments, 8, answer, &reply, err));
    uint64_t ended = 0, expired = 0;
    enum status status = ST_OK;
    if (*answer == LEDGER_OK &&
        (!ledger_redis_number(redis_reply_text_at(reply, 1), &ended) ||
         !ledger_redis_number(redis_reply_text_at(reply, 2), &expired) || ended > UINT32_MAX || expired > UINT32_MAX))
        status = error_set(err, ST_PROTO, "Redis: the answer to mr_reap is not ledger.lua's");
    redis_reply_free(reply);
    *leases = (uint32_t)ended;
    *packages = (uint32_t)expired;
    return status;
}

static enum status client_directory_put(void *state, const char *id, const char *line, struct error *err)
{
    struct ledger_redis *l = state;
    const char *arguments[] = {"FCALL", "mr_dir_put", "2", DIRECTORY_LINES_KEY, DIRECTORY_VERSION_KEY, id, line};
    enum ledger_answer answer;
    TRY(call_function(l, DIRECTORY_LINES_KEY, arguments, 7, &answer, NULL, err));
    if (answer == LEDGER_OK || answer == LEDGER_DUP) return ST_OK;
    return error_set(err, ST_INVAL, "the ledger's directory refuses \"%.80s\": %s", id, ledger_answer_name(answer));
}

static enum status client_directory_version(void *state, uint64_t *version, struct error *err)
{
    return ledger_redis_directory_version(((struct ledger_redis *)state)->link, CALL_MS, version, err);
}

static enum status client_directory_read(void *state, void (*visit)(void *visitor, const char *line, size_t length),
                                         void *visitor, uint64_t *version, struct error *err)
{
    return ledger_redis_directory_read(((struct ledger_redis *)state)->link, CALL_MS, visit, visitor, version, err);
}

static enum status client_balance(void *state, uint64_t account, struct account_balance *balance, struct error *err)
{
    return ledger_redis_balance(state, account, balance, err);
}

static enum status client_month(void *state, uint64_t account, uint32_t month, struct month_total totals[MODEL_CLASSES],
                                uint32_t *count, struct error *err)
{
    return ledger_redis_month(state, account, month, totals, count, err);
}

static enum status client_marks(void *state, uint16_t partition, ledger_mark_fn visit, void *visitor, struct error *err)
{
    return ledger_redis_marks(state, partition, visit, visitor, err);
}

static enum status client_budget(void *state, const struct budget_ask *ask, struct budget_answer *answer,
                                 struct error *err)
{
    enum { ARGUMENTS = 11 };
    struct ledger_redis *l = state;
    char key[LEDGER_KEY_MAX], producer[24], text[ARGUMENTS][24];
    const uint64_t numbers[ARGUMENTS] = {[1] = (uint64_t)(ask->utc_offset_s + 86400),
                                         [3] = ask->budget.units,
                                         [4] = ask->look,
                                         [5] = ask->known,
                                         [6] = ask->number,
                                         [7] = ask->have,
                                         [8] = ask->want,
                                         [9] = ask->reserve,
                                         [10] = ask->release};
    const char *arguments[4 + ARGUMENTS] = {"FCALL", "mr_budget", "1", key};
    snprintf(key, sizeof key, "mr:{b%03u}:u:%016" PRIx64, record_partition(ask->key), ask->key);
    snprintf(producer, sizeof producer, "%016" PRIx64, ask->producer);
    for (int i = 0; i < ARGUMENTS; i++) {
        snprintf(text[i], sizeof text[i], "%" PRIu64, numbers[i]);
        arguments[4 + i] = text[i];
    }
    arguments[4] = budget_period_name(ask->budget.period);
    arguments[6] = producer;
    enum ledger_answer verdict;
    struct redis_reply *reply = NULL;
    TRY(call_function(l, key, arguments, 4 + ARGUMENTS, &verdict, &reply, err));
    uint64_t *const out[] = {&answer->number, &answer->base, &answer->taken, &answer->others};
    enum status status =
        verdict == LEDGER_OK ? ST_OK : error_set(err, ST_INVAL, "Redis: %s: %s", key, ledger_answer_name(verdict));
    for (uint32_t i = 0; status == ST_OK && i < 4; i++) {
        const char *number = redis_reply_text_at(reply, i + 1);
        if (!number || !ledger_redis_number(number, out[i]))
            status = error_set(err, ST_PROTO, "Redis: mr_budget has an answer that is not ledger.lua's");
    }
    redis_reply_free(reply);
    return status;
}

static void client_close(void *state)
{
    struct ledger_redis *l = state;
    redis_link_destroy(l->link);
    mem_free(l);
}

enum status ledger_redis_create(const struct redis_target *target, struct ledger_client *client, struct error *err)
{
    static const struct ledger_client_calls calls = {
        .close = client_close,
        .init = client_init,
        .uuid = client_uuid,
        .order = client_order,
        .account_set = client_account_set,
        .reap = client_reap,
        .balance = client_balance,
        .month = client_month,
        .marks = client_marks,
        .directory_version = client_directory_version,
        .directory_read = client_directory_read,
        .directory_put = client_directory_put,
        .budget = client_budget,
    };
    struct ledger_redis *l = mem_alloc(1, sizeof *l);
    if (l == NULL) return error_set(err, ST_NOMEM, "no memory for a ledger in Redis");
    if (redis_link_create(target, ledger_redis_prepare, NULL, &l->link) != ST_OK) {
        client_close(l);
        return error_set(err, ST_NOMEM, "no memory for a ledger in Redis");
    }
    *client = (struct ledger_client){&calls, l};
    return ST_OK;
}

enum status ledger_redis_open(const struct redis_target *target, struct ledger_client *client, struct error *err)
{
    struct ledger_client made;
    uint32_t node = 0;
    TRY(ledger_redis_create(target, &made, err));
    struct ledger_redis *l = made.state;
    enum status status = redis_link_route(l->link, redis_slot(DIRECTORY_LINES_KEY), &node, err);
    if (status != ST_OK) {
        client_close(l);
        return status == ST_AGAIN ? ST_IO : status;
    }
    *client = made;
    return ST_OK;
}
