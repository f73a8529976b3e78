/* Incremental stop strings by KMP; see stop_match.h. */
#include "scheduler/stop_match.h"

bool stop_match_fits(const struct stop_string *stops, uint32_t count, uint32_t entries_max)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (!stops[i].length || stops[i].length > UINT16_MAX) return false;
        sum += stops[i].length;
    }
    return sum <= entries_max;
}

/* border[k] = length of the longest proper prefix of bytes[0..k] that is also its suffix. */
static void borders(const struct stop_string *stop, uint16_t *border)
{
    border[0] = 0;
    for (uint32_t k = 1; k < stop->length; k++) {
        uint16_t q = border[k - 1];
        while (q && stop->bytes[q] != stop->bytes[k]) q = border[q - 1];
        border[k] = (uint16_t)(q + (stop->bytes[q] == stop->bytes[k]));
    }
}

void stop_match_init(struct stop_match *match, const struct stop_string *stops, uint32_t count, uint16_t *failure,
                     uint16_t *state)
{
    *match = (struct stop_match){.stops = stops, .count = count, .failure = failure, .state = state};
    for (uint32_t i = 0; i < count; i++) {
        borders(&stops[i], failure);
        failure += stops[i].length;
        state[i] = 0;
    }
}

bool stop_match_push(struct stop_match *match, const char *bytes, uint32_t length, bool armed, struct stop_hit *hit)
{
    uint32_t start = match->text_bytes;
    match->text_bytes += length;
    if (!match->count) return false;
    for (uint32_t b = 0; b < length; b++) {
        const uint16_t *border = match->failure;
        uint32_t longest = 0, index = 0;
        for (uint32_t i = 0; i < match->count; border += match->stops[i].length, i++) {
            const struct stop_string *stop = &match->stops[i];
            uint16_t q = match->state[i];
            while (q && stop->bytes[q] != bytes[b]) q = border[q - 1];
            if (stop->bytes[q] == bytes[b]) q++;
            if (q == stop->length) {
                if (q > longest) longest = q, index = i;
                q = border[q - 1];
            }
            match->state[i] = q;
        }
        if (longest && armed) {
            uint32_t end = start + b + 1;
            *hit = (struct stop_hit){.index = index, .start = end - longest, .end = end};
            return true;
        }
    }
    return false;
}

uint32_t stop_match_held(const struct stop_match *match)
{
    uint32_t held = 0;
    for (uint32_t i = 0; i < match->count; i++)
        if (match->state[i] > held) held = match->state[i];
    return held;
}
