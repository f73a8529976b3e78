/* See power_thread.h. */
#include "server/power/power_thread.h"

#include "runtime/base/check.h"
#include "runtime/base/doorbell.h"
#include "runtime/base/mem.h"
#include "runtime/power/sensors.h"
#include "server/power/node_loop.h"
#include "server/power/power_goal.h"

#include <math.h>
#include <pthread.h>
#include <string.h>

enum { POLL_MS = 20, NAMEPLATE_TIMES = 10 /* a value above so many times full power is a mistake */ };
/* Of the books: requests that run or wait for their last window; sequences of the steps between two moves of the meter.
 */
enum { BOOK_REQUESTS_MAX = 16384, BOOK_SHARES_MAX = 1 << 18, BOOK_TENANTS_MAX = 8192 };
#define UJ_OF_KWH 3.6e12

struct port_link {
    struct power_port port; /* first */
    struct port_link *next;
    uint64_t paced_ns; /* at the last look */
    uint32_t model;    /* index in power->usage */
    bool closed;       /* no engine writes to it any more: what it holds is taken, and it is freed */
    bool has_step;
    struct power_step step; /* the oldest that was taken and is not yet told to the loop */
};

struct power {
    struct power_config config;
    struct sensor *sensor;
    struct power_goal own_goal; /* of the options */
    struct power_loop loop;     /* power thread */
    struct node_loop node;      /* power thread */
    pthread_t thread;
    struct doorbell doorbell;
    _Atomic bool stop;
    pthread_mutex_t mutex; /* guards what follows */
    struct port_link *ports;
    uint64_t paced_ns, steps_lost; /* of ports that are closed too */
    struct power_goal hand;
    bool hand_is_set;
    uint64_t hand_until_unix_ms; /* 0: no end */
    struct power_goal goal;      /* merged, as the loop has it */
    bool goal_is_new;
    struct power_state state;
    struct power_usage usage;
    struct request_energy *requests;
    struct energy_model model;                    /* of the loop */
    struct energy_share shares[POWER_SHARES_MAX]; /* power thread; of a step */
};

/* ---- the thread ---- */

/* What holds at this moment; *told: of the sources. */
static struct power_goal goal_now(struct power *power, struct power_slot *told)
{
    int64_t now_ms = clock_unix_ms(power->config.clock);
    *told = (struct power_slot){.have = 0};
    if (power->hand_until_unix_ms && (uint64_t)now_ms >= power->hand_until_unix_ms) {
        power->hand_is_set = false;
        power->hand_until_unix_ms = 0;
    }
    if (power->config.signals) signal_at(power->config.signals, now_ms, now_ms, told);
    return power_goal_merge(&power->own_goal, told, power->hand_is_set ? &power->hand : NULL, power->loop.floor_w);
}

static void take_goal(struct power *power, uint64_t now_ns)
{
    struct power_slot told;
    struct power_goal goal = goal_now(power, &told), held = power->goal;
    power->goal_is_new |=
        goal.cap_w != held.cap_w || goal.target_w != held.target_w || goal.shed_level != held.shed_level;
    power->goal = goal;
    if (power->goal_is_new) power_loop_goal(&power->loop, &power->goal, now_ns);
    power->goal_is_new = false;
}

/* The port whose next record begins first; NULL: there is none. */
static struct port_link *earliest(struct power *power)
{
    struct port_link *first = NULL;
    for (struct port_link *link = power->ports; link; link = link->next) {
        if (!link->has_step) link->has_step = power_port_take(&link->port, &link->step);
        if (link->has_step && (!first || link->step.start_ns < first->step.start_ns)) first = link;
    }
    return first;
}

static void tell_step(struct power *power, struct port_link *link)
{
    uint32_t count = power_port_shares(&link->port, &link->step, power->shares);
    for (uint32_t i = 0; i < count; i++) power->shares[i].group += link->model * CLASS_COUNT;
    node_loop_step(&power->node, &link->step, power->shares, count);
    power_loop_step(&power->loop, &link->step, power->shares, count);
    link->has_step = false;
}

static void free_port(struct port_link *link)
{
    power_port_free(&link->port);
    mem_free(link);
}

static void sweep_ports(struct power *power)
{
    for (struct port_link **at = &power->ports, *link; (link = *at);) {
        if (!link->closed) {
            at = &link->next;
            continue;
        }
        *at = link->next;
        power->steps_lost += atomic_load(&link->port.lost);
        free_port(link);
    }
}

