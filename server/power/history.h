/* What the node did of late: per minute for the last HISTORY_MINUTES, and per quarter of an hour for the last
 * HISTORY_SLOTS, the same sums in both. Totals since the start go in, about once a second; their growth is added to
 * the minute and the slot in which it was seen, so that what both have held since the start adds up to the totals.
 *
 *   totals ---growth---> minute under way, slot under way ---> rings, the oldest is overwritten
 *
 * Memory is fixed (about 50 KiB). A wall clock that goes back adds to the newest entry; times without a look leave no
 * entry. Pure; one thread. */
#ifndef SERVER_POWER_HISTORY_H
#define SERVER_POWER_HISTORY_H

#include "server/power/cost_live.h"

#include <stdbool.h>
#include <stdint.h>

enum { HISTORY_MINUTES = 180, HISTORY_SLOTS = 96, HISTORY_MINUTE_MS = 60000, HISTORY_SLOT_MS = 900000 };

/* Totals since the start, but for the last lines. */
struct history_now {
    int64_t unix_ms;
    struct cost_span span; /* tokens of usage records */
    uint64_t green_uj, location_ug, market_ug;
    uint64_t computed_prompt_tokens, generated_tokens; /* of engines */
    /* at this moment: */
    double running, waiting, kv_share, setpoint_w, weight; /* setpoint_w infinity: none */
};

struct history_entry {
    int64_t t0_ms;
    struct cost_span span;
    uint64_t green_uj, location_ug, market_ug, computed_prompt_tokens, generated_tokens;
    uint64_t seen_ms; /* of its time, that looks cover */
    uint32_t looks;   /* of which the next are sums */
    double running, waiting, kv_share;
    double setpoint_w, weight; /* the last */
};

struct history {
    struct history_entry minutes[HISTORY_MINUTES], slots[HISTORY_SLOTS];
    uint32_t minutes_count, slots_count; /* ever begun */
    struct history_now last;
    bool begun;
};

/* All zeros is an empty one. The first look of a process counts from its start: totals begin at 0. */
void history_look(struct history *history, const struct history_now *now);
/* How many entries a ring of that size holds, and the i-th, the oldest first. */
uint32_t history_held(uint32_t count, uint32_t size);
const struct history_entry *history_minute(const struct history *history, uint32_t i);
const struct history_entry *history_slot(const struct history *history, uint32_t i);
/* Of the slots, or the minutes, that began after from_ms. */
struct cost_span history_minutes_since(const struct history *history, int64_t from_ms);
struct cost_span history_slots_since(const struct history *history, int64_t from_ms);

#endif
