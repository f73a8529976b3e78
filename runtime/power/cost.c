/* Tariffs and the formula; see cost.h. */
#include "runtime/power/cost.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double HOURS_YEAR = 8760, HOURS_MONTH = 730, JOULES_KWH = 3.6e6, MILLION = 1e6;

/* Tariffs. */

static bool read_minutes(const char **at, uint32_t *minutes)
{
    const char *s = *at;
    for (uint32_t i = 0; i < 5; i++)
        if (i == 2 ? s[i] != ':' : s[i] < '0' || s[i] > '9') return false;
    uint32_t hours = (uint32_t)(s[0] - '0') * 10 + (uint32_t)(s[1] - '0');
    uint32_t rest = (uint32_t)(s[3] - '0') * 10 + (uint32_t)(s[4] - '0');
    *minutes = hours * 60 + rest;
    *at = s + 5;
    return rest < 60 && *minutes <= TARIFF_DAY_MINUTES;
}

static bool read_price(const char **at, double *price)
{
    char *end;
    if (**at == 0 || **at == ' ') return false;
    *price = strtod(*at, &end);
    if (end == *at || !isfinite(*price)) return false;
    *at = end;
    return true;
}

static enum status read_bands(const char *at, struct tariff *tariff, struct error *err)
{
    uint32_t count = 0, reached = 0;
    for (;;) {
        if (count == TARIFF_BANDS_MAX)
            return error_set(err, ST_INVAL, "a tariff has at most %d bands", (int)TARIFF_BANDS_MAX);
        uint32_t from, until;
        double price;
        bool fine = read_minutes(&at, &from) && *at == '-';
        fine = fine && (at++, read_minutes(&at, &until)) && *at == '=';
        if (!fine || (at++, !read_price(&at, &price)) || (*at != ',' && *at != 0))
            return error_set(err, ST_INVAL, "band %u of the tariff is not HH:MM-HH:MM=PRICE", (unsigned)count + 1);
        if (from != reached || until <= from)
            return error_set(err, ST_INVAL,
                             "band %u of the tariff begins at %02u:%02u and ends at %02u:%02u: bands "
                             "follow one another from 00:00 to 24:00",
                             (unsigned)count + 1, (unsigned)from / 60, (unsigned)from % 60, (unsigned)until / 60,
                             (unsigned)until % 60);
        tariff->bands[count].from_min = from;
        tariff->bands[count].until_min = reached = until;
        tariff->bands[count++].price_kwh = price;
        if (*at++ == 0) break;
    }
    if (reached != TARIFF_DAY_MINUTES)
        return error_set(err, ST_INVAL, "the tariff ends at %02u:%02u: its last band must end at 24:00",
                         (unsigned)reached / 60, (unsigned)reached % 60);
    tariff->count = count;
    return ST_OK;
}

enum status tariff_read(const char *text, struct tariff *tariff, struct error *err)
{
    struct tariff read = {.utc_offset_s = tariff->utc_offset_s};
    const char *at = text;
    double price;
    if (!strchr(text, '=')) {
        if (!read_price(&at, &price) || *at)
            return error_set(err, ST_INVAL, "a tariff is a price of a kWh, or bands HH:MM-HH:MM=PRICE");
        read.count = 1;
        read.bands[0].until_min = TARIFF_DAY_MINUTES;
        read.bands[0].price_kwh = price;
    } else {
        TRY(read_bands(text, &read, err));
    }
    *tariff = read;
    return ST_OK;
}

double tariff_price(const struct tariff *tariff, int64_t unix_ms)
{
    const int64_t day_ms = TARIFF_DAY_MINUTES * INT64_C(60000);
    int64_t minute = ((unix_ms % day_ms + tariff->utc_offset_s * INT64_C(1000)) % day_ms + day_ms) % day_ms / 60000;
    for (uint32_t i = 0; i < tariff->count; i++)
        if ((uint32_t)minute < tariff->bands[i].until_min) return tariff->bands[i].price_kwh;
    return 0;
}

double tariff_mean(const struct tariff *tariff)
{
    double sum = 0;
    for (uint32_t i = 0; i < tariff->count; i++)
        sum += tariff->bands[i].price_kwh * (tariff->bands[i].until_min - tariff->bands[i].from_min);
    return sum / TARIFF_DAY_MINUTES;
}

/* The formula. */

const char *cost_part_name(enum cost_part part)
{
    static const char *const names[COST_PARTS] = {"hardware", "site", "opex", "energy", "income"};
    return names[part];
}

double cost_crf(double interest_year, double years)
{
    if (years <= 0) return 0;
    if (interest_year <= 0) return 1 / years;
    return interest_year / -expm1(-years * log1p(interest_year)); /* r / (1 - (1 + r)^-n), sound for small r too */
}

