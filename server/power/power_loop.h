/* The loop that holds a node's watts, without its thread: records of steps and readings of the meter go in, the order
 * for the engines comes out.
 *
 *   goal (options, POST /admin/power) --> cap, target, shed level ------------------\
 *   steps ---> a queue until the meter has moved past them --> window: work, paid --> throttle, energy model --> order
 *   meter ---> moves ------------------------------------------^
 *
 * A window lies between two moves of the meter and is closed once every step that began before its end has been told.
 * The joules of a window's steps are those that were paid for them, so that the loop corrects what the bucket counts.
 * A simulated meter is driven from here: a step draws full power while its tokens are prompts, and DECODE_SHARE of it
 * above idle while they are decode rows (an H200 draws 137 to 300 of 700 W in decode, arXiv 2605.11999).
 *
 * Shed levels: 1 flex and batch wait; 2 also the rows of default, to twice their token interval (R27 of scheduler), and
 * priority as ever; 3 down to floor_w as well, where default still gives way first. A target is never below floor_w, a
 * cap may be (a hard cap wins over the floor).
 *
 * The same steps and readings go into the node's books (runtime/power/attribution.h), request by request; a step that
 * nobody can say any more who was in is nobody's there.
 *
 * Pure but for the sensor. One thread. */
#ifndef SERVER_POWER_POWER_LOOP_H
#define SERVER_POWER_POWER_LOOP_H

#include "runtime/power/attribution.h"
#include "runtime/power/sensor.h"
#include "scheduler/power_port.h"
#include "scheduler/throttle.h"

enum { POWER_QUEUE_MAX = 4096, POWER_SHED_MAX = 3 };

struct power_goal {
    double cap_w, target_w; /* infinity: none */
    uint32_t shed_level;    /* 0 .. POWER_SHED_MAX */
};

struct power_loop {
    double floor_w;
    struct sensor *sensor;     /* borrowed */
    struct attribution *books; /* borrowed; NULL: none are kept */
    struct throttle throttle;
    struct energy_model model;
    struct draw_model draw;
    struct power_goal goal;
    struct power_step queue[POWER_QUEUE_MAX]; /* told, and not yet in a window; by their ends */
    uint32_t queue_count;
    struct sensor_reading last; /* where the next window begins */
    bool begun;
    uint64_t fed_ns;           /* a simulated meter has been told of the time up to here */
    uint64_t paced_ns;         /* of all engines, at the last window */
    uint64_t booked_paced_ns;  /* the same, as the books have been told */
    double watts, error_ratio; /* of the last window; the second against the goal, 0 without */
    double meter_j, meter_s;   /* of all windows, and of those in which the meter broke off */
    uint64_t windows, read_failures, steps_lost;
    enum throttle_alarm alarm;
};

/* sensor's idle_w and full_w are known: 0 <= idle_w < full_w. floor_w 0: a tenth of the range above idle. */
void power_loop_init(struct power_loop *loop, struct sensor *sensor, double floor_w, uint64_t now_ns);
void power_loop_goal(struct power_loop *loop, const struct power_goal *goal, uint64_t now_ns);
/* shares: who was in it; none: nobody knows. */
void power_loop_step(struct power_loop *loop, const struct power_step *step, const struct energy_share *shares,
                     uint32_t count);
/* Reads the meter. known_ns: all steps that began before it have been told. paced_ns: how long engines have waited for
 * watts, of all time. */
void power_loop_read(struct power_loop *loop, uint64_t now_ns, uint64_t known_ns, uint64_t paced_ns);
/* For one of so many engines with work. */
void power_loop_order(struct power_loop *loop, uint64_t now_ns, uint32_t engines, struct power_order *order);

#endif
