/* See signal_spec.h. A new kind is a row of `kinds`; a new name a row of `names`. */
#include "server/power/signal_spec.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct kind {
    const char *text, *place; /* what stands before the colon; what the place is, for messages; NULL: there is none */
    uint32_t period_ms;       /* where none is given */
};

static const struct kind kinds[SIGNAL_KINDS] = {
    [SIGNAL_KIND_FIXED] = {"fixed", NULL, 1000},
    [SIGNAL_KIND_FILE] = {"file", "a path", 10000},
    [SIGNAL_KIND_REDIS] = {"redis", "a hub's name", 10000},
    [SIGNAL_KIND_ELECTRICITY_MAPS] = {"electricity-maps", "a URL", 300000},
    [SIGNAL_KIND_CARBON_AWARE] = {"carbon-aware", "a URL", 300000},
    [SIGNAL_KIND_WATTTIME] = {"watttime", "a URL", 300000},
    [SIGNAL_KIND_OPENADR] = {"openadr", "a URL", 5000},
};

enum value { VALUE_TEXT, VALUE_RANK, VALUE_SECONDS, VALUE_NUMBER, VALUE_CONSTANT };

#define AT(member) offsetof(struct signal_spec, member)
#define OF(kind)   (1u << SIGNAL_KIND_##kind)
#define SOURCES    (~OF(FIXED))
#define CARBON     (OF(ELECTRICITY_MAPS) | OF(CARBON_AWARE) | OF(WATTTIME))
#define SERVERS    (CARBON | OF(OPENADR) | OF(REDIS))
#define TOKENS     (OF(WATTTIME) | OF(OPENADR))

struct name {
    const char *text;
    unsigned kinds;
    enum value value;
    size_t offset, room; /* room of a text; field bit of a constant */
    double floor, ceiling;
};

static const struct name names[] = {
    {"name", SOURCES, VALUE_TEXT, AT(name), SIGNAL_NAME_BYTES, 0, 0},
    {"rank", SOURCES, VALUE_RANK, AT(rank), 0, 0, 1000},
    {"share", SOURCES, VALUE_NUMBER, AT(share), 0, 1e-9, 1},
    {"period", SOURCES, VALUE_SECONDS, AT(period_ms), 0, 0.1, 43200},
    {"scale", OF(FILE), VALUE_NUMBER, AT(scale_w), 0, 1e-9, 1e9},
    {"speed", OF(FILE), VALUE_NUMBER, AT(speed), 0, 0.001, 100000},
    {"price", OF(FIXED), VALUE_CONSTANT, AT(constants.price_kwh), SLOT_PRICE, -1e6, 1e6},
    {"gco2", OF(FIXED), VALUE_CONSTANT, AT(constants.gco2_kwh), SLOT_CO2, 0, 10000},
    {"pue", OF(FIXED), VALUE_CONSTANT, AT(constants.pue), SLOT_PUE, 1, 10},
    {"url", OF(REDIS), VALUE_TEXT, AT(url), SIGNAL_TEXT_BYTES, 0, 0},
    {"secret_env", SERVERS, VALUE_TEXT, AT(secret_env), SIGNAL_WORD_BYTES, 0, 0},
    {"secret_file", SERVERS, VALUE_TEXT, AT(secret_file), SIGNAL_TEXT_BYTES, 0, 0},
    {"ca_file", SERVERS, VALUE_TEXT, AT(ca_file), SIGNAL_TEXT_BYTES, 0, 0},
    {"user", TOKENS, VALUE_TEXT, AT(user), SIGNAL_TEXT_BYTES, 0, 0},
    {"token_url", TOKENS, VALUE_TEXT, AT(token_url), SIGNAL_TEXT_BYTES, 0, 0},
    {"marginal", CARBON, VALUE_RANK, AT(marginal), 0, 0, 1},
    {"scope", OF(OPENADR), VALUE_TEXT, AT(scope), SIGNAL_WORD_BYTES, 0, 0},
    {"version", OF(OPENADR), VALUE_TEXT, AT(version), 8, 0, 0},
    {"ven", OF(OPENADR), VALUE_TEXT, AT(ven), SIGNAL_WORD_BYTES, 0, 0},
    {"program", OF(OPENADR), VALUE_TEXT, AT(program), SIGNAL_WORD_BYTES, 0, 0},
    {"currency", OF(OPENADR), VALUE_TEXT, AT(currency), 8, 0, 0},
    {"plan", OF(OPENADR), VALUE_NUMBER, AT(plan_w), 0, 0, 1e9},
};
enum { NAMES = sizeof names / sizeof *names };

const char *signal_kind_text(enum signal_kind kind)
{
    return kinds[kind].text;
}

/* The name that "name=..." begins with, of those that the kind takes; NULL: none. */
static const struct name *name_at(enum signal_kind kind, const char *text)
{
    for (size_t i = 0; i < NAMES; i++) {
        size_t length = strlen(names[i].text);
        if (names[i].kinds & 1u << kind && strncmp(text, names[i].text, length) == 0 && text[length] == '=')
            return &names[i];
    }
    return NULL;
}

