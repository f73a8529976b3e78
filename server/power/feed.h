/* What one document of a provider of power signals told: slots, and what in it was refused. And what its readers share:
 * checked numbers, times and durations.
 *
 *   bytes --json.h: size, depth, count--> values --feed_read_*, openadr_*--> struct feed --> server/power/signal.h
 *
 * A value that cannot be is left out, counted, and the first one is told of; the others count. A document that is not
 * of the provider's form fails as a whole. Pure: the time is an argument. Plain data, the caller's. */
#ifndef SERVER_POWER_FEED_H
#define SERVER_POWER_FEED_H

#include "runtime/base/json.h"
#include "server/power/slot.h"

enum {
    FEED_SLOTS_MAX = 1024,
    FEED_ITEMS_MAX = 4096, /* entries looked at in a document */
    FEED_BYTES_MAX = 4 * 1024 * 1024,
    FEED_DURATION_S_MAX = 366 * 86400
};

struct feed {
    struct power_slot slots[FEED_SLOTS_MAX]; /* source and received_ms are 0 */
    uint32_t count;
    uint32_t refused;   /* values left out */
    struct error first; /* of the first of them; "" */
};

void feed_clear(struct feed *feed);
/* Refuses it where there is no room. */
void feed_add(struct feed *feed, const struct power_slot *slot);
void feed_refuse(struct feed *feed, const char *format, ...) PRINTF_LIKE(2, 3);

/* A number within [low, high] into *out; else it is refused by its name. */
bool feed_number(struct feed *feed, const struct json *value, const char *name, double low, double high, double *out);

/* RFC 3339 and what providers make of it: with or without seconds, any digits of a second, a space for the T, no offset
 * (then UTC), a date alone. Milliseconds since 1970; years 1970 to 9999. */
bool feed_parse_time(const char *text, int64_t *unix_ms);
/* ISO 8601, as OpenADR 3 restricts it: P1Y2M3DT4H5M6.5S, P2W. Months are 30 days, years 365: the guide advises against
 * both but for P9999Y, which is infinite: *ms = INT64_MAX. Also hours:minutes:seconds. Not negative. */
bool feed_parse_duration(const char *text, int64_t *ms);

#endif
