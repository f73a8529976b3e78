/* millrace bill probe: sends known requests and checks the bill; see bill.h.
 *
 *   sums of the ledger -> requests of several shapes, each counted by what its answer says -> sums of the ledger
 *
 * What a client was told it used must be what was billed, request by request added up: fewer records are lost ones,
 * more are double ones. One request is sent twice under one Idempotency-Key and must be billed once. The account must
 * be nobody else's meanwhile. Answers are read for their usage alone and dropped. */
#include "server/billing/bill.h"

#include "runtime/base/json.h"
#include "runtime/base/random.h"
#include "server/billing/bill_json.h"
#include "server/billing/bill_text.h"
#include "server/http_call.h"

#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

enum { PROBES_MAX = 100000, SETTLE_S = 30, LOOK_MS = 50, SHAPES = 5 };

struct sums {
    uint64_t records, in_total, in_hit, out, waived;
};

struct probe {
    struct bill *bill;
    struct http_call http;
    char model[MODEL_NAME_MAX + 1];
    char secret[BILL_SECRET_BYTES_MAX];
    uint64_t account, nonce;
    uint32_t month;
    struct buf answer, body;
    struct sums told;   /* by answers */
    uint64_t refused;   /* answers without usage */
    uint64_t different; /* a repeated request that was not answered from the first */
};

/* ---- the ledger's side ---- */

static enum status read_sums(struct probe *probe, struct sums *sums, struct error *err)
{
    struct month_total totals[MODEL_CLASSES];
    const struct ledger_client *client = &probe->bill->ledger;
    uint32_t count, now = record_month(clock_unix_us(probe->bill->clock), probe->bill->options->utc_offset_s);
    *sums = (struct sums){.records = 0};
    for (uint32_t month = probe->month;; month = now) { /* and the next one, when it turns meanwhile */
        TRY(client->calls->month(client->state, probe->account, month, totals, &count, err));
        for (uint32_t i = 0; i < count; i++) {
            sums->records += totals[i].records;
            sums->in_total += totals[i].in_miss + totals[i].in_hit;
            sums->in_hit += totals[i].in_hit;
            sums->out += totals[i].out;
            sums->waived += totals[i].waived_records;
        }
        if (month == now) return ST_OK;
    }
}

static struct sums minus(const struct sums *a, const struct sums *b)
{
    return (struct sums){a->records - b->records, a->in_total - b->in_total, a->in_hit - b->in_hit, a->out - b->out,
                         a->waived - b->waived};
}

static bool equal(const struct sums *a, const struct sums *b)
{
    return a->records == b->records && a->in_total == b->in_total && a->in_hit == b->in_hit && a->out == b->out &&
           a->waived == b->waived;
}

/* Until the ledger says what the answers said and stays so for a second, or half a minute has passed. */
static enum status settle(struct probe *probe, const struct sums *before, struct sums *billed, struct error *err)
{
    uint64_t start_ns = clock_now_ns(probe->bill->clock), equal_ns = 0;
    for (;;) {
        struct sums now;
        TRY(read_sums(probe, &now, err));
        *billed = minus(&now, before);
        uint64_t now_ns = clock_now_ns(probe->bill->clock);
        if (!equal(billed, &probe->told))
            equal_ns = 0;
        else if (!equal_ns)
            equal_ns = now_ns;
        if ((equal_ns && now_ns - equal_ns > NS_PER_S) || now_ns - start_ns > SETTLE_S * NS_PER_S) return ST_OK;
        (void)poll(NULL, 0, LOOK_MS);
    }
}

/* ---- the client's side ---- */

static void add_usage(struct probe *probe, const struct json *usage)
{
    const struct json *details = json_member(usage, "prompt_tokens_details");
    probe->told.records++;
    probe->told.in_total += (uint64_t)json_to_int(json_member(usage, "prompt_tokens"));
    probe->told.in_hit += (uint64_t)json_to_int(json_member(details, "cached_tokens"));
    probe->told.out += (uint64_t)json_to_int(json_member(usage, "completion_tokens"));
}

/* The usage of an answer, or of the event of a stream that has it. */
static bool read_usage(struct probe *probe, const char *text, size_t length)
{
    struct json *root = NULL;
    bool found = false;
    if (json_read(text, length, &root, NULL) == ST_OK) {
        const struct json *usage = json_member(root, "usage");
        found = json_kind(usage) == JSON_KIND_OBJECT;
        if (found) add_usage(probe, usage);
    }
    json_release(root);
    return found;
}

