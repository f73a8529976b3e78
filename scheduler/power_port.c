/* Orders and records; see power_port.h. */
#include "scheduler/power_port.h"

#include "runtime/base/check.h"
#include "runtime/base/clock.h"

#include <math.h>
#include <string.h>

static const double STEP_S = 0.030; /* what a step may last under a limit; its room is what it may draw in that time */
static const uint64_t LOOK_NS = 20 * NS_PER_MS;

enum status power_port_init(struct power_port *port)
{
    memset(port, 0, sizeof *port);
    port->order.allowance_w = INFINITY;
    if (ring_init(&port->steps, POWER_STEPS_MAX, sizeof(struct power_step)) != ST_OK ||
        ring_init(&port->shares, POWER_SHARES_MAX, sizeof(struct energy_share)) != ST_OK) {
        power_port_free(port);
        return ST_NOMEM;
    }
    power_port_order(port, &port->order);
    return ST_OK;
}

void power_port_free(struct power_port *port)
{
    ring_free(&port->steps);
    ring_free(&port->shares);
}

void power_port_order(struct power_port *port, const struct power_order *order)
{
    seqlock_write(&port->lock, port->words, order, POWER_ORDER_WORDS);
}

bool power_port_take(struct power_port *port, struct power_step *step)
{
    return ring_pop(&port->steps, step);
}

uint32_t power_port_shares(struct power_port *port, const struct power_step *step, struct energy_share *shares)
{
    uint64_t first = step->shares_end - step->shares;
    uint32_t count = 0;
    while (port->shares_taken < step->shares_end && ring_pop(&port->shares, &shares[count]))
        if (port->shares_taken++ >= first) count++; /* else of a step whose record was lost */
    return count;
}

/* False: it is the one that is known. */
static bool read_order(struct power_port *port)
{
    if (seqlock_sequence(&port->lock) == port->order_sequence) return false;
    port->order_sequence = seqlock_read(&port->lock, port->words, &port->order, POWER_ORDER_WORDS);
    return true;
}

bool power_port_limits(const struct power_port *port)
{
    return isfinite(port->order.allowance_w) || port->order.holds_deferrable || port->order.paces_default ||
           port->order.caps_rows;
}

uint64_t power_port_begin(struct power_port *port, struct sched *sched, uint64_t now_ns)
{
    bool is_new = read_order(port);
    if (!is_new && !power_port_limits(port)) return 0;
    double room_j = joule_bucket_room(&port->bucket, port->order.allowance_w, STEP_S, now_ns);
    double overdraft_j =
        joule_bucket_overdraft(&port->bucket, port->order.allowance_w, STEP_S, port->order.overdraft_j);
    double urgent_j = joule_bucket_urgent(&port->bucket, port->order.allowance_w, STEP_S, port->order.ahead_j);
    bool is_over = !(room_j > 0) && port->order.overdraft_j > 0 && overdraft_j > 0 && sched_runs_deferrable(sched);
    bool holds = is_over || port->order.holds_deferrable != 0 || port->bucket.ahead_j > 0;
    sched_set_power(sched, &(struct sched_power){.room_j = is_over ? overdraft_j : room_j,
                                                 .urgent_j = urgent_j,
                                                 .idle_w = port->order.idle_w,
                                                 .range_w = port->order.range_w,
                                                 .model = port->order.model,
                                                 .holds_deferrable = holds,
                                                 .paces_default = port->order.paces_default != 0,
                                                 .caps_rows = port->order.caps_rows != 0,
                                                 .rows_most = (uint32_t)port->order.rows_most,
                                                 .step_ms = (uint32_t)port->order.step_ms});
    if (room_j > 0) return 0;
    uint64_t wait_ns = joule_bucket_wait_ns(&port->bucket, port->order.allowance_w);
    return wait_ns < 1 ? 1 : wait_ns > LOOK_NS ? LOOK_NS : wait_ns;
}

/* Of the tokens, prompt and output. */
static double share_of_priority(const struct energy_share *shares, uint32_t count)
{
    uint64_t all = 0, urgent = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t tokens = (uint64_t)shares[i].prefill_tokens + shares[i].decode_rows;
        all += tokens;
        urgent += shares[i].group == CLASS_PRIORITY ? tokens : 0;
    }
    return all ? (double)urgent / (double)all : 0;
}

static void pay(struct power_port *port, double joules, double urgent)
{
    if (isinf(port->order.allowance_w)) return;
    joule_bucket_pay(&port->bucket, (1 - urgent) * joules);
    joule_bucket_pay_urgent(&port->bucket, urgent * joules, port->order.ahead_j);
}

void power_port_launched(struct power_port *port, uint64_t now_ns, struct power_step *step,
                         const struct energy_share *shares, uint32_t count)
{
    bool fits = ring_room(&port->shares) >= count;
    for (uint32_t i = 0; i < count && fits; i++) CHECK(ring_push(&port->shares, &shares[i]));
    step->shares = fits ? count : 0;
    step->shares_end = port->shares_told += step->shares;
    if (!fits) atomic_fetch_add_explicit(&port->lost, 1, memory_order_relaxed);
    step->urgent = share_of_priority(shares, count);
    pay(port, step->joules, step->urgent);
    if (!atomic_load_explicit(&port->busy_ns, memory_order_relaxed))
        atomic_store_explicit(&port->busy_ns, now_ns, memory_order_release);
}

/* Its record did not fit. */
static void miss(struct power_port *port, const struct power_step *step)
{
    struct power_missed *missed = &port->missed;
    if (missed->work.steps == 0) missed->start_ns = step->start_ns;
    missed->end_ns = step->end_ns;
    missed->work.steps += step->work.steps;
    missed->work.prefill_tokens += step->work.prefill_tokens;
    missed->work.prefill_pairs += step->work.prefill_pairs;
    missed->work.decode_rows += step->work.decode_rows;
    missed->work.decode_context += step->work.decode_context;
    atomic_fetch_add_explicit(&port->lost, 1, memory_order_relaxed);
}

/* W3. */
static void settle(struct power_port *port, struct power_step *step)
{
    double watts = draw_model_watts(&port->order.draw, &step->work);
    if (!(watts > 0) || step->end_ns <= step->start_ns) return;
    double joules = watts * (double)(step->end_ns - step->start_ns) * 1e-9;
    pay(port, joules - step->joules, step->urgent);
    step->joules = joules;
}

void power_port_stepped(struct power_port *port, struct power_step *step, uint64_t next_ns)
{
    settle(port, step);
    step->missed = port->missed;
    if (ring_push(&port->steps, step))
        port->missed = (struct power_missed){.start_ns = 0};
    else
        miss(port, step);
    atomic_store_explicit(&port->busy_ns, next_ns, memory_order_release); /* after the record */
}
