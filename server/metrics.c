/* See metrics.h. Names, labels and buckets: API design section 2. A bound is printed as Python's client prints it
 * ("1.0", "1e+06"), because dashboards match `le` as text. Each model prints its series into a text of its own, which
 * notes where a family begins; the families of all models are then put together, for the format wants each in one
 * piece. */
#include "server/metrics.h"

#include "runtime/base/check.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static const double first_token_bounds[] = {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
                                            1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560};
static const double token_bounds[] = {.01, .025, .05, .075, .1,  .15, .2, .3, .4, .5,
                                      .75, 1,    2.5, 5,    7.5, 10,  20, 40, 80};
static const double request_bounds[] = {.3, .5, .8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                                        30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};
static const double iteration_bounds[] = {1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384};
static const double n_bounds[] = {1, 2, 5, 10, 20};
static const double preemption_bounds[] = {1, 2, 3, 4, 5, 10, 20};

#define BOUNDS(list) list, sizeof list / sizeof list[0]

static const struct {
    const char *name, *help;
    const double *bounds; /* NULL: 1 2 5 10 .. to the context's length */
    size_t bounds_count;
} shapes[HISTOGRAM_COUNT] = {
    [HISTOGRAM_TIME_TO_FIRST_TOKEN] = {"time_to_first_token_seconds", "Arrival to first token",
                                       BOUNDS(first_token_bounds)},
    [HISTOGRAM_INTER_TOKEN] = {"inter_token_latency_seconds", "Gap between tokens of a choice", BOUNDS(token_bounds)},
    [HISTOGRAM_TIME_PER_TOKEN] = {"request_time_per_output_token_seconds", "Mean gap of a request",
                                  BOUNDS(token_bounds)},
    [HISTOGRAM_E2E] = {"e2e_request_latency_seconds", "Arrival to end", BOUNDS(request_bounds)},
    [HISTOGRAM_QUEUE] = {"request_queue_time_seconds", "Time waiting", BOUNDS(request_bounds)},
    [HISTOGRAM_INFERENCE] = {"request_inference_time_seconds", "Time running", BOUNDS(request_bounds)},
    [HISTOGRAM_PREFILL] = {"request_prefill_time_seconds", "Start to first token", BOUNDS(request_bounds)},
    [HISTOGRAM_DECODE] = {"request_decode_time_seconds", "First token to end", BOUNDS(request_bounds)},
    [HISTOGRAM_PROMPT] = {"request_prompt_tokens", "Prompt tokens of a request", NULL, 0},
    [HISTOGRAM_GENERATION] = {"request_generation_tokens", "Output tokens of a request", NULL, 0},
    [HISTOGRAM_GENERATION_MAX] = {"request_max_num_generation_tokens", "Output tokens of its longest choice", NULL, 0},
    [HISTOGRAM_PARAMS_MAX_TOKENS] = {"request_params_max_tokens", "The max_tokens asked for", NULL, 0},
    [HISTOGRAM_PREFILL_COMPUTED] = {"request_prefill_kv_computed_tokens", "Prompt tokens not from the cache", NULL, 0},
    [HISTOGRAM_ITERATION] = {"iteration_tokens_total", "Tokens of a step", BOUNDS(iteration_bounds)},
    [HISTOGRAM_PARAMS_N] = {"request_params_n", "The n asked for", BOUNDS(n_bounds)},
    [HISTOGRAM_PREEMPTIONS] = {"request_num_preemptions", "Preemptions of a request", BOUNDS(preemption_bounds)},
};

/* 1 2 5 10 20 50 .. up to the largest that is not above max, as vLLM builds them. */
static void count_bounds(struct histogram *histogram, uint32_t max)
{
    static const double steps[] = {1, 2, 5};
    for (double scale = 1; histogram->bounds_count < METRICS_BUCKETS_MAX; scale *= 10)
        for (size_t i = 0; i < 3; i++) {
            if (steps[i] * scale > max || histogram->bounds_count == METRICS_BUCKETS_MAX) return;
            histogram->bounds[histogram->bounds_count++] = steps[i] * scale;
        }
}

/* As the format writes a label; cut where it does not fit. */
static void escape_label(const char *text, char *out, size_t size)
{
    size_t used = 0;
    for (const char *c = text; *c && used + 3 < size; c++) {
        if (*c == '"' || *c == '\\') out[used++] = '\\';
        out[used++] = *c == '\n' ? ' ' : *c;
    }
    out[used] = '\0';
}

