/* See plan.h. Ids are found by a table with open addresses; a removal moves what follows back, so that it never fills
 * with graves. */
#include "server/power/plan.h"

#include "runtime/base/check.h"
#include "runtime/base/id_table.h"
#include "runtime/base/mem.h"
#include "runtime/power/energy_model.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    MARGIN_SLOTS = 2,
    REPLAN_MS = 60000,
    MINUTES = 1440,     /* of interactive work that are remembered */
    MINUTES_KNOWN = 30, /* before these, INTERACTIVE_FIRST is thought */
    SLOTS_OF_DAY = 96,
    RECORD_NONE = UINT32_MAX
};

/* Of the device, or of what watts leave of it; the batch share of serving is up to 55 % (EcoServe). */
static const double INTERACTIVE_FIRST = 0.25;
static const double MINUTE_WEIGHT = 0.1; /* of a minute, in what is recent or usual */
static const double BUSY_MIN_S = 0.5;    /* in a minute, to learn watts from it */
static const double SHARE_MIN = 0.05;    /* a lower one lasts no longer than this */
static const double WORK_MIN_S = 1e-6;
static const double ROWS_DECAY = 0.9; /* of the rows of a step, by each minute with work */

struct record {
    uint64_t id;
    int64_t entered_ms, span_ms;
    uint32_t next_news; /* chain of the jobs that have news */
    uint8_t tier, news; /* enum plan_news_kind + 1; 0: none */
    bool in_chain, green_only;
    bool counted; /* its deferral is in the totals */
};

struct plan {
    struct plan_config config;
    struct deadline *jobs;
    struct record *records; /* by number of the job */
    struct id_table ids;    /* these numbers */
    uint32_t news_first, news_last;
    struct plan_now now, minute; /* the last look; where the minute under way began */
    struct energy_model cost;    /* seconds in place of joules */
    double rows;                 /* of a step with work */
    double busy_w;               /* above idle, while steps run; 0: not known */
    double minutes[MINUTES];     /* interactive device seconds a second */
    uint32_t minutes_count, minutes_next;
    double spent, minute_spent;           /* device seconds of deferrable work, of all time */
    double interactive, interactive_mean; /* 95th percentile and mean of the minutes */
    double recent;                        /* of the last ten or so */
    double of_day[SLOTS_OF_DAY];          /* their usual value at that time of the day; < 0: not known */
    double slot_interactive;              /* device seconds in this slot */
    double deferrable_rate;               /* device seconds a second, in the last minute */
    int64_t planned_ms;
    struct deadline_slot slots[DEADLINE_SLOTS_MAX]; /* of the last plan */
    enum deadline_policy policy;
    struct power_slot told_now; /* of the slot that is now, at the last plan */
    bool hold, dirty, looked;
    enum plan_cause short_by; /* why D1's sums do not hold; LATE while they do */
    struct plan_totals totals;
};

/* ---- life ---- */

enum status plan_create(const struct plan_config *config, struct plan **out, struct error *err)
{
    struct plan *plan = mem_alloc(1, sizeof *plan);
    if (!plan) return error_set(err, ST_NOMEM, "no memory for the plan of deferrable jobs");
    plan->config = *config;
    if (!plan->config.jobs_max) plan->config.jobs_max = PLAN_JOBS_MAX;
    if (!plan->config.margin_slots) plan->config.margin_slots = MARGIN_SLOTS;
    const struct deadline_config jobs = {plan->config.jobs_max, plan->config.margin_slots, PLAN_SLOT_MS};
    plan->records = mem_alloc(plan->config.jobs_max, sizeof *plan->records);
    enum status status = id_table_init(&plan->ids, plan->config.jobs_max) == ST_OK && plan->records
                             ? deadline_create(&jobs, &plan->jobs, err)
                             : error_set(err, ST_NOMEM, "no memory for deferrable jobs");
    if (status != ST_OK) {
        plan_destroy(plan);
        return status;
    }
    plan->news_first = plan->news_last = RECORD_NONE;
    energy_model_init(&plan->cost, 1);
    plan->rows = 1;
    plan->interactive = plan->interactive_mean = plan->recent = INTERACTIVE_FIRST;
    for (uint32_t i = 0; i < SLOTS_OF_DAY; i++) plan->of_day[i] = -1;
    *out = plan;
    return ST_OK;
}

