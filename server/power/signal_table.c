/* See signal_table.h. */
#include "server/power/signal_table.h"

#include "runtime/base/json.h"
#include "runtime/base/mem.h"
#include "server/power/feed.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const double TIME_MS_MAX = 253402300800000.0; /* year 10000 */

/* ---- one field ---- */

static const struct number_field {
    const char *name;
    uint32_t have;
    size_t offset;
} number_fields[] = {
    {"cap_w", SLOT_CAP, offsetof(struct power_slot, cap_w)},
    {"target_w", SLOT_TARGET, offsetof(struct power_slot, target_w)},
    {"green_w", SLOT_GREEN, offsetof(struct power_slot, green_w)},
    {"price_kwh", SLOT_PRICE, offsetof(struct power_slot, price_kwh)},
    {"gco2_kwh", SLOT_CO2, offsetof(struct power_slot, gco2_kwh)},
    {"pue", SLOT_PUE, offsetof(struct power_slot, pue)},
};

static bool read_number(const char *text, double *value)
{
    char *end;
    if (strspn(text, "0123456789+-.eEnaiftyNAIFTY") != strlen(text)) return false; /* no hexadecimals, no spaces */
    *value = strtod(text, &end);
    return end != text && *end == '\0';
}

/* A whole number of 0 .. most. */
static bool read_whole(const char *text, double most, double *value)
{
    return read_number(text, value) && *value >= 0 && *value <= most && *value == floor(*value);
}

static bool read_flag(const char *text, bool *flag)
{
    *flag = strcmp(text, "1") == 0 || strcmp(text, "true") == 0;
    return *flag || strcmp(text, "0") == 0 || strcmp(text, "false") == 0;
}

static bool read_quality(const char *text, uint8_t *quality)
{
    static const char *const texts[] = {"measured", "estimated", "forecast"};
    for (uint8_t i = 0; i < 3; i++) {
        if (strcmp(text, texts[i]) != 0 && !(text[0] == '0' + i && !text[1])) continue;
        *quality = i;
        return true;
    }
    return false;
}

enum status signal_field_set(struct power_slot *slot, const char *name, const char *text, struct error *err)
{
    double value;
    const char *form = "a number";
    for (size_t i = 0; i < sizeof number_fields / sizeof *number_fields; i++) {
        if (strcmp(name, number_fields[i].name) != 0) continue;
        if (!read_number(text, &value)) goto wrong;
        *(double *)(void *)((char *)slot + number_fields[i].offset) = value;
        slot->have |= number_fields[i].have;
        return ST_OK;
    }
    if (strcmp(name, "time") == 0) {
        form = "a time like 2026-11-23T10:00:00Z";
        if (!feed_parse_time(text, &slot->t0_ms)) goto wrong;
    } else if (strcmp(name, "t0_ms") == 0 || strcmp(name, "recv_ms") == 0) {
        form = "milliseconds since 1970";
        if (!read_whole(text, TIME_MS_MAX, &value)) goto wrong;
        *(name[0] == 't' ? &slot->t0_ms : &slot->received_ms) = (int64_t)value;
    } else if (strcmp(name, "dur_s") == 0) {
        form = "whole seconds above 0";
        if (!read_whole(text, INT32_MAX, &value) || value < 1) goto wrong;
        slot->dur_s = (int32_t)value;
    } else if (strcmp(name, "shed_level") == 0) {
        form = "a whole number from 0 to 255"; /* above 3 the store refuses it and counts */
        if (!read_whole(text, 255, &value)) goto wrong;
        slot->shed_level = (uint8_t)value;
        slot->have |= SLOT_SHED;
    } else if (strcmp(name, "cap_hard") == 0 || strcmp(name, "co2_marginal") == 0) {
        form = "true, false, 1 or 0";
        if (!read_flag(text, name[1] == 'a' ? &slot->cap_hard : &slot->co2_marginal)) goto wrong;
    } else if (strcmp(name, "quality") == 0) {
        form = "measured, estimated or forecast";
        if (!read_quality(text, &slot->quality)) goto wrong;
    } else {
        return error_set(err, ST_NOTFOUND, "\"%.40s\" is no field of a power signal", name);
    }
    return ST_OK;
wrong:
    return error_set(err, ST_INVAL, "%.40s: \"%.40s\" is not %s", name, text, form);
}

/* ---- rows ---- */

static enum status add_row(struct signal_table *table, uint32_t *room, const struct power_slot *slot, struct error *err)
{
    if (table->count == SIGNAL_ROWS_MAX) return error_set(err, ST_LIMIT, "more than %d rows", SIGNAL_ROWS_MAX);
    if (table->count == *room) {
        uint32_t more = *room ? *room * 2 : 64;
        struct power_slot *slots = mem_resize(table->slots, more, sizeof *slots);
        if (!slots) return error_set(err, ST_NOMEM, "no memory for its rows");
        table->slots = slots;
        *room = more;
    }
    if (table->count > 0) {
        if (table->slots[table->count - 1].t0_ms == 0 || slot->t0_ms == 0)
            return error_set(err, ST_INVAL, "several rows need a time each");
        if (slot->t0_ms <= table->slots[table->count - 1].t0_ms)
            return error_set(err, ST_INVAL, "its time is not after that of the row before");
    }
    table->slots[table->count++] = *slot;
    return ST_OK;
}

