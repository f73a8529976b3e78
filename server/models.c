/* See models.h, S1-S4. The states themselves are model_life.c's; shares and checks of memory are memory_plan.c's. */
#include "server/models.h"

#include "runtime/base/check.h"
#include "runtime/base/clock.h"
#include "runtime/base/hash.h"
#include "runtime/base/limits.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"
#include "runtime/base/random.h"
#include "server/auth.h"
#include "server/billing/billing.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

static uint64_t clock_ns(void)
{
    return clock_now_ns(clock_system());
}

/* ---- the table ---- */

struct served *models_find(const struct models *models, const char *name)
{
    for (uint32_t i = 0; i < models->count; i++)
        if (model_names_have(&models->items[i]->names, name)) return models->items[i];
    return NULL;
}

uint32_t models_in(const struct models *models, enum model_state state)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < models->count; i++) count += models->items[i]->life.state == state;
    return count;
}

uint32_t models_serving(const struct models *models)
{
    return models_in(models, MODEL_READY) + models_in(models, MODEL_ASLEEP) + models_in(models, MODEL_WAKING);
}

static void tell_state(struct served *served)
{
    served->model.state = model_state_name(served->life.state);
}

/* Takes names over. */
static enum status add(struct models *models, const char *path, struct model_names *names, struct served **out)
{
    struct served *served = mem_alloc(1, sizeof *served);
    char *copy = mem_strdup(path, strlen(path));
    if (!served || !copy) {
        mem_free(served);
        mem_free(copy);
        return ST_NOMEM;
    }
    served->models = models;
    served->path = copy;
    served->names = *names;
    *names = (struct model_names){.count = 0};
    served->memory.name = served->names.items[0];
    served->model.names = (const char *const *)served->names.items;
    served->model.names_count = served->names.count;
    served->model.created_unix_s = clock_unix_us(clock_system()) / 1000000;
    served->model.trust_request_chat_template = models->config->trust_request_chat_template;
    random_fill(served->model.cache_secret, sizeof served->model.cache_secret);
    metrics_init(&served->metrics, served->names.items[0], models->config->max_model_len);
    model_life_begin(&served->life, clock_ns());
    tell_state(served);
    served->stage = STAGE_OPEN;
    served->in_table = true;
    models->items[models->count++] = served;
    *out = served;
    return ST_OK;
}

static void free_record(struct served *served)
{
    if (served->in_table || served->pins > 0) return; /* S1 */
    model_names_free(&served->names);
    mem_free(served->path);
    mem_free(served);
}

static void remove_from_table(struct served *served)
{
    struct models *models = served->models;
    uint32_t idx = 0;
    while (models->items[idx] != served) idx++;
    models->count--;
    memmove(&models->items[idx], &models->items[idx + 1], (models->count - idx) * sizeof models->items[0]);
    served->in_table = false;
}

void served_pin(struct served *served)
{
    served->pins++;
}

void served_unpin(struct served *served)
{
    CHECK(served->pins > 0);
    served->pins--;
    free_record(served);
}

/* ---- memory ---- */

/* The rows of all others. */
static uint32_t other_rows(const struct served *served, struct memory_row rows[MODELS_MAX])
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < served->models->count; i++)
        if (served->models->items[i] != served) rows[count++] = served->models->items[i]->memory;
    return count;
}

uint64_t models_memory_used(const struct models *models)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < models->count; i++) bytes += memory_of_row(&models->items[i]->memory);
    return bytes;
}

static uint64_t kv_total(const struct models *models, uint64_t least_bytes)
{
    uint64_t weights_bytes = 0;
    for (uint32_t i = 0; i < models->count; i++) weights_bytes += models->items[i]->memory.weights_bytes;
    return memory_kv_total(models->config->kv_cache_memory_bytes, models->memory_limit_bytes, weights_bytes,
                           least_bytes);
}