static bool read_answer(struct probe *probe, bool stream)
{
    const char *at = probe->answer.data, *end = at + probe->answer.length;
    if (!stream) return at && read_usage(probe, at, probe->answer.length);
    while (at && at < end) {
        const char *stop = memchr(at, '\n', (size_t)(end - at));
        size_t length = (size_t)((stop ? stop : end) - at);
        if (length > 6 && memcmp(at, "data: ", 6) == 0 && read_usage(probe, at + 6, length - 6)) return true;
        at = stop ? stop + 1 : end;
    }
    return false;
}

/* Shapes: plain chat, stream, several choices, a stop string, a prompt that the cache may know. Prompts differ by a
 * nonce, so that only what is meant to repeat does. */
static void write_body(struct probe *probe, uint32_t number)
{
    struct buf *body = &probe->body;
    uint32_t shape = number % SHAPES;
    buf_clear(body);
    buf_append_text(body, "{\"model\":");
    buf_append_json_string(body, probe->model, strlen(probe->model));
    buf_append_format(body, ",\"max_tokens\":%" PRIu32 ",\"seed\":%" PRIu32 ",\"messages\":[{\"role\":\"user\",",
                      8 + number % 9, number);
    buf_append_format(body, "\"content\":\"Count from %" PRIu64 " to twenty, please: one, two, three.\"}]",
                      shape == 4 ? probe->nonce : probe->nonce + number);
    if (shape == 1) buf_append_text(body, ",\"stream\":true,\"stream_options\":{\"include_usage\":true}");
    if (shape == 2) buf_append_text(body, ",\"n\":2");
    if (shape == 3) buf_append_text(body, ",\"stop\":[\"e\"]");
    buf_append_text(body, "}");
    buf_append_char(body, '\0');
}

static enum status send_one(struct probe *probe, uint32_t number, const char *key, struct error *err)
{
    int http_status;
    write_body(probe, number);
    if (!buf_ok(&probe->body)) return error_set(err, ST_NOMEM, "%s", status_text(ST_NOMEM));
    probe->http.idempotency_key = key;
    TRY(http_call_run(&probe->http, probe->bill->options->names[0], "/v1/chat/completions", probe->body.data,
                      &http_status, &probe->answer, err));
    if (http_status == 200 && read_answer(probe, number % SHAPES == 1)) return ST_OK;
    if (http_status == 401 || http_status == 402 || http_status == 403 || http_status == 404)
        return error_set(err, ST_INVAL,
                         "the server refuses a request with status %d: look at the key, its account's balance and the "
                         "model's name",
                         http_status);
    probe->refused++;
    return ST_OK;
}

/* Twice under one key: the second is answered from the first and adds nothing to the bill. */
static enum status send_twice(struct probe *probe, struct error *err)
{
    char key[40];
    struct sums first;
    (void)snprintf(key, sizeof key, "probe-%016" PRIx64, probe->nonce);
    TRY(send_one(probe, 0, key, err));
    first = probe->told;
    TRY(send_one(probe, 0, key, err));
    struct sums second = minus(&probe->told, &first);
    probe->told = first;
    if (second.records != 1) probe->different++;
    return ST_OK;
}

/* The first model that the server names. */
static enum status find_model(struct probe *probe, struct error *err)
{
    int http_status;
    struct json *root = NULL;
    if (probe->bill->options->model)
        return bill_copy_id(probe->bill->options->model, "model", "-_.@/:+ ", probe->model, sizeof probe->model, err);
    TRY(http_call_run(&probe->http, probe->bill->options->names[0], "/v1/models", NULL, &http_status, &probe->answer,
                      err));
    enum status status = ST_PROTO;
    if (http_status == 200 && probe->answer.data)
        status = json_read(probe->answer.data, probe->answer.length, &root, NULL);
    size_t length = 0;
    const char *id = json_to_text(json_member(json_at(json_member(root, "data"), 0), "id"), &length);
    bool good = status == ST_OK && id && length < sizeof probe->model;
    if (good) memcpy(probe->model, id, length + 1);
    json_release(root);
    return good ? ST_OK
                : error_set(err, ST_INVAL, "%.200s names no model (status %d): is it the API's URL, and the key right?",
                            probe->bill->options->names[0], http_status);
}

/* ---- the verdict ---- */

