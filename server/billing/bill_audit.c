/* millrace bill audit: the command and its report; see bill_audit.h. */
#include "server/billing/bill_audit.h"

#include "server/billing/bill.h"
#include "server/billing/bill_json.h"
#include "server/billing/bill_text.h"

#include <inttypes.h>
#include <string.h>

enum { AUDIT_EXIT_DAMAGED = 2, LINES_MAX = 32 };

static const char *const kind_names[] = {"note", "difference", "damage"};

static enum audit_kind kind_of(char letter)
{
    return letter == 'X' ? AUDIT_DAMAGE : letter == 'D' ? AUDIT_DIFFERENCE : AUDIT_NOTE;
}

static const char *verdict_of(const struct audit *audit)
{
    return audit->worst == AUDIT_DAMAGE ? "damage" : audit->worst == AUDIT_DIFFERENCE ? "differences" : "clean";
}

struct line {
    const char *name, *text;
    uint64_t value;
    enum { NUMBER, TOKENS, MILLIONTHS, UNKNOWN } kind;
};

static uint32_t make_lines(const struct audit *audit, struct line lines[LINES_MAX])
{
    const struct audit_counts *c = &audit->counts;
    bool ledger = audit->ledger;
    const struct line made[] = {
        {"segments", "segments", c->segments, NUMBER},
        {"bytes", "bytes", c->bytes, NUMBER},
        {"frames", "frames", c->frames, NUMBER},
        {"records", "records", c->records, NUMBER},
        {"charged", "charged", c->charged, NUMBER},
        {"waived", "waived", c->waived, NUMBER},
        {"grants", "grants", c->grants, NUMBER},
        {"releases", "releases", c->releases, NUMBER},
        {"energies", "energy records", c->energies, NUMBER},
        {"energy_joules", "joules of them", c->energy_uj, MILLIONTHS},
        {"gco2_location", "grams of CO2 by location", c->ugco2_loc, MILLIONTHS},
        {"gco2_market", "grams of CO2 by market", c->ugco2_mkt, MILLIONTHS},
        {"orders", "orders in the journal", c->orders, NUMBER},
        {"open", "requests still open", c->open, NUMBER},
        {"charged_units", "tokens charged", c->units, TOKENS},
        {"unseen", "client gone before a byte was sent", c->unseen, NUMBER},
        {"clock", "records whose clocks parted", c->clock, NUMBER},
        {"incomplete", "incomplete (closed after a crash)", c->incomplete, NUMBER},
        {"lost", "lost", c->lost, NUMBER},
        {"double", "double", c->doubled, NUMBER},
        {"mismatch", "mismatch", c->mismatch, NUMBER},
        {"overage_units", "overage, tokens", c->overage_units, ledger ? TOKENS : UNKNOWN},
        {"unapplied", "records that the ledger has not", c->unapplied, ledger ? NUMBER : UNKNOWN},
        {"accounts_compared", "accounts compared with the ledger", c->accounts_compared, ledger ? NUMBER : UNKNOWN},
        {"accounts_moving", "accounts that moved meanwhile", c->accounts_moving, ledger ? NUMBER : UNKNOWN},
    };
    memcpy(lines, made, sizeof made);
    return sizeof made / sizeof *made;
}

static void append_millionths(struct buf *out, const char *name, uint64_t value)
{
    buf_append_format(out, ",\"%s\":", name);
    bill_append_millionths(out, value);
}

static void print_json(const struct audit *audit, struct buf *out)
{
    struct line lines[LINES_MAX];
    uint32_t count = make_lines(audit, lines);
    const char *at = audit->findings.data;
    buf_append_format(out, "{\"object\":\"billing.audit\",\"verdict\":\"%s\",\"ledger\":\"%s\"", verdict_of(audit),
                      audit->uuid);
    for (uint32_t i = 0; i < count; i++)
        if (lines[i].kind == UNKNOWN)
            buf_append_format(out, ",\"%s\":null", lines[i].name);
        else if (lines[i].kind == MILLIONTHS)
            append_millionths(out, lines[i].name, lines[i].value);
        else
            buf_append_format(out, ",\"%s\":%" PRIu64, lines[i].name, lines[i].value);
    buf_append_text(out, ",\"findings\":[");
    for (uint32_t i = 0; i < audit->findings_count; i++, at += strlen(at) + 1) {
        buf_append_format(out, "%s{\"kind\":\"%s\",\"text\":", i ? "," : "", kind_names[kind_of(*at)]);
        buf_append_json_string(out, at + 1, strlen(at + 1));
        buf_append_char(out, '}');
    }
    buf_append_format(out, "],\"findings_left_out\":%" PRIu32 "}\n", audit->findings_left_out);
}

