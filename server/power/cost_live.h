/* What a million tokens have cost on this node since it was started: the tokens of its usage records, the joules of its
 * books, the prices at which they were drawn, and what the operator says of the rest (--power-cost), by the same
 * formula as `millrace bench cost` (runtime/power/cost.h). Hours without load count. Pure. */
#ifndef SERVER_POWER_COST_LIVE_H
#define SERVER_POWER_COST_LIVE_H

#include "runtime/base/status.h"
#include "runtime/power/cost.h"
#include "server/power/power_thread.h"

enum { COST_CURRENCY_MAX = 11 };

struct cost_live_terms {
    struct cost_terms terms; /* pue, busy_share and idle_w are the books' */
    double price_kwh;        /* where no source of prices told one; NAN: none was given */
    char currency[COST_CURRENCY_MAX + 1];
};

struct cost_live {
    struct cost_terms terms; /* as used */
    struct cost_load load;
    struct cost cost;
    double priced_share; /* of the kWh, drawn at a price that a source told */
};

/* "capex=250000,years=5,interest=0.06,site-kw-month=40,contract-kw=10,opex-hour=0.5,income-hour=0,price=0.35,
 * currency=CNY", or any of these; "" or NULL: none. ST_INVAL: err says what is wrong. */
NODISCARD enum status cost_live_read(const char *text, struct cost_live_terms *terms, struct error *err);
/* ST_INVAL (err): there is nothing to compute yet, or no price. */
NODISCARD enum status cost_live_compute(const struct cost_live_terms *terms, const struct power_usage *usage,
                                        uint64_t prompt_tokens, uint64_t output_tokens, struct cost_live *live,
                                        struct error *err);

#endif