void metrics_init(struct metrics *metrics, const char *model_name, uint32_t context_max)
{
    *metrics = (struct metrics){0};
    escape_label(model_name, metrics->model_name, sizeof metrics->model_name);
    for (size_t i = 0; i < HISTOGRAM_COUNT; i++) {
        struct histogram *histogram = &metrics->histograms[i];
        if (!shapes[i].bounds) {
            count_bounds(histogram, context_max);
            continue;
        }
        CHECK(shapes[i].bounds_count <= METRICS_BUCKETS_MAX);
        histogram->bounds_count = (uint32_t)shapes[i].bounds_count;
        memcpy(histogram->bounds, shapes[i].bounds, shapes[i].bounds_count * sizeof(double));
    }
}

void metrics_observe(struct metrics *metrics, enum metrics_histogram idx, double value)
{
    struct histogram *histogram = &metrics->histograms[idx];
    uint32_t bucket = 0;
    while (bucket < histogram->bounds_count && value > histogram->bounds[bucket]) bucket++;
    histogram->counts[bucket]++;
    histogram->sum += value;
}

static double seconds(uint64_t from_ns, uint64_t to_ns)
{
    return to_ns > from_ns ? (double)(to_ns - from_ns) / 1e9 : 0;
}

void metrics_request_done(struct metrics *metrics, const struct request *request)
{
    const struct usage *usage = &request->usage;
    uint32_t longest = 0;
    for (uint32_t i = 0; i < request->choices_count; i++)
        if (request->choices[i].output_count > longest) longest = request->choices[i].output_count;
    metrics->finished[usage->cause]++;
    metrics_observe(metrics, HISTOGRAM_E2E, seconds(request->submitted_ns, request->done_ns));
    metrics_observe(metrics, HISTOGRAM_QUEUE, seconds(request->submitted_ns, request->scheduled_ns));
    metrics_observe(metrics, HISTOGRAM_INFERENCE, seconds(request->scheduled_ns, request->done_ns));
    if (request->first_token_ns) {
        double decode = seconds(request->first_token_ns, request->done_ns);
        metrics_observe(metrics, HISTOGRAM_PREFILL, seconds(request->scheduled_ns, request->first_token_ns));
        metrics_observe(metrics, HISTOGRAM_DECODE, decode);
        if (longest > 1) metrics_observe(metrics, HISTOGRAM_TIME_PER_TOKEN, decode / (longest - 1));
    }
    metrics_observe(metrics, HISTOGRAM_PROMPT, usage->in_total);
    metrics_observe(metrics, HISTOGRAM_PREFILL_COMPUTED, usage->in_total - usage->in_hit);
    metrics_observe(metrics, HISTOGRAM_GENERATION, usage->out);
    metrics_observe(metrics, HISTOGRAM_GENERATION_MAX, longest);
    metrics_observe(metrics, HISTOGRAM_PARAMS_MAX_TOKENS, request->max_tokens);
    metrics_observe(metrics, HISTOGRAM_PARAMS_N, request->choices_count);
    metrics_observe(metrics, HISTOGRAM_PREEMPTIONS, usage->preemptions);
}

void metrics_usage(struct metrics *metrics, const struct usage_record *record)
{
    metrics->records[record->sum.cause]++;
    metrics->records_mismatch += record->sum.mismatch;
    metrics->recorded_in += record->sum.in_total;
    metrics->recorded_hit += record->sum.in_hit;
    metrics->recorded_out += record->sum.out;
    metrics->recorded_reasoning += record->sum.out_reasoning;
    metrics->recorded_recomputed += record->sum.recomputed;
}

void metrics_reply(struct metrics_process *process, int http_status)
{
    int first = http_status / 100;
    process->replies[first >= 1 && first <= 5 ? first : 0]++;
}

/* ---- text ---- */

enum { FAMILIES_MAX = 96 };

struct printer {
    struct buf *out;
    const char *model_label; /* ",model_name=\"..\"", or "" for the process's */
    uint32_t families;
    size_t heads[FAMILIES_MAX], samples[FAMILIES_MAX]; /* where a family's head and its samples begin */
};

