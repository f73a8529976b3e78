/* Windows, goals and orders; see power_loop.h. */
#include "server/power/power_loop.h"

#include "runtime/base/clock.h"

#include <math.h>
#include <string.h>

static const double DECODE_SHARE = 0.55, FLOOR_SHARE = 0.1, BUSY_LEAST = 0.2;
static const uint64_t SLICE_NS = 5 * NS_PER_MS;  /* of a simulated meter's time */
static const uint64_t WAIT_NS = 200 * NS_PER_MS; /* a window is closed then, whatever is still under way */

void power_loop_init(struct power_loop *loop, struct sensor *sensor, double floor_w, uint64_t now_ns)
{
    double range_w = sensor->full_w - sensor->idle_w;
    memset(loop, 0, sizeof *loop);
    loop->sensor = sensor;
    loop->floor_w = floor_w > 0 ? floor_w : sensor->idle_w + FLOOR_SHARE * range_w;
    loop->goal = (struct power_goal){INFINITY, INFINITY, 0};
    loop->fed_ns = now_ns;
    throttle_init(&loop->throttle,
                  &(struct throttle_config){.idle_w = sensor->idle_w,
                                            .full_w = sensor->full_w,
                                            .lag_s = 0.030,
                                            .ramp_per_s = 0.2,
                                            .silent_s = 0.5,
                                            .lost_s = 10},
                  now_ns);
    energy_model_init(&loop->model, sensor->full_w);
    draw_model_init(&loop->draw, range_w);
}

void power_loop_goal(struct power_loop *loop, const struct power_goal *goal, uint64_t now_ns)
{
    double target_w = goal->target_w;
    if (goal->shed_level == 3) target_w = loop->floor_w;
    if (throttle_set_goal(&loop->throttle, (struct throttle_goal){goal->cap_w, fmax(target_w, loop->floor_w)}, now_ns))
        loop->goal = *goal;
}

static void book_step(struct power_loop *loop, const struct power_step *step, const struct energy_share *shares,
                      uint32_t count)
{
    const struct power_missed *missed = &step->missed;
    if (missed->work.steps > 0)
        attribution_lost(loop->books, missed->start_ns, missed->end_ns,
                         energy_model_joules(&loop->model, &missed->work));
    if (count > 0)
        attribution_step(loop->books, &loop->model, step->start_ns, step->end_ns, shares, count);
    else
        attribution_lost(loop->books, step->start_ns, step->end_ns, energy_model_joules(&loop->model, &step->work));
}

/* Pauses are known by their sum alone: they lie before whatever runs now. */
static void book_meter(struct power_loop *loop, const struct sensor_reading *reading, uint64_t known_ns,
                       uint64_t paced_ns)
{
    uint64_t paused_ns = paced_ns - loop->booked_paced_ns;
    if (paused_ns > 0 && paused_ns <= known_ns) attribution_pause(loop->books, known_ns - paused_ns, known_ns);
    loop->booked_paced_ns = paced_ns;
    attribution_known(loop->books, known_ns);
    attribution_meter(loop->books, reading, loop->throttle.idle_w);
}

void power_loop_step(struct power_loop *loop, const struct power_step *step, const struct energy_share *shares,
                     uint32_t count)
{
    if (loop->books) book_step(loop, step, shares, count);
    if (loop->queue_count == POWER_QUEUE_MAX) {
        loop->steps_lost++;
        return;
    }
    loop->queue[loop->queue_count++] = *step;
}

static double seconds_in(const struct power_step *step, uint64_t from_ns, uint64_t to_ns)
{
    uint64_t begin = step->start_ns > from_ns ? step->start_ns : from_ns,
             end = step->end_ns < to_ns ? step->end_ns : to_ns;
    return end > begin ? (double)(end - begin) * 1e-9 : 0;
}

static void feed_simulated(struct power_loop *loop, uint64_t known_ns)
{
    double range_w = loop->sensor->full_w - loop->sensor->idle_w;
    while (loop->sensor->ops->work && loop->fed_ns < known_ns) {
        uint64_t to_ns = known_ns - loop->fed_ns > SLICE_NS ? loop->fed_ns + SLICE_NS : known_ns;
        double joules = 0;
        for (uint32_t i = 0; i < loop->queue_count; i++) {
            const struct power_step *step = &loop->queue[i];
            double share = DECODE_SHARE + (1 - DECODE_SHARE) * draw_prompts_share(&step->work);
            joules += share * range_w * seconds_in(step, loop->fed_ns, to_ns);
        }
        double seconds = (double)(to_ns - loop->fed_ns) * 1e-9;
        sensor_work(loop->sensor, seconds, fmin(joules, range_w * seconds)); /* engines take turns */
        loop->fed_ns = to_ns;
    }
}

/* What the steps did between two moments. */
struct window {
    struct energy_work work;
    double paid_j, busy_s, prompts_s; /* prompts_s: of busy_s, by their share of the tokens */
};

