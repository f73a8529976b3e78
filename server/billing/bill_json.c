/* Balances, sums and orders as JSON, both ways; see bill_json.h. */
#include "server/billing/bill_json.h"

#include "runtime/base/hash.h"
#include "server/billing/bill_text.h"

#include <inttypes.h>
#include <string.h>

enum { PRIORITY_DEFAULT = 100 };

static const char *const op_names[PACKAGE_OPS] = {"add", "inc", "void", "reap"}; /* the last is of journals alone */

/* ---- names ---- */

static bool is_plain(char c, const char *others)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || (c && strchr(others, c));
}

enum status bill_copy_id(const char *text, const char *what, const char *others, char *out, size_t size,
                         struct error *err)
{
    size_t length = 0;
    while (length < size && is_plain(text[length], others)) length++;
    if (length == 0 || length >= size || text[length])
        return error_set(err, ST_INVAL, "\"%.80s\" is no %s: 1 to %zu of A-Z a-z 0-9 and %s", text, what, size - 1,
                         others);
    memcpy(out, text, length + 1);
    return ST_OK;
}

enum status bill_account(const char *text, uint64_t *account, struct error *err)
{
    char name[ACCOUNT_NAME_MAX + 1];
    if (strncmp(text, "id:", 3) == 0) return bill_parse_number(text + 3, INT64_MAX, account, err);
    TRY(bill_copy_id(text, "account's name", "-_.@", name, sizeof name, err));
    *account = account_number(name);
    return ST_OK;
}

/* ---- writing ---- */

static void append_u64(struct buf *out, const char *name, uint64_t value)
{
    buf_append_format(out, "\"%s\":%" PRIu64, name, value);
}

static void append_more(struct buf *out, const char *name, uint64_t value)
{
    buf_append_char(out, ',');
    append_u64(out, name, value);
}

static void append_time(struct buf *out, const char *name, uint64_t unix_ms)
{
    buf_append_format(out, ",\"%s\":", name);
    if (unix_ms == 0) {
        buf_append_text(out, "null");
        return;
    }
    buf_append_char(out, '"');
    bill_append_time_ms(out, (int64_t)unix_ms);
    buf_append_char(out, '"');
}

/* Numbers of accounts pass 2^53, which many readers of JSON round: so they are texts. */
static void append_account(struct buf *out, uint64_t account, const char *name)
{
    buf_append_format(out, "\"account_id\":\"id:%" PRIu64 "\",\"account\":", account);
    if (name)
        buf_append_json_string(out, name, strlen(name));
    else
        buf_append_text(out, "null");
}

static void append_classes(struct buf *out, uint64_t mask)
{
    buf_append_text(out, ",\"classes\":\"");
    bill_append_classes(out, mask);
    buf_append_char(out, '"');
}

void bill_json_balance(const struct account_balance *balance, const char *name, struct buf *out)
{
    uint64_t free_units = 0, leased_units = 0;
    for (uint32_t i = 0; i < balance->packages_count; i++) {
        free_units += balance->packages[i].free;
        leased_units += balance->packages[i].leased;
    }
    buf_append_text(out, "{\"object\":\"billing.balance\",");
    append_account(out, balance->account, name);
    buf_append_format(out, ",\"known\":%s,\"open\":%s", balance->known ? "true" : "false",
                      balance->open ? "true" : "false");
    append_more(out, "available_units", free_units);
    append_more(out, "leased_units", leased_units);
    append_more(out, "used_units", balance->used);
    append_more(out, "overage_units", balance->overage);
    buf_append_text(out, ",\"packages\":[");
    for (uint32_t i = 0; i < balance->packages_count; i++) {
        const struct package_balance *package = &balance->packages[i];
        buf_append_format(out, "%s{\"id\":\"%s\"", i ? "," : "", package->id);
        append_more(out, "granted_units", package->granted);
        append_more(out, "available_units", package->free);
        append_more(out, "leased_units", package->leased);
        append_more(out, "used_units", package->used);
        append_more(out, "expired_units", package->expired);
        append_more(out, "priority", package->priority);
        append_time(out, "effective", package->effective_ms);
        append_time(out, "expires", package->expires_ms);
        append_time(out, "created", package->created_ms);
        append_classes(out, package->class_mask);
        buf_append_char(out, '}');
    }
    buf_append_text(out, "]}");
}

