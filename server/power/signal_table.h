/* What a file tells about power, as text: slots. For signal_file, and its names of fields for signal_redis.
 *
 *   CSV with a header                         JSON: a list of rows, {"slots": [rows]}, or one row
 *     time,cap_w,green_w,shed_level             [{"time": "2026-11-23T10:00:00Z", "cap_w": 60, "shed_level": 1}]
 *     2026-11-23T10:00:00Z,60,12.5,
 *   a trace (CSV):  time_local,<x>_pu         its columns are summed: green power as a share of scale=
 *
 * Fields: time (RFC 3339) or t0_ms; dur_s (without it to the next row's time, the last one as long as the one before);
 * cap_w cap_hard target_w green_w price_kwh gco2_kwh co2_marginal pue shed_level quality (measured, estimated,
 * forecast). An empty cell, or null, is not told. Without a time there is one row, which holds until the file changes.
 * Lines that begin with # are left out. Numbers may be nan or inf here: the store refuses and counts them.
 *
 * Pure; any thread. */
#ifndef SERVER_POWER_SIGNAL_TABLE_H
#define SERVER_POWER_SIGNAL_TABLE_H

#include "runtime/base/status.h"
#include "server/power/slot.h"

#include <stddef.h>

enum { SIGNAL_ROWS_MAX = 65536, SIGNAL_COLUMNS_MAX = 32, SIGNAL_CELL_BYTES = 64, SIGNAL_QUARTER_S = 900 };

struct signal_table {
    struct power_slot *slots; /* by time, each after the one before; owned */
    uint32_t count;
    bool holds;       /* one row without a time: t0_ms and dur_s are 0 */
    bool is_trace;    /* times are the trace's own; green_w is a share */
    bool has_quality; /* told by the file */
};

/* ST_INVAL: err says the line or row and what is wrong; ST_LIMIT: more than SIGNAL_ROWS_MAX rows; ST_NOMEM. */
NODISCARD enum status signal_table_read(const char *text, size_t length, struct signal_table *table, struct error *err);
void signal_table_free(struct signal_table *table);

/* One field by its name, from text; dur_s and t0_ms too. ST_NOTFOUND: no such name; ST_INVAL. */
NODISCARD enum status signal_field_set(struct power_slot *slot, const char *name, const char *text, struct error *err);

#endif
