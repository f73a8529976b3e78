/* Accounts, keys, packages: init, account, key, topup, void, balance, reap; see bill.h. What an order changes, and that
 * it does so once, is the ledger's: an order is sent as often as its answer is lost. */
#include "server/billing/bill.h"

#include "runtime/base/json.h"
#include "runtime/base/mem.h"
#include "runtime/base/random.h"
#include "server/billing/bill_directory.h"
#include "server/billing/bill_json.h"
#include "server/billing/bill_text.h"

#include <inttypes.h>
#include <string.h>

enum { TRIES = 3 /* of an order whose answer was lost */ };

static int64_t now_ms(const struct bill *bill)
{
    return clock_unix_ms(bill->clock);
}

/* A refusal of the ledger as the command's end. */
static enum status answered(struct bill *bill, enum ledger_answer answer, const char *what, int *exit_code,
                            struct error *err)
{
    bool good = answer == LEDGER_OK || answer == LEDGER_DUP;
    *exit_code = good ? BILL_DONE : BILL_REFUSED;
    if (!good)
        return error_set(err, ST_INVAL, "%s: %s (%s)", what, bill_answer_text(answer), ledger_answer_name(answer));
    if (!bill->options->json) buf_append_format(bill->out, "%s: %s\n", what, bill_answer_text(answer));
    return ST_OK;
}

/* ---- init ---- */

static enum status check_uuid(const char *text, struct error *err)
{
    size_t length = strlen(text);
    for (size_t i = 0; i < length && length == LEDGER_UUID_CHARS; i++) {
        bool dash = i == 8 || i == 13 || i == 18 || i == 23;
        if (dash ? text[i] != '-' : !strchr("0123456789abcdef", text[i])) length = 0;
    }
    if (length == LEDGER_UUID_CHARS) return ST_OK;
    return error_set(err, ST_INVAL, "--uuid: \"%.40s\" is none; it looks like 01234567-89ab-4cde-8f01-23456789abcd",
                     text);
}

enum status bill_init(struct bill *bill, int *exit_code, struct error *err)
{
    char uuid[LEDGER_UUID_CHARS + 1], there[LEDGER_UUID_CHARS + 1];
    enum ledger_answer answer = LEDGER_OK;
    const char *wanted = bill->options->uuid;
    if (wanted) TRY((*exit_code = BILL_USAGE_ERROR, check_uuid(wanted, err)));
    *exit_code = BILL_REFUSED;
    if (wanted)
        memcpy(uuid, wanted, sizeof uuid);
    else
        random_uuid(uuid);
    enum status status = bill_open_ledger(bill, err);
    if (status == ST_NOTFOUND && bill->options->journal) { /* a folder without a journal gets one */
        bill->new_uuid = uuid;
        status = bill_open_ledger(bill, err);
    }
    TRY(status);
    TRY(bill->ledger.calls->uuid(bill->ledger.state, there, err));
    if (there[0] && !wanted && !bill->new_uuid)
        return error_set(err, ST_INVAL, "there is a ledger already: %s; nothing was changed", there);
    TRY(bill->ledger.calls->init(bill->ledger.state, uuid, &answer, err));
    if (!bill->new_uuid) TRY(answered(bill, answer, uuid, exit_code, err));
    if (bill->new_uuid && !bill->options->json)
        buf_append_format(bill->out, "%s: a new ledger, its journal is in %s\n", uuid, bill->options->journal);
    *exit_code = BILL_DONE;
    if (bill->options->json)
        buf_append_format(bill->out, "{\"object\":\"billing.ledger\",\"uuid\":\"%s\",\"answer\":\"%s\"}\n", uuid,
                          ledger_answer_name(answer));
    return ST_OK;
}

/* ---- lists of accounts and keys, as tables ---- */

static const char *text_of(const struct json *object, const char *name)
{
    const char *text = json_to_text(json_member(object, name), NULL);
    return text ? text : "";
}

static void limit_cell(struct bill_table *table, const struct json *object, const char *name)
{
    int64_t limit = json_to_int(json_member(object, name));
    if (limit > 0) bill_append_number(&table->cells, (uint64_t)limit);
    bill_table_end(table);
}

