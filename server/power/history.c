/* See history.h. */
#include "server/power/history.h"

/* The entry that a moment belongs to, begun if need be. */
static struct history_entry *entry_at(struct history_entry *ring, uint32_t size, uint32_t *count, int64_t period_ms,
                                      int64_t unix_ms)
{
    int64_t t0_ms = unix_ms - unix_ms % period_ms;
    struct history_entry *newest = *count ? &ring[(*count - 1) % size] : NULL;
    if (newest && newest->t0_ms >= t0_ms) return newest;
    struct history_entry *entry = &ring[(*count)++ % size];
    *entry = (struct history_entry){.t0_ms = t0_ms};
    return entry;
}

static void span_add(struct cost_span *sum, const struct cost_span *more)
{
    sum->seconds += more->seconds;
    sum->meter_uj += more->meter_uj;
    sum->prefill_uj += more->prefill_uj;
    sum->decode_uj += more->decode_uj;
    sum->door_kwh += more->door_kwh;
    sum->paid_kwh += more->paid_kwh;
    sum->paid += more->paid;
    sum->prompt_tokens += more->prompt_tokens;
    sum->output_tokens += more->output_tokens;
}

static struct cost_span span_growth(const struct cost_span *last, const struct cost_span *now)
{
    return (struct cost_span){.seconds = now->seconds - last->seconds,
                              .meter_uj = now->meter_uj - last->meter_uj,
                              .prefill_uj = now->prefill_uj - last->prefill_uj,
                              .decode_uj = now->decode_uj - last->decode_uj,
                              .door_kwh = now->door_kwh - last->door_kwh,
                              .paid_kwh = now->paid_kwh - last->paid_kwh,
                              .paid = now->paid - last->paid,
                              .prompt_tokens = now->prompt_tokens - last->prompt_tokens,
                              .output_tokens = now->output_tokens - last->output_tokens};
}

static void add(struct history_entry *entry, const struct history_now *last, const struct history_now *now,
                uint64_t passed_ms)
{
    struct cost_span more = span_growth(&last->span, &now->span);
    span_add(&entry->span, &more);
    entry->green_uj += now->green_uj - last->green_uj;
    entry->location_ug += now->location_ug - last->location_ug;
    entry->market_ug += now->market_ug - last->market_ug;
    entry->computed_prompt_tokens += now->computed_prompt_tokens - last->computed_prompt_tokens;
    entry->generated_tokens += now->generated_tokens - last->generated_tokens;
    entry->seen_ms += passed_ms;
    entry->looks++;
    entry->running += now->running;
    entry->waiting += now->waiting;
    entry->kv_share += now->kv_share;
    entry->setpoint_w = now->setpoint_w;
    entry->weight = now->weight;
}

void history_look(struct history *history, const struct history_now *now)
{
    int64_t passed_ms = history->begun ? now->unix_ms - history->last.unix_ms : 0;
    if (passed_ms < 0) passed_ms = 0;
    add(entry_at(history->minutes, HISTORY_MINUTES, &history->minutes_count, HISTORY_MINUTE_MS, now->unix_ms),
        &history->last, now, (uint64_t)passed_ms);
    add(entry_at(history->slots, HISTORY_SLOTS, &history->slots_count, HISTORY_SLOT_MS, now->unix_ms), &history->last,
        now, (uint64_t)passed_ms);
    history->last = *now;
    history->begun = true;
}

uint32_t history_held(uint32_t count, uint32_t size)
{
    return count < size ? count : size;
}

static const struct history_entry *entry_of(const struct history_entry *ring, uint32_t size, uint32_t count, uint32_t i)
{
    return &ring[(count - history_held(count, size) + i) % size];
}

const struct history_entry *history_minute(const struct history *history, uint32_t i)
{
    return entry_of(history->minutes, HISTORY_MINUTES, history->minutes_count, i);
}

const struct history_entry *history_slot(const struct history *history, uint32_t i)
{
    return entry_of(history->slots, HISTORY_SLOTS, history->slots_count, i);
}

struct cost_span history_minutes_since(const struct history *history, int64_t from_ms)
{
    struct cost_span sum = {.seconds = 0};
    for (uint32_t i = 0; i < history_held(history->minutes_count, HISTORY_MINUTES); i++) {
        const struct history_entry *entry = history_minute(history, i);
        if (entry->t0_ms > from_ms) span_add(&sum, &entry->span);
    }
    return sum;
}

struct cost_span history_slots_since(const struct history *history, int64_t from_ms)
{
    struct cost_span sum = {.seconds = 0};
    for (uint32_t i = 0; i < history_held(history->slots_count, HISTORY_SLOTS); i++) {
        const struct history_entry *entry = history_slot(history, i);
        if (entry->t0_ms > from_ms) span_add(&sum, &entry->span);
    }
    return sum;
}
