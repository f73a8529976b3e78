/* What `millrace bench cost` prints: text, JSON, CSV, and a picture. Pure. */
#ifndef SERVER_BENCH_BENCH_REPORT_H
#define SERVER_BENCH_BENCH_REPORT_H

#include "runtime/base/buf.h"
#include "runtime/power/cost.h"
#include "server/bench/bench_args.h"
#include "server/bench/bench_client.h"

struct bench_report {
    const struct bench_options *options;
    const struct bench_result *result;
    const char *model;
    struct cost_load load;
    struct cost cost;  /* at the day's mean price */
    const char *meter; /* "server", "local", "estimate" or "none" */
    double busy_s;     /* of the engine; negative: not known */
};

void bench_report_text(const struct bench_report *report, struct buf *out);
void bench_report_json(const struct bench_report *report, struct buf *out);
void bench_report_csv(const struct bench_report *report, struct buf *out);
/* Bars of the parts, and the cost over the day. */
void bench_report_svg(const struct bench_report *report, struct buf *out);

#endif
