/* Reading and trimming the log in Redis; see bill_export_log.h. In pages, because a reply is bounded; a trim names the
 * first id that stays, so that what came in after the reading is never touched. */
#include "server/billing/bill_export_log.h"

#include "server/billing/ledger_redis.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { PAGE_ENTRIES = 200, CALL_MS = 10000 };

static enum status open_link(struct bill *bill, struct redis_link **link, struct error *err)
{
    if (!bill->redis) TRY(bill_redis_target(bill, &bill->redis, err));
    return redis_link_create(bill->redis, NULL, NULL, link);
}

static enum status call(struct redis_link *link, const char *key, const char **arguments, int count,
                        struct redis_reply **reply, struct error *err)
{
    struct redis_command command = {.count = count, .arguments = arguments};
    TRY(redis_link_call(link, redis_slot(key), &command, CALL_MS, reply, err));
    if ((*reply)->type != REDIS_ERROR) return ST_OK;
    enum status status = error_set(err, ST_INVAL, "Redis: %s %s: %.300s", arguments[0], key, (*reply)->text);
    redis_reply_free(*reply);
    return status;
}

static enum status read_entry(const struct redis_reply *entry, struct log_entry *out, struct error *err)
{
    const struct {
        const char *name;
        const char **to;
    } known[] = {{"k", &out->kind},    {"p", &out->producer}, {"s", &out->pseq},  {"a", &out->account},
                 {"f", &out->funding}, {"x", &out->time},     {"o", &out->order}, {"t", &out->terms}};
    *out = (struct log_entry){"", "", "", "", "", "", "", "", "", "", NULL, 0};
    const char *id = redis_reply_text_at(entry, 0);
    bool good = id && strlen(id) < LOG_ID_MAX && entry->count == 2 && entry->items[1]->type == REDIS_ARRAY &&
                entry->items[1]->count % 2 == 0;
    const struct redis_reply *fields = good ? entry->items[1] : NULL;
    for (uint32_t i = 0; good && i < fields->count; i += 2) {
        const char *name = redis_reply_text_at(fields, i), *value = redis_reply_text_at(fields, i + 1);
        good = name && value;
        for (size_t k = 0; good && k < sizeof known / sizeof *known; k++)
            if (strcmp(name, known[k].name) == 0) *known[k].to = value;
        if (good && strcmp(name, "r") == 0) {
            out->raw = (const uint8_t *)value;
            out->raw_length = fields->items[i + 1]->length;
        }
    }
    if (good && out->raw) out->outcome = out->order, out->order = ""; /* one name for both in the stream */
    if (good) out->id = id;
    return good ? ST_OK : error_set(err, ST_PROTO, "Redis: an entry of the log cannot be read");
}

/* *more: the page was full. */
static enum status read_page(struct redis_link *link, const char *key, char last[LOG_ID_MAX], bool *more,
                             log_entry_fn visit, void *state, struct error *err)
{
    char from[LOG_ID_MAX + 2], count[16];
    struct redis_reply *reply = NULL;
    (void)snprintf(from, sizeof from, "%s%s", last[0] ? "(" : "-", last);
    (void)snprintf(count, sizeof count, "%d", PAGE_ENTRIES);
    const char *arguments[6] = {"XRANGE", key, from, "+", "COUNT", count};
    TRY(call(link, key, arguments, 6, &reply, err));
    enum status status =
        reply->type == REDIS_ARRAY ? ST_OK : error_set(err, ST_PROTO, "Redis: XRANGE %s gave no list", key);
    *more = status == ST_OK && reply->count == PAGE_ENTRIES;
    for (uint32_t i = 0; status == ST_OK && i < reply->count; i++) {
        struct log_entry entry;
        status = read_entry(reply->items[i], &entry, err);
        if (status == ST_OK) status = visit(state, &entry, err);
        if (status == ST_OK) memcpy(last, entry.id, strlen(entry.id) + 1);
    }
    redis_reply_free(reply);
    return status;
}

enum status bill_log_read(struct bill *bill, log_entry_fn visit, void *state, struct log_ends *ends, struct error *err)
{
    struct redis_link *link;
    char key[LEDGER_KEY_MAX];
    memset(ends, 0, sizeof *ends);
    TRY(open_link(bill, &link, err));
    enum status status = ST_OK;
    for (uint16_t i = 0; i < PARTITIONS && status == ST_OK; i++) {
        ledger_redis_key(i, "log", key);
        for (bool more = true; more && status == ST_OK;)
            status = read_page(link, key, ends->id[i], &more, visit, state, err);
    }
    redis_link_destroy(link);
    return status;
}

/* The id that follows. */
static bool next_id(const char *id, char next[LOG_ID_MAX])
{
    uint64_t ms, number;
    char end;
    if (sscanf(id, "%" SCNu64 "-%" SCNu64 "%c", &ms, &number, &end) != 2 || number == UINT64_MAX) return false;
    (void)snprintf(next, LOG_ID_MAX, "%" PRIu64 "-%" PRIu64, ms, number + 1);
    return true;
}

enum status bill_log_trim(struct bill *bill, const struct log_ends *ends, uint64_t *removed, struct error *err)
{
    struct redis_link *link;
    char key[LEDGER_KEY_MAX], next[LOG_ID_MAX];
    TRY(open_link(bill, &link, err));
    enum status status = ST_OK;
    for (uint16_t i = 0; i < PARTITIONS && status == ST_OK; i++) {
        struct redis_reply *reply = NULL;
        if (!ends->id[i][0]) continue;
        ledger_redis_key(i, "log", key);
        if (!next_id(ends->id[i], next)) {
            status = error_set(err, ST_PROTO, "Redis: an id of the log cannot be read");
            break;
        }
        const char *arguments[4] = {"XTRIM", key, "MINID", next};
        status = call(link, key, arguments, 4, &reply, err);
        if (status == ST_OK && reply->type != REDIS_INTEGER)
            status = error_set(err, ST_PROTO, "Redis: XTRIM %s gave no number", key);
        if (status == ST_OK) *removed += (uint64_t)reply->integer;
        redis_reply_free(reply);
    }
    redis_link_destroy(link);
    return status;
}
