/* struct journal, as its two files see it: journal.c appends and commits, journal_recover.c opens and mends. */
#ifndef SERVER_BILLING_JOURNAL_INTERNAL_H
#define SERVER_BILLING_JOURNAL_INTERNAL_H

#include "server/billing/journal_segment.h"

struct pending {
    uint8_t *bytes; /* frames that are not durable, in order, each at a multiple of FRAME_ALIGN */
    size_t length, capacity;
    size_t written; /* of these, in the present segment's file */
};

struct journal {
    struct journal_config config; /* its texts point to the members below */
    char folder[SEGMENT_FOLDER_MAX + 1], fallback[SEGMENT_FOLDER_MAX + 1], uuid[LEDGER_UUID_CHARS + 1];
    const char *active; /* where new segments are made */
    int lock_fds[2];    /* -1: none */
    struct journal_state live, settled;
    struct pending pending;
    struct byte_writer checkpoint; /* scratch, large enough for every open request */
    struct segment_list segments;  /* the last one is written to */
    uint8_t boot_id[16];
    int fd;            /* of the last segment; -1: none */
    uint64_t position; /* of its next byte */
    uint64_t serial;
    uint64_t producer;
    uint64_t written_lsn; /* last frame handed to the system; settled.lsn is the last one fdatasynced */
    bool unsynced;        /* written to since the last fdatasync */
    bool failed;
    bool energy; /* an ENERGY frame was put since the start: new segments are of the version that may hold it */
    bool keeps;  /* keep_from holds */
    uint64_t keep_from;
    uint64_t synced_ns, checked_ns; /* last fdatasync; last look at free space */
    int32_t free_permille;
    struct journal_stats stats;
};

/* A journal without a segment: folders made and locked, spares counted. Frees nothing on failure: journal_release. */
NODISCARD enum status journal_prepare(const struct journal_config *config, struct journal **journal, struct error *err);
void journal_release(struct journal *journal);
/* The next segment becomes the one written to. It begins with the checkpoint of `settled` and the frames of pending
 * that fit; all of it is durable on ST_OK. */
NODISCARD enum status journal_segment_begin(struct journal *journal, bool given_up);
/* The checkpoint frame of `settled` into the scratch, stamped for a segment. */
void journal_checkpoint_make(struct journal *journal, const struct segment_header *header);
NODISCARD enum status journal_put_recover(struct journal *journal, uint64_t epoch, uint64_t cut_bytes, uint32_t closed);

#endif
