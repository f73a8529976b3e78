/* Changes of the directory; see bill_directory.h. The whole directory is read for each: an operator's pace. */
#include "server/billing/bill_directory.h"

#include "runtime/base/mem.h"
#include "server/billing/bill_json.h"
#include "server/billing/bill_text.h"
#include "server/billing/directory.h"

#include <inttypes.h>
#include <string.h>

const char *bill_answer_text(enum ledger_answer answer)
{
    switch (answer) {
    case LEDGER_OK: return "done";
    case LEDGER_DUP: return "done before: the same order with the same terms; nothing was changed";
    case LEDGER_NOLEDGER: return "there is no ledger yet: make one with \"millrace bill init\"";
    case LEDGER_WRONGLEDGER: return "this is another ledger than the one that was expected";
    case LEDGER_FENCED: return "a younger process has taken over";
    case LEDGER_CONFLICT: return "this order id was used before with other terms; nothing was changed";
    case LEDGER_EXISTS: return "a package of that id is there already: name another, or add to it with --increase";
    case LEDGER_NOPACKAGE: return "the account has no package of that id";
    case LEDGER_EXPIRED: return "the package has expired";
    case LEDGER_LIMIT: return "a limit of the ledger was reached (packages of an account, or memory)";
    case LEDGER_BADARG: return "the ledger takes an argument for invalid";
    case LEDGER_BADSTATE: return "the ledger's state does not allow it, or would overflow; audit it";
    case LEDGER_GAP: return "records are missing in between";
    }
    return "";
}

/* ---- reading ---- */

struct reading {
    struct directory *directory;
    enum status status;
    struct error *err;
};

static void on_line(void *state, const char *line, size_t length)
{
    struct reading *reading = state;
    if (reading->status == ST_OK) reading->status = directory_add(reading->directory, line, length, reading->err);
}

enum status bill_directory_read(const struct ledger_client *client, struct directory **directory, struct error *err)
{
    uint64_t version;
    struct reading reading = {NULL, ST_OK, err};
    TRY(directory_create(&reading.directory));
    enum status status = client->calls->directory_read(client->state, on_line, &reading, &version, err);
    if (status == ST_OK) status = reading.status;
    if (status == ST_OK) status = directory_seal(reading.directory, err);
    if (status != ST_OK) {
        directory_destroy(reading.directory);
        return status;
    }
    *directory = reading.directory;
    return ST_OK;
}

static enum status put(const struct ledger_client *client, struct buf *line, const char *id, struct error *err)
{
    buf_append_char(line, '\0');
    enum status status = buf_ok(line) ? client->calls->directory_put(client->state, id, line->data, err)
                                      : error_set(err, ST_NOMEM, "%s", status_text(ST_NOMEM));
    buf_free(line);
    return status;
}

static enum status put_account(const struct ledger_client *client, const struct directory_account *account,
                               struct error *err)
{
    char id[DIRECTORY_ID_MAX + 1];
    struct buf line;
    buf_init(&line, 0);
    directory_account_line(account, &line, id);
    return put(client, &line, id, err);
}

static enum status put_key(const struct ledger_client *client, const struct directory_key *key, struct error *err)
{
    char id[DIRECTORY_ID_MAX + 1];
    struct buf line;
    buf_init(&line, 0);
    directory_key_line(key, &line, id);
    return put(client, &line, id, err);
}

/* ---- answers ---- */

/* taken: NULL: not asked for. */
static void append_budget(const struct key_budget *budget, const struct budget_answer *taken, struct buf *out)
{
    if (budget->units == 0) return;
    buf_append_format(out, ",\"budget\":{\"units\":%" PRIu64 ",\"period\":\"%s\"", budget->units,
                      budget_period_name(budget->period));
    if (taken) buf_append_format(out, ",\"taken_units\":%" PRIu64, taken->taken + taken->others);
    buf_append_char(out, '}');
}

static void append_limits(const struct key_limits *limits, int64_t created_ms, struct buf *out)
{
    buf_append_format(out, ",\"rpm\":%" PRIu32 ",\"tpm\":%" PRIu64 ",\"concurrency\":%" PRIu32 ",\"created\":\"",
                      limits->rpm, limits->tpm, limits->concurrency);
    bill_append_time_ms(out, created_ms);
    buf_append_text(out, "\"}");
}

static void append_account(const struct directory_account *account, struct buf *out)
{
    buf_append_format(out,
                      "{\"object\":\"billing.account\",\"account\":\"%s\",\"account_id\":\"id:%" PRIu64
                      "\",\"tenant\":\"%s\",\"open\":%s",
                      account->name, account->number, account->tenant, account->open ? "true" : "false");
    append_limits(&account->limits, account->created_ms, out);
}

