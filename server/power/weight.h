/* What a balancer in front of several nodes is told of this one, 0 (no new requests) to 100:
 *
 *   100 * min(free KV, A / A_max, 1 - queue / limit) * price factor
 *
 * A: watts of work allowed, A_max without a limit. The factor is 1 up to the price that is usual here and falls as its
 * inverse above, to WEIGHT_PRICE_LEAST at the least: dear power moves load away and does not shut the node.
 * The weight that is told changes by more than WEIGHT_STEP_SHARE of itself or not at all, but for 0 and 100, which
 * are always told: weights that follow each request make balancers move load for nothing. Pure, any thread. */
#ifndef SERVER_POWER_WEIGHT_H
#define SERVER_POWER_WEIGHT_H

#include <stdbool.h>

#define WEIGHT_PRICE_LEAST 0.25
#define WEIGHT_STEP_SHARE  0.1

struct weight_inputs {
    bool ready;                    /* the node takes requests */
    double kv_free;                /* share of the KV blocks, 0..1, cached ones free */
    double allowance_w, work_w;    /* A, infinity: no limit; A_max, 0: not known */
    double queue, queue_max;       /* requests; queue_max 0: no limit */
    double price_kwh, usual_price; /* NAN: not known; a factor needs both */
};

double weight_price_factor(double price_kwh, double usual_price);
/* 0..100. Inputs that are no number count as nothing left. */
double weight_compute(const struct weight_inputs *inputs);
/* For work that can wait: the least of the weight and of the share of full work that green power would pay for beside
 * what is drawn now. green_w NAN, nobody tells of green power: the weight. Rejected: leaving out what deferrable work
 * draws already, which would send all of it to one node. */
double weight_deferrable(double weight, double green_w, double watts, double work_w);
/* told: the weight told before; negative: none was. Returns the one to tell. */
double weight_tell(double told, double weight);

#endif