/* The records of all engines, by their starts. Returns how many of them work; *known_ns as in power_loop_read. */
static uint32_t take_steps(struct power *power, uint64_t now_ns, uint64_t *known_ns)
{
    uint32_t working = 0;
    *known_ns = now_ns;
    for (struct port_link *link = power->ports; link; link = link->next) {
        uint64_t busy_ns = atomic_load(&link->port.busy_ns); /* before its records: what ends meanwhile is among them */
        uint64_t paced_ns = atomic_load(&link->port.paced_ns);
        if (busy_ns && busy_ns < *known_ns) *known_ns = busy_ns;
        working += busy_ns || paced_ns != link->paced_ns || ring_count(&link->port.steps) > 0;
        power->paced_ns += paced_ns - link->paced_ns;
        link->paced_ns = paced_ns;
    }
    for (struct port_link *link; (link = earliest(power));) tell_step(power, link);
    sweep_ports(power);
    return working;
}

static void show_usage(struct power *power)
{
    struct power_usage *usage = &power->usage;
    for (uint32_t i = 0; i < usage->count; i++)
        for (uint32_t class = 0; class < CLASS_COUNT; class ++)
            attribution_group(power->loop.books, i * CLASS_COUNT + class, &usage->groups[i][class]);
    attribution_books(power->loop.books, &usage->books);
    usage->seconds = power->loop.meter_s;
}

static void show(struct power *power, double allowance_w)
{
    const struct power_loop *loop = &power->loop;
    struct power_state *state = &power->state;
    state->watts = loop->watts;
    state->setpoint_w = loop->throttle.goal_w;
    state->allowance_w = allowance_w;
    state->error_ratio = loop->error_ratio;
    state->idle_w = loop->throttle.idle_w;
    state->alarm = loop->alarm;
    state->windows = loop->windows;
    state->meter_j = loop->meter_j;
    state->meter_s = loop->meter_s;
    state->read_failures = loop->read_failures;
    state->itl_p95_s = power->node.p95_s;
    state->rows_capped = power->node.guard.capped;
    state->rows_most = power->node.guard.rows_most;
    state->estimated = loop->last.flags & SENSOR_ESTIMATED;
    attribution_books(loop->books, &state->books);
    show_usage(power);
    state->steps_lost = power->steps_lost + loop->steps_lost;
    for (const struct port_link *link = power->ports; link; link = link->next)
        state->steps_lost += atomic_load(&link->port.lost);
}

/* ---- what a kWh is at this moment ---- */

static struct request_energy_terms take_terms(struct power *power, struct power_slot *slot)
{
    int64_t now_ms = clock_unix_ms(power->config.clock);
    *slot = (struct power_slot){.have = 0};
    if (power->config.signals) signal_at(power->config.signals, now_ms, now_ms, slot);
    if (!(slot->have & SLOT_PUE) || !(slot->pue >= 1)) slot->pue = 1;
    bool mean = slot->have & SLOT_CO2 && !slot->co2_marginal, marginal = slot->have & SLOT_CO2 && slot->co2_marginal;
    double residual_g = power->config.residual_g > 0 ? power->config.residual_g : mean ? slot->gco2_kwh : 0;
    attribution_rates(power->loop.books, &(struct carbon_rates){.pue = slot->pue,
                                                                .green_w = slot->have & SLOT_GREEN ? slot->green_w : 0,
                                                                .mean_g = mean ? slot->gco2_kwh : 0,
                                                                .residual_g = residual_g,
                                                                .marginal_g = marginal ? slot->gco2_kwh : 0});
    double pue_ppm = fmin(slot->pue * 1e6, PUE_PPM_MAX);
    uint32_t flags =
        ENERGY_NOTE_NO_HOST | (slot->have & SLOT_PUE ? 0 : ENERGY_NOTE_NO_PUE) | (mean ? 0 : ENERGY_NOTE_NO_CO2);
    return (struct request_energy_terms){.now_ms = now_ms, .pue_ppm = (uint32_t)pue_ppm, .flags = (uint16_t)flags};
}

/* What the meter has counted since the last look, at the price of this moment. */
static void count_money(struct power *power, const struct power_slot *slot, uint64_t before_uj)
{
    struct energy_books books;
    struct power_usage *usage = &power->usage;
    attribution_books(power->loop.books, &books);
    double kwh = (double)(books.meter_uj - before_uj) / UJ_OF_KWH * slot->pue;
    const struct tariff *tariff = power->config.tariff;
    bool told = slot->have & SLOT_PRICE, priced = told || tariff;
    double price_kwh = told ? slot->price_kwh : priced ? tariff_price(tariff, clock_unix_ms(power->config.clock)) : NAN;
    usage->door_kwh += kwh;
    usage->paid_kwh += priced ? kwh : 0;
    usage->paid += priced ? kwh * price_kwh : 0;
    usage->price_kwh = price_kwh;
}

