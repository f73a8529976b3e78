/* Questions about bills and their answers; see billing_http.h. */
#include "server/billing/billing_http.h"

#include "runtime/base/json.h"
#include "runtime/base/mem.h"
#include "server/billing/bill_directory.h"
#include "server/billing/bill_json.h"
#include "server/billing/bill_text.h"
#include "server/billing/directory.h"

#include <inttypes.h>
#include <string.h>

struct run {
    const struct ledger_client *client;
    const struct billing_ask *ask;
    const struct json *body;
    struct buf *out;
    struct api_error *error;
};

/* ---- refusals ---- */

static bool refuse(struct run *run, int http_status, const char *type, const char *code, const char *message)
{
    api_error_set(run->error, http_status, type, code, NULL, "%s", message);
    return false;
}

/* Why the ledger was not reached, or the input is wrong. The reasons of clients of a ledger name no secret. */
static bool refuse_status(struct run *run, enum status status, const struct error *err)
{
    const char *message = err->message[0] ? err->message : status_text(status);
    if (status == ST_INVAL || status == ST_LIMIT) return refuse(run, 400, "invalid_request_error", NULL, message);
    if (status == ST_NOTFOUND) return refuse(run, 404, "not_found_error", NULL, message);
    (void)refuse(run, 503, "server_error", "ledger_unavailable",
                 "The ledger does not answer. Send the call again, an order with the same id.");
    run->error->retry_after_ms = 1000;
    return false;
}

static bool refuse_answer(struct run *run, enum ledger_answer answer)
{
    const char *text = bill_answer_text(answer);
    bool missing = answer == LEDGER_NOPACKAGE;
    return refuse(run,
                  answer == LEDGER_BADARG ? 400
                  : missing               ? 404
                                          : 409,
                  "invalid_request_error", ledger_answer_name(answer), text);
}

static bool is_good(enum ledger_answer answer)
{
    return answer == LEDGER_OK || answer == LEDGER_DUP;
}

/* ---- members of a body ---- */

static const char *member(const struct run *run, const char *name)
{
    return json_to_text(json_member(run->body, name), NULL);
}

static bool need(struct run *run, const char *name, const char **text)
{
    *text = member(run, name);
    if (*text) return true;
    api_error_set(run->error, 400, "invalid_request_error", "missing_required_parameter", name,
                  "\"%s\" is needed: a text.", name);
    return false;
}

static bool account_of(struct run *run, const char *text, uint64_t *account)
{
    struct error err = {""};
    enum status status = bill_account(text, account, &err);
    return status == ST_OK || refuse_status(run, status, &err);
}

static bool month_of(struct run *run, uint32_t *month)
{
    struct error err = {""};
    *month = record_month(run->ask->now_us, run->ask->utc_offset_s);
    if (!run->ask->month[0]) return true;
    enum status status = bill_parse_month(run->ask->month, month, &err);
    if (status == ST_OK) return true;
    api_error_set(run->error, 400, "invalid_request_error", NULL, "month", "%s", err.message);
    return false;
}

/* A name for answers, when one was given. */
static const char *shown_name(const char *text)
{
    return strncmp(text, "id:", 3) == 0 ? NULL : text;
}

/* ---- answers ---- */

static bool run_ledger(struct run *run)
{
    char uuid[LEDGER_UUID_CHARS + 1];
    struct error err = {""};
    enum status status = run->client->calls->uuid(run->client->state, uuid, &err);
    if (status != ST_OK) return refuse_status(run, status, &err);
    buf_append_text(run->out, "{\"object\":\"billing.ledger\",\"uuid\":");
    buf_append_json_string(run->out, uuid, strlen(uuid));
    buf_append_char(run->out, '}');
    return true;
}

static bool reply_answer(struct run *run, enum ledger_answer answer)
{
    if (!is_good(answer)) return refuse_answer(run, answer);
    buf_append_format(run->out, "{\"object\":\"billing.answer\",\"answer\":\"%s\"}", ledger_answer_name(answer));
    return true;
}