static void print(const struct probe *probe, const struct sums *billed, struct buf *out)
{
    static const char *const heads[] = {"what", ">told to the client", ">billed"};
    const struct sums *told = &probe->told;
    uint64_t lost = told->records > billed->records ? told->records - billed->records : 0;
    uint64_t doubled = billed->records > told->records ? billed->records - told->records : 0;
    bool same = equal(told, billed) && probe->different == 0;
    if (probe->bill->options->json) {
        buf_append_format(out,
                          "{\"object\":\"billing.probe\",\"equal\":%s,\"lost\":%" PRIu64 ",\"double\":%" PRIu64
                          ",\"without_usage\":%" PRIu64 ",\"not_idempotent\":%" PRIu64,
                          same ? "true" : "false", lost, doubled, probe->refused, probe->different);
        for (int i = 0; i < 2; i++) {
            const struct sums *sums = i ? billed : told;
            buf_append_format(out,
                              ",\"%s\":{\"num_model_requests\":%" PRIu64 ",\"input_tokens\":%" PRIu64
                              ",\"input_cached_tokens\":%" PRIu64 ",\"output_tokens\":%" PRIu64
                              ",\"waived_model_requests\":%" PRIu64 "}",
                              i ? "billed" : "told", sums->records, sums->in_total, sums->in_hit, sums->out,
                              sums->waived);
        }
        buf_append_text(out, "}\n");
        return;
    }
    const struct {
        const char *name;
        uint64_t told, billed;
    } rows[] = {{"requests", told->records, billed->records},
                {"input tokens", told->in_total, billed->in_total},
                {"of it cached", told->in_hit, billed->in_hit},
                {"output tokens", told->out, billed->out},
                {"waived requests", told->waived, billed->waived}};
    struct bill_table table;
    bill_table_init(&table, heads, 3);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        bill_table_text(&table, rows[i].name);
        bill_table_number(&table, rows[i].told);
        bill_table_number(&table, rows[i].billed);
    }
    bill_table_print(&table, out);
    bill_table_free(&table);
    buf_append_format(
        out, "lost %" PRIu64 ", double %" PRIu64 ", without usage %" PRIu64 ", not idempotent %" PRIu64 ": %s\n", lost,
        doubled, probe->refused, probe->different, same ? "equal" : "NOT EQUAL");
}

static enum status run(struct probe *probe, int *exit_code, struct error *err)
{
    struct sums before, billed;
    TRY(find_model(probe, err));
    TRY(read_sums(probe, &before, err));
    for (uint32_t i = 1; i < probe->bill->options->count; i++) TRY(send_one(probe, i, NULL, err));
    TRY(send_twice(probe, err));
    TRY(settle(probe, &before, &billed, err));
    print(probe, &billed, probe->bill->out);
    *exit_code = equal(&probe->told, &billed) && probe->different == 0 ? BILL_DONE : BILL_DIFFERENT;
    return ST_OK;
}

enum status bill_probe(struct bill *bill, int *exit_code, struct error *err)
{
    const struct bill_options *options = bill->options;
    struct probe probe = {.bill = bill};
    *exit_code = BILL_USAGE_ERROR;
    if (!options->account) return error_set(err, ST_INVAL, "--account NAME is needed: whose key it is");
    if (options->count < 1 || options->count > PROBES_MAX)
        return error_set(err, ST_INVAL, "--count: 1 to %d", PROBES_MAX);
    TRY(bill_account(options->account, &probe.account, err));
    TRY(bill_secret(options->api_key_file, options->api_key, "an API key (MILLRACE_API_KEY or --api-key-file)",
                    probe.secret, err));
    *exit_code = BILL_REFUSED;
    TRY(bill_open_ledger(bill, err));
    TRY(http_call_open(&probe.http, err));
    random_fill(&probe.nonce, sizeof probe.nonce);
    probe.nonce >>= 12;
    probe.month = record_month(clock_unix_us(bill->clock), options->utc_offset_s);
    probe.http.bearer = probe.secret;
    probe.http.ca_file = options->ca_file;
    probe.http.timeout_ms = 300000;
    buf_init(&probe.answer, 0);
    buf_init(&probe.body, 0);
    enum status status = run(&probe, exit_code, err);
    buf_free(&probe.answer);
    buf_free(&probe.body);
    http_call_close(&probe.http);
    memset(probe.secret, 0, sizeof probe.secret);
    return status;
}
