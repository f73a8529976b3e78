/* mr_apply: records to its arguments, its reply to struct ledger_reply; see ledger_redis.h. */
#include "server/billing/ledger_redis.h"

#include "runtime/base/check.h"
#include "runtime/base/mem.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum {
    HEAD_ARGUMENTS = 3 /* FCALL mr_apply keys */ + 4 /* producer epoch uuid n */,
    KEYS_MAX = 2 + 2 * APPLY_SEND_MAX,
    STRIDE = 13,
    ARGUMENTS_MAX = HEAD_ARGUMENTS + KEYS_MAX + STRIDE * APPLY_SEND_MAX,
    TEXT_BYTES = (KEYS_MAX + 1) * LEDGER_KEY_MAX + 128 + APPLY_SEND_MAX * 220
};

struct apply_writer {
    const char *arguments[ARGUMENTS_MAX];
    size_t lengths[ARGUMENTS_MAX];
    uint32_t count;
    /* accounts (month 0) and months whose keys are written, in the order of KEYS behind hwm and log */
    struct {
        uint64_t account;
        uint32_t month;
    } keys[2 * APPLY_SEND_MAX];
    uint32_t keys_count;
    struct record records[APPLY_SEND_MAX];
    char text[TEXT_BYTES];
    size_t used;
};

enum status apply_writer_create(struct apply_writer **writer)
{
    *writer = mem_alloc(1, sizeof **writer);
    return *writer != NULL ? ST_OK : ST_NOMEM;
}

void apply_writer_destroy(struct apply_writer *writer)
{
    mem_free(writer);
}

void ledger_redis_key(uint16_t partition, const char *name, char key[LEDGER_KEY_MAX])
{
    int n = snprintf(key, LEDGER_KEY_MAX, "mr:{b%03u}:%s", partition, name);
    CHECK(n > 0 && n < LEDGER_KEY_MAX);
}

static void put_bytes(struct apply_writer *w, const void *bytes, size_t length)
{
    CHECK(w->count < ARGUMENTS_MAX);
    w->arguments[w->count] = bytes;
    w->lengths[w->count++] = length;
}

PRINTF_LIKE(2, 3) static void put(struct apply_writer *w, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(w->text + w->used, sizeof w->text - w->used, format, arguments);
    va_end(arguments);
    CHECK(n >= 0 && w->used + (size_t)n < sizeof w->text);
    put_bytes(w, w->text + w->used, (size_t)n);
    w->used += (size_t)n + 1;
}

static void put_number(struct apply_writer *w, uint64_t number)
{
    put(w, "%" PRIu64, number);
}

/* Where in KEYS the account's (month 0) or month's key stands; appended when it is new. From 1, as Lua counts. */
static uint32_t key_index(struct apply_writer *w, uint16_t partition, uint64_t account, uint32_t month)
{
    uint32_t i = 0;
    while (i < w->keys_count && (w->keys[i].account != account || w->keys[i].month != month)) i++;
    if (i == w->keys_count) {
        w->keys[i].account = account;
        w->keys[i].month = month;
        w->keys_count++;
        if (month == 0)
            put(w, "mr:{b%03u}:a:%" PRIu64, partition, account);
        else
            put(w, "mr:{b%03u}:m:%06" PRIu32 ":%" PRIu64, partition, month, account);
    }
    return i + 3;
}

static bool is_usage(const struct record *record)
{
    return record->kind == RECORD_CHARGED || record->kind == RECORD_WAIVED;
}

static bool has_month(const struct record *record)
{
    return is_usage(record) || record->kind == RECORD_ENERGY;
}

static void put_record(struct apply_writer *w, const struct record *r, const struct encoded_record *encoded,
                       const uint8_t *previous, uint16_t partition)
{
    char previous8[HASH8_CHARS + 1], hash8[HASH8_CHARS + 1];
    record_hash8(previous, previous8);
    record_hash8(r->chain, hash8);
    put(w, "%c", r->kind);
    put_number(w, r->pseq);
    put(w, "%s", previous8);
    put(w, "%s", hash8);
    put_number(w, key_index(w, partition, r->account, 0));
    put_number(w, has_month(r) ? key_index(w, partition, r->account, r->month) : 0);
    put_number(w, r->mclass);
    put_number(w, (uint64_t)r->t_ms);
    if (is_usage(r)) {
        put_number(w, r->units);
        put_number(w, r->in_total - r->in_hit);
        put_number(w, r->in_hit);
        put_number(w, r->out);
    } else if (r->kind == RECORD_ENERGY) {
        put_number(w, record_energy_uj(&r->energy));
        put_number(w, r->energy.uj_idle_share);
        put_number(w, r->energy.green_uj);
        put(w, "%" PRIu64 "|%" PRIu64, r->energy.ugco2_loc, r->energy.ugco2_mkt);
    } else {
        bool grant = r->kind == RECORD_GRANT;
        put_number(w, grant ? r->want : 0);
        put_number(w, grant ? r->least : 0);
        put_number(w, grant ? r->valid_ms : 0);
        put_number(w, 0);
    }
    put_bytes(w, encoded->bytes, encoded->length);
}

