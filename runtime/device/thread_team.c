/* The thread team: two counters to wait on; see thread_team.h, T1-T3. */
#include "runtime/device/thread_team.h"

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/base/pause.h"
#include "runtime/base/thread.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/syscall.h>
#include <unistd.h>

/* A counter that threads wait for to change. A line each: waiters must not slow down those who still count. */
struct signal_word {
    _Alignas(64) _Atomic uint32_t value;
    _Alignas(64) _Atomic uint32_t sleepers;
};

struct team_worker {
    _Alignas(64) struct thread_team *team;
    pthread_t thread;
    uint32_t idx;
    _Atomic int cpu; /* where the thread was when it last came to a barrier or began a job */
};

struct thread_team {
    struct signal_word jobs, meetings; /* how many jobs were published, how many barriers were completed */
    _Alignas(64) _Atomic uint32_t arrived;
    _Alignas(64) uint32_t threads;
    uint32_t spins;   /* about 50 us of pauses */
    uint32_t started; /* workers whose thread runs */
    bool closing;
    team_fn function;
    void *state;
    struct team_worker workers[];
};

static void note_cpu(struct thread_team *team, uint32_t idx)
{
    int cpu = sched_getcpu();
    if (atomic_load_explicit(&team->workers[idx].cpu, memory_order_relaxed) == cpu) return;
    atomic_store_explicit(&team->workers[idx].cpu, cpu, memory_order_relaxed);
}

/* Whether another thread of the team was last seen on this thread's processor: it cannot come while this one spins. */
static bool shares_cpu(const struct thread_team *team, uint32_t idx)
{
    int cpu = sched_getcpu();
    for (uint32_t i = 0; i < team->threads; i++) {
        if (i != idx && atomic_load_explicit(&team->workers[i].cpu, memory_order_relaxed) == cpu) return true;
    }
    return false;
}

/* Thread idx waits until the word is no longer `old`. */
static void word_wait(struct thread_team *team, uint32_t idx, struct signal_word *word, uint32_t old)
{
    for (uint32_t i = 0; i < team->spins; i++) {
        if (atomic_load_explicit(&word->value, memory_order_acquire) != old) return;
        if (i == team->spins / 32 && shares_cpu(team, idx)) break;
        pause_cpu();
    }
    atomic_fetch_add(&word->sleepers, 1); /* before the value is read again: see word_advance */
    while (atomic_load(&word->value) == old) {
        syscall(SYS_futex, &word->value, FUTEX_WAIT_PRIVATE, old, NULL, NULL, 0);
    }
    atomic_fetch_sub(&word->sleepers, 1);
}

static void word_advance(struct signal_word *word)
{
    atomic_fetch_add(&word->value, 1);
    if (atomic_load(&word->sleepers)) syscall(SYS_futex, &word->value, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

void team_barrier(struct thread_team *team, uint32_t thread_idx)
{
    if (team->threads == 1) return;
    note_cpu(team, thread_idx);
    uint32_t meeting = atomic_load_explicit(&team->meetings.value, memory_order_relaxed);
    if (atomic_fetch_add(&team->arrived, 1) + 1 == team->threads) {
        atomic_store_explicit(&team->arrived, 0, memory_order_relaxed);
        word_advance(&team->meetings);
    } else {
        word_wait(team, thread_idx, &team->meetings, meeting);
    }
}

static void *worker_main(void *argument)
{
    struct team_worker *worker = argument;
    struct thread_team *team = worker->team;
    for (uint32_t job = 0;; job++) {
        word_wait(team, worker->idx, &team->jobs, job);
        if (team->closing) return NULL;
        note_cpu(team, worker->idx);
        team->function(team->state, worker->idx);
        team_barrier(team, worker->idx);
    }
}

void team_run(struct thread_team *team, team_fn function, void *state)
{
    team->function = function;
    team->state = state;
    if (team->threads > 1) word_advance(&team->jobs);
    note_cpu(team, 0);
    function(state, 0);
    team_barrier(team, 0);
}

/* How many pauses take 50 us; none with more threads than processors. */
static uint32_t spins_of(uint32_t threads)
{
    enum { PAUSES = 2000, SPIN_NS = 50000 };
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0 && threads > (uint32_t)CPU_COUNT(&allowed)) return 0;
    uint64_t fastest_ns = UINT64_MAX;
    for (int round = 0; round < 5; round++) {
        uint64_t begin_ns = clock_now_ns(clock_system());
        for (int i = 0; i < PAUSES; i++) pause_cpu();
        uint64_t took_ns = clock_now_ns(clock_system()) - begin_ns;
        if (took_ns < fastest_ns) fastest_ns = took_ns;
    }
    uint64_t spins = (uint64_t)SPIN_NS * PAUSES / (fastest_ns ? fastest_ns : 1);
    return spins > 100000 ? 100000 : (uint32_t)spins;
}

enum status team_create(uint32_t threads, struct thread_team **team)
{
    if (threads == 0 || threads > TEAM_THREADS_MAX) return ST_INVAL;
    struct thread_team *t = mem_alloc(1, sizeof *t + threads * sizeof t->workers[0]);
    if (!t) return ST_NOMEM;
    t->threads = threads;
    for (uint32_t i = 0; i < threads; i++) atomic_init(&t->workers[i].cpu, -1);
    t->spins = spins_of(threads);
    for (uint32_t i = 1; i < threads; i++) {
        t->workers[i] = (struct team_worker){.team = t, .idx = i};
        if (thread_start(&t->workers[i].thread, worker_main, &t->workers[i]) != ST_OK) break;
        t->started++;
    }
    if (t->started + 1 < threads) {
        team_destroy(t);
        return ST_LIMIT;
    }
    *team = t;
    return ST_OK;
}

void team_destroy(struct thread_team *team)
{
    if (!team) return;
    team->closing = true;
    word_advance(&team->jobs);
    for (uint32_t i = 1; i <= team->started; i++) pthread_join(team->workers[i].thread, NULL);
    mem_free(team);
}

uint32_t team_threads(const struct thread_team *team)
{
    return team->threads;
}
