/* A whole ledger into an empty Redis; see ledger_redis.h. Fields are written as ledger.lua's, from ledger_dump. An
 * identity comes last in each partition: one that was cut off before it answers NOLEDGER, and never takes its marks
 * for 0. */
#include "server/billing/ledger_redis_parts.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LEDGER_SCHEMA "1" /* SCHEMA of ledger.lua */

enum { PAIRS_MAX = 64, ZEROS = 10 };

/* A line of the dump: "key field value". */
struct dump_line {
    const char *key, *field, *value, *next;
    size_t key_length, field_length, value_length;
};

static bool next_line(const char *at, const char *end, struct dump_line *line)
{
    if (at >= end) return false;
    line->key = at;
    line->key_length = strcspn(at, " ");
    line->field = at + line->key_length + 1;
    line->field_length = strcspn(line->field, " ");
    line->value = line->field + line->field_length + 1;
    line->value_length = strcspn(line->value, "\n");
    line->next = line->value + line->value_length + 1;
    return true;
}

/* "a:7" and "m:202611:7" as keys of Redis. false: of another kind (marks). */
static bool redis_key(const struct dump_line *line, char key[LEDGER_KEY_MAX])
{
    char name[LEDGER_KEY_MAX];
    if (strncmp(line->key, "hwm", 3) == 0 || line->key_length >= sizeof name) return false;
    memcpy(name, line->key, line->key_length);
    name[line->key_length] = '\0';
    ledger_redis_key(record_partition(strtoull(strrchr(name, ':') + 1, NULL, 10)), name, key);
    return true;
}

static enum status check_empty(struct redis_link *link, const char *key, struct error *err)
{
    const char *scan[] = {"HSCAN", key, "0", "COUNT", "1"};
    struct redis_reply *reply = NULL;
    TRY(ledger_redis_call(link, key, CALL_MS, scan, 5, &reply, err));
    bool good = reply->type == REDIS_ARRAY && reply->count == 2 && reply->items[1]->type == REDIS_ARRAY;
    bool empty = good && reply->items[1]->count == 0;
    redis_reply_free(reply);
    if (!good) return error_set(err, ST_PROTO, "Redis: HSCAN %s has an answer that is none", key);
    return empty ? ST_OK
                 : error_set(err, ST_INVAL,
                             "this Redis is not empty: it has %s. If a rebuild was cut off here, FLUSHALL and repeat",
                             key);
}

/* One HSET under way. */
struct hset {
    struct redis_link *link;
    char key[LEDGER_KEY_MAX], package[PACKAGE_ID_MAX + 1], zero_names[ZEROS * (PACKAGE_ID_MAX + 4)];
    const char *arguments[2 + 2 * (PAIRS_MAX + ZEROS)];
    size_t lengths[2 + 2 * (PAIRS_MAX + ZEROS)];
    int count;
};

static void hset_put(struct hset *h, const char *text, size_t length)
{
    h->arguments[h->count] = text;
    h->lengths[h->count++] = length;
}

static void hset_begin(struct hset *h)
{
    h->count = 0;
    hset_put(h, "HSET", 4);
    hset_put(h, h->key, strlen(h->key));
}

static enum status hset_send(struct hset *h, struct error *err)
{
    struct redis_reply *reply = NULL;
    if (h->count <= 2) return ST_OK;
    TRY(redis_link_call(h->link, redis_slot(h->key), &(struct redis_command){h->count, h->arguments, h->lengths},
                        CALL_MS, &reply, err));
    enum status status = reply->type == REDIS_INTEGER
                             ? ST_OK
                             : error_set(err, ST_INVAL, "Redis: HSET %s: %.300s", h->key,
                                         reply->type == REDIS_ERROR ? reply->text : "an answer that is none");
    redis_reply_free(reply);
    hset_begin(h);
    return status;
}

