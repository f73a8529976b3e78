/* Amounts, times and tables; see bill_text.h. Days from dates: Hinnant, "chrono-Compatible Low-Level Date Algorithms"
 * (2013). */
#include "server/billing/bill_text.h"

#include "runtime/base/check.h"
#include "server/billing/record.h"

#include <inttypes.h>
#include <string.h>

enum { DAY_S = 86400, FRACTION_DIGITS = 6, YEAR_MAX = 9999 };

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* ---- reading ---- */

static int suffix_exponent(char suffix)
{
    switch (suffix) {
    case 'k':
    case 'K': return 3;
    case 'M': return 6;
    case 'G': return 9;
    case 'T': return 12;
    default: return -1;
    }
}

enum status bill_parse_tokens(const char *text, uint64_t units_max, uint64_t *units, struct error *err)
{
    uint64_t value = 0;
    int exponent = FRACTION_DIGITS, zeros = 0;
    bool point = false, digits = false, too_much = false;
    const char *at = text;
    for (; is_digit(*at) || (*at == '.' && !point); at++) {
        if (*at == '.') {
            point = true;
            continue;
        }
        digits = true;
        if (point && *at == '0') { /* zeros at a fraction's end say nothing */
            zeros++;
            continue;
        }
        for (; zeros > 0; zeros--, exponent--) too_much = too_much || __builtin_mul_overflow(value, 10u, &value);
        if (point) exponent--;
        too_much = too_much || __builtin_mul_overflow(value, 10u, &value) ||
                   __builtin_add_overflow(value, (uint64_t)(*at - '0'), &value);
    }
    int more = *at && !at[1] ? suffix_exponent(*at) : 0;
    if (!digits || (*at && (at[1] || more < 0)))
        return error_set(err, ST_INVAL, "\"%.40s\" is no amount of tokens; write it like 250, 0.5, 20k, 1.5M or 2G",
                         text);
    exponent += more;
    if (exponent < 0 && value > 0 && !too_much)
        return error_set(err, ST_INVAL, "\"%.40s\" is finer than a millionth of a token, the smallest amount there is",
                         text);
    for (; exponent > 0 && value > 0; exponent--) too_much = too_much || __builtin_mul_overflow(value, 10u, &value);
    if (too_much || value > units_max)
        return error_set(err, ST_INVAL, "\"%.40s\" is more than fits: at most %" PRIu64 " tokens", text,
                         units_max / UNITS_PER_TOKEN);
    *units = value;
    return ST_OK;
}

enum status bill_parse_number(const char *text, uint64_t max, uint64_t *value, struct error *err)
{
    uint64_t result = 0;
    bool good = *text != '\0';
    for (const char *at = text; *at && good; at++)
        good = is_digit(*at) && !__builtin_mul_overflow(result, 10u, &result) &&
               !__builtin_add_overflow(result, (uint64_t)(*at - '0'), &result);
    if (!good || result > max)
        return error_set(err, ST_INVAL, "\"%.40s\" is no whole number from 0 to %" PRIu64, text, max);
    *value = result;
    return ST_OK;
}

static int64_t days_of_date(int64_t year, int64_t month, int64_t day)
{
    year -= month <= 2;
    int64_t era = year / 400, of_era = year - era * 400;
    int64_t of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
    return era * 146097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719468;
}

static void date_of_days(int64_t days, int64_t *year, int64_t *month, int64_t *day)
{
    days += 719468;
    int64_t era = (days >= 0 ? days : days - 146096) / 146097, of_era = days - era * 146097;
    int64_t year_of_era = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365;
    int64_t of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    int64_t shifted = (5 * of_year + 2) / 153;
    *day = of_year - (153 * shifted + 2) / 5 + 1;
    *month = shifted < 10 ? shifted + 3 : shifted - 9;
    *year = year_of_era + era * 400 + (*month <= 2);
}

/* Exactly `count` digits at *at, which moves behind them. */
static bool read_digits(const char **at, int count, int64_t *value)
{
    *value = 0;
    for (int i = 0; i < count; i++, ++*at) {
        if (!is_digit(**at)) return false;
        *value = *value * 10 + (**at - '0');
    }
    return true;
}

static bool read_char(const char **at, char c)
{
    if (**at != c) return false;
    ++*at;
    return true;
}

static bool read_offset(const char **at, int64_t *offset_s)
{
    int64_t hours, minutes, sign = **at == '-' ? -1 : 1;
    *offset_s = 0;
    if (read_char(at, 'Z')) return true;
    if (!read_char(at, '+') && !read_char(at, '-')) return false;
    if (!read_digits(at, 2, &hours) || !read_char(at, ':') || !read_digits(at, 2, &minutes)) return false;
    if (hours > 14 || minutes > 59) return false;
    *offset_s = sign * (hours * 3600 + minutes * 60);
    return true;
}

