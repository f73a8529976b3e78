/* millrace bill usage: sums of records by what the operator names; see bill.h. From journal folders any sums; from a
 * ledger its own, by account, class and month. */
#include "server/billing/bill_directory.h"
#include "server/billing/bill_json.h"
#include "server/billing/bill_map.h"
#include "server/billing/bill_scan.h"
#include "server/billing/bill_text.h"
#include "server/billing/ledger_lines.h"
#include "server/billing/usage.h"

#include "runtime/base/mem.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum by { BY_TENANT, BY_ACCOUNT, BY_KEY, BY_MODEL, BY_CLASS, BY_CAUSE, BY_DAY, BY_MONTH, BYS };

static const char *const by_names[BYS] = {"tenant", "account", "key", "model", "class", "cause", "day", "month"};

/* Zero where it is not summed by. */
struct sum {
    struct sum_key {
        char tenant[ACCOUNT_NAME_MAX + 1], model[MODEL_NAME_MAX + 1], day[16];
        uint64_t account, key;
        uint32_t mclass, cause, month, padding;
    } key;
    struct month_total total; /* its class is not used */
};

struct usage_run {
    struct bill *bill;
    struct bill_map sums;
    enum by by[BYS];
    uint32_t by_count;
    bool wants[BYS];
    struct bill_map names; /* of accounts, where a directory knows them */
};

struct account_name {
    uint64_t account;
    char name[ACCOUNT_NAME_MAX + 1];
};

static enum status read_by(struct usage_run *run, const char *list, struct error *err)
{
    for (const char *at = list; *at;) {
        size_t length = strcspn(at, ",");
        enum by by = 0;
        while (by < BYS && (strlen(by_names[by]) != length || strncmp(by_names[by], at, length) != 0)) by++;
        if (by == BYS || run->wants[by])
            return error_set(err, ST_INVAL,
                             "--by: \"%.60s\" must be some of tenant, account, key, model, class, cause, day, month, "
                             "each once, with commas",
                             list);
        run->wants[by] = true;
        run->by[run->by_count++] = by;
        at += length + (at[length] == ',');
    }
    return ST_OK;
}

static void month_add(struct month_total *to, const struct month_total *from)
{
    to->in_miss += from->in_miss;
    to->in_hit += from->in_hit;
    to->out += from->out;
    to->units += from->units;
    to->records += from->records;
    to->waived_in += from->waived_in;
    to->waived_out += from->waived_out;
    to->waived_records += from->waived_records;
    to->energy_uj += from->energy_uj;
    to->idle_uj += from->idle_uj;
    to->green_uj += from->green_uj;
    to->ugco2_loc += from->ugco2_loc;
    to->ugco2_mkt += from->ugco2_mkt;
    to->energy_records += from->energy_records;
}

static enum status add(void *state, const struct frame *frame, const struct segment_info *segment,
                       const struct record *record, struct error *err)
{
    struct usage_run *run = state;
    struct sum_key key;
    (void)frame;
    (void)segment;
    bool energy = record->kind == RECORD_ENERGY && !run->wants[BY_CAUSE]; /* it has none */
    if (record->kind != RECORD_CHARGED && record->kind != RECORD_WAIVED && !energy) return ST_OK;
    if (!bill_record_wanted(run->bill->options, record)) return ST_OK;
    memset(&key, 0, sizeof key);
    if (run->wants[BY_TENANT]) memcpy(key.tenant, record->charge.tenant, strlen(record->charge.tenant));
    if (run->wants[BY_MODEL]) memcpy(key.model, record->charge.model, strlen(record->charge.model));
    if (run->wants[BY_ACCOUNT]) key.account = record->account;
    if (run->wants[BY_KEY]) key.key = record->charge.key;
    if (run->wants[BY_CLASS]) key.mclass = record->mclass;
    if (run->wants[BY_CAUSE]) key.cause = record->cause;
    if (run->wants[BY_MONTH]) key.month = record->month;
    if (run->wants[BY_DAY]) {
        struct buf day;
        buf_init(&day, 0);
        bill_append_day(&day, energy ? record->energy.slot_ms * 1000 : record->ended_us,
                        run->bill->options->utc_offset_s);
        if (buf_ok(&day) && day.length < sizeof key.day) memcpy(key.day, day.data, day.length);
        buf_free(&day);
    }
    struct sum *sum = bill_map_take(&run->sums, &key, NULL);
    if (!sum) return error_set(err, ST_NOMEM, "%s", status_text(ST_NOMEM));
    if (energy) {
        month_add_energy(&sum->total, &record->energy);
        return ST_OK;
    }
    if (record->kind == RECORD_WAIVED) {
        sum->total.waived_in += record->in_total;
        sum->total.waived_out += record->out;
        sum->total.waived_records++;
        return ST_OK;
    }
    sum->total.in_miss += record->in_total - record->in_hit;
    sum->total.in_hit += record->in_hit;
    sum->total.out += record->out;
    sum->total.units += record->units;
    sum->total.records++;
    return ST_OK;
}

