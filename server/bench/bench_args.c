/* Options by table; see bench_args.h. */
#include "server/bench/bench_args.h"

#include "server/bench/bench_client.h"

#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

enum kind { TEXT, NUMBER, FLAG, FORM, EXCHANGE, CURRENCY };
#define AT(field) offsetof(struct bench_options, field)

static const struct {
    const char *name, *value, *summary;
    enum kind kind;
    size_t offset;
    double least, most;
} options_all[] = {
    {"--server", "URL", "the server (http://127.0.0.1:8000)", TEXT, AT(server), 0, 0},
    {"--model", "NAME", "the model (the first that the server names)", TEXT, AT(model), 0, 0},
    {"--clients", "N", "closed loop: so many, each waiting for its answer (8)", NUMBER, AT(clients), 1,
     BENCH_CONNECTIONS_MAX},
    {"--requests", "N", "in all (64)", NUMBER, AT(requests), 1, BENCH_REQUESTS_MAX},
    {"--per-second", "R", "open loop: so many requests a second, at random", NUMBER, AT(per_second), 1e-3, 1e4},
    {"--trace", "FILE", "recorded: lines of seconds,prompt_tokens,output_tokens", TEXT, AT(trace), 0, 0},
    {"--speed", "X", "so much faster than the trace (1)", NUMBER, AT(speed), 1e-3, 1e6},
    {"--prompt-tokens", "N", "of a request (128)", NUMBER, AT(prompt_tokens), 1, BENCH_TOKENS_MAX},
    {"--output-tokens", "N", "of a request (64)", NUMBER, AT(output_tokens), 1, BENCH_TOKENS_MAX},
    {"--id-high", "N", "prompts are of token ids 100 to below this (40000)", NUMBER, AT(id_high), 101, 1e6},
    {"--seed", "N", "of prompts and times (1)", NUMBER, AT(seed), 0, 1e15},
    {"--no-split", NULL, "do not send the prompts alone as well, to tell what inputs cost", FLAG, AT(no_split), 0, 0},
    {"--meter", "NAME", "of this machine in place of the server's: nvml (GPUs), rapl (CPUs), nvml+rapl", TEXT,
     AT(meter), 0, 0},
    {"--idle-watts", "W", "what the node draws without load (0)", NUMBER, AT(idle_w), 0, 1e9},
    {"--full-watts", "W", "and computing: the estimate where the server has no meter", NUMBER, AT(full_w), 0, 1e9},
    {"--tariff", "PRICE", "of a kWh, or by the time of day: 00:00-08:00=0.31,08:00-24:00=0.92", TEXT, AT(tariff_text),
     0, 0},
    {"--utc-offset", "HOURS", "of the tariff's time of day (0)", NUMBER, AT(utc_offset_hours), -14, 14},
    {"--pue", "X", "energy of the building over that of the node (1)", NUMBER, AT(terms.pue), 1, 10},
    {"--capex", "MONEY", "price of the hardware (0)", NUMBER, AT(terms.capex), 0, 1e15},
    {"--interest", "R", "a year, 0.06 is 6 % (0)", NUMBER, AT(terms.interest_year), 0, 10},
    {"--years", "N", "over which the hardware is paid (5)", NUMBER, AT(terms.years), 0.1, 100},
    {"--site-kw-month", "MONEY", "price of a kW of connection a month (0)", NUMBER, AT(terms.site_kw_month), 0, 1e12},
    {"--contract-kw", "KW", "of connection (0)", NUMBER, AT(terms.contract_kw), 0, 1e9},
    {"--opex-hour", "MONEY", "other running costs an hour (0)", NUMBER, AT(terms.opex_hour), 0, 1e12},
    {"--income-hour", "MONEY", "from grid events an hour (0)", NUMBER, AT(terms.income_hour), 0, 1e12},
    {"--busy", "SHARE", "of the hours in which the load runs; the others cost too (1)", NUMBER, AT(terms.busy_share),
     1e-6, 1},
    {"--currency", "LABEL", "of all prices (CNY)", CURRENCY, AT(currency), 0, 0},
    {"--exchange", "LABEL=RATE", "print in another one too; RATE of ours for one of it", EXCHANGE, 0, 1e-12, 1e12},
    {"--explain", NULL, "the formula with its numbers", FLAG, AT(explain), 0, 0},
    {"--json", NULL, "as JSON", FORM, BENCH_JSON, 0, 0},
    {"--csv", NULL, "as CSV, a line of names and one of numbers", FORM, BENCH_CSV, 0, 0},
    {"--svg", "FILE", "write a picture as well", TEXT, AT(svg), 0, 0},
    {"--help", NULL, "this text", FLAG, AT(help), 0, 0},
};
enum { OPTIONS_COUNT = sizeof options_all / sizeof *options_all };

static bool read_label(char *label, const char *text, size_t length)
{
    if (length < 1 || length > BENCH_LABEL_MAX) return false;
    for (size_t i = 0; i < length; i++)
        if (!((text[i] >= 'A' && text[i] <= 'Z') || (text[i] >= 'a' && text[i] <= 'z'))) return false;
    memcpy(label, text, length);
    label[length] = 0;
    return true;
}

static bool read_number(const char *text, double least, double most, double *number)
{
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end || *text == ' ' || !(value >= least && value <= most)) return false;
    *number = value;
    return true;
}

