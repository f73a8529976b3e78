/* The machine's clocks behind struct clock; see clock.h. */
#include "runtime/base/clock.h"

#include <stddef.h>
#include <time.h>

static uint64_t system_now_ns(void *state)
{
    (void)state;
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

static int64_t system_unix_us(void *state)
{
    (void)state;
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

const struct clock *clock_system(void)
{
    static const struct clock clock = {system_now_ns, system_unix_us, NULL};
    return &clock;
}
