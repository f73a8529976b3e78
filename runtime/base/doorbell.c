/* Sleeping on a count: see doorbell.h. */
#include "runtime/base/doorbell.h"

#include "runtime/base/clock.h"
#include "runtime/base/cond.h"

void doorbell_init(struct doorbell *bell)
{
    (void)cond_init(&bell->condition);
    pthread_mutex_init(&bell->mutex, NULL);
    atomic_init(&bell->rings, 0);
    atomic_init(&bell->sleeping, false);
}

void doorbell_free(struct doorbell *bell)
{
    pthread_cond_destroy(&bell->condition);
    pthread_mutex_destroy(&bell->mutex);
}

void doorbell_ring(struct doorbell *bell)
{
    atomic_fetch_add(&bell->rings, 1);
    if (!atomic_load(&bell->sleeping)) return;
    pthread_mutex_lock(&bell->mutex);
    pthread_cond_signal(&bell->condition);
    pthread_mutex_unlock(&bell->mutex);
}

uint32_t doorbell_rings(const struct doorbell *bell)
{
    return atomic_load(&bell->rings);
}

void doorbell_sleep(struct doorbell *bell, uint32_t heard, uint64_t most_ns)
{
    uint64_t until_ns = clock_now_ns(clock_system()) + most_ns;
    pthread_mutex_lock(&bell->mutex);
    atomic_store(&bell->sleeping, true); /* before the count is read: who rings after that sees it */
    while (atomic_load(&bell->rings) == heard)
        if (!cond_wait_until(&bell->condition, &bell->mutex, until_ns)) break;
    atomic_store(&bell->sleeping, false);
    pthread_mutex_unlock(&bell->mutex);
}