static void head(struct printer *printer, const char *name, const char *kind, const char *help)
{
    CHECK(printer->families < FAMILIES_MAX);
    printer->heads[printer->families] = printer->out->length;
    buf_append_format(printer->out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind);
    printer->samples[printer->families++] = printer->out->length;
}

/* One sample; labels: more of them, each with a leading comma, or "". */
static void sample(const struct printer *printer, const char *name, const char *labels, double value)
{
    buf_append_format(printer->out, "%s{engine=\"0\"%s%s} %.17g\n", name, printer->model_label, labels, value);
}

static void single(struct printer *printer, const char *name, const char *kind, const char *help, double value)
{
    head(printer, name, kind, help);
    sample(printer, name, "", value);
}

/* repr(float) of a bound, and the exponent form that Python's client uses from a million on. */
static void print_bound(struct buf *out, double bound)
{
    if (bound < 1e6) {
        bool whole = bound == (double)(uint64_t)bound;
        buf_append_format(out, whole ? "%.1f" : "%.6g", bound);
        return;
    }
    uint32_t exponent = 0;
    for (; bound >= 10; exponent++) bound /= 10;
    buf_append_format(out, "%.6ge+%02u", bound, exponent);
}

static void histogram_print(struct printer *printer, const char *name, const char *help,
                            const struct histogram *histogram)
{
    uint64_t total = 0;
    char family[80];
    (void)snprintf(family, sizeof family, "vllm:%s", name);
    head(printer, family, "histogram", help);
    for (uint32_t i = 0; i <= histogram->bounds_count; i++) {
        total += histogram->counts[i];
        buf_append_format(printer->out, "vllm:%s_bucket{engine=\"0\",le=\"", name);
        if (i < histogram->bounds_count)
            print_bound(printer->out, histogram->bounds[i]);
        else
            buf_append_text(printer->out, "+Inf");
        buf_append_format(printer->out, "\"%s} %" PRIu64 "\n", printer->model_label, total);
    }
    buf_append_format(printer->out, "vllm:%s_sum{engine=\"0\"%s} %.17g\n", name, printer->model_label, histogram->sum);
    buf_append_format(printer->out, "vllm:%s_count{engine=\"0\"%s} %" PRIu64 "\n", name, printer->model_label, total);
}

static void print_gauges(struct printer *p, const struct engine_stats *stats, const struct metrics_model *now)
{
    double total = stats->kv_blocks_total, usage = total > 0 ? stats->kv_blocks_used / total : 0;
    double waiting = (double)stats->waiting + now->preparing;
    single(p, "vllm:num_requests_running", "gauge", "Sequences in execution", stats->running);
    single(p, "vllm:num_requests_waiting", "gauge", "Requests waiting to start", waiting);
    head(p, "vllm:num_requests_waiting_by_reason", "gauge", "Requests waiting to start, by reason");
    sample(p, "vllm:num_requests_waiting_by_reason", ",reason=\"capacity\"", waiting);
    sample(p, "vllm:num_requests_waiting_by_reason", ",reason=\"deferred\"", 0);
    single(p, "vllm:kv_cache_usage_perc", "gauge", "Share of KV blocks in use, 1 is all", usage);
    single(p, "vllm:gpu_cache_usage_perc", "gauge", "Old name of kv_cache_usage_perc", usage);
    head(p, "vllm:engine_sleep_state", "gauge", "1 for the state the engine is in");
    sample(p, "vllm:engine_sleep_state", ",sleep_state=\"awake\"", now->sleep_level == 0);
    sample(p, "vllm:engine_sleep_state", ",sleep_state=\"weights_offloaded\"", now->sleep_level == 1);
    sample(p, "vllm:engine_sleep_state", ",sleep_state=\"discard_all\"", now->sleep_level == 2);
    head(p, "vllm:cache_config_info", "gauge", "How the KV cache is set up");
    buf_append_format(p->out,
                      "vllm:cache_config_info{block_size=\"%d\",enable_prefix_caching=\"%s\",engine=\"0\""
                      "%s,num_gpu_blocks=\"%u\"} 1\n",
                      KV_BLOCK_TOKENS, now->prefix_cache ? "True" : "False", p->model_label, stats->kv_blocks_total);
    head(p, "vllm:lora_requests_info", "gauge", "Adapters in use: there are none; routers ask for the series");
    sample(p, "vllm:lora_requests_info", ",max_lora=\"0\",running_lora_adapters=\"\",waiting_lora_adapters=\"\"", 1);
    single(p, "mr_ready", "gauge", "1 while new requests are taken", now->ready);
    head(p, "mr_model_memory_bytes", "gauge", "Memory that the model takes now, by what for");
    sample(p, "mr_model_memory_bytes", ",of=\"weights\"", (double)now->weights_bytes);
    sample(p, "mr_model_memory_bytes", ",of=\"kv\"", (double)now->kv_bytes);
    sample(p, "mr_model_memory_bytes", ",of=\"scratch\"", (double)now->scratch_bytes);
    single(p, "mr_model_load_seconds", "gauge", "How long the last load took, 0: none yet", (double)now->load_ns / 1e9);
    single(p, "mr_model_wake_seconds", "gauge", "How long the last wake took, 0: none yet", (double)now->wake_ns / 1e9);
    single(p, "mr_model_wake_estimate_seconds", "gauge", "How long the next wake is expected to take",
           (double)now->wake_estimate_ns / 1e9);
}

