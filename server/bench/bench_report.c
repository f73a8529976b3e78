/* One table of figures, printed four ways; see bench_report.h. */
#include "server/bench/bench_report.h"

#include "runtime/base/check.h"

#include <math.h>
#include <string.h>

struct figure {
    const char *name;
    double value;
};
enum { FIGURES_MAX = 48 };

static uint32_t figures_of(const struct bench_report *r, struct figure figures[FIGURES_MAX])
{
    const struct cost *c = &r->cost;
    const struct bench_result *b = r->result;
    bool metered = strcmp(r->meter, "none") != 0, split = r->load.input_share >= 0;
    const struct figure all[] = {
        {"answered", (double)b->answered},
        {"failed", (double)b->failed},
        {"late", (double)b->late},
        {"seconds", b->seconds},
        {"prompt_tokens", (double)b->prompt_tokens},
        {"output_tokens", (double)b->output_tokens},
        {"ttft_ms_p50", bench_percentile(&b->first_ms, 0.5)},
        {"ttft_ms_p90", bench_percentile(&b->first_ms, 0.9)},
        {"ttft_ms_p99", bench_percentile(&b->first_ms, 0.99)},
        {"gap_ms_p50", bench_percentile(&b->gap_ms, 0.5)},
        {"gap_ms_p90", bench_percentile(&b->gap_ms, 0.9)},
        {"gap_ms_p99", bench_percentile(&b->gap_ms, 0.99)},
        {"request_ms_p50", bench_percentile(&b->whole_ms, 0.5)},
        {"request_ms_p99", bench_percentile(&b->whole_ms, 0.99)},
        {"engine_busy_seconds", r->busy_s >= 0 ? r->busy_s : NAN},
        {"joules", metered ? r->load.joules : NAN},
        {"joules_per_token", metered ? c->joules_token : NAN},
        {"kwh_per_million", metered ? c->million_kwh : NAN},
        {"price_kwh", c->price_kwh},
        {"hour_hardware", c->hour[COST_HARDWARE]},
        {"hour_site", c->hour[COST_SITE]},
        {"hour_opex", c->hour[COST_OPEX]},
        {"hour_energy", metered ? c->hour[COST_ENERGY] : NAN},
        {"hour_income", c->hour[COST_INCOME]},
        {"hour_total", c->hour_total},
        {"tokens_per_hour", c->tokens_hour},
        {"per_million", c->million_all},
        {"per_million_over_outputs", c->million_output},
        {"per_million_inputs", split ? c->million_input_part : NAN},
        {"per_million_outputs", split ? c->million_output_part : NAN},
        {"input_share", split ? r->load.input_share : NAN},
        {"energy_of_running", metered ? c->energy_of_running : NAN},
        {"energy_of_all", metered ? c->energy_of_all : NAN},
    };
    _Static_assert(sizeof all / sizeof *all <= FIGURES_MAX, "all figures have a place");
    memcpy(figures, all, sizeof all);
    return sizeof all / sizeof *all;
}

static double in_band(const struct bench_report *r, uint32_t band)
{
    struct cost cost;
    struct error err;
    double price = r->options->tariff.bands[band].price_kwh;
    return cost_compute(&r->options->terms, &r->load, price, &cost, &err) == ST_OK ? cost.million_all : 0;
}

static void put_band(const struct bench_report *r, uint32_t i, const char *format, struct buf *out)
{
    unsigned from = r->options->tariff.bands[i].from_min, until = r->options->tariff.bands[i].until_min;
    char text[16];
    struct error joined = {""};
    (void)!error_set(&joined, ST_OK, "%02u:%02u-%02u:%02u", from / 60, from % 60, until / 60, until % 60);
    memcpy(text, joined.message, sizeof text - 1);
    text[sizeof text - 1] = 0;
    if (strcmp(format, "json") == 0)
        buf_append_format(out, "{\"from\":\"%.5s\",\"until\":\"%.5s\",\"price_kwh\":%.9g,\"per_million\":%.9g}", text,
                          text + 6, r->options->tariff.bands[i].price_kwh, in_band(r, i));
    else
        buf_append_format(out, "  %s  a kWh at %-8g %.6g a million tokens\n", text,
                          r->options->tariff.bands[i].price_kwh, in_band(r, i));
}

