/* Terms as text, and the books as a load; see cost_live.h. */
#include "server/power/cost_live.h"

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define AT(field) offsetof(struct cost_live_terms, field)

static const struct {
    const char *name;
    size_t offset;
    double least, most;
} numbers[] = {{"capex", AT(terms.capex), 0, 1e15},
               {"interest", AT(terms.interest_year), 0, 10},
               {"years", AT(terms.years), 0.1, 100},
               {"site-kw-month", AT(terms.site_kw_month), 0, 1e12},
               {"contract-kw", AT(terms.contract_kw), 0, 1e9},
               {"opex-hour", AT(terms.opex_hour), 0, 1e12},
               {"income-hour", AT(terms.income_hour), 0, 1e12},
               {"price", AT(price_kwh), -1e9, 1e9}};

enum { TERM_BYTES_MAX = 1024 };

static bool is_label(const char *text)
{
    size_t length = strspn(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz");
    return length > 0 && length <= COST_CURRENCY_MAX && text[length] == '\0';
}

/* "00:00-08:00=0.31/08:00-24:00=0.92": bands with another border than tariff_read's, as a comma ends a term. */
static enum status read_tariff(char *text, struct tariff *tariff, struct error *err)
{
    struct error why;
    for (char *at = text; *at; at++)
        if (*at == '/') *at = ',';
    if (tariff_read(text, tariff, &why) == ST_OK) return ST_OK;
    return error_set(err, ST_INVAL, "--power-cost: tariff: %.400s", why.message);
}

static enum status read_offset(const char *text, struct tariff *tariff, struct error *err)
{
    char *end;
    double hours = strtod(text, &end);
    if (end == text || *end || !(hours >= -14 && hours <= 14))
        return error_set(err, ST_INVAL, "--power-cost: utc-hours must be -14 to 14");
    tariff->utc_offset_s = (int32_t)lround(hours * 3600);
    return ST_OK;
}

/* One "name=value". */
static enum status read_term(char *term, struct cost_live_terms *terms, struct error *err)
{
    char *value = strchr(term, '='), *end;
    if (!value) return error_set(err, ST_INVAL, "--power-cost: \"%s\" is no NAME=VALUE", term);
    *value++ = '\0';
    if (strcmp(term, "currency") == 0) {
        if (!is_label(value))
            return error_set(err, ST_INVAL, "--power-cost: currency is up to %d letters", (int)COST_CURRENCY_MAX);
        strncpy(terms->currency, value, COST_CURRENCY_MAX);
        return ST_OK;
    }
    if (strcmp(term, "tariff") == 0) return read_tariff(value, &terms->tariff, err);
    if (strcmp(term, "utc-hours") == 0) return read_offset(value, &terms->tariff, err);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        if (strcmp(term, numbers[i].name) != 0) continue;
        double number = strtod(value, &end);
        if (end == value || *end || !(number >= numbers[i].least && number <= numbers[i].most))
            return error_set(err, ST_INVAL, "--power-cost: %s must be %g to %g", term, numbers[i].least,
                             numbers[i].most);
        memcpy((char *)terms + numbers[i].offset, &number, sizeof number);
        return ST_OK;
    }
    return error_set(err, ST_INVAL,
                     "--power-cost: \"%s\" is none of capex, interest, years, site-kw-month, contract-kw, opex-hour, "
                     "income-hour, price, tariff, utc-hours, currency",
                     term);
}

enum status cost_live_read(const char *text, struct cost_live_terms *terms, struct error *err)
{
    *terms =
        (struct cost_live_terms){.terms = {.pue = 1, .years = 5, .busy_share = 1}, .price_kwh = NAN, .currency = "CNY"};
    while (text && *text) {
        char term[TERM_BYTES_MAX];
        size_t length = strcspn(text, ",");
        if (length >= sizeof term) return error_set(err, ST_INVAL, "--power-cost: a term is too long");
        memcpy(term, text, length);
        term[length] = '\0';
        TRY(read_term(term, terms, err));
        text += length + (text[length] == ',');
    }
    return ST_OK;
}

enum status cost_live_compute(const struct cost_live_terms *terms, const struct cost_span *span, struct cost_live *live,
                              struct error *err)
{
    double joules = (double)span->meter_uj * 1e-6, kwh = joules / 3.6e6;
    double requests_uj = (double)span->prefill_uj + (double)span->decode_uj;
    *live = (struct cost_live){.terms = terms->terms,
                               .load = {.seconds = span->seconds,
                                        .joules = joules,
                                        .prompt_tokens = (double)span->prompt_tokens,
                                        .output_tokens = (double)span->output_tokens,
                                        .input_share = requests_uj > 0 ? (double)span->prefill_uj / requests_uj : -1}};
    bool has_price = isfinite(terms->price_kwh);
    if (!has_price && !(span->paid_kwh > 0))
        return error_set(err, ST_INVAL, "nobody has told what a kWh costs: --power-signal, or --power-cost price=..");
    if (!(span->door_kwh > 0)) return error_set(err, ST_INVAL, "the meter has counted nothing yet");
    live->priced_share = span->paid_kwh / span->door_kwh;
    live->terms.pue = fmax(1, span->door_kwh / kwh);
    /* What was drawn while nobody told a price: at that of the option, else at the mean of the rest. */
    double other = has_price ? terms->price_kwh : span->paid / span->paid_kwh;
    double price = (span->paid + (span->door_kwh - span->paid_kwh) * other) / span->door_kwh;
    return cost_compute(&live->terms, &live->load, price, &live->cost, err);
}
