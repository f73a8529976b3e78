/* The emitter: carries a node's durable records to the ledger in Redis, at least once; the high-water marks make it
 * exactly once.
 *
 *   meter --durable LSN--> [ journal's files -> emitter_core.h -> FCALL mr_apply, pipelined over partitions ]
 *                             --hooks--> grants, marks, the ledger's state
 *
 * Its own thread and its own connection. It reads the journal's files, so a Redis that is down costs no memory and no
 * record, and running streams never notice. A call may hold 128 records, one call a partition is in flight, a reply is
 * waited for 2 s at most; then the connection is closed and every partition begins with a hello.
 *
 * A failure is told once, by ledger_state and in the log; it is retried for ever. */
#ifndef SERVER_BILLING_EMITTER_H
#define SERVER_BILLING_EMITTER_H

#include "server/billing/billing_stats.h"
#include "server/billing/disk.h"
#include "server/billing/emitter_core.h"
#include "server/billing/redis_link.h"

/* All on the emitter's thread; any may be NULL but granted, ledger_state and applied. */
struct emitter_hooks {
    void *state;
    /* The answer to the grant of that pseq: all that this node leases on the account for the class now. */
    void (*granted)(void *state, uint64_t account, uint8_t mclass, uint64_t pseq, uint64_t leased, bool open);
    /* At each change, and for each lost connection once false and later true again: grants whose answers it took are
     * to be asked for anew. refuses: the ledger and the journal do not belong together. reason: valid in the call. */
    void (*ledger_state)(void *state, bool reachable, bool refuses, const char *reason);
    /* The ledger has this record, on replicas_min replicas too: the mark for an ACK frame. */
    void (*applied)(void *state, uint16_t partition, uint64_t hwm, const char *hash8);
    /* A partition stopped, or goes on (STOP_NONE). */
    void (*stopped)(void *state, uint16_t partition, enum emitter_stop stop);
    /* The directory changed: every line, then the version they are of. At the start too. */
    void (*directory_line)(void *state, const char *line, size_t length);
    void (*directory)(void *state, uint64_t version);
};

struct emitter_config {
    const struct redis_target *target; /* borrowed */
    const struct disk *disk;
    const char *folder, *fallback; /* the journal's */
    const char *uuid;              /* of the ledger */
    uint64_t producer, epoch;
    uint64_t
        durable_lsn; /* as emitter_durable, for the start: the journal's own, so that it is known how much it has */
    uint32_t window; /* records in memory; 0: 2048 (1.7 MB) */
    uint32_t replicas_min;      /* WAIT for so many before `applied`; 0: none */
    uint64_t directory_poll_ns; /* 0: a second */
    uint64_t directory_version; /* what the caller has read already; the hook is called for another one */
    const struct clock *clock;
    struct emitter_hooks hooks;
    struct billing_stats *stats; /* borrowed; NULL: none */
};

struct emitter;

/* Starts the thread; strings are copied. ST_NOMEM. That Redis answers is not waited for. */
NODISCARD enum status emitter_create(const struct emitter_config *config, struct emitter **emitter);
/* Records up to this LSN may be sent. Any thread; only a flag and a wake. */
void emitter_durable(struct emitter *emitter, uint64_t lsn);
/* How it stood after its last round. Any thread. */
void emitter_look(struct emitter *emitter, struct emitter_view *view);
/* Goes on until all that is durable has been confirmed, or flush_ns have passed; then ends the thread and frees it.
 * Returns how many records stay for the next start. No hook is called after it. */
uint64_t emitter_stop(struct emitter *emitter, uint64_t flush_ns);

#endif
