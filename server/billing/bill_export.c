/* millrace bill export: records as JSON lines or CSV (call data records); see bill.h. One line a record, in the order
 * of the journal. A consumer drops what it has by (producer, partition, pseq): that triple names a record for ever.
 *
 * A file is written under another name, synced, and then given its own: what has the name is whole. */
#include "server/billing/bill_export_log.h"
#include "server/billing/bill_json.h"
#include "server/billing/bill_scan.h"
#include "server/billing/bill_text.h"
#include "server/billing/usage.h"

#include "runtime/base/mem.h"

#include <inttypes.h>
#include <string.h>

enum { FLUSH_BYTES = 1 << 20, PATH_BYTES_MAX = 4096 };

struct export
{
    struct bill *bill;
    bool csv;
    uint64_t records, trimmed;
    int fd; /* of --output, or -1 */
    uint64_t offset;
};

static enum status flush(struct export *export, struct error *err)
{
    struct bill *bill = export->bill;
    struct buf *out = bill->out;
    if (export->fd < 0) return bill->flush(out, err);
    if (!buf_ok(out)) return error_set(err, ST_NOMEM, "%s", status_text(ST_NOMEM));
    for (size_t done = 0; done < out->length;) {
        int64_t wrote =
            bill->disk->write_at(bill->disk->state, export->fd, out->data + done, out->length - done, export->offset);
        if (wrote <= 0)
            return error_set(err, ST_IO, "%.300s could not be written: %s", bill->options->output,
                             strerror((int)-wrote));
        done += (size_t)wrote;
        export->offset += (uint64_t)wrote;
    }
    buf_clear(out);
    return ST_OK;
}

/* ---- a line ---- */

/* Every column once: its name, and what writes it. N: a number, D: millionths as a decimal, T: a text that needs no
 * escapes, S: any text. New ones come last: who reads CSV by position keeps reading. */
#define COLUMNS(N, D, T, S)                                                                                            \
    T("kind", buf_append_char(out, (char)record->kind))                                                                \
    T("producer", buf_append_format(out, "%016" PRIx64, segment->producer))                                            \
    N("partition", record->partition)                                                                                  \
    N("pseq", record->pseq)                                                                                            \
    N("lsn", frame->lsn)                                                                                               \
    T("account_id", buf_append_format(out, "id:%" PRIu64, record->account))                                            \
    S("tenant", record->charge.tenant)                                                                                 \
    S("model", record->charge.model)                                                                                   \
    N("model_class", record->mclass)                                                                                   \
    T("key_id", if (record->charge.key) buf_append_format(out, "k:%016" PRIx64, record->charge.key))                   \
    T("charge_id", bill_append_hex(out, record->charge.charge_id, CHARGE_ID_BYTES))                                    \
    N("part", record->charge.part)                                                                                     \
    T("request_id_hash", bill_append_hex(out, record->charge.request_id, 16))                                          \
    T("cause", buf_append_text(out, final ? usage_cause_name(record->cause) : ""))                                     \
    T("flags", append_flags(record->flags, out))                                                                       \
    T("opened", if (final) bill_append_time_us(out, record->opened_us))                                                \
    T("first_token", if (final && record->first_us) bill_append_time_us(out, record->first_us))                        \
    T("ended", if (final) bill_append_time_us(out, record->ended_us))                                                  \
    T("written", bill_append_time_ms(out, record->t_ms))                                                               \
    N("duration_us", (uint64_t)record->duration_us)                                                                    \
    N("month", record->month)                                                                                          \
    N("price_version", record->charge.price_version)                                                                   \
    N("weight_in_ppm", record->charge.weight_in_ppm)                                                                   \
    N("weight_hit_ppm", record->charge.weight_hit_ppm)                                                                 \
    N("weight_out_ppm", record->charge.weight_out_ppm)                                                                 \
    N("input_tokens", record->in_total)                                                                                \
    N("input_cached_tokens", record->in_hit)                                                                           \
    N("output_tokens", record->out)                                                                                    \
    N("reasoning_tokens", record->out_reasoning)                                                                       \
    N("trimmed_tokens", record->out_trimmed)                                                                           \
    N("forced_tokens", record->forced)                                                                                 \
    N("choices", record->choices)                                                                                      \
    N("recomputed_tokens", record->recomputed)                                                                         \
    N("draft_tokens", record->spec_draft)                                                                              \
    N("rejected_draft_tokens", record->spec_rejected)                                                                  \
    N("charged_units", record->units)                                                                                  \
    N("grant_units", record->want)                                                                                     \
    N("epoch", record->boot)                                                                                           \
    T("output_hash", bill_append_hex(out, record->h_ids, 16))                                                          \
    T("chain", bill_append_hex(out, record->chain, CHAIN_BYTES))                                                       \
    T("slot", if (record->kind == RECORD_ENERGY) bill_append_time_ms(out, record->energy.slot_ms))                     \
    D("energy_joules", record_energy_uj(&record->energy))                                                              \
    D("prefill_joules", record->energy.uj_prefill)                                                                     \
    D("decode_joules", record->energy.uj_decode)                                                                       \
    D("host_joules", record->energy.uj_host)                                                                           \
    D("idle_share_joules", record->energy.uj_idle_share)                                                               \
    D("green_joules", record->energy.green_uj)                                                                         \
    D("gco2_location", record->energy.ugco2_loc)                                                                       \
    D("gco2_market", record->energy.ugco2_mkt)                                                                         \
    D("pue", record->energy.pue_ppm)                                                                                   \
    N("deferral_ms", record->energy.deferral_ms)                                                                       \
    T("energy_flags", append_energy_flags(record->energy.flags, out))

