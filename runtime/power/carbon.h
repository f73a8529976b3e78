/* CO2 of energy, by the two methods of the GHG Protocol's Scope 2 guidance, which are kept beside each other and never
 * netted:
 *
 *   location = kWh * PUE * factor                       the grid's mean factor of the hour
 *   market   = (kWh * PUE - matched green) * residual   what is left of it after the green energy that was matched
 *
 * Green energy is matched while it is there: at most green_w at any moment, at most what is drawn. A marginal factor
 * (of the next kWh) answers another question: it has a total of its own and is in neither. In whole microjoules and
 * micrograms; what is cut off goes on to the next call, so that totals are exact to a microgram. Pure; one thread. */
#ifndef RUNTIME_POWER_CARBON_H
#define RUNTIME_POWER_CARBON_H

#include <stdint.h>

struct carbon_rates {
    double pue;                            /* of the building; below 1, or not finite: 1 */
    double green_w;                        /* on offer for all that is drawn at the building's door */
    double mean_g, residual_g, marginal_g; /* CO2 of a kWh; 0: not known, and nothing is counted */
};

/* Of one stretch of energy, or of many. */
struct carbon {
    uint64_t green_uj; /* at the building's door */
    uint64_t location_ug, market_ug, marginal_ug;
};

struct carbon_rest { /* below a microgram, below a microjoule */
    double green, location, market, marginal;
};

/* Of uj microjoules of the meter that were drawn in so many nanoseconds. */
struct carbon carbon_of(const struct carbon_rates *rates, uint64_t uj, uint64_t duration_ns, struct carbon_rest *rest);
void carbon_add(struct carbon *sum, const struct carbon *one);

#endif
