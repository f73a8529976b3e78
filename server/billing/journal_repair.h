/* What the operator does to a journal at rest when journal_open refuses it: `millrace bill repair` and `adopt`. Both
 * take the folder's lock (ST_AGAIN: a process has it) and leave a journal that journal_open takes, or leave it as it
 * was. Any thread, one call a folder at a time. */
#ifndef SERVER_BILLING_JOURNAL_REPAIR_H
#define SERVER_BILLING_JOURNAL_REPAIR_H

#include "server/billing/journal.h"

struct repair_report {
    char segment[512];   /* the last one */
    char saved[512];     /* where the bytes that were cut stand now; empty: nothing was cut */
    uint64_t cut_offset; /* in the segment */
    uint64_t cut_bytes;
    uint64_t last_lsn;    /* of the last frame that was kept */
    uint32_t frames_lost; /* whole frames among the cut bytes: what the damage stood before */
};

/* Cuts the last segment at its first damaged byte: the bytes from there on are written to "<segment>.cut-<n>" beside
 * it, fsynced, and then zeroed in the segment. Records lost that way show as a gap against the ledger's mark (`adopt`
 * is next then). ST_INVAL: the damage is not in the last segment, or its header is damaged (nothing was changed; that
 * segment must come from an archive); ST_NOTFOUND: no journal; ST_IO, ST_NOMEM. */
NODISCARD enum status journal_repair(const struct journal_config *config, struct repair_report *report,
                                     struct error *err);

/* Gives the journal a new producer id, and config->uuid as its ledger, from a new segment on: for a journal that was
 * restored from a backup or cloned, and for one that moves to another ledger. Requests that stand open are closed first
 * under the old id. The new producer's records start at pseq 1 with an empty chain; what the old one wrote stays
 * readable and is not sent again. Errors as journal_open's. */
NODISCARD enum status journal_adopt(const struct journal_config *config, uint64_t *producer, struct error *err);

#endif