/* Lengths that were not told. */
static enum status finish(struct signal_table *table, struct error *err)
{
    if (table->count == 0) return error_set(err, ST_INVAL, "there is no row in it");
    table->holds = table->slots[0].t0_ms == 0;
    if (table->holds && table->slots[0].dur_s) return error_set(err, ST_INVAL, "a row with dur_s needs a time");
    for (uint32_t i = 0; i < table->count && !table->holds; i++) {
        struct power_slot *slot = &table->slots[i];
        bool last = i + 1 == table->count;
        if (slot->dur_s) continue;
        int64_t s = last ? (i > 0 ? slot[-1].dur_s : SIGNAL_QUARTER_S) : (slot[1].t0_ms - slot->t0_ms + 999) / 1000;
        slot->dur_s = s < INT32_MAX ? (int32_t)s : INT32_MAX;
    }
    return ST_OK;
}

/* ---- CSV ---- */

struct csv {
    const char *at, *end;
    uint32_t line;
    char names[SIGNAL_COLUMNS_MAX][SIGNAL_CELL_BYTES];
    uint32_t columns;
};

/* The next cell of the line, without spaces and quotes around it; *more: another one follows. */
static enum status next_cell(struct csv *csv, char cell[SIGNAL_CELL_BYTES], bool *more, struct error *err)
{
    const char *begin = csv->at;
    while (csv->at < csv->end && *csv->at != ',' && *csv->at != '\n') csv->at++;
    const char *end = csv->at;
    *more = csv->at < csv->end && *csv->at == ',';
    if (csv->at < csv->end) csv->at++;
    while (begin < end && (*begin == ' ' || *begin == '"' || *begin == '\t')) begin++;
    while (end > begin && (end[-1] == ' ' || end[-1] == '"' || end[-1] == '\t' || end[-1] == '\r')) end--;
    size_t length = (size_t)(end - begin);
    if (length >= SIGNAL_CELL_BYTES || memchr(begin, '\0', length))
        return error_set(err, ST_INVAL, "line %u: a cell has more than %d bytes, or none that are text", csv->line,
                         SIGNAL_CELL_BYTES - 1);
    memcpy(cell, begin, length);
    cell[length] = '\0';
    return ST_OK;
}

/* To the next line that tells something. */
static bool next_line(struct csv *csv)
{
    while (csv->at < csv->end) {
        const char *newline = memchr(csv->at, '\n', (size_t)(csv->end - csv->at)), *at = csv->at;
        const char *end = newline ? newline : csv->end;
        csv->line++;
        while (at < end && (*at == ' ' || *at == '\r' || *at == '\t')) at++;
        if (at < end && *at != '#') return true;
        csv->at = newline ? newline + 1 : csv->end;
    }
    return false;
}

static bool ends_in_pu(const char *name)
{
    size_t length = strlen(name);
    return length > 3 && strcmp(name + length - 3, "_pu") == 0;
}

static enum status read_header(struct csv *csv, struct signal_table *table, struct error *err)
{
    bool more = true;
    if (!next_line(csv)) return error_set(err, ST_INVAL, "it is empty");
    while (more) {
        struct power_slot none = {.have = 0};
        char *name = csv->names[csv->columns];
        if (csv->columns == SIGNAL_COLUMNS_MAX - 1)
            return error_set(err, ST_INVAL, "line %u: %d columns or more", csv->line, SIGNAL_COLUMNS_MAX - 1);
        TRY(next_cell(csv, name, &more, err));
        for (uint32_t i = 0; i < csv->columns; i++)
            if (strcmp(csv->names[i], name) == 0)
                return error_set(err, ST_INVAL, "line %u: two columns %.40s", csv->line, name);
        if (csv->columns == 0) table->is_trace = strcmp(name, "time_local") == 0;
        if (strcmp(name, "quality") == 0) table->has_quality = true;
        bool known = table->is_trace ? csv->columns == 0 || ends_in_pu(name)
                                     : signal_field_set(&none, name, "", NULL) != ST_NOTFOUND;
        if (!known)
            return error_set(err, ST_INVAL, "line %u: there is no field \"%.40s\"; the first line names the columns",
                             csv->line, name);
        csv->columns++;
    }
    if (table->is_trace && csv->columns < 2)
        return error_set(err, ST_INVAL, "line %u: a trace needs a column <x>_pu", csv->line);
    return ST_OK;
}