static void append_names(uint16_t flags, const char *const *names, uint32_t count, struct buf *out)
{
    const char *space = "";
    for (uint32_t i = 0; i < count; i++) {
        if (!(flags >> i & 1)) continue;
        buf_append_format(out, "%s%s", space, names[i]);
        space = " ";
    }
}

static void append_flags(uint16_t flags, struct buf *out)
{
    static const char *const names[] = {"mismatch", "clock", "incomplete", "unseen", "estimated"};
    append_names(flags, names, 5, out);
}

static void append_energy_flags(uint16_t flags, struct buf *out)
{
    static const char *const names[] = {"estimated", "partial", "no_host", "no_pue", "no_co2", "marginal"};
    append_names(flags, names, 6, out);
}

static void append_json(const struct frame *frame, const struct segment_info *segment, const struct record *record,
                        struct buf *out)
{
    bool final = record->kind == RECORD_CHARGED || record->kind == RECORD_WAIVED;
    char comma = '{';
#define N(name, value)                                                                                                 \
    buf_append_format(out, "%c\"" name "\":%" PRIu64, comma, (uint64_t)(value));                                       \
    comma = ',';
#define D(name, value)                                                                                                 \
    buf_append_format(out, "%c\"" name "\":", comma);                                                                  \
    bill_append_millionths(out, value);                                                                                \
    comma = ',';
#define T(name, action)                                                                                                \
    buf_append_format(out, "%c\"" name "\":\"", comma);                                                                \
    action;                                                                                                            \
    buf_append_char(out, '"');                                                                                         \
    comma = ',';
#define S(name, text)                                                                                                  \
    buf_append_format(out, "%c\"" name "\":", comma);                                                                  \
    buf_append_json_string(out, text, strlen(text));                                                                   \
    comma = ',';
    COLUMNS(N, D, T, S)
#undef N
#undef D
#undef T
#undef S
    buf_append_text(out, "}\n");
}

/* RFC 4180; a text that a spreadsheet would take for a formula gets a quote in front. */
static void append_csv_text(const char *text, struct buf *out)
{
    buf_append_char(out, '"');
    if (*text && strchr("=+-@", *text)) buf_append_char(out, '\'');
    for (; *text; text++) {
        if (*text == '"') buf_append_char(out, '"');
        buf_append_char(out, *text);
    }
    buf_append_char(out, '"');
}

static void append_csv(const struct frame *frame, const struct segment_info *segment, const struct record *record,
                       struct buf *out)
{
    bool final = record->kind == RECORD_CHARGED || record->kind == RECORD_WAIVED;
    const char *comma = "";
#define N(name, value)                                                                                                 \
    buf_append_format(out, "%s%" PRIu64, comma, (uint64_t)(value));                                                    \
    comma = ",";
#define D(name, value)                                                                                                 \
    buf_append_text(out, comma);                                                                                       \
    bill_append_millionths(out, value);                                                                                \
    comma = ",";
#define T(name, action)                                                                                                \
    buf_append_text(out, comma);                                                                                       \
    action;                                                                                                            \
    comma = ",";
#define S(name, text)                                                                                                  \
    buf_append_text(out, comma);                                                                                       \
    append_csv_text(text, out);                                                                                        \
    comma = ",";
    COLUMNS(N, D, T, S)
#undef N
#undef D
#undef T
#undef S
    buf_append_text(out, "\r\n");
}

static void append_head(struct buf *out)
{
    const char *comma = "";
#define N(name, value)  buf_append_format(out, "%s" name, comma), comma = ",";
#define D(name, value)  N(name, 0)
#define T(name, action) N(name, 0)
#define S(name, text)   N(name, 0)
    COLUMNS(N, D, T, S)
#undef N
#undef D
#undef T
#undef S
    buf_append_text(out, "\r\n");
}

