/* What a million tokens have cost on this node, since it was started or in a part of that time: the tokens of its usage
 * records, the joules of its books, the prices at which they were drawn, and what the operator says of the rest
 * (--power-cost), by the same formula as `millrace bench cost` (runtime/power/cost.h). Hours without load count. Pure.
 */
#ifndef SERVER_POWER_COST_LIVE_H
#define SERVER_POWER_COST_LIVE_H

#include "runtime/base/status.h"
#include "runtime/power/cost.h"

#include <stdint.h>

enum { COST_CURRENCY_MAX = 11 };

struct cost_live_terms {
    struct cost_terms terms; /* pue, busy_share and idle_w are the books' */
    double price_kwh;        /* where no source of prices told one; NAN: none was given */
    struct tariff tariff;    /* the same by the time of day; count 0: none was given */
    char currency[COST_CURRENCY_MAX + 1];
};

/* What was counted in some time; two may be added or subtracted member by member. */
struct cost_span {
    double seconds; /* in which the meter counted */
    uint64_t meter_uj, prefill_uj, decode_uj;
    double door_kwh, paid_kwh, paid; /* at the building's door; of them with a price when drawn; the money for these */
    uint64_t prompt_tokens, output_tokens;
};

struct cost_live {
    struct cost_terms terms; /* as used */
    struct cost_load load;
    struct cost cost;
    double priced_share; /* of the kWh, drawn at a price that a source or the tariff told */
};

/* "capex=250000,years=5,interest=0.06,site-kw-month=40,contract-kw=10,opex-hour=0.5,income-hour=0,price=0.35,
 * currency=CNY", or any of these; "" or NULL: none. tariff=00:00-08:00=0.31/08:00-24:00=0.92 is a price by the time of
 * day, at utc-hours=8 east of UTC. ST_INVAL: err says what is wrong. */
NODISCARD enum status cost_live_read(const char *text, struct cost_live_terms *terms, struct error *err);
/* ST_INVAL (err): there is nothing to compute yet, or no price. */
NODISCARD enum status cost_live_compute(const struct cost_live_terms *terms, const struct cost_span *span,
                                        struct cost_live *live, struct error *err);

#endif