static void print_usage(struct printer *p, const struct metrics *metrics)
{
    char label[64];
    head(p, "mr_rate_limited_total", "counter", "Requests refused with 429, by limit");
    sample(p, "mr_rate_limited_total", ",limit=\"queue_share\"", (double)metrics->rate_limited);
    head(p, "mr_usage_records_total", "counter", "Usage records, by cause");
    for (int i = CAUSE_STOP; i < CAUSES; i++) {
        (void)snprintf(label, sizeof label, ",cause=\"%s\"", usage_cause_name((enum cause)i));
        sample(p, "mr_usage_records_total", label, (double)metrics->records[i]);
    }
    single(p, "mr_usage_mismatch_total", "counter", "Records whose counts disagreed",
           (double)metrics->records_mismatch);
    head(p, "mr_usage_tokens_total", "counter", "Tokens in usage records, by kind");
    sample(p, "mr_usage_tokens_total", ",kind=\"in_total\"", (double)metrics->recorded_in);
    sample(p, "mr_usage_tokens_total", ",kind=\"in_hit\"", (double)metrics->recorded_hit);
    sample(p, "mr_usage_tokens_total", ",kind=\"out\"", (double)metrics->recorded_out);
    sample(p, "mr_usage_tokens_total", ",kind=\"out_reasoning\"", (double)metrics->recorded_reasoning);
    sample(p, "mr_usage_tokens_total", ",kind=\"recomputed\"", (double)metrics->recorded_recomputed);
}