static bool read_date(const char **at, int64_t *days)
{
    int64_t year, month, day, back_year, back_month, back_day;
    if (!read_digits(at, 4, &year) || !read_char(at, '-') || !read_digits(at, 2, &month) || !read_char(at, '-') ||
        !read_digits(at, 2, &day))
        return false;
    if (year < 1970 || month < 1 || month > 12 || day < 1 || day > 31) return false;
    *days = days_of_date(year, month, day);
    date_of_days(*days, &back_year, &back_month, &back_day);
    return back_month == month && back_day == day; /* no 30th of February */
}

enum status bill_parse_time(const char *text, int64_t *unix_ms, struct error *err)
{
    const char *at = text;
    int64_t days, hour = 0, minute = 0, second = 0, offset_s = 0, ms = 0;
    bool good = read_date(&at, &days);
    if (good && *at) {
        good = read_char(&at, 'T') && read_digits(&at, 2, &hour) && read_char(&at, ':') &&
               read_digits(&at, 2, &minute) && read_char(&at, ':') && read_digits(&at, 2, &second) && hour < 24 &&
               minute < 60 && second < 60;
        if (good && read_char(&at, '.')) good = read_digits(&at, 3, &ms);
        good = good && read_offset(&at, &offset_s) && !*at;
    }
    int64_t total_s = good ? days * DAY_S + hour * 3600 + minute * 60 + second - offset_s : -1;
    if (total_s < 0)
        return error_set(err, ST_INVAL,
                         "\"%.40s\" is no time; write it like 2026-11-23, 2026-11-23T10:00:00Z or "
                         "2026-11-23T10:00:00.250+01:00",
                         text);
    *unix_ms = total_s * 1000 + ms;
    return ST_OK;
}

enum status bill_parse_month(const char *text, uint32_t *month, struct error *err)
{
    const char *at = text;
    int64_t year, of_year;
    bool good = read_digits(&at, 4, &year);
    if (good) (void)read_char(&at, '-');
    good = good && read_digits(&at, 2, &of_year) && !*at && year >= 1970 && of_year >= 1 && of_year <= 12;
    if (!good) return error_set(err, ST_INVAL, "\"%.40s\" is no month; write it like 2026-11", text);
    *month = (uint32_t)(year * 100 + of_year);
    return ST_OK;
}

enum status bill_parse_offset(const char *text, int32_t *offset_s, struct error *err)
{
    const char *at = text;
    int64_t value;
    if (!read_offset(&at, &value) || *at)
        return error_set(err, ST_INVAL, "\"%.40s\" is no offset from UTC; write it like +01:00", text);
    *offset_s = (int32_t)value;
    return ST_OK;
}

#define ALL_CLASSES ((UINT64_C(1) << MODEL_CLASSES) - 1)

enum status bill_parse_classes(const char *text, uint64_t *mask, struct error *err)
{
    uint64_t result = 0;
    if (strcmp(text, "all") == 0) {
        *mask = ALL_CLASSES;
        return ST_OK;
    }
    for (const char *at = text;; at++) {
        uint64_t value = 0;
        int digits = 0;
        for (; is_digit(*at) && digits < 3; at++, digits++) value = value * 10 + (uint64_t)(*at - '0');
        if (digits == 0 || value >= MODEL_CLASSES || (*at && *at != ','))
            return error_set(err, ST_INVAL, "\"%.80s\" are no model classes; write them like 0,3,7 (0 to %d), or all",
                             text, MODEL_CLASSES - 1);
        result |= UINT64_C(1) << value;
        if (!*at) break;
    }
    *mask = result;
    return ST_OK;
}

/* ---- writing ---- */

static void append_grouped(struct buf *out, uint64_t value)
{
    char digits[24];
    size_t count = 0;
    do digits[count++] = (char)('0' + value % 10);
    while ((value /= 10) > 0);
    while (count-- > 0) {
        buf_append_char(out, digits[count]);
        if (count > 0 && count % 3 == 0) buf_append_char(out, ',');
    }
}

/* Behind the point, without zeros at the end. */
static void append_fraction(struct buf *out, uint64_t units)
{
    uint64_t rest = units % UNITS_PER_TOKEN, unit = UNITS_PER_TOKEN / 10;
    if (rest == 0) return;
    buf_append_char(out, '.');
    for (; rest > 0; rest %= unit, unit /= 10) {
        buf_append_char(out, (char)('0' + rest / unit));
        if (unit == 1) break;
    }
}

void bill_append_tokens(struct buf *out, uint64_t units)
{
    append_grouped(out, units / UNITS_PER_TOKEN);
    append_fraction(out, units);
}

void bill_append_number(struct buf *out, uint64_t value)
{
    append_grouped(out, value);
}

static void append_date(struct buf *out, int64_t days)
{
    int64_t year, month, day;
    date_of_days(days, &year, &month, &day);
    buf_append_format(out, "%04" PRId64 "-%02" PRId64 "-%02" PRId64, year, month, day);
}

/* Any int64 has a text; what lies before 1970 or after 9999 only comes from a clock that is wrong. */
static int64_t append_seconds(struct buf *out, int64_t total, int64_t a_second)
{
    int64_t seconds = total / a_second, rest = total % a_second;
    if (rest < 0) seconds--, rest += a_second;
    int64_t days = seconds / DAY_S, of_day = seconds % DAY_S;
    if (of_day < 0) days--, of_day += DAY_S;
    append_date(out, days);
    buf_append_format(out, "T%02" PRId64 ":%02" PRId64 ":%02" PRId64, of_day / 3600, of_day / 60 % 60, of_day % 60);
    return rest;
}