/* ---- names ---- */

static void note_name(struct usage_run *run, uint64_t number, const char *name)
{
    struct account_name *item = bill_map_take(&run->names, &number, NULL);
    if (item) (void)snprintf(item->name, sizeof item->name, "%s", name);
}

static void on_line(void *state, const char *line, size_t length)
{
    static struct directory_line read; /* main thread */
    if (directory_line_read(line, length, &read, NULL) == ST_OK && !read.is_key)
        note_name(state, read.account.number, read.account.name);
}

/* Of the ledger that is open, else of what lies beside the journals. A name that is not found is no failure. */
static void find_names(struct usage_run *run)
{
    const struct bill *bill = run->bill;
    struct directory *directory;
    uint64_t version;
    if (!run->wants[BY_ACCOUNT]) return;
    if (bill->ledger.calls && bill_directory_read(&bill->ledger, &directory, NULL) == ST_OK) {
        for (uint32_t i = 0; i < directory_accounts(directory); i++) {
            const struct directory_account *account = directory_account_at(directory, i);
            note_name(run, account->number, account->name);
        }
        directory_destroy(directory);
    }
    for (uint32_t i = 0; i < bill->options->names_count; i++) {
        struct error reason = {""};
        if (ledger_lines_read(bill->disk, bill->options->names[i], on_line, run, &version, &reason) != ST_OK)
            buf_append_format(bill->note, "no names of accounts: %s\n", reason.message);
    }
}

static void append_account(const struct usage_run *run, uint64_t account, struct buf *out)
{
    const struct account_name *item = bill_map_find(&run->names, &account);
    if (item)
        buf_append_text(out, item->name);
    else
        buf_append_format(out, "id:%" PRIu64, account);
}

/* ---- output ---- */

static int compare(const void *a, const void *b)
{
    const struct sum_key *p = *(const struct sum_key *const *)a, *q = *(const struct sum_key *const *)b;
    int order = strcmp(p->tenant, q->tenant);
    if (!order) order = (p->account > q->account) - (p->account < q->account);
    if (!order) order = (p->key > q->key) - (p->key < q->key);
    if (!order) order = strcmp(p->model, q->model);
    if (!order) order = (p->mclass > q->mclass) - (p->mclass < q->mclass);
    if (!order) order = (p->cause > q->cause) - (p->cause < q->cause);
    if (!order) order = strcmp(p->day, q->day);
    return order ? order : (p->month > q->month) - (p->month < q->month);
}

static void append_by(const struct usage_run *run, const struct sum_key *key, enum by by, bool json, struct buf *out)
{
    const char *quote = json ? "\"" : "";
    switch (by) {
    case BY_TENANT:
    case BY_MODEL: {
        const char *text = by == BY_TENANT ? key->tenant : key->model;
        if (json)
            buf_append_json_string(out, text, strlen(text));
        else
            buf_append_text(out, text);
        break;
    }
    case BY_ACCOUNT:
        buf_append_text(out, quote);
        append_account(run, key->account, out);
        if (json) buf_append_format(out, "\",\"account_id\":\"id:%" PRIu64, key->account);
        buf_append_text(out, quote);
        break;
    case BY_KEY:
        if (key->key)
            buf_append_format(out, "%sk:%016" PRIx64 "%s", quote, key->key, quote);
        else
            buf_append_text(out, json ? "null" : "-");
        break;
    case BY_CLASS: buf_append_format(out, "%" PRIu32, key->mclass); break;
    case BY_CAUSE: buf_append_format(out, "%s%s%s", quote, usage_cause_name((enum cause)key->cause), quote); break;
    case BY_DAY: buf_append_format(out, "%s%s%s", quote, key->day, quote); break;
    case BY_MONTH:
        buf_append_format(out, "%s%04" PRIu32 "-%02" PRIu32 "%s", quote, key->month / 100, key->month % 100, quote);
        break;
    case BYS: break;
    }
}

