/* See weight.h. */
#include "server/power/weight.h"

#include <math.h>

/* NAN becomes 0. */
static double share_of(double value)
{
    return value > 1 ? 1 : value > 0 ? value : 0;
}

double weight_price_factor(double price_kwh, double usual_price)
{
    if (!isfinite(price_kwh) || !isfinite(usual_price) || !(usual_price > 0) || price_kwh <= usual_price) return 1;
    return fmax(usual_price / price_kwh, WEIGHT_PRICE_LEAST);
}

double weight_compute(const struct weight_inputs *inputs)
{
    if (!inputs->ready) return 0;
    double least = share_of(inputs->kv_free);
    if (!isinf(inputs->allowance_w) && inputs->work_w > 0)
        least = fmin(least, share_of(inputs->allowance_w / inputs->work_w));
    if (inputs->queue_max > 0) least = fmin(least, share_of(1 - inputs->queue / inputs->queue_max));
    return 100 * least * weight_price_factor(inputs->price_kwh, inputs->usual_price);
}

double weight_deferrable(double weight, double green_w, double watts, double work_w)
{
    if (!isfinite(green_w) || !(work_w > 0)) return weight;
    return fmin(weight, 100 * share_of((green_w - watts) / work_w));
}

double weight_tell(double told, double weight)
{
    if (told < 0 || weight <= 0 || weight >= 100) return weight;
    return fabs(weight - told) > WEIGHT_STEP_SHARE * told ? weight : told;
}
