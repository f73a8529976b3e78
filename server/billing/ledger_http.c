/* A ledger behind HTTP; see ledger_http.h. What comes back is checked member by member: a server is not believed more
 * than any other source. */
#include "server/billing/ledger_http.h"

#include "runtime/base/mem.h"
#include "server/billing/bill_json.h"
#include "server/http_call.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

struct state {
    struct http_call http;
    const char *base;
    struct buf answer, path, body;
    struct json *keys; /* the list of keys, once it was read */
};

/* ---- one call ---- */

/* The server's own words for why not; a ledger's answer goes into *answer. */
static enum status read_error(const struct state *state, const struct json *root, int http_status,
                              enum ledger_answer *answer, struct error *err)
{
    const struct json *error = json_member(root, "error");
    const char *code = json_to_text(json_member(error, "code"), NULL);
    const char *message = json_to_text(json_member(error, "message"), NULL);
    if (answer && code && ledger_answer_parse(code, answer)) return ST_OK;
    if (!message) message = "it did not say why";
    if (http_status == 401 || http_status == 403)
        return error_set(err, ST_INVAL, "%.100s refuses the admin key: %.200s (MILLRACE_ADMIN_KEY or --admin-key-file)",
                         state->base, message);
    if (http_status == 404 && (!code || strcmp(code, "unknown_url") == 0))
        return error_set(err, ST_INVAL, "%.100s has no billing calls: name its --admin-port, and start it with one",
                         state->base);
    return error_set(err, http_status >= 500 ? ST_IO : ST_INVAL, "%.100s: %.300s", state->base, message);
}

/* *root is the caller's on ST_OK; NULL when *answer is a refusal of the ledger. */
static enum status ask(struct state *state, bool post, enum ledger_answer *answer, struct json **root,
                       struct error *err)
{
    int http_status;
    struct json *json = NULL;
    struct error reason = {""};
    *root = NULL;
    buf_append_char(&state->path, '\0');
    buf_append_char(&state->body, '\0');
    if (!buf_ok(&state->path) || !buf_ok(&state->body)) return error_set(err, ST_NOMEM, "%s", status_text(ST_NOMEM));
    TRY(http_call_run(&state->http, state->base, state->path.data, post ? state->body.data : NULL, &http_status,
                      &state->answer, err));
    enum status status = json_read(state->answer.data ? state->answer.data : "", state->answer.length, &json, &reason);
    if (status != ST_OK)
        return error_set(err, ST_PROTO, "%.100s answered with status %d and no JSON: is this Millrace's admin port?",
                         state->base, http_status);
    if (http_status == 200) {
        const char *word = json_to_text(json_member(json, "answer"), NULL);
        if (answer && (!word || !ledger_answer_parse(word, answer))) {
            json_release(json);
            return error_set(err, ST_PROTO, "%.100s answered without the ledger's word", state->base);
        }
        *root = json;
        return ST_OK;
    }
    status = read_error(state, json, http_status, answer, err);
    json_release(json);
    return status;
}

static void begin(struct state *state, const char *path)
{
    buf_clear(&state->path);
    buf_clear(&state->body);
    buf_append_text(&state->path, path);
}

/* A call of which only the ledger's word matters. */
static enum status tell(struct state *state, enum ledger_answer *answer, struct error *err)
{
    struct json *root;
    TRY(ask(state, true, answer, &root, err));
    json_release(root);
    return ST_OK;
}

/* ---- the calls ---- */

static void http_close(void *opaque)
{
    struct state *state = opaque;
    http_call_close(&state->http);
    json_release(state->keys);
    buf_free(&state->answer);
    buf_free(&state->path);
    buf_free(&state->body);
    mem_free(state);
}

static enum status http_init(void *opaque, const char *uuid, enum ledger_answer *answer, struct error *err)
{
    struct state *state = opaque;
    begin(state, "/admin/billing/ledger");
    buf_append_text(&state->body, "{\"uuid\":");
    buf_append_json_string(&state->body, uuid, strlen(uuid));
    buf_append_char(&state->body, '}');
    return tell(state, answer, err);
}

