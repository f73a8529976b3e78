/* What the emitter knows and decides, without files, network or clock: per partition how far the ledger is, what to
 * send next, what an answer means, and what has to be read again. emitter_thread.c does what it says.
 *
 *   records of the journal, in order --core_record--> window (bounded) --core_next--> one call in flight a partition
 *                                                          ^                               |
 *                                          what was passed over is read again   core_answer, core_failed
 *
 *   HELLO --answer: mark h is in the window, or where we were--> READY --answer: the next mark--> READY
 *     ^  \--answer: another h--> SEEK --checkpoint or record h read: hash8 equal--> READY; other: STOPPED (CONFLICT)
 *     |                               --end of the journal before h--> STOPPED (BEHIND)
 *     +-- connection lost, outcome unknown; STOPPED, after a while --+     READY without traffic: a hello every 10 s
 *
 * E1  Every mark that the ledger tells is compared with our own record of that number: its hash8 must be equal. So a
 *     restored or cloned journal is found out, even where all that it sends passes as duplicates.
 * E2  The mark decides. Nothing is taken back, skipped or guessed: a partition whose answer is not understood stops.
 * E3  A record is sent only behind the one before it, by chain; a journal whose chain breaks stops the partition.
 * E4  Memory does not grow: what finds no room in the window, or has nobody to go to, is read again later.
 *
 * One thread. now_ns is monotonic. */
#ifndef SERVER_BILLING_EMITTER_CORE_H
#define SERVER_BILLING_EMITTER_CORE_H

#include "server/billing/ledger.h"

#include <stdbool.h>
#include <stdint.h>

enum { BATCH_RECORDS_MAX = 128 };

/* Why a partition stopped; all but BADARG and BADSTATE say that this ledger and this journal do not belong together. */
#define EMITTER_STOP_MAP(X)                                                                                            \
    X(NONE, "")                                                                                                        \
    X(NOLEDGER, "the Redis holds no ledger (any more): rebuild it, or `millrace bill init`")                           \
    X(WRONGLEDGER, "the Redis holds another ledger than the journal was made for")                                     \
    X(FENCED, "another process has opened this journal (or a copy of it) since")                                       \
    X(CONFLICT, "the ledger has another history of this journal: it was restored or copied; `millrace bill adopt`")    \
    X(BEHIND, "the ledger knows more of this journal than the journal itself: it was restored; `millrace bill adopt`") \
    X(HISTORY, "the ledger lacks records that the journal no longer keeps; `millrace bill replay --archive`")          \
    X(DAMAGE, "the journal's chain is broken; `millrace bill audit`")                                                  \
    X(BADARG, "the ledger refuses a record as malformed")                                                              \
    X(BADSTATE, "the ledger refuses a record because what it has stored is damaged")
enum emitter_stop {
#define X(name, text) STOP_##name,
    EMITTER_STOP_MAP(X)
#undef X
};
const char *emitter_stop_text(enum emitter_stop stop); /* static */

struct emitter_core_hooks {
    void *state;
    void (*granted)(void *state, uint64_t account, uint8_t mclass, uint64_t pseq, uint64_t leased, bool open);
    void (*applied)(void *state, uint16_t partition, uint64_t hwm, const char *hash8);
    void (*stopped)(void *state, uint16_t partition, enum emitter_stop stop); /* STOP_NONE: it goes on */
};

struct emitter_core;

/* window: records held at most. ST_NOMEM. */
NODISCARD enum status core_create(uint32_t window, const struct emitter_core_hooks *hooks, struct emitter_core **core);
void core_destroy(struct emitter_core *core);

/* ---- reading the journal ---- */

/* A record's frame. ST_OK: taken, or not needed; ST_AGAIN: no room: give it again later. */
NODISCARD enum status core_record(struct emitter_core *core, uint64_t lsn, const uint8_t *bytes, uint32_t length,
                                  uint64_t now_ns);
/* All that was durable when this round began has been read. */
void core_end(struct emitter_core *core, uint64_t now_ns);

/* Whether something has to be read that lies behind the reader. Then the checkpoints of all segments, newest first,
 * until core_checkpoint is true or there are no more; then core_sought tells where to read from. A reader that has not
 * come that far yet stays where it is: what it has yet to read, others wait for. 0: nothing to read again. */
bool core_seeks(const struct emitter_core *core);
bool core_checkpoint(struct emitter_core *core, uint64_t segment_lsn, const uint64_t *pseq,
                     const uint8_t (*chain)[CHAIN_BYTES], uint64_t now_ns);
uint64_t core_sought(struct emitter_core *core, uint64_t now_ns);

/* ---- sending ---- */

struct emitter_batch {
    struct encoded_record records[BATCH_RECORDS_MAX]; /* valid until the answer */
    uint32_t count;                                   /* 0: the hello */
    uint8_t previous[CHAIN_BYTES];                    /* chain of the record before the first */
};
bool core_wants(const struct emitter_core *core, uint16_t partition, uint64_t now_ns);
/* The partition's next call, if it may have one now: it is in flight then. */
bool core_next(struct emitter_core *core, uint16_t partition, uint64_t now_ns, struct emitter_batch *batch);
void core_answer(struct emitter_core *core, uint16_t partition, const struct ledger_reply *reply, uint64_t now_ns);
/* The call had no effect: again at retry_ns. */
void core_refused(struct emitter_core *core, uint16_t partition, uint64_t now_ns, uint64_t retry_ns);
/* Its connection is gone, whether a call was in flight or not: the hello comes first, at retry_ns. */
void core_lost(struct emitter_core *core, uint16_t partition, uint64_t now_ns, uint64_t retry_ns);

/* ---- how it stands ---- */

struct emitter_view {
    bool reachable; /* every partition that has not stopped: answered the last time, or has not failed for long */
    bool refuses;   /* this ledger and this journal do not belong together */
    enum emitter_stop stop; /* the first partition's that stopped */
    uint16_t stop_partition;
    uint32_t stopped;                     /* partitions */
    uint64_t unapplied;                   /* records read and not confirmed; at least 1 while a mark is compared */
    uint64_t unapplied_since_ns;          /* when the oldest was read; 0: none */
    uint64_t applied, duplicates, losses; /* counts; losses: core_lost of a partition that was well */
    uint64_t wake_ns;                     /* when core_next may have something again; UINT64_MAX: after an event */
    bool busy;                            /* a call may be sent now */
};
void core_look(const struct emitter_core *core, uint64_t now_ns, struct emitter_view *view);

#endif
