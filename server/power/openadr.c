/* Events of OpenADR 3; see openadr.h. */
#include "server/power/openadr.h"

#include "runtime/base/hash.h"
#include "runtime/base/random.h"

#include <stdlib.h>
#include <string.h>

#define POWER_W_MAX 1e9

enum { QUARTER_MS = 900000, LOOPS_MAX = 100000 };

/* One event while it is read. */
struct reading {
    const struct openadr_config *config;
    const struct openadr_events *before;
    struct openadr_events *events;
    struct feed *feed;
    const struct json *event;
    struct openadr_piece piece; /* event, priority */
    int64_t now_ms;
    int64_t first_ms, last_ms; /* from the first start to the last end */
    int64_t shift_ms;          /* of absolute starts */
};

/* intervalPeriod, its parts that are there. */
struct period {
    bool has_start, starts_now, has_duration, has_randomize;
    int64_t start_ms, duration_ms, randomize_ms;
};

void openadr_clear(struct openadr_events *events)
{
    events->count = events->requests_count = 0;
}

static int64_t add_ms(int64_t a, int64_t b)
{
    int64_t sum;
    return __builtin_add_overflow(a, b, &sum) || a == INT64_MAX || b == INT64_MAX ? INT64_MAX : sum;
}

/* ---- times ---- */

static bool read_duration(struct reading *reading, const struct json *object, const char *name, bool *has, int64_t *ms)
{
    const struct json *value = json_member(object, name);
    const char *text = json_to_text(value, NULL);
    if (json_kind(value) == JSON_KIND_NULL) return true;
    *has = true;
    if (text && feed_parse_duration(text, ms)) return true;
    feed_refuse(reading->feed, "%s \"%.40s\" is no duration", name, text ? text : json_kind_name(json_kind(value)));
    return false;
}

static bool read_period(struct reading *reading, const struct json *object, struct period *period)
{
    const struct json *value = json_member(object, "intervalPeriod"), *start = json_member(value, "start");
    const char *text = json_to_text(start, NULL);
    *period = (struct period){.has_start = false};
    if (json_kind(value) == JSON_KIND_NULL) return true;
    if (json_kind(start) != JSON_KIND_NULL) {
        period->has_start = true;
        period->starts_now = text && (strncmp(text, "0001-01-01", 10) == 0 || strncmp(text, "0000-", 5) == 0);
        if (!period->starts_now && (!text || !feed_parse_time(text, &period->start_ms))) {
            feed_refuse(reading->feed, "start \"%.40s\" is no time", text ? text : json_kind_name(json_kind(start)));
            return false;
        }
    }
    return read_duration(reading, value, "duration", &period->has_duration, &period->duration_ms) &&
           read_duration(reading, value, "randomizeStart", &period->has_randomize, &period->randomize_ms);
}

/* A2: uniform within +-range. */
static int64_t shift_of(const struct reading *reading, const struct period *period, uint64_t position)
{
    const char *ven = reading->config->ven;
    uint64_t seed = reading->piece.event ^ hash_xxh64(ven, strlen(ven), 0);
    int64_t range = period->randomize_ms < FEED_DURATION_S_MAX * INT64_C(1000) ? period->randomize_ms : 0;
    return (int64_t)((2 * random_uniform(seed, position) - 1) * (double)range);
}

/* A1: when an event that starts now did. */
static int64_t now_of(const struct reading *reading)
{
    static const char *const members[] = {"modificationDateTime", "createdDateTime"};
    int64_t ms;
    for (size_t i = 0; i < 2; i++) {
        const char *text = json_to_text(json_member(reading->event, members[i]), NULL);
        if (text && feed_parse_time(text, &ms)) return ms;
    }
    for (uint32_t i = 0; reading->before && i < reading->before->count; i++) {
        const struct openadr_piece *piece = &reading->before->pieces[i];
        if (piece->event == reading->piece.event && piece->from_now) return piece->t0_ms;
    }
    return reading->now_ms;
}

/* ---- values ---- */

static const struct json *descriptor_of(const struct reading *reading, const char *type)
{
    const struct json *list = json_member(reading->event, "payloadDescriptors");
    for (size_t i = 0; i < json_length(list); i++) {
        const char *text = json_to_text(json_member(json_at(list, i), "payloadType"), NULL);
        if (text && strcmp(text, type) == 0) return json_at(list, i);
    }
    return NULL;
}

