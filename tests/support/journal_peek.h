/* What a test wants to know of an open journal and the server does not. */
#ifndef TESTS_SUPPORT_JOURNAL_PEEK_H
#define TESTS_SUPPORT_JOURNAL_PEEK_H

#include "server/billing/journal_internal.h"

#include <string.h>

/* Last record of a partition: pseq (0: none) and chain. */
static inline void journal_partition(const struct journal *journal, uint16_t partition, uint64_t *pseq,
                                     uint8_t chain[CHAIN_BYTES])
{
    *pseq = journal->live.partitions[partition].pseq;
    memcpy(chain, journal->live.partitions[partition].chain, CHAIN_BYTES);
}

#endif