static bool run_init(struct run *run)
{
    const char *uuid;
    struct error err = {""};
    enum ledger_answer answer;
    if (!need(run, "uuid", &uuid)) return false;
    enum status status = run->client->calls->init(run->client->state, uuid, &answer, &err);
    return status == ST_OK ? reply_answer(run, answer) : refuse_status(run, status, &err);
}

static bool run_order(struct run *run)
{
    struct order order;
    struct error err = {""};
    enum ledger_answer answer;
    enum status status = bill_read_order(run->body, &order, &err);
    if (status != ST_OK) return refuse_status(run, status, &err);
    order.created_ms = (uint64_t)(run->ask->now_us / 1000);
    status = run->client->calls->order(run->client->state, &order, &answer, &err);
    if (status != ST_OK) return refuse_status(run, status, &err);
    if (!is_good(answer)) return refuse_answer(run, answer);
    bill_json_order(&order, answer, run->out);
    return true;
}

/* Opens or closes; or, with a name, makes one known to the directory. */
static bool run_account_change(struct run *run)
{
    struct error err = {""};
    enum ledger_answer answer;
    uint64_t account;
    const char *text, *order;
    char order_id[ORDER_ID_MAX + 1];
    if (json_kind(json_member(run->body, "name")) != JSON_KIND_NULL) {
        enum status status = bill_account_create(run->client, member(run, "name"), member(run, "tenant"),
                                                 run->ask->now_us / 1000, run->out, &err);
        return status == ST_OK || refuse_status(run, status, &err);
    }
    if (!need(run, "account", &text) || !account_of(run, text, &account) || !need(run, "order", &order)) return false;
    if (json_kind(json_member(run->body, "open")) != JSON_KIND_BOOL)
        return refuse(run, 400, "invalid_request_error", NULL, "\"open\" must be true or false.");
    bool open = json_to_bool(json_member(run->body, "open"));
    enum status status = bill_copy_id(order, "order's id", "_.:-", order_id, sizeof order_id, &err);
    if (status == ST_OK) status = bill_account_set(run->client, account, order_id, open, &answer, &err);
    return status == ST_OK ? reply_answer(run, answer) : refuse_status(run, status, &err);
}

static bool run_balance(struct run *run, uint64_t account, const char *name)
{
    struct error err = {""};
    struct account_balance *balance = mem_alloc(1, sizeof *balance);
    enum status status = balance ? run->client->calls->balance(run->client->state, account, balance, &err) : ST_NOMEM;
    if (status == ST_OK) bill_json_balance(balance, name, run->out);
    mem_free(balance);
    return status == ST_OK || refuse_status(run, status, &err);
}

static bool run_account(struct run *run)
{
    uint64_t account;
    return account_of(run, run->ask->argument, &account) && run_balance(run, account, shown_name(run->ask->argument));
}

static bool run_usage(struct run *run)
{
    struct month_total totals[MODEL_CLASSES];
    struct error err = {""};
    uint64_t account;
    uint32_t month, count;
    if (!run->ask->account[0])
        return refuse(run, 400, "invalid_request_error", NULL, "Name the account: ?account=NAME.");
    if (!account_of(run, run->ask->account, &account) || !month_of(run, &month)) return false;
    enum status status = run->client->calls->month(run->client->state, account, month, totals, &count, &err);
    if (status != ST_OK) return refuse_status(run, status, &err);
    bill_json_months(account, shown_name(run->ask->account), month, totals, count, run->out);
    return true;
}

/* Whose is settled by the key that asked; nothing in the request names an account. */
static bool run_own_usage(struct run *run)
{
    struct month_total totals[MODEL_CLASSES];
    struct error err = {""};
    uint32_t month, count;
    const struct billing_ask *ask = run->ask;
    if (ask->account[0] || ask->argument[0])
        return refuse(run, 400, "invalid_request_error", NULL,
                      "This call tells of the asking key's own account alone: leave the account out.");
    if (!month_of(run, &month)) return false;
    buf_append_text(run->out, "{\"object\":\"usage\",\"balance\":");
    if (!run_balance(run, ask->own_account, ask->own_name)) return false;
    enum status status = run->client->calls->month(run->client->state, ask->own_account, month, totals, &count, &err);
    if (status != ST_OK) return refuse_status(run, status, &err);
    buf_append_text(run->out, ",\"usage\":");
    bill_json_months(ask->own_account, ask->own_name, month, totals, count, run->out);
    buf_append_char(run->out, '}');
    return true;
}