struct unit {
    const char *name;
    double factor;
};
static const struct unit power_units[] = {{"KW", 1e3}, {"W", 1}, {"MW", 1e6}, {NULL, 0}}; /* the first is meant */
static const struct unit energy_units[] = {{"KWH", 1}, {"MWH", 1e-3}, {"WH", 1e3}, {NULL, 0}};
static const struct unit carbon_units[] = {{"GHG", 1}, {NULL, 0}};
static const struct unit share_units[] = {{"PERCENT", 1}, {NULL, 0}};

enum from_plan { NO_PLAN, PLAN_ADDS, PLAN_OFFSET, PLAN_SHARE };

static const struct payload {
    const char *type;
    uint32_t field;
    double low, high;
    const struct unit *units; /* NULL: none */
    enum from_plan plan;
    bool many; /* in 3.1 */
    double alert;
} payloads[] = {
    {"SIMPLE", SLOT_SHED, 0, 3, NULL, NO_PLAN, false, 0},
    {"PRICE", SLOT_PRICE, -1e6, 1e6, energy_units, NO_PLAN, true, 0},
    {"GHG", SLOT_CO2, 0, 5000, carbon_units, NO_PLAN, true, 0},
    {"DISPATCH_SETPOINT", SLOT_TARGET, 0, 1e9, power_units, NO_PLAN, false, 0},
    {"DISPATCH_SETPOINT_RELATIVE", SLOT_TARGET, -1e9, 1e9, power_units, PLAN_ADDS, false, 0},
    {"IMPORT_CAPACITY_LIMIT", SLOT_CAP, 0, 1e9, power_units, NO_PLAN, false, 0},
    {"CONTROL_LEVEL_OFFSET_PERCENT", SLOT_TARGET, -1, 1, share_units, PLAN_OFFSET, false, 0},
    {"OLS", SLOT_TARGET, 0, 1, share_units, PLAN_SHARE, true, 0},
    {"ALERT_GRID_EMERGENCY", SLOT_SHED, 0, 0, NULL, NO_PLAN, false, 3},
    {"ALERT_FLEX_ALERT", SLOT_SHED, 0, 0, NULL, NO_PLAN, false, 1},
};

static const struct payload *payload_of(const char *type)
{
    for (size_t i = 0; i < sizeof payloads / sizeof *payloads; i++)
        if (strcmp(type, payloads[i].type) == 0) return &payloads[i];
    return NULL;
}

static bool unit_factor(struct reading *reading, const struct payload *payload, double *factor)
{
    const struct json *descriptor = descriptor_of(reading, payload->type);
    const char *units = json_to_text(json_member(descriptor, "units"), NULL);
    const char *currency = json_to_text(json_member(descriptor, "currency"), NULL), *ours = reading->config->currency;
    *factor = 1;
    if (payload->field == SLOT_PRICE && ours && currency && strcmp(ours, currency) != 0) {
        feed_refuse(reading->feed, "a PRICE in %.8s, and %.8s is configured", currency, ours);
        return false;
    }
    if (!payload->units) return true;
    const struct unit *unit = payload->units;
    while (units && unit->name && strcmp(unit->name, units) != 0) unit++;
    if (unit->name)
        *factor = payload->plan == PLAN_OFFSET || payload->plan == PLAN_SHARE ? 1 : unit->factor;
    else
        feed_refuse(reading->feed, "%s in units of %.40s", payload->type, units);
    return unit->name != NULL;
}

static bool convert(struct reading *reading, const struct payload *payload, double number, double *value)
{
    double plan_w = reading->config->plan_w, factor;
    if (!unit_factor(reading, payload, &factor)) return false;
    *value = number * factor;
    if (payload->field == SLOT_SHED && number != (double)(int)number) {
        feed_refuse(reading->feed, "a SIMPLE level of %.6g", number);
        return false;
    }
    if (payload->units == power_units && (*value > POWER_W_MAX || *value < -POWER_W_MAX)) {
        feed_refuse(reading->feed, "%s of %.6g W", payload->type, *value);
        return false;
    }
    if (payload->plan == NO_PLAN) return true;
    if (plan_w <= 0) {
        feed_refuse(reading->feed, "%s is relative to the plan, and none is configured (plan=)", payload->type);
        return false;
    }
    if (payload->plan == PLAN_ADDS)
        *value = plan_w + *value > 0 ? plan_w + *value : 0;
    else
        *value = payload->plan == PLAN_OFFSET ? plan_w * (1 - number) : plan_w * number;
    return true;
}

