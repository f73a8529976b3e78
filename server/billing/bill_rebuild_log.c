/* The exported log of a Redis as a ledger in memory; see bill_rebuild_log.h. The rules are ledger.c's, which holds to
 * the same vectors as ledger.lua; the log has what they need besides the records: the clock of leases and of what
 * expired. So nothing is guessed, and what the log says of who paid is checked against what comes out. Rejected:
 * sending records and orders to Redis again, where its own clock would date leases and expiries anew. */
#include "server/billing/bill_rebuild_log.h"

#include "runtime/base/json.h"
#include "runtime/base/mem.h"
#include "server/billing/bill_map.h"
#include "server/billing/ledger_redis.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { LINE_BYTES_MAX = 1 << 20, READ_BYTES = 1 << 18 };

/* A mark that the export saw. Another's key in the same table's form: the end of a producer's lease on an account. */
struct seen_key {
    uint64_t producer, number; /* a partition, or an account */
};
struct seen_mark {
    struct seen_key key;
    uint64_t epoch, pseq;
    char hash8[HASH8_CHARS + 1];
};
struct seen_end {
    struct seen_key key;
    uint64_t until_ms;
};

struct replay {
    struct ledger *ledger;
    struct bill_map marks, ends;
    uint64_t last_ms[PARTITIONS], last_number[PARTITIONS]; /* log id read last */
    uint64_t line, entries;
    const char *funding, *extra; /* what the line says */
    bool same;
};

static enum status wrong(const struct replay *replay, const char *what, struct error *err)
{
    return error_set(err, ST_INVAL, "--log: line %" PRIu64 ": %s", replay->line, what);
}

static const char *text_of(const struct json *json, const char *name)
{
    return json_to_text(json_member(json, name), NULL);
}

static bool number_of(const struct json *json, const char *name, uint64_t *out)
{
    const char *text = text_of(json, name);
    return text && ledger_redis_number(text, out);
}

static bool producer_of(const char *text, size_t length, uint64_t *producer)
{
    char copy[17], end;
    if (length != 16) return false;
    memcpy(copy, text, 16);
    copy[16] = '\0';
    return strspn(copy, "0123456789abcdef") == 16 && sscanf(copy, "%" SCNx64 "%c", producer, &end) == 1;
}

/* Whether the entry lies behind what was read of its partition: two exports may overlap. */
static enum status is_new(struct replay *replay, const struct json *json, uint16_t partition, bool *new,
                          struct error *err)
{
    const char *id = text_of(json, "log_id");
    uint64_t ms, number;
    char end;
    if (!id || sscanf(id, "%" SCNu64 "-%" SCNu64 "%c", &ms, &number, &end) != 2)
        return wrong(replay, "\"log_id\" is none", err);
    uint64_t last_ms = replay->last_ms[partition], last_number = replay->last_number[partition];
    *new = ms > last_ms || (ms == last_ms && number > last_number);
    if (*new) replay->last_ms[partition] = ms, replay->last_number[partition] = number;
    return ST_OK;
}

/* ---- kinds of lines ---- */

static enum status take_mark(struct replay *replay, const struct json *json, struct error *err)
{
    const char *uuid = text_of(json, "ledger"), *producer = text_of(json, "producer"), *hash8 = text_of(json, "hash8");
    struct seen_key key;
    uint64_t epoch, pseq;
    memset(&key, 0, sizeof key);
    key.number = (uint64_t)json_to_int(json_member(json, "partition"));
    epoch = (uint64_t)json_to_int(json_member(json, "epoch"));
    pseq = (uint64_t)json_to_int(json_member(json, "pseq"));
    if (!uuid || !producer || !producer_of(producer, strlen(producer), &key.producer) || !hash8 ||
        strlen(hash8) != HASH8_CHARS || key.number >= PARTITIONS || epoch == 0 || epoch > UNITS_MAX || pseq > PSEQ_MAX)
        return wrong(replay, "this is no mark", err);
    enum ledger_answer answer = ledger_init(replay->ledger, uuid);
    if (answer != LEDGER_OK && answer != LEDGER_DUP) return wrong(replay, "a mark of another ledger", err);
    struct seen_mark *mark = bill_map_take(&replay->marks, &key, NULL);
    if (!mark) return error_set(err, ST_NOMEM, "%s", status_text(ST_NOMEM));
    if (epoch < mark->epoch || pseq < mark->pseq)
        return wrong(replay, "a mark goes back: files in another order?", err);
    mark->epoch = epoch;
    mark->pseq = pseq;
    memcpy(mark->hash8, hash8, sizeof mark->hash8);
    return ST_OK;
}