static bool run_reap(struct run *run)
{
    struct error err = {""};
    enum ledger_answer answer;
    const char *text;
    uint64_t account;
    uint32_t leases = 0, packages = 0;
    const struct json *grace = json_member(run->body, "grace_ms");
    if (!need(run, "account", &text) || !account_of(run, text, &account)) return false;
    if (json_kind(grace) != JSON_KIND_INT || json_to_int(grace) < 0)
        return refuse(run, 400, "invalid_request_error", NULL, "\"grace_ms\" must be a whole number, 0 or above.");
    enum status status = run->client->calls->reap(run->client->state, account, (uint64_t)json_to_int(grace), &leases,
                                                  &packages, &answer, &err);
    if (status != ST_OK) return refuse_status(run, status, &err);
    if (!is_good(answer)) return refuse_answer(run, answer);
    buf_append_format(run->out,
                      "{\"object\":\"billing.reap\",\"answer\":\"%s\",\"leases_ended\":%" PRIu32
                      ",\"packages_expired\":%" PRIu32 "}",
                      ledger_answer_name(answer), leases, packages);
    return true;
}

struct marks {
    struct buf *out;
    bool more;
};

static void on_mark(void *state, uint64_t producer, uint64_t epoch, uint64_t hwm, const char *hash8)
{
    struct marks *marks = state;
    buf_append_format(marks->out,
                      "%s{\"producer\":\"%016" PRIx64 "\",\"epoch\":%" PRIu64 ",\"hwm\":%" PRIu64 ",\"hash8\":\"%s\"}",
                      marks->more ? "," : "", producer, epoch, hwm, hash8);
    marks->more = true;
}

static bool run_marks(struct run *run)
{
    struct error err = {""};
    uint64_t partition = 0;
    enum status status = bill_parse_number(run->ask->partition, PARTITIONS - 1, &partition, &err);
    if (status != ST_OK) return refuse_status(run, status, &err);
    buf_append_format(run->out, "{\"object\":\"list\",\"partition\":%" PRIu64 ",\"data\":[", partition);
    struct marks marks = {run->out, false};
    status = run->client->calls->marks(run->client->state, (uint16_t)partition, on_mark, &marks, &err);
    if (status != ST_OK) return refuse_status(run, status, &err);
    buf_append_text(run->out, "]}");
    return true;
}

static void on_line(void *state, const char *line, size_t length)
{
    struct marks *lines = state;
    if (lines->more) buf_append_char(lines->out, ',');
    buf_append_json_string(lines->out, line, length);
    lines->more = true;
}

static bool run_directory(struct run *run)
{
    struct error err = {""};
    uint64_t version = 0;
    struct marks lines = {run->out, false};
    buf_append_text(run->out, "{\"object\":\"billing.directory\",\"lines\":[");
    enum status status = run->client->calls->directory_read(run->client->state, on_line, &lines, &version, &err);
    if (status != ST_OK) return refuse_status(run, status, &err);
    buf_append_format(run->out, "],\"version\":%" PRIu64 "}", version);
    return true;
}

/* The line is read before it is put: a directory with one bad line is refused whole by every node. */
static bool run_directory_put(struct run *run)
{
    struct error err = {""};
    const char *id, *line;
    if (!need(run, "id", &id) || !need(run, "line", &line)) return false;
    enum status status = bill_directory_put(run->client, id, line, &err);
    if (status != ST_OK) return refuse_status(run, status, &err);
    buf_append_text(run->out, "{\"object\":\"billing.directory_line\"}");
    return true;
}

static bool run_keys(struct run *run, bool keys)
{
    struct error err = {""};
    enum status status =
        bill_directory_list(run->client, keys, run->ask->account, run->ask->utc_offset_s, run->out, &err);
    return status == ST_OK || refuse_status(run, status, &err);
}

