/* Readers of carbon documents; see feed_carbon.h. Shapes: the API references of Electricity Maps and WattTime, and the
 * pages of the Carbon Aware SDK's WebApi.
 *
 * Every kind is a list of entries with a time, a value and perhaps a length, so there is one walk and a table of the
 * members' names. */
#include "server/power/feed_carbon.h"

#include <string.h>

#define G_PER_KWH_OF_LB_PER_MWH 0.45359237
#define CARBON_G_KWH_MAX        5000.0 /* lignite in the worst plants is below 1500 */

enum { HOUR_S = 3600, HOLD_AHEAD_MS = 900000 };

/* How entries of one list are read. */
struct carbon_list {
    const char *time, *value, *length; /* names of members; length may be NULL */
    double factor;                     /* to g/kWh */
    bool marginal, forecast;
    int32_t dur_s; /* 0: from the distance to the next */
};

/* An entry's own length: minutes as a number, or "01:00:00". 0: it tells none; false: it tells nonsense. */
static bool read_length(struct feed *feed, const struct carbon_list *list, const struct json *entry, int32_t *dur_s)
{
    const struct json *value = list->length ? json_member(entry, list->length) : NULL;
    double minutes = 0;
    int64_t ms = 0;
    if (json_kind(value) == JSON_KIND_TEXT) {
        if (!feed_parse_duration(json_to_text(value, NULL), &ms) || ms > (int64_t)FEED_DURATION_S_MAX * 1000 ||
            ms < 1000) {
            feed_refuse(feed, "\"%.40s\" is no duration", json_to_text(value, NULL));
            return false;
        }
        *dur_s = (int32_t)(ms / 1000);
    } else if (json_kind(value) != JSON_KIND_NULL) {
        if (!feed_number(feed, value, list->length, 1.0 / 60, FEED_DURATION_S_MAX / 60.0, &minutes)) return false;
        *dur_s = (int32_t)(minutes * 60 + 0.5);
    } else {
        *dur_s = list->dur_s;
    }
    return true;
}

static void read_entry(struct feed *feed, const struct carbon_list *list, const struct json *entry, int64_t now_ms)
{
    const char *time = json_to_text(json_member(entry, list->time), NULL);
    const struct json *value = json_member(entry, list->value), *estimated = json_member(entry, "isEstimated");
    struct power_slot slot = {.have = SLOT_CO2, .co2_marginal = list->marginal, .quality = SLOT_MEASURED};
    double number;
    if (!time || !feed_parse_time(time, &slot.t0_ms)) {
        feed_refuse(feed, "an entry's %s is %.40s and no time", list->time, time ? time : "absent");
        return;
    }
    if (json_kind(value) == JSON_KIND_NULL) return; /* nothing is known yet */
    if (!feed_number(feed, value, list->value, 0, CARBON_G_KWH_MAX / list->factor, &number)) return;
    if (!read_length(feed, list, entry, &slot.dur_s)) return;
    slot.gco2_kwh = number * list->factor;
    if (list->forecast || slot.t0_ms > now_ms)
        slot.quality = SLOT_FORECAST;
    else if (json_to_bool(estimated))
        slot.quality = SLOT_ESTIMATED;
    feed_add(feed, &slot);
}

/* In the order of time; the first of two for one time stays. */
static void sort(struct feed *feed, uint32_t from)
{
    uint32_t kept = from;
    for (uint32_t i = from + 1; i < feed->count; i++) { /* documents come sorted, nearly */
        struct power_slot slot = feed->slots[i];
        uint32_t at = i;
        for (; at > from && feed->slots[at - 1].t0_ms > slot.t0_ms; at--) feed->slots[at] = feed->slots[at - 1];
        feed->slots[at] = slot;
    }
    for (uint32_t i = from; i < feed->count; i++) {
        if (kept > from && feed->slots[kept - 1].t0_ms == feed->slots[i].t0_ms)
            feed_refuse(feed, "two entries for one time");
        else
            feed->slots[kept++] = feed->slots[i];
    }
    feed->count = kept;
}

/* Lengths that were not told: up to the next entry, at most an hour; the last is as long as the one before. */
static void fill_lengths(struct feed *feed, uint32_t from)
{
    for (uint32_t i = from; i < feed->count; i++) {
        struct power_slot *slot = &feed->slots[i];
        int64_t gap_ms = i + 1 < feed->count ? slot[1].t0_ms - slot->t0_ms : 0;
        if (slot->dur_s) continue;
        if (gap_ms >= 1000)
            slot->dur_s = gap_ms < HOUR_S * 1000 ? (int32_t)(gap_ms / 1000) : HOUR_S;
        else
            slot->dur_s = i > from ? slot[-1].dur_s : HOUR_S;
    }
}

static void hold_newest(struct feed *feed, uint32_t from, int64_t now_ms)
{
    if (feed->count == from) return;
    struct power_slot *newest = &feed->slots[feed->count - 1];
    int64_t end_ms = newest->t0_ms + (int64_t)newest->dur_s * 1000;
    if (newest->quality == SLOT_FORECAST || end_ms > now_ms || now_ms - end_ms > FEED_HOLD_MS) return;
    struct power_slot held = *newest;
    held.t0_ms = end_ms;
    held.dur_s = (int32_t)((now_ms + HOLD_AHEAD_MS - end_ms) / 1000);
    held.quality = SLOT_ESTIMATED;
    feed_add(feed, &held);
}

