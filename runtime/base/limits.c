/* The limits in force and their table; see limits.h. */
#include "runtime/base/limits.h"

#include <inttypes.h>
#include <string.h>

struct limits limits = {
#define LIMIT(name, default_value, floor, ceiling, unit, status, http_code) .name = default_value,
    LIMITS_MAP(LIMIT)
#undef LIMIT
};

#define LIMIT(name, default_value, floor, ceiling, unit, status, http_code)                                            \
    _Static_assert((default_value) >= (floor) && (default_value) <= (ceiling), #name " is outside its own range");
LIMITS_MAP(LIMIT)
#undef LIMIT

const struct limit_row limits_table[] = {
#define LIMIT(name, default_value, floor, ceiling, unit, status, http_code)                                            \
    {#name, unit, default_value, floor, ceiling, status, http_code, &limits.name},
    LIMITS_MAP(LIMIT)
#undef LIMIT
};
const size_t limits_count = sizeof limits_table / sizeof *limits_table;

enum status limits_set(const char *name, uint64_t value, struct error *err)
{
    for (size_t i = 0; i < limits_count; i++) {
        const struct limit_row *row = &limits_table[i];
        if (strcmp(row->name, name) != 0) continue;
        if (value < row->floor || value > row->ceiling)
            return error_set(err, ST_INVAL, "limit %s: %" PRIu64 " %s is outside %" PRIu64 "..%" PRIu64, name, value,
                             row->unit, row->floor, row->ceiling);
        *row->value = value;
        return ST_OK;
    }
    return error_set(err, ST_NOTFOUND, "there is no limit named %s", name);
}
