/* The edges of the drawing in model_life.h. */
#include "server/model_life.h"

#include "runtime/base/check.h"

static void enter(struct model_life *life, enum model_state state, uint64_t now_ns)
{
    life->state = state;
    life->since_ns = now_ns;
}

void model_life_begin(struct model_life *life, uint64_t now_ns)
{
    *life = (struct model_life){.state = MODEL_LOADING, .since_ns = now_ns};
}

void model_life_loaded(struct model_life *life, uint64_t now_ns)
{
    CHECK(life->state == MODEL_LOADING || life->state == MODEL_WAKING);
    uint64_t took_ns = now_ns > life->since_ns ? now_ns - life->since_ns : 1;
    if (life->state == MODEL_LOADING)
        life->load_ns = took_ns;
    else
        life->wake_ns = life->wake_level_ns[life->sleep_level] = took_ns;
    life->sleep_level = 0;
    enter(life, MODEL_READY, now_ns);
}

void model_life_failed(struct model_life *life, uint64_t now_ns)
{
    CHECK(life->state == MODEL_LOADING || life->state == MODEL_WAKING);
    enter(life, MODEL_FAILED, now_ns);
}

static void drain(struct model_life *life, uint32_t level, uint64_t now_ns, uint64_t drain_ns)
{
    life->sleep_level = level;
    life->drain_until_ns = drain_ns > UINT64_MAX - now_ns ? UINT64_MAX : now_ns + drain_ns;
    enter(life, MODEL_DRAINING, now_ns);
}

enum model_verdict model_life_sleep(struct model_life *life, uint32_t level, uint64_t now_ns, uint64_t drain_ns)
{
    CHECK(level == MODEL_SLEEP_KV || level == MODEL_SLEEP_ALL);
    if (life->state == MODEL_ASLEEP && life->sleep_level >= level) return MODEL_ALREADY; /* L2 */
    if (life->state == MODEL_DRAINING && life->sleep_level == level) return MODEL_ALREADY;
    if (life->state != MODEL_READY && life->state != MODEL_ASLEEP) return MODEL_CONFLICT;
    drain(life, level, now_ns, drain_ns);
    return MODEL_BEGUN;
}

enum model_verdict model_life_unload(struct model_life *life, uint64_t now_ns, uint64_t drain_ns)
{
    if (life->state == MODEL_DRAINING && life->sleep_level == 0) return MODEL_ALREADY;
    if (life->state != MODEL_READY && life->state != MODEL_ASLEEP && life->state != MODEL_FAILED) return MODEL_CONFLICT;
    drain(life, 0, now_ns, drain_ns);
    return MODEL_BEGUN;
}

enum model_verdict model_life_wake(struct model_life *life, uint64_t now_ns)
{
    if (life->state == MODEL_READY || life->state == MODEL_WAKING) return MODEL_ALREADY;
    if (life->state != MODEL_ASLEEP && life->state != MODEL_FAILED) return MODEL_CONFLICT;
    if (life->state == MODEL_FAILED) life->sleep_level = MODEL_SLEEP_ALL; /* nothing of it is in memory */
    enter(life, MODEL_WAKING, now_ns);
    return MODEL_BEGUN;
}

void model_life_emptied(struct model_life *life, uint64_t now_ns)
{
    CHECK(life->state == MODEL_DRAINING);
    enter(life, life->sleep_level ? MODEL_ASLEEP : MODEL_GONE, now_ns);
}

enum model_answer model_life_answer(const struct model_life *life, bool auto_wake)
{
    switch (life->state) {
    case MODEL_READY: return MODEL_SERVES;
    case MODEL_LOADING: return MODEL_LOADS;
    case MODEL_WAKING:
    case MODEL_ASLEEP: return auto_wake ? MODEL_WAKES : MODEL_SLEEPS;
    case MODEL_FAILED: return MODEL_HAS_FAILED;
    case MODEL_DRAINING:
    case MODEL_GONE:
    case MODEL_STATES: break;
    }
    return MODEL_LEAVES;
}

uint64_t model_life_wake_estimate_ns(const struct model_life *life, uint64_t now_ns)
{
    bool under_way = life->state == MODEL_WAKING || life->state == MODEL_LOADING;
    uint32_t level = life->sleep_level == MODEL_SLEEP_KV ? MODEL_SLEEP_KV : MODEL_SLEEP_ALL;
    uint64_t estimate_ns = life->wake_level_ns[level];
    if (!estimate_ns && level == MODEL_SLEEP_ALL) estimate_ns = life->load_ns;
    uint64_t passed_ns = under_way && now_ns > life->since_ns ? now_ns - life->since_ns : 0;
    return estimate_ns > passed_ns ? estimate_ns - passed_ns : 0;
}

const char *model_state_name(enum model_state state)
{
    static const char *const names[MODEL_STATES] = {"loading", "ready",  "draining", "asleep",
                                                    "waking",  "failed", "gone"};
    return names[state];
}