static enum status set_cell(const struct signal_table *table, struct power_slot *slot, const char *name,
                            const char *cell, struct error *err)
{
    double value;
    if (!table->is_trace) return signal_field_set(slot, name, cell, err);
    if (strcmp(name, "time_local") == 0) return signal_field_set(slot, "time", cell, err);
    if (!read_number(cell, &value) || !isfinite(value) || value < 0)
        return error_set(err, ST_INVAL, "%.40s: \"%.40s\" is no share of 0 or more", name, cell);
    slot->green_w += value;
    slot->have |= SLOT_GREEN;
    return ST_OK;
}

static enum status read_csv(const char *text, size_t length, struct signal_table *table, struct error *err)
{
    struct csv csv = {.at = text, .end = text + length};
    struct error reason = {""};
    uint32_t room = 0;
    TRY(read_header(&csv, table, err));
    while (next_line(&csv)) {
        struct power_slot slot = {.have = 0};
        uint32_t column = 0;
        bool more = true;
        enum status status = ST_OK;
        for (; more && status == ST_OK; column++) {
            char cell[SIGNAL_CELL_BYTES];
            TRY(next_cell(&csv, cell, &more, err));
            if (column == csv.columns)
                status = error_set(&reason, ST_INVAL, "more cells than columns, which are %u", csv.columns);
            else if (cell[0])
                status = set_cell(table, &slot, csv.names[column], cell, &reason);
        }
        if (status == ST_OK && table->is_trace && slot.t0_ms == 0)
            status = error_set(&reason, ST_INVAL, "the row has no time");
        if (status == ST_OK) status = add_row(table, &room, &slot, &reason);
        if (status != ST_OK) return error_set(err, status, "line %u: %.400s", csv.line, reason.message);
    }
    return ST_OK;
}

/* ---- JSON ---- */

static enum status set_member(struct power_slot *slot, const char *name, const struct json *value, struct error *err)
{
    char text[SIGNAL_CELL_BYTES];
    const char *given = json_to_text(value, NULL);
    switch (json_kind(value)) {
    case JSON_KIND_NULL: return ST_OK;
    case JSON_KIND_BOOL: given = json_to_bool(value) ? "true" : "false"; break;
    case JSON_KIND_INT:
    case JSON_KIND_FLOAT:
        (void)snprintf(text, sizeof text, "%.17g", json_to_number(value));
        given = text;
        break;
    case JSON_KIND_TEXT: break;
    default: return error_set(err, ST_INVAL, "%.40s: this must be one value", name);
    }
    return signal_field_set(slot, name, given, err);
}

static enum status read_json_row(const struct json *row, struct signal_table *table, uint32_t *room, struct error *err)
{
    struct power_slot slot = {.have = 0};
    const char *name;
    const struct json *value;
    if (json_kind(row) != JSON_KIND_OBJECT) return error_set(err, ST_INVAL, "it is no object");
    for (void *iterator = NULL; json_iterate(row, &iterator, &name, &value);) {
        TRY(set_member(&slot, name, value, err));
        if (strcmp(name, "quality") == 0) table->has_quality = true;
    }
    return add_row(table, room, &slot, err);
}

static enum status read_json(const char *text, size_t length, struct signal_table *table, struct error *err)
{
    struct json *root;
    struct error reason = {""};
    uint32_t room = 0;
    TRY(json_read(text, length, &root, err));
    const struct json *rows = json_kind(root) == JSON_KIND_LIST ? root : json_member(root, "slots");
    enum status status = ST_OK;
    size_t i = 0;
    if (json_kind(rows) == JSON_KIND_NULL)
        status = read_json_row(root, table, &room, &reason);
    else if (json_kind(rows) != JSON_KIND_LIST)
        status = error_set(&reason, ST_INVAL, "slots must be a list");
    for (; json_kind(rows) == JSON_KIND_LIST && i < json_length(rows); i++) {
        status = read_json_row(json_at(rows, i), table, &room, &reason);
        if (status != ST_OK) break;
    }
    json_release(root);
    if (status == ST_NOTFOUND) status = ST_INVAL; /* a field, not the file */
    return status == ST_OK ? ST_OK : error_set(err, status, "row %zu: %.400s", i + 1, reason.message);
}

enum status signal_table_read(const char *text, size_t length, struct signal_table *table, struct error *err)
{
    struct signal_table read = {.count = 0};
    size_t at = 0;
    if (length >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0) text += 3, length -= 3;
    while (at < length && strchr(" \t\r\n", text[at]) && text[at]) at++;
    bool json = at < length && (text[at] == '{' || text[at] == '[');
    enum status status = json ? read_json(text, length, &read, err) : read_csv(text, length, &read, err);
    if (status == ST_OK) status = finish(&read, err);
    if (status == ST_OK)
        *table = read;
    else
        signal_table_free(&read);
    return status;
}

void signal_table_free(struct signal_table *table)
{
    mem_free(table->slots);
    *table = (struct signal_table){.count = 0};
}
