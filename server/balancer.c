/* See balancer.h. */
#include "server/balancer.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

static const char *const words[] = {
    [BALANCER_UP] = "up", [BALANCER_DRAIN] = "drain", [BALANCER_MAINT] = "maint", [BALANCER_DOWN] = "down"};

const char *balancer_word_text(enum balancer_word word)
{
    return words[word];
}

bool balancer_word_read(const char *text, enum balancer_word *word)
{
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (strcmp(text, words[i]) == 0) return *word = (enum balancer_word)i, true;
    return false;
}

/* NAN becomes 0. */
static double within(double value, double most)
{
    return value > most ? most : value > 0 ? value : 0;
}

size_t balancer_agent_line(const struct balancer_view *view, char line[BALANCER_LINE_BYTES])
{
    int length = view->word == BALANCER_UP ? snprintf(line, BALANCER_LINE_BYTES, "ready up %d%%\n",
                                                      (int)fmax(1, floor(within(view->weight, 100) + 0.5)))
                                           : snprintf(line, BALANCER_LINE_BYTES, "%s\n", words[view->word]);
    return (size_t)length;
}

void balancer_load_header(const struct balancer_view *view, const char *format, struct buf *out)
{
    const struct {
        const char *name;
        double value;
    } named[] = {{"weight", within(view->weight, 100)},      {"kv_cache_usage_perc", within(view->kv_used, 1)},
                 {"num_requests_waiting", view->waiting},    {"watts", view->watts},
                 {"allowance_share", view->allowance_share}, {"price_kwh", view->price_kwh},
                 {"green_share", view->green_share}};
    bool json = strcasecmp(format, "json") == 0, first = true;
    if (!json && strcasecmp(format, "text") != 0) return;
    double used = view->word == BALANCER_UP ? 1 - within(view->weight, 100) / 100 : 1;
    buf_append_text(out, "endpoint-load-metrics: ");
    buf_append_format(
        out, json ? "JSON {\"application_utilization\":%.4g,\"named_metrics\":{" : "TEXT application_utilization=%.4g",
        used);
    for (size_t i = 0; i < sizeof named / sizeof *named; i++) {
        if (!isfinite(named[i].value)) continue;
        buf_append_format(out, json ? "%s\"%s\":%.6g" : "%snamed_metrics.%s=%.6g", json ? first ? "" : "," : ",",
                          named[i].name, named[i].value);
        first = false;
    }
    buf_append_text(out, json ? "}}\r\n" : "\r\n");
}