static struct window window_of(const struct power_loop *loop, uint64_t from_ns, uint64_t to_ns)
{
    struct window window = {.paid_j = 0};
    for (uint32_t i = 0; i < loop->queue_count; i++) {
        const struct power_step *step = &loop->queue[i];
        double inside_s = seconds_in(step, from_ns, to_ns), all_s = (double)(step->end_ns - step->start_ns) * 1e-9;
        double share = all_s > 0 ? inside_s / all_s : 0;
        window.busy_s += inside_s;
        window.prompts_s += inside_s * draw_prompts_share(&step->work);
        window.paid_j += share * step->joules;
        window.work.steps += share * step->work.steps;
        window.work.prefill_tokens += share * step->work.prefill_tokens;
        window.work.prefill_pairs += share * step->work.prefill_pairs;
        window.work.decode_rows += share * step->work.decode_rows;
        window.work.decode_context += share * step->work.decode_context;
    }
    return window;
}

static void forget_steps(struct power_loop *loop, uint64_t until_ns)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < loop->queue_count; i++)
        if (loop->queue[i].end_ns > until_ns) loop->queue[kept++] = loop->queue[i];
    loop->queue_count = kept;
}

static void close_window(struct power_loop *loop, const struct sensor_reading *now, uint64_t now_ns, uint64_t paced_ns)
{
    double joules = (double)(now->energy_uj - loop->last.energy_uj) * 1e-6;
    double seconds = (double)(int64_t)(now->published_ns - loop->last.published_ns) * 1e-9;
    struct window window = window_of(loop, loop->last.published_ns, now->published_ns);
    bool limited = paced_ns != loop->paced_ns, broken = now->breaks != loop->last.breaks;
    loop->paced_ns = paced_ns;
    if (seconds > 0 && (!broken || loop->last.changes > 0)) { /* from its first move on, all that it has counted */
        loop->meter_j += joules;
        loop->meter_s += seconds;
    }
    if (broken || !(seconds > 0)) { /* the window's watts mean nothing */
        throttle_resume(&loop->throttle, now_ns);
        return;
    }
    loop->windows++;
    loop->watts = joules / seconds;
    loop->error_ratio = isfinite(loop->throttle.goal_w) ? loop->watts / loop->throttle.goal_w - 1 : 0;
    loop->throttle.config.sensor_mean_s = now->flags & SENSOR_MEAN_1S ? 1 : 0;
    bool sound = throttle_sample(&loop->throttle, now_ns, seconds, joules, window.paid_j, limited);
    if (!sound || window.busy_s < BUSY_LEAST * seconds) return;
    double idle_s = fmax(0, seconds - window.busy_s);
    energy_model_observe(&loop->model, &window.work, joules - loop->throttle.idle_w * idle_s);
    draw_model_observe(&loop->draw, window.prompts_s, window.busy_s - window.prompts_s,
                       joules - loop->throttle.idle_w * seconds);
}

void power_loop_read(struct power_loop *loop, uint64_t now_ns, uint64_t known_ns, uint64_t paced_ns)
{
    struct sensor_reading reading;
    struct error err;
    feed_simulated(loop, known_ns);
    if (sensor_read(loop->sensor, now_ns, &reading, &err) != ST_OK) {
        loop->read_failures++;
        return;
    }
    if (loop->books) book_meter(loop, &reading, known_ns, paced_ns);
    if (loop->begun && reading.changes == loop->last.changes) return;
    if (reading.published_ns > known_ns && now_ns < reading.published_ns + WAIT_NS) return;
    if (loop->begun) close_window(loop, &reading, now_ns, paced_ns);
    forget_steps(loop, reading.published_ns);
    loop->last = reading;
    loop->begun = true;
}

void power_loop_order(struct power_loop *loop, uint64_t now_ns, uint32_t engines, struct power_order *order)
{
    double allowance_w = throttle_allowance(&loop->throttle, now_ns, &loop->alarm);
    double overdraft_j = throttle_overdraft(&loop->throttle);
    bool may_run_ahead = loop->alarm == THROTTLE_FINE && loop->goal.shed_level < 2;
    double ahead_j = may_run_ahead ? throttle_ahead(&loop->throttle) : 0;
    *order = (struct power_order){.overdraft_j = overdraft_j / (engines > 1 ? engines : 1),
                                  .ahead_j = ahead_j / (engines > 1 ? engines : 1),
                                  .allowance_w = allowance_w / (engines > 1 ? engines : 1),
                                  .idle_w = loop->throttle.idle_w,
                                  .range_w = loop->sensor->full_w - loop->throttle.idle_w,
                                  .draw = loop->draw,
                                  .model = loop->model,
                                  .holds_deferrable = loop->goal.shed_level > 0,
                                  .paces_default = loop->goal.shed_level > 1};
}
