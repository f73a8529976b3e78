/* How a thread with nothing to do sleeps until another has something for it, without a lock while both are busy.
 *
 *   sleeper: heard = doorbell_rings(bell); look for work; none: doorbell_sleep(bell, heard, most_ns)
 *   others:  push the work; doorbell_ring(bell)
 *
 * Rings are counted, and the count is read before the look: work that comes after the look ends the sleep before it
 * begins. The mutex and the condition are touched only when the sleeper has said that it sleeps, so that a ring costs
 * an addition and a load while there is work. One thread sleeps; any rings.
 * Rejected: eventfd (a system call a ring), spinning (a core for an idle server). */
#ifndef RUNTIME_BASE_DOORBELL_H
#define RUNTIME_BASE_DOORBELL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct doorbell {
    _Atomic uint32_t rings;
    _Atomic bool sleeping; /* guards nothing: tells who rings to signal */
    pthread_mutex_t mutex; /* for `condition` only */
    pthread_cond_t condition;
};

void doorbell_init(struct doorbell *bell);
void doorbell_free(struct doorbell *bell);

void doorbell_ring(struct doorbell *bell);
uint32_t doorbell_rings(const struct doorbell *bell); /* so far */
/* Until the count differs from `heard`, at most so long by the system's clock. */
void doorbell_sleep(struct doorbell *bell, uint32_t heard, uint64_t most_ns);

#endif