void plan_destroy(struct plan *plan)
{
    if (!plan) return;
    deadline_destroy(plan->jobs);
    mem_free(plan->records);
    id_table_free(&plan->ids);
    mem_free(plan);
}

/* ---- news ---- */

static void count_deferral(struct plan *plan, struct record *record, int64_t now_ms)
{
    if (record->counted) return;
    record->counted = true;
    plan->totals.deferral_s += fmax((double)(now_ms - record->entered_ms) / 1e3, 0);
    plan->totals.deferrals++;
}

static void on_news(void *state, const struct deadline_news *news)
{
    struct plan *plan = state;
    struct record *record = &plan->records[news->job];
    uint8_t kind = news->released ? PLAN_RELEASED + 1 : PLAN_TAKEN_BACK + 1;
    record->news = record->news ? 0 : kind; /* there and back: nothing is told */
    if (record->in_chain) return;
    record->in_chain = true;
    record->next_news = RECORD_NONE;
    if (plan->news_last == RECORD_NONE)
        plan->news_first = news->job;
    else
        plan->records[plan->news_last].next_news = news->job;
    plan->news_last = news->job;
}

static void choose(struct plan *plan, int64_t now_ms)
{
    (void)deadline_choose(plan->jobs, now_ms, on_news, plan);
    plan->dirty = false;
}

static void drop(struct plan *plan, uint32_t idx, bool ended_well)
{
    id_table_remove(&plan->ids, plan->records[idx].id);
    deadline_remove(plan->jobs, idx, ended_well);
    plan->records[idx].id = 0;
    plan->records[idx].news = 0;
    plan->dirty = true;
}

static enum plan_cause cause_of(const struct plan *plan, uint32_t idx)
{
    return plan->records[idx].green_only ? PLAN_CAUSE_GREEN : plan->short_by;
}

bool plan_take(struct plan *plan, struct plan_news *news, int64_t now_ms)
{
    uint32_t idx = deadline_expired(plan->jobs, now_ms);
    if (idx != DEADLINE_NONE) {
        *news = (struct plan_news){PLAN_EXPIRED, plan->records[idx].id, false, cause_of(plan, idx)};
        plan->totals.misses[news->cause]++;
        drop(plan, idx, false);
        return true;
    }
    if (plan->dirty) choose(plan, now_ms);
    while ((idx = plan->news_first) != RECORD_NONE) {
        struct record *record = &plan->records[idx];
        uint8_t kind = record->news;
        plan->news_first = record->next_news;
        if (plan->news_first == RECORD_NONE) plan->news_last = RECORD_NONE;
        record->in_chain = false;
        record->news = 0;
        if (!kind) continue;
        *news = (struct plan_news){.kind = (enum plan_news_kind)(kind - 1), .id = record->id};
        if (news->kind == PLAN_RELEASED) {
            news->forced = plan->hold && deadline_reason(plan->jobs, idx) == DEADLINE_BY_NEED;
            count_deferral(plan, record, now_ms);
        }
        return true;
    }
    return false;
}

/* ---- jobs ---- */

static enum deadline_mode mode_of(const struct plan_job *job)
{
    if (job->green == PLAN_GREEN_ONLY) return DEADLINE_ONLY;
    if (job->tier == PLAN_FLEX) return DEADLINE_FLEX;
    return job->green == PLAN_GREEN_ANY ? DEADLINE_ANY : DEADLINE_PREFER;
}

static enum status take_in(struct plan *plan, const struct plan_job *job, int64_t now_ms, bool promised,
                           int64_t *earliest_ms)
{
    const struct deadline_job item = {job->work, job->deadline_ms, job->span_ms, mode_of(job)};
    uint32_t idx;
    *earliest_ms = 0;
    if (!job->id || id_table_find(&plan->ids, job->id) != ID_NONE) return ST_INVAL;
    TRY(promised ? deadline_enter(plan->jobs, &item, now_ms, &idx)
                 : deadline_admit(plan->jobs, &item, now_ms, &idx, earliest_ms));
    id_table_add(&plan->ids, job->id, idx);
    struct record *record = &plan->records[idx]; /* it may still be in the chain, of an earlier job */
    record->id = job->id;
    record->entered_ms = now_ms;
    record->span_ms = job->span_ms;
    record->news = 0;
    record->counted = false;
    record->green_only = job->green == PLAN_GREEN_ONLY;
    record->tier = (uint8_t)job->tier;
    plan->totals.admitted++;
    plan->dirty = true;
    return ST_OK;
}