/* "1M a month" and what was taken of it, in tokens. */
static void budget_cells(struct bill_table *table, const struct json *budget)
{
    const char *period = text_of(budget, "period");
    if (*period) {
        bill_append_tokens(&table->cells, (uint64_t)json_to_int(json_member(budget, "units")));
        buf_append_format(&table->cells, strcmp(period, "total") ? " a %s" : " in %s", period);
    }
    bill_table_end(table);
    if (*period) bill_append_tokens(&table->cells, (uint64_t)json_to_int(json_member(budget, "taken_units")));
    bill_table_end(table);
}

static void print_rows(const struct json *data, bool keys, struct buf *out)
{
    static const char *const key_heads[] = {"key id", "account",  "label",   "state",  ">rpm",
                                            ">tpm",   ">at once", ">budget", ">taken", "created"};
    static const char *const account_heads[] = {"account", "tenant", "state", ">rpm", ">tpm", ">at once", "created"};
    struct bill_table table;
    if (keys)
        bill_table_init(&table, key_heads, 10);
    else
        bill_table_init(&table, account_heads, 7);
    for (size_t i = 0; i < json_length(data); i++) {
        const struct json *row = json_at(data, i);
        if (keys) bill_table_text(&table, text_of(row, "id"));
        bill_table_text(&table, text_of(row, "account"));
        bill_table_text(&table, text_of(row, keys ? "label" : "tenant"));
        if (keys)
            bill_table_text(&table, json_to_bool(json_member(row, "active")) ? "active" : "revoked");
        else
            bill_table_text(&table, json_to_bool(json_member(row, "open")) ? "open" : "closed");
        limit_cell(&table, row, "rpm");
        limit_cell(&table, row, "tpm");
        limit_cell(&table, row, "concurrency");
        if (keys) budget_cells(&table, json_member(row, "budget"));
        bill_table_text(&table, text_of(row, "created"));
    }
    bill_table_print(&table, out);
    bill_table_free(&table);
}

static enum status list(struct bill *bill, bool keys, const char *account, struct error *err)
{
    struct buf text;
    struct json *root = NULL;
    buf_init(&text, 0);
    enum status status = bill_directory_list(&bill->ledger, keys, account, bill->options->utc_offset_s, &text, err);
    if (status == ST_OK) status = json_read(text.data ? text.data : "", text.length, &root, err);
    if (status == ST_OK && bill->options->json) {
        buf_append(bill->out, text.data, text.length);
        buf_append_char(bill->out, '\n');
    } else if (status == ST_OK) {
        print_rows(json_member(root, "data"), keys, bill->out);
    }
    json_release(root);
    buf_free(&text);
    return status;
}

/* ---- balance ---- */

static void time_cell(struct bill_table *table, uint64_t unix_ms, const char *none)
{
    if (unix_ms == 0)
        buf_append_text(&table->cells, none);
    else
        bill_append_time_ms(&table->cells, (int64_t)unix_ms);
    bill_table_end(table);
}

static void print_packages(const struct account_balance *balance, struct buf *out)
{
    static const char *const heads[] = {"package",  ">granted",  ">available", ">leased", ">used",
                                        ">expired", ">priority", "classes",    "from",    "until"};
    struct bill_table table;
    struct package_balance sum = {.id = "total"};
    bill_table_init(&table, heads, 10);
    table.rules = 1;
    for (uint32_t i = 0; i <= balance->packages_count; i++) {
        bool last = i == balance->packages_count;
        const struct package_balance *package = last ? &sum : &balance->packages[i];
        bill_table_text(&table, package->id);
        bill_table_tokens(&table, package->granted);
        bill_table_tokens(&table, package->free);
        bill_table_tokens(&table, package->leased);
        bill_table_tokens(&table, package->used);
        bill_table_tokens(&table, package->expired);
        if (last) {
            for (int k = 0; k < 4; k++) bill_table_text(&table, "");
            break;
        }
        bill_table_number(&table, package->priority);
        bill_append_classes(&table.cells, package->class_mask);
        bill_table_end(&table);
        time_cell(&table, package->effective_ms, "at once");
        time_cell(&table, package->expires_ms, "for ever");
        sum.granted += package->granted;
        sum.free += package->free;
        sum.leased += package->leased;
        sum.used += package->used;
        sum.expired += package->expired;
    }
    bill_table_print(&table, out);
    bill_table_free(&table);
}

