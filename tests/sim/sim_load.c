/* Configurations and loads from a seed: small pools, queues and contexts, so that everything is scarce and happens
 * often. */
#include "tests/sim/sim.h"

#include "runtime/base/clock.h"
#include "runtime/model/vocab.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

struct sched_text sim_texts[SIM_VOCAB];
const uint32_t sim_end_ids[1] = {SIM_END_ID};

/* Texts of a and b mostly, so that stop strings meet, overlap and cross token borders. */
static void make_texts(void)
{
    static const char *const texts[] = {"a", "b", "ab", "ba", "aab", "bb", "", "c", "abc", "\xc3", "\xa9", "aaaa"};
    for (uint32_t id = 0; id < SIM_VOCAB; id++) {
        sim_texts[id].bytes = texts[id % 12];
        sim_texts[id].length = (uint32_t)strlen(texts[id % 12]);
        sim_texts[id].special = id >= SIM_THINK_END;
    }
}

static void load_config(struct sim *sim)
{
    struct sched_config *c = &sim->config;
    static const uint32_t pools[] = {8, 12, 16, 24, 40, 64};
    uint32_t blocks = sim->mode == SIM_TINY_POOL ? 8 : sim->mode == SIM_FAIR ? 16 : pools[sim_random(sim, 6)];
    *c = (struct sched_config){.context_max = SIM_CONTEXT_MAX,
                               .running_max = 1 + (uint32_t)sim_random(sim, 12),
                               .kv_blocks = blocks,
                               .queue_requests_max = 2 + (uint32_t)sim_random(sim, 40),
                               .queue_tokens_max = 300 + sim_random(sim, 4000),
                               .tenants_max = SIM_TENANTS,
                               .tenant_share_percent = 25 + (uint32_t)sim_random(sim, 76),
                               .itl_target_ns = sim_chance(sim, 50) ? 2 * NS_PER_MS : 0,
                               .prefix_cache = sim_chance(sim, 75),
                               .think_start_id = SIM_THINK_START,
                               .think_end_id = SIM_THINK_END,
                               .texts = sim_texts,
                               .texts_count = SIM_VOCAB,
                               .end_ids = sim_end_ids,
                               .end_ids_count = 1,
                               .weights_bytes = 1000000,
                               .kv_block_bytes = 10000};
    c->step_tokens_max = 16 + (uint32_t)sim_random(sim, 112);
    c->rows_max = c->running_max + (uint32_t)sim_random(sim, 20);
    for (uint32_t i = 0; i < CLASS_COUNT; i++) c->class_limit_ns[i] = (5 + sim_random(sim, 100)) * NS_PER_MS;
    if (sim->mode != SIM_FAIR) return;
    c->running_max = 4;
    c->rows_max = 8;
    c->step_tokens_max = 64;
    c->queue_requests_max = SIM_REQUESTS_MAX;
    c->queue_tokens_max = 1000000;
    c->tenant_share_percent = 100;
    for (uint32_t i = 0; i < CLASS_COUNT; i++) c->class_limit_ns[i] = 3600 * NS_PER_S;
}

static void load_prompt(struct sim *sim, struct sim_request *r, uint32_t count)
{
    /* One of three texts, a random length of it shared, the rest its own. */
    bool much = sim->mode == SIM_SHARED_PREFIX;
    uint64_t base = sim_random(sim, much ? 2 : 3);
    uint64_t shared = sim_chance(sim, much ? 90 : 50) ? sim_random(sim, count + 1) : 0;
    if (shared < count && sim_chance(sim, 50)) shared = shared * 2 < count ? shared * 2 : count;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t id = i < shared ? (base * 31 + i * 7 + i / 16) : sim_random(sim, SIM_VOCAB);
        r->prompt[i] = (uint32_t)(id % SIM_VOCAB);
    }
    r->request.prompt = r->prompt;
    r->request.prompt_count = count;
}