/* text: the key itself, of a new one alone; else NULL. */
static void append_key(const struct directory_key *key, const char *text, const struct budget_answer *taken,
                       struct buf *out)
{
    buf_append_format(out, "{\"object\":\"billing.key\",\"id\":\"k:%016" PRIx64 "\"", key->number);
    if (text) buf_append_format(out, ",\"key\":\"%s\"", text);
    buf_append_format(out, ",\"account\":\"%s\",\"active\":%s,\"label\":", key->account_name,
                      key->active ? "true" : "false");
    buf_append_json_string(out, key->label, strlen(key->label));
    append_budget(&key->budget, taken, out);
    append_limits(&key->limits, key->created_ms, out);
}

static enum status append_key_row(const struct ledger_client *client, const struct directory_key *key,
                                  int32_t utc_offset_s, struct buf *out, struct error *err)
{
    const struct budget_ask ask = {
        .key = key->number, .budget = key->budget, .utc_offset_s = utc_offset_s, .look = true};
    struct budget_answer taken;
    if (key->budget.units > 0) TRY(client->calls->budget(client->state, &ask, &taken, err));
    append_key(key, NULL, key->budget.units > 0 ? &taken : NULL, out);
    return ST_OK;
}

enum status bill_directory_list(const struct ledger_client *client, bool keys, const char *account,
                                int32_t utc_offset_s, struct buf *out, struct error *err)
{
    struct directory *directory;
    bool more = false;
    enum status status = ST_OK;
    TRY(bill_directory_read(client, &directory, err));
    buf_append_text(out, "{\"object\":\"list\",\"data\":[");
    uint32_t count = keys ? directory_keys(directory) : directory_accounts(directory);
    for (uint32_t i = 0; i < count && status == ST_OK; i++) {
        const struct directory_key *key = keys ? directory_key_at(directory, i) : NULL;
        if (key && account[0] && strcmp(key->account_name, account) != 0) continue;
        if (more) buf_append_char(out, ',');
        more = true;
        if (key)
            status = append_key_row(client, key, utc_offset_s, out, err);
        else
            append_account(directory_account_at(directory, i), out);
    }
    buf_append_text(out, "]}");
    directory_destroy(directory);
    return status;
}

/* ---- changes ---- */

enum status bill_account_create(const struct ledger_client *client, const char *name, const char *tenant,
                                int64_t now_ms, struct buf *out, struct error *err)
{
    struct directory *directory;
    struct directory_account account = {.open = true, .created_ms = now_ms};
    if (!name) return error_set(err, ST_INVAL, "\"name\" must be the account's name");
    TRY(bill_copy_id(name, "account's name", "-_.@", account.name, sizeof account.name, err));
    TRY(bill_copy_id(tenant ? tenant : name, "tenant", "-_.@", account.tenant, sizeof account.tenant, err));
    account.number = account_number(name);
    TRY(bill_directory_read(client, &directory, err));
    const struct directory_account *there = directory_find_account(directory, account.number);
    enum status status = ST_OK;
    if (there && tenant && strcmp(there->tenant, tenant) != 0)
        status = error_set(err, ST_INVAL, "the account %s is there already, with tenant %s; a tenant does not change",
                           name, there->tenant);
    else if (there)
        account = *there;
    else
        status = put_account(client, &account, err);
    if (status == ST_OK) append_account(&account, out);
    directory_destroy(directory);
    return status;
}

static enum status read_open(const struct ledger_client *client, uint64_t account, bool *open, struct error *err)
{
    struct account_balance *balance = mem_alloc(1, sizeof *balance);
    if (!balance) return error_set(err, ST_NOMEM, "%s", status_text(ST_NOMEM));
    enum status status = client->calls->balance(client->state, account, balance, err);
    *open = balance->open;
    mem_free(balance);
    return status;
}

enum status bill_account_set(const struct ledger_client *client, uint64_t account, const char *order_id, bool open,
                             enum ledger_answer *answer, struct error *err)
{
    struct directory *directory;
    TRY(client->calls->account_set(client->state, account, order_id, open, answer, err));
    if (*answer != LEDGER_OK && *answer != LEDGER_DUP) return ST_OK;
    /* a repeated order must not undo a later one, and may be there because the first never got to the directory */
    if (*answer == LEDGER_DUP) TRY(read_open(client, account, &open, err));
    TRY(bill_directory_read(client, &directory, err));
    const struct directory_account *there = directory_find_account(directory, account);
    enum status status = ST_OK;
    if (there && there->open != open) {
        struct directory_account changed = *there;
        changed.open = open;
        status = put_account(client, &changed, err);
    }
    directory_destroy(directory);
    return status;
}

static enum status read_key_id(const char *text, uint64_t *number, struct error *err)
{
    uint64_t value = 0;
    const char *at = strncmp(text, "k:", 2) == 0 ? text + 2 : text;
    bool good = strlen(at) == 16;
    for (; good && *at; at++) {
        const char *digits = "0123456789abcdef", *digit = strchr(digits, *at);
        good = digit != NULL;
        if (good) value = value << 4 | (uint64_t)(digit - digits);
    }
    if (!good)
        return error_set(err, ST_INVAL,
                         "this is no key's id; \"key list\" shows them, like k:0123456789abcdef"
                         " (never give the key itself)");
    *number = value;
    return ST_OK;
}

