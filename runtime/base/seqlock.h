/* A struct that one thread writes and others read whole, without a lock: the writer never waits, a reader that meets a
 * change reads again. The struct goes in 64-bit words under a sequence number that is odd while they change:
 *
 *   writer: sequence odd; words (release: none is seen before the odd sequence); sequence even (release)
 *   reader: sequence; words (acquire: the second look is not before them); sequence again: the same and even, or again
 *
 * One writer, any readers. Source: Boehm 2012, "Can seqlocks get along with programming language memory models?". */
#ifndef RUNTIME_BASE_SEQLOCK_H
#define RUNTIME_BASE_SEQLOCK_H

#include <stdatomic.h>
#include <stdint.h>

struct seqlock {
    _Atomic uint64_t sequence;
};

/* value: `words` 64-bit words; shared: as many, which the lock guards. */
void seqlock_write(struct seqlock *lock, _Atomic uint64_t *shared, const void *value, uint32_t words);
/* Gives the sequence of what was read: another one tells of another value. */
uint64_t seqlock_read(const struct seqlock *lock, const _Atomic uint64_t *shared, void *value, uint32_t words);
uint64_t seqlock_sequence(const struct seqlock *lock);

#endif
