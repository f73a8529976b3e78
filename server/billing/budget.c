/* See budget.h. */
#include "server/billing/budget.h"

#include "server/billing/record.h"

#include <string.h>

enum { DAY_S = 86400, RESERVE_SHARE = 8 };

static const char *const names[] = {"", "day", "month", "total"};

const char *budget_period_name(enum budget_period period)
{
    return names[period];
}

bool budget_period_parse(const char *text, enum budget_period *period)
{
    for (enum budget_period i = BUDGET_DAY; i <= BUDGET_TOTAL; i++) {
        if (strcmp(text, names[i]) != 0) continue;
        *period = i;
        return true;
    }
    return false;
}

uint64_t budget_period_number(enum budget_period period, int64_t unix_s, int32_t utc_offset_s)
{
    if (period == BUDGET_MONTH) return record_month(unix_s * 1000000, utc_offset_s);
    return period == BUDGET_DAY ? (uint64_t)((unix_s + utc_offset_s) / DAY_S) : 0;
}

static uint64_t less(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static uint64_t minus(uint64_t a, uint64_t b)
{
    return a > b ? a - b : 0;
}

void budget_decide(const struct budget_ask *ask, uint64_t before, uint64_t others, struct budget_answer *answer)
{
    answer->base = ask->known ? ask->have : before;
    answer->others = others;
    uint64_t room = minus(minus(ask->budget.units, others), answer->base);
    uint64_t given = less(ask->want, room);
    answer->taken = answer->base + given + less(ask->reserve, (room - given) / RESERVE_SHARE);
    if (!ask->release && answer->taken < before) answer->taken = before;
}