static void print_balance(const struct account_balance *balance, const char *name, struct buf *out)
{
    buf_append_format(out, "account %s: %s; amounts in tokens\n", name,
                      !balance->known ? "the ledger has seen neither an order nor a record of it"
                      : balance->open ? "open"
                                      : "closed");
    if (!balance->known) return;
    print_packages(balance, out);
    buf_append_text(out, "used in all: ");
    bill_append_tokens(out, balance->used);
    buf_append_text(out, ", of it paid by no package: ");
    bill_append_tokens(out, balance->overage);
    buf_append_char(out, '\n');
}

static enum status show_balance(struct bill *bill, const char *name, struct error *err)
{
    uint64_t account;
    TRY(bill_account(name, &account, err));
    struct account_balance *balance = mem_alloc(1, sizeof *balance);
    if (!balance) return error_set(err, ST_NOMEM, "%s", status_text(ST_NOMEM));
    struct directory *directory = NULL;
    enum status status = bill->ledger.calls->balance(bill->ledger.state, account, balance, err);
    if (strncmp(name, "id:", 3) == 0 && bill_directory_read(&bill->ledger, &directory, NULL) == ST_OK) {
        const struct directory_account *known = directory_find_account(directory, account);
        if (known) name = known->name;
    }
    if (status == ST_OK && bill->options->json) {
        bill_json_balance(balance, strncmp(name, "id:", 3) == 0 ? NULL : name, bill->out);
        buf_append_char(bill->out, '\n');
    } else if (status == ST_OK) {
        print_balance(balance, name, bill->out);
    }
    directory_destroy(directory);
    mem_free(balance);
    return status;
}

enum status bill_balance(struct bill *bill, int *exit_code, struct error *err)
{
    TRY(bill_open_ledger(bill, err));
    for (uint32_t i = 0; i < bill->options->names_count; i++) {
        if (i > 0 && !bill->options->json) buf_append_char(bill->out, '\n');
        TRY(show_balance(bill, bill->options->names[i], err));
    }
    *exit_code = BILL_DONE;
    return ST_OK;
}

/* ---- account, key ---- */

static enum status set_open(struct bill *bill, const char *name, bool open, int *exit_code, struct error *err)
{
    enum ledger_answer answer = LEDGER_OK;
    uint64_t account;
    char order[ORDER_ID_MAX + 1];
    TRY(bill_account(name, &account, err));
    TRY(bill_copy_id(bill->options->order, "order's id", "_.:-", order, sizeof order, err));
    enum status status = ST_IO;
    for (int i = 0; i < TRIES && (status == ST_IO || status == ST_TIMEOUT); i++)
        status = bill_account_set(&bill->ledger, account, order, open, &answer, err);
    TRY(status);
    TRY(answered(bill, answer, name, exit_code, err));
    if (bill->options->json)
        buf_append_format(bill->out,
                          "{\"object\":\"billing.answer\",\"account\":\"%s\",\"open\":%s,\"answer\":\"%s\"}\n", name,
                          open ? "true" : "false", ledger_answer_name(answer));
    return ST_OK;
}

static enum status create_account(struct bill *bill, const char *name, struct error *err)
{
    struct buf text;
    buf_init(&text, 0);
    enum status status = bill_account_create(&bill->ledger, name, bill->options->tenant, now_ms(bill), &text, err);
    if (status == ST_OK && bill->options->json) {
        buf_append(bill->out, text.data, text.length);
        buf_append_char(bill->out, '\n');
    } else if (status == ST_OK) {
        buf_append_format(bill->out,
                          "account %s: there; next: \"bill key create --account %s\" and \"bill topup %s\"\n", name,
                          name, name);
    }
    buf_free(&text);
    return status;
}

