/* Reading a ledger in Redis: balances, months, marks, the directory; see ledger_redis.h.
 *
 * A hash that grows without a bound (an account's orders, the directory's lines) is read by HSCAN in pieces, because a
 * reply is bounded and Redis must not stand still for it. What must be of one moment is read in one HMGET after that.
 */
#include "server/billing/ledger_redis_parts.h"

#include "runtime/base/check.h"
#include "runtime/base/hash.h"
#include "runtime/base/limits.h"
#include "runtime/base/mem.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SCAN_COUNT = 64, SCAN_ROUNDS_MAX = 1 << 18, AGAIN_MAX = 8, PACKAGE_FIELDS = 10, ACCOUNT_FIELDS = 4 };

static enum status damaged(const char *key, const char *field, struct error *err)
{
    return error_set(err, ST_PROTO, "Redis: %s %.60s holds no number of ledger.lua", key, field);
}

/* Visits each field of a hash, perhaps more than once. match: NULL or a pattern. */
typedef enum status (*field_fn)(void *visitor, const struct redis_reply *field, const struct redis_reply *value,
                                struct error *err);
static enum status scan(struct redis_link *link, const char *key, const char *match, uint32_t timeout_ms,
                        field_fn visit, void *visitor, struct error *err)
{
    char cursor[24] = "0", count[16];
    snprintf(count, sizeof count, "%d", match == NULL ? SCAN_COUNT : 1000);
    uint32_t rounds = 0;
    do {
        if (rounds++ == SCAN_ROUNDS_MAX) return error_set(err, ST_PROTO, "Redis: HSCAN %s has no end", key);
        const char *arguments[7] = {"HSCAN", key, cursor, "COUNT", count, "MATCH", match};
        struct redis_reply *reply = NULL;
        TRY(ledger_redis_call(link, key, timeout_ms, arguments, match == NULL ? 5 : 7, &reply, err));
        const char *next = redis_reply_text_at(reply, 0);
        uint64_t number;
        enum status status = ST_OK;
        if (!ledger_redis_number(next, &number) || reply->count != 2 || reply->items[1]->type != REDIS_ARRAY ||
            reply->items[1]->count % 2 != 0) {
            status = error_set(err, ST_PROTO, "Redis: HSCAN %s has an answer that cannot be read", key);
        } else {
            snprintf(cursor, sizeof cursor, "%" PRIu64, number);
            const struct redis_reply *fields = reply->items[1];
            for (uint32_t i = 0; status == ST_OK && i < fields->count; i += 2) {
                if (fields->items[i]->type != REDIS_STRING || fields->items[i + 1]->type != REDIS_STRING)
                    status = error_set(err, ST_PROTO, "Redis: HSCAN %s has an answer that cannot be read", key);
                else
                    status = visit(visitor, fields->items[i], fields->items[i + 1], err);
            }
        }
        redis_reply_free(reply);
        TRY(status);
    } while (strcmp(cursor, "0") != 0);
    return ST_OK;
}

/* ---- balances ---- */

/* The packages whose balances are read: first those of `ord`, in its order, then settled ones, newest first. */
struct package_list {
    const char *key;
    uint32_t count, unsettled;
    struct {
        char id[PACKAGE_ID_MAX + 1];
        uint64_t created_ms;
    } items[PACKAGES_MAX];
};

static bool listed(const struct package_list *list, const char *id)
{
    for (uint32_t i = 0; i < list->count; i++)
        if (strcmp(list->items[i].id, id) == 0) return true;
    return false;
}