static bool read_limit(struct run *run, const char *name, uint64_t max, uint64_t *value, bool *given)
{
    const struct json *limit = json_member(run->body, name);
    *given = json_kind(limit) != JSON_KIND_NULL;
    if (!*given) return true;
    if (json_kind(limit) == JSON_KIND_INT && json_to_int(limit) >= 0 && (uint64_t)json_to_int(limit) <= max) {
        *value = (uint64_t)json_to_int(limit);
        return true;
    }
    api_error_set(run->error, 400, "invalid_request_error", NULL, name, "\"%s\" must be a whole number, 0 to %" PRIu64,
                  name, max);
    return false;
}

static bool run_key_change(struct run *run)
{
    struct error err = {""};
    const struct json *revoke = json_member(run->body, "revoke");
    if (json_kind(revoke) != JSON_KIND_NULL && json_kind(revoke) != JSON_KIND_BOOL) /* else it would look done */
        return refuse(run, 400, "invalid_request_error", NULL, "\"revoke\" must be true or false.");
    struct bill_key_change change = {.id = member(run, "id"),
                                     .account = member(run, "account"),
                                     .label = member(run, "label"),
                                     .revoke = json_to_bool(revoke),
                                     .budget_period = member(run, "budget_period"),
                                     .now_ms = run->ask->now_us / 1000};
    if (!read_limit(run, "rpm", UINT32_MAX, &change.rpm, &change.rpm_given) ||
        !read_limit(run, "tpm", KEY_TPM_MAX, &change.tpm, &change.tpm_given) ||
        !read_limit(run, "concurrency", UINT32_MAX, &change.concurrency, &change.concurrency_given) ||
        !read_limit(run, "budget_units", BUDGET_UNITS_MAX, &change.budget_units, &change.budget_given))
        return false;
    enum status status = bill_key_set(run->client, &change, run->out, &err);
    return status == ST_OK || refuse_status(run, status, &err);
}

static bool dispatch(struct run *run)
{
    switch (run->ask->kind) {
    case BILLING_LEDGER: return run_ledger(run);
    case BILLING_LEDGER_INIT: return run_init(run);
    case BILLING_ORDER: return run_order(run);
    case BILLING_ACCOUNTS: return run_keys(run, false);
    case BILLING_ACCOUNT_CHANGE: return run_account_change(run);
    case BILLING_ACCOUNT: return run_account(run);
    case BILLING_KEYS: return run_keys(run, true);
    case BILLING_KEY_CHANGE: return run_key_change(run);
    case BILLING_USAGE: return run_usage(run);
    case BILLING_REAP: return run_reap(run);
    case BILLING_MARKS: return run_marks(run);
    case BILLING_DIRECTORY: return run_directory(run);
    case BILLING_DIRECTORY_PUT: return run_directory_put(run);
    case BILLING_OWN_USAGE: return run_own_usage(run);
    }
    return refuse(run, 404, "not_found_error", "unknown_url", "There is nothing at this URL.");
}

bool billing_http_run(const struct ledger_client *client, const struct billing_ask *ask, struct buf *out,
                      struct api_error *error)
{
    struct error err = {""};
    struct json *body = NULL;
    struct run run = {client, ask, NULL, out, error};
    if (ask->body_length > 0) {
        if (ask->body_length > BILLING_BODY_BYTES_MAX)
            return refuse(&run, 400, "invalid_request_error", NULL,
                          "The body of a billing call has at most 65536 bytes.");
        if (json_read(ask->body, ask->body_length, &body, &err) != ST_OK || json_kind(body) != JSON_KIND_OBJECT) {
            json_release(body);
            return refuse(&run, 400, "invalid_request_error", NULL, "The body must be a JSON object.");
        }
    }
    run.body = body;
    bool good = dispatch(&run);
    json_release(body);
    if (good && !buf_ok(out))
        good = refuse(&run, 503, "server_error", "resource_unavailable", "The server is out of memory.");
    return good;
}