static void print_counters(struct printer *p, const struct metrics *metrics, const struct engine_stats *stats)
{
    single(p, "vllm:prompt_tokens_total", "counter", "Prompt tokens", (double)stats->prompt_tokens);
    head(p, "vllm:prompt_tokens_by_source_total", "counter", "Prompt tokens, by where their KV came from");
    sample(p, "vllm:prompt_tokens_by_source_total", ",source=\"local_compute\"", (double)stats->computed_prompt_tokens);
    sample(p, "vllm:prompt_tokens_by_source_total", ",source=\"local_cache_hit\"", (double)stats->cached_tokens);
    sample(p, "vllm:prompt_tokens_by_source_total", ",source=\"external_kv_transfer\"", 0);
    single(p, "vllm:prompt_tokens_cached_total", "counter", "Prompt tokens from the cache",
           (double)stats->cached_tokens);
    single(p, "vllm:generation_tokens_total", "counter", "Output tokens", (double)stats->generation_tokens);
    single(p, "vllm:num_preemptions_total", "counter", "Preemptions", (double)stats->preemptions);
    single(p, "vllm:prefix_cache_queries_total", "counter", "Tokens looked up", (double)stats->prefix_queries_tokens);
    single(p, "vllm:prefix_cache_hits_total", "counter", "Tokens found", (double)stats->prefix_hits_tokens);
    head(p, "vllm:request_success_total", "counter", "Requests that ended, by reason");
    double aborted = (double)(metrics->finished[CAUSE_CLIENT_GONE] + metrics->finished[CAUSE_PLATFORM_CANCEL]);
    sample(p, "vllm:request_success_total", ",finished_reason=\"stop\"", (double)metrics->finished[CAUSE_STOP]);
    sample(p, "vllm:request_success_total", ",finished_reason=\"length\"", (double)metrics->finished[CAUSE_LENGTH]);
    sample(p, "vllm:request_success_total", ",finished_reason=\"abort\"", aborted);
    sample(p, "vllm:request_success_total", ",finished_reason=\"error\"",
           (double)metrics->finished[CAUSE_PLATFORM_ERROR]);
    sample(p, "vllm:request_success_total", ",finished_reason=\"repetition\"", 0);
    head(p, "vllm:admission_rejections_total", "counter", "Requests refused because the queue was full");
    sample(p, "vllm:admission_rejections_total", ",reason=\"max_num_queued_reqs\"", (double)metrics->rejected_requests);
    sample(p, "vllm:admission_rejections_total", ",reason=\"max_num_queued_tokens\"", 0);
    single(p, "mr_recomputed_tokens_total", "counter", "Tokens prefilled again after preemption",
           (double)stats->recomputed_tokens);
    single(p, "mr_engine_steps_total", "counter", "Steps", (double)stats->steps);
    single(p, "mr_engine_steps_ahead_total", "counter", "Steps handed to the device while another was under way",
           (double)stats->steps_ahead);
    single(p, "mr_engine_step_seconds_total", "counter", "Time in steps", (double)stats->step_ns_total / 1e9);
    single(p, "mr_engine_device_seconds_total", "counter", "Of it on the device", (double)stats->device_ns_total / 1e9);
    single(p, "mr_engine_own_seconds_total", "counter", "Time of the engine's thread neither on the device nor asleep",
           (double)stats->own_ns_total / 1e9);
    single(p, "mr_engine_idle_seconds_total", "counter", "Time of the engine's thread asleep",
           (double)stats->idle_ns_total / 1e9);
    single(p, "mr_engine_turn_seconds_total", "counter", "Of it waiting for another model's step on the same cores",
           (double)stats->turn_ns_total / 1e9);
    single(p, "mr_engine_paced_seconds_total", "counter", "Of it waiting for watts, with work there",
           (double)stats->paced_ns_total / 1e9);
    print_usage(p, metrics);
}

static void print_group(struct printer *p, const char *tier, const char *model, const struct energy_group *group)
{
    char label[2 * POWER_MODEL_NAME_MAX + 64], name[2 * POWER_MODEL_NAME_MAX + 2];
    escape_label(model, name, sizeof name);
    (void)snprintf(label, sizeof label, ",tier=\"%s\",model=\"%s\",phase=\"prefill\"", tier, name);
    sample(p, "mr_energy_joules_total", label, (double)group->prefill_uj * 1e-6);
    (void)snprintf(label, sizeof label, ",tier=\"%s\",model=\"%s\",phase=\"decode\"", tier, name);
    sample(p, "mr_energy_joules_total", label, (double)group->decode_uj * 1e-6);
}

/* All phases of closed windows: their sum is the meter. */
static void print_energy(struct printer *p, const struct power_usage *usage)
{
    static const char *const tiers[CLASS_COUNT] = {"priority", "default", "flex", "batch"};
    const struct energy_books *books = &usage->books;
    const struct {
        const char *labels;
        uint64_t uj;
    } phases[] = {{",tier=\"\",model=\"\",phase=\"idle\"", books->idle_uj},
                  {",tier=\"\",model=\"\",phase=\"paced\"", books->paced_uj},
                  {",tier=\"\",model=\"\",phase=\"unattributed\"", books->unattributed_uj}};
    head(p, "mr_energy_joules_total", "counter",
         "Joules of the meter, each once: of requests by tier and model, and of nobody; idle and paced at base power");
    for (uint32_t i = 0; i < usage->count; i++)
        for (uint32_t tier = 0; tier < CLASS_COUNT; tier++)
            print_group(p, tiers[tier], usage->models[i], &usage->groups[i][tier]);
    for (size_t i = 0; i < sizeof phases / sizeof *phases; i++)
        sample(p, "mr_energy_joules_total", phases[i].labels, (double)phases[i].uj * 1e-6);
}