/* One "<package>.cr" of an account. */
static enum status note_package(void *visitor, const struct redis_reply *field, const struct redis_reply *value,
                                struct error *err)
{
    struct package_list *list = visitor;
    char id[PACKAGE_ID_MAX + 1];
    uint64_t created = 0;
    if (field->length < 4 || field->length > PACKAGE_ID_MAX + 3 || strchr(field->text, ':') != NULL) return ST_OK;
    if (strcmp(field->text + field->length - 3, ".cr") != 0) return ST_OK;
    memcpy(id, field->text, field->length - 3);
    id[field->length - 3] = '\0';
    if (!ledger_redis_number(value->text, &created)) return damaged(list->key, field->text, err);
    if (listed(list, id)) return ST_OK;
    uint32_t at = list->unsettled;
    while (at < list->count && list->items[at].created_ms >= created) at++;
    if (at == PACKAGES_MAX) return ST_OK;
    uint32_t keep = list->count < PACKAGES_MAX ? list->count : PACKAGES_MAX - 1;
    memmove(&list->items[at + 1], &list->items[at], (keep - at) * sizeof list->items[0]);
    memcpy(list->items[at].id, id, sizeof id);
    list->items[at].created_ms = created;
    list->count = keep + 1;
    return ST_OK;
}

/* The ids of `ord`, "a,b,c". */
static bool split_order(const char *ord, struct package_list *list)
{
    list->count = 0;
    while (ord != NULL && *ord != '\0') {
        size_t length = strcspn(ord, ",");
        if (length == 0 || length > PACKAGE_ID_MAX || list->count == PACKAGES_MAX) return false;
        memcpy(list->items[list->count].id, ord, length);
        list->items[list->count++].id[length] = '\0';
        ord += length + (ord[length] == ',');
    }
    list->unsettled = list->count;
    return true;
}

/* An absent counter is 0. */
static bool read_counter(const struct redis_reply *reply, uint32_t i, uint64_t *out)
{
    *out = 0;
    return reply->items[i]->type == REDIS_NIL || ledger_redis_number(redis_reply_text_at(reply, i), out);
}

static const char *const package_fields[PACKAGE_FIELDS] = {"gr", "av", "rs", "us", "xp", "pr", "ef", "ex", "cr", "mk"};

static enum status fill_balance(const struct redis_reply *reply, const struct package_list *list,
                                struct account_balance *balance, struct error *err)
{
    if (!read_counter(reply, 1, &balance->used) || !read_counter(reply, 2, &balance->overage))
        return damaged(list->key, "us, ov", err);
    const char *state = redis_reply_text_at(reply, 0);
    balance->known = state != NULL || reply->items[1]->type != REDIS_NIL || reply->items[2]->type != REDIS_NIL;
    balance->open = state == NULL || strcmp(state, "C") != 0;
    balance->packages_count = list->count;
    for (uint32_t p = 0; p < list->count; p++) {
        struct package_balance *b = &balance->packages[p];
        memcpy(b->id, list->items[p].id, sizeof b->id);
        uint64_t *const out[PACKAGE_FIELDS] = {&b->granted,    &b->free,      &b->leased,       &b->used,
                                               &b->expired,    &b->priority,  &b->effective_ms, &b->expires_ms,
                                               &b->created_ms, &b->class_mask};
        for (uint32_t f = 0; f < PACKAGE_FIELDS; f++)
            if (!ledger_redis_number(redis_reply_text_at(reply, ACCOUNT_FIELDS + p * PACKAGE_FIELDS + f), out[f]))
                return damaged(list->key, b->id, err);
    }
    return ST_OK;
}

