/* The ledger in the process, made durable by the journal: it follows the journal's frames, and now and then its whole
 * state goes into a snapshot, so that a start need not read everything.
 *
 *   journal_commit -> durable LSN -> ledger_store_follow: journal_reader -> ledger_apply, ledger_order, ...
 *   start          =  newest valid snapshot + the frames after it, by the very same call
 *
 * S1  The ledger changes by frames alone, and by nothing but their bytes: its clock is in them too (a grant's lease
 * runs from the record's t_ms; an order is judged at its created_ms, which the one who takes it sets; a reaping is an
 *     ORDER frame, PACKAGE_REAP). So any replay, from any snapshot, makes the same state, byte for byte.
 * S2  A snapshot says up to which LSN it has seen, which is always the end of a segment: so it is never ahead of what a
 *     power loss leaves of the journal. "ledger.snap" and "ledger.snap.old" in the journal's folder, each written to a
 *     temporary file, synced and renamed. A damaged one is passed over for the older one.
 * S3  What both snapshots hold is confirmed to the journal (journal_put_ack, journal_keep_from), which may then let its
 *     segments go. Who opens a store beside a journal that retires says so at once:
 *     journal_keep_from(journal, ledger_store_kept_lsn(store) + 1)
 * S4  A snapshot beyond the journal's end, or before its first segment, is refused: a restored or cloned folder.
 *
 * One thread at a time, but for ledger_snapshot_write. */
#ifndef SERVER_BILLING_LEDGER_STORE_H
#define SERVER_BILLING_LEDGER_STORE_H

#include "server/billing/journal.h"
#include "server/billing/ledger_client.h"

struct ledger_store_config {
    const struct disk *disk;
    const char *folder, *fallback; /* of the journal, as in journal_config; borrowed */
    const char *uuid;              /* of the ledger: the journal's. Borrowed */
};

struct ledger_store_report {
    uint64_t snapshot_lsn, lsn; /* 0: there was no snapshot; where the ledger stands now */
    uint64_t frames;            /* read after the snapshot */
    bool snapshot_damaged;      /* the newer one was passed over */
};

/* What frames did, told as they are applied. Members may be NULL. */
struct ledger_store_events {
    void *state;
    /* A grant's answer (lease_answered). */
    void (*grant)(void *state, uint64_t account, uint8_t mclass, uint64_t pseq, uint64_t leased, bool open);
    /* The answer to the ORDER or ACCOUNT frame at this LSN; leases, packages: of PACKAGE_REAP. */
    void (*order)(void *state, uint64_t lsn, enum ledger_answer answer, uint32_t leases, uint32_t packages);
    ledger_log_fn log; /* each record and who paid; its state is `state` */
};

struct ledger_store;

/* Snapshot and frames up to until_lsn (journal_durable_lsn of an open journal, which has recovered; UINT64_MAX: all of
 * a journal at rest). ST_INVAL: both snapshots are damaged, S4, or as ledger_store_follow; ST_IO, ST_NOMEM. */
NODISCARD enum status ledger_store_open(const struct ledger_store_config *config, uint64_t until_lsn,
                                        struct ledger_store **store, struct ledger_store_report *report,
                                        struct error *err);
void ledger_store_close(struct ledger_store *store);

/* Applies what the journal holds up to until_lsn: after each commit, with journal_durable_lsn. ST_INVAL: damage, or a
 * record that the ledger refuses (err: LSN and answer); nothing after it is applied, and the same call fails again.
 * ST_NOMEM: call again. */
NODISCARD enum status ledger_store_follow(struct ledger_store *store, uint64_t until_lsn,
                                          const struct ledger_store_events *events, struct error *err);

const struct ledger *ledger_store_ledger(const struct ledger_store *store);
uint64_t ledger_store_kept_lsn(const struct ledger_store *store); /* what both snapshots hold; 0: nothing yet */

/* Snapshots. The state is copied when the ledger passes the end of a segment (milliseconds for 10,000 accounts), and
 * waits to be written. take hands it over, write needs no store and may run on any thread, done tells the journal what
 * it may forget (the caller commits; journal may be NULL). */
struct ledger_snapshot {
    struct buf bytes;
    uint64_t lsn;
    bool keep_old; /* what is there as the newer one is damaged, and must not replace the older one */
};
bool ledger_store_snapshot_wanted(const struct ledger_store *store, uint64_t segment_lsn);
/* False: there is none. */
bool ledger_store_snapshot_take(struct ledger_store *store, struct ledger_snapshot *snapshot);
NODISCARD enum status ledger_snapshot_write(const struct disk *disk, const char *folder,
                                            const struct ledger_snapshot *snapshot, struct error *err);
/* written: whether ledger_snapshot_write succeeded. Frees the bytes. */
NODISCARD enum status ledger_store_snapshot_done(struct ledger_store *store, struct ledger_snapshot *snapshot,
                                                 bool written, struct journal *journal);
/* The three in one; nothing when none waits. */
NODISCARD enum status ledger_store_snapshot(struct ledger_store *store, struct journal *journal, struct error *err);

/* A client (ledger_client.h) of a journal folder that nobody serves: journal_open (lock and recovery),
 * ledger_store_open; an order goes into the journal, is committed, and then applied. close writes a snapshot if frames
 * were added. Errors as of these two; ST_AGAIN: a server has the folder, use its admin port. clock and the journal's
 * options are config's; config->uuid NULL: that of the folder (ST_NOTFOUND: it has none). */
NODISCARD enum status ledger_store_client_open(const struct journal_config *config, struct ledger_client *client,
                                               struct error *err);

#endif
