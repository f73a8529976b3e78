/* millrace bench cost: a load on a running server, and what its tokens cost. The only file of it that prints, writes
 * the picture and asks the server for anything but answers. */
#include "server/cmd.h"

#include "runtime/base/file.h"
#include "runtime/base/json.h"
#include "runtime/base/mem.h"
#include "server/bench/bench_report.h"
#include "server/http_call.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DONE = 0, FAILED = 1, USAGE = 2, MODEL_CHARS_MAX = 255 };

struct page { /* what /metrics says */
    double busy_s, joules, estimated;
    bool busy_known, joules_known;
};

/* The sum over all labels of a series. */
static bool sum_of(const char *text, const char *name, double *sum)
{
    size_t length = strlen(name);
    bool found = false;
    for (const char *at = text; (at = strstr(at, name)); at += length) {
        if ((at > text && at[-1] != '\n') || (at[length] != '{' && at[length] != ' ')) continue;
        const char *value = at[length] == '{' ? strstr(at, "} ") : at + length - 1;
        if (!value) continue;
        *sum += strtod(value + 2, NULL);
        found = true;
    }
    return found;
}

/* A server without such a page is measured without it. */
static struct page page_read(struct http_call *call, const char *server)
{
    struct page page = {0};
    struct error err = {""};
    struct buf answer;
    int code = 0;
    double own_s = 0;
    buf_init(&answer, 0);
    if (http_call_run(call, server, "/metrics", NULL, &code, &answer, &err) == ST_OK && code == 200) {
        buf_append_char(&answer, 0);
        if (buf_ok(&answer)) {
            page.busy_known = sum_of(answer.data, "mr_engine_device_seconds_total", &page.busy_s) &&
                              sum_of(answer.data, "mr_engine_own_seconds_total", &own_s);
            page.busy_s += own_s;
            page.joules_known = sum_of(answer.data, "mr_energy_joules_total", &page.joules);
            (void)sum_of(answer.data, "mr_power_meter_estimated", &page.estimated);
        }
    }
    buf_free(&answer);
    return page;
}

static enum status model_find(struct http_call *call, const char *server, char model[MODEL_CHARS_MAX + 1],
                              struct error *err)
{
    struct buf answer;
    struct json *root = NULL;
    int code = 0;
    buf_init(&answer, 0);
    enum status status = http_call_run(call, server, "/v1/models", NULL, &code, &answer, err);
    if (status == ST_OK && code != 200)
        status =
            error_set(err, ST_IO, "%s/v1/models answers %d; is --model or MILLRACE_API_KEY missing?", server, code);
    if (status == ST_OK) status = json_read(answer.data ? answer.data : "", answer.length, &root, err);
    if (status == ST_OK) {
        size_t length = 0;
        const char *id = json_to_text(json_member(json_at(json_member(root, "data"), 0), "id"), &length);
        if (!id || length > MODEL_CHARS_MAX)
            status = error_set(err, ST_PROTO, "%s/v1/models names no model: give --model", server);
        else
            memcpy(model, id, length + 1);
    }
    json_release(root);
    buf_free(&answer);
    return status;
}

static enum status work_make(const struct bench_options *o, struct bench_work *work, struct error *err)
{
    if (!o->trace)
        return bench_work_make(work, (uint32_t)o->requests, (uint32_t)o->prompt_tokens, (uint32_t)o->output_tokens,
                               o->per_second, (uint64_t)o->seed, err);
    char *text;
    size_t length;
    enum status status = file_read(o->trace, BENCH_TRACE_BYTES_MAX, "the trace", &text, &length, err);
    if (status != ST_OK) return status;
    status = bench_work_read(work, text, o->speed, err);
    mem_free(text);
    return status;
}

/* One load, and what it took. */
static enum status measure(struct http_call *call, const struct bench_options *o, const struct bench_target *target,
                           const struct bench_work *work, struct bench_result *result, struct bench_report *report,
                           struct error *err)
{
    struct page before = page_read(call, o->server);
    if (target->tick) bench_meter_start(target->tick_state);
    TRY(bench_client_run(target, work, (uint32_t)o->clients, result, err));
    if (result->answered == 0) {
        enum status status = error_set(err, ST_IO, "no request was answered: %s", result->failure);
        bench_result_free(result);
        return status;
    }
    struct page after = page_read(call, o->server);
    report->busy_s = before.busy_known && after.busy_known ? after.busy_s - before.busy_s : -1;
    report->load = (struct cost_load){.seconds = result->seconds,
                                      .prompt_tokens = (double)result->prompt_tokens,
                                      .output_tokens = (double)result->output_tokens,
                                      .input_share = -1};
    report->meter = "none";
    if (target->tick) {
        report->meter = "local";
        enum status status = bench_meter_joules(target->tick_state, result->seconds, &report->load.joules, err);
        if (status != ST_OK) bench_result_free(result);
        return status;
    }
    if (before.joules_known && after.joules_known && after.joules > before.joules) {
        report->meter = after.estimated > 0 ? "estimate" : "server";
        report->load.joules = after.joules - before.joules;
    } else if (o->full_w > 0) {
        double busy_s = report->busy_s >= 0 && report->busy_s < result->seconds ? report->busy_s : result->seconds;
        report->meter = "estimate";
        report->load.joules = o->idle_w * result->seconds + (o->full_w - o->idle_w) * busy_s;
    }
    return ST_OK;
}

