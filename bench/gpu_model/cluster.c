/* See cluster.h. */
#include "bench/gpu_model/cluster.h"

#include "runtime/base/mem.h"
#include "runtime/base/random.h"

#include <math.h>
#include <stdlib.h>

enum { VOCAB = 4096 };

struct node {
    struct sched *sched;
    double step_end_s; /* INFINITY: no step runs */
    uint32_t requests;
};

struct cluster {
    const struct cluster_config *config;
    struct node *nodes;
    struct cluster_job *jobs;
    struct cluster_request *requests;
    struct batch_result *result;
    uint32_t count, next, ended;
    double now_s;
    struct cluster_report *report;
};

static uint64_t ns_of(double seconds)
{
    return 1 + (uint64_t)llround(seconds * 1e9);
}

static void fill_prompt(struct cluster_job *job, uint32_t idx, uint32_t vocab)
{
    const struct cluster_request *asked = job->asked;
    uint64_t own = idx + UINT64_C(0x100000000), shared = asked->group;
    for (uint32_t i = 0; i < asked->prompt_count; i++) {
        bool of_group = asked->group && i < asked->shared_count;
        job->tokens[i] = (uint32_t)(random_next(of_group ? &shared : &own) % vocab);
    }
}

enum status cluster_job_make(struct cluster_job *job, uint32_t idx, struct cluster_request *asked, uint32_t vocab)
{
    job->asked = asked;
    job->tokens = mem_alloc((size_t)asked->prompt_count + asked->output_count, sizeof *job->tokens);
    if (!job->tokens) return ST_NOMEM;
    fill_prompt(job, idx, vocab);
    job->choice = (struct choice){.tokens = job->tokens, .seed = idx};
    job->request = (struct request){.id = idx + 1,
                                    .owner = job,
                                    .service_class = CLASS_DEFAULT,
                                    .prompt = job->tokens,
                                    .prompt_count = asked->prompt_count,
                                    .choices = &job->choice,
                                    .choices_count = 1,
                                    .params = {.top_p = 1, .repetition_penalty = 1, .logprobs = -1},
                                    .max_tokens = asked->output_count,
                                    .ignore_eos = true};
    return ST_OK;
}

static uint32_t node_for(const struct cluster *cluster, const struct cluster_request *asked)
{
    uint32_t best = 0;
    if (asked->group) return asked->group % cluster->config->nodes;
    for (uint32_t i = 1; i < cluster->config->nodes; i++) {
        if (cluster->nodes[i].requests < cluster->nodes[best].requests) best = i;
    }
    return best;
}

static bool submit_next(struct cluster *cluster)
{
    uint32_t idx = cluster->next++;
    struct cluster_request *asked = &cluster->requests[idx];
    struct cluster_job *job = &cluster->jobs[idx];
    if (cluster_job_make(job, idx, asked, VOCAB) != ST_OK) return false;
    asked->asked_s = cluster->now_s;
    struct node *node = &cluster->nodes[node_for(cluster, asked)];
    node->requests++;
    (void)sched_submit(node->sched, &job->request, ns_of(cluster->now_s)); /* a refusal is an event */
    return true;
}

static void end_job(struct cluster *cluster, struct node *node, struct cluster_job *job, bool refused)
{
    struct cluster_report *report = cluster->report;
    job->asked->refused = refused;
    job->asked->done_s = cluster->now_s;
    node->requests--;
    cluster->ended++;
    report->refused += refused;
    if (!refused) report->prompt_tokens += job->request.usage.in_total, report->output_tokens += job->request.usage.out;
    mem_free(job->tokens);
    job->tokens = NULL;
}

/* False: no memory. */
static bool take_events(struct cluster *cluster, struct node *node)
{
    uint32_t count, asking = 0;
    const struct event *events = sched_events(node->sched, &count);
    for (uint32_t i = 0; i < count; i++) {
        struct cluster_job *job = events[i].request->owner;
        if (events[i].kind == CHOICE_TOKENS && job->asked->first_s == 0) job->asked->first_s = cluster->now_s;
        if (events[i].kind != REQUEST_DONE && events[i].kind != REQUEST_REFUSED) continue;
        end_job(cluster, node, job, events[i].kind == REQUEST_REFUSED);
        asking++;
    }
    sched_events_taken(node->sched);
    for (; cluster->config->clients && asking && cluster->next < cluster->count; asking--) {
        if (!submit_next(cluster)) return false;
    }
    return true;
}

static void start_step(struct cluster *cluster, struct node *node)
{
    if (!isinf(node->step_end_s) || !sched_has_work(node->sched)) return;
    const struct batch *batch = sched_plan(node->sched, ns_of(cluster->now_s));
    if (!batch->tokens_count) return;
    struct step_shape shape = step_shape_of(batch, cluster->config->window);
    double seconds = cluster->config->step(cluster->config->step_state, &shape);
    for (uint32_t r = 0; r < batch->rows_count; r++) {
        cluster->result->rows[r] = (struct row_result){.id = (batch->rows[r].position * 7919 + r) % VOCAB};
    }
    node->step_end_s = cluster->now_s + seconds + cluster->config->host_s;
    cluster->report->steps++;
    cluster->report->busy_s += seconds;
}