static enum status check_memory(const struct served *served, const struct memory_row *row, struct error *err)
{
    struct memory_row rows[MODELS_MAX];
    uint32_t count = other_rows(served, rows);
    return memory_check(served->models->memory_limit_bytes, rows, count, row, err);
}

/* M1: all models of the start are open. */
static enum status divide(struct models *models, struct error *err)
{
    uint64_t least[MODELS_MAX], shares[MODELS_MAX], least_bytes = 0;
    struct served *some[MODELS_MAX];
    uint32_t count = 0;
    for (uint32_t i = 0; i < models->count; i++) {
        struct served *served = models->items[i];
        if (!served->at_start || served->stage != STAGE_BUILD) continue;
        served->memory.weights_bytes = served->need.weights_bytes;
        served->memory.kv_bytes = least[count] = served->need.kv_least_bytes;
        least_bytes += least[count];
        some[count++] = served;
    }
    for (uint32_t i = 0; i < count; i++) TRY(check_memory(some[i], &some[i]->memory, err));
    TRY(memory_divide(kv_total(models, least_bytes), least, count, shares, err));
    for (uint32_t i = 0; i < count; i++) some[i]->memory.kv_bytes = some[i]->kv_share_bytes = shares[i];
    return ST_OK;
}

/* Before a build: the share is fixed and everything fits. What was loaded before counts as it was then, as check_wake
 * has counted it. */
static enum status take_memory(struct served *served, struct error *err)
{
    struct models *models = served->models;
    served->memory.weights_bytes = served->full.name ? served->full.weights_bytes : served->need.weights_bytes;
    if (!served->kv_share_bytes) { /* M2 */
        struct memory_row rows[MODELS_MAX];
        uint32_t count = other_rows(served, rows);
        TRY(memory_share(kv_total(models, 0), models->config->kv_cache_memory_bytes > 0, rows, count,
                         served->names.items[0], served->need.kv_least_bytes, served->kv_asked_bytes,
                         &served->kv_share_bytes, err));
    }
    served->memory.kv_bytes = served->kv_share_bytes;
    return check_memory(served, &served->memory, err);
}

static void take_actual_memory(struct served *served)
{
    const struct device_info *info = &served->loaded.device->info;
    served->memory.weights_bytes = info->weights_bytes;
    served->memory.scratch_bytes = info->scratch_bytes;
    served->memory.kv_bytes = (uint64_t)info->kv_blocks * info->kv_block_bytes;
    served->full = served->memory;
    if (served->full.kv_bytes > 0) served->kv_share_bytes = served->full.kv_bytes; /* a wake takes what was counted */
}

/* ---- engines ---- */

/* What makes answers comparable: version, model and numerics. */
static void make_fingerprint(struct served *served)
{
    const struct config *config = served->models->config;
    const struct device_info *info = &served->loaded.device->info;
    struct buf text;
    uint8_t digest[32];
    buf_init(&text, 0);
    buf_append_format(&text, "%s|%s|%s|%zu|%u|%s", MILLRACE_VERSION, served->names.items[0], info->name,
                      info->weights_bytes, info->vocab, config->numerics ? config->numerics : "");
    sha256(text.data, text.length, digest);
    buf_free(&text);
    (void)snprintf(served->model.fingerprint, sizeof served->model.fingerprint, "fp_%02x%02x%02x%02x%02x", digest[0],
                   digest[1], digest[2], digest[3], digest[4]);
}

static void wake_meter(void *state) /* engine thread */
{
    struct models *models = state;
    meter_wake(models->meter);
}

/* Its engine's thread has ended, or was never there. */
static void close_power(struct served *served)
{
    power_close_port(served->models->power, served->power);
    served->power = NULL;
}