enum status plan_admit(struct plan *plan, const struct plan_job *job, int64_t now_ms, int64_t *earliest_ms)
{
    enum status status = take_in(plan, job, now_ms, false, earliest_ms);
    plan->totals.refused += status == ST_LIMIT || status == ST_AGAIN;
    return status;
}

enum status plan_enter(struct plan *plan, const struct plan_job *job, int64_t now_ms)
{
    int64_t earliest_ms;
    return take_in(plan, job, now_ms, true, &earliest_ms);
}

void plan_started(struct plan *plan, uint64_t id)
{
    uint32_t idx = id_table_find(&plan->ids, id);
    if (idx == ID_NONE || !deadline_is_released(plan->jobs, idx) || deadline_is_started(plan->jobs, idx)) return;
    deadline_start(plan->jobs, idx);
}

static void use(struct plan *plan, uint32_t idx, double left)
{
    double before = deadline_work(plan->jobs, idx);
    if (!(left < before)) return;
    deadline_left(plan->jobs, idx, left);
    plan->spent += before - deadline_work(plan->jobs, idx);
}

void plan_progress(struct plan *plan, uint64_t id, double work_left)
{
    uint32_t idx = id_table_find(&plan->ids, id);
    if (idx == ID_NONE || !deadline_is_started(plan->jobs, idx)) return;
    use(plan, idx, work_left);
    plan->dirty = true;
}

void plan_again(struct plan *plan, uint64_t id, double work)
{
    uint32_t idx = id_table_find(&plan->ids, id);
    if (idx == ID_NONE || !(work > 0) || !isfinite(work)) return;
    deadline_again(plan->jobs, idx, work);
    plan->records[idx].news = 0;
    plan->dirty = true;
}

void plan_remove(struct plan *plan, uint64_t id, enum plan_end end, double work_used)
{
    uint32_t idx = id_table_find(&plan->ids, id);
    if (idx == ID_NONE) return;
    bool ran = deadline_is_started(plan->jobs, idx);
    if (ran && work_used >= 0) use(plan, idx, deadline_bound(plan->jobs, idx) - work_used);
    plan->totals.done += end == PLAN_DONE;
    drop(plan, idx, ran && end == PLAN_DONE);
}

/* ---- watts and device seconds ---- */

/* Watts above idle of work at full speed. */
static double full_work_w(const struct plan *plan)
{
    const struct plan_now *now = &plan->now;
    double most = now->full_w - now->idle_w;
    return plan->busy_w > 0 && plan->busy_w < most ? plan->busy_w : most;
}

/* What of the device the watts of a slot pay for. */
static double share_of(const struct plan *plan, const struct power_slot *told)
{
    const struct plan_now *now = &plan->now;
    double watts = fmin(now->cap_w, now->target_w);
    if (!now->metered) return 1;
    if (told->have & SLOT_CAP) watts = fmin(watts, told->cap_w);
    if (told->have & SLOT_TARGET) watts = fmin(watts, told->target_w);
    return fmin(fmax((watts - now->idle_w) / full_work_w(plan), 0), 1);
}

/* ---- what steps cost ---- */

double plan_work(const struct plan *plan, const struct plan_request *request)
{
    struct energy_work work = {.steps = request->output_tokens / plan->rows,
                               .prefill_tokens = request->prompt_tokens,
                               .decode_rows = request->output_tokens};
    return fmax(energy_model_joules(&plan->cost, &work), WORK_MIN_S);
}

int64_t plan_span_ms(const struct plan *plan, const struct plan_request *request)
{
    struct energy_work step = {.steps = 1, .decode_rows = plan->rows};
    struct energy_work prompt = {.prefill_tokens = request->prompt_tokens};
    double steps = (double)request->output_tokens / (request->choices ? request->choices : 1);
    double seconds = steps * energy_model_joules(&plan->cost, &step) + energy_model_joules(&plan->cost, &prompt);
    if (plan->looked) seconds /= fmax(share_of(plan, &plan->told_now), SHARE_MIN); /* steps are paced */
    return (int64_t)fmin(seconds * 1e3, 1e15);
}

