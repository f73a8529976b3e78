/* A team of threads that run one function together and meet at barriers: what a step of the CPU device runs on.
 *
 *   caller = thread 0   team_run: publish job, wake sleepers -> function(state, 0) -> last barrier -> return
 *   workers 1..n-1      wait for a job -> function(state, i) -> last barrier -> wait ...
 *
 * T1. Waiting spins with `pause` for about 50 us and then sleeps in a futex; who ends a wait makes the system call only
 *     when somebody sleeps. So a step in flow makes none, and an idle or crowded machine is left alone. With more
 *     threads than processors waiting never spins, and hardly with two threads that the kernel put on one processor.
 *     (Spinning alone, 8 threads on 4 cores: 80 times slower, llama.cpp PR 13079; never spinning: -40 %, 26200.)
 * T2. What a thread wrote before a barrier is seen by all after it.
 * T3. Nothing is allocated and no lock is taken after team_create. One caller at a time; the function must pass the
 * same barriers on every thread. */
#ifndef RUNTIME_DEVICE_THREAD_TEAM_H
#define RUNTIME_DEVICE_THREAD_TEAM_H

#include "runtime/base/status.h"

#include <stdint.h>

struct thread_team;
typedef void (*team_fn)(void *state, uint32_t thread_idx);

enum { TEAM_THREADS_MAX = 256 };

/* threads >= 1 with the caller's. ST_INVAL: 0 or more than TEAM_THREADS_MAX; ST_NOMEM; ST_LIMIT: the system gives no
 * more threads. */
NODISCARD enum status team_create(uint32_t threads, struct thread_team **team);
void team_destroy(struct thread_team *team); /* joins the workers; NULL is fine */

/* Runs function(state, 0 .. threads-1), the caller as thread 0; returns when all have. */
void team_run(struct thread_team *team, team_fn function, void *state);
/* Thread thread_idx waits until all threads of the team are here. Only within team_run's function. */
void team_barrier(struct thread_team *team, uint32_t thread_idx);
uint32_t team_threads(const struct thread_team *team);

#endif