enum status apply_write(struct apply_writer *writer, const struct apply_call *call, struct redis_command *command,
                        struct error *err)
{
    struct apply_writer *w = writer;
    CHECK(call->count <= APPLY_SEND_MAX && call->partition < PARTITIONS);
    w->count = 0;
    w->used = 0;
    w->keys_count = 0;
    put(w, "FCALL");
    put(w, "mr_apply");
    uint32_t keys_at = w->count;
    put(w, "%3s", ""); /* the number of keys, known below */
    char key[LEDGER_KEY_MAX];
    ledger_redis_key(call->partition, "hwm", key);
    put(w, "%s", key);
    ledger_redis_key(call->partition, "log", key);
    put(w, "%s", key);
    for (uint32_t i = 0; i < call->count; i++) {
        struct record *r = &w->records[i];
        TRY(record_decode(call->records[i].bytes, call->records[i].length, r, err));
        if (r->partition != call->partition)
            return error_set(err, ST_INVAL, "record %" PRIu64 " is of partition %u, not %u", r->pseq, r->partition,
                             call->partition);
        (void)key_index(w, call->partition, r->account, 0);
        if (has_month(r)) (void)key_index(w, call->partition, r->account, r->month);
    }
    size_t room = w->lengths[keys_at] + 1;
    char *number = w->text + (w->arguments[keys_at] - w->text);
    w->lengths[keys_at] = (size_t)snprintf(number, room, "%u", 2 + w->keys_count);
    put(w, "%016" PRIx64, call->producer);
    put_number(w, call->epoch);
    put(w, "%s", call->uuid);
    put_number(w, call->count);
    for (uint32_t i = 0; i < call->count; i++)
        put_record(w, &w->records[i], &call->records[i], i == 0 ? call->previous : w->records[i - 1].chain,
                   call->partition);
    *command = (struct redis_command){(int)w->count, w->arguments, w->lengths};
    return ST_OK;
}

bool ledger_redis_number(const char *text, uint64_t *out)
{
    if (text == NULL || text[0] < '0' || text[0] > '9' || (text[0] == '0' && text[1] != '\0')) return false;
    uint64_t n = 0;
    for (const char *c = text; *c != '\0'; c++) {
        if (*c < '0' || *c > '9' || __builtin_mul_overflow(n, 10, &n) ||
            __builtin_add_overflow(n, (uint64_t)(*c - '0'), &n))
            return false;
    }
    *out = n;
    return true;
}

enum status apply_read(const struct redis_reply *reply, struct ledger_reply *out, struct error *err)
{
    const char *hash8 = redis_reply_text_at(reply, 2), *answer = redis_reply_text_at(reply, 0);
    uint64_t duplicates = 0;
    bool good = reply->type == REDIS_ARRAY && reply->count >= 4 && (reply->count - 4) % 3 == 0 &&
                (reply->count - 4) / 3 <= APPLY_RECORDS_MAX && answer != NULL &&
                ledger_answer_parse(answer, &out->answer) &&
                ledger_redis_number(redis_reply_text_at(reply, 1), &out->hwm) && out->hwm <= PSEQ_MAX &&
                hash8 != NULL && strlen(hash8) == HASH8_CHARS && strspn(hash8, "0123456789abcdef") == HASH8_CHARS &&
                ledger_redis_number(redis_reply_text_at(reply, 3), &duplicates) && duplicates <= APPLY_RECORDS_MAX;
    if (good) {
        memcpy(out->hash8, hash8, HASH8_CHARS + 1);
        out->duplicates = (uint32_t)duplicates;
        out->grants_count = (reply->count - 4) / 3;
    }
    for (uint32_t i = 0; good && i < out->grants_count; i++) {
        uint64_t open = 0;
        good = ledger_redis_number(redis_reply_text_at(reply, 4 + 3 * i), &out->grants[i].pseq) &&
               ledger_redis_number(redis_reply_text_at(reply, 5 + 3 * i), &out->grants[i].leased) &&
               ledger_redis_number(redis_reply_text_at(reply, 6 + 3 * i), &open) &&
               out->grants[i].leased <= UNITS_MAX && open <= 1;
        out->grants[i].open = open == 1;
    }
    return good ? ST_OK : error_set(err, ST_PROTO, "Redis: the answer to mr_apply is not ledger.lua's");
}
