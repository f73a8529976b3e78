/* A step inside a watt budget: which rows and how many prompt tokens its joules pay for (R25, R26).
 *
 *   interactive rows   always in: the bucket is in debt afterwards, and the engine waits (throttle.h)
 *   priority's prompts   as many tokens as urgent_j has: they may be ahead of the room, which pays later (W5)
 *   interactive prompts  as many tokens as the room has, at least a block a step, so that they get on
 *   deferrable rows    while the room lasts, once what the interactive prompts want is set aside
 *   deferrable prompts with what is left; from nothing, one block
 *
 *   rows of default    where priority is in the step too, or default is paced: each up to twice its token interval
 *
 * A class is deferrable from flex on; a sequence of it that has had nothing for its class limit counts as interactive,
 * so that none is paused for ever. Joules above idle of a step are q = max(0, min(E - P0 * T, range * T)): E from the
 * energy model, T from the cost model. The second bound holds where the first knows only steps of another make-up:
 * after seconds of full prompts that all look alike it may give a step of 16 tokens the joules of one of 100. Rejected:
 * planning as without a limit and taking rows out again until it fits (a record a row and try); letting prompts starve
 * the deferrable rows whatever there is to save (the room is set aside only for prompts that run, so a prompt that
 * waits for blocks cannot hold up the rows that have them). */
#include "runtime/base/clock.h"
#include "scheduler/sched_internal.h"

#include <math.h>

void sched_set_power(struct sched *s, const struct sched_power *power)
{
    s->power = *power;
}

static double joules_above_idle(const struct sched *s, const struct energy_work *work, const struct cost_step *cost)
{
    double step_s = (double)cost_model_predict_ns(&s->cost, cost) * 1e-9;
    double joules = fmax(0, energy_model_joules(&s->power.model, work) - s->power.idle_w * step_s);
    return s->power.range_w > 0 ? fmin(joules, s->power.range_w * step_s) : joules;
}

static const struct planned_step *last_plan(const struct sched *s)
{
    CHECK(s->steps_open > 0);
    return &s->steps[(s->step_oldest + s->steps_open - 1) % SCHED_STEPS_MAX];
}

const struct energy_share *sched_plan_shares(const struct sched *s, uint32_t *count)
{
    const struct planned_step *step = last_plan(s);
    CHECK(step->shares != NULL);
    *count = step->batch->seqs_count;
    return step->shares;
}

double sched_plan_joules(const struct sched *s, struct energy_work *work)
{
    const struct planned_step *step = last_plan(s);
    *work = step->work;
    return joules_above_idle(s, &step->work, &step->cost);
}

bool power_begin(struct sched *s)
{
    bool limited =
        isfinite(s->power.room_j) || s->power.holds_deferrable || s->power.paces_default || s->power.caps_rows;
    bool is_ahead = limited && s->priority_jobs > 0 && s->power.urgent_j > s->power.room_j;
    s->power_plan = (struct power_plan){.limited = limited,
                                        .ahead = is_ahead,
                                        .turn = is_ahead ? POWER_PRIORITY : POWER_INTERACTIVE,
                                        .rank_max = FAIR_RANKS - 1,
                                        .due_ns = UINT64_MAX};
    return !limited || is_ahead || s->power.room_j > 0;
}

/* ---- who may wait ---- */

static bool may_wait(const struct sched *s, const struct hot *hot, uint64_t now_ns)
{
    if (hot->rank <= RANK_INTERACTIVE_MAX) return false;
    if (PLANTED(PAUSE_ON)) return true;
    uint64_t waited_ns = now_ns > hot->last_token_ns ? now_ns - hot->last_token_ns : 0;
    return waited_ns <= s->config.class_limit_ns[hot->rank - 1];
}

bool power_admits(const struct sched *s, const struct hot *hot, uint64_t now_ns)
{
    const struct power_plan *plan = &s->power_plan;
    if (!plan->limited) return true;
    if (plan->ahead && hot->flags & HOT_PRIORITY) return plan->turn == POWER_PRIORITY;
    if (plan->turn == POWER_PRIORITY) return false;
    if (!may_wait(s, hot, now_ns))
        return plan->turn == POWER_INTERACTIVE && (hot->rank > RANK_INTERACTIVE_MAX || hot->rank <= plan->rank_max);
    return plan->turn == POWER_DEFERRABLE && hot->rank <= plan->rank_max;
}

bool power_admits_rank(const struct sched *s, uint32_t rank, uint32_t service_class)
{
    if (s->power_plan.turn == POWER_PRIORITY) return service_class == CLASS_PRIORITY;
    return rank <= s->power_plan.rank_max && (s->power_plan.turn == POWER_DEFERRABLE || rank <= RANK_INTERACTIVE_MAX);
}

double power_weight(const struct sched *s, uint32_t position)
{
    double token_j = energy_model_term(&s->power.model, 1);
    return token_j > 0 ? 1 + position * energy_model_term(&s->power.model, 2) / token_j : 1;
}

/* ---- decode rows ---- */

struct taken {
    struct energy_work work;
    struct cost_step cost;
};