static bool read_exchange(struct bench_options *o, const char *text, double least, double most)
{
    const char *sign = strchr(text, '=');
    if (!sign || o->exchanges_count == BENCH_EXCHANGES_MAX) return false;
    uint32_t i = o->exchanges_count++;
    return read_label(o->exchanges[i].label, text, (size_t)(sign - text)) &&
           read_number(sign + 1, least, most, &o->exchanges[i].rate);
}

static bool read_value(struct bench_options *o, uint32_t idx, const char *text)
{
    char *field = (char *)o + options_all[idx].offset;
    double least = options_all[idx].least, most = options_all[idx].most;
    switch (options_all[idx].kind) {
    case TEXT: return (*(const char **)(void *)field = text, text[0] != 0);
    case NUMBER: return read_number(text, least, most, (double *)(void *)field);
    case CURRENCY: return read_label(field, text, strlen(text));
    case EXCHANGE: return read_exchange(o, text, least, most);
    case FLAG: return (*(bool *)(void *)field = true);
    case FORM: return (o->form = (enum bench_form)options_all[idx].offset, true);
    }
    return false;
}

static enum status check(struct bench_options *o, struct error *err)
{
    double *const whole[] = {&o->clients, &o->requests, &o->prompt_tokens, &o->output_tokens, &o->id_high, &o->seed};
    for (size_t i = 0; i < sizeof whole / sizeof *whole; i++)
        if (*whole[i] != floor(*whole[i])) return error_set(err, ST_INVAL, "%g is not a whole number", *whole[i]);
    if (o->trace && o->per_second > 0) return error_set(err, ST_INVAL, "--trace and --per-second exclude each other");
    if (o->full_w > 0 && o->full_w < o->idle_w) return error_set(err, ST_INVAL, "--full-watts is below --idle-watts");
    if (!o->tariff_text) return error_set(err, ST_INVAL, "--tariff is needed: what a kWh costs");
    o->terms.idle_w = o->idle_w;
    o->tariff.utc_offset_s = (int32_t)(o->utc_offset_hours * 3600);
    return tariff_read(o->tariff_text, &o->tariff, err);
}

enum status bench_args_read(struct bench_options *options, int argc, char **argv, char **environment, struct error *err)
{
    static const char key_name[] = "MILLRACE_API_KEY=";
    *options = (struct bench_options){.server = "http://127.0.0.1:8000",
                                      .clients = 8,
                                      .requests = 64,
                                      .prompt_tokens = 128,
                                      .output_tokens = 64,
                                      .speed = 1,
                                      .id_high = 40000,
                                      .seed = 1,
                                      .terms = {.pue = 1, .years = 5, .busy_share = 1},
                                      .currency = "CNY"};
    for (char **entry = environment; *entry; entry++)
        if (!strncmp(*entry, key_name, sizeof key_name - 1)) options->key = *entry + sizeof key_name - 1;
    for (const char *c = options->key; c && *c; c++)
        if ((unsigned char)*c < 0x21 || *c == 0x7f)
            return error_set(err, ST_INVAL, "MILLRACE_API_KEY has white space or control characters in it");
    for (int i = 0; i < argc; i++) {
        uint32_t idx = 0;
        while (idx < OPTIONS_COUNT && strcmp(options_all[idx].name, argv[i]) != 0) idx++;
        if (idx == OPTIONS_COUNT) return error_set(err, ST_INVAL, "there is no option \"%s\" (--help)", argv[i]);
        if (options_all[idx].value && i + 1 >= argc)
            return error_set(err, ST_INVAL, "%s needs a value: %s", argv[i], options_all[idx].value);
        const char *value = options_all[idx].value ? argv[++i] : "";
        if (!read_value(options, idx, value)) {
            if (options_all[idx].kind == NUMBER)
                return error_set(err, ST_INVAL, "%s: \"%s\" is not a number from %g to %g", options_all[idx].name,
                                 value, options_all[idx].least, options_all[idx].most);
            return error_set(err, ST_INVAL, "%s: \"%s\" is not %s", options_all[idx].name, value,
                             options_all[idx].value);
        }
    }
    if (options->key && !options->key[0]) options->key = NULL;
    return options->help ? ST_OK : check(options, err);
}

void bench_args_help(struct buf *out)
{
    buf_append_text(out,
                    "usage: millrace bench cost --tariff PRICE [options]\n\n"
                    "Puts a load on a running server (any with /v1/completions), measures tokens, times and joules, "
                    "and prints\nwhat a million tokens cost, part by part. Joules are the server's own "
                    "(mr_energy_joules_total) or those of --meter, else an estimate\nfrom --idle-watts, --full-watts "
                    "and the time that "
                    "its engine was busy, which is marked. The key, if the server\nwants one, is taken from "
                    "MILLRACE_API_KEY.\n\n");
    for (uint32_t i = 0; i < OPTIONS_COUNT; i++) {
        char left[64];
        struct error text = {""};
        (void)!error_set(&text, ST_OK, "%s %s", options_all[i].name, options_all[i].value ? options_all[i].value : "");
        size_t length = strlen(text.message);
        memcpy(left, text.message, length < sizeof left ? length + 1 : sizeof left);
        buf_append_format(out, "  %-24s %s\n", left, options_all[i].summary);
    }
}
