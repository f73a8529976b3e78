/* Words under a sequence number: see seqlock.h. */
#include "runtime/base/seqlock.h"

#include <string.h>

void seqlock_write(struct seqlock *lock, _Atomic uint64_t *shared, const void *value, uint32_t words)
{
    uint64_t sequence = atomic_load_explicit(&lock->sequence, memory_order_relaxed);
    atomic_store_explicit(&lock->sequence, sequence + 1, memory_order_relaxed);
    for (uint32_t i = 0; i < words; i++) {
        uint64_t word;
        memcpy(&word, (const uint8_t *)value + i * sizeof word, sizeof word);
        atomic_store_explicit(&shared[i], word, memory_order_release);
    }
    atomic_store_explicit(&lock->sequence, sequence + 2, memory_order_release);
}

uint64_t seqlock_read(const struct seqlock *lock, const _Atomic uint64_t *shared, void *value, uint32_t words)
{
    uint64_t before, after;
    do {
        before = atomic_load_explicit(&lock->sequence, memory_order_acquire);
        for (uint32_t i = 0; i < words; i++) {
            uint64_t word = atomic_load_explicit(&shared[i], memory_order_acquire);
            memcpy((uint8_t *)value + i * sizeof word, &word, sizeof word);
        }
        after = atomic_load_explicit(&lock->sequence, memory_order_relaxed);
    } while (before != after || before & 1);
    return before;
}

uint64_t seqlock_sequence(const struct seqlock *lock)
{
    return atomic_load_explicit(&lock->sequence, memory_order_acquire);
}