static void print_carbon(struct printer *p, const struct energy_books *books)
{
    const struct carbon *carbon = &books->carbon;
    head(p, "mr_co2_grams_total", "counter",
         "CO2 of the meter's joules times PUE, by method: location, market (green energy taken off), and by marginal "
         "factors where they are told; never to be added up");
    sample(p, "mr_co2_grams_total", ",method=\"location\"", (double)carbon->location_ug * 1e-6);
    sample(p, "mr_co2_grams_total", ",method=\"market\"", (double)carbon->market_ug * 1e-6);
    sample(p, "mr_co2_grams_total", ",method=\"marginal\"", (double)carbon->marginal_ug * 1e-6);
    single(p, "mr_green_joules_total", "counter", "Energy at the building's door that green power on offer covered",
           (double)carbon->green_uj * 1e-6);
    single(p, "mr_green_offered_joules_total", "counter", "Green energy that was on offer", books->offered_j);
    if (books->offered_j > 0)
        single(p, "mr_self_use_ratio", "gauge", "Of the green energy on offer what was used; absent without any",
               (double)carbon->green_uj * 1e-6 / books->offered_j);
}

static void print_requests(struct printer *p, const struct request_energy_counts *counts)
{
    single(p, "mr_energy_requests_total", "counter", "Requests whose joules are booked to the last window",
           (double)counts->ended);
    single(p, "mr_energy_requests_unkept_total", "counter", "Requests that had no place in the account of requests",
           (double)counts->unkept);
    single(p, "mr_energy_requests_open", "gauge", "Requests whose account is open", counts->alive);
}

/* Parts of a million tokens, inputs and outputs alike; their sum is the total. */
static void print_cost(struct printer *p, const struct metrics_power *now)
{
    const struct cost *cost = &now->cost.cost;
    char label[128];
    head(p, "mr_cost_per_million_tokens", "gauge",
         "Cost of a million tokens since the start, by part; output: all of it over output tokens alone");
    for (int part = 0; part < COST_PARTS; part++) {
        (void)snprintf(label, sizeof label, ",part=\"%s\",currency=\"%s\"", cost_part_name((enum cost_part)part),
                       now->currency);
        sample(p, "mr_cost_per_million_tokens", label, 1e6 * cost->hour[part] / cost->tokens_hour);
    }
    (void)snprintf(label, sizeof label, ",part=\"total\",currency=\"%s\"", now->currency);
    sample(p, "mr_cost_per_million_tokens", label, cost->million_all);
    (void)snprintf(label, sizeof label, ",part=\"output\",currency=\"%s\"", now->currency);
    sample(p, "mr_cost_per_million_tokens", label, cost->million_output);
}

static void print_power(struct printer *p, const struct metrics_power *now)
{
    if (!now->is_on) return;
    print_energy(p, now->usage);
    print_carbon(p, &now->usage->books);
    print_requests(p, &now->usage->requests);
    if (now->has_cost) print_cost(p, now);
    head(p, "mr_power_watts", "gauge", "Power of the last window of the meter, by scope");
    sample(p, "mr_power_watts", ",scope=\"devices\"", now->watts);
    if (isfinite(now->setpoint_w)) {
        single(p, "mr_power_setpoint_watts", "gauge", "Power that is held now; absent without a limit",
               now->setpoint_w);
        single(p, "mr_power_error_ratio", "gauge", "Power above the set point, 1 is twice as much", now->error_ratio);
    }
    single(p, "mr_shed_level", "gauge", "Load shed for power: 0 nothing, 3 down to the floor", now->shed_level);
    single(p, "mr_power_meter_estimated", "gauge", "1 when there is no meter and watts are computed from the work",
           now->estimated);
    single(p, "mr_power_meter_alarm", "gauge", "0 the meter is heard, 1 silent, 2 lost", now->alarm);
    single(p, "mr_power_meter_joules_total", "counter", "Energy that the meter has counted", now->meter_j);
    single(p, "mr_power_meter_seconds_total", "counter", "In how long it has", now->meter_s);
    single(p, "mr_power_meter_windows_total", "counter", "Windows of the meter that were closed", (double)now->windows);
    single(p, "mr_power_meter_failures_total", "counter", "Readings of the meter that failed",
           (double)now->read_failures);
    single(p, "mr_power_steps_lost_total", "counter", "Steps whose record had no room: their joules are nobody's",
           (double)now->steps_lost);
}

