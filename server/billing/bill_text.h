/* Amounts, times and tables as an operator writes and reads them.
 *
 * An amount is micro-tokens (units) inside and tokens outside: 1.5M is 1,500,000,000,000 units. Both directions are
 * exact; there is no floating point on the way. Times are ISO 8601, in UTC unless they name an offset. Pure, any
 * thread. */
#ifndef SERVER_BILLING_BILL_TEXT_H
#define SERVER_BILLING_BILL_TEXT_H

#include "runtime/base/buf.h"
#include "runtime/base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define UNITS_PER_TOKEN UINT64_C(1000000)

/* "250", "1.5M", "0.000001", "2G": tokens with an optional suffix k K M G T (powers of 1000). ST_INVAL: no number,
 * finer than a micro-token, or above units_max; err says which. */
NODISCARD enum status bill_parse_tokens(const char *text, uint64_t units_max, uint64_t *units, struct error *err);
/* A whole number without sign or white space, at most max. */
NODISCARD enum status bill_parse_number(const char *text, uint64_t max, uint64_t *value, struct error *err);
/* "2026-11-23", "2026-11-23T10:00:00Z", "2026-11-23T10:00:00.250+01:00": milliseconds since 1970; years 1970 to 9999.
 */
NODISCARD enum status bill_parse_time(const char *text, int64_t *unix_ms, struct error *err);
/* "2026-11" or "202611" -> 202611. */
NODISCARD enum status bill_parse_month(const char *text, uint32_t *month, struct error *err);
/* "+01:00", "-03:30", "Z": seconds. */
NODISCARD enum status bill_parse_offset(const char *text, int32_t *offset_s, struct error *err);
/* "0,3,7" or "all" -> a mask of model classes. */
NODISCARD enum status bill_parse_classes(const char *text, uint64_t *mask, struct error *err);

void bill_append_tokens(struct buf *out, uint64_t units); /* "1,234,567.5" */
void bill_append_number(struct buf *out, uint64_t value); /* "1,234,567" */
void bill_append_time_ms(struct buf *out, int64_t unix_ms);
void bill_append_time_us(struct buf *out, int64_t unix_us);
void bill_append_day(struct buf *out, int64_t unix_us, int32_t utc_offset_s); /* "2026-11-23" */
void bill_append_classes(struct buf *out, uint64_t mask);                     /* "0,3,7" or "all" */
void bill_append_hex(struct buf *out, const void *bytes, size_t length);

enum { BILL_COLUMNS_MAX = 20 };

/* A table: cells in the order of rows, printed with aligned columns. A column whose head begins with '>' is aligned to
 * the right. */
struct bill_table {
    const char *heads[BILL_COLUMNS_MAX];
    uint32_t columns;
    struct buf cells; /* NUL-terminated texts */
    uint32_t count;
    uint32_t rules; /* a line is drawn before the last so many rows: totals */
};
void bill_table_init(struct bill_table *table, const char *const *heads, uint32_t columns);
/* The next cell is what was appended to table->cells since the last end. */
void bill_table_end(struct bill_table *table);
void bill_table_text(struct bill_table *table, const char *text);
void bill_table_tokens(struct bill_table *table, uint64_t units);
void bill_table_number(struct bill_table *table, uint64_t value);
void bill_table_print(const struct bill_table *table, struct buf *out);
void bill_table_free(struct bill_table *table);

#endif
