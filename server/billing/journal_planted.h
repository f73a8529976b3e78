/* Planted bugs of the journal: each takes one guard away, so that tests/billing_sim can show that the crash test finds
 * it. As scheduler/planted.h: a normal build has none, and both sides are always compiled. */
#ifndef SERVER_BILLING_JOURNAL_PLANTED_H
#define SERVER_BILLING_JOURNAL_PLANTED_H

enum journal_planted {
    JOURNAL_PLANTED_NONE,
    JOURNAL_PLANTED_SKIP_FOLDER_SYNC,  /* a new segment's name is not synced */
    JOURNAL_PLANTED_SKIP_HEADER_SYNC,  /* a segment gets its name before its header is synced */
    JOURNAL_PLANTED_SKIP_COMMIT_SYNC,  /* a commit's fdatasync is left out */
    JOURNAL_PLANTED_APPEND_AT_END,     /* a start appends behind the torn bytes, not at the validated end */
    JOURNAL_PLANTED_KEEP_TAIL,         /* a start does not zero the torn bytes */
    JOURNAL_PLANTED_RETRY_SYNC,        /* a failed fdatasync is tried again on the same file */
    JOURNAL_PLANTED_FORGET_ON_FAILURE, /* frames are dropped when written, not when durable */
    JOURNAL_PLANTED_TRUST_CACHE,       /* a start does not write again what no one claims as synced */
    JOURNAL_PLANTED_LEAVE_OPEN,        /* a start does not close what it finds open */
    JOURNAL_PLANTED_LOSE_OPENS,        /* a checkpoint leaves the open requests out */
    JOURNAL_PLANTED_STALE_CHECKPOINT,  /* a checkpoint is written from what is appended, not from what is durable */
    JOURNAL_PLANTED_NO_CRC,            /* frames are believed without their checksum */
    JOURNAL_PLANTED_RECOVER_UNSYNCED,  /* what a start wrote is not synced */
    JOURNAL_PLANTED_TRUST_NAMES,       /* a start does not sync the folders that it reads */
    JOURNAL_PLANTED_DIRTY_SPARES,      /* spares are used though a segment was begun in them */
    JOURNAL_PLANTED_COUNT
};

#ifdef MILLRACE_JOURNAL_PLANTED
extern enum journal_planted journal_planted_bug;
#define JOURNAL_PLANTED(bug) (journal_planted_bug == JOURNAL_PLANTED_##bug)
#else
#define JOURNAL_PLANTED(bug) (JOURNAL_PLANTED_##bug == JOURNAL_PLANTED_NONE)
#endif

#endif