static void note_requests(struct power *power, uint64_t known_ns, const struct request_energy_terms *terms)
{
    struct energy_note note;
    request_energy_update(power->requests, power->loop.books, known_ns, terms);
    while (request_energy_take(power->requests, &note))
        if (power->config.note) power->config.note(power->config.note_state, &note);
    request_energy_counts(power->requests, &power->usage.requests);
}

static void look(struct power *power)
{
    uint64_t now_ns = clock_now_ns(power->config.clock), known_ns;
    struct power_order order;
    struct power_slot slot;
    struct energy_books before;
    struct request_energy_terms terms = take_terms(power, &slot);
    attribution_books(power->loop.books, &before);
    pthread_mutex_lock(&power->mutex);
    take_goal(power, now_ns);
    uint32_t working = take_steps(power, now_ns, &known_ns);
    uint64_t paced_ns = power->paced_ns;
    pthread_mutex_unlock(&power->mutex);
    power_loop_read(&power->loop, now_ns, known_ns, paced_ns);
    power_loop_order(&power->loop, clock_now_ns(power->config.clock), working, &order);
    node_loop_turn(&power->node, &power->loop.model, now_ns);
    node_loop_order(&power->node, &order);
    pthread_mutex_lock(&power->mutex);
    for (struct port_link *link = power->ports; link; link = link->next) power_port_order(&link->port, &order);
    count_money(power, &slot, before.meter_uj);
    note_requests(power, known_ns, &terms);
    power->model = power->loop.model;
    show(power, order.allowance_w);
    pthread_mutex_unlock(&power->mutex);
}

static void *power_thread(void *state)
{
    struct power *power = state;
    while (!atomic_load(&power->stop)) {
        uint32_t heard = doorbell_rings(&power->doorbell);
        look(power);
        doorbell_sleep(&power->doorbell, heard, POLL_MS * NS_PER_MS);
    }
    return NULL;
}

/* ---- the start ---- */

static enum status open_simulated(struct power *power, struct error *err)
{
    const struct power_config *config = &power->config;
    struct plant_config plant = {.idle_w = config->idle_w,
                                 .range_w = config->full_w - config->idle_w,
                                 .gain = 1,
                                 .lag_s = 0.030,
                                 .publish_s = 0.1,
                                 .noise = 0.01};
    return sensor_simulated_open(&plant, clock_now_ns(config->clock), &power->sensor, err);
}

static enum status refuse_unknown_full(const struct power_config *config, struct error *err)
{
    return error_set(err, ST_INVAL, "--power-sensor %s: --power-full must say what the device draws at most",
                     config->sensor);
}

/* The options go before what the meter tells. */
static enum status take_options(struct power *power, struct error *err)
{
    const struct power_config *config = &power->config;
    struct sensor *sensor = power->sensor;
    if (config->idle_w > 0) sensor->idle_w = config->idle_w;
    if (config->full_w > 0) sensor->full_w = config->full_w;
    if (sensor->full_w > sensor->idle_w) return ST_OK;
    return refuse_unknown_full(config, err);
}

static enum status open_sensor(struct power *power, struct error *err)
{
    const struct power_config *config = &power->config;
    const char *kind = config->sensor;
    bool simulated = strcmp(kind, "simulated") == 0, found = strcmp(kind, "auto") == 0;
    bool gpus = strcmp(kind, "nvml") == 0, cpus = strcmp(kind, "rapl") == 0;
    if (!simulated && !found && !gpus && !cpus && strcmp(kind, "none") != 0)
        return error_set(err, ST_INVAL, "--power-sensor: \"%s\" is none of auto, nvml, rapl, simulated, none", kind);
    if (config->full_w > 0 && config->full_w <= config->idle_w)
        return error_set(err, ST_INVAL, "--power-full: %g W must be above --power-idle, %g W", config->full_w,
                         config->idle_w);
    if (simulated && !(config->full_w > 0)) return refuse_unknown_full(config, err);
    if (gpus || cpus) {
        struct error reason = {""};
        enum status status = gpus ? sensor_nvml_open(NULL, 0, &power->sensor, &reason)
                                  : sensor_rapl_open(RAPL_ROOT, &power->sensor, &reason);
        if (status != ST_OK) return error_set(err, status, "--power-sensor %s: %.400s", kind, reason.message);
        return take_options(power, err);
    }
    return simulated || (found && config->full_w > 0) ? open_simulated(power, err) : ST_OK;
}