static void compare(void *state, const struct record *record, const char *funding, const char *extra)
{
    struct replay *replay = state;
    (void)record;
    replay->same = strcmp(funding, replay->funding) == 0 && strcmp(extra, replay->extra) == 0;
}

static bool read_raw(const char *hex, uint8_t bytes[RECORD_BYTES_MAX], uint32_t *length)
{
    static const char digits[] = "0123456789abcdef";
    size_t count = hex ? strlen(hex) : 0;
    if (count == 0 || count % 2 != 0 || count / 2 > RECORD_BYTES_MAX || strspn(hex, digits) != count) return false;
    for (size_t i = 0; i < count; i += 2)
        bytes[i / 2] = (uint8_t)((strchr(digits, hex[i]) - digits) << 4 | (strchr(digits, hex[i + 1]) - digits));
    *length = (uint32_t)(count / 2);
    return true;
}

/* The clock that an entry was applied at: a grant says it by its lease's end. Notes that end for the expiries. */
static enum status clock_of(struct replay *replay, const struct json *json, uint64_t producer,
                            const struct record *record, uint64_t *now_ms, struct error *err)
{
    const char *until = text_of(json, "lease_until");
    struct seen_key key;
    uint64_t until_ms;
    *now_ms = 0;
    if (!until) return wrong(replay, "\"lease_until\" is missing: the export is of an older version", err);
    if (!*until) return ST_OK;
    if (!ledger_redis_number(until, &until_ms) || until_ms < record->valid_ms || record->kind != RECORD_GRANT)
        return wrong(replay, "\"lease_until\" is no time of a lease", err);
    memset(&key, 0, sizeof key);
    key.producer = producer;
    key.number = record->account;
    struct seen_end *end = bill_map_take(&replay->ends, &key, NULL);
    if (!end) return error_set(err, ST_NOMEM, "%s", status_text(ST_NOMEM));
    end->until_ms = until_ms;
    *now_ms = until_ms - record->valid_ms;
    return ST_OK;
}

static uint64_t epoch_of(const struct replay *replay, uint64_t producer, const struct record *record)
{
    uint64_t epoch = 0, hwm;
    char hash8[HASH8_CHARS + 1];
    if (!ledger_hwm(replay->ledger, record->partition, producer, &epoch, &hwm, hash8)) epoch = 1;
    return record->boot > epoch ? record->boot : epoch;
}

static enum status take_record(struct replay *replay, const struct json *json, struct error *err)
{
    const char *producer_text = text_of(json, "producer");
    uint8_t bytes[RECORD_BYTES_MAX];
    struct encoded_record encoded = {.bytes = bytes};
    struct record record;
    struct ledger_reply reply;
    uint64_t producer, now_ms;
    bool new;
    replay->funding = text_of(json, "funding");
    replay->extra = text_of(json, "outcome");
    if (!producer_text || !producer_of(producer_text, strlen(producer_text), &producer) || !replay->funding ||
        !replay->extra || !read_raw(text_of(json, "raw"), bytes, &encoded.length))
        return wrong(replay, "\"producer\", \"funding\", \"outcome\" or \"raw\" is missing or cannot be read", err);
    if (record_decode(bytes, encoded.length, &record, err) != ST_OK) return wrong(replay, "\"raw\" is no record", err);
    TRY(is_new(replay, json, record.partition, &new, err));
    if (!new) return ST_OK;
    TRY(clock_of(replay, json, producer, &record, &now_ms, err));
    replay->same = true;
    ledger_apply(replay->ledger, record.partition, producer, epoch_of(replay, producer, &record),
                 ledger_uuid(replay->ledger), &encoded, 1, now_ms, compare, replay, &reply);
    if (reply.answer == LEDGER_GAP)
        return wrong(replay, "records before this one are missing: name the earlier exports too, the oldest first",
                     err);
    if (reply.answer != LEDGER_OK) return wrong(replay, ledger_answer_name(reply.answer), err);
    if (!replay->same) return wrong(replay, "by the entries before it others would have paid: one is missing", err);
    replay->entries++;
    return ST_OK;
}