static void load_stops(struct sim *sim, struct sim_request *r)
{
    static const char *const strings[] = {"ab", "aba", "bbb", "aabaab", "c", "abab", "aaaaaa", "\xc3\xa9"};
    uint32_t count = sim_chance(sim, 40) ? 1 + (uint32_t)sim_random(sim, SIM_STOPS_MAX) : 0;
    for (uint32_t i = 0; i < count; i++) {
        const char *text = strings[sim_random(sim, 8)];
        r->stops[i].length = (uint32_t)strlen(text);
        memcpy(r->stop_bytes[i], text, r->stops[i].length);
        r->stops[i].bytes = r->stop_bytes[i];
    }
    r->request.stops = r->stops;
    r->request.stops_count = count;
    r->request.include_stop = sim_chance(sim, 30);
    r->request.stop_ids_count = (uint32_t)sim_random(sim, 3);
    for (uint32_t i = 0; i < 2; i++) r->stop_ids[i] = (uint32_t)sim_random(sim, SIM_VOCAB);
    r->request.stop_ids = r->stop_ids;
}

static void load_choices(struct sim *sim, struct sim_request *r)
{
    struct request *q = &r->request;
    q->choices = r->choices;
    q->choices_count =
        sim->mode != SIM_FAIR && sim_chance(sim, 25) ? 2 + (uint32_t)sim_random(sim, SIM_CHOICES_MAX - 1) : 1;
    r->fails = sim->mode != SIM_FAIR && sim_chance(sim, 6);
    for (uint32_t c = 0; c < q->choices_count; c++) {
        r->choices[c] = (struct choice){.tokens = r->sim[c].tokens, .seed = sim_random(sim, UINT64_C(1) << 40)};
        memcpy(r->sim[c].tokens, r->prompt, q->prompt_count * sizeof *r->prompt);
    }
    if (!r->fails) return;
    enum null_failure failure = sim_chance(sim, 70) ? NULL_FAILURE_NOT_FINITE : NULL_FAILURE_NO_CHOICE;
    uint32_t position = q->prompt_count + (uint32_t)sim_random(sim, q->max_tokens ? q->max_tokens : 1);
    if (sim_chance(sim, 20) && q->prompt_count > 1 && q->score_prompt) position = q->prompt_count / 2 + 1;
    r->choices[sim_random(sim, q->choices_count)].seed = null_device_seed_failing(failure, position);
}

static void load_request(struct sim *sim, uint32_t idx)
{
    struct sim_request *r = &sim->requests[idx];
    memset(r, 0, sizeof *r);
    struct request *q = &r->request;
    uint32_t pool_tokens = sim->config.kv_blocks * KV_BLOCK_TOKENS;
    uint32_t most = pool_tokens < SIM_CONTEXT_MAX ? pool_tokens : SIM_CONTEXT_MAX;
    bool is_long = sim_chance(sim, sim->mode == SIM_LONG_PROMPTS ? 50 : 10);
    uint32_t prompt = 1 + (uint32_t)sim_random(sim, is_long ? most : most / 4);
    if (sim->mode == SIM_SHARED_PREFIX && prompt < most / 2) prompt += most / 4;
    uint32_t out = 1 + (uint32_t)sim_random(sim, sim_chance(sim, 35) ? 80 : 24);
    q->id = 1 + idx;
    q->owner = r;
    q->tenant = sim->mode == SIM_FLOOD ? (sim_chance(sim, 80) ? 0 : 1) : (uint32_t)sim_random(sim, SIM_TENANTS);
    q->service_class = sim_chance(sim, 60) ? CLASS_DEFAULT : (enum service_class)sim_random(sim, CLASS_COUNT);
    q->priority = (int32_t)sim_random(sim, 3) - 1;
    if (sim->mode == SIM_FAIR) { /* two tenants with opposite habits, one class, all there from the start */
        q->tenant = idx % 2;
        q->service_class = CLASS_DEFAULT;
        q->priority = 0;
        prompt = q->tenant ? 90 : 8;
        out = q->tenant ? 2 : 60;
    }
    q->score_prompt = sim->mode != SIM_FAIR && sim_chance(sim, 8);
    q->max_tokens = q->score_prompt && sim_chance(sim, 50) ? 0 : out;
    if (!sim_chance(sim, 3) && prompt + q->max_tokens > most) prompt = most > q->max_tokens ? most - q->max_tokens : 1;
    load_prompt(sim, r, prompt);
    q->min_tokens = sim_chance(sim, 20) ? (uint32_t)sim_random(sim, out + 1) : 0;
    q->ignore_eos = sim->mode == SIM_FAIR || sim_chance(sim, 30);
    q->keep_special = sim_chance(sim, 20);
    if (sim->mode != SIM_FAIR) load_stops(sim, r);
    q->params = (struct sampling_params){
        .temperature = 1, .top_p = 1, .repetition_penalty = 1, .logprobs = q->score_prompt ? 2 : -1};
    q->prompt_logprobs = q->score_prompt ? r->prompt_logprobs : NULL;
    load_choices(sim, r);
    r->domain = sim_chance(sim, 25);
    memset(q->cache_domain, (int)r->domain + 1, sizeof q->cache_domain);
    if (sim->mode == SIM_FAIR) return;
    if (sim_chance(sim, 20)) r->out_limit = q->out_limit = 1 + (uint32_t)sim_random(sim, 12);
    r->quota_end = sim_chance(sim, 20);
    static const uint32_t spread_ms[SIM_MODES] = {300, 3, 60, 200, 200, 150, 0};
    r->arrival_ns = NS_PER_MS + sim_random(sim, spread_ms[sim->mode] * NS_PER_MS + 1);
    if (sim_chance(sim, 10)) q->deadline_ns = r->arrival_ns + sim_random(sim, 100 * NS_PER_MS);
    if (sim_chance(sim, 15)) r->cancel_ns = r->arrival_ns + sim_random(sim, 80 * NS_PER_MS);
}