static struct taken with_row(const struct sched *s, struct taken taken, const struct hot *hot)
{
    taken.work.decode_rows++;
    taken.work.decode_context += hot->computed;
    taken.cost.tokens++;
    taken.cost.rows++;
    taken.cost.pairs += hot->computed;
    taken.cost.bytes += hot->blocks * s->config.kv_block_bytes;
    return taken;
}

static bool fits(const struct sched *s, const struct taken *taken, double room_j)
{
    if (PLANTED(PASS_ROOM)) return true;
    return room_j > 0 && joules_above_idle(s, &taken->work, &taken->cost) <= room_j; /* 0 J do not fit into debt */
}

/* R27. A step with all of these rows lasts as long as the token interval that default is paced by. Its rows may wait
 * while the next chance, once this step without them is done, still has their token within twice that; without other
 * rows that chance is whenever the engine likes. */
static void begin_paces(struct sched *s, const uint32_t *items, uint32_t count)
{
    struct taken all = {.cost.bytes = s->config.weights_bytes}, others = all;
    bool priority = false;
    for (uint32_t i = 0; i < count; i++) {
        all = with_row(s, all, &s->hot[items[i]]);
        if (s->hot[items[i]].rank < RANK_INTERACTIVE_MAX) others = with_row(s, others, &s->hot[items[i]]);
    }
    for (uint32_t i = 0; i < s->hot_count; i++) priority = priority || s->hot[i].rank < RANK_INTERACTIVE_MAX;
    s->touched += s->hot_count;
    if (!s->power.paces_default && !(priority && isfinite(s->power.room_j))) return;
    uint64_t interval_ns = cost_model_predict_ns(&s->cost, &all.cost), least_ns = interval_ns / 4;
    uint64_t others_ns = others.cost.rows > 0 ? cost_model_predict_ns(&s->cost, &others.cost) : 0;
    uint64_t left_ns = interval_ns > others_ns ? interval_ns - others_ns : 0;
    s->power_plan.pace_ns = left_ns > least_ns ? left_ns : least_ns;
}

/* A row of default whose next token, were it planned now, came before twice the interval. One with an id still to come
 * from a step under way has its turn there. */
static bool may_pace(struct sched *s, const struct hot *hot, uint64_t now_ns)
{
    if (hot->rank != RANK_INTERACTIVE_MAX || s->power_plan.pace_ns == 0) return false;
    if (hot->pending || PLANTED(PACE_ON)) return true;
    return now_ns < hot->last_token_ns + s->power_plan.pace_ns;
}

static bool row_may_wait(struct sched *s, const struct hot *hot, uint64_t now_ns)
{
    return may_wait(s, hot, now_ns) || may_pace(s, hot, now_ns);
}

/* Of those that may wait. */
static bool is_held(const struct sched *s, const struct hot *hot)
{
    if (hot->rank > RANK_INTERACTIVE_MAX) return s->power.holds_deferrable;
    return s->power.paces_default && !PLANTED(NO_PACE);
}

/* Those that may not wait in front; returns how many. */
static uint32_t part_decodes(struct sched *s, uint32_t *items, uint32_t count, uint64_t now_ns)
{
    uint32_t front = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t item = items[i];
        if (row_may_wait(s, &s->hot[item], now_ns)) continue;
        items[i] = items[front];
        items[front++] = item;
    }
    return front;
}

/* Tokens of running prompts that may not wait. */
static uint32_t prompts_due(struct sched *s, uint64_t now_ns)
{
    uint64_t tokens = 0;
    for (uint32_t i = 0; i < s->hot_count; i++) {
        const struct hot *hot = &s->hot[i];
        if (is_prefilling(hot) && !may_wait(s, hot, now_ns)) tokens += hot->length - hot->computed;
    }
    s->touched += s->hot_count;
    return tokens < s->config.step_tokens_max ? (uint32_t)tokens : s->config.step_tokens_max;
}

/* Of flex and batch, one more row than may be in a step. */
static bool is_capped(const struct sched *s)
{
    return s->power.caps_rows && s->power_plan.rows >= s->power.rows_most;
}

/* Behind the front: first those that are not held. Returns how many there are. */
static uint32_t part_held(struct sched *s, uint32_t *items, uint32_t count)
{
    uint32_t free = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t item = items[i];
        bool deferrable = s->hot[item].rank > RANK_INTERACTIVE_MAX;
        if (is_held(s, &s->hot[item]) || (deferrable && is_capped(s))) continue;
        s->power_plan.rows += deferrable;
        items[i] = items[free];
        items[free++] = item;
    }
    return free;
}

/* Left out: no prompt of its class or a lower one goes before it (R5), and the engine may sleep until it is due. */
static void leave_out(struct sched *s, const struct hot *hot)
{
    struct power_plan *plan = &s->power_plan;
    if (hot->rank <= plan->rank_max) plan->rank_max = hot->rank - 1u;
    uint64_t due_ns = hot->last_token_ns + plan->pace_ns;
    if (hot->rank == RANK_INTERACTIVE_MAX && !hot->pending && due_ns < plan->due_ns) plan->due_ns = due_ns;
}

