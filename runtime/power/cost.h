/* What a million tokens cost, from what an hour costs and what was computed in it:
 *
 *   C = 10^6 * H / N        N: tokens of the hour, hours without load counted too
 *   H = capex * crf / 8760  +  site * kW / 730  +  opex  +  kWh * PUE * price  -  income
 *       hardware               connection          staff    energy                events
 *   crf = r (1 + r)^n / ((1 + r)^n - 1)      capital recovery factor: interest r a year, n years; 1/n without interest
 *
 * Each part stays apart, so that a share can be told of the running costs (without hardware) and of all. The price of a
 * kWh may depend on the time of day. An estimate in doubles: nobody is billed by it. Pure, any thread. */
#ifndef RUNTIME_POWER_COST_H
#define RUNTIME_POWER_COST_H

#include "runtime/base/buf.h"
#include "runtime/base/status.h"

#include <stdint.h>

enum { TARIFF_BANDS_MAX = 48, TARIFF_DAY_MINUTES = 1440, COST_PARTS = 5 };

/* The price of a kWh by the time of day. Bands are in order and cover the day. */
struct tariff {
    uint32_t count;
    struct {
        uint32_t from_min, until_min; /* of the day, local time */
        double price_kwh;             /* may be negative */
    } bands[TARIFF_BANDS_MAX];
    int32_t utc_offset_s;
};

/* "0.35", or a day: "00:00-08:00=0.31,08:00-22:00=0.92,22:00-24:00=0.31". ST_INVAL: err says what is wrong: a gap, an
 * overlap, a time or a number that is none. utc_offset_s stays. */
NODISCARD enum status tariff_read(const char *text, struct tariff *tariff, struct error *err);
/* At a wall time. */
double tariff_price(const struct tariff *tariff, int64_t unix_ms);
/* Over a whole day of even load. */
double tariff_mean(const struct tariff *tariff);

struct cost_terms {                     /* money is in any one currency */
    double capex, interest_year, years; /* years 0: hardware costs nothing */
    double site_kw_month, contract_kw;
    double opex_hour, income_hour;
    double pue;
    double busy_share; /* of the hours in which the load runs; in the others idle_w is drawn. 0..1 */
    double idle_w;
};

/* What was measured. */
struct cost_load {
    double seconds, joules; /* joules of the meter */
    double prompt_tokens, output_tokens;
    double input_share; /* of what the load costs, caused by its prompts: 0..1; negative: not known */
};

enum cost_part { COST_HARDWARE, COST_SITE, COST_OPEX, COST_ENERGY, COST_INCOME };

struct cost {
    double hour[COST_PARTS], hour_total; /* COST_INCOME is negative */
    double crf, price_kwh;               /* as used */
    double kwh_hour, tokens_hour, outputs_hour;
    double million_all, million_output;             /* the whole cost over all tokens, or over outputs alone */
    double million_input_part, million_output_part; /* by input_share; 0: not known */
    double million_kwh;                             /* PUE included */
    double energy_of_running, energy_of_all;        /* shares of what is spent, income aside */
    double joules_token;                            /* of the meter, while the load ran */
};

const char *cost_part_name(enum cost_part part);
double cost_crf(double interest_year, double years);
/* What the load costs at that price. ST_INVAL: numbers that cannot be (err says which), or no tokens or time. */
NODISCARD enum status cost_compute(const struct cost_terms *terms, const struct cost_load *load, double price_kwh,
                                   struct cost *cost, struct error *err);
/* The formula with these numbers in it, line by line. */
void cost_explain(const struct cost_terms *terms, const struct cost_load *load, const struct cost *cost,
                  const char *currency, struct buf *out);

#endif