static enum status start_engine(struct served *served, struct error *err)
{
    struct models *models = served->models;
    const struct config *config = models->config;
    struct api_model *model = &served->model;
    const struct device_info *info = &served->loaded.device->info;
    model->tokenizer = served->loaded.tokenizer;
    model->chat_template = served->loaded.chat_template;
    model->context_max = served->loaded.context_max;
    model->defaults = served->loaded.model ? served->loaded.model->defaults : sampling_defaults_none();
    model->think_start_id = tokenizer_special_id(model->tokenizer, "<think>");
    model->think_end_id = tokenizer_special_id(model->tokenizer, "</think>");
    make_fingerprint(served);
    if (models->power && power_open_port(models->power, served->names.items[0], &served->power) != ST_OK)
        return error_set(err, ST_NOMEM, "no memory for the engine's power port");
    uint64_t queue_max = config->max_num_queued_reqs ? config->max_num_queued_reqs : limits.queue_requests;
    struct engine_config settings = {
        .context_max = served->loaded.context_max,
        .running_max = info->seqs_max,
        .step_tokens_max = info->tokens_max,
        .queue_requests_max = (uint32_t)queue_max,
        .queue_tokens_max = limits.queue_prompt_tokens,
        .tenants_max = AUTH_TENANTS_MAX,
        .tenant_share_percent = (uint32_t)limits.queue_tenant_share_percent,
        .itl_target_ns = config->itl_target_ms * NS_PER_MS,
        .prefix_cache = config->enable_prefix_caching,
        .think_start_id = model->think_start_id,
        .think_end_id = model->think_end_id,
        .power = served->power,
        .turn = models->turn,
        .clock = clock_system(),
        .wake = models->meter ? wake_meter : models->listener.wake,
        .wake_state = models->meter ? models : models->listener.state,
    };
    enum status status = engine_create(&settings, served->loaded.device, model->tokenizer, &served->engine, err);
    if (status != ST_OK) {
        close_power(served);
        return status;
    }
    if (models->meter && meter_port_open(models->meter, served->engine, &served->port) != ST_OK) {
        engine_destroy(served->engine);
        close_power(served);
        served->engine = NULL;
        return error_set(err, ST_NOMEM, "no memory for the meter's port");
    }
    if (!served->metrics_begun) metrics_init(&served->metrics, served->names.items[0], model->context_max);
    served->metrics_begun = true;
    served->steps_seen = 0;
    return ST_OK;
}

static void carry(struct engine_stats *sum, const struct engine_stats *more)
{
    static const size_t counters[] = {
#define AT(member) offsetof(struct engine_stats, member)
        AT(steps),         AT(step_ns_total),          AT(device_ns_total),    AT(own_ns_total),
        AT(idle_ns_total), AT(turn_ns_total),          AT(prompt_tokens),      AT(cached_tokens),
        AT(preemptions),   AT(computed_prompt_tokens), AT(generation_tokens),  AT(recomputed_tokens),
        AT(requests_done), AT(prefix_queries_tokens),  AT(prefix_hits_tokens), AT(requests_refused),
        AT(steps_ahead),   AT(paced_ns_total),
#undef AT
    };
    for (size_t i = 0; i < sizeof counters / sizeof *counters; i++)
        *(uint64_t *)(void *)((char *)sum + counters[i]) +=
            *(const uint64_t *)(const void *)((const char *)more + counters[i]);
}

bool served_poll(struct served *served, struct event *event)
{
    return served->port ? meter_poll(served->port, event) : engine_poll(served->engine, event);
}

void served_stats(const struct served *served, struct engine_stats *stats)
{
    *stats = (struct engine_stats){.beat_ns = 0};
    if (served->engine) engine_stats_read(served->engine, stats);
    carry(stats, &served->carried);
}

/* ---- the way up ---- */

static void settle(struct served *served)
{
    struct models *models = served->models;
    served_pin(served); /* an answer may let the connection's next request in, which may replace a failed model */
    tell_state(served);
    models->listener.settled(models->listener.state, served);
    served_unpin(served);
}

static void fail(struct served *served, enum status status, const struct error *err)
{
    served->models->hooks.unload(&served->loaded);
    served->loaded = (struct loaded){.model = NULL};
    served->memory = (struct memory_row){.name = served->names.items[0]};
    served->kv_share_bytes = 0;
    served->stage = STAGE_NONE;
    served->fail_status = status;
    served->fail_reason = *err;
    model_life_failed(&served->life, clock_ns());
    log_line(LOG_ERROR, "serve", "%s", err->message);
    settle(served);
}