void bill_append_millionths(struct buf *out, uint64_t millionths)
{
    buf_append_format(out, "%" PRIu64 ".%06" PRIu64, millionths / 1000000, millionths % 1000000);
}

static void append_millionths(struct buf *out, const char *name, uint64_t millionths)
{
    buf_append_format(out, ",\"%s\":", name);
    bill_append_millionths(out, millionths);
}

void bill_json_energy(const struct month_total *total, struct buf *out)
{
    append_more(out, "energy_records", total->energy_records);
    append_millionths(out, "energy_joules", total->energy_uj);
    append_millionths(out, "idle_share_joules", total->idle_uj);
    append_millionths(out, "green_joules", total->green_uj);
    append_millionths(out, "gco2_location", total->ugco2_loc);
    append_millionths(out, "gco2_market", total->ugco2_mkt);
    append_more(out, "energy_uj", total->energy_uj);
    append_more(out, "idle_share_uj", total->idle_uj);
    append_more(out, "green_uj", total->green_uj);
    append_more(out, "ugco2_location", total->ugco2_loc);
    append_more(out, "ugco2_market", total->ugco2_mkt);
}

void bill_json_total(const struct month_total *total, struct buf *out)
{
    append_u64(out, "model_class", total->mclass);
    append_more(out, "input_tokens", total->in_miss + total->in_hit);
    append_more(out, "input_cached_tokens", total->in_hit);
    append_more(out, "output_tokens", total->out);
    append_more(out, "num_model_requests", total->records);
    append_more(out, "charged_units", total->units);
    append_more(out, "waived_input_tokens", total->waived_in);
    append_more(out, "waived_output_tokens", total->waived_out);
    append_more(out, "waived_model_requests", total->waived_records);
    bill_json_energy(total, out);
}

void bill_json_months(uint64_t account, const char *name, uint32_t month, const struct month_total *totals,
                      uint32_t count, struct buf *out)
{
    buf_append_text(out, "{\"object\":\"billing.usage\",");
    append_account(out, account, name);
    buf_append_format(out, ",\"month\":\"%04" PRIu32 "-%02" PRIu32 "\",\"data\":[", month / 100, month % 100);
    for (uint32_t i = 0; i < count; i++) {
        buf_append_text(out, i ? ",{" : "{");
        bill_json_total(&totals[i], out);
        buf_append_char(out, '}');
    }
    buf_append_text(out, "]}");
}

void bill_json_order(const struct order *order, enum ledger_answer answer, struct buf *out)
{
    buf_append_format(out, "{\"object\":\"billing.order\",\"id\":\"%s\",\"account\":\"id:%" PRIu64 "\",\"op\":\"%s\"",
                      order->id, order->account, op_names[order->op]);
    buf_append_format(out, ",\"package\":\"%s\"", order->package);
    append_more(out, "units", order->units);
    append_more(out, "priority", order->priority);
    append_time(out, "effective", order->effective_ms);
    append_time(out, "expires", order->expires_ms);
    append_classes(out, order->class_mask);
    buf_append_format(out, ",\"answer\":\"%s\"}", ledger_answer_name(answer));
}

/* ---- reading ---- */

static enum status read_u64(const struct json *object, const char *name, uint64_t *value, struct error *err)
{
    const struct json *member = json_member(object, name);
    if (json_kind(member) == JSON_KIND_NULL) return ST_OK;
    if (json_kind(member) != JSON_KIND_INT || json_to_int(member) < 0)
        return error_set(err, ST_INVAL, "\"%s\" must be a whole number, 0 or above", name);
    *value = (uint64_t)json_to_int(member);
    return ST_OK;
}

static enum status read_text(const struct json *object, const char *name, bool needed, const char **text,
                             struct error *err)
{
    const struct json *member = json_member(object, name);
    *text = json_to_text(member, NULL);
    if (json_kind(member) == JSON_KIND_NULL && !needed) return ST_OK;
    return *text ? ST_OK : error_set(err, ST_INVAL, "\"%s\" must be a text%s", name, needed ? "; it is needed" : "");
}