enum status bill_account_verb(struct bill *bill, int *exit_code, struct error *err)
{
    const struct bill_options *options = bill->options;
    bool open = !strcmp(options->verb, "open"), close = !strcmp(options->verb, "close");
    if ((open || close) && !options->order) {
        *exit_code = BILL_USAGE_ERROR;
        return error_set(err, ST_INVAL, "--order ID is needed: the same id again changes nothing");
    }
    TRY(bill_open_ledger(bill, err));
    *exit_code = BILL_DONE;
    enum status status = !strcmp(options->verb, "list") ? list(bill, false, "", err) : ST_OK;
    for (uint32_t i = 0; i < options->names_count && status == ST_OK; i++) {
        if (open || close)
            status = set_open(bill, options->names[i], open, exit_code, err);
        else if (!strcmp(options->verb, "create"))
            status = create_account(bill, options->names[i], err);
        else
            status = show_balance(bill, options->names[i], err);
    }
    if (status != ST_OK) *exit_code = BILL_REFUSED;
    return status;
}

/* A new key is shown; that is the only time. */
static void print_key(const struct bill *bill, const struct buf *text, const struct json *root)
{
    const char *key = text_of(root, "key");
    if (bill->options->json) {
        buf_append(bill->out, text->data, text->length);
        buf_append_char(bill->out, '\n');
    } else if (*key) {
        buf_append_format(bill->out, "%s\n", key);
        buf_append_format(bill->note,
                          "This is the key %s of account %s. It is shown this once: only its hash is kept.\n",
                          text_of(root, "id"), text_of(root, "account"));
    } else {
        buf_append_format(bill->out, "%s of account %s: %s\n", text_of(root, "id"), text_of(root, "account"),
                          json_to_bool(json_member(root, "active")) ? "active" : "revoked");
    }
}

enum status bill_key_verb(struct bill *bill, int *exit_code, struct error *err)
{
    const struct bill_options *options = bill->options;
    struct bill_key_change change = {.id = options->names_count ? options->names[0] : NULL,
                                     .account = options->account,
                                     .label = options->label,
                                     .revoke = !strcmp(options->verb, "revoke"),
                                     .rpm = options->rpm,
                                     .tpm = options->tpm,
                                     .concurrency = options->concurrency,
                                     .rpm_given = options->rpm_given,
                                     .tpm_given = options->tpm_given,
                                     .concurrency_given = options->concurrency_given,
                                     .budget_given = options->budget_given,
                                     .budget_units = options->budget_units,
                                     .budget_period = options->budget_period,
                                     .now_ms = now_ms(bill)};
    if (options->rpm > UINT32_MAX || options->concurrency > UINT32_MAX) {
        *exit_code = BILL_USAGE_ERROR;
        return error_set(err, ST_INVAL, "--rpm and --concurrency are at most %" PRIu32, UINT32_MAX);
    }
    TRY(bill_open_ledger(bill, err));
    *exit_code = BILL_DONE;
    struct buf text;
    struct json *root = NULL;
    enum status status;
    buf_init(&text, 0);
    if (!strcmp(options->verb, "list")) {
        status = list(bill, true, options->account ? options->account : "", err);
    } else {
        status = bill_key_set(&bill->ledger, &change, &text, err);
        if (status == ST_OK) status = json_read(text.data ? text.data : "", text.length, &root, err);
        if (status == ST_OK) print_key(bill, &text, root);
    }
    if (text.data) memset(text.data, 0, text.capacity);
    json_release(root);
    buf_free(&text);
    if (status != ST_OK) *exit_code = BILL_REFUSED;
    return status;
}

/* ---- topup, void, reap ---- */