static void print_process(struct printer *p, const struct metrics_process *now)
{
    static const char *const classes[] = {"other", "1xx", "2xx", "3xx", "4xx", "5xx"};
    char label[64];
    single(p, "mr_http_connections", "gauge", "Open connections", now->connections);
    single(p, "mr_answers_in_progress", "gauge", "Calls that are being answered", now->answers);
    single(p, "mr_memory_limit_bytes", "gauge", "What all models together may take", (double)now->memory_limit_bytes);
    single(p, "process_cpu_seconds_total", "counter", "CPU time of the process", (double)now->process_cpu_ns / 1e9);
    single(p, "mr_io_cpu_seconds_total", "counter", "CPU time of the thread that serves sockets",
           (double)now->io_cpu_ns / 1e9);
    head(p, "mr_io_switches_total", "counter", "Times that thread gave up its core, by why");
    sample(p, "mr_io_switches_total", ",why=\"asleep\"", (double)now->io_switches_own);
    sample(p, "mr_io_switches_total", ",why=\"preempted\"", (double)now->io_switches_forced);
    single(p, "mr_log_lines_dropped_total", "counter", "Log lines that could not be written",
           (double)now->log_lines_dropped);
    if (now->has_audit) {
        single(p, "mr_audit_lines_total", "counter", "Lines written to the audit log", (double)now->audit_lines);
        single(p, "mr_audit_failures_total", "counter", "Lines that the audit log could not take",
               (double)now->audit_failures);
    }
    print_power(p, &now->power);
    single(p, "mr_balancer_weight", "gauge", "Share of new requests that a balancer should send here, 0 to 100",
           now->weight);
    head(p, "mr_http_replies_total", "counter", "Answers, by class of status");
    for (size_t i = 2; i < 6; i++) {
        (void)snprintf(label, sizeof label, ",status=\"%s\"", classes[i]);
        sample(p, "mr_http_replies_total", label, (double)now->replies[i]);
    }
}

static void print_model(struct printer *p, const struct metrics_model *model)
{
    static const struct engine_stats none;
    const struct engine_stats *stats = model->engine ? model->engine : &none;
    print_gauges(p, stats, model);
    print_counters(p, model->metrics, stats);
    for (size_t i = 0; i < HISTOGRAM_COUNT; i++)
        histogram_print(p, shapes[i].name, shapes[i].help, &model->metrics->histograms[i]);
    histogram_print(p, "time_per_output_token_seconds", "Old name of inter_token_latency_seconds",
                    &model->metrics->histograms[HISTOGRAM_INTER_TOKEN]);
}

/* Adds a model's samples to each family that the models before it have. */
static void merge(struct printer *all, const struct printer *one, struct buf *out)
{
    struct buf merged;
    size_t heads[FAMILIES_MAX], samples[FAMILIES_MAX];
    CHECK(all->families == one->families); /* every model prints the same ones */
    buf_init(&merged, 0);
    for (uint32_t i = 0; i < all->families && buf_ok(all->out) && buf_ok(one->out); i++) {
        bool last = i + 1 == all->families;
        size_t all_end = last ? all->out->length : all->heads[i + 1];
        size_t one_end = last ? one->out->length : one->heads[i + 1];
        heads[i] = merged.length;
        samples[i] = merged.length + all->samples[i] - all->heads[i];
        buf_append(&merged, all->out->data + all->heads[i], all_end - all->heads[i]);
        buf_append(&merged, one->out->data + one->samples[i], one_end - one->samples[i]);
    }
    merged.failed = merged.failed || !buf_ok(all->out) || !buf_ok(one->out);
    memcpy(all->heads, heads, sizeof heads);
    memcpy(all->samples, samples, sizeof samples);
    buf_free(out);
    *out = merged;
}

void metrics_print(const struct metrics_model *models, uint32_t count, const struct metrics_process *process,
                   struct buf *out)
{
    struct buf families;
    struct printer all = {.out = &families, .families = 0};
    buf_init(&families, 0);
    for (uint32_t i = 0; i < count; i++) {
        char label[sizeof models->metrics->model_name + 16];
        struct buf text;
        struct printer one = {.out = &text, .model_label = label};
        (void)snprintf(label, sizeof label, ",model_name=\"%s\"", models[i].metrics->model_name);
        buf_init(&text, 0);
        if (i == 0) {
            all.model_label = label;
            print_model(&all, &models[i]);
        } else {
            print_model(&one, &models[i]);
            merge(&all, &one, &families);
        }
        buf_free(&text);
    }
    if (buf_ok(&families))
        buf_append(out, families.data ? families.data : "", families.length);
    else
        out->failed = true;
    buf_free(&families);
    struct printer own = {.out = out, .model_label = ""};
    print_process(&own, process);
}
