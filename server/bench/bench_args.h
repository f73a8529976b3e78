/* The options of `millrace bench cost`. */
#ifndef SERVER_BENCH_BENCH_ARGS_H
#define SERVER_BENCH_BENCH_ARGS_H

#include "runtime/base/buf.h"
#include "runtime/base/status.h"
#include "runtime/power/cost.h"

#include <stdbool.h>
#include <stdint.h>

enum { BENCH_EXCHANGES_MAX = 4, BENCH_LABEL_MAX = 11 };

enum bench_form { BENCH_TEXT, BENCH_JSON, BENCH_CSV };

struct bench_options {
    const char *server, *model, *trace, *svg, *meter, *key; /* borrowed; NULL: not given. key: from MILLRACE_API_KEY */
    double clients, requests, prompt_tokens, output_tokens, per_second, speed, id_high, seed;
    double idle_w, full_w; /* of the device, where no meter is; full_w 0: no estimate */
    const char *tariff_text;
    double utc_offset_hours;
    struct cost_terms terms;
    char currency[BENCH_LABEL_MAX + 1];
    uint32_t exchanges_count;
    struct {
        char label[BENCH_LABEL_MAX + 1];
        double rate; /* of this currency for one of the other */
    } exchanges[BENCH_EXCHANGES_MAX];
    struct tariff tariff;
    enum bench_form form;
    bool explain, no_split, help;
};

/* argv without program, "bench" and "cost". ST_INVAL: err says what. */
NODISCARD enum status bench_args_read(struct bench_options *options, int argc, char **argv, char **environment,
                                      struct error *err);
void bench_args_help(struct buf *out);

#endif