static enum status on_record(void *state, const struct frame *frame, const struct segment_info *segment,
                             const struct record *record, struct error *err)
{
    struct export *export = state;
    bool final = record->kind == RECORD_CHARGED || record->kind == RECORD_WAIVED;
    const struct bill_options *options = export->bill->options;
    bool narrowed = options->from_ms || options->to_ms || options->month || options->tenant || options->model;
    bool lease = !final && record->kind != RECORD_ENERGY;
    if (lease && (narrowed || options->account)) return ST_OK; /* leases have no end, model or tenant */
    if (!lease && !bill_record_wanted(options, record)) return ST_OK;
    if (export->csv)
        append_csv(frame, segment, record, export->bill->out);
    else
        append_json(frame, segment, record, export->bill->out);
    export->records++;
    return export->bill->out->length >= FLUSH_BYTES ? flush(export, err) : ST_OK;
}

/* ---- the log of Redis ---- */

static void append_text(struct buf *out, const char *name, const char *text)
{
    buf_append_format(out, ",\"%s\":", name);
    buf_append_json_string(out, text, strlen(text));
}

static void append_energy(const struct record_energy *energy, struct buf *out)
{
    struct month_total one = {0};
    month_add_energy(&one, energy);
    bill_json_energy(&one, out);
}

/* Records as from a journal, with who paid and the record's bytes; orders and expiries in their own words. */
static enum status on_entry(void *state, const struct log_entry *entry, struct error *err)
{
    struct export *export = state;
    struct buf *out = export->bill->out;
    buf_append_format(out, "{\"log_id\":\"%s\"", entry->id);
    append_text(out, "kind", entry->kind);
    append_text(out, "account_id", entry->account);
    if (entry->raw) {
        struct record record;
        if (record_decode(entry->raw, entry->raw_length, &record, err) != ST_OK) return ST_INVAL;
        append_text(out, "producer", entry->producer);
        append_text(out, "funding", entry->funding);
        append_text(out, "outcome", entry->outcome);
        append_text(out, "lease_until", entry->time);
        buf_append_format(out, ",\"partition\":%u,\"pseq\":%" PRIu64, record.partition, record.pseq);
        append_text(out, "tenant", record.charge.tenant);
        append_text(out, "model", record.charge.model);
        buf_append_format(out,
                          ",\"month\":%" PRIu32 ",\"charged_units\":%" PRIu64 ",\"input_tokens\":%" PRIu32
                          ",\"input_cached_tokens\":%" PRIu32 ",\"output_tokens\":%" PRIu32,
                          record.month, record.units, record.in_total, record.in_hit, record.out);
        if (record.kind == RECORD_ENERGY) append_energy(&record.energy, out);
        buf_append_text(out, ",\"raw\":\"");
        bill_append_hex(out, entry->raw, entry->raw_length);
        buf_append_char(out, '"');
    } else {
        append_text(out, "order", entry->order);
        append_text(out, "terms", entry->terms);
        append_text(out, "funding", entry->funding);
        append_text(out, "clock_ms", entry->time);
    }
    buf_append_text(out, "}\n");
    export->records++;
    return out->length >= FLUSH_BYTES ? flush(export, err) : ST_OK;
}

struct mark_lines {
    struct buf *out;
    const char *uuid;
    uint16_t partition;
};

static void on_mark(void *state, uint64_t producer, uint64_t epoch, uint64_t hwm, const char *hash8)
{
    const struct mark_lines *lines = state;
    buf_append_format(lines->out,
                      "{\"kind\":\"M\",\"ledger\":\"%s\",\"partition\":%u,\"producer\":\"%016" PRIx64
                      "\",\"epoch\":%" PRIu64 ",\"pseq\":%" PRIu64 ",\"hash8\":\"%s\"}\n",
                      lines->uuid, lines->partition, producer, epoch, hwm, hash8);
}

/* Marks first: so the log that follows has at least what they tell, and a rebuild knows whether it is whole. */
static enum status put_marks(struct export *export, struct error *err)
{
    struct bill *bill = export->bill;
    char uuid[LEDGER_UUID_CHARS + 1];
    TRY(bill_open_ledger(bill, err));
    TRY(bill->ledger.calls->uuid(bill->ledger.state, uuid, err));
    for (uint16_t i = 0; i < PARTITIONS; i++) {
        struct mark_lines lines = {bill->out, uuid, i};
        TRY(bill->ledger.calls->marks(bill->ledger.state, i, on_mark, &lines, err));
        if (bill->out->length >= FLUSH_BYTES) TRY(flush(export, err));
    }
    return ST_OK;
}

