/* The client of `millrace bench`: sends a list of requests to any server of OpenAI's /v1/completions and times the
 * answers. Prompts are random token ids, different in every request, so that no prefix cache helps; answers are greedy,
 * streamed, and of a fixed length (ignore_eos). Tokens are those of the server's `usage`; times are the client's: to
 * the first event with data, and between events. One thread, a connection a request, plain HTTP. */
#ifndef SERVER_BENCH_BENCH_CLIENT_H
#define SERVER_BENCH_BENCH_CLIENT_H

#include "runtime/base/status.h"
#include "server/bench/bench_meter.h"
#include "server/bench/bench_work.h"

#include <stddef.h>
#include <stdint.h>

enum { BENCH_CONNECTIONS_MAX = 1024, BENCH_SILENCE_MS = 120000 };

struct bench_target {
    char host[256], port[8];
    const char *model, *key;  /* key: NULL without */
    uint32_t id_low, id_high; /* of prompt tokens */
    uint64_t seed;
    void (*tick)(void *state, uint64_t now_ns); /* called every BENCH_METER_MS and oftener; NULL: not */
    void *tick_state;
};

struct bench_series { /* milliseconds, in order once the run has ended */
    double *values;
    size_t count, capacity;
};

struct bench_result {
    uint64_t prompt_tokens, output_tokens, answered, failed;
    uint64_t late; /* requests that waited for a connection: the open loop was not open */
    double seconds;
    struct bench_series first_ms, gap_ms, whole_ms;
    char failure[200]; /* the first one's reason */
};

/* "http://host:port". ST_INVAL: another form, https. */
NODISCARD enum status bench_target_read(const char *url, struct bench_target *target, struct error *err);
/* clients: how many at a time in a closed loop. ST_IO: no server there, or it has been silent for BENCH_SILENCE_MS;
 * ST_NOMEM. Answers that are refused, break off or have the wrong length are counted as failed. */
NODISCARD enum status bench_client_run(const struct bench_target *target, const struct bench_work *work,
                                       uint32_t clients, struct bench_result *result, struct error *err);
void bench_result_free(struct bench_result *result);
/* p of 0..1; 0 when there are none. */
double bench_percentile(const struct bench_series *series, double p);

#endif
