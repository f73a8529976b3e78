/* The journal: a node's file of billing facts, the source of truth. A folder of segments; one writer.
 *
 *   journal_put_*  (memory)  ->  journal_commit: write, one fdatasync for all of them  ->  durable LSN
 *
 * J1  One writer thread, one process a folder (flock on "lock").
 * J2  One OPEN and exactly one FINAL for each charge, also over a crash: journal_open writes the FINALs that are
 * missing. J3  In mode `step` nothing of a token leaves the process before its STEP is durable. J4  In every mode the
 * usage of a request leaves, and a ledger sees it, only when its FINAL is durable. J5  Without a working journal no new
 * request (journal_accepts). J6  No prompt or output text is stored; files have mode 0640.
 *
 * Appending never blocks and touches memory only; frames stay in memory until they are durable, because a failed fsync
 * is never repeated on its file (its pages may count as clean: PostgreSQL wiki "Fsync Errors"; Rebello et al., USENIX
 * ATC 2020): they go with their LSNs to a new segment, in `fallback` if there is one. A second failure is the end:
 * ST_IO, and journal_accepts is false for good.
 *
 * Format: frame.h; how a start recovers: journal_recover.c. All calls on the writer's thread unless they say otherwise.
 */
#ifndef SERVER_BILLING_JOURNAL_H
#define SERVER_BILLING_JOURNAL_H

#include "runtime/base/clock.h"
#include "runtime/base/status.h"
#include "server/billing/disk.h"
#include "server/billing/ledger.h"
#include "server/billing/record.h"

#include <stdbool.h>
#include <stdint.h>

enum commit_mode {
    COMMIT_STEP,  /* fdatasync in each commit */
    COMMIT_GROUP, /* write in each commit, fdatasync every group_ms: a power loss may take that much of sent tokens */
    COMMIT_WRITE  /* fdatasync every 4 MiB and at a segment's end: durable means written; a power loss takes what the
                     system held */
};

struct journal_config {
    const struct disk *disk;
    const struct clock *clock;
    const char *folder;
    const char *fallback; /* second folder for when the first fails, or NULL */
    const char *uuid;     /* of the ledger that its records belong to */
    enum commit_mode mode;
    uint32_t group_ms;          /* COMMIT_GROUP: 1..1000 */
    uint64_t segment_bytes;     /* 64 MiB; tests take less; at least 64 KiB */
    uint32_t free_permille_min; /* below it admission closes: 100 */
    int32_t utc_offset_s;       /* of billing months */
};

/* What journal_open found and did. */
struct journal_report {
    bool created;
    uint64_t producer, epoch;
    uint32_t segments, closed; /* closed: requests that the crash left open */
    uint64_t cut_bytes, read_bytes;
    uint64_t records;
};

struct journal;

/* Opens or makes the folder: lock, scan, recovery, epoch + 1, all durable when it returns. ST_AGAIN: another process
 * has it; ST_INVAL: damage that is no torn tail (err: file, offset, and that `millrace bill repair` is next), or
 * another ledger's uuid; ST_PROTO: written by a newer version of this program; ST_IO, ST_NOMEM, ST_LIMIT (no room for
 * segments). A crash at any point of it is harmless. */
NODISCARD enum status journal_open(const struct journal_config *config, struct journal **journal,
                                   struct journal_report *report, struct error *err);
/* Commits what is there and closes. Never fails: what could not be written is what recovery is for. */
void journal_close(struct journal *journal);

/* What a request's OPEN holds beside its charge. */
struct open_counts {
    uint32_t in_total, in_hit, choices;
    int64_t opened_us;  /* wall */
    uint64_t opened_ns; /* monotonic */
};

/* The least segment_bytes with which so many requests may be open at once (their checkpoint takes half a segment). */
uint64_t journal_segment_least(uint32_t opens);

/* Appends. ST_NOMEM: nothing was appended; put_open also ST_LIMIT: a segment's half is what a checkpoint of all open
 * requests may take (50,000 of them in 64 MiB). A handle is valid until its final. A charge (charge_id, part) is opened
 * once (J2): a second time while it is open is our mistake, and so is a handle that is not open. */
NODISCARD enum status journal_put_open(struct journal *journal, const struct charge *charge,
                                       const struct open_counts *counts, uint32_t *handle);