static void learn_cost(struct plan *plan, const struct plan_now *now)
{
    const struct plan_now *before = &plan->now;
    struct energy_work work = {.steps = now->steps - before->steps,
                               .prefill_tokens = now->prompt_tokens - before->prompt_tokens,
                               .decode_rows = now->output_tokens - before->output_tokens};
    energy_model_observe(&plan->cost, &work, now->busy_s - before->busy_s);
    if (work.steps > 0 && work.decode_rows > 0)
        plan->rows = ROWS_DECAY * plan->rows + (1 - ROWS_DECAY) * fmax(work.decode_rows / work.steps, 1);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* A minute is over: what of it interactive requests took. */
static void learn_minute(struct plan *plan, const struct plan_now *now)
{
    double seconds = (double)(now->now_ms - plan->minute.now_ms) / 1e3, sorted[MINUTES], sum = 0;
    double busy = now->busy_s - plan->minute.busy_s, deferrable = plan->spent - plan->minute_spent;
    if (now->metered && busy > BUSY_MIN_S && now->work_j > plan->minute.work_j) {
        double watts = (now->work_j - plan->minute.work_j) / busy;
        plan->busy_w = plan->busy_w > 0 ? plan->busy_w + 0.1 * (watts - plan->busy_w) : watts;
    }
    double rate = fmin(fmax(busy - deferrable, 0) / seconds, 1);
    double *usual = &plan->of_day[plan->minute.now_ms / PLAN_SLOT_MS % SLOTS_OF_DAY];
    *usual = *usual < 0 ? rate : *usual + MINUTE_WEIGHT * (rate - *usual);
    plan->recent += MINUTE_WEIGHT * (rate - plan->recent);
    if (now->now_ms / PLAN_SLOT_MS != plan->minute.now_ms / PLAN_SLOT_MS) plan->slot_interactive = 0;
    plan->slot_interactive += rate * seconds;
    plan->minutes[plan->minutes_next] = rate;
    plan->minutes_next = (plan->minutes_next + 1) % MINUTES;
    plan->minutes_count += plan->minutes_count < MINUTES;
    plan->deferrable_rate = deferrable / seconds;
    plan->minute = *now;
    plan->minute_spent = plan->spent;
    if (plan->minutes_count < MINUTES_KNOWN) return;
    memcpy(sorted, plan->minutes, plan->minutes_count * sizeof *sorted);
    qsort(sorted, plan->minutes_count, sizeof *sorted, by_value);
    for (uint32_t i = 0; i < plan->minutes_count; i++) sum += sorted[i];
    plan->interactive = sorted[(uint64_t)plan->minutes_count * 95 / 100];
    plan->interactive_mean = sum / plan->minutes_count;
}

/* ---- planning ---- */

/* What interactive requests are thought to take in the slot that is i slots ahead, device seconds a second. */
static double interactive_in(const struct plan *plan, uint32_t i)
{
    double usual = plan->of_day[(plan->now.now_ms / PLAN_SLOT_MS + i) % SLOTS_OF_DAY];
    if (i == 0) return plan->recent;
    return usual < 0 ? plan->interactive_mean : usual;
}

/* Device seconds of green power that interactive requests leave of the slot. */
static double green_left(const struct plan *plan, const struct power_slot *told, uint32_t i)
{
    const double seconds = PLAN_SLOT_MS / 1e3, rest = 1 - (double)(plan->now.now_ms % PLAN_SLOT_MS) / PLAN_SLOT_MS;
    double green = told->green_w > 0; /* without a meter nobody knows how far it reaches */
    if (plan->now.metered) green = (told->green_w - plan->now.idle_w) / full_work_w(plan);
    double taken = interactive_in(plan, i) * seconds;
    if (i == 0) taken = plan->slot_interactive + taken * rest;
    return fmax(green * seconds - taken, 0);
}

static struct deadline_slot plan_slot(const struct plan *plan, const struct power_slot *told, uint32_t i)
{
    const double seconds = PLAN_SLOT_MS / 1e3;
    double share = share_of(plan, told), surely = plan->interactive;
    if (plan->minutes_count < MINUTES_KNOWN) surely = INTERACTIVE_FIRST * share; /* of what there is: paced like all */
    bool shed = ((told->have & SLOT_SHED) && told->shed_level > 0) || (i == 0 && plan->now.shed_level > 0);
    if (i < 2 && plan->recent > surely) surely = plan->recent;
    /* A level told for part of a slot takes all of its capacity from the proof, and holds only while it is there. */
    struct deadline_slot slot = {.capacity = shed ? 0 : fmax(share - surely, 0) * seconds,
                                 .likely = fmax(share - interactive_in(plan, i), 0) * seconds,
                                 .priced = told->have & SLOT_PRICE,
                                 .forecast = i > 0 && told->quality == SLOT_FORECAST,
                                 .price = told->price_kwh * (told->have & SLOT_PUE ? told->pue : 1)};
    if (told->have & SLOT_GREEN) slot.green = green_left(plan, told, i);
    return slot;
}

static void make_plan(struct plan *plan)
{
    const int64_t now_ms = plan->now.now_ms, first_ms = now_ms / PLAN_SLOT_MS * PLAN_SLOT_MS;
    struct power_slot told;
    uint32_t have = 0;
    bool hold = plan->now.shed_level > 0, capped = false;
    for (uint32_t i = 0; i < DEADLINE_SLOTS_MAX; i++) {
        told = (struct power_slot){0};
        if (i < PLAN_SLOTS && plan->config.over_slot)
            plan->config.over_slot(plan->config.state, first_ms + (int64_t)i * PLAN_SLOT_MS, now_ms, &told);
        plan->slots[i] = plan_slot(plan, &told, i);
        if (i == 0) plan->told_now = told;
        capped |= share_of(plan, &told) < 1;
        have |= told.have;
    }
    plan->policy = have & SLOT_GREEN ? DEADLINE_GREEN : have & SLOT_PRICE ? DEADLINE_PRICE : DEADLINE_FREE;
    plan->hold = hold;
    plan->planned_ms = now_ms;
    deadline_profile(plan->jobs, now_ms, plan->slots, DEADLINE_SLOTS_MAX, plan->policy, hold);
    if (deadline_shortfall(plan->jobs, now_ms) <= 0)
        plan->short_by = PLAN_CAUSE_LATE;
    else if (hold)
        plan->short_by = PLAN_CAUSE_EVENT;
    else if (capped)
        plan->short_by = PLAN_CAUSE_CAP;
    plan->dirty = true;
}

void plan_look(struct plan *plan, const struct plan_now *now)
{
    bool first = !plan->looked;
    if (first) plan->now = plan->minute = *now;
    bool changed = now->cap_w != plan->now.cap_w || now->target_w != plan->now.target_w ||
                   now->shed_level != plan->now.shed_level || now->metered != plan->now.metered;
    learn_cost(plan, now);
    plan->now = *now;
    plan->looked = true;
    if (now->now_ms < plan->minute.now_ms) plan->minute = *now; /* the clock was set back */
    if (now->now_ms - plan->minute.now_ms >= REPLAN_MS) learn_minute(plan, now);
    bool due = now->now_ms - plan->planned_ms >= REPLAN_MS || now->now_ms < plan->planned_ms ||
               now->now_ms / PLAN_SLOT_MS != plan->planned_ms / PLAN_SLOT_MS;
    if (first || changed || due) make_plan(plan);
}

/* ---- shown ---- */

const char *plan_cause_text(enum plan_cause cause)
{
    static const char *const texts[PLAN_CAUSES] = {"cap", "event", "green", "late"};
    return texts[cause];
}

static const char *why_text(enum deadline_why why)
{
    static const char *const texts[] = {
        [DEADLINE_BY_NEED] = "deadline",     [DEADLINE_BY_GREEN] = "green",         [DEADLINE_BY_PRICE] = "price",
        [DEADLINE_BY_CAPACITY] = "capacity", [DEADLINE_WAITS_GREEN] = "green",      [DEADLINE_WAITS_PRICE] = "price",
        [DEADLINE_WAITS_EVENT] = "event",    [DEADLINE_WAITS_CAPACITY] = "capacity"};
    return texts[why];
}

static struct plan_explanation explain(const struct plan *plan, uint32_t idx, int64_t now_ms)
{
    const struct deadline *jobs = plan->jobs;
    return (struct plan_explanation){.state = deadline_is_started(jobs, idx)    ? "running"
                                              : deadline_is_released(jobs, idx) ? "released"
                                                                                : "waiting",
                                     .why = why_text(deadline_reason(jobs, idx)),
                                     .expected_ms = deadline_expected_ms(jobs, idx, now_ms),
                                     .deadline_ms = deadline_end_ms(jobs, idx),
                                     .span_ms = plan->records[idx].span_ms,
                                     .waits_green = !deadline_is_released(jobs, idx) &&
                                                    deadline_reason(jobs, idx) == DEADLINE_WAITS_GREEN};
}

bool plan_explain(const struct plan *plan, uint64_t id, int64_t now_ms, struct plan_explanation *explanation)
{
    uint32_t idx = id_table_find(&plan->ids, id);
    if (idx == ID_NONE) return false;
    *explanation = explain(plan, idx, now_ms);
    return true;
}

bool plan_released(const struct plan *plan, uint64_t id)
{
    uint32_t idx = id_table_find(&plan->ids, id);
    return idx != ID_NONE && deadline_is_released(plan->jobs, idx);
}

/* The rest of this slot and the beginning of the next; own jobs by their bounds: they come first. */
double plan_surplus(const struct plan *plan, int64_t now_ms)
{
    const struct deadline_slot *now = &plan->slots[0], *next = &plan->slots[1];
    struct deadline_sums sums;
    if (!plan->looked || plan->policy != DEADLINE_GREEN || plan->hold || !(now->green > 0)) return 0;
    double passed = (double)(now_ms % PLAN_SLOT_MS) / PLAN_SLOT_MS;
    deadline_read_sums(plan->jobs, &sums);
    double green = fmin(now->green, now->likely) * (1 - passed) + fmin(next->green, next->likely) * passed;
    return fmax(green - sums.work_released - sums.work_waiting, 0);
}

void plan_read_totals(const struct plan *plan, struct plan_totals *totals)
{
    static const char *const policies[] = {"free", "green", "price"};
    *totals = plan->totals;
    deadline_read_sums(plan->jobs, &totals->sums);
    totals->interactive = plan->interactive;
    totals->policy = policies[plan->policy];
    totals->hold = plan->hold;
    totals->flex_down_w = plan->now.metered && !plan->hold ? plan->deferrable_rate * full_work_w(plan) : 0;
}

static void print_slots(const struct plan *plan, int64_t now_ms, struct buf *out)
{
    struct deadline_outlook slots[PLAN_SLOTS];
    bool first = true;
    deadline_look_ahead(plan->jobs, now_ms, slots, PLAN_SLOTS);
    buf_append_text(out, ",\"slots\":[");
    for (uint32_t i = 0; i < PLAN_SLOTS; i++) {
        const struct deadline_outlook *slot = &slots[i];
        if (slot->need + slot->green + slot->cheap + slot->free <= 0) continue;
        buf_append_format(out,
                          "%s{\"start\":%" PRId64 ",\"capacity_s\":%.6g,\"green_s\":%.6g,\"planned_s\":{\"deadline\":"
                          "%.6g,\"green\":%.6g,\"price\":%.6g,\"capacity\":%.6g}}",
                          first ? "" : ",", slot->t0_ms / 1000, plan->slots[i].capacity, plan->slots[i].green,
                          slot->need, slot->green, slot->cheap, slot->free);
        first = false;
    }
    buf_append_text(out, "]");
}

/* The first `most` jobs by deadline into idx: a table of those so far, kept in order. */
static uint32_t first_jobs(const struct plan *plan, uint32_t most, uint32_t *idx)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < plan->config.jobs_max; i++) {
        if (!plan->records[i].id) continue;
        int64_t end_ms = deadline_end_ms(plan->jobs, i);
        if (count == most && end_ms >= deadline_end_ms(plan->jobs, idx[count - 1])) continue;
        uint32_t at = count < most ? count++ : count - 1;
        for (; at > 0 && deadline_end_ms(plan->jobs, idx[at - 1]) > end_ms; at--) idx[at] = idx[at - 1];
        idx[at] = i;
    }
    return count;
}