/* A package has all its fields, also those that are 0, which a dump leaves out. The real ones follow and win. */
static enum status hset_package(struct hset *h, const struct dump_line *line, struct error *err)
{
    static const char *const fields[ZEROS] = {"gr", "av", "rs", "us", "xp", "pr", "ef", "ex", "cr", "mk"};
    const char *dot = memchr(line->field, '.', line->field_length);
    size_t length = dot ? (size_t)(dot - line->field) : 0, at = 0;
    if (!dot || length > PACKAGE_ID_MAX || memchr(line->field, ':', line->field_length)) return ST_OK;
    if (strlen(h->package) == length && memcmp(h->package, line->field, length) == 0) return ST_OK;
    TRY(hset_send(h, err)); /* its names point into zero_names */
    memcpy(h->package, line->field, length);
    h->package[length] = '\0';
    for (size_t i = 0; i < ZEROS; i++) {
        int n = snprintf(h->zero_names + at, sizeof h->zero_names - at, "%s.%s", h->package, fields[i]);
        hset_put(h, h->zero_names + at, (size_t)n);
        hset_put(h, "0", 1);
        at += (size_t)n + 1;
    }
    return ST_OK;
}

static enum status fill_accounts(struct redis_link *link, const struct buf *dump, struct error *err)
{
    struct hset h = {.link = link};
    struct dump_line line;
    char key[LEDGER_KEY_MAX];
    hset_begin(&h);
    for (const char *at = dump->data; next_line(at, dump->data + dump->length, &line); at = line.next) {
        if (!redis_key(&line, key)) continue;
        if (strcmp(key, h.key) != 0 || h.count >= 2 + 2 * PAIRS_MAX) TRY(hset_send(&h, err));
        if (strcmp(key, h.key) != 0) {
            memcpy(h.key, key, sizeof key);
            h.package[0] = '\0';
            hset_begin(&h);
        }
        if (line.key[0] == 'a') TRY(hset_package(&h, &line, err));
        hset_put(&h, line.field, line.field_length);
        hset_put(&h, line.value, line.value_length);
    }
    return hset_send(&h, err);
}

static enum status fill_marks(struct redis_link *link, const struct buf *dump, const char *uuid, struct error *err)
{
    struct hset h = {.link = link};
    struct dump_line line;
    for (uint16_t p = 0; p < PARTITIONS; p++) {
        char name[16];
        (void)snprintf(name, sizeof name, "hwm:%03u", p);
        ledger_redis_key(p, "hwm", h.key);
        hset_begin(&h);
        for (const char *at = dump->data; next_line(at, dump->data + dump->length, &line); at = line.next) {
            if (strncmp(line.key, "hwm", 3) != 0) break; /* marks come first */
            if (line.key_length != strlen(name) || memcmp(line.key, name, line.key_length) != 0) continue;
            if (h.count >= 2 + 2 * PAIRS_MAX) TRY(hset_send(&h, err));
            hset_put(&h, line.field, line.field_length);
            hset_put(&h, line.value, line.value_length);
        }
        hset_put(&h, "schema", 6);
        hset_put(&h, LEDGER_SCHEMA, strlen(LEDGER_SCHEMA));
        hset_put(&h, "uuid", 4);
        hset_put(&h, uuid, strlen(uuid));
        TRY(hset_send(&h, err));
    }
    return ST_OK;
}

static enum status check_all_empty(struct redis_link *link, const struct buf *dump, struct error *err)
{
    struct dump_line line;
    char key[LEDGER_KEY_MAX], last[LEDGER_KEY_MAX] = "";
    for (uint16_t p = 0; p < PARTITIONS; p++) {
        ledger_redis_key(p, "hwm", key);
        TRY(check_empty(link, key, err));
    }
    for (const char *at = dump->data; next_line(at, dump->data + dump->length, &line); at = line.next) {
        if (!redis_key(&line, key) || strcmp(key, last) == 0) continue;
        memcpy(last, key, sizeof last);
        TRY(check_empty(link, key, err));
    }
    return ST_OK;
}

enum status ledger_redis_fill(const struct redis_target *target, const struct ledger *ledger, struct error *err)
{
    struct redis_link *link;
    struct buf dump;
    TRY(redis_link_create(target, ledger_redis_prepare, NULL, &link));
    buf_init(&dump, 0);
    ledger_dump(ledger, &dump);
    buf_append(&dump, "", 1);
    enum status status = buf_ok(&dump) ? ST_OK : error_set(err, ST_NOMEM, "%s", status_text(ST_NOMEM));
    if (status == ST_OK) {
        dump.length--; /* the NUL ends the last line's search */
        status = check_all_empty(link, &dump, err);
    }
    if (status == ST_OK) status = fill_accounts(link, &dump, err);
    if (status == ST_OK) status = fill_marks(link, &dump, ledger_uuid(ledger), err);
    buf_free(&dump);
    redis_link_destroy(link);
    return status;
}