/* ---- the file ---- */

static enum status folder_of(const char *path, char folder[PATH_BYTES_MAX], struct error *err)
{
    const char *slash = strrchr(path, '/');
    size_t length = slash ? (size_t)(slash - path) : 1;
    if (length >= PATH_BYTES_MAX) return error_set(err, ST_INVAL, "--output: the path is too long");
    memcpy(folder, slash ? path : ".", length);
    folder[length] = '\0';
    if (length == 0) memcpy(folder, "/", 2);
    return ST_OK;
}

static enum status open_output(struct export *export, char *temporary, struct error *err)
{
    const struct disk *disk = export->bill->disk;
    const char *path = export->bill->options->output;
    if (strlen(path) + 9 > PATH_BYTES_MAX) return error_set(err, ST_INVAL, "--output: the path is too long");
    int there = disk->open(disk->state, path, DISK_READ);
    if (there >= 0) {
        disk->close(disk->state, there);
        return error_set(err, ST_INVAL, "%.300s is there already; name another file", path);
    }
    memcpy(temporary, path, strlen(path));
    memcpy(temporary + strlen(path), ".partial", 9);
    (void)disk->remove(disk->state, temporary);
    export->fd = disk->open(disk->state, temporary, DISK_CREATE);
    if (export->fd >= 0) return ST_OK;
    return error_set(err, ST_IO, "%.300s cannot be made: %s", temporary, strerror(-export->fd));
}

static enum status close_output(struct export *export, const char *temporary, struct error *err)
{
    const struct disk *disk = export->bill->disk;
    char folder[PATH_BYTES_MAX];
    const char *path = export->bill->options->output;
    TRY(flush(export, err));
    TRY(folder_of(path, folder, err));
    int result = disk->sync(disk->state, export->fd);
    if (result == 0) result = disk->rename(disk->state, temporary, path);
    if (result == 0) result = disk->sync_folder(disk->state, folder);
    return result == 0 ? ST_OK : error_set(err, ST_IO, "%.300s could not be put on disk: %s", path, strerror(-result));
}

static enum status run(struct export *export, int *exit_code, struct error *err)
{
    char temporary[PATH_BYTES_MAX] = "";
    struct bill *bill = export->bill;
    if (bill->options->output) TRY(open_output(export, temporary, err));
    bool log = bill->options->redis != NULL;
    if (export->csv) append_head(bill->out);
    struct log_ends *ends = log ? mem_alloc(1, sizeof *ends) : NULL;
    enum status status = !log    ? bill_scan(bill, on_record, NULL, export, exit_code, err)
                         : !ends ? error_set(err, ST_NOMEM, "%s", status_text(ST_NOMEM))
                                 : put_marks(export, err);
    if (status == ST_OK && log) status = bill_log_read(bill, on_entry, export, ends, err);
    if (status == ST_OK && export->fd >= 0) status = close_output(export, temporary, err);
    if (export->fd >= 0) bill->disk->close(bill->disk->state, export->fd);
    if (status != ST_OK && export->fd >= 0) {
        (void)bill->disk->remove(bill->disk->state, temporary);
        buf_clear(bill->out);
    }
    if (status == ST_OK && bill->options->trim) status = bill_log_trim(bill, ends, &export->trimmed, err);
    mem_free(ends);
    return status;
}

enum status bill_export(struct bill *bill, int *exit_code, struct error *err)
{
    const char *format = bill->options->format ? bill->options->format : "jsonl";
    struct export export = {.bill = bill, .csv = !strcmp(format, "csv"), .fd = -1};
    *exit_code = BILL_USAGE_ERROR;
    if (!export.csv && strcmp(format, "jsonl") != 0)
        return error_set(err, ST_INVAL, "--format: \"%.40s\" is neither jsonl nor csv", format);
    if ((bill->options->names_count == 0) == !bill->options->redis)
        return error_set(err, ST_INVAL, "name the journal folders to export, or the ledger's log with --redis URL");
    if (bill->options->redis && export.csv) return error_set(err, ST_INVAL, "the log of --redis is exported as jsonl");
    if (bill->options->trim && (!bill->options->redis || !bill->options->output))
        return error_set(err, ST_INVAL, "--trim needs --redis and --output: nothing goes that is not on disk");
    *exit_code = BILL_REFUSED;
    TRY(run(&export, exit_code, err));
    buf_append_format(bill->note, "%" PRIu64 " records exported, %" PRIu64 " removed from the log\n", export.records,
                      export.trimmed);
    *exit_code = BILL_DONE;
    return ST_OK;
}