static void print_jobs(const struct plan *plan, int64_t now_ms, uint32_t most, struct buf *out)
{
    uint32_t idx[PLAN_PRINT_JOBS_MAX];
    uint32_t count = most ? first_jobs(plan, most < PLAN_PRINT_JOBS_MAX ? most : PLAN_PRINT_JOBS_MAX, idx) : 0;
    buf_append_text(out, ",\"jobs\":[");
    for (uint32_t i = 0; i < count; i++) {
        const struct record *record = &plan->records[idx[i]];
        struct plan_explanation job = explain(plan, idx[i], now_ms);
        buf_append_format(out,
                          "%s{\"id\":\"%016" PRIx64
                          "\",\"tier\":\"%s\",\"state\":\"%s\",\"why\":\"%s\",\"work_s\":%.6g,"
                          "\"deadline\":%" PRId64 ",\"expected_start\":",
                          i ? "," : "", record->id, record->tier == PLAN_FLEX ? "flex" : "batch", job.state, job.why,
                          deadline_work(plan->jobs, idx[i]), job.deadline_ms / 1000);
        if (job.expected_ms)
            buf_append_format(out, "%" PRId64 "}", job.expected_ms / 1000);
        else
            buf_append_text(out, "null}");
    }
    buf_append_text(out, "]");
}