static void add_piece(struct reading *reading, const struct openadr_piece *piece)
{
    struct openadr_events *events = reading->events;
    if (piece->t1_ms <= piece->t0_ms) return;
    if (events->count < OPENADR_PIECES_MAX)
        events->pieces[events->count++] = *piece;
    else
        feed_refuse(reading->feed, "more than %d intervals and values at once", OPENADR_PIECES_MAX);
}

static void read_payload(struct reading *reading, const struct json *json, const struct openadr_piece *interval)
{
    const char *type = json_to_text(json_member(json, "type"), NULL);
    const struct json *values = json_member(json, "values");
    const struct payload *payload = type ? payload_of(type) : NULL;
    struct openadr_piece piece = *interval;
    size_t count = json_length(values);
    double number;
    if (!type) feed_refuse(reading->feed, "a payload without a type");
    if (!payload) return; /* no concern of ours */
    piece.field = payload->field;
    if (payload->alert > 0) {
        piece.alert = true;
        piece.value = payload->alert;
        add_piece(reading, &piece);
        return;
    }
    bool many = payload->many && (reading->config->version == OPENADR_3_1 || payload->plan == PLAN_SHARE);
    if (json_kind(values) != JSON_KIND_LIST || count == 0 || (count > 1 && (!many || piece.t1_ms == INT64_MAX))) {
        feed_refuse(reading->feed, "%s with %zu values", type, count);
        return;
    }
    for (size_t i = 0; i < count; i++) { /* A3 */
        int64_t part_ms = count > 1 ? (interval->t1_ms - interval->t0_ms) / (int64_t)count : 0;
        if (count > 1) piece.t0_ms = interval->t0_ms + part_ms * (int64_t)i;
        if (count > 1) piece.t1_ms = i + 1 < count ? piece.t0_ms + part_ms : interval->t1_ms;
        if (!feed_number(reading->feed, json_at(values, i), type, payload->low, payload->high, &number)) continue;
        if (convert(reading, payload, number, &piece.value)) add_piece(reading, &piece);
    }
}

/* ---- events ---- */

/* *cursor_ms: where the interval before ended. False: refused. */
static bool read_interval(struct reading *reading, const struct json *interval, const struct period *whole, size_t idx,
                          bool *from_now, int64_t *cursor_ms)
{
    const struct json *list = json_member(interval, "payloads");
    struct openadr_piece piece = reading->piece;
    struct period own;
    if (!read_period(reading, interval, &own)) return false;
    bool absolute = own.has_start && !own.starts_now;
    if (absolute) {
        if (own.has_randomize) reading->shift_ms = shift_of(reading, &own, idx + 1);
        *cursor_ms = own.start_ms + reading->shift_ms;
        *from_now = false;
    } else if (idx == 0 && (!whole->has_start || whole->starts_now)) {
        if (!own.has_start && !whole->has_start) {
            feed_refuse(reading->feed, "the first interval has no start");
            return false;
        }
        *cursor_ms = now_of(reading);
        *from_now = true;
    }
    bool has_duration = own.has_duration || whole->has_duration;
    int64_t duration_ms = own.has_duration ? own.duration_ms : whole->duration_ms;
    bool default_of_3_0 = reading->config->version == OPENADR_3_0 && duration_ms == 0 && !*from_now;
    piece.t0_ms = *cursor_ms;
    piece.t1_ms = !has_duration || default_of_3_0 ? INT64_MAX : add_ms(*cursor_ms, duration_ms);
    piece.from_now = *from_now;
    if (idx == 0 || piece.t0_ms < reading->first_ms) reading->first_ms = piece.t0_ms;
    if (idx == 0 || piece.t1_ms > reading->last_ms) reading->last_ms = piece.t1_ms;
    *cursor_ms = piece.t1_ms;
    if (json_kind(list) != JSON_KIND_LIST) feed_refuse(reading->feed, "an interval without payloads");
    for (size_t i = 0; i < json_length(list); i++) read_payload(reading, json_at(list, i), &piece);
    return true;
}

