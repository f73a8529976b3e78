/* Lists of requests; see bench_work.h. */
#include "server/bench/bench_work.h"

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/base/random.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double SECONDS_MAX = 1e7;

static enum status work_alloc(struct bench_work *work, uint32_t count, struct error *err)
{
    *work = (struct bench_work){.count = count};
    work->requests = mem_alloc(count, sizeof *work->requests);
    return work->requests ? ST_OK : error_set(err, ST_NOMEM, "no memory for %u requests", (unsigned)count);
}

void bench_work_free(struct bench_work *work)
{
    mem_free(work->requests);
    *work = (struct bench_work){0};
}

enum status bench_work_make(struct bench_work *work, uint32_t count, uint32_t prompt_tokens, uint32_t output_tokens,
                            double per_second, uint64_t seed, struct error *err)
{
    if (count < 1 || count > BENCH_REQUESTS_MAX || prompt_tokens < 1 || prompt_tokens > BENCH_TOKENS_MAX ||
        output_tokens < 1 || output_tokens > BENCH_TOKENS_MAX)
        return error_set(err, ST_INVAL, "requests are 1 to %d, their tokens 1 to %d", (int)BENCH_REQUESTS_MAX,
                         (int)BENCH_TOKENS_MAX);
    if (!(per_second >= 0) || (per_second > 0 && count / per_second > SECONDS_MAX) || per_second > 1e6)
        return error_set(err, ST_INVAL, "%g requests a second cannot be", per_second);
    TRY(work_alloc(work, count, err));
    work->timed = per_second > 0;
    double second = 0;
    for (uint32_t i = 0; i < count; i++) {
        work->requests[i] = (struct bench_request){(uint64_t)(second * 1e9), prompt_tokens, output_tokens};
        if (work->timed) second -= log1p(-random_uniform(seed, i)) / per_second; /* exponential gaps */
    }
    return ST_OK;
}

/* "seconds,prompt,output" up to the end of the line. */
static bool read_line(const char *line, const char *end, double speed, struct bench_request *request)
{
    char *at;
    double seconds = strtod(line, &at);
    if (at == line || at >= end || *at != ',' || !(seconds >= 0 && seconds / speed <= SECONDS_MAX)) return false;
    uint32_t *const numbers[] = {&request->prompt_tokens, &request->output_tokens};
    for (uint32_t i = 0; i < 2; i++) {
        const char *from = at + 1;
        if (*from < '0' || *from > '9') return false;
        unsigned long value = strtoul(from, &at, 10);
        if (value < 1 || value > BENCH_TOKENS_MAX || (i == 0 && *at != ',')) return false;
        *numbers[i] = (uint32_t)value;
    }
    while (at < end && (*at == ' ' || *at == '\r')) at++;
    request->at_ns = (uint64_t)(seconds / speed * 1e9);
    return at == end;
}

enum status bench_work_read(struct bench_work *work, const char *text, double speed, struct error *err)
{
    uint32_t lines = 1, number = 0;
    if (!(speed > 0 && speed <= 1e6)) return error_set(err, ST_INVAL, "a speed of %g cannot be", speed);
    for (const char *at = text; *at; at++) lines += *at == '\n';
    if (lines > BENCH_REQUESTS_MAX)
        return error_set(err, ST_INVAL, "a trace has at most %d lines", (int)BENCH_REQUESTS_MAX);
    TRY(work_alloc(work, lines, err));
    work->count = 0;
    work->timed = true;
    for (const char *line = text; *line;) {
        const char *end = line + strcspn(line, "\n");
        struct bench_request request = {0};
        number++;
        bool names = number == 1 && ((*line >= 'a' && *line <= 'z') || (*line >= 'A' && *line <= 'Z'));
        if (!names && end > line) {
            bool fine = read_line(line, end, speed, &request);
            fine = fine && (work->count == 0 || request.at_ns >= work->requests[work->count - 1].at_ns);
            if (!fine) {
                bench_work_free(work);
                return error_set(err, ST_INVAL,
                                 "line %u of the trace is not seconds,prompt_tokens,output_tokens in "
                                 "order of time",
                                 (unsigned)number);
            }
            work->requests[work->count++] = request;
        }
        line = *end ? end + 1 : end;
    }
    if (work->count > 0) return ST_OK;
    bench_work_free(work);
    return error_set(err, ST_INVAL, "the trace has no requests");
}

enum status bench_work_prompts(const struct bench_work *work, struct bench_work *prompts, struct error *err)
{
    TRY(work_alloc(prompts, work->count, err));
    for (uint32_t i = 0; i < work->count; i++)
        prompts->requests[i] = (struct bench_request){0, work->requests[i].prompt_tokens, 1};
    return ST_OK;
}
