/* Time, as an argument. Pure modules take `now_ns`; what must read a clock holds a `struct clock`, so that tests and
 * the simulator can set the time. Monotonic nanoseconds for durations, wall microseconds only for what people read. */
#ifndef RUNTIME_BASE_CLOCK_H
#define RUNTIME_BASE_CLOCK_H

#include <stdint.h>

struct clock {
    uint64_t (*now_ns)(void *state); /* monotonic, from an arbitrary start */
    int64_t (*unix_us)(void *state); /* wall clock since 1970, UTC */
    void *state;
};

static inline uint64_t clock_now_ns(const struct clock *clock)
{
    return clock->now_ns(clock->state);
}
static inline int64_t clock_unix_us(const struct clock *clock)
{
    return clock->unix_us(clock->state);
}
static inline int64_t clock_unix_ms(const struct clock *clock)
{
    return clock_unix_us(clock) / 1000;
}

/* The machine's clocks. Static, never NULL, any thread. */
const struct clock *clock_system(void);

#define NS_PER_S  UINT64_C(1000000000)
#define NS_PER_MS UINT64_C(1000000)

#endif
