/* Rates times energy, in whole units; see carbon.h. */
#include "runtime/power/carbon.h"

#include <math.h>

/* Microjoules that give a microgram at one gram a kWh: 3.6e12 / 1e6. */
static const double UJ_OF_UG = 3.6e6;
/* What no stretch of energy can come to: numbers above it are not whole in a double. */
static const double MOST = 9007199254740991.0;

static double sane(double value, double least)
{
    return isfinite(value) && value > least ? value : least;
}

/* The whole part of what is due; the rest waits. */
static uint64_t whole(double due, double *rest)
{
    double sum = due + *rest;
    if (sum >= MOST) {
        *rest = 0;
        return (uint64_t)MOST;
    }
    double floored = floor(sum);
    *rest = sum - floored;
    return (uint64_t)floored;
}

struct carbon carbon_of(const struct carbon_rates *rates, uint64_t uj, uint64_t duration_ns, struct carbon_rest *rest)
{
    double drawn_uj = (double)uj * sane(rates->pue, 1);
    double green_uj = fmin(sane(rates->green_w, 0) * (double)duration_ns * 1e-3, drawn_uj);
    return (struct carbon){
        .green_uj = whole(green_uj, &rest->green),
        .location_ug = whole(drawn_uj * sane(rates->mean_g, 0) / UJ_OF_UG, &rest->location),
        .market_ug = whole((drawn_uj - green_uj) * sane(rates->residual_g, 0) / UJ_OF_UG, &rest->market),
        .marginal_ug = whole(drawn_uj * sane(rates->marginal_g, 0) / UJ_OF_UG, &rest->marginal),
    };
}

void carbon_add(struct carbon *sum, const struct carbon *one)
{
    sum->green_uj += one->green_uj;
    sum->location_ug += one->location_ug;
    sum->market_ug += one->market_ug;
    sum->marginal_ug += one->marginal_ug;
}
