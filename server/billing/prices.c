/* See prices.h. The file is read as config_yaml.h reads one: names with lists of scalars, each scalar "field=value". */
#include "server/billing/prices.h"

#include "runtime/base/mem.h"
#include "server/config_yaml.h"

#include <stdio.h>
#include <string.h>

enum { PLACES = 6, FIELD_CLASS = 1, FIELD_INPUT = 2, FIELD_CACHED = 4, FIELD_OUTPUT = 8, FIELDS_ALL = 15 };

struct row {
    char *name;
    struct price price;
    unsigned fields;
};

struct prices {
    uint32_t version;
    struct row *rows;
    uint32_t count, room;
    const struct price *fallback; /* row "default" */
};

static const struct price one = {.in_ppm = 1000000, .hit_ppm = 1000000, .out_ppm = 1000000};

/* Digits alone: no sign, no exponent, no space. False: none, others, or more than max. */
static bool whole_read(const char *text, uint64_t max, uint64_t *value)
{
    uint64_t read = 0;
    if (!*text) return false;
    for (; *text; text++) {
        if (*text < '0' || *text > '9') return false;
        read = read * 10 + (uint64_t)(*text - '0');
        if (read > max) return false; /* max is far below 2^60 */
    }
    *value = read;
    return true;
}

bool weight_read(const char *text, uint64_t *ppm)
{
    const char *dot = strchr(text, '.');
    size_t whole = dot ? (size_t)(dot - text) : strlen(text), places = dot ? strlen(dot + 1) : 0;
    char digits[16] = "";
    if (whole == 0 || whole > 4 || places > PLACES || (dot && places == 0)) return false;
    memcpy(digits, text, whole);
    memcpy(digits + whole, dot ? dot + 1 : "", places);
    for (; places < PLACES; places++) digits[whole + places] = '0';
    return whole_read(digits, WEIGHT_PPM_MAX, ppm);
}

static struct row *row_of(struct prices *prices, const char *name)
{
    for (uint32_t i = 0; i < prices->count; i++)
        if (strcmp(prices->rows[i].name, name) == 0) return &prices->rows[i];
    if (prices->count == prices->room) {
        uint32_t room = prices->room ? prices->room * 2 : 16;
        struct row *rows = mem_resize(prices->rows, room, sizeof *rows);
        if (!rows) return NULL;
        prices->rows = rows;
        prices->room = room;
    }
    struct row *row = &prices->rows[prices->count];
    memset(row, 0, sizeof *row);
    row->name = mem_strdup(name, strlen(name));
    if (!row->name) return NULL;
    prices->count++;
    return row;
}

static enum status take_value(void *state, const char *key, const char *value, struct error *err)
{
    static const struct {
        const char *name;
        unsigned field;
    } fields[] = {{"class", FIELD_CLASS}, {"input", FIELD_INPUT}, {"cached", FIELD_CACHED}, {"output", FIELD_OUTPUT}};
    struct prices *prices = state;
    uint64_t number;
    if (strcmp(key, "version") == 0) {
        if (prices->version || !whole_read(value, UINT32_MAX, &number) || !number)
            return error_set(err, ST_INVAL, "version must stand once, from 1 to %u", UINT32_MAX);
        prices->version = (uint32_t)number;
        return ST_OK;
    }
    struct row *row = row_of(prices, key);
    if (!row) return error_set(err, ST_NOMEM, "out of memory");
    const char *sign = strchr(value, '=');
    for (size_t i = 0; sign && i < sizeof fields / sizeof *fields; i++) {
        if (strlen(fields[i].name) != (size_t)(sign - value) || strncmp(value, fields[i].name, (size_t)(sign - value)))
            continue;
        if (row->fields & fields[i].field)
            return error_set(err, ST_INVAL, "model \"%s\": %s stands twice", key, fields[i].name);
        row->fields |= fields[i].field;
        bool is_class = fields[i].field == FIELD_CLASS;
        if (is_class ? !whole_read(sign + 1, MODEL_CLASSES - 1, &number) : !weight_read(sign + 1, &number))
            return error_set(err, ST_INVAL,
                             is_class ? "model \"%s\": %s must be a whole number from 0 to 52"
                                      : "model \"%s\": %s must be from 0 to 1000 with at most six places",
                             key, fields[i].name);
        if (is_class) row->price.mclass = (uint8_t)number;
        if (fields[i].field == FIELD_INPUT) row->price.in_ppm = number;
        if (fields[i].field == FIELD_CACHED) row->price.hit_ppm = number;
        if (fields[i].field == FIELD_OUTPUT) row->price.out_ppm = number;
        return ST_OK;
    }
    return error_set(err, ST_INVAL, "model \"%s\": \"%s\" is none of class=, input=, cached=, output=", key, value);
}