static enum status read_list(struct feed *feed, const struct carbon_list *list, const struct json *entries,
                             int64_t now_ms, struct error *err)
{
    uint32_t from = feed->count;
    size_t count = json_length(entries);
    if (json_kind(entries) != JSON_KIND_LIST)
        return error_set(err, ST_INVAL, "expected a list of entries with \"%s\" and \"%s\"", list->time, list->value);
    if (count > FEED_ITEMS_MAX)
        return error_set(err, ST_LIMIT, "%zu entries in one document, at most %d", count, FEED_ITEMS_MAX);
    for (size_t i = 0; i < count; i++) read_entry(feed, list, json_at(entries, i), now_ms);
    sort(feed, from);
    fill_lengths(feed, from);
    hold_newest(feed, from, now_ms);
    return ST_OK;
}

static int32_t granularity_s(const struct json *root)
{
    const char *text = json_to_text(json_member(root, "temporalGranularity"), NULL);
    if (!text) return 0;
    if (strcmp(text, "5_minutes") == 0) return 300;
    if (strcmp(text, "15_minutes") == 0) return 900;
    if (strcmp(text, "hourly") == 0) return HOUR_S;
    return strcmp(text, "daily") == 0 ? 86400 : 0;
}

static enum status read_electricity_maps(struct feed *feed, const struct json *root, bool marginal, int64_t now_ms,
                                         struct error *err)
{
    static const char *const members[] = {"data", "history", "forecast"};
    struct carbon_list list = {.time = "datetime",
                               .value = "carbonIntensity",
                               .factor = 1,
                               .marginal = marginal,
                               .dur_s = granularity_s(root)};
    bool any = false;
    for (size_t i = 0; i < sizeof members / sizeof *members; i++) {
        const struct json *entries = json_member(root, members[i]);
        if (!entries) continue;
        list.forecast = strcmp(members[i], "forecast") == 0;
        TRY(read_list(feed, &list, entries, now_ms, err));
        any = true;
    }
    if (any) return ST_OK;
    if (!json_member(root, "datetime"))
        return error_set(err, ST_INVAL, "expected \"datetime\", or a list \"data\", \"history\" or \"forecast\"");
    read_entry(feed, &list, root, now_ms);
    fill_lengths(feed, 0);
    hold_newest(feed, 0, now_ms);
    return ST_OK;
}

static enum status read_carbon_aware(struct feed *feed, const struct json *root, bool marginal, int64_t now_ms,
                                     struct error *err)
{
    const struct carbon_list told = {
        .time = "time", .value = "rating", .length = "duration", .factor = 1, .marginal = marginal};
    const struct carbon_list ahead = {.time = "timestamp",
                                      .value = "value",
                                      .length = "duration",
                                      .factor = 1,
                                      .marginal = marginal,
                                      .forecast = true};
    const struct json *forecast = json_member(json_at(root, 0), "forecastData");
    if (json_kind(root) != JSON_KIND_LIST) return error_set(err, ST_INVAL, "expected a list");
    if (!forecast) return read_list(feed, &told, root, now_ms, err);
    if (json_length(root) > 1) feed_refuse(feed, "forecasts of several locations; ask for one");
    return read_list(feed, &ahead, forecast, now_ms, err);
}

static enum status read_watttime(struct feed *feed, const struct json *root, int64_t now_ms, struct error *err)
{
    const struct json *meta = json_member(root, "meta"), *period = json_member(meta, "data_point_period_seconds");
    const char *signal = json_to_text(json_member(meta, "signal_type"), NULL);
    const char *units = json_to_text(json_member(meta, "units"), NULL);
    struct carbon_list list = {.time = "point_time", .value = "value", .factor = G_PER_KWH_OF_LB_PER_MWH};
    double dur_s = 0;
    if (signal && strcmp(signal, "co2_moer") != 0 && strcmp(signal, "co2_aoer") != 0)
        return error_set(err, ST_INVAL, "signal_type is \"%.40s\", expected co2_moer or co2_aoer", signal);
    if (units && strcmp(units, "lbs_co2_per_mwh") != 0)
        return error_set(err, ST_INVAL, "units are \"%.40s\", expected lbs_co2_per_mwh", units);
    if (period && !feed_number(feed, period, "data_point_period_seconds", 1, 86400, &dur_s)) dur_s = 0;
    list.marginal = !signal || strcmp(signal, "co2_moer") == 0;
    list.dur_s = (int32_t)dur_s;
    return read_list(feed, &list, json_member(root, "data"), now_ms, err);
}

enum status feed_read_carbon(enum feed_kind kind, const char *text, size_t length, bool marginal, int64_t now_ms,
                             struct feed *feed, struct error *err)
{
    struct json *root;
    enum status status;
    feed_clear(feed);
    if (length > FEED_BYTES_MAX)
        return error_set(err, ST_LIMIT, "a document of %zu bytes, at most %d", length, FEED_BYTES_MAX);
    TRY(json_read(text, length, &root, err));
    switch (kind) {
    case FEED_ELECTRICITY_MAPS: status = read_electricity_maps(feed, root, marginal, now_ms, err); break;
    case FEED_CARBON_AWARE: status = read_carbon_aware(feed, root, marginal, now_ms, err); break;
    default: status = read_watttime(feed, root, now_ms, err); break;
    }
    json_release(root);
    if (status != ST_OK) feed->count = 0;
    return status;
}