uint32_t power_take_decodes(struct sched *s, uint32_t *items, uint32_t count, uint64_t now_ns)
{
    begin_paces(s, items, count);
    uint32_t front = part_decodes(s, items, count, now_ns), taken_count = front;
    struct taken taken = {.work.steps = 1, .cost.bytes = s->config.weights_bytes};
    s->touched += 2 * count;
    if (front == count) return count;
    uint32_t end = front + part_held(s, items + front, count - front);
    taken.work.prefill_tokens = taken.cost.tokens = prompts_due(s, now_ns);
    for (uint32_t i = 0; i < front; i++) taken = with_row(s, taken, &s->hot[items[i]]);
    struct taken all = taken;
    for (uint32_t i = front; i < end; i++) all = with_row(s, all, &s->hot[items[i]]);
    if (fits(s, &all, s->power.room_j)) {
        taken_count = end;
    } else {
        sort_decodes(s, items + front, end - front);
        while (taken_count < end) {
            struct taken more = with_row(s, taken, &s->hot[items[taken_count]]);
            bool first = s->power.room_j > 0 && taken_count == 0 && taken.cost.tokens == 0; /* something must get on */
            if (!first && !fits(s, &more, s->power.room_j)) break;
            taken = more;
            taken_count++;
        }
    }
    for (uint32_t i = taken_count; i < count; i++) leave_out(s, &s->hot[items[i]]);
    return taken_count;
}

bool sched_runs_deferrable(const struct sched *s)
{
    for (uint32_t i = 0; i < s->hot_count; i++)
        if (s->hot[i].slot != SLOT_NONE && s->hot[i].rank > RANK_INTERACTIVE_MAX) return true;
    return false;
}

uint64_t sched_power_wait_ns(const struct sched *s, uint64_t now_ns)
{
    uint64_t due_ns = s->power_plan.due_ns;
    return due_ns == UINT64_MAX ? UINT64_MAX : due_ns > now_ns ? due_ns - now_ns : 1;
}

/* ---- prompts ---- */

static bool fits_prompt(const struct sched *s, struct taken taken, uint32_t tokens, double room_j)
{
    taken.work.prefill_tokens = tokens;
    taken.cost.tokens += tokens;
    return fits(s, &taken, room_j);
}

/* The most tokens that go with what is planned, for room_j. */
static uint32_t tokens_for_joules(const struct sched *s, const struct taken *planned, uint32_t tokens_max,
                                  double room_j)
{
    uint32_t low = 0, high = PREFILL_SHARE_MIN; /* low fits, or is 0; from below: a model may be wrong far out */
    while (low < tokens_max && low < high && fits_prompt(s, *planned, high < tokens_max ? high : tokens_max, room_j)) {
        low = high < tokens_max ? high : tokens_max;
        high = 2 * low;
    }
    if (high > tokens_max) high = tokens_max;
    while (low + 1 < high) {
        uint32_t middle = low + (high - low) / 2;
        if (fits_prompt(s, *planned, middle, room_j))
            low = middle;
        else
            high = middle;
    }
    return low;
}

uint32_t power_prefill_room(struct sched *s, const struct cost_step *step, uint32_t tokens_max)
{
    struct taken planned = {.work.steps = 1, .cost = *step};
    planned.work.decode_rows = step->rows;
    planned.work.decode_context = (double)step->pairs;
    if (isfinite(s->power.room_j)) {
        uint64_t step_ms = s->power.step_ms ? s->power.step_ms : POWER_STEP_MS_MAX;
        uint32_t most = cost_model_room(&s->cost, step, step_ms * NS_PER_MS);
        if (most < tokens_max) tokens_max = most;
    }
    s->power_plan.tokens = tokens_for_joules(s, &planned, tokens_max, s->power.room_j);
    if (s->power_plan.turn != POWER_PRIORITY) return s->power_plan.tokens;
    return tokens_for_joules(s, &planned, tokens_max, s->power.urgent_j);
}

/* Priority's prompts have had what they may: the others have what the room leaves after them, at least a block if it
 * has anything and nothing of theirs was planned. */
static bool begin_interactive(struct sched *s)
{
    if (!(s->power.room_j > 0)) return false;
    int64_t used = s->prefill_share - s->share_left, room = s->power_plan.tokens;
    if (room < PREFILL_SHARE_MIN) room = PREFILL_SHARE_MIN;
    s->power_plan.turn = POWER_INTERACTIVE;
    if (room - used < s->share_left) s->share_left = room - used;
    if (used == 0) s->prefill_share = s->share_left;
    s->long_left = s->share_left / 2;
    return true;
}

bool power_turn_next(struct sched *s)
{
    struct power_plan *plan = &s->power_plan;
    if (plan->turn == POWER_PRIORITY) return begin_interactive(s);
    if (plan->turn == POWER_DEFERRABLE) return false;
    bool untouched = !s->decodes_planned && s->share_left == s->prefill_share;
    plan->turn = POWER_DEFERRABLE;
    if (s->power.holds_deferrable || is_capped(s)) return false;
    return untouched || plan->tokens >= PREFILL_SHARE_MIN;
}