/* Where the place ends, or a value: at the comma before the next name, or at the end. */
static const char *end_of_value(enum signal_kind kind, const char *text)
{
    for (const char *comma = strchr(text, ','); comma; comma = strchr(comma + 1, ','))
        if (name_at(kind, comma + 1)) return comma;
    return text + strlen(text);
}

static bool is_label(const char *text)
{
    return *text && text[strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")] == '\0';
}

static enum status set_value(struct signal_spec *spec, const struct name *name, const char *text, struct error *err)
{
    char *member = (char *)spec + name->offset;
    if (name->value == VALUE_TEXT) {
        if (strlen(text) >= name->room)
            return error_set(err, ST_INVAL, "%s= is longer than %zu bytes", name->text, name->room - 1);
        if (strcmp(name->text, "name") == 0 && !is_label(text))
            return error_set(err, ST_INVAL, "name= has letters, digits, '.', '_' and '-'");
        memcpy(member, text, strlen(text) + 1);
        return ST_OK;
    }
    char *end;
    errno = 0;
    double value = strtod(text, &end);
    bool good = end != text && *end == '\0' && errno == 0 && value >= name->floor && value <= name->ceiling;
    if (name->value == VALUE_RANK) good = good && value == floor(value);
    if (!good)
        return error_set(err, ST_INVAL, "%s=%.32s must be a%snumber from %g to %g", name->text, text,
                         name->value == VALUE_RANK ? " whole " : " ", name->floor, name->ceiling);
    if (name->value == VALUE_RANK)
        *(uint32_t *)(void *)member = (uint32_t)value;
    else if (name->value == VALUE_SECONDS)
        *(uint32_t *)(void *)member = (uint32_t)lround(value * 1000);
    else
        *(double *)(void *)member = value;
    if (name->value == VALUE_CONSTANT) spec->constants.have |= (uint32_t)name->room;
    return ST_OK;
}

/* "name=value,name=value": text begins with the first name. */
static enum status read_names(struct signal_spec *spec, const char *text, struct error *err)
{
    while (*text) {
        char value[SIGNAL_TEXT_BYTES];
        const struct name *name = name_at(spec->kind, text);
        if (!name) return error_set(err, ST_INVAL, "\"%.32s\" is nothing that %s takes", text, kinds[spec->kind].text);
        const char *begin = text + strlen(name->text) + 1, *end = end_of_value(spec->kind, begin);
        size_t length = (size_t)(end - begin);
        if (length >= sizeof value) return error_set(err, ST_INVAL, "%s= is too long", name->text);
        memcpy(value, begin, length);
        value[length] = '\0';
        TRY(set_value(spec, name, value, err));
        text = *end ? end + 1 : end;
    }
    return ST_OK;
}

static enum status read_place(struct signal_spec *spec, const char *text, const char **rest, struct error *err)
{
    const struct kind *kind = &kinds[spec->kind];
    const char *end = kind->place ? end_of_value(spec->kind, text) : text;
    size_t length = (size_t)(end - text);
    if (kind->place && length == 0)
        return error_set(err, ST_INVAL, "after %s: there must be %s", kind->text, kind->place);
    if (length >= sizeof spec->place)
        return error_set(err, ST_INVAL, "%s is longer than %zu bytes", kind->place, sizeof spec->place - 1);
    memcpy(spec->place, text, length);
    spec->place[length] = '\0';
    *rest = *end ? end + (kind->place ? 1 : 0) : end;
    return ST_OK;
}

static enum status read_kind(const char *text, enum signal_kind *kind, const char **rest, struct error *err)
{
    for (int i = 0; i < SIGNAL_KINDS; i++) {
        size_t length = strlen(kinds[i].text);
        if (strncmp(text, kinds[i].text, length) != 0 || text[length] != ':') continue;
        *kind = (enum signal_kind)i;
        *rest = text + length + 1;
        return ST_OK;
    }
    char known[256] = "";
    for (int i = 0; i < SIGNAL_KINDS; i++) {
        if (i) strncat(known, ", ", sizeof known - strlen(known) - 1);
        strncat(known, kinds[i].text, sizeof known - strlen(known) - 1);
    }
    return error_set(err, ST_INVAL, "it must begin with one of %s and a colon", known);
}

enum status signal_spec_read(const char *text, uint32_t order, struct signal_spec *spec, struct error *err)
{
    struct signal_spec read = {.rank = order, .share = 1, .speed = 1, .marginal = SIGNAL_UNSAID};
    struct error reason = {""};
    const char *rest = text;
    enum status status = read_kind(text, &read.kind, &rest, &reason);
    if (status == ST_OK) {
        read.period_ms = kinds[read.kind].period_ms;
        status = read_place(&read, rest, &rest, &reason);
    }
    if (status == ST_OK) status = read_names(&read, rest, &reason);
    if (status == ST_OK && read.kind == SIGNAL_KIND_FIXED && !read.constants.have)
        status = error_set(&reason, ST_INVAL, "fixed: needs price=, gco2= or pue=");
    if (status != ST_OK) return error_set(err, status, "--power-signal %.128s: %.300s", text, reason.message);
    *spec = read;
    return ST_OK;
}