static enum status check(const struct cost_terms *terms, const struct cost_load *load, double price, struct error *err)
{
    const struct {
        const char *name;
        double value, least, most;
    } numbers[] = {{"the price of the hardware", terms->capex, 0, 1e15},
                   {"the interest", terms->interest_year, 0, 10},
                   {"the years", terms->years, 0, 100},
                   {"the site's price of a kW", terms->site_kw_month, 0, 1e12},
                   {"the kW of the contract", terms->contract_kw, 0, 1e9},
                   {"other costs an hour", terms->opex_hour, 0, 1e12},
                   {"the income an hour", terms->income_hour, 0, 1e12},
                   {"the PUE", terms->pue, 1, 10},
                   {"the share of busy hours", terms->busy_share, 1e-6, 1},
                   {"the idle watts", terms->idle_w, 0, 1e9},
                   {"the seconds", load->seconds, 1e-9, 1e12},
                   {"the joules", load->joules, 0, 1e18},
                   {"the prompt tokens", load->prompt_tokens, 0, 1e18},
                   {"the output tokens", load->output_tokens, 0, 1e18},
                   {"the tokens", load->prompt_tokens + load->output_tokens, 1, 1e18},
                   {"the price of a kWh", price, -1e9, 1e9}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (!(numbers[i].value >= numbers[i].least && numbers[i].value <= numbers[i].most))
            return error_set(err, ST_INVAL, "%s: %g is not between %g and %g", numbers[i].name, numbers[i].value,
                             numbers[i].least, numbers[i].most);
    return ST_OK;
}

static double million(double hour, double tokens_hour)
{
    return tokens_hour > 0 ? MILLION * hour / tokens_hour : 0;
}

enum status cost_compute(const struct cost_terms *terms, const struct cost_load *load, double price_kwh,
                         struct cost *cost, struct error *err)
{
    TRY(check(terms, load, price_kwh, err));
    struct cost c = {.crf = cost_crf(terms->interest_year, terms->years), .price_kwh = price_kwh};
    double busy_hours = terms->busy_share * 3600 / load->seconds; /* how often the load fits into an hour */
    double joules = busy_hours * load->joules + (1 - terms->busy_share) * 3600 * terms->idle_w;
    double prompts_hour = busy_hours * load->prompt_tokens, spent = 0;
    c.outputs_hour = busy_hours * load->output_tokens;
    c.tokens_hour = prompts_hour + c.outputs_hour;
    c.kwh_hour = joules / JOULES_KWH * terms->pue;
    c.hour[COST_HARDWARE] = terms->capex * c.crf / HOURS_YEAR;
    c.hour[COST_SITE] = terms->site_kw_month * terms->contract_kw / HOURS_MONTH;
    c.hour[COST_OPEX] = terms->opex_hour;
    c.hour[COST_ENERGY] = c.kwh_hour * price_kwh;
    for (uint32_t i = 0; i < COST_INCOME; i++) spent += c.hour[i];
    c.hour[COST_INCOME] = terms->income_hour > 0 ? -terms->income_hour : 0;
    c.hour_total = spent + c.hour[COST_INCOME];
    c.million_all = million(c.hour_total, c.tokens_hour);
    c.million_output = million(c.hour_total, c.outputs_hour);
    if (load->input_share >= 0 && load->input_share <= 1) {
        c.million_input_part = million(c.hour_total * load->input_share, prompts_hour);
        c.million_output_part = million(c.hour_total * (1 - load->input_share), c.outputs_hour);
    }
    c.million_kwh = million(c.kwh_hour, c.tokens_hour);
    double running = spent - c.hour[COST_HARDWARE];
    c.energy_of_running = running > 0 ? c.hour[COST_ENERGY] / running : 0;
    c.energy_of_all = spent > 0 ? c.hour[COST_ENERGY] / spent : 0;
    c.joules_token = load->joules / (load->prompt_tokens + load->output_tokens);
    *cost = c;
    return ST_OK;
}

void cost_explain(const struct cost_terms *terms, const struct cost_load *load, const struct cost *cost,
                  const char *currency, struct buf *out)
{
    double r = terms->interest_year, n = terms->years, idle = 1 - terms->busy_share;
    buf_append_text(out, "C = 10^6 * H / N\nH = hardware + site + opex + energy - income, an hour\n");
    buf_append_format(out, "crf      = r (1+r)^n / ((1+r)^n - 1) = %.6f a year, r = %g, n = %g\n", cost->crf, r, n);
    buf_append_format(out, "hardware = capex * crf / 8760 = %g * %.6f / 8760 = %.6g %s\n", terms->capex, cost->crf,
                      cost->hour[COST_HARDWARE], currency);
    buf_append_format(out, "site     = price of a kW and month * kW / 730 = %g * %g / 730 = %.6g %s\n",
                      terms->site_kw_month, terms->contract_kw, cost->hour[COST_SITE], currency);
    buf_append_format(out, "opex     = %.6g %s\n", cost->hour[COST_OPEX], currency);
    buf_append_format(out,
                      "kWh      = (busy * joules * 3600 / seconds + (1 - busy) * 3600 * idle W) / 3.6e6 * PUE\n"
                      "         = (%g * %.6g * 3600 / %.6g + %g * 3600 * %g) / 3.6e6 * %g = %.6g\n",
                      terms->busy_share, load->joules, load->seconds, idle, terms->idle_w, terms->pue, cost->kwh_hour);
    buf_append_format(out, "energy   = kWh * price = %.6g * %g = %.6g %s\n", cost->kwh_hour, cost->price_kwh,
                      cost->hour[COST_ENERGY], currency);
    buf_append_format(out, "income   = %.6g %s\n", fabs(cost->hour[COST_INCOME]), currency);
    buf_append_format(out, "H        = %.6g %s\n", cost->hour_total, currency);
    buf_append_format(out, "N        = busy * tokens * 3600 / seconds = %g * %.0f * 3600 / %.6g = %.6g\n",
                      terms->busy_share, load->prompt_tokens + load->output_tokens, load->seconds, cost->tokens_hour);
    buf_append_format(out, "C        = %.6g %s a million tokens; over outputs alone %.6g\n", cost->million_all,
                      currency, cost->million_output);
    if (load->input_share >= 0)
        buf_append_format(out,
                          "inputs   = C's H * %.4f over prompt tokens = %.6g, outputs the rest = %.6g\n"
                          "           (the share: what the same prompts took alone)\n",
                          load->input_share, cost->million_input_part, cost->million_output_part);
}