/* A3: cuts or repeats what was read since `from`. */
static void apply_duration(struct reading *reading, uint32_t from, int64_t duration_ms)
{
    struct openadr_events *events = reading->events;
    int64_t span_ms = reading->last_ms - reading->first_ms, end_ms = add_ms(reading->first_ms, duration_ms);
    int64_t from_ms = reading->now_ms - QUARTER_MS, horizon_ms = reading->now_ms + OPENADR_AHEAD_MS;
    uint32_t count = events->count;
    if (reading->last_ms == INT64_MAX || duration_ms <= span_ms) {
        for (uint32_t i = from; i < count; i++) {
            struct openadr_piece *piece = &events->pieces[i];
            if (piece->t1_ms > end_ms) piece->t1_ms = end_ms;
            if (piece->t0_ms > end_ms) piece->t0_ms = end_ms;
        }
        return;
    }
    if (span_ms < 1000) return; /* nothing to repeat */
    if (horizon_ms > end_ms) horizon_ms = end_ms;
    int64_t loop = from_ms > reading->first_ms ? (from_ms - reading->first_ms) / span_ms : 0;
    for (int n = 0; n < LOOPS_MAX; n++, loop++) {
        int64_t offset_ms = loop * span_ms;
        if (reading->first_ms + offset_ms >= horizon_ms) return;
        for (uint32_t i = from; loop > 0 && i < count; i++) {
            struct openadr_piece piece = events->pieces[i];
            piece.t0_ms += offset_ms;
            piece.t1_ms += offset_ms;
            if (piece.t1_ms > end_ms) piece.t1_ms = end_ms;
            if (events->count >= OPENADR_PIECES_MAX && n > 0) return; /* as far ahead as there is room for */
            add_piece(reading, &piece);
        }
    }
}

static bool targets_us(struct reading *reading)
{
    const struct json *targets = json_member(reading->event, "targets");
    bool named = false, ours = false;
    for (size_t i = 0; i < json_length(targets); i++) {
        const struct json *target = json_at(targets, i), *values = json_member(target, "values");
        const char *type = json_to_text(json_member(target, "type"), NULL);
        bool is_3_1 = json_kind(target) == JSON_KIND_TEXT;
        if (is_3_1 != (reading->config->version == OPENADR_3_1)) {
            feed_refuse(reading->feed, "targets are written as in OpenADR %s, and another is configured",
                        is_3_1 ? "3.1" : "3.0");
            return false;
        }
        if (is_3_1) return true; /* the VTN shows an event only to those it is for */
        if (!type || strcmp(type, "VEN_NAME") != 0) continue;
        named = true;
        for (size_t k = 0; k < json_length(values); k++) {
            const char *name = json_to_text(json_at(values, k), NULL);
            if (name && strcmp(name, reading->config->ven) == 0) ours = true;
        }
    }
    return !named || ours;
}

static bool read_head(struct reading *reading)
{
    size_t length = 0;
    const char *id = json_to_text(json_member(reading->event, "id"), &length);
    const struct json *priority = json_member(reading->event, "priority");
    double number = UINT32_MAX;
    if (!id || length == 0 || length > OPENADR_ID_CHARS_MAX) {
        feed_refuse(reading->feed, "an event without an id");
        return false;
    }
    reading->piece = (struct openadr_piece){.event = hash_xxh64(id, length, 0)};
    if (json_kind(priority) != JSON_KIND_NULL &&
        !feed_number(reading->feed, priority, "priority", 0, UINT32_MAX - 1, &number))
        return false;
    reading->piece.priority = (uint32_t)number;
    return true;
}

static void read_request(struct reading *reading)
{
    static const struct {
        const char *type;
        uint32_t report;
    } known[] = {{"DEMAND", OPENADR_DEMAND},
                 {"OPERATING_STATE", OPENADR_OPERATING_STATE},
                 {"DOWN_REGULATION_AVAILABLE", OPENADR_DOWN_REGULATION}};
    struct openadr_events *events = reading->events;
    const struct json *list = json_member(reading->event, "reportDescriptors");
    const char *program = json_to_text(json_member(reading->event, "programID"), NULL);
    struct openadr_request request = {.t0_ms = reading->first_ms, .t1_ms = reading->last_ms};
    for (size_t i = 0; i < json_length(list); i++) {
        const char *type = json_to_text(json_member(json_at(list, i), "payloadType"), NULL);
        for (size_t k = 0; type && k < sizeof known / sizeof *known; k++)
            if (strcmp(type, known[k].type) == 0) request.reports |= known[k].report;
    }
    if (!request.reports) return;
    if (events->requests_count == OPENADR_REQUESTS_MAX || !program || strlen(program) > OPENADR_ID_CHARS_MAX) {
        feed_refuse(reading->feed, "more than %d events ask for reports, or one has no programID",
                    OPENADR_REQUESTS_MAX);
        return;
    }
    memcpy(request.program, program, strlen(program) + 1);
    const char *id = json_to_text(json_member(reading->event, "id"), NULL);
    memcpy(request.event, id, strlen(id) + 1); /* read_head has measured it */
    events->requests[events->requests_count++] = request;
}