/* Engine up: the model is READY. */
static void finish(struct served *served)
{
    struct error err = {""};
    enum status status = start_engine(served, &err);
    if (status != ST_OK) {
        fail(served, status, &err);
        return;
    }
    served->stage = STAGE_NONE;
    model_life_loaded(&served->life, clock_ns());
    settle(served);
}

static void work_on_loader(void *state)
{
    struct models *models = state;
    struct served *served = models->job;
    models->job_status =
        served->stage == STAGE_OPEN
            ? models->hooks.open(models->config, served->path, &served->loaded, &served->need, &models->job_error)
            : models->hooks.build(models->config, served->kv_share_bytes, &served->loaded, &models->job_error);
    uv_mutex_lock(&models->closing); /* a loader that outlives the loop tells nobody */
    atomic_store(&models->job_done, true);
    if (!models->closed) (void)uv_async_send(&models->async);
    uv_mutex_unlock(&models->closing);
}

static void take_job(struct models *models)
{
    struct served *served = models->job;
    struct error err = models->job_error;
    enum status status = models->job_status;
    models->job = NULL;
    if (status == ST_OK && served->stage == STAGE_OPEN) {
        served->stage = STAGE_BUILD;
        served->model.context_max = served->loaded.context_max;
        return;
    }
    if (status == ST_OK) {
        take_actual_memory(served); /* S3 */
        status = check_memory(served, &served->memory, &err);
    } else {
        served->loaded = (struct loaded){.model = NULL}; /* as open and build leave it */
    }
    if (status != ST_OK)
        fail(served, status, &err);
    else
        finish(served);
}

static struct served *waiting_at(const struct models *models, enum model_stage stage)
{
    for (uint32_t i = 0; i < models->count; i++)
        if (models->items[i]->stage == stage) return models->items[i];
    return NULL;
}

/* The next job: opens go before builds, and a wake from level 1 needs no thread. False: there is none. */
static bool next_job(struct models *models)
{
    struct served *served = waiting_at(models, STAGE_OPEN);
    struct error err = {""};
    enum status status = ST_OK;
    if (!served && !models->divided) {
        models->divided = true;
        served = waiting_at(models, STAGE_BUILD);
        status = divide(models, &err);
        if (status != ST_OK && served) {
            fail(served, status, &err);
            return true;
        }
    }
    if (!served) served = waiting_at(models, STAGE_START);
    if (served && served->stage == STAGE_START) {
        finish(served);
        return true;
    }
    if (!served) served = waiting_at(models, STAGE_BUILD);
    if (!served) return false;
    if (served->stage == STAGE_BUILD) status = take_memory(served, &err);
    if (status != ST_OK) {
        fail(served, status, &err);
        return true;
    }
    models->job = served;
    models->job_error = (struct error){""};
    models->loader_running = uv_thread_create(&models->thread, work_on_loader, models) == 0;
    if (models->loader_running) return false;
    models->job = NULL;
    error_set(&err, ST_NOMEM, "cannot start the loader's thread");
    fail(served, ST_NOMEM, &err);
    return true;
}

static void pump(struct models *models)
{
    while (!models->stopping && !models->loader_running && next_job(models)) {
    }
}

static void on_async(uv_async_t *async)
{
    struct models *models = async->data;
    if (atomic_exchange(&models->job_done, false)) { /* else somebody of this thread asks for a look */
        (void)uv_thread_join(&models->thread);
        models->loader_running = false;
        take_job(models);
    }
    pump(models);
    models_tick(models); /* a drain without time */
}

/* Later, on this thread: what is begun is never told before the caller has returned. */
static void look_later(struct models *models)
{
    (void)uv_async_send(&models->async);
}