void bill_append_time_ms(struct buf *out, int64_t unix_ms)
{
    buf_append_format(out, ".%03" PRId64 "Z", append_seconds(out, unix_ms, 1000));
}

void bill_append_time_us(struct buf *out, int64_t unix_us)
{
    buf_append_format(out, ".%06" PRId64 "Z", append_seconds(out, unix_us, 1000000));
}

void bill_append_day(struct buf *out, int64_t unix_us, int32_t utc_offset_s)
{
    int64_t seconds = unix_us / 1000000 - (unix_us % 1000000 < 0) + utc_offset_s;
    append_date(out, seconds / DAY_S - (seconds % DAY_S < 0));
}

void bill_append_classes(struct buf *out, uint64_t mask)
{
    const char *comma = "";
    if ((mask & ALL_CLASSES) == ALL_CLASSES) {
        buf_append_text(out, "all");
        return;
    }
    for (uint32_t i = 0; i < MODEL_CLASSES; i++) {
        if (!(mask >> i & 1)) continue;
        buf_append_format(out, "%s%" PRIu32, comma, i);
        comma = ",";
    }
}

void bill_append_hex(struct buf *out, const void *bytes, size_t length)
{
    static const char digits[] = "0123456789abcdef";
    const uint8_t *at = bytes;
    for (size_t i = 0; i < length; i++) {
        buf_append_char(out, digits[at[i] >> 4]);
        buf_append_char(out, digits[at[i] & 15]);
    }
}

/* ---- tables ---- */

void bill_table_init(struct bill_table *table, const char *const *heads, uint32_t columns)
{
    CHECK(columns > 0 && columns <= BILL_COLUMNS_MAX);
    *table = (struct bill_table){.columns = columns};
    memcpy(table->heads, heads, columns * sizeof *heads);
    buf_init(&table->cells, 0);
}

void bill_table_end(struct bill_table *table)
{
    buf_append_char(&table->cells, '\0');
    table->count++;
}

void bill_table_text(struct bill_table *table, const char *text)
{
    buf_append_text(&table->cells, text);
    bill_table_end(table);
}

void bill_table_tokens(struct bill_table *table, uint64_t units)
{
    bill_append_tokens(&table->cells, units);
    bill_table_end(table);
}

void bill_table_number(struct bill_table *table, uint64_t value)
{
    bill_append_number(&table->cells, value);
    bill_table_end(table);
}

/* Characters, for UTF-8. */
static size_t width_of(const char *text)
{
    size_t width = 0;
    for (; *text; text++) width += ((unsigned char)*text & 0xc0) != 0x80;
    return width;
}

static void append_padded(struct buf *out, const char *text, size_t width, bool right, bool last)
{
    size_t pad = width - width_of(text);
    for (size_t i = 0; right && i < pad; i++) buf_append_char(out, ' ');
    buf_append_text(out, text);
    for (size_t i = 0; !right && !last && i < pad; i++) buf_append_char(out, ' ');
    while (last && out->length > 0 && out->data[out->length - 1] == ' ') out->length--;
    buf_append_text(out, last ? "\n" : "  ");
}

static void append_rule(struct buf *out, const size_t *widths, uint32_t columns)
{
    for (uint32_t i = 0; i < columns; i++) {
        for (size_t k = 0; k < widths[i]; k++) buf_append_char(out, '-');
        buf_append_text(out, i + 1 == columns ? "\n" : "  ");
    }
}

void bill_table_print(const struct bill_table *table, struct buf *out)
{
    size_t widths[BILL_COLUMNS_MAX];
    bool right[BILL_COLUMNS_MAX];
    if (!buf_ok(&table->cells)) {
        out->failed = true;
        return;
    }
    CHECK(table->count % table->columns == 0);
    for (uint32_t i = 0; i < table->columns; i++) {
        right[i] = table->heads[i][0] == '>';
        widths[i] = width_of(table->heads[i] + right[i]);
    }
    const char *cell = table->cells.data;
    for (uint32_t i = 0; i < table->count; i++, cell += strlen(cell) + 1)
        if (width_of(cell) > widths[i % table->columns]) widths[i % table->columns] = width_of(cell);
    for (uint32_t i = 0; i < table->columns; i++)
        append_padded(out, table->heads[i] + right[i], widths[i], right[i], i + 1 == table->columns);
    append_rule(out, widths, table->columns);
    cell = table->cells.data;
    for (uint32_t i = 0; i < table->count; i++, cell += strlen(cell) + 1) {
        uint32_t column = i % table->columns;
        if (column == 0 && table->rules > 0 && i + table->rules * table->columns == table->count)
            append_rule(out, widths, table->columns);
        append_padded(out, cell, widths[column], right[column], column + 1 == table->columns);
    }
}

void bill_table_free(struct bill_table *table)
{
    buf_free(&table->cells);
}