static void read_intervals(struct reading *reading)
{
    const struct json *list = json_member(reading->event, "intervals");
    uint32_t from = reading->events->count;
    bool has_duration = false, from_now = false;
    int64_t duration_ms = 0, cursor_ms = 0;
    struct period whole;
    if (!read_period(reading, reading->event, &whole)) return;
    if (whole.has_start && !whole.starts_now) {
        reading->shift_ms = whole.has_randomize ? shift_of(reading, &whole, 0) : 0;
        cursor_ms = whole.start_ms + reading->shift_ms;
    }
    if (json_length(list) == 0 && whole.has_start) { /* it only asks for reports */
        reading->first_ms = whole.starts_now ? now_of(reading) : cursor_ms;
        reading->last_ms = whole.has_duration ? add_ms(reading->first_ms, whole.duration_ms) : INT64_MAX;
    }
    for (size_t i = 0; i < json_length(list); i++)
        if (!read_interval(reading, json_at(list, i), &whole, i, &from_now, &cursor_ms)) return;
    if (reading->config->version == OPENADR_3_0) return;
    if (!read_duration(reading, reading->event, "duration", &has_duration, &duration_ms)) return;
    if (!has_duration || duration_ms <= 0) return;
    if (json_length(list) > 0) apply_duration(reading, from, duration_ms);
    reading->last_ms = add_ms(reading->first_ms, duration_ms);
}

/* Pieces that are over make room, but for those that would begin anew. */
static void drop_past(struct reading *reading, uint32_t from)
{
    struct openadr_events *events = reading->events;
    uint32_t kept = from;
    for (uint32_t i = from; i < events->count; i++) {
        const struct openadr_piece *piece = &events->pieces[i];
        if (piece->from_now || piece->t1_ms > reading->now_ms - QUARTER_MS) events->pieces[kept++] = *piece;
    }
    events->count = kept;
}

static void read_event(struct reading *reading)
{
    struct openadr_events *events = reading->events;
    uint32_t from = events->count, refused = reading->feed->refused;
    reading->first_ms = reading->last_ms = reading->shift_ms = 0;
    if (!read_head(reading)) return;
    if (targets_us(reading)) {
        read_intervals(reading);
        drop_past(reading, from);
        read_request(reading);
    }
    if (reading->feed->refused == refused || !reading->before) return;
    uint32_t good = events->count, kept = 0; /* A5 */
    for (uint32_t i = 0; i < reading->before->count; i++) {
        if (reading->before->pieces[i].event != reading->piece.event) continue;
        if (kept++ == 0) events->count = from;
        add_piece(reading, &reading->before->pieces[i]);
    }
    if (kept == 0) events->count = good;
}

enum status openadr_read(const struct openadr_config *config, const char *text, size_t length, int64_t now_ms,
                         const struct openadr_events *before, struct openadr_events *events, struct feed *feed,
                         uint32_t *on_page, struct error *err)
{
    struct reading reading = {.config = config, .before = before, .events = events, .feed = feed, .now_ms = now_ms};
    struct json *root;
    if (length > FEED_BYTES_MAX)
        return error_set(err, ST_LIMIT, "a document of %zu bytes, at most %d", length, FEED_BYTES_MAX);
    TRY(json_read(text, length, &root, err));
    size_t count = json_length(root);
    bool good = json_kind(root) == JSON_KIND_LIST;
    for (size_t i = 0; good && i < count && i < FEED_ITEMS_MAX; i++) {
        reading.event = json_at(root, i);
        read_event(&reading);
    }
    json_release(root);
    if (!good) return error_set(err, ST_INVAL, "expected a list of events");
    *on_page = (uint32_t)count;
    return ST_OK;
}