static enum status read_time(const struct json *object, const char *name, uint64_t *unix_ms, struct error *err)
{
    const char *text;
    struct error reason = {""};
    int64_t value = 0;
    TRY(read_text(object, name, false, &text, err));
    if (text && bill_parse_time(text, &value, &reason) != ST_OK)
        return error_set(err, ST_INVAL, "\"%s\": %.400s", name, reason.message);
    *unix_ms = (uint64_t)value;
    return ST_OK;
}

static enum status read_classes(const struct json *object, uint64_t *mask, struct error *err)
{
    const char *text;
    TRY(read_text(object, "classes", false, &text, err));
    return bill_parse_classes(text ? text : "all", mask, err);
}

static enum status read_package(const struct json *json, struct package_balance *package, struct error *err)
{
    const char *id;
    TRY(read_text(json, "id", true, &id, err));
    TRY(bill_copy_id(id, "package", "_-", package->id, sizeof package->id, err));
    TRY(read_u64(json, "granted_units", &package->granted, err));
    TRY(read_u64(json, "available_units", &package->free, err));
    TRY(read_u64(json, "leased_units", &package->leased, err));
    TRY(read_u64(json, "used_units", &package->used, err));
    TRY(read_u64(json, "expired_units", &package->expired, err));
    TRY(read_u64(json, "priority", &package->priority, err));
    TRY(read_time(json, "effective", &package->effective_ms, err));
    TRY(read_time(json, "expires", &package->expires_ms, err));
    TRY(read_time(json, "created", &package->created_ms, err));
    return read_classes(json, &package->class_mask, err);
}

enum status bill_read_balance(const struct json *json, struct account_balance *balance, struct error *err)
{
    const char *account;
    const struct json *packages = json_member(json, "packages");
    *balance = (struct account_balance){.known = json_to_bool(json_member(json, "known")),
                                        .open = json_to_bool(json_member(json, "open"))};
    TRY(read_text(json, "account_id", true, &account, err));
    TRY(bill_account(account, &balance->account, err));
    TRY(read_u64(json, "used_units", &balance->used, err));
    TRY(read_u64(json, "overage_units", &balance->overage, err));
    if (json_kind(packages) != JSON_KIND_LIST || json_length(packages) > PACKAGES_MAX)
        return error_set(err, ST_INVAL, "\"packages\" must be a list of at most %d", PACKAGES_MAX);
    for (size_t i = 0; i < json_length(packages); i++)
        TRY(read_package(json_at(packages, i), &balance->packages[i], err));
    balance->packages_count = (uint32_t)json_length(packages);
    return ST_OK;
}

static enum status read_total(const struct json *json, struct month_total *total, struct error *err)
{
    uint64_t mclass = MODEL_CLASSES, in_total = 0;
    TRY(read_u64(json, "model_class", &mclass, err));
    TRY(read_u64(json, "input_tokens", &in_total, err));
    TRY(read_u64(json, "input_cached_tokens", &total->in_hit, err));
    TRY(read_u64(json, "output_tokens", &total->out, err));
    TRY(read_u64(json, "num_model_requests", &total->records, err));
    TRY(read_u64(json, "charged_units", &total->units, err));
    TRY(read_u64(json, "waived_input_tokens", &total->waived_in, err));
    TRY(read_u64(json, "waived_output_tokens", &total->waived_out, err));
    TRY(read_u64(json, "waived_model_requests", &total->waived_records, err));
    TRY(read_u64(json, "energy_records", &total->energy_records, err));
    TRY(read_u64(json, "energy_uj", &total->energy_uj, err));
    TRY(read_u64(json, "idle_share_uj", &total->idle_uj, err));
    TRY(read_u64(json, "green_uj", &total->green_uj, err));
    TRY(read_u64(json, "ugco2_location", &total->ugco2_loc, err));
    TRY(read_u64(json, "ugco2_market", &total->ugco2_mkt, err));
    if (mclass >= MODEL_CLASSES || in_total < total->in_hit)
        return error_set(err, ST_INVAL, "\"model_class\" or \"input_tokens\" is out of range");
    total->mclass = (uint8_t)mclass;
    total->in_miss = in_total - total->in_hit;
    return ST_OK;
}

