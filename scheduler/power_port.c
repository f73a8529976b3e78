/* Orders and records; see power_port.h. */
#include "scheduler/power_port.h"

#include "runtime/base/clock.h"

#include <math.h>
#include <string.h>

static const double STEP_S = 0.030; /* what a step may last under a limit; its room is what it may draw in that time */
static const uint64_t LOOK_NS = 20 * NS_PER_MS;

enum status power_port_init(struct power_port *port)
{
    memset(port, 0, sizeof *port);
    port->order.allowance_w = INFINITY;
    TRY(ring_init(&port->steps, POWER_STEPS_MAX, sizeof(struct power_step)));
    power_port_order(port, &port->order);
    return ST_OK;
}

void power_port_free(struct power_port *port)
{
    ring_free(&port->steps);
}

void power_port_order(struct power_port *port, const struct power_order *order)
{
    seqlock_write(&port->lock, port->words, order, POWER_ORDER_WORDS);
}

bool power_port_take(struct power_port *port, struct power_step *step)
{
    return ring_pop(&port->steps, step);
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
    return isfinite(port->order.allowance_w) || port->order.holds_deferrable;
}

uint64_t power_port_begin(struct power_port *port, struct sched *sched, uint64_t now_ns)
{
    bool is_new = read_order(port);
    if (!is_new && !power_port_limits(port)) return 0;
    double room_j = joule_bucket_room(&port->bucket, port->order.allowance_w, STEP_S, now_ns);
    sched_set_power(sched, &(struct sched_power){.room_j = room_j,
                                                 .idle_w = port->order.idle_w,
                                                 .model = port->order.model,
                                                 .holds_deferrable = port->order.holds_deferrable != 0});
    if (room_j > 0) return 0;
    uint64_t wait_ns = joule_bucket_wait_ns(&port->bucket, port->order.allowance_w);
    return wait_ns < 1 ? 1 : wait_ns > LOOK_NS ? LOOK_NS : wait_ns;
}

void power_port_launched(struct power_port *port, uint64_t now_ns, const struct power_step *step)
{
    if (isfinite(port->order.allowance_w)) joule_bucket_pay(&port->bucket, step->joules);
    if (!atomic_load_explicit(&port->busy_ns, memory_order_relaxed))
        atomic_store_explicit(&port->busy_ns, now_ns, memory_order_release);
}

void power_port_stepped(struct power_port *port, const struct power_step *step, uint64_t next_ns)
{
    if (!ring_push(&port->steps, step)) atomic_fetch_add_explicit(&port->lost, 1, memory_order_relaxed);
    atomic_store_explicit(&port->busy_ns, next_ns, memory_order_release); /* after the record */
}