static enum status hour_of(const struct bench_options *o, const struct cost_load *load, double *cost, struct error *err)
{
    struct cost computed;
    struct cost_terms terms = o->terms;
    terms.busy_share = 1; /* of the measured time alone */
    TRY(cost_compute(&terms, load, tariff_mean(&o->tariff), &computed, err));
    *cost = computed.hour_total * load->seconds;
    return ST_OK;
}

/* The same prompts alone: their share of the cost. In a closed loop only, where time is what the work takes. */
static enum status split(struct http_call *call, const struct bench_options *o, struct bench_target *target,
                         const struct bench_work *work, struct bench_report *report, struct error *err)
{
    struct bench_work prompts;
    struct bench_result result;
    struct bench_report alone = {.options = o};
    double prompts_cost = 0, all_cost = 0;
    TRY(bench_work_prompts(work, &prompts, err));
    target->seed++; /* other prompts: the server may have kept those */
    enum status status = measure(call, o, target, &prompts, &result, &alone, err);
    bench_work_free(&prompts);
    if (status != ST_OK) return status;
    bench_result_free(&result);
    TRY(hour_of(o, &alone.load, &prompts_cost, err));
    TRY(hour_of(o, &report->load, &all_cost, err));
    if (all_cost > 0) report->load.input_share = prompts_cost < all_cost ? prompts_cost / all_cost : 1;
    return ST_OK;
}

static enum status picture_write(const struct bench_report *report, const char *path, struct error *err)
{
    struct buf picture;
    buf_init(&picture, 0);
    bench_report_svg(report, &picture);
    FILE *file = buf_ok(&picture) ? fopen(path, "w") : NULL;
    bool fine = file && fwrite(picture.data, 1, picture.length, file) == picture.length;
    if (file && fclose(file) != 0) fine = false;
    buf_free(&picture);
    return fine ? ST_OK : error_set(err, ST_IO, "the picture could not be written");
}

static enum status report_all(struct bench_report *report, struct error *err)
{
    static void (*const forms[])(const struct bench_report *, struct buf *) = {
        [BENCH_TEXT] = bench_report_text, [BENCH_JSON] = bench_report_json, [BENCH_CSV] = bench_report_csv};
    const struct bench_options *o = report->options;
    struct buf out;
    TRY(cost_compute(&o->terms, &report->load, tariff_mean(&o->tariff), &report->cost, err));
    buf_init(&out, 0);
    forms[o->form](report, &out);
    bool fine = buf_ok(&out) && fwrite(out.data, 1, out.length, stdout) == out.length && fflush(stdout) == 0;
    buf_free(&out);
    if (!fine) return error_set(err, ST_IO, "the output could not be written");
    return o->svg ? picture_write(report, o->svg, err) : ST_OK;
}

static enum status run(const struct bench_options *o, struct http_call *call, struct bench_meter *meter, bool *whole,
                       struct error *err)
{
    char model[MODEL_CHARS_MAX + 1];
    struct bench_target target = {
        .key = o->key, .id_low = 100, .id_high = (uint32_t)o->id_high, .seed = (uint64_t)o->seed, .model = o->model};
    struct bench_work work;
    struct bench_result result;
    TRY(bench_target_read(o->server, &target, err));
    if (o->meter) {
        TRY(bench_meter_open(meter, o->meter, err));
        target.tick = bench_meter_tick;
        target.tick_state = meter;
    }
    if (!o->model) {
        TRY(model_find(call, o->server, model, err));
        target.model = model;
    }
    TRY(work_make(o, &work, err));
    struct bench_report report = {.options = o, .result = &result, .model = target.model};
    enum status status = measure(call, o, &target, &work, &result, &report, err);
    if (status == ST_OK) {
        if (!work.timed && !o->no_split) status = split(call, o, &target, &work, &report, err);
        if (status == ST_OK) status = report_all(&report, err);
        *whole = result.failed == 0;
        bench_result_free(&result);
    }
    bench_work_free(&work);
    return status;
}

int cmd_bench(int argc, char **argv, char **environment)
{
    static struct bench_options options;
    struct error err = {""};
    struct http_call call;
    struct bench_meter meter = {0};
    bool whole = false;
    if (argc < 1 || strcmp(argv[0], "cost") != 0) {
        fprintf(stderr, "usage: millrace bench cost --tariff PRICE [options]   (millrace bench cost --help)\n");
        return USAGE;
    }
    if (bench_args_read(&options, argc - 1, argv + 1, environment, &err) != ST_OK) {
        fprintf(stderr, "millrace bench cost: %s\n", err.message);
        return USAGE;
    }
    if (options.help) {
        struct buf help;
        buf_init(&help, 0);
        bench_args_help(&help);
        fwrite(help.data, 1, help.length, stdout);
        buf_free(&help);
        return DONE;
    }
    enum status status = http_call_open(&call, &err);
    if (status == ST_OK) {
        call.bearer = options.key;
        status = run(&options, &call, &meter, &whole, &err);
        bench_meter_close(&meter);
        http_call_close(&call);
    }
    if (status != ST_OK) fprintf(stderr, "millrace bench cost: %s\n", err.message);
    return status == ST_OK && whole ? DONE : FAILED;
}
