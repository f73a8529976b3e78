/* See man.h. The macros are man(7)'s; text of the tables is escaped by append_roff, never pasted. */
#include "server/man.h"

#include "runtime/base/limits.h"
#include "server/bench/bench_args.h"
#include "server/billing/bill_args.h"
#include "server/options.h"

#include <ctype.h>
#include <inttypes.h>
#include <string.h>

/* A backslash, a minus and what would be a request at the head of a line have meanings of their own. */
static void append_roff(struct buf *out, const char *text)
{
    for (bool first = true; *text; text++) {
        if (first && (*text == '.' || *text == '\'')) buf_append_text(out, "\\&");
        first = *text == '\n';
        if (*text == '\\')
            buf_append_text(out, "\\e");
        else if (*text == '-')
            buf_append_text(out, "\\-");
        else if (*text == '^')
            buf_append_text(out, "\\(ha");
        else if (*text == '~')
            buf_append_text(out, "\\(ti");
        else if (*text == '`')
            buf_append_text(out, "\\(ga");
        else
            buf_append_char(out, *text);
    }
}

/* Text as it stands, in lines of its own. */
static void append_plain(struct buf *out, const char *text)
{
    buf_append_text(out, ".nf\n");
    append_roff(out, text);
    if (out->length && out->data[out->length - 1] != '\n') buf_append_char(out, '\n');
    buf_append_text(out, ".fi\n");
}

static void append_environment_name(struct buf *out, const char *name)
{
    buf_append_text(out, "MILLRACE_");
    for (; *name; name++) buf_append_char(out, *name == '-' ? '_' : (char)toupper((unsigned char)*name));
}

static void append_option(struct buf *out, const struct option *option)
{
    buf_append_text(out, ".TP\n.B ");
    if (option->letter) buf_append_format(out, "\\-%c, ", option->letter);
    if (option->kind != OPTION_SECRET) append_roff(out, option->kind == OPTION_BOOL ? "--[no-]" : "--");
    append_roff(out, option->name);
    if (option->value_name) {
        buf_append_char(out, ' ');
        append_roff(out, option->value_name);
    }
    buf_append_char(out, '\n');
    append_roff(out, option->help);
    buf_append_char(out, '\n');
    if (option->value_default) {
        buf_append_text(out, "Default: ");
        append_roff(out, option->value_default);
        buf_append_text(out, ".\n");
    }
    buf_append_text(out, "Environment: ");
    append_environment_name(out, option->name);
    buf_append_text(out, ".\n");
}

static void append_command(struct buf *out, enum config_command command, const char *name)
{
    buf_append_format(out, ".SS millrace %s\n", name);
    append_plain(out, config_head(command));
    for (size_t i = 0; i < option_count; i++)
        if (option_table[i].commands & command) append_option(out, &option_table[i]);
}

static void append_limits(struct buf *out)
{
    buf_append_text(out, ".SS Limits on what clients and files may bring\nOptions of millrace serve.\n");
    for (size_t i = 0; i < limits_count; i++) {
        const struct limit_row *row = &limits_table[i];
        buf_append_text(out, ".TP\n.B \\-\\-limit\\-");
        for (const char *c = row->name; *c; c++) buf_append_text(out, *c == '_' ? "\\-" : (char[]){*c, '\0'});
        buf_append_format(out, " VALUE\nIn %s, %" PRIu64 " to %" PRIu64 ". Default: %" PRIu64 ".\n", row->unit, row->floor,
                          row->ceiling, row->value_default);
    }
}

static void append_made(struct buf *out, const char *head, void (*print)(struct buf *text))
{
    struct buf text;
    buf_init(&text, 0);
    print(&text);
    buf_append_format(out, ".SS %s\n", head);
    buf_append_char(&text, '\0');
    if (buf_ok(&text)) append_plain(out, text.data);
    buf_free(&text);
}

static void print_bill(struct buf *text)
{
    bill_args_help(BILL_COMMANDS, text);
}

void man_print(struct buf *out)
{
    buf_append_text(out,
                    ".TH MILLRACE 1 \"\" \"Millrace " MILLRACE_VERSION "\" \"User Commands\"\n"
                    ".nh\n.ad l\n" /* names of options and variables stay whole */
                    ".SH NAME\nmillrace \\- serving runtime for large language models\n"
                    ".SH SYNOPSIS\n.B millrace serve\nMODEL [MODEL ...] [options]\n.br\n"
                    ".B millrace generate\nMODEL \\-p TEXT [options]\n.br\n.B millrace inspect\nMODEL [\\-\\-json]\n.br\n"
                    ".B millrace bill\nCOMMAND [options]\n.br\n.B millrace bench cost\n\\-\\-tariff PRICE [options]\n.br\n"
                    ".B millrace health\n[URL]\n.br\n.B millrace man\n.br\n.B millrace version\n"
                    ".SH DESCRIPTION\nServes models over the OpenAI API, bills each request exactly once, and holds a budget of "
                    "watts.\nEvery option can be given as a flag, as a variable of the environment, or by its name without "
                    "dashes in front in the YAML file of\n.BR \\-\\-config .\nA flag wins over the environment, that over the "
                    "file.\nSecrets cannot be given as flags: other users of the machine would see them.\n"
                    ".SH OPTIONS\n");
    append_command(out, COMMAND_SERVE, "serve");
    append_limits(out);
    append_command(out, COMMAND_GENERATE, "generate");
    append_command(out, COMMAND_INSPECT, "inspect");
    append_made(out, "millrace bill", print_bill);
    append_made(out, "millrace bench", bench_args_help);
    buf_append_text(
        out, ".SS millrace health\nAsks URL/readyz (http://127.0.0.1:8000 unless given): 0 when the server is ready, else 1.\n"
             ".SH SIGNALS\n.TP\n.BR SIGTERM \", \" SIGINT\nDrains: what runs ends, until \\-\\-shutdown\\-timeout. A second one "
             "ends at once.\n.TP\n.B SIGHUP\nReads keys and prices again, and opens the audit log anew.\n"
             ".SH EXIT STATUS\n.TP\n.B 0\nA clean end.\n.TP\n.B 1\nIt could not start.\n.TP\n.B 2\nWrong usage or "
             "configuration.\n.TP\n.B 3\nA device or the journal was lost: start it again.\n.PP\nmillrace bill has codes of its "
             "own, told by its help.\n"
             ".SH ENVIRONMENT\nBeside those of the options: HF_HOME, XDG_CACHE_HOME, CUDA_VISIBLE_DEVICES, NCCL_*, "
             "NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID\\& of\n.BR systemd (1),\nand the variables of torchrun, Slurm, Open "
             "MPI and LeaderWorkerSet that tell one process of several which it is.\n"
             ".SH SEE ALSO\n.BR systemd.service (5),\n.BR haproxy (1),\n.BR redis\\-server (1)\n");
}