static void print_table(const struct audit *audit, struct buf *out)
{
    static const char *const heads[] = {"what", ">count"};
    struct line lines[LINES_MAX];
    uint32_t count = make_lines(audit, lines);
    const char *at = audit->findings.data;
    struct bill_table table;
    bill_table_init(&table, heads, 2);
    for (uint32_t i = 0; i < count; i++) {
        bill_table_text(&table, lines[i].text);
        if (lines[i].kind == UNKNOWN)
            bill_table_text(&table, "no ledger named");
        else if (lines[i].kind == TOKENS || lines[i].kind == MILLIONTHS)
            bill_table_tokens(&table, lines[i].value);
        else
            bill_table_number(&table, lines[i].value);
    }
    bill_table_print(&table, out);
    bill_table_free(&table);
    for (uint32_t i = 0; i < audit->findings_count; i++, at += strlen(at) + 1)
        buf_append_format(out, "%s: %s\n", kind_names[kind_of(*at)], at + 1);
    if (audit->findings_left_out > 0) buf_append_format(out, "and %" PRIu32 " more\n", audit->findings_left_out);
    if (!audit->ledger)
        buf_append_text(out, "note: without a ledger whole segments missing at the journal's end cannot be seen\n");
    buf_append_format(out, "verdict: %s\n", verdict_of(audit));
}

/* Older segments and the fallback are read alike, as a second folder; a journal with both is audited in two steps. */
static enum status second_folder(const struct bill_options *options, const char **more, struct error *err)
{
    if (options->archive && options->fallback) return error_set(err, ST_INVAL, "--archive and --fallback: give one");
    if ((options->archive || options->fallback) && options->names_count > 1)
        return error_set(err, ST_INVAL, "--archive and --fallback belong to one folder: name one");
    *more = options->archive ? options->archive : options->fallback;
    return ST_OK;
}

static enum status run(struct bill *bill, struct audit *audit, struct error *err)
{
    const char *more = NULL;
    TRY(second_folder(bill->options, &more, err));
    if (bill_names_ledger(bill)) {
        TRY(bill_open_ledger(bill, err));
        TRY(audit_marks(audit, &bill->ledger, err));
    }
    for (uint32_t i = 0; i < bill->options->names_count; i++)
        TRY(audit_scan(audit, bill->options->names[i], more, err));
    audit_energies(audit);
    if (bill->options->archive && !audit->complete)
        audit_find(audit, AUDIT_DIFFERENCE, "the archive does not begin with the journal's first segment");
    return bill->ledger.calls ? audit_compare(audit, &bill->ledger, err) : ST_OK;
}

enum status bill_audit(struct bill *bill, int *exit_code, struct error *err)
{
    struct audit audit;
    TRY(audit_init(&audit, bill->disk));
    audit.utc_offset_given = bill->options->utc_offset_given;
    audit.utc_offset_s = bill->options->utc_offset_s;
    audit.month = bill->options->month;
    enum status status = run(bill, &audit, err);
    if (status == ST_OK && !buf_ok(&audit.findings)) status = error_set(err, ST_NOMEM, "%s", status_text(ST_NOMEM));
    if (status == ST_OK) {
        if (bill->options->json)
            print_json(&audit, bill->out);
        else
            print_table(&audit, bill->out);
        *exit_code = audit.worst == AUDIT_DAMAGE       ? AUDIT_EXIT_DAMAGED
                     : audit.worst == AUDIT_DIFFERENCE ? BILL_DIFFERENT
                                                       : BILL_DONE;
    }
    audit_free(&audit);
    return status;
}