static enum status check_goal(const struct power *power, const struct power_goal *goal, struct error *err)
{
    double most_w = NAMEPLATE_TIMES * power->sensor->full_w;
    const double values[] = {goal->cap_w, goal->target_w};
    static const char *const names[] = {"cap_w", "target_w"};
    for (int i = 0; i < 2; i++)
        if (isnan(values[i]) || values[i] < 0 || (isfinite(values[i]) && values[i] > most_w))
            return error_set(err, ST_INVAL, "%s must be 0 to %g watts", names[i], most_w);
    if (goal->shed_level > POWER_SHED_MAX)
        return error_set(err, ST_INVAL, "shed_level must be 0 to %d", POWER_SHED_MAX);
    return ST_OK;
}

static enum status start(struct power *power, struct error *err)
{
    const struct power_config *config = &power->config;
    power->goal = power->own_goal = (struct power_goal){.cap_w = config->cap_w > 0 ? config->cap_w : INFINITY,
                                                        .target_w = config->target_w > 0 ? config->target_w : INFINITY};
    TRY(check_goal(power, &power->goal, err));
    power->goal_is_new = true;
    power_loop_init(&power->loop, power->sensor, config->floor_w, clock_now_ns(config->clock));
    node_loop_init(&power->node, config->itl_limit_s, clock_now_ns(config->clock));
    TRY(attribution_create(&(struct attribution_config){.accounts_max = BOOK_REQUESTS_MAX,
                                                        .steps_max = 2 * POWER_QUEUE_MAX,
                                                        .shares_max = BOOK_SHARES_MAX,
                                                        .groups_max = (POWER_MODELS_MAX + 1) * CLASS_COUNT,
                                                        .full_w = power->sensor->full_w},
                           &power->loop.books, err));
    TRY(request_energy_create(BOOK_REQUESTS_MAX, BOOK_TENANTS_MAX, &power->requests, err));
    power->usage.price_kwh = NAN;
    power->state = (struct power_state){.setpoint_w = INFINITY,
                                        .allowance_w = INFINITY,
                                        .idle_w = power->sensor->idle_w,
                                        .full_w = power->sensor->full_w,
                                        .floor_w = power->loop.floor_w,
                                        .estimated = power->sensor->ops->work != NULL};
    memcpy(power->state.sensor, power->sensor->name, sizeof power->state.sensor);
    if (pthread_create(&power->thread, NULL, power_thread, power) != 0)
        return error_set(err, ST_NOMEM, "the system gives no thread for --power-sensor");
    return ST_OK;
}

static void power_free(struct power *power)
{
    sensor_close(power->sensor);
    attribution_destroy(power->loop.books);
    request_energy_destroy(power->requests);
    pthread_mutex_destroy(&power->mutex);
    doorbell_free(&power->doorbell);
    mem_free(power);
}

/* A source has news: an event does not wait for the next look. */
static void ring_doorbell(void *state)
{
    doorbell_ring(&((struct power *)state)->doorbell);
}

enum status power_create(const struct power_config *config, struct power **out, struct error *err)
{
    struct power *power = mem_alloc(1, sizeof *power);
    *out = NULL;
    if (!power) return error_set(err, ST_NOMEM, "no memory for the power loop");
    power->config = *config;
    doorbell_init(&power->doorbell);
    pthread_mutex_init(&power->mutex, NULL);
    enum status status = open_sensor(power, err);
    if (status == ST_OK && !power->sensor && (config->cap_w > 0 || config->target_w > 0))
        status =
            error_set(err, ST_INVAL,
                      "--power-cap and --power-target need a meter: there is none; --power-full (and --power-idle) "
                      "give the numbers for a simulated one");
    if (status == ST_OK && power->sensor) status = start(power, err);
    if (status == ST_OK && power->sensor && config->signals) {
        signal_set_nameplate(config->signals, power->sensor->full_w);
        signal_on_change(config->signals, ring_doorbell, power);
    }
    if (status == ST_OK && power->sensor)
        *out = power;
    else
        power_free(power);
    return status;
}

/* The engines have stopped: what they have told last is booked, and steps that no window will close any more are
 * nobody's. */
static void end_books(struct power *power)
{
    struct power_slot slot;
    look(power);
    struct request_energy_terms terms = take_terms(power, &slot);
    attribution_flush(power->loop.books);
    note_requests(power, UINT64_MAX, &terms);
}

void power_destroy(struct power *power)
{
    if (!power) return;
    atomic_store(&power->stop, true);
    doorbell_ring(&power->doorbell);
    CHECK(pthread_join(power->thread, NULL) == 0);
    end_books(power);
    while (power->ports) {
        struct port_link *link = power->ports;
        CHECK(link->closed);
        power->ports = link->next;
        free_port(link);
    }
    power_free(power);
}