void plan_print(const struct plan *plan, int64_t now_ms, uint32_t jobs_count, struct buf *out)
{
    struct plan_totals totals;
    plan_read_totals(plan, &totals);
    buf_append_format(out,
                      "{\"object\":\"power.plan\",\"policy\":\"%s\",\"event\":%s,\"waiting\":%u,\"released\":%u,"
                      "\"running\":%u,\"work_waiting_s\":%.6g,\"work_released_s\":%.6g,\"need_s\":%.6g,"
                      "\"done_in_slot_s\":%.6g,\"used_share\":%.4g,\"interactive_p95\":%.4g",
                      totals.policy, totals.hold ? "true" : "false", totals.sums.waiting,
                      totals.sums.released - totals.sums.started, totals.sums.started, totals.sums.work_waiting,
                      totals.sums.work_released, totals.sums.need, totals.sums.spent, totals.sums.used_share,
                      totals.interactive);
    buf_append_format(out, ",\"admitted\":%" PRIu64 ",\"refused\":%" PRIu64 ",\"done\":%" PRIu64 ",\"missed\":{",
                      totals.admitted, totals.refused, totals.done);
    for (int cause = 0; cause < PLAN_CAUSES; cause++)
        buf_append_format(out, "%s\"%s\":%" PRIu64, cause ? "," : "", plan_cause_text((enum plan_cause)cause),
                          totals.misses[cause]);
    buf_append_text(out, "}");
    print_slots(plan, now_ms, out);
    print_jobs(plan, now_ms, jobs_count, out);
    buf_append_text(out, "}");
}