enum status models_load(struct models *models, const char *path, struct model_names *names, uint64_t kv_asked_bytes,
                        struct served **served, struct error *err)
{
    struct served *failed = models_find(models, names->items[0]);
    if (failed && failed->life.state != MODEL_FAILED) failed = NULL;
    for (uint32_t i = 0; i < names->count; i++) {
        struct served *other = models_find(models, names->items[i]);
        if (other && other != failed)
            return error_set(err, ST_AGAIN, "the name \"%.200s\" is taken by a model that is %s", names->items[i],
                             model_state_name(other->life.state));
    }
    if (!failed && models->count == MODELS_MAX)
        return error_set(err, ST_LIMIT, "%d models are served; unload one", MODELS_MAX);
    if (!failed && billing_check_models(models->config, models->count + 1, err) != ST_OK) return ST_LIMIT;
    if (failed) {
        remove_from_table(failed);
        free_record(failed);
    }
    if (add(models, path, names, served) != ST_OK) return error_set(err, ST_NOMEM, "%s", status_text(ST_NOMEM));
    (*served)->kv_asked_bytes = kv_asked_bytes;
    look_later(models);
    return ST_OK;
}

/* Whether what the model had before it slept is still free: of the KV memory, and of all. */
static enum status check_wake(const struct served *served, struct error *err)
{
    const struct models *models = served->models;
    struct memory_row rows[MODELS_MAX];
    uint32_t count = other_rows(served, rows);
    uint64_t kv_bytes = served->full.kv_bytes, share;
    TRY(memory_share(kv_total(models, 0), models->config->kv_cache_memory_bytes > 0, rows, count,
                     served->names.items[0], kv_bytes, kv_bytes, &share, err));
    return check_memory(served, &served->full, err);
}

enum status models_wake(struct served *served, enum model_verdict *verdict, struct error *err)
{
    bool asleep = served->life.state == MODEL_ASLEEP; /* else FAILED: nothing is counted before it is open again */
    if (asleep) TRY(check_wake(served, err));
    *verdict = model_life_wake(&served->life, clock_ns());
    if (*verdict != MODEL_BEGUN) return ST_OK;
    served->stage = served->life.sleep_level == MODEL_SLEEP_KV ? STAGE_START : STAGE_OPEN;
    if (asleep) served->memory = served->full; /* S3 */
    tell_state(served);
    look_later(served->models);
    return ST_OK;
}

/* ---- the way down ---- */

static void retire_in_pool(uv_work_t *work)
{
    struct served *served = work->data;
    engine_destroy(served->engine_ending);
    if (served->life.sleep_level == MODEL_SLEEP_KV)
        device_empty_kv(served->loaded.device);
    else
        served->models->hooks.unload(&served->loaded);
}

static void retire_done(uv_work_t *work, int status)
{
    struct served *served = work->data;
    (void)status; /* never cancelled */
    served->retiring = false;
    served->engine_ending = NULL;
    if (served->life.sleep_level == MODEL_SLEEP_KV) {
        served->memory.kv_bytes = 0;
    } else {
        served->loaded = (struct loaded){.model = NULL};
        served->memory = (struct memory_row){.name = served->names.items[0]};
    }
    model_life_emptied(&served->life, clock_ns());
    if (served->life.state == MODEL_GONE) remove_from_table(served); /* freed by the telling's pin */
    settle(served);
}

static void close_port(struct served *served)
{
    meter_port_close(served->port);
    served->port = NULL;
}

/* With users at 0 every request has ended and its end was taken: no event is left. */
static void stop_engine(struct served *served)
{
    struct engine_stats stats;
    struct event event;
    if (!served->engine) return;
    close_port(served);
    engine_stop(served->engine);
    close_power(served);
    CHECK(!engine_poll(served->engine, &event));
    engine_stats_read(served->engine, &stats);
    carry(&served->carried, &stats);
    served->engine_ending = served->engine;
    served->engine = NULL;
}