/* All of an account's fields of one moment. *moved: its packages are others than the list says. */
static enum status read_packages(struct redis_link *link, const char *key, const char *ord,
                                 const struct package_list *list, struct account_balance *balance, bool *moved,
                                 struct error *err)
{
    uint32_t count = 2 + ACCOUNT_FIELDS + list->count * PACKAGE_FIELDS;
    const char **arguments = mem_alloc(count, sizeof *arguments);
    char(*names)[PACKAGE_ID_MAX + 4] = mem_alloc((size_t)list->count * PACKAGE_FIELDS + 1, sizeof *names);
    struct redis_reply *reply = NULL;
    enum status status = ST_NOMEM;
    if (arguments == NULL || names == NULL) goto done;
    static const char *const first[] = {"HMGET", NULL, "st", "us", "ov", "ord"};
    for (uint32_t i = 0; i < 6; i++) arguments[i] = first[i];
    arguments[1] = key;
    for (uint32_t i = 0; i < list->count * PACKAGE_FIELDS; i++) {
        snprintf(names[i], sizeof names[i], "%s.%s", list->items[i / PACKAGE_FIELDS].id,
                 package_fields[i % PACKAGE_FIELDS]);
        arguments[6 + i] = names[i];
    }
    status = ledger_redis_call(link, key, CALL_MS, arguments, (int)count, &reply, err);
    if (status != ST_OK) goto done;
    if (reply->type != REDIS_ARRAY || reply->count != count - 2) {
        status = error_set(err, ST_PROTO, "Redis: HMGET %s has an answer that cannot be read", key);
        goto done;
    }
    const char *now = redis_reply_text_at(reply, 3);
    *moved = strcmp(now == NULL ? "" : now, ord) != 0;
    if (!*moved) status = fill_balance(reply, list, balance, err);
done:
    redis_reply_free(reply);
    mem_free(names);
    mem_free(arguments);
    return status == ST_NOMEM ? error_set(err, ST_NOMEM, "no memory for a balance") : status;
}

static enum status read_balance(struct redis_link *link, const char *key, struct package_list *list,
                                struct account_balance *balance, struct error *err)
{
    for (int i = 0; i < AGAIN_MAX; i++) {
        const char *get[] = {"HGET", key, "ord"};
        struct redis_reply *reply = NULL;
        TRY(ledger_redis_call(link, key, CALL_MS, get, 3, &reply, err));
        const char *ord = reply->type == REDIS_STRING ? reply->text : "";
        bool moved = false;
        enum status status = split_order(ord, list) ? ST_OK : damaged(key, "ord", err);
        if (status == ST_OK) status = scan(link, key, "*.cr", CALL_MS, note_package, list, err);
        if (status == ST_OK) status = read_packages(link, key, ord, list, balance, &moved, err);
        redis_reply_free(reply);
        if (status != ST_OK || !moved) return status;
    }
    return error_set(err, ST_IO, "Redis: %s changes faster than it can be read", key);
}

enum status ledger_redis_balance(struct ledger_redis *l, uint64_t account, struct account_balance *balance,
                                 struct error *err)
{
    char key[LEDGER_KEY_MAX];
    ledger_redis_account_key(account, key);
    struct package_list *list = mem_alloc(1, sizeof *list);
    if (list == NULL) return error_set(err, ST_NOMEM, "no memory for a balance");
    list->key = key;
    memset(balance, 0, sizeof *balance);
    balance->account = account;
    enum status status = read_balance(l->link, key, list, balance, err);
    mem_free(list);
    return status;
}

/* One "c<class>.<name>" of a month's hash. */
static bool read_total(const char *field, const char *value, struct month_total totals[MODEL_CLASSES])
{
    char *end = NULL;
    if (field[0] != 'c') return false;
    unsigned long mclass = strtoul(field + 1, &end, 10);
    uint64_t number = 0;
    if (end == field + 1 || mclass >= MODEL_CLASSES || *end != '.' || !ledger_redis_number(value, &number))
        return false;
    struct month_total *t = &totals[mclass];
    const struct {
        const char *name;
        uint64_t *out;
    } names[] = {{"im", &t->in_miss},   {"ih", &t->in_hit},        {"ou", &t->out},        {"un", &t->units},
                 {"n", &t->records},    {"wi", &t->waived_in},     {"wo", &t->waived_out}, {"wn", &t->waived_records},
                 {"en", &t->energy_uj}, {"ei", &t->idle_uj},       {"eg", &t->green_uj},   {"cl", &t->ugco2_loc},
                 {"cm", &t->ugco2_mkt}, {"ne", &t->energy_records}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(end + 1, names[i].name) == 0) {
            *names[i].out = number;
            return true;
        }
    return false;
}