/* "op|package|units|priority|effective|expires|created|classes", as mr_order logs it. */
static bool read_terms(const char *terms, struct order *order)
{
    static const char *const ops[] = {"add", "inc", "void"};
    uint64_t *const numbers[] = {&order->units,      &order->priority,   &order->effective_ms,
                                 &order->expires_ms, &order->created_ms, &order->class_mask};
    char part[64];
    uint32_t k = 0;
    for (const char *at = terms; k < 8; k++) {
        size_t length = strcspn(at, "|");
        if (length >= sizeof part || (at[length] == '|') != (k < 7)) return false;
        memcpy(part, at, length);
        part[length] = '\0';
        if (k == 0) {
            while (order->op < PACKAGE_REAP && strcmp(part, ops[order->op]) != 0) order->op++;
            if (order->op == PACKAGE_REAP) return false;
        } else if (k == 1) {
            if (length >= sizeof order->package) return false;
            memcpy(order->package, part, length + 1);
        } else if (!ledger_redis_number(part, numbers[k - 2])) {
            return false;
        }
        at += length + 1;
    }
    return true;
}

static enum status take_order(struct replay *replay, const struct json *json, uint64_t account, bool state,
                              struct error *err)
{
    const char *id = text_of(json, "order"), *terms = text_of(json, "terms"), *uuid = ledger_uuid(replay->ledger);
    struct order order = {.account = account};
    enum ledger_answer answer = LEDGER_BADARG;
    if (!id || !terms || strlen(id) > ORDER_ID_MAX) return wrong(replay, "this is no order", err);
    memcpy(order.id, id, strlen(id) + 1);
    if (state && (!strcmp(terms, "open") || !strcmp(terms, "close")))
        answer = ledger_account_set(replay->ledger, uuid, account, id, !strcmp(terms, "open"));
    else if (!state && read_terms(terms, &order))
        answer = ledger_order(replay->ledger, uuid, &order, 0); /* it was taken, so its package had not ended */
    if (answer != LEDGER_OK && answer != LEDGER_DUP) return wrong(replay, ledger_answer_name(answer), err);
    replay->entries++;
    return ST_OK;
}

/* Leases that ended late and what expired. The grace that was given is not in the log, but whom it ended is. */
static enum status take_expiry(struct replay *replay, const struct json *json, uint64_t account, struct error *err)
{
    const char *late = text_of(json, "funding");
    uint64_t now_ms, last_ms = 0, count = 0;
    uint32_t leases, packages;
    if (!late || !number_of(json, "clock_ms", &now_ms)) return wrong(replay, "this is no expiry", err);
    for (const char *at = late; *at; count++) {
        struct seen_key key;
        size_t length = strcspn(at, ",");
        memset(&key, 0, sizeof key);
        key.number = account;
        const struct seen_end *end = producer_of(at, length, &key.producer) ? bill_map_find(&replay->ends, &key) : NULL;
        if (!end || end->until_ms >= now_ms) return wrong(replay, "a lease ends here that nothing began", err);
        if (end->until_ms > last_ms) last_ms = end->until_ms;
        at += length + (at[length] == ',');
    }
    enum ledger_answer answer = ledger_reap(replay->ledger, ledger_uuid(replay->ledger), account,
                                            count ? now_ms - 1 - last_ms : UNITS_MAX, now_ms, &leases, &packages);
    if (answer != LEDGER_OK) return wrong(replay, ledger_answer_name(answer), err);
    if (leases != count) return wrong(replay, "other leases than these were late: an entry is missing", err);
    replay->entries++;
    return ST_OK;
}

static enum status take_line(struct replay *replay, const char *line, size_t length, struct error *err)
{
    struct json *json = NULL;
    struct error reason = {""};
    uint64_t account;
    bool new;
    replay->line++;
    if (length == 0) return ST_OK;
    if (json_read(line, length, &json, &reason) != ST_OK) return wrong(replay, reason.message, err);
    const char *kind = text_of(json, "kind");
    enum status status = ST_OK;
    if (!kind || strlen(kind) != 1)
        status = wrong(replay, "no entry of a log, as \"bill export --redis\" writes it", err);
    else if (*kind == 'M')
        status = take_mark(replay, json, err);
    else if (!ledger_uuid(replay->ledger)[0])
        status = wrong(replay, "whose log is it? Give --uuid", err);
    else if (strchr("FWGRE", *kind))
        status = take_record(replay, json, err);
    else if (!strchr("OSX", *kind) || !number_of(json, "account_id", &account))
        status = wrong(replay, "an entry of an unknown kind, or of no account", err);
    else if ((status = is_new(replay, json, record_partition(account), &new, err)) == ST_OK && new)
        status = *kind == 'X' ? take_expiry(replay, json, account, err)
                              : take_order(replay, json, account, *kind == 'S', err);
    json_release(json);
    return status;
}

