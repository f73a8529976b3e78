/* What readers of power signals share; see feed.h. */
#include "server/power/feed.h"

#include "server/billing/bill_text.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void feed_clear(struct feed *feed)
{
    feed->count = feed->refused = 0;
    feed->first.message[0] = '\0';
}

void feed_refuse(struct feed *feed, const char *format, ...)
{
    if (feed->refused++ == 0) {
        char line[sizeof feed->first.message];
        va_list arguments;
        va_start(arguments, format);
        (void)vsnprintf(line, sizeof line, format, arguments);
        va_end(arguments);
        (void)error_set(&feed->first, ST_INVAL, "%s", line); /* control characters become '?' */
    }
}

void feed_add(struct feed *feed, const struct power_slot *slot)
{
    if (feed->count < FEED_SLOTS_MAX)
        feed->slots[feed->count++] = *slot;
    else
        feed_refuse(feed, "more than %d slots in one document", FEED_SLOTS_MAX);
}

bool feed_number(struct feed *feed, const struct json *value, const char *name, double low, double high, double *out)
{
    double number = json_to_number(value);
    if (!json_has_number(value)) {
        feed_refuse(feed, "%.40s is %s and no number", name, value ? json_kind_name(json_kind(value)) : "absent");
    } else if (!isfinite(number) || number < low || number > high) {
        feed_refuse(feed, "%.40s is %.6g, not within %.6g to %.6g", name, number, low, high);
    } else {
        *out = number;
        return true;
    }
    return false;
}

static size_t digits(const char *text)
{
    return strspn(text, "0123456789");
}

bool feed_parse_time(const char *text, int64_t *unix_ms)
{
    char clean[40], fraction[4] = "000", seconds[3] = "00";
    size_t length = strlen(text);
    if (length == 10) return bill_parse_time(text, unix_ms, NULL) == ST_OK;
    if (length < 16 || length > 48 || !strchr("Tt ", text[10]) || text[13] != ':') return false;
    const char *at = text + 16;
    if (*at == ':') {
        if (digits(at + 1) != 2) return false;
        memcpy(seconds, at + 1, 2);
        at += 3;
        if (*at == '.' || *at == ',') {
            size_t count = digits(at + 1);
            if (count == 0 || count > 20) return false;
            memcpy(fraction, at + 1, count < 3 ? count : 3);
            at += 1 + count;
        }
    }
    const char *offset = *at == 'z' || *at == '\0' ? "Z" : at;
    if (*at == 'z' && at[1] != '\0') return false;
    if (snprintf(clean, sizeof clean, "%.10sT%.5s:%s.%s%s", text, text + 11, seconds, fraction, offset) >=
        (int)sizeof clean)
        return false;
    return bill_parse_time(clean, unix_ms, NULL) == ST_OK;
}

static bool parse_clock(const char *text, int64_t *ms)
{
    unsigned hours, minutes, seconds;
    int end = 0;
    if (digits(text) == 0 || digits(text) > 4) return false;
    if (sscanf(text, "%4u:%2u:%2u%n", &hours, &minutes, &seconds, &end) != 3 || text[end] || minutes > 59 ||
        seconds > 59)
        return false;
    *ms = ((int64_t)hours * 3600 + minutes * 60 + seconds) * 1000;
    return true;
}

bool feed_parse_duration(const char *text, int64_t *ms)
{
    static const struct {
        char letter;
        bool of_time; /* behind the T */
        int64_t s;
    } units[] = {{'Y', false, 365 * 86400}, {'M', false, 30 * 86400}, {'W', false, 7 * 86400}, {'D', false, 86400},
                 {'H', true, 3600},         {'M', true, 60},          {'S', true, 1}};
    const int64_t max_ms = INT64_C(1000) * 9999 * 365 * 86400;
    const char *at = text;
    bool of_time = false, any = false;
    size_t next = 0; /* units come in this order, each once */
    int64_t total = 0;
    if (strcmp(text, "P9999Y") == 0) {
        *ms = INT64_MAX;
        return true;
    }
    if (*at++ != 'P') return parse_clock(text, ms);
    while (*at) {
        int64_t value = 0, fraction_ms = 0;
        if (*at == 'T') {
            if (of_time || !at[1]) return false;
            of_time = true;
            at++;
            continue;
        }
        size_t count = digits(at);
        if (count == 0 || count > 9) return false;
        for (size_t i = 0; i < count; i++) value = value * 10 + (*at++ - '0');
        if (*at == '.') {
            static const int64_t weight[] = {100, 10, 1};
            size_t more = digits(++at);
            if (more == 0 || more > 9) return false;
            for (size_t i = 0; i < more && i < 3; i++) fraction_ms += (at[i] - '0') * weight[i];
            at += more;
            if (*at != 'S') return false;
        }
        while (next < sizeof units / sizeof *units && !(units[next].letter == *at && units[next].of_time == of_time))
            next++;
        if (next == sizeof units / sizeof *units) return false;
        if (value > max_ms / 1000 / units[next].s) return false;
        total += value * units[next++].s * 1000 + fraction_ms;
        if (total > max_ms) return false;
        any = true;
        at++;
    }
    if (any) *ms = total;
    return any;
}