static void print_head(struct buf *out, const char *name, const char *kind, const char *help)
{
    buf_append_format(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind);
}

void plan_print_metrics(const struct plan *plan, struct buf *out)
{
    struct plan_totals totals;
    plan_read_totals(plan, &totals);
    print_head(out, "mr_deferred_jobs", "gauge", "Deferrable jobs that are promised, by state");
    buf_append_format(out,
                      "mr_deferred_jobs{engine=\"0\",state=\"waiting\"} %u\n"
                      "mr_deferred_jobs{engine=\"0\",state=\"released\"} %u\n"
                      "mr_deferred_jobs{engine=\"0\",state=\"running\"} %u\n",
                      totals.sums.waiting, totals.sums.released - totals.sums.started, totals.sums.started);
    print_head(out, "mr_deferral_seconds", "summary", "From the promise until a deferrable job might run");
    buf_append_format(
        out, "mr_deferral_seconds_sum{engine=\"0\"} %.9g\nmr_deferral_seconds_count{engine=\"0\"} %" PRIu64 "\n",
        totals.deferral_s, totals.deferrals);
    print_head(out, "mr_deadline_misses_total", "counter", "Promised jobs that expired, by what took their time");
    for (int cause = 0; cause < PLAN_CAUSES; cause++)
        buf_append_format(out, "mr_deadline_misses_total{engine=\"0\",cause=\"%s\"} %" PRIu64 "\n",
                          plan_cause_text((enum plan_cause)cause), totals.misses[cause]);
    print_head(out, "mr_flex_down_watts", "gauge", "What deferrable work that runs draws: it could be shed");
    buf_append_format(out, "mr_flex_down_watts{engine=\"0\"} %.9g\n", totals.flex_down_w);
}