enum status ledger_redis_month(struct ledger_redis *l, uint64_t account, uint32_t month,
                               struct month_total totals[MODEL_CLASSES], uint32_t *count, struct error *err)
{
    char key[LEDGER_KEY_MAX];
    snprintf(key, sizeof key, "mr:{b%03u}:m:%06" PRIu32 ":%" PRIu64, record_partition(account), month, account);
    const char *get[] = {"HGETALL", key};
    struct redis_reply *reply = NULL;
    TRY(ledger_redis_call(l->link, key, CALL_MS, get, 2, &reply, err));
    memset(totals, 0, MODEL_CLASSES * sizeof *totals);
    enum status status = ST_OK;
    for (uint32_t i = 0; status == ST_OK && i + 1 < reply->count; i += 2) {
        const char *field = redis_reply_text_at(reply, i), *value = redis_reply_text_at(reply, i + 1);
        if (field == NULL || value == NULL || !read_total(field, value, totals))
            status = damaged(key, field != NULL ? field : "", err);
    }
    redis_reply_free(reply);
    TRY(status);
    uint32_t n = 0;
    for (uint32_t i = 0; i < MODEL_CLASSES; i++) {
        if (totals[i].records == 0 && totals[i].waived_records == 0 && totals[i].energy_records == 0) continue;
        struct month_total one = totals[i];
        one.mclass = (uint8_t)i;
        totals[n++] = one;
    }
    *count = n;
    return ST_OK;
}

/* "epoch|pseq|hash8" of a producer. */
static bool read_mark(char *text, uint64_t *epoch, uint64_t *hwm, const char **hash8)
{
    char *first = strchr(text, '|'), *second = first != NULL ? strchr(first + 1, '|') : NULL;
    if (second == NULL) return false;
    *first = *second = '\0';
    *hash8 = second + 1;
    return ledger_redis_number(text, epoch) && ledger_redis_number(first + 1, hwm) && strlen(*hash8) == HASH8_CHARS;
}

enum status ledger_redis_marks(struct ledger_redis *l, uint16_t partition, ledger_mark_fn visit, void *visitor,
                               struct error *err)
{
    char key[LEDGER_KEY_MAX];
    ledger_redis_key(partition, "hwm", key);
    const char *get[] = {"HGETALL", key};
    struct redis_reply *reply = NULL;
    TRY(ledger_redis_call(l->link, key, CALL_MS, get, 2, &reply, err));
    enum status status = ST_OK;
    for (uint32_t i = 0; status == ST_OK && i + 1 < reply->count; i += 2) {
        const char *field = redis_reply_text_at(reply, i), *hash8 = NULL;
        uint64_t epoch = 0, hwm = 0;
        if (field == NULL || redis_reply_text_at(reply, i + 1) == NULL) {
            status = damaged(key, "", err);
        } else if (strcmp(field, "uuid") != 0 && strcmp(field, "schema") != 0) {
            char *end = NULL;
            uint64_t producer = strtoull(field, &end, 16);
            if (*end != '\0' || !read_mark(reply->items[i + 1]->text, &epoch, &hwm, &hash8))
                status = damaged(key, field, err);
            else
                visit(visitor, producer, epoch, hwm, hash8);
        }
    }
    redis_reply_free(reply);
    return status;
}

/* ---- the directory ---- */

enum status ledger_redis_directory_version(struct redis_link *link, uint32_t timeout_ms, uint64_t *version,
                                           struct error *err)
{
    const char *get[] = {"HGET", DIRECTORY_VERSION_KEY, "v"};
    struct redis_reply *reply = NULL;
    TRY(ledger_redis_call(link, DIRECTORY_VERSION_KEY, timeout_ms, get, 3, &reply, err));
    uint64_t number = 0;
    enum status status = ST_OK;
    if (reply->type != REDIS_NIL && (reply->type != REDIS_STRING || !ledger_redis_number(reply->text, &number)))
        status = damaged(DIRECTORY_VERSION_KEY, "v", err);
    redis_reply_free(reply);
    TRY(status);
    *version = number;
    return ST_OK;
}

