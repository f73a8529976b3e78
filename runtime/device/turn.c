/* One word says who holds the turn and who waits; see turn.h. Credits belong to the holder: the word's change hands
 * them over with the turn. */
#include "runtime/device/turn.h"

#include "runtime/base/check.h"
#include "runtime/base/mem.h"

#include <linux/futex.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

_Static_assert(TURN_MEMBERS_MAX <= 32, "waiting members are bits of 32");

struct member {
    _Alignas(64) _Atomic uint32_t granted; /* 1: the turn was handed to this one, who has not seen it yet */
    int64_t credit_ns;                     /* the holder's to change, of all members */
};

struct turn {
    _Alignas(64) _Atomic uint64_t state; /* low half: holder + 1, 0 free; high half: a bit for each who waits */
    _Atomic uint32_t joined;             /* bits */
    struct member members[TURN_MEMBERS_MAX];
};

static uint32_t holder_of(uint64_t state)
{
    return (uint32_t)state;
}
static uint32_t waiting_of(uint64_t state)
{
    return (uint32_t)(state >> 32);
}
static uint64_t state_of(uint32_t holder, uint32_t waiting)
{
    return (uint64_t)waiting << 32 | holder;
}

enum status turn_create(struct turn **turn)
{
    struct turn *made = mem_alloc(1, sizeof *made);
    if (!made) return ST_NOMEM;
    *turn = made;
    return ST_OK;
}

void turn_destroy(struct turn *turn)
{
    if (turn) CHECK(atomic_load(&turn->joined) == 0 && atomic_load(&turn->state) == 0);
    mem_free(turn);
}

enum status turn_join(struct turn *turn, uint32_t *member)
{
    for (uint32_t i = 0; i < TURN_MEMBERS_MAX; i++) {
        if (atomic_fetch_or(&turn->joined, UINT32_C(1) << i) >> i & 1) continue;
        *member = i; /* what its place owes from before is at most one long step */
        return ST_OK;
    }
    return ST_LIMIT;
}

void turn_leave(struct turn *turn, uint32_t member)
{
    uint64_t state = atomic_load(&turn->state);
    CHECK(holder_of(state) != member + 1 && !(waiting_of(state) >> member & 1));
    CHECK(atomic_fetch_and(&turn->joined, ~(UINT32_C(1) << member)) >> member & 1);
}

void turn_take(struct turn *turn, uint32_t member)
{
    struct member *own = &turn->members[member];
    uint64_t state = atomic_load(&turn->state), next;
    do {
        CHECK(holder_of(state) != member + 1);
        next = holder_of(state) ? state_of(holder_of(state), waiting_of(state) | UINT32_C(1) << member)
                                : state_of(member + 1, waiting_of(state));
    } while (!atomic_compare_exchange_weak(&turn->state, &state, next));
    if (holder_of(next) == member + 1) return;
    while (atomic_exchange(&own->granted, 0) == 0)
        syscall(SYS_futex, &own->granted, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
}

/* The next of those who wait, from the holder on, that has credit; a round pays every one of them. With `stays` the
 * holder is the last of the round. */
static uint32_t next_of(struct turn *turn, uint32_t holder, uint32_t waiting, bool stays)
{
    if (stays) waiting |= UINT32_C(1) << holder;
    CHECK(waiting != 0);
    for (uint32_t i = 1;; i++) {
        uint32_t idx = (holder + i) % TURN_MEMBERS_MAX;
        if (!(waiting >> idx & 1)) continue;
        turn->members[idx].credit_ns += (int64_t)TURN_SLICE_NS;
        if (turn->members[idx].credit_ns > 0) return idx;
    }
}

static void hand_on(struct turn *turn, uint32_t to)
{
    uint64_t state = atomic_load(&turn->state), next;
    do next = state_of(to + 1, waiting_of(state) & ~(UINT32_C(1) << to));
    while (!atomic_compare_exchange_weak(&turn->state, &state, next));
    atomic_store(&turn->members[to].granted, 1);
    syscall(SYS_futex, &turn->members[to].granted, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

bool turn_charge(struct turn *turn, uint32_t member, uint64_t used_ns)
{
    struct member *own = &turn->members[member];
    uint64_t state = atomic_load(&turn->state);
    CHECK(holder_of(state) == member + 1);
    uint32_t waiting = waiting_of(state);
    if (!waiting) { /* alone: neither credit nor debt */
        own->credit_ns = (int64_t)TURN_SLICE_NS;
        return false;
    }
    own->credit_ns -= (int64_t)used_ns;
    return own->credit_ns <= 0;
}

bool turn_pass(struct turn *turn, uint32_t member)
{
    uint64_t state = atomic_load(&turn->state);
    CHECK(holder_of(state) == member + 1);
    uint32_t to = next_of(turn, member, waiting_of(state), true);
    if (to == member) return true;
    hand_on(turn, to);
    return false;
}

bool turn_keep(struct turn *turn, uint32_t member, uint64_t used_ns)
{
    return !turn_charge(turn, member, used_ns) || turn_pass(turn, member);
}

void turn_give(struct turn *turn, uint32_t member)
{
    uint64_t state = atomic_load(&turn->state);
    CHECK(holder_of(state) == member + 1);
    struct member *own = &turn->members[member];
    if (own->credit_ns > 0) own->credit_ns = 0; /* who has no work saves nothing up */
    while (!waiting_of(state))
        if (atomic_compare_exchange_weak(&turn->state, &state, 0)) return;
    hand_on(turn, next_of(turn, member, waiting_of(state), false));
}