static void put_load(const struct bench_report *r, struct buf *out)
{
    const struct bench_result *b = r->result;
    const struct bench_options *o = r->options;
    buf_append_format(out, "load     ");
    if (o->trace)
        buf_append_format(out, "trace, %g times as fast", o->speed);
    else if (o->per_second > 0)
        buf_append_format(out, "open loop, %g a second, %g in, %g out", o->per_second, o->prompt_tokens,
                          o->output_tokens);
    else
        buf_append_format(out, "closed loop of %g clients, %g in, %g out", o->clients, o->prompt_tokens,
                          o->output_tokens);
    buf_append_format(out, ", on %s: %llu answered, %llu failed\n", r->model, (unsigned long long)b->answered,
                      (unsigned long long)b->failed);
    if (b->failed) buf_append_format(out, "         the first failure: %s\n", b->failure);
    if (b->late)
        buf_append_format(out, "         %llu requests began late: too many connections were open\n",
                          (unsigned long long)b->late);
    buf_append_format(out, "tokens   %llu in, %llu out in %.2f s: %.1f in and %.1f out a second\n",
                      (unsigned long long)b->prompt_tokens, (unsigned long long)b->output_tokens, b->seconds,
                      (double)b->prompt_tokens / b->seconds, (double)b->output_tokens / b->seconds);
    buf_append_format(out,
                      "times    first token p50 %.1f, p90 %.1f, p99 %.1f ms; gaps p50 %.2f, p90 %.2f, p99 %.2f ms; "
                      "request p50 %.0f, p99 %.0f ms\n",
                      bench_percentile(&b->first_ms, 0.5), bench_percentile(&b->first_ms, 0.9),
                      bench_percentile(&b->first_ms, 0.99), bench_percentile(&b->gap_ms, 0.5),
                      bench_percentile(&b->gap_ms, 0.9), bench_percentile(&b->gap_ms, 0.99),
                      bench_percentile(&b->whole_ms, 0.5), bench_percentile(&b->whole_ms, 0.99));
    if (strcmp(r->meter, "none") == 0) {
        buf_append_text(out, "energy   not known: the server has no meter, and --full-watts was not given\n");
    } else {
        buf_append_format(out, "energy   %.1f J, %.1f W in the mean, %.4g J a token, %.4g kWh a million with PUE%s\n",
                          r->load.joules, r->load.joules / r->load.seconds, r->cost.joules_token, r->cost.million_kwh,
                          strcmp(r->meter, "estimate") == 0 ? "  (ESTIMATED)" : "");
    }
    if (r->busy_s >= 0)
        buf_append_format(out, "         the engine was busy %.1f %% of the time\n", 100 * r->busy_s / b->seconds);
}

void bench_report_text(const struct bench_report *r, struct buf *out)
{
    const struct cost *c = &r->cost;
    const struct bench_options *o = r->options;
    bool metered = strcmp(r->meter, "none") != 0;
    put_load(r, out);
    buf_append_format(out, "\ncost     %.6g %s a million tokens, %.6g over outputs alone%s\n", c->million_all,
                      o->currency, c->million_output, metered ? "" : "  (WITHOUT ENERGY)");
    if (r->load.input_share >= 0)
        buf_append_format(out, "         by cause: %.6g a million inputs, %.6g a million outputs\n",
                          c->million_input_part, c->million_output_part);
    for (uint32_t i = 0; i < o->exchanges_count; i++)
        buf_append_format(out, "         %.6g %s a million tokens, at %g %s\n", c->million_all / o->exchanges[i].rate,
                          o->exchanges[i].label, o->exchanges[i].rate, o->currency);
    double spent = c->hour_total - c->hour[COST_INCOME];
    buf_append_format(out, "\n  %-10s %14s %14s %8s\n", "part", "an hour", "a million", "share");
    for (uint32_t i = 0; i < COST_PARTS; i++)
        if (c->hour[i] != 0)
            buf_append_format(out, "  %-10s %14.6g %14.6g %7.1f%%\n", cost_part_name(i), c->hour[i],
                              1e6 * c->hour[i] / c->tokens_hour, spent > 0 ? 100 * c->hour[i] / spent : 0);
    buf_append_format(out, "  %-10s %14.6g %14.6g\n  energy is %.1f %% of running costs, %.1f %% of all\n", "all",
                      c->hour_total, c->million_all, 100 * c->energy_of_running, 100 * c->energy_of_all);
    if (o->tariff.count > 1) {
        buf_append_text(out, "\nover the day, with this load all day:\n");
        for (uint32_t i = 0; i < o->tariff.count; i++) put_band(r, i, "text", out);
    }
    if (o->explain) {
        buf_append_char(out, '\n');
        cost_explain(&o->terms, &r->load, c, o->currency, out);
    }
}

