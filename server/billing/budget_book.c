/* See budget_book.h. The lines of other keys are carried over as they are. */
#include "server/billing/budget_book.h"

#include "runtime/base/buf.h"
#include "server/billing/disk_file.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static const char FILE_NAME[] = "budgets";
enum { LINE_CHARS_MAX = 128, FILE_MAX_BYTES = 1 << 28 };

struct row {
    uint64_t key, number, producer, taken;
    enum budget_period period;
};

/* Hex or decimal digits up to `end`, which is stepped over; false: others, or too many. */
static bool read_digits(const char **at, char end, uint64_t base, uint64_t *value)
{
    const char *digits = "0123456789abcdef", *begun = *at;
    *value = 0;
    for (; **at && **at != end; (*at)++) {
        const char *digit = memchr(digits, **at, base);
        if (!digit || *at - begun >= 16) return false;
        *value = *value * base + (uint64_t)(digit - digits);
    }
    return *at > begun && *(*at)++ == end;
}

static bool read_row(const char *line, size_t length, struct row *row)
{
    char text[LINE_CHARS_MAX + 2], name[8];
    if (length > LINE_CHARS_MAX) return false;
    memcpy(text, line, length);
    memcpy(text + length, "\n", 2);
    const char *at = text;
    if (!read_digits(&at, ' ', 16, &row->key)) return false;
    size_t word = strcspn(at, " \n");
    if (word >= sizeof name || at[word] != ' ') return false;
    memcpy(name, at, word);
    name[word] = '\0';
    at += word + 1;
    return budget_period_parse(name, &row->period) && read_digits(&at, ' ', 10, &row->number) &&
           read_digits(&at, ' ', 16, &row->producer) && read_digits(&at, '\n', 10, &row->taken) && *at == '\0' &&
           row->taken <= BUDGET_UNITS_MAX;
}

static void put_row(const struct row *row, struct buf *out)
{
    buf_append_format(out, "%016" PRIx64 " %s %" PRIu64 " %016" PRIx64 " %" PRIu64 "\n", row->key,
                      budget_period_name(row->period), row->number, row->producer, row->taken);
}

/* The file's rows of this key and period; all else but the key's older periods is copied to rest. */
struct found {
    uint64_t number, before, others;
    struct buf rest;
};

static enum status scan(const struct buf *text, const struct budget_ask *ask, uint64_t number, struct found *found,
                        struct error *err)
{
    const char *line = text->data, *end = line ? line + text->length : line;
    found->number = number;
    for (int pass = 0; pass < 2; pass++) { /* first which period it is (B4), then who has taken what */
        uint64_t count = 1;
        for (line = text->data; line < end; count++) {
            struct row row;
            const char *stop = memchr(line, '\n', (size_t)(end - line));
            if (!stop || !read_row(line, (size_t)(stop - line), &row))
                return error_set(err, ST_INVAL,
                                 "%s: line %" PRIu64 " is damaged; without the file all budgets begin anew", FILE_NAME,
                                 count);
            bool ours = row.key == ask->key, same = ours && row.period == ask->budget.period;
            if (pass == 0) {
                if (same && row.number > found->number) found->number = row.number;
            } else if (!ours) {
                buf_append(&found->rest, line, (size_t)(stop + 1 - line));
            } else if (same && row.number == found->number) {
                if (row.producer == ask->producer) {
                    found->before = row.taken;
                } else {
                    found->others += row.taken;
                    put_row(&row, &found->rest);
                }
            }
            line = stop + 1;
        }
    }
    return ST_OK;
}

static enum status settle(const struct disk *disk, const char *folder, const struct budget_ask *ask,
                          struct found *found, struct budget_answer *answer, struct error *err)
{
    struct budget_ask now = *ask;
    if (ask->known && ask->number != found->number) now.have = 0; /* it was of a period that is over */
    answer->number = found->number;
    if (ask->look) {
        answer->base = answer->taken = found->before;
        answer->others = found->others;
        return ST_OK;
    }
    budget_decide(&now, found->before, found->others, answer);
    put_row(&(struct row){.key = ask->key,
                          .period = ask->budget.period,
                          .number = found->number,
                          .producer = ask->producer,
                          .taken = answer->taken},
            &found->rest);
    if (!buf_ok(&found->rest)) return error_set(err, ST_NOMEM, "%s: out of memory", FILE_NAME);
    return disk_file_replace(disk, folder, FILE_NAME, NULL, found->rest.data, found->rest.length, err);
}

enum status budget_book_ask(const struct disk *disk, const char *folder, int64_t unix_s, const struct budget_ask *ask,
                            struct budget_answer *answer, struct error *err)
{
    struct buf text;
    struct found found = {0};
    if (ask->budget.units > BUDGET_UNITS_MAX || ask->have > BUDGET_UNITS_MAX / 2 || ask->want > BUDGET_UNITS_MAX / 2)
        return error_set(err, ST_INVAL, "%s: a budget's numbers are at most %" PRIu64, FILE_NAME, BUDGET_UNITS_MAX);
    buf_init(&text, 0);
    buf_init(&found.rest, 0);
    enum status status = disk_file_read(disk, folder, FILE_NAME, FILE_MAX_BYTES, &text, err);
    if (status == ST_NOTFOUND) status = ST_OK;
    if (status == ST_OK)
        status = scan(&text, ask, budget_period_number(ask->budget.period, unix_s, ask->utc_offset_s), &found, err);
    if (status == ST_OK) status = settle(disk, folder, ask, &found, answer, err);
    buf_free(&text);
    buf_free(&found.rest);
    return status;
}