/* ---- slots ---- */

/* A4: is `a` to be followed rather than `b`? */
static bool is_before(const struct openadr_piece *a, const struct openadr_piece *b)
{
    if (a->alert != b->alert || (a->alert && b->alert)) return a->value > b->value;
    if (a->priority != b->priority) return a->priority < b->priority;
    if (a->field == SLOT_CAP || a->field == SLOT_TARGET) return a->value < b->value;
    return a->field == SLOT_SHED ? a->value > b->value : true; /* else the later one */
}

static void set_field(struct power_slot *slot, const struct openadr_piece *piece)
{
    slot->have |= piece->field;
    switch (piece->field) {
    case SLOT_CAP:
        slot->cap_w = piece->value;
        slot->cap_hard = true;
        break;
    case SLOT_TARGET: slot->target_w = piece->value; break;
    case SLOT_PRICE: slot->price_kwh = piece->value; break;
    case SLOT_CO2: slot->gco2_kwh = piece->value; break;
    default: slot->shed_level = (uint8_t)piece->value; break;
    }
}

/* Two levels are kept for shed: the one by priority and the highest alert; the higher holds. */
static struct power_slot slot_at(const struct openadr_events *events, int64_t ms)
{
    const struct openadr_piece *best[8] = {NULL}; /* by the bit of the field; 7: alerts */
    struct power_slot slot = {.have = 0};
    for (uint32_t i = 0; i < events->count; i++) {
        const struct openadr_piece *piece = &events->pieces[i];
        if (ms < piece->t0_ms || ms >= piece->t1_ms) continue;
        const struct openadr_piece **place = &best[piece->alert ? 7 : __builtin_ctz(piece->field)];
        if (!*place || is_before(piece, *place)) *place = piece;
    }
    for (size_t i = 0; i < 7; i++)
        if (best[i]) set_field(&slot, best[i]);
    if (best[7] && best[7]->value >= slot.shed_level) set_field(&slot, best[7]);
    return slot;
}

static int by_value(const void *a, const void *b)
{
    int64_t left, right;
    memcpy(&left, a, sizeof left);
    memcpy(&right, b, sizeof right);
    return left < right ? -1 : left > right;
}

static bool is_same(const struct power_slot *a, const struct power_slot *b)
{
    return a->have == b->have && a->cap_w == b->cap_w && a->target_w == b->target_w && a->price_kwh == b->price_kwh &&
           a->gco2_kwh == b->gco2_kwh && a->shed_level == b->shed_level;
}

void openadr_compose(const struct openadr_events *events, int64_t now_ms, struct feed *feed)
{
    int64_t cuts[2 * OPENADR_PIECES_MAX + 2], from_ms = now_ms - now_ms % QUARTER_MS;
    int64_t until_ms = from_ms + OPENADR_AHEAD_MS;
    size_t count = 0;
    struct power_slot open = {.have = 0};
    int64_t open_ms = from_ms;
    cuts[count++] = from_ms;
    for (uint32_t i = 0; i < events->count; i++) {
        const struct openadr_piece *piece = &events->pieces[i];
        if (piece->t0_ms > from_ms && piece->t0_ms < until_ms) cuts[count++] = piece->t0_ms;
        if (piece->t1_ms > from_ms && piece->t1_ms < until_ms) cuts[count++] = piece->t1_ms;
    }
    cuts[count++] = until_ms;
    qsort(cuts, count, sizeof *cuts, by_value);
    for (size_t i = 0; i < count; i++) {
        struct power_slot slot = {.have = 0};
        if (i > 0 && cuts[i] == cuts[i - 1]) continue;
        if (cuts[i] < until_ms) slot = slot_at(events, cuts[i]);
        if (cuts[i] < until_ms && is_same(&open, &slot)) continue;
        int64_t seconds = (cuts[i] + 999) / 1000 - (open_ms + 999) / 1000;
        open.t0_ms = (open_ms + 999) / 1000 * 1000; /* whole seconds: slots have no other length */
        open.dur_s = (int32_t)seconds;
        open.quality = open.t0_ms > now_ms ? SLOT_FORECAST : SLOT_MEASURED;
        if (open.have && seconds > 0) feed_add(feed, &open);
        open = slot;
        open_ms = cuts[i];
    }
}