/* ---- the file ---- */

static enum status read_lines(struct replay *replay, const struct disk *disk, int fd, struct error *err)
{
    struct buf text;
    uint64_t offset = 0;
    int64_t got = 1;
    char *piece = mem_alloc(READ_BYTES, 1);
    enum status status = piece ? ST_OK : error_set(err, ST_NOMEM, "%s", status_text(ST_NOMEM));
    buf_init(&text, 0);
    while (status == ST_OK && got > 0) {
        got = disk->read_at(disk->state, fd, piece, READ_BYTES, offset);
        if (got < 0) status = error_set(err, ST_IO, "--log: it cannot be read: %s", strerror((int)-got));
        for (int64_t i = 0; i < got && status == ST_OK; i++) {
            if (piece[i] != '\n') {
                buf_append_char(&text, piece[i]);
                if (!buf_ok(&text) || text.length > LINE_BYTES_MAX)
                    status = wrong(replay, "the line is longer than any of a log", err);
                continue;
            }
            status = take_line(replay, text.data ? text.data : "", text.length, err);
            buf_clear(&text);
        }
        offset += got > 0 ? (uint64_t)got : 0;
    }
    if (status == ST_OK && text.length > 0) status = wrong(replay, "the last line is cut off", err);
    mem_free(piece);
    buf_free(&text);
    return status;
}

/* Epochs as the export saw them, and whether its marks were reached. */
static enum status check_marks(struct replay *replay, struct error *err)
{
    for (uint32_t i = 0; i < replay->marks.count; i++) {
        const struct seen_mark *mark = bill_map_at(&replay->marks, i);
        uint16_t partition = (uint16_t)mark->key.number;
        struct ledger_reply reply;
        uint64_t epoch = 0, hwm = 0;
        char hash8[HASH8_CHARS + 1];
        if (!ledger_hwm(replay->ledger, partition, mark->key.producer, &epoch, &hwm, hash8)) epoch = 0;
        if (hwm < mark->pseq || (hwm > 0 && hwm == mark->pseq && strcmp(hash8, mark->hash8) != 0))
            return error_set(err, ST_INVAL,
                             "--log: producer %016" PRIx64 " had %" PRIu64
                             " records in partition %u, the log has %" PRIu64
                             ": name the earlier exports too, the oldest first",
                             mark->key.producer, mark->pseq, partition, hwm);
        if (epoch >= mark->epoch) continue;
        ledger_apply(replay->ledger, partition, mark->key.producer, mark->epoch, ledger_uuid(replay->ledger), NULL, 0,
                     0, NULL, NULL, &reply);
        if (reply.answer != LEDGER_OK) return error_set(err, ST_INVAL, "--log: %s", ledger_answer_name(reply.answer));
    }
    return ST_OK;
}

enum status bill_rebuild_log(const struct bill *bill, const char *path, const char *uuid, struct ledger **ledger,
                             uint64_t *entries, struct error *err)
{
    const struct disk *disk = bill->disk;
    struct replay *replay = mem_alloc(1, sizeof *replay);
    if (!replay) return error_set(err, ST_NOMEM, "%s", status_text(ST_NOMEM));
    int fd = disk->open(disk->state, path, DISK_READ);
    enum status status =
        fd >= 0 ? ledger_create(&replay->ledger) : error_set(err, ST_IO, "--log: %.300s: %s", path, strerror(-fd));
    bill_map_init(&replay->marks, sizeof(struct seen_key), sizeof(struct seen_mark));
    bill_map_init(&replay->ends, sizeof(struct seen_key), sizeof(struct seen_end));
    if (status == ST_OK && uuid && ledger_init(replay->ledger, uuid) != LEDGER_OK)
        status = error_set(err, ST_INVAL, "\"%.60s\" is no ledger's identity", uuid);
    if (status == ST_OK) status = read_lines(replay, disk, fd, err);
    if (status == ST_OK && !ledger_uuid(replay->ledger)[0])
        status = error_set(err, ST_INVAL, "--log: %.300s: there is nothing in it", path);
    if (status == ST_OK) status = check_marks(replay, err);
    if (status == ST_OK && !ledger_check(replay->ledger, err)) status = ST_INVAL;
    if (status == ST_OK)
        *ledger = replay->ledger;
    else
        ledger_destroy(replay->ledger);
    *entries = replay->entries;
    if (fd >= 0) disk->close(disk->state, fd);
    bill_map_free(&replay->marks);
    bill_map_free(&replay->ends);
    mem_free(replay);
    return status;
}