static void print_json(const struct usage_run *run, struct sum *const *sums, struct buf *out)
{
    buf_append_text(out, "{\"object\":\"billing.usage\",\"data\":[");
    for (uint32_t i = 0; i < run->sums.count; i++) {
        const struct sum *sum = sums[i];
        buf_append_text(out, i ? ",{" : "{");
        for (uint32_t k = 0; k < run->by_count; k++) {
            buf_append_format(out, "\"%s\":", by_names[run->by[k]]);
            append_by(run, &sum->key, run->by[k], true, out);
            buf_append_char(out, ',');
        }
        const struct month_total *total = &sum->total;
        buf_append_format(out,
                          "\"input_tokens\":%" PRIu64 ",\"input_cached_tokens\":%" PRIu64 ",\"output_tokens\":%" PRIu64
                          ",\"num_model_requests\":%" PRIu64 ",\"charged_units\":%" PRIu64
                          ",\"waived_input_tokens\":%" PRIu64 ",\"waived_output_tokens\":%" PRIu64
                          ",\"waived_model_requests\":%" PRIu64,
                          total->in_miss + total->in_hit, total->in_hit, total->out, total->records, total->units,
                          total->waived_in, total->waived_out, total->waived_records);
        if (!run->wants[BY_CAUSE]) bill_json_energy(total, out);
        buf_append_char(out, '}');
    }
    buf_append_text(out, "]}\n");
}

enum { COUNTS = 7, ENERGY_COUNTS = 4 };

/* energy: with the columns that a node without a meter does not need. */
static void table_row(struct bill_table *table, const struct month_total *total, bool energy)
{
    bill_table_number(table, total->records);
    bill_table_number(table, total->in_miss + total->in_hit);
    bill_table_number(table, total->in_hit);
    bill_table_number(table, total->out);
    bill_table_tokens(table, total->units);
    bill_table_number(table, total->waived_records);
    bill_table_number(table, total->waived_in + total->waived_out);
    if (!energy) return;
    bill_table_tokens(table, total->energy_uj); /* millionths, as tokens are */
    bill_table_tokens(table, total->green_uj);
    bill_table_tokens(table, total->ugco2_loc);
    bill_table_tokens(table, total->ugco2_mkt);
}

static void print_table(const struct usage_run *run, struct sum *const *sums, struct buf *out)
{
    static const char *const counts[COUNTS + ENERGY_COUNTS] = {
        ">requests",      ">input", ">of it cached", ">output",         ">charged tokens", ">waived requests",
        ">waived tokens", ">J",     ">of it green",  ">gCO2, location", ">gCO2, market"};
    const char *heads[BYS + COUNTS + ENERGY_COUNTS];
    struct bill_table table;
    struct month_total total = {0};
    uint32_t columns = 0;
    for (uint32_t i = 0; i < run->sums.count; i++) month_add(&total, &sums[i]->total);
    bool energy = total.energy_records > 0;
    for (uint32_t k = 0; k < run->by_count; k++) heads[columns++] = by_names[run->by[k]];
    for (uint32_t k = 0; k < (energy ? COUNTS + ENERGY_COUNTS : COUNTS); k++) heads[columns++] = counts[k];
    bill_table_init(&table, heads, columns);
    for (uint32_t i = 0; i < run->sums.count; i++) {
        for (uint32_t k = 0; k < run->by_count; k++) {
            append_by(run, &sums[i]->key, run->by[k], false, &table.cells);
            bill_table_end(&table);
        }
        table_row(&table, &sums[i]->total, energy);
    }
    table.rules = 1;
    for (uint32_t k = 0; k < run->by_count; k++) bill_table_text(&table, k == 0 ? "total" : "");
    table_row(&table, &total, energy);
    bill_table_print(&table, out);
    bill_table_free(&table);
}

static enum status print(struct usage_run *run, struct error *err)
{
    struct sum **sums = mem_alloc(run->sums.count + 1, sizeof *sums);
    if (!sums) return error_set(err, ST_NOMEM, "%s", status_text(ST_NOMEM));
    for (uint32_t i = 0; i < run->sums.count; i++) sums[i] = bill_map_at(&run->sums, i);
    qsort(sums, run->sums.count, sizeof *sums, compare);
    if (run->bill->options->json)
        print_json(run, sums, run->bill->out);
    else
        print_table(run, sums, run->bill->out);
    mem_free(sums);
    return ST_OK;
}

/* ---- from a ledger ---- */