/* ---- from other threads ---- */

/* Where the model's joules are added up. */
static uint32_t model_index(struct power_usage *usage, const char *model)
{
    for (uint32_t i = 0; i < usage->count; i++)
        if (strncmp(usage->models[i], model, POWER_MODEL_NAME_MAX) == 0) return i;
    if (usage->count > POWER_MODELS_MAX) return POWER_MODELS_MAX;
    uint32_t idx = usage->count++;
    strncpy(usage->models[idx], idx < POWER_MODELS_MAX ? model : "others", POWER_MODEL_NAME_MAX);
    return idx;
}

enum status power_open_port(struct power *power, const char *model, struct power_port **port)
{
    struct port_link *link = mem_alloc(1, sizeof *link);
    if (!link || power_port_init(&link->port) != ST_OK) {
        mem_free(link);
        return ST_NOMEM;
    }
    pthread_mutex_lock(&power->mutex);
    link->model = model_index(&power->usage, model);
    link->next = power->ports;
    power->ports = link;
    pthread_mutex_unlock(&power->mutex);
    *port = &link->port;
    return ST_OK;
}

void power_close_port(struct power *power, struct power_port *port)
{
    if (!port) return;
    pthread_mutex_lock(&power->mutex);
    struct port_link *link = power->ports;
    while (&link->port != port) link = link->next;
    link->closed = true;
    pthread_mutex_unlock(&power->mutex);
}

enum status power_set_goal(struct power *power, const struct power_goal *goal, uint64_t until_unix_ms,
                           struct error *err)
{
    TRY(check_goal(power, goal, err));
    if (until_unix_ms && until_unix_ms <= (uint64_t)clock_unix_ms(power->config.clock))
        return error_set(err, ST_INVAL, "until must be in the future");
    pthread_mutex_lock(&power->mutex);
    power->hand = *goal;
    power->hand_is_set = true;
    power->hand_until_unix_ms = until_unix_ms;
    pthread_mutex_unlock(&power->mutex);
    doorbell_ring(&power->doorbell);
    return ST_OK;
}

void power_read_state(struct power *power, struct power_state *state)
{
    pthread_mutex_lock(&power->mutex);
    *state = power->state;
    state->goal = goal_now(power, &state->told);
    state->hand = power->hand_is_set ? power->hand : (struct power_goal){INFINITY, INFINITY, 0};
    state->until_unix_ms = power->hand_until_unix_ms;
    pthread_mutex_unlock(&power->mutex);
}

void power_read_usage(struct power *power, struct power_usage *usage)
{
    pthread_mutex_lock(&power->mutex);
    *usage = power->usage;
    pthread_mutex_unlock(&power->mutex);
}

/* ---- requests ---- */

void power_request_begin(struct power *power, uint64_t id, const struct request_energy_who *who)
{
    pthread_mutex_lock(&power->mutex);
    request_energy_begin(power->requests, id, who);
    pthread_mutex_unlock(&power->mutex);
}

void power_request_end(struct power *power, uint64_t id, uint64_t deferral_ms)
{
    uint64_t now_ns = clock_now_ns(power->config.clock);
    pthread_mutex_lock(&power->mutex);
    request_energy_end(power->requests, id, deferral_ms, now_ns);
    pthread_mutex_unlock(&power->mutex);
}

double power_request_joules(struct power *power, uint64_t id, uint64_t prompts, uint64_t rows, uint32_t running)
{
    struct request_energy_shown shown = {0};
    pthread_mutex_lock(&power->mutex);
    struct energy_model model = power->model;
    (void)request_energy_look(power->requests, id, &shown);
    pthread_mutex_unlock(&power->mutex);
    double more_prompts = prompts > shown.prompts ? (double)(prompts - shown.prompts) : 0;
    double more_rows = rows > shown.rows ? (double)(rows - shown.rows) : 0;
    double steps = (more_rows + (more_prompts > 0)) / (running > 1 ? running : 1);
    return (double)shown.uj * 1e-6 + shown.open_j +
           energy_model_joules(
               &model, &(struct energy_work){.steps = steps, .prefill_tokens = more_prompts, .decode_rows = more_rows});
}

bool power_tenant(struct power *power, uint32_t *next, struct tenant_energy *tenant)
{
    pthread_mutex_lock(&power->mutex);
    bool found = request_energy_tenant(power->requests, next, tenant);
    pthread_mutex_unlock(&power->mutex);
    return found;
}