static void set_limits(const struct bill_key_change *change, struct key_limits *limits)
{
    if (change->rpm_given) limits->rpm = (uint32_t)change->rpm;
    if (change->tpm_given) limits->tpm = change->tpm;
    if (change->concurrency_given) limits->concurrency = (uint32_t)change->concurrency;
}

static enum status set_label(const char *label, struct directory_key *key, struct error *err)
{
    size_t length = strlen(label);
    for (size_t i = 0; i < length; i++)
        if ((unsigned char)label[i] < 0x20) length = sizeof key->label;
    if (length >= sizeof key->label)
        return error_set(err, ST_INVAL, "a label has at most %d bytes and no control characters", KEY_LABEL_MAX);
    memcpy(key->label, label, length + 1);
    return ST_OK;
}

static enum status set_budget(const struct bill_key_change *change, struct key_budget *budget, struct error *err)
{
    enum budget_period period = budget->period == BUDGET_NONE ? BUDGET_MONTH : budget->period;
    if (change->budget_period && !budget_period_parse(change->budget_period, &period))
        return error_set(err, ST_INVAL, "a budget's period is day, month or total, not \"%.40s\"",
                         change->budget_period);
    if (change->budget_given) budget->units = change->budget_units;
    if (budget->units > BUDGET_UNITS_MAX)
        return error_set(err, ST_INVAL, "a budget is at most %" PRIu64 " tokens", BUDGET_UNITS_MAX / 1000000);
    if (change->budget_period && budget->units == 0)
        return error_set(err, ST_INVAL, "the period of a budget without its tokens");
    budget->period = budget->units > 0 ? period : BUDGET_NONE;
    return ST_OK;
}

static enum status make_key(const struct ledger_client *client, const struct directory *directory,
                            const struct bill_key_change *change, struct buf *out, struct error *err)
{
    char text[KEY_TEXT_CHARS + 1];
    struct directory_key key = {.active = true, .created_ms = change->now_ms};
    if (!change->account) return error_set(err, ST_INVAL, "name the account that pays for the key");
    TRY(bill_copy_id(change->account, "account's name", "-_.@", key.account_name, sizeof key.account_name, err));
    if (!directory_find_account(directory, account_number(key.account_name)))
        return error_set(err, ST_NOTFOUND, "there is no account %s; make it with \"bill account create\"",
                         key.account_name);
    key_make(text);
    key_hash(text, strlen(text), key.hash);
    key.number = key_number(key.hash);
    set_limits(change, &key.limits);
    if (change->label) TRY(set_label(change->label, &key, err));
    TRY(set_budget(change, &key.budget, err));
    TRY(put_key(client, &key, err));
    append_key(&key, text, NULL, out);
    return ST_OK;
}

static enum status change_key(const struct ledger_client *client, const struct directory *directory,
                              const struct bill_key_change *change, struct buf *out, struct error *err)
{
    uint64_t number = 0;
    TRY(read_key_id(change->id, &number, err));
    for (uint32_t i = 0; i < directory_keys(directory); i++) {
        struct directory_key key = *directory_key_at(directory, i);
        if (key.number != number) continue;
        if (change->revoke) key.active = false;
        set_limits(change, &key.limits);
        if (change->label) TRY(set_label(change->label, &key, err));
        TRY(set_budget(change, &key.budget, err));
        TRY(put_key(client, &key, err));
        append_key(&key, NULL, NULL, out);
        return ST_OK;
    }
    return error_set(err, ST_NOTFOUND, "there is no key k:%016" PRIx64, number);
}

enum status bill_key_set(const struct ledger_client *client, const struct bill_key_change *change, struct buf *out,
                         struct error *err)
{
    struct directory *directory;
    if (change->rpm > UINT32_MAX || change->tpm > KEY_TPM_MAX || change->concurrency > UINT32_MAX)
        return error_set(err, ST_INVAL, "a limit is more than fits: rpm and concurrency %" PRIu32 ", tpm %" PRIu64,
                         UINT32_MAX, KEY_TPM_MAX);
    TRY(bill_directory_read(client, &directory, err));
    enum status status =
        change->id ? change_key(client, directory, change, out, err) : make_key(client, directory, change, out, err);
    directory_destroy(directory);
    return status;
}

enum status bill_directory_put(const struct ledger_client *client, const char *id, const char *line, struct error *err)
{
    struct directory_line *read = mem_alloc(1, sizeof *read);
    if (!read) return error_set(err, ST_NOMEM, "%s", status_text(ST_NOMEM));
    enum status status = directory_line_read(line, strlen(line), read, err);
    if (status == ST_OK && strcmp(read->id, id) != 0) status = error_set(err, ST_INVAL, "the line is not of that id");
    mem_free(read);
    return status == ST_OK ? client->calls->directory_put(client->state, id, line, err) : status;
}