/* What is not known: null in JSON, nothing in CSV. */
static void put_number(double value, const char *unknown, struct buf *out)
{
    if (isfinite(value))
        buf_append_format(out, "%.9g", value);
    else
        buf_append_text(out, unknown);
}

void bench_report_json(const struct bench_report *r, struct buf *out)
{
    struct figure figures[FIGURES_MAX];
    uint32_t count = figures_of(r, figures);
    buf_append_text(out, "{\"model\":");
    buf_append_json_string(out, r->model, strlen(r->model));
    buf_append_format(out, ",\"meter\":\"%s\",\"estimated\":%s,\"currency\":\"%s\"", r->meter,
                      strcmp(r->meter, "estimate") == 0 ? "true" : "false", r->options->currency);
    for (uint32_t i = 0; i < count; i++) {
        buf_append_format(out, ",\"%s\":", figures[i].name);
        put_number(figures[i].value, "null", out);
    }
    buf_append_text(out, ",\"exchanges\":{");
    for (uint32_t i = 0; i < r->options->exchanges_count; i++) {
        buf_append_format(out, "%s\"%s\":", i ? "," : "", r->options->exchanges[i].label);
        put_number(r->cost.million_all / r->options->exchanges[i].rate, "null", out);
    }
    buf_append_text(out, "},\"day\":[");
    for (uint32_t i = 0; i < r->options->tariff.count; i++) {
        if (i) buf_append_char(out, ',');
        put_band(r, i, "json", out);
    }
    buf_append_char(out, ']');
    if (r->options->explain) {
        struct buf text;
        buf_init(&text, 0);
        cost_explain(&r->options->terms, &r->load, &r->cost, r->options->currency, &text);
        buf_append_text(out, ",\"explain\":");
        buf_append_json_string(out, text.data, text.length);
        buf_free(&text);
    }
    buf_append_text(out, "}\n");
}

void bench_report_csv(const struct bench_report *r, struct buf *out)
{
    struct figure figures[FIGURES_MAX];
    uint32_t count = figures_of(r, figures);
    buf_append_text(out, "currency,meter");
    for (uint32_t i = 0; i < count; i++) buf_append_format(out, ",%s", figures[i].name);
    buf_append_format(out, "\n%s,%s", r->options->currency, r->meter);
    for (uint32_t i = 0; i < count; i++) {
        buf_append_char(out, ',');
        put_number(figures[i].value, "", out);
    }
    buf_append_char(out, '\n');
}

/* The picture. */

enum { WIDE = 720, LEFT = 60, PLOT = WIDE - 2 * LEFT, BAR_TOP = 70, DAY_TOP = 230, DAY_HIGH = 120 };
static const char *const colours[COST_PARTS] = {"#4c6a92", "#8c8c8c", "#b59a57", "#3c8d5a", "#a34b4b"};

