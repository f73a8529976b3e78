/* What `millrace bench` sends: a list of requests, by size and, unless each waits for the last, by time.
 *
 *   closed loop   so many clients, each sending its next request when the last answer has ended
 *   open loop     requests at a mean rate, at random (a Poisson process): they do not wait for answers
 *   trace         recorded: CSV lines "seconds,prompt_tokens,output_tokens" in order of time; a first line of names is
 *                 skipped
 *
 * Pure; one thread. */
#ifndef SERVER_BENCH_BENCH_WORK_H
#define SERVER_BENCH_BENCH_WORK_H

#include "runtime/base/status.h"

#include <stdbool.h>
#include <stdint.h>

enum { BENCH_REQUESTS_MAX = 1000000, BENCH_TOKENS_MAX = 1 << 20, BENCH_TRACE_BYTES_MAX = 64 << 20 };

struct bench_request {
    uint64_t at_ns; /* after the start; 0 in a closed loop */
    uint32_t prompt_tokens, output_tokens;
};

struct bench_work {
    struct bench_request *requests; /* owned */
    uint32_t count;
    bool timed;
};

/* per_second 0: a closed loop. ST_INVAL: a number out of range; ST_NOMEM. */
NODISCARD enum status bench_work_make(struct bench_work *work, uint32_t count, uint32_t prompt_tokens,
                                      uint32_t output_tokens, double per_second, uint64_t seed, struct error *err);
/* speed: how much faster than recorded. ST_INVAL: err says the line; ST_NOMEM. */
NODISCARD enum status bench_work_read(struct bench_work *work, const char *text, double speed, struct error *err);
/* The same prompts, one output token each, none timed: what they cost alone. ST_NOMEM. */
NODISCARD enum status bench_work_prompts(const struct bench_work *work, struct bench_work *prompts, struct error *err);
void bench_work_free(struct bench_work *work);

#endif