void sim_load_power(struct sim *sim)
{
    uint64_t rng = sim->rng;
    sim->rng = sim->power_rng = sim->seed * 31 + 7;
    sim->powered = sim_chance(sim, 50);
    struct energy_model *model = &sim->power.model;
    energy_model_init(model, 100);
    const double units[ENERGY_TERMS] = {0.2, 0.1, 0.0005, 0.05, 0.0002};
    for (uint32_t i = 0; i < ENERGY_TERMS; i++) model->joules[i] = units[i] * (double)(1 + sim_random(sim, 8)) / 4;
    sim->power.idle_w = sim_chance(sim, 50) ? 100 : 0;
    sim->power_rng = sim->rng;
    sim->rng = rng;
}

void sim_draw_power(struct sim *sim)
{
    if (!sim->powered) return;
    uint64_t rng = sim->rng;
    sim->rng = sim->power_rng;
    sim->power.holds_deferrable = sim_chance(sim, 10);
    sim->power.paces_default = sim_chance(sim, 15);
    uint64_t kind = sim_random(sim, 100);
    double room_j = (double)sim_random(sim, kind < 50 ? 1500 : 10000) / 1000;
    sim->power.room_j = kind < 10 ? 0 : kind < 20 ? INFINITY : room_j;
    sim->power.urgent_j = sim_chance(sim, 50) ? (double)sim_random(sim, 10000) / 1000 : 0;
    sim->power.caps_rows = sim_chance(sim, 20);
    sim->power.rows_most = (uint32_t)sim_random(sim, 4);
    sim->power.step_ms = sim_chance(sim, 50) ? 10 + (uint32_t)sim_random(sim, 20) : 0;
    sim->power_rng = sim->rng;
    sim->rng = rng;
    sched_set_power(sim->sched, &sim->power);
}

void sim_load(struct sim *sim)
{
    make_texts();
    sim->mode = (enum sim_mode)sim_random(sim, SIM_MODES);
    if (sim->mode == SIM_FAIR && sim_chance(sim, 60)) sim->mode = SIM_MIXED; /* it is the longest */
    load_config(sim);
    sim->requests_count = sim->mode == SIM_FAIR ? 80 : 4 + (uint32_t)sim_random(sim, 28);
    for (uint32_t i = 0; i < sim->requests_count; i++) load_request(sim, i);
    if (sim->mode != SIM_FAIR && sim_chance(sim, 4)) sim->fail_step = 1 + sim_random(sim, 60);
    sim_load_power(sim);
}