static void put_bar(const struct bench_report *r, struct buf *out)
{
    const struct cost *c = &r->cost;
    double spent = c->hour_total - c->hour[COST_INCOME], x = LEFT;
    for (uint32_t i = 0; i < COST_INCOME && spent > 0; i++) {
        double wide = c->hour[i] > 0 ? PLOT * c->hour[i] / spent : 0;
        buf_append_format(out, "<rect x=\"%.1f\" y=\"%d\" width=\"%.1f\" height=\"40\" fill=\"%s\"/>\n", x, BAR_TOP,
                          wide, colours[i]);
        buf_append_format(out, "<rect x=\"%d\" y=\"%u\" width=\"10\" height=\"10\" fill=\"%s\"/>", LEFT,
                          (unsigned)(BAR_TOP + 55 + 18 * i), colours[i]);
        buf_append_format(out, "<text x=\"%d\" y=\"%u\">%s: %.6g %s a million tokens (%.1f %%)</text>\n", LEFT + 18,
                          (unsigned)(BAR_TOP + 64 + 18 * i), cost_part_name(i), 1e6 * c->hour[i] / c->tokens_hour,
                          r->options->currency, 100 * c->hour[i] / spent);
        x += wide;
    }
}

static void put_day(const struct bench_report *r, struct buf *out)
{
    const struct tariff *t = &r->options->tariff;
    double most = 0;
    for (uint32_t i = 0; i < t->count; i++)
        if (in_band(r, i) > most) most = in_band(r, i);
    buf_append_format(out, "<text x=\"%d\" y=\"%d\">over the day, %s a million tokens</text>\n", LEFT, DAY_TOP - 10,
                      r->options->currency);
    for (uint32_t i = 0; i < t->count; i++) {
        double cost = in_band(r, i), high = most > 0 && cost > 0 ? DAY_HIGH * cost / most : 0;
        double x = LEFT + (double)PLOT * t->bands[i].from_min / TARIFF_DAY_MINUTES;
        double wide = (double)PLOT * (t->bands[i].until_min - t->bands[i].from_min) / TARIFF_DAY_MINUTES;
        buf_append_format(
            out,
            "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"#3c8d5a\" stroke=\"#fff\"/>"
            "<text x=\"%.1f\" y=\"%.1f\">%.4g</text>\n",
            x, DAY_TOP + DAY_HIGH - high, wide, high, x + 3, DAY_TOP + DAY_HIGH - 4.0, cost);
    }
    for (uint32_t hour = 0; hour <= 24; hour += 6)
        buf_append_format(out, "<text x=\"%.1f\" y=\"%d\">%02u:00</text>\n", LEFT + PLOT * hour / 24.0 - 14,
                          DAY_TOP + DAY_HIGH + 16, (unsigned)hour);
}

static void put_escaped(const char *text, struct buf *out)
{
    for (; *text; text++) {
        if (*text == '<' || *text == '&' || *text == '>' || (unsigned char)*text < 0x20)
            buf_append_format(out, "&#%u;", (unsigned char)*text < 0x20 ? 63u : (unsigned)*text);
        else
            buf_append_char(out, *text);
    }
}

void bench_report_svg(const struct bench_report *r, struct buf *out)
{
    buf_append_format(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" "
        "font-family=\"sans-serif\" font-size=\"12\">\n"
        "<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n<text x=\"%d\" y=\"28\" font-size=\"16\">",
        WIDE, DAY_TOP + DAY_HIGH + 30, LEFT);
    put_escaped(r->model, out);
    buf_append_format(out,
                      ": %.6g %s a million tokens</text>\n<text x=\"%d\" y=\"50\">%.4g kWh a million%s; first token "
                      "p50 %.1f ms, gap p50 %.2f ms</text>\n",
                      r->cost.million_all, r->options->currency, LEFT, r->cost.million_kwh,
                      strcmp(r->meter, "estimate") == 0 ? ", estimated" : "",
                      bench_percentile(&r->result->first_ms, 0.5), bench_percentile(&r->result->gap_ms, 0.5));
    put_bar(r, out);
    put_day(r, out);
    buf_append_text(out, "</svg>\n");
}
