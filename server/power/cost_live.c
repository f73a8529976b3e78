/* Terms as text, and the books as a load; see cost_live.h. */
#include "server/power/cost_live.h"

#include <math.h>
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

enum { TERM_BYTES_MAX = 64 };

static bool is_label(const char *text)
{
    size_t length = strspn(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz");
    return length > 0 && length <= COST_CURRENCY_MAX && text[length] == '\0';
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
                     "income-hour, price, currency",
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

enum status cost_live_compute(const struct cost_live_terms *terms, const struct power_usage *usage,
                              uint64_t prompt_tokens, uint64_t output_tokens, struct cost_live *live, struct error *err)
{
    const struct energy_books *books = &usage->books;
    double joules = (double)books->meter_uj * 1e-6, kwh = joules / 3.6e6;
    double requests_uj = (double)books->prefill_uj + (double)books->decode_uj;
    *live = (struct cost_live){.terms = terms->terms,
                               .load = {.seconds = usage->seconds,
                                        .joules = joules,
                                        .prompt_tokens = (double)prompt_tokens,
                                        .output_tokens = (double)output_tokens,
                                        .input_share = requests_uj > 0 ? (double)books->prefill_uj / requests_uj : -1}};
    bool has_price = isfinite(terms->price_kwh);
    if (!has_price && !(usage->paid_kwh > 0))
        return error_set(err, ST_INVAL, "nobody has told what a kWh costs: --power-signal, or --power-cost price=..");
    if (!(usage->door_kwh > 0)) return error_set(err, ST_INVAL, "the meter has counted nothing yet");
    live->priced_share = usage->paid_kwh / usage->door_kwh;
    live->terms.pue = fmax(1, usage->door_kwh / kwh);
    /* What was drawn while nobody told a price: at that of the option, else at the mean of the rest. */
    double other = has_price ? terms->price_kwh : usage->paid / usage->paid_kwh;
    double price = (usage->paid + (usage->door_kwh - usage->paid_kwh) * other) / usage->door_kwh;
    return cost_compute(&live->terms, &live->load, price, &live->cost, err);
}
