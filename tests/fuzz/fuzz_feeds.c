/* libFuzzer over what providers of power signals send: carbon documents, events of OpenADR, tokens, times and
 * durations.
 *
 * Input: a byte that says which reader, then the document. Events are read twice, the second time with the first ones
 * held, as a poll after a poll. What is told must be possible; slots of events must not overlap. */
#include "tests/unit/unit.h"

#include "server/power/feed_carbon.h"
#include "server/power/feed_client.h"
#include "server/power/openadr.h"

#include <math.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define NOW_MS INT64_C(1795428000000) /* 2026-11-23T10:00:00Z */

static struct feed feed;

static void check(bool good)
{
    if (!good) abort();
}

static void check_slots(bool ordered)
{
    check(feed.count <= FEED_SLOTS_MAX && (feed.refused > 0) == (feed.first.message[0] != '\0'));
    for (uint32_t i = 0; i < feed.count; i++) {
        const struct power_slot *slot = &feed.slots[i];
        check(slot->have != 0 && slot->dur_s > 0 && slot->dur_s <= FEED_DURATION_S_MAX && slot->t0_ms >= 0);
        check(isfinite(slot->cap_w) && slot->cap_w >= 0 && isfinite(slot->target_w) && slot->target_w >= 0);
        check(isfinite(slot->price_kwh) && isfinite(slot->gco2_kwh) && slot->gco2_kwh >= 0 && slot->gco2_kwh <= 5000);
        check(slot->shed_level <= 3 && slot->quality <= SLOT_FORECAST);
        if (ordered && i > 0) check(slot->t0_ms >= slot[-1].t0_ms + slot[-1].dur_s * INT64_C(1000));
    }
}

static void read_events(enum openadr_version version, const char *text, size_t length)
{
    static struct openadr_events pages[2];
    const struct openadr_config config = {.version = version, .ven = "hub-7", .currency = "EUR", .plan_w = 40000};
    struct error err;
    uint32_t on_page;
    for (int i = 0; i < 2; i++) {
        int64_t now_ms = NOW_MS + i * INT64_C(1000000);
        feed_clear(&feed);
        openadr_clear(&pages[i]);
        if (openadr_read(&config, text, length, now_ms, i ? &pages[0] : NULL, &pages[i], &feed, &on_page, &err) !=
            ST_OK)
            return;
        openadr_compose(&pages[i], now_ms, &feed);
        check_slots(true);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct error err;
    int64_t ms = 0;
    if (size == 0) return 0;
    char *text = malloc(size); /* exact, so that a step behind it is seen */
    check(text != NULL);
    memcpy(text, data + 1, size - 1);
    text[size - 1] = '\0';
    if (data[0] % 8 < 3) {
        enum status status =
            feed_read_carbon((enum feed_kind)(data[0] % 8), text, size - 1, data[0] & 8, NOW_MS, &feed, &err);
        if (status == ST_OK)
            check_slots(false);
        else
            check(feed.count == 0);
    } else if (data[0] % 8 < 5) {
        read_events(data[0] & 1 ? OPENADR_3_0 : OPENADR_3_1, text, size - 1);
    } else if (data[0] % 8 == 5) {
        if (feed_parse_time(text, &ms)) check(ms >= 0);
    } else if (data[0] % 8 == 6) {
        static char token[FEED_SECRET_CHARS_MAX + 1];
        uint32_t life_s = 0;
        if (feed_read_token(text, size - 1, token, &life_s, &err) == ST_OK) check(life_s >= 1 && token[0]);
    } else if (feed_parse_duration(text, &ms)) {
        check(ms >= 0);
    }
    free(text);
    return 0;
}