static enum status check(struct prices *prices, struct error *err)
{
    if (!prices->version) return error_set(err, ST_INVAL, "there is no version");
    for (uint32_t i = 0; i < prices->count; i++) {
        const struct row *row = &prices->rows[i];
        if (row->fields != FIELDS_ALL)
            return error_set(err, ST_INVAL, "model \"%s\" needs class, input, cached and output", row->name);
        if (strcmp(row->name, "default") == 0) prices->fallback = &row->price;
    }
    return prices->fallback ? ST_OK : error_set(err, ST_INVAL, "there is no line \"default\"");
}

enum status prices_read(const char *path, struct prices **prices, struct error *err)
{
    struct prices *made = mem_alloc(1, sizeof *made);
    if (!made) return error_set(err, ST_NOMEM, "out of memory");
    made->fallback = &one;
    if (path) {
        struct error reason = {""};
        made->fallback = NULL;
        enum status status = config_yaml_read(path, take_value, made, &reason);
        if (status == ST_OK) status = check(made, &reason);
        if (status != ST_OK) {
            prices_destroy(made);
            bool named = strncmp(reason.message, path, strlen(path)) == 0;
            return error_set(err, status, "%s%s%s", named ? "" : path, named ? "" : ": ", reason.message);
        }
    }
    *prices = made;
    return ST_OK;
}

void prices_destroy(struct prices *prices)
{
    if (!prices) return;
    for (uint32_t i = 0; i < prices->count; i++) mem_free(prices->rows[i].name);
    mem_free(prices->rows);
    mem_free(prices);
}

static bool same_price(const struct price *a, const struct price *b)
{
    return a->mclass == b->mclass && a->in_ppm == b->in_ppm && a->hit_ppm == b->hit_ppm && a->out_ppm == b->out_ppm;
}

enum status prices_follow(const struct prices *now, const struct prices *next, struct error *err)
{
    if (next->version > now->version) return ST_OK;
    bool same = next->version == now->version && next->count == now->count;
    for (uint32_t i = 0; same && i < now->count; i++)
        same =
            strcmp(now->rows[i].name, next->rows[i].name) == 0 && same_price(&now->rows[i].price, &next->rows[i].price);
    if (same) return ST_OK;
    return error_set(err, ST_INVAL, "prices have changed under version %u; %u is in force: raise it", next->version,
                     now->version);
}

uint32_t prices_version(const struct prices *prices)
{
    return prices->version;
}

const struct price *prices_find(const struct prices *prices, char *const *names, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        for (uint32_t k = 0; k < prices->count; k++)
            if (strcmp(prices->rows[k].name, names[i]) == 0) return &prices->rows[k].price;
    return prices->fallback;
}

void prices_fill(const struct prices *prices, const struct price *price, struct charge *charge)
{
    charge->price_version = prices->version;
    charge->mclass = price->mclass;
    charge->weight_in_ppm = price->in_ppm;
    charge->weight_hit_ppm = price->hit_ppm;
    charge->weight_out_ppm = price->out_ppm;
}
