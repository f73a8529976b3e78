/* See signal_show.h. */
#include "server/power/signal_show.h"

#include <inttypes.h>
#include <string.h>

static const char *const quality_texts[] = {"measured", "estimated", "forecast"};

static const struct told_field {
    uint32_t have;
    const char *name, *metric, *help;
} told_fields[] = {
    {SLOT_CAP, "cap_w", "mr_signal_cap_watts", "Power that sources allow the node; absent: no limit"},
    {SLOT_TARGET, "target_w", "mr_signal_target_watts", "Power that sources ask the node to draw"},
    {SLOT_GREEN, "green_w", "mr_signal_green_watts", "Green power on offer to the node"},
    {SLOT_PRICE, "price_kwh", "mr_signal_price_per_kwh", "Price of a kWh, in the currency of its source"},
    {SLOT_CO2, "gco2_kwh", "mr_signal_carbon_grams_per_kwh", "Carbon dioxide of a kWh"},
    {SLOT_PUE, "pue", "mr_signal_pue_ratio", "Power of the site against that of its machines"},
    {SLOT_SHED, "shed_level", "mr_signal_shed_level", "Load that sources ask to shed, 0 to 3"},
};
enum { TOLD_FIELDS = sizeof told_fields / sizeof *told_fields };

static double told_value(const struct power_slot *slot, uint32_t field)
{
    const double values[] = {slot->cap_w,    slot->target_w, slot->green_w,   slot->price_kwh,
                             slot->gco2_kwh, slot->pue,      slot->shed_level};
    return values[field];
}

static void print_source(const struct signal_state *state, int64_t now_ms, struct buf *out)
{
    bool any = false;
    buf_append_text(out, "{\"name\":");
    buf_append_json_string(out, state->name, strlen(state->name));
    buf_append_format(out, ",\"rank\":%u,\"share\":%.9g,\"period_s\":%.9g,\"state\":\"%s\",\"age_s\":", state->rank,
                      state->share, state->period_ms / 1e3, signal_age_text(state->age));
    if (state->heard_ms)
        buf_append_format(out, "%.3f", (double)(now_ms - state->heard_ms) / 1e3);
    else
        buf_append_text(out, "null");
    buf_append_format(out, ",\"taken\":%" PRIu64 ",\"rejected\":{", state->taken);
    for (int why = 0; why < SIGNAL_WHYS; why++) {
        if (!state->rejected[why]) continue;
        buf_append_format(out, "%s\"%s\":%" PRIu64, any ? "," : "", signal_why_text((enum signal_why)why),
                          state->rejected[why]);
        any = true;
    }
    buf_append_text(out, "},\"message\":");
    if (state->message[0])
        buf_append_json_string(out, state->message, strlen(state->message));
    else
        buf_append_text(out, "null");
    buf_append_char(out, '}');
}

void signal_print_json(struct signals *signals, int64_t now_ms, struct buf *out)
{
    struct power_slot slot;
    signal_at(signals, now_ms, now_ms, &slot);
    buf_append_text(out, "\"told\":{");
    for (uint32_t i = 0; i < TOLD_FIELDS; i++) {
        buf_append_format(out, "%s\"%s\":", i ? "," : "", told_fields[i].name);
        if (slot.have & told_fields[i].have)
            buf_append_format(out, "%.9g", told_value(&slot, i));
        else
            buf_append_text(out, "null");
    }
    buf_append_format(out, ",\"cap_hard\":%s,\"co2_marginal\":%s,\"quality\":\"%s\"}",
                      slot.have & SLOT_CAP && slot.cap_hard ? "true" : "false",
                      slot.have & SLOT_CO2 && slot.co2_marginal ? "true" : "false", quality_texts[slot.quality]);
    buf_append_text(out, ",\"sources\":[");
    for (uint32_t i = 0; i < signal_sources(signals); i++) {
        struct signal_state state;
        signal_read_state(signals, (uint16_t)i, now_ms, &state);
        if (i) buf_append_char(out, ',');
        print_source(&state, now_ms, out);
    }
    buf_append_char(out, ']');
}

static void head(struct buf *out, const char *metric, const char *kind, const char *help)
{
    buf_append_format(out, "# HELP %s %s\n# TYPE %s %s\n", metric, help, metric, kind);
}

/* One family, a sample for each source. */
enum family { FAMILY_AGE, FAMILY_STATE, FAMILY_TAKEN, FAMILY_REJECTED, FAMILIES };

static void print_sample(enum family family, const struct signal_state *state, int64_t now_ms, struct buf *out)
{
    switch (family) {
    case FAMILY_AGE:
        buf_append_format(out, "mr_signal_age_seconds{source=\"%s\"} ", state->name);
        if (state->heard_ms)
            buf_append_format(out, "%.3f\n", (double)(now_ms - state->heard_ms) / 1e3);
        else
            buf_append_text(out, "+Inf\n");
        break;
    case FAMILY_STATE: buf_append_format(out, "mr_signal_state{source=\"%s\"} %d\n", state->name, state->age); break;
    case FAMILY_TAKEN:
        buf_append_format(out, "mr_signal_taken_total{source=\"%s\"} %" PRIu64 "\n", state->name, state->taken);
        break;
    default:
        for (int why = 0; why < SIGNAL_WHYS; why++)
            buf_append_format(out, "mr_signal_rejected_total{source=\"%s\",why=\"%s\"} %" PRIu64 "\n", state->name,
                              signal_why_text((enum signal_why)why), state->rejected[why]);
    }
}

void signal_print_metrics(struct signals *signals, int64_t now_ms, struct buf *out)
{
    static const struct {
        const char *metric, *kind, *help;
    } families[FAMILIES] = {
        {"mr_signal_age_seconds", "gauge", "Since a source of power signals was heard"},
        {"mr_signal_state", "gauge", "0 a source is fresh, 1 stale, 2 gone"},
        {"mr_signal_taken_total", "counter", "Slots taken of a source"},
        {"mr_signal_rejected_total", "counter", "Slots refused, and failures to hear a source, by why"},
    };
    uint32_t count = signal_sources(signals);
    struct power_slot slot;
    for (int family = 0; family < FAMILIES && count > 0; family++) {
        head(out, families[family].metric, families[family].kind, families[family].help);
        for (uint32_t i = 0; i < count; i++) {
            struct signal_state state;
            signal_read_state(signals, (uint16_t)i, now_ms, &state);
            print_sample((enum family)family, &state, now_ms, out);
        }
    }
    signal_at(signals, now_ms, now_ms, &slot);
    for (uint32_t i = 0; i < TOLD_FIELDS; i++) {
        if (!(slot.have & told_fields[i].have)) continue;
        head(out, told_fields[i].metric, "gauge", told_fields[i].help);
        buf_append_format(out, "%s %.9g\n", told_fields[i].metric, told_value(&slot, i));
    }
}