/* When something happens next. */
static double next_time(const struct cluster *cluster)
{
    double next_s = INFINITY;
    for (uint32_t i = 0; i < cluster->config->nodes; i++) next_s = fmin(next_s, cluster->nodes[i].step_end_s);
    if (!cluster->config->clients && cluster->next < cluster->count)
        next_s = fmin(next_s, cluster->requests[cluster->next].arrival_s);
    return next_s;
}

static bool run_to(struct cluster *cluster, double time_s)
{
    cluster->now_s = time_s;
    while (!cluster->config->clients && cluster->next < cluster->count &&
           cluster->requests[cluster->next].arrival_s <= time_s) {
        if (!submit_next(cluster)) return false;
    }
    for (uint32_t i = 0; i < cluster->config->nodes; i++) {
        struct node *node = &cluster->nodes[i];
        if (node->step_end_s <= time_s) {
            sched_commit(node->sched, cluster->result, ns_of(time_s - cluster->config->host_s));
            node->step_end_s = INFINITY;
        }
        if (!take_events(cluster, node)) return false;
    }
    for (uint32_t i = 0; i < cluster->config->nodes; i++) start_step(cluster, &cluster->nodes[i]);
    return true;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static enum status summarise(const struct cluster *cluster)
{
    struct cluster_report *report = cluster->report;
    double *ttft = mem_alloc(cluster->count, sizeof *ttft), gaps_s = 0, gaps = 0;
    uint32_t n = 0;
    if (!ttft) return ST_NOMEM;
    for (uint32_t i = 0; i < cluster->count; i++) {
        const struct cluster_request *r = &cluster->requests[i];
        if (r->refused) continue;
        ttft[n++] = r->first_s - r->asked_s;
        gaps_s += r->done_s - r->first_s;
        gaps += r->output_count - 1;
    }
    qsort(ttft, n, sizeof *ttft, by_value);
    report->seconds = cluster->now_s;
    if (n) report->ttft_p50_s = ttft[n / 2], report->ttft_p99_s = ttft[n - 1 - n / 100];
    if (gaps > 0) report->itl_mean_s = gaps_s / gaps;
    for (uint32_t i = 0; i < cluster->config->nodes; i++) {
        struct sched_stats stats;
        sched_stats_read(cluster->nodes[i].sched, &stats);
        report->preemptions += stats.preemptions;
    }
    mem_free(ttft);
    return ST_OK;
}

static enum status run(struct cluster *cluster, struct error *err)
{
    const struct cluster_config *config = cluster->config;
    for (uint32_t i = 0; i < config->clients && cluster->next < cluster->count; i++) {
        if (!submit_next(cluster)) return error_set(err, ST_NOMEM, "cluster: no memory");
    }
    if (!run_to(cluster, 0)) return error_set(err, ST_NOMEM, "cluster: no memory");
    while (cluster->ended < cluster->count) {
        double time_s = next_time(cluster);
        if (isinf(time_s)) return error_set(err, ST_INVAL, "cluster: the scheduler makes no progress");
        if (!run_to(cluster, time_s)) return error_set(err, ST_NOMEM, "cluster: no memory");
    }
    return summarise(cluster);
}

enum status cluster_run(const struct cluster_config *config, struct cluster_request *requests, uint32_t count,
                        struct cluster_report *report, struct error *err)
{
    static struct sched_text texts[VOCAB];
    struct cluster cluster = {.config = config, .requests = requests, .count = count, .report = report};
    struct sched_config sched = config->sched;
    *report = (struct cluster_report){0};
    for (uint32_t i = 0; i < VOCAB; i++) texts[i] = (struct sched_text){.bytes = "w", .length = 1};
    for (uint32_t i = 0; i < count; i++) requests[i].first_s = requests[i].done_s = 0;
    sched.texts = texts;
    sched.texts_count = VOCAB;
    sched.think_start_id = sched.think_end_id = UINT32_MAX;
    cluster.nodes = mem_alloc(config->nodes, sizeof *cluster.nodes);
    cluster.jobs = mem_alloc(count, sizeof *cluster.jobs);
    enum status status =
        cluster.nodes && cluster.jobs ? batch_result_create(sched.rows_max, &cluster.result) : ST_NOMEM;
    if (status != ST_OK) error_set(err, status, "cluster: no memory");
    for (uint32_t i = 0; status == ST_OK && i < config->nodes; i++) {
        cluster.nodes[i].step_end_s = INFINITY;
        status = sched_create(&sched, &cluster.nodes[i].sched, err);
    }
    if (status == ST_OK) status = run(&cluster, err);
    for (uint32_t i = 0; cluster.nodes && i < config->nodes; i++) sched_destroy(cluster.nodes[i].sched);
    for (uint32_t i = 0; cluster.jobs && i < count; i++) mem_free(cluster.jobs[i].tokens);
    batch_result_destroy(cluster.result);
    mem_free(cluster.jobs);
    mem_free(cluster.nodes);
    return status;
}