enum status bill_read_months(const struct json *json, struct month_total totals[MODEL_CLASSES], uint32_t *count,
                             struct error *err)
{
    const struct json *data = json_member(json, "data");
    if (json_kind(data) != JSON_KIND_LIST || json_length(data) > MODEL_CLASSES)
        return error_set(err, ST_INVAL, "\"data\" must be a list of at most %d", MODEL_CLASSES);
    memset(totals, 0, MODEL_CLASSES * sizeof *totals);
    for (size_t i = 0; i < json_length(data); i++) TRY(read_total(json_at(data, i), &totals[i], err));
    *count = (uint32_t)json_length(data);
    return ST_OK;
}

static enum status check_members(const struct json *json, const char *const *known, size_t count, struct error *err)
{
    void *iterator = NULL;
    const char *key;
    const struct json *value;
    if (json_kind(json) != JSON_KIND_OBJECT) return error_set(err, ST_INVAL, "the body must be a JSON object");
    while (json_iterate(json, &iterator, &key, &value)) {
        size_t i = 0;
        while (i < count && strcmp(known[i], key) != 0) i++;
        if (i == count) return error_set(err, ST_INVAL, "\"%.60s\" is no member that an order has", key);
    }
    return ST_OK;
}

static enum status read_op(const struct json *json, enum package_op *op, struct error *err)
{
    const char *text;
    TRY(read_text(json, "op", false, &text, err));
    for (uint32_t i = 0; i < PACKAGE_REAP; i++) {
        if (text && strcmp(text, op_names[i]) != 0) continue;
        *op = (enum package_op)i;
        return ST_OK;
    }
    return error_set(err, ST_INVAL, "\"op\" must be add, inc or void");
}

enum status bill_order_check(struct order *order, struct error *err)
{
    uint8_t digest[32];
    struct buf id;
    if (order->op != PACKAGE_ADD && !order->package[0])
        return error_set(err, ST_INVAL, "name the package: %s works on one that is there", op_names[order->op]);
    if (order->op != PACKAGE_VOID && order->units == 0)
        return error_set(err, ST_INVAL, "an order of 0 tokens changes nothing: say how many");
    if (order->expires_ms && order->expires_ms <= order->effective_ms)
        return error_set(err, ST_INVAL, "the package would expire before it is effective");
    if (order->package[0]) return ST_OK;
    /* from the order's id, so that the same order again means the same package */
    sha256(order->id, strlen(order->id), digest);
    buf_init(&id, 0);
    buf_append_text(&id, "p-");
    bill_append_hex(&id, digest, 8);
    bool good = buf_ok(&id);
    if (good) memcpy(order->package, id.data, id.length), order->package[id.length] = '\0';
    buf_free(&id);
    return good ? ST_OK : error_set(err, ST_NOMEM, "%s", status_text(ST_NOMEM));
}

enum status bill_read_order(const struct json *json, struct order *order, struct error *err)
{
    static const char *const known[] = {"id",       "account",   "op",      "package", "units",  "tokens",
                                        "priority", "effective", "expires", "classes", "object", "answer"};
    const char *id, *account, *package, *tokens;
    *order = (struct order){.priority = PRIORITY_DEFAULT};
    TRY(check_members(json, known, sizeof known / sizeof *known, err));
    TRY(read_text(json, "id", true, &id, err));
    TRY(bill_copy_id(id, "order's id", "_.:-", order->id, sizeof order->id, err));
    TRY(read_text(json, "account", true, &account, err));
    TRY(bill_account(account, &order->account, err));
    TRY(read_op(json, &order->op, err));
    TRY(read_text(json, "package", false, &package, err));
    if (package && *package) TRY(bill_copy_id(package, "package", "_-", order->package, sizeof order->package, err));
    TRY(read_text(json, "tokens", false, &tokens, err));
    TRY(read_u64(json, "units", &order->units, err));
    if (tokens && order->units) return error_set(err, ST_INVAL, "give \"tokens\" or \"units\", not both");
    if (tokens) TRY(bill_parse_tokens(tokens, PACKAGE_UNITS_MAX, &order->units, err));
    if (order->units > PACKAGE_UNITS_MAX) return error_set(err, ST_INVAL, "\"units\" is more than fits");
    TRY(read_u64(json, "priority", &order->priority, err));
    TRY(read_time(json, "effective", &order->effective_ms, err));
    TRY(read_time(json, "expires", &order->expires_ms, err));
    TRY(read_classes(json, &order->class_mask, err));
    return bill_order_check(order, err);
}