/* The months from --from to --to, or --month, or the one that is now. */
static void months_of(const struct bill *bill, uint32_t *first, uint32_t *last)
{
    const struct bill_options *options = bill->options;
    uint32_t now = record_month(clock_unix_us(bill->clock), options->utc_offset_s);
    *first = options->month ? options->month : options->from_ms ? record_month(options->from_ms * 1000, 0) : now;
    *last = options->month ? options->month : options->to_ms ? record_month(options->to_ms * 1000 - 1, 0) : now;
    if (*last < *first) *last = *first;
}

static enum status add_month(struct usage_run *run, uint64_t account, uint32_t month, struct error *err)
{
    struct month_total totals[MODEL_CLASSES];
    const struct ledger_client *client = &run->bill->ledger;
    uint32_t count;
    TRY(client->calls->month(client->state, account, month, totals, &count, err));
    for (uint32_t i = 0; i < count; i++) {
        struct sum_key key;
        memset(&key, 0, sizeof key);
        if (run->wants[BY_ACCOUNT]) key.account = account;
        if (run->wants[BY_CLASS]) key.mclass = totals[i].mclass;
        if (run->wants[BY_MONTH]) key.month = month;
        struct sum *sum = bill_map_take(&run->sums, &key, NULL);
        if (!sum) return error_set(err, ST_NOMEM, "%s", status_text(ST_NOMEM));
        month_add(&sum->total, &totals[i]);
    }
    return ST_OK;
}

static enum status from_ledger(struct usage_run *run, struct error *err)
{
    char name[ACCOUNT_NAME_MAX + 32];
    const char *at = run->bill->options->account;
    uint32_t first, last;
    if (!at)
        return error_set(err, ST_INVAL,
                         "a ledger keeps sums by account: name them, --account ada,bob; or name journal "
                         "folders for other sums");
    TRY(bill_open_ledger(run->bill, err));
    months_of(run->bill, &first, &last);
    while (*at) {
        size_t length = strcspn(at, ",");
        uint64_t account;
        if (length >= sizeof name) return error_set(err, ST_INVAL, "--account: \"%.80s\" is too long", at);
        memcpy(name, at, length);
        name[length] = '\0';
        TRY(bill_account(name, &account, err));
        for (uint32_t month = first; month <= last; month += month % 100 == 12 ? 89 : 1)
            TRY(add_month(run, account, month, err));
        at += length + (at[length] == ',');
    }
    return ST_OK;
}

/* A ledger's own sums say no more than this. */
static bool ledger_has(const struct usage_run *run)
{
    for (uint32_t k = 0; k < run->by_count; k++)
        if (run->by[k] != BY_ACCOUNT && run->by[k] != BY_CLASS && run->by[k] != BY_MONTH) return false;
    return true;
}

static enum status sum_up(struct usage_run *run, bool ledger, int *exit_code, struct error *err)
{
    if (ledger) {
        TRY(from_ledger(run, err));
    } else {
        if (bill_names_ledger(run->bill) && !run->bill->options->journal) TRY(bill_open_ledger(run->bill, err));
        TRY(bill_scan(run->bill, add, NULL, run, exit_code, err));
    }
    find_names(run);
    return print(run, err);
}

enum status bill_usage(struct bill *bill, int *exit_code, struct error *err)
{
    static struct bill_options options; /* with --journal as the folder to sum up */
    const struct bill_options *given = bill->options;
    bool ledger = given->names_count == 0 && (!given->journal || given->account);
    const char *by = given->by ? given->by : ledger ? "account,class,month" : "tenant,model,month";
    struct usage_run run = {.bill = bill};
    *exit_code = BILL_USAGE_ERROR;
    TRY(read_by(&run, by, err));
    if (ledger && !ledger_has(&run)) {
        if (!given->journal)
            return error_set(err, ST_INVAL,
                             "--by %s: a ledger has sums by account, class and month alone; name journal folders", by);
        ledger = false;
    }
    if (!ledger && given->names_count == 0) {
        options = *given;
        options.names[options.names_count++] = given->journal;
        bill->options = &options;
    }
    *exit_code = BILL_REFUSED;
    bill_map_init(&run.sums, sizeof(struct sum_key), sizeof(struct sum));
    bill_map_init(&run.names, sizeof(uint64_t), sizeof(struct account_name));
    enum status status = sum_up(&run, ledger, exit_code, err);
    if (status == ST_OK) *exit_code = BILL_DONE;
    bill_map_free(&run.sums);
    bill_map_free(&run.names);
    return status;
}