static enum status http_uuid(void *opaque, char uuid[LEDGER_UUID_CHARS + 1], struct error *err)
{
    struct state *state = opaque;
    struct json *root;
    size_t length = 0;
    begin(state, "/admin/billing/ledger");
    TRY(ask(state, false, NULL, &root, err));
    const char *text = json_to_text(json_member(root, "uuid"), &length);
    bool good = text && length <= LEDGER_UUID_CHARS;
    if (good) memcpy(uuid, text, length + 1);
    json_release(root);
    return good ? ST_OK : error_set(err, ST_PROTO, "%.100s answered without a uuid", state->base);
}

static enum status http_order(void *opaque, const struct order *order, enum ledger_answer *answer, struct error *err)
{
    struct state *state = opaque;
    begin(state, "/admin/billing/orders");
    bill_json_order(order, LEDGER_OK, &state->body);
    return tell(state, answer, err);
}

static enum status http_account_set(void *opaque, uint64_t account, const char *order_id, bool open,
                                    enum ledger_answer *answer, struct error *err)
{
    struct state *state = opaque;
    begin(state, "/admin/billing/accounts");
    buf_append_format(&state->body, "{\"account\":\"id:%" PRIu64 "\",\"open\":%s,\"order\":", account,
                      open ? "true" : "false");
    buf_append_json_string(&state->body, order_id, strlen(order_id));
    buf_append_char(&state->body, '}');
    return tell(state, answer, err);
}

static enum status http_reap(void *opaque, uint64_t account, uint64_t grace_ms, uint32_t *leases, uint32_t *packages,
                             enum ledger_answer *answer, struct error *err)
{
    struct state *state = opaque;
    struct json *root;
    begin(state, "/admin/billing/reap");
    buf_append_format(&state->body, "{\"account\":\"id:%" PRIu64 "\",\"grace_ms\":%" PRIu64 "}", account, grace_ms);
    TRY(ask(state, true, answer, &root, err));
    *leases = (uint32_t)json_to_int(json_member(root, "leases_ended"));
    *packages = (uint32_t)json_to_int(json_member(root, "packages_expired"));
    json_release(root);
    return ST_OK;
}

static enum status http_balance(void *opaque, uint64_t account, struct account_balance *balance, struct error *err)
{
    struct state *state = opaque;
    struct json *root;
    begin(state, "/admin/billing/accounts/");
    buf_append_format(&state->path, "id:%" PRIu64, account);
    TRY(ask(state, false, NULL, &root, err));
    enum status status = bill_read_balance(root, balance, err);
    json_release(root);
    return status;
}

static enum status http_month(void *opaque, uint64_t account, uint32_t month, struct month_total totals[MODEL_CLASSES],
                              uint32_t *count, struct error *err)
{
    struct state *state = opaque;
    struct json *root;
    begin(state, "/admin/billing/usage");
    buf_append_format(&state->path, "?account=id:%" PRIu64 "&month=%06" PRIu32, account, month);
    TRY(ask(state, false, NULL, &root, err));
    enum status status = bill_read_months(root, totals, count, err);
    json_release(root);
    return status;
}

static enum status http_marks(void *opaque, uint16_t partition,
                              void (*visit)(void *visitor, uint64_t producer, uint64_t epoch, uint64_t hwm,
                                            const char *hash8),
                              void *visitor, struct error *err)
{
    struct state *state = opaque;
    struct json *root;
    enum status status = ST_OK;
    begin(state, "/admin/billing/marks");
    buf_append_format(&state->path, "?partition=%u", (unsigned)partition);
    TRY(ask(state, false, NULL, &root, err));
    const struct json *data = json_member(root, "data");
    for (size_t i = 0; i < json_length(data) && status == ST_OK; i++) {
        const struct json *mark = json_at(data, i);
        size_t length = 0;
        uint64_t producer = 0;
        const char *text = json_to_text(json_member(mark, "producer"), &length);
        const char *hash8 = json_to_text(json_member(mark, "hash8"), NULL);
        bool good = text && length == 16 && hash8 && strlen(hash8) == HASH8_CHARS;
        for (size_t k = 0; good && k < length; k++) {
            const char *digits = "0123456789abcdef", *digit = strchr(digits, text[k]);
            good = digit && *digit;
            if (good) producer = producer << 4 | (uint64_t)(digit - digits);
        }
        if (good)
            visit(visitor, producer, (uint64_t)json_to_int(json_member(mark, "epoch")),
                  (uint64_t)json_to_int(json_member(mark, "hwm")), hash8);
        else
            status = error_set(err, ST_PROTO, "%.100s answered with a mark that is none", state->base);
    }
    json_release(root);
    return status;
}

