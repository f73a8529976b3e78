/* millrace bill COMMAND: accounts, packages, keys and proofs of what was billed. The only file of it that writes to
 * stdout and stderr. */
#include "server/cmd.h"

#include "server/billing/bill.h"

#include <stdio.h>
#include <string.h>

static enum status flush(struct buf *out, struct error *err)
{
    if (!buf_ok(out)) return error_set(err, ST_NOMEM, "out of memory");
    if (out->length > 0 && fwrite(out->data, 1, out->length, stdout) != out->length)
        return error_set(err, ST_IO, "the output could not be written");
    buf_clear(out);
    return ST_OK;
}

static const bill_fn functions[BILL_COMMANDS] = {
    [BILL_INIT] = bill_init,     [BILL_ACCOUNT] = bill_account_verb, [BILL_KEY] = bill_key_verb,
    [BILL_TOPUP] = bill_topup,   [BILL_VOID] = bill_topup,           [BILL_BALANCE] = bill_balance,
    [BILL_REAP] = bill_reap,     [BILL_USAGE] = bill_usage,          [BILL_AUDIT] = bill_audit,
    [BILL_EXPORT] = bill_export, [BILL_REPLAY] = bill_replay,        [BILL_REBUILD] = bill_rebuild,
    [BILL_ADOPT] = bill_adopt,   [BILL_REPAIR] = bill_repair,        [BILL_PROBE] = bill_probe,
};

static int run(const struct bill_options *options, struct buf *out, struct buf *note)
{
    struct error err = {""};
    struct bill bill = {
        .options = options, .disk = disk_system(), .clock = clock_system(), .out = out, .note = note, .flush = flush};
    int code = BILL_REFUSED;
    enum status status = functions[options->command](&bill, &code, &err);
    bill_close_ledger(&bill);
    struct error lost = {""};
    enum status written = flush(out, &lost);
    if (note->length > 0) fwrite(note->data, 1, note->length, stderr);
    if (status != ST_OK)
        fprintf(stderr, "millrace bill %s: %s\n", bill_command_name(options->command),
                err.message[0] ? err.message : status_text(status));
    if (written != ST_OK || fflush(stdout) != 0) {
        fprintf(stderr, "millrace bill: %s\n", lost.message[0] ? lost.message : "the output could not be written");
        if (code == BILL_DONE) code = BILL_REFUSED;
    }
    return status != ST_OK && code == BILL_DONE ? BILL_REFUSED : code;
}

int cmd_bill(int argc, char **argv, char **environment)
{
    static struct bill_options options;
    struct error err = {""};
    struct buf out, note;
    int code = BILL_USAGE_ERROR;
    buf_init(&out, 0);
    buf_init(&note, 0);
    enum status status = bill_args_read(&options, argc, argv, environment, &err);
    if (status != ST_OK) {
        fprintf(stderr, "millrace bill: %s\n", err.message);
    } else if (options.help) {
        bill_args_help(options.command, &out);
        code = flush(&out, &err) == ST_OK ? BILL_DONE : BILL_REFUSED;
    } else {
        code = run(&options, &out, &note);
    }
    buf_free(&out);
    buf_free(&note);
    return code;
}