static enum status make_order(const struct bill *bill, struct order *order, struct error *err)
{
    const struct bill_options *options = bill->options;
    bool voids = options->command == BILL_VOID;
    *order = (struct order){.op = voids               ? PACKAGE_VOID
                                  : options->increase ? PACKAGE_INCREASE
                                                      : PACKAGE_ADD,
                            .units = options->units,
                            .priority = options->priority,
                            .effective_ms = (uint64_t)options->effective_ms,
                            .expires_ms = (uint64_t)options->expires_ms,
                            .created_ms = (uint64_t)now_ms(bill),
                            .class_mask = options->classes};
    if (!options->order)
        return error_set(err, ST_INVAL,
                         "--order ID is needed: your own id of this order; the same id again never counts twice");
    TRY(bill_copy_id(options->order, "order's id", "_.:-", order->id, sizeof order->id, err));
    TRY(bill_account(options->names[0], &order->account, err));
    if (!voids && !options->units_given) return error_set(err, ST_INVAL, "--tokens N is needed: how many");
    if (options->package)
        TRY(bill_copy_id(options->package, "package", "_-", order->package, sizeof order->package, err));
    if (!order->class_mask) TRY(bill_parse_classes("all", &order->class_mask, err));
    return bill_order_check(order, err);
}

/* A package for a misspelt name would be nobody's. Tenants of a key file need no line in the directory: --force. */
static enum status check_listed(struct bill *bill, uint64_t account, struct error *err)
{
    struct directory *directory;
    const char *name = bill->options->names[0];
    TRY(bill_directory_read(&bill->ledger, &directory, err));
    bool listed = directory_find_account(directory, account) != NULL;
    directory_destroy(directory);
    if (listed) return ST_OK;
    if (!bill->options->force)
        return error_set(
            err, ST_NOTFOUND,
            "there is no account %.80s; make it with \"millrace bill account create NAME\", or give --force "
            "if it is a tenant of a key file",
            name);
    buf_append_format(bill->note,
                      "account %s is not in the directory; only a tenant of that name in a key file uses it\n", name);
    return ST_OK;
}

enum status bill_topup(struct bill *bill, int *exit_code, struct error *err)
{
    struct order order;
    enum ledger_answer answer = LEDGER_OK;
    *exit_code = BILL_USAGE_ERROR;
    TRY(make_order(bill, &order, err));
    *exit_code = BILL_REFUSED;
    TRY(bill_open_ledger(bill, err));
    if (order.op != PACKAGE_VOID) TRY(check_listed(bill, order.account, err));
    enum status status = ST_IO;
    for (int i = 0; i < TRIES && (status == ST_IO || status == ST_TIMEOUT); i++)
        status = bill->ledger.calls->order(bill->ledger.state, &order, &answer, err);
    if (status == ST_IO || status == ST_TIMEOUT) {
        struct error reason = *err;
        return error_set(err, status,
                         "it is not known whether the order counts: repeat it with the same --order (%.300s)",
                         reason.message);
    }
    TRY(status);
    TRY(answered(bill, answer, order.id, exit_code, err));
    if (bill->options->json) {
        bill_json_order(&order, answer, bill->out);
        buf_append_char(bill->out, '\n');
    } else {
        buf_append_format(bill->out, "package %s of account %s", order.package, bill->options->names[0]);
        if (order.op != PACKAGE_VOID) {
            buf_append_text(bill->out, order.op == PACKAGE_ADD ? ": tokens granted: " : ": tokens added: ");
            bill_append_tokens(bill->out, order.units);
        }
        buf_append_char(bill->out, '\n');
    }
    return ST_OK;
}

enum status bill_reap(struct bill *bill, int *exit_code, struct error *err)
{
    TRY(bill_open_ledger(bill, err));
    for (uint32_t i = 0; i < bill->options->names_count; i++) {
        const char *name = bill->options->names[i];
        enum ledger_answer answer = LEDGER_OK;
        uint64_t account;
        uint32_t leases = 0, packages = 0;
        TRY(bill_account(name, &account, err));
        TRY(bill->ledger.calls->reap(bill->ledger.state, account, bill->options->grace_s * 1000, &leases, &packages,
                                     &answer, err));
        TRY(answered(bill, answer, name, exit_code, err));
        if (bill->options->json)
            buf_append_format(bill->out,
                              "{\"object\":\"billing.reap\",\"account\":\"%s\",\"leases_ended\":%" PRIu32
                              ",\"packages_expired\":%" PRIu32 "}\n",
                              name, leases, packages);
        else
            buf_append_format(bill->out, "leases ended: %" PRIu32 ", packages expired: %" PRIu32 "\n", leases,
                              packages);
    }
    *exit_code = BILL_DONE;
    return ST_OK;
}