/* visit NULL: only the version is wanted. */
static enum status http_directory_read(void *opaque, void (*visit)(void *visitor, const char *line, size_t length),
                                       void *visitor, uint64_t *version, struct error *err)
{
    struct state *state = opaque;
    struct json *root;
    begin(state, "/admin/billing/directory");
    TRY(ask(state, false, NULL, &root, err));
    const struct json *lines = json_member(root, "lines");
    for (size_t i = 0; visit && i < json_length(lines); i++) {
        size_t length = 0;
        const char *line = json_to_text(json_at(lines, i), &length);
        if (line) visit(visitor, line, length);
    }
    *version = (uint64_t)json_to_int(json_member(root, "version"));
    json_release(root);
    return ST_OK;
}

static enum status http_directory_version(void *opaque, uint64_t *version, struct error *err)
{
    return http_directory_read(opaque, NULL, NULL, version, err);
}

static enum status http_directory_put(void *opaque, const char *id, const char *line, struct error *err)
{
    struct state *state = opaque;
    struct json *root;
    begin(state, "/admin/billing/directory");
    buf_append_text(&state->body, "{\"id\":");
    buf_append_json_string(&state->body, id, strlen(id));
    buf_append_text(&state->body, ",\"line\":");
    buf_append_json_string(&state->body, line, strlen(line));
    buf_append_char(&state->body, '}');
    TRY(ask(state, true, NULL, &root, err));
    json_release(root);
    return ST_OK;
}

/* Of the server's own list of keys, which is read once for all of them; only to look. */
static enum status http_budget(void *opaque, const struct budget_ask *question, struct budget_answer *answer,
                               struct error *err)
{
    struct state *state = opaque;
    char id[24];
    *answer = (struct budget_answer){0};
    if (!question->look) return error_set(err, ST_INVAL, "only a node takes units of a budget");
    begin(state, "/admin/billing/keys");
    if (!state->keys) TRY(ask(state, false, NULL, &state->keys, err));
    (void)snprintf(id, sizeof id, "k:%016" PRIx64, question->key);
    const struct json *rows = json_member(state->keys, "data");
    for (size_t i = 0; i < json_length(rows); i++) {
        const char *text = json_to_text(json_member(json_at(rows, i), "id"), NULL);
        int64_t taken = json_to_int(json_member(json_member(json_at(rows, i), "budget"), "taken_units"));
        if (text && strcmp(text, id) == 0 && taken > 0) answer->others = (uint64_t)taken;
    }
    return ST_OK;
}

static const struct ledger_client_calls calls = {
    .close = http_close,
    .init = http_init,
    .uuid = http_uuid,
    .order = http_order,
    .account_set = http_account_set,
    .reap = http_reap,
    .balance = http_balance,
    .month = http_month,
    .marks = http_marks,
    .directory_version = http_directory_version,
    .directory_read = http_directory_read,
    .directory_put = http_directory_put,
    .budget = http_budget,
};

enum status ledger_http_open(const char *base, const char *admin_key, const char *ca_file, struct ledger_client *client,
                             struct error *err)
{
    struct state *state = mem_alloc(1, sizeof *state);
    if (!state) return error_set(err, ST_NOMEM, "%s", status_text(ST_NOMEM));
    enum status status = http_call_open(&state->http, err);
    if (status != ST_OK) {
        mem_free(state);
        return status;
    }
    state->http.bearer = admin_key;
    state->http.ca_file = ca_file;
    state->base = base;
    buf_init(&state->answer, 0);
    buf_init(&state->path, 0);
    buf_init(&state->body, 0);
    *client = (struct ledger_client){&calls, state};
    return ST_OK;
}