static void retire_if_empty(struct served *served)
{
    if (served->life.state != MODEL_DRAINING || served->users > 0 || served->retiring || served->models->ended) return;
    stop_engine(served);
    served->retiring = true;
    served->work.data = served;
    CHECK(uv_queue_work(served->models->loop, &served->work, retire_in_pool, retire_done) == 0);
}

void served_use(struct served *served)
{
    CHECK(served->life.state == MODEL_READY); /* S2 */
    served->users++;
    served->pins++;
}

void served_leave(struct served *served)
{
    CHECK(served->users > 0);
    served->users--;
    retire_if_empty(served);
    served_unpin(served);
}

static enum model_verdict begin_drain(struct served *served, enum model_verdict verdict, uint64_t drain_ns)
{
    if (verdict != MODEL_BEGUN) return verdict;
    tell_state(served);
    if (drain_ns == 0) look_later(served->models); /* S5 */
    if (!served->retiring) retire_if_empty(served);
    return verdict;
}

enum model_verdict models_sleep(struct served *served, uint32_t level, uint64_t drain_ns)
{
    return begin_drain(served, model_life_sleep(&served->life, level, clock_ns(), drain_ns), drain_ns);
}

enum model_verdict models_unload(struct served *served, uint64_t drain_ns)
{
    return begin_drain(served, model_life_unload(&served->life, clock_ns(), drain_ns), drain_ns);
}

void models_tick(struct models *models)
{
    uint64_t now_ns = clock_ns();
    for (uint32_t i = 0; i < models->count; i++) {
        struct served *served = models->items[i];
        if (served->life.state != MODEL_DRAINING || served->retiring || now_ns < served->life.drain_until_ns) continue;
        if (served->users > 0) models->listener.cut(models->listener.state, served);
    }
}

/* ---- the start and the end ---- */

enum status models_init(struct models *models, uv_loop_t *loop, const struct config *config,
                        const struct models_hooks *hooks, const struct models_listener *listener, struct error *err)
{
    *models = (struct models){.config = config, .hooks = *hooks, .listener = *listener, .loop = loop};
    models->memory_limit_bytes = load_memory_limit(config);
    CHECK(uv_async_init(loop, &models->async, on_async) == 0 && uv_mutex_init(&models->closing) == 0);
    models->async.data = models;
    if (config_takes_several(config)) TRY(turn_create(&models->turn));
    for (uint32_t i = 0; i < config->models.count; i++) {
        struct model_names names = {.count = 0};
        struct served *served;
        enum status status = model_names_of_config(&names, config, i, err);
        if (status == ST_OK) status = add(models, config->models.items[i], &names, &served);
        model_names_free(&names);
        TRY(status);
        served->at_start = true;
    }
    return ST_OK;
}

void models_start(struct models *models)
{
    pump(models);
}

void models_stop(struct models *models)
{
    models->stopping = true;
}

void models_close(struct models *models)
{
    uv_mutex_lock(&models->closing);
    models->closed = true;
    uv_mutex_unlock(&models->closing);
    uv_close((uv_handle_t *)&models->async, NULL);
}

void models_free(struct models *models, void (*last_events)(void *state), void *state)
{
    if (models->loader_running && atomic_load(&models->job_done)) { /* its word came after the loop's end */
        (void)uv_thread_join(&models->thread);
        models->loader_running = false;
    }
    if (models->loader_running) (void)pthread_detach(models->thread);
    meter_stop(models->meter);
    for (uint32_t i = 0; i < models->count; i++)
        if (models->items[i]->engine) engine_stop(models->items[i]->engine);
    models->ended = true;
    last_events(state);
    for (uint32_t i = models->count; i-- > 0;) {
        struct served *served = models->items[i];
        CHECK(served->users == 0 && served->pins == 0);
        close_port(served);
        engine_destroy(served->engine);
        close_power(served);
        if (models->loader_running && served == models->job) continue;
        models->hooks.unload(&served->loaded);
        remove_from_table(served);
        free_record(served);
    }
    if (models->count > 0) return;
    turn_destroy(models->turn);
    uv_mutex_destroy(&models->closing);
}