struct step_count {
    uint32_t handle;
    uint32_t ids; /* accepted in this step, all choices */
};
NODISCARD enum status journal_put_step(struct journal *journal, const struct step_count *counts, uint32_t count);
/* The final of an open request: record->charge is taken from its OPEN; partition, pseq, month, boot and chain are
 * filled in, and so are account, mclass and t_ms. record->kind, cause, flags, counts, times, units and h_ids are the
 * caller's. Adds RECORD_CLOCK when ended_us - opened_us and duration_us differ by more than a second: from the record's
 * own numbers, so that a reader can check it. */
NODISCARD enum status journal_put_final(struct journal *journal, uint32_t handle, struct record *record);
/* A grant or release: kind, account, mclass, want, least, valid_ms are the caller's, the rest is filled in. */
NODISCARD enum status journal_put_record(struct journal *journal, struct record *record);
/* What a charge used in a price slot: charge (charge_id, part, account, key, tenant, model, mclass) and energy are the
 * caller's, the rest is filled in; the month is the slot's. The first one ends the segment if that is of the version
 * without energy. Once for a charge, part and slot: whoever calls keeps account of that, as nothing is asked here. */
NODISCARD enum status journal_put_energy(struct journal *journal, struct record *record);
/* Changes of packages and accounts, for a ledger in the process. account_open: by order->id and order->account alone.
 */
NODISCARD enum status journal_put_order(struct journal *journal, const struct order *order);
NODISCARD enum status journal_put_account(struct journal *journal, uint64_t account, const char *order_id, bool open);
/* A ledger has confirmed this high-water mark: lets segments go, and shortens the next start. Only a hint. */
NODISCARD enum status journal_put_ack(struct journal *journal, uint16_t partition, uint64_t hwm,
                                      const char hash8[HASH8_CHARS + 1]);

/* Makes everything appended durable as the mode says. ST_IO: the journal has failed for good (one failed file is
 * survived: journal_stats.failovers, what follows stands in a new segment). */
NODISCARD enum status journal_commit(struct journal *journal);
/* journal_commit whose fdatasync is now, whatever the mode: for orders, and at the end. */
NODISCARD enum status journal_sync(struct journal *journal);
/* COMMIT_GROUP: the fdatasync when it is due; every mode: looks after free space. Every few ms, and after a commit. */
NODISCARD enum status journal_tick(struct journal *journal);

bool journal_accepts(const struct journal *journal, const char **why_not); /* J5; why_not: static text */
uint64_t journal_lsn(const struct journal *journal);                       /* of the last frame appended; 0: none */
uint64_t journal_durable_lsn(const struct journal *journal);               /* up to here a ledger may see */
uint64_t journal_segment_lsn(const struct journal *journal); /* base of the segment written to: changes at rotation */
uint64_t journal_producer(const struct journal *journal);
uint64_t journal_epoch(const struct journal *journal);
const char *journal_uuid(const struct journal *journal);

struct journal_stats { /* bytes: written to segments, checkpoints too */
    uint64_t commits, syncs, frames, bytes, sync_ns_total, sync_ns_max, failovers;
    uint32_t open_requests, spares;
};
void journal_stats_read(const struct journal *journal, struct journal_stats *stats);

/* Spare segments are zero-filled beforehand, so that fdatasync writes no metadata; making one takes its time, so any
 * other thread may do it while the writer goes on: wanted (writer) -> make (any thread, touches no struct journal) ->
 * add (writer). A journal without them makes its own, on the writer's thread. */
bool journal_spare_wanted(const struct journal *journal);
NODISCARD enum status journal_spare_make(const struct journal_config *config, struct error *err);
void journal_spare_add(struct journal *journal);

/* Removes segments that end before now_ms - keep_ms and whose records all partitions' confirmed marks (journal_put_ack)
 * cover. Returns how many. */
uint32_t journal_retire(struct journal *journal, int64_t now_ms, uint64_t keep_ms);
/* From now on segments with a frame of this LSN or a later one stay: for a ledger in the process, which needs orders as
 * well as records, and confirms records alone. */
void journal_keep_from(struct journal *journal, uint64_t lsn);

#endif