/* Lines as they come, once each: HSCAN may show a field twice. Kept until all are there and of one version, so that the
 * visitor never sees half a directory. */
struct line_set {
    struct buf lines;    /* each NUL-terminated */
    uint8_t (*seen)[16]; /* open addressing: first half of SHA-256 of the id; zero: empty */
    size_t room, count;  /* room: a power of two, at most half full */
};

static bool seen_before(struct line_set *set, const uint8_t digest[16])
{
    static const uint8_t none[16];
    size_t at;
    memcpy(&at, digest, sizeof at);
    for (at &= set->room - 1; memcmp(set->seen[at], none, 16) != 0; at = (at + 1) & (set->room - 1))
        if (memcmp(set->seen[at], digest, 16) == 0) return true;
    memcpy(set->seen[at], digest, 16);
    set->count++;
    return false;
}

static bool grow(struct line_set *set)
{
    struct line_set more = {.room = set->room == 0 ? 1024 : set->room * 2};
    more.seen = mem_alloc(more.room, sizeof *more.seen);
    if (more.seen == NULL) return false;
    static const uint8_t none[16];
    for (size_t i = 0; i < set->room; i++)
        if (memcmp(set->seen[i], none, 16) != 0) (void)seen_before(&more, set->seen[i]);
    mem_free(set->seen);
    set->seen = more.seen;
    set->room = more.room;
    return true;
}

static enum status note_line(void *visitor, const struct redis_reply *field, const struct redis_reply *value,
                             struct error *err)
{
    struct line_set *set = visitor;
    if ((set->count + 1) * 2 > set->room && !grow(set)) return error_set(err, ST_NOMEM, "no memory for the directory");
    uint8_t digest[32];
    sha256(field->text, field->length, digest);
    if (seen_before(set, digest)) return ST_OK;
    if (set->count > limits.directory_lines)
        return error_set(err, ST_LIMIT, "the ledger's directory has more than %" PRIu64 " lines (directory_lines)",
                         limits.directory_lines);
    if (strlen(value->text) != value->length)
        return error_set(err, ST_PROTO, "Redis: a line of the directory holds a zero byte");
    buf_append(&set->lines, value->text, value->length + 1);
    return buf_ok(&set->lines) ? ST_OK : error_set(err, ST_NOMEM, "no memory for the directory");
}

enum status ledger_redis_directory_read(struct redis_link *link, uint32_t timeout_ms,
                                        void (*visit)(void *visitor, const char *line, size_t length), void *visitor,
                                        uint64_t *version, struct error *err)
{
    enum status status = ST_AGAIN;
    for (int i = 0; status == ST_AGAIN && i < AGAIN_MAX; i++) {
        struct line_set set = {.room = 0};
        buf_init(&set.lines, 0);
        uint64_t before = 0, after = 0;
        status = ledger_redis_directory_version(link, timeout_ms, &before, err);
        if (status == ST_OK) status = scan(link, DIRECTORY_LINES_KEY, NULL, timeout_ms, note_line, &set, err);
        if (status == ST_OK) status = ledger_redis_directory_version(link, timeout_ms, &after, err);
        if (status == ST_OK && before != after) status = ST_AGAIN;
        if (status == ST_OK) {
            for (size_t at = 0; at < set.lines.length;) {
                size_t length = strlen(set.lines.data + at);
                visit(visitor, set.lines.data + at, length);
                at += length + 1;
            }
            *version = after;
        }
        mem_free(set.seen);
        buf_free(&set.lines);
    }
    return status == ST_AGAIN ? error_set(err, ST_IO, "the ledger's directory changes faster than it can be read")
                              : status;
}
