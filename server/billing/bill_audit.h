/* The audit of journals: what every frame, record and sum must be, and what a ledger must say of them.
 *
 *   bill_audit_scan.c    one folder, frame by frame        bill_audit_books.c   sums, marks and balances of a ledger
 *   bill_audit.c         the command and its report
 *
 * What it proves, without a ledger: bytes are those that were written (headers, frames, padding; CRC), LSNs and serials
 * have no gap, each record follows its predecessor (pseq, chain), each checkpoint says what the frames before it say,
 * each charge has one OPEN and one FINAL that agree, units are the weights' and months those of the end; energy of a
 * charge stands once for a price slot, and only of charges that are there (a charge without is none: a crash came
 * before its windows closed, or there was no meter). What it cannot
 * see alone: whole segments missing at either end, and a last segment cut off at a frame's end and filled with zeros. A
 * ledger's marks show those: they lie behind the journal's end then. One thread. */
#ifndef SERVER_BILLING_BILL_AUDIT_H
#define SERVER_BILLING_BILL_AUDIT_H

#include "server/billing/bill_map.h"
#include "server/billing/disk.h"
#include "server/billing/journal_reader.h"
#include "server/billing/ledger_client.h"

enum { AUDIT_FINDINGS_MAX = 100 };

/* Kinds of findings; DAMAGE is the gravest. */
enum audit_kind { AUDIT_NOTE, AUDIT_DIFFERENCE, AUDIT_DAMAGE };

struct audit_counts {
    uint64_t segments, bytes, frames, records, charged, waived, grants, releases, orders;
    uint64_t lost;       /* records or finals that must be there and are not */
    uint64_t doubled;    /* records, opens or finals that are there twice */
    uint64_t mismatch;   /* flagged records, and counts that disagree */
    uint64_t incomplete; /* closed after a crash */
    uint64_t unseen, clock, open;
    uint64_t units, overage_units, unapplied;
    uint64_t energies;                           /* ENERGY records */
    uint64_t energy_uj, ugco2_loc, ugco2_mkt;    /* of them */
    uint64_t accounts_compared, accounts_moving; /* moving: the ledger changed while it was read */
};

/* A producer's sequence in one partition. */
struct audit_sequence {
    struct audit_sequence_key {
        uint64_t producer;
        uint64_t partition;
    } key;
    bool known; /* a record or a checkpoint has been seen */
    uint64_t first, pseq;
    uint8_t chain[CHAIN_BYTES];
    uint64_t *hashes; /* of records first .. pseq: the chain's first eight bytes, big endian */
    uint64_t hashes_room;
    /* what the ledger says */
    bool marked;
    uint64_t hwm;
    char hash8[HASH8_CHARS + 1];
};

struct audit_sum {
    struct audit_sum_key {
        uint64_t account;
        uint32_t month, mclass;
    } key;
    struct month_total total;
};

struct audit_account {
    uint64_t account;
    uint64_t units; /* of records that the ledger has confirmed, or of all */
};

/* Everything one audit gathers, over all its folders. */
struct audit {
    const struct disk *disk;
    bool ledger;   /* marks were read: sums hold what they cover */
    bool complete; /* every folder starts at its first record */
    bool utc_offset_given;
    int32_t utc_offset_s;
    uint32_t month; /* 0: all; sums of this month alone */
    char uuid[LEDGER_UUID_CHARS + 1];
    struct audit_counts counts;
    struct bill_map sequences, sums, accounts, charges, energies;
    struct buf findings; /* lines: a kind's letter, then the text, NUL */
    uint32_t findings_count, findings_left_out;
    enum audit_kind worst;
};

NODISCARD enum status audit_init(struct audit *audit, const struct disk *disk);
void audit_free(struct audit *audit);
void audit_find(struct audit *audit, enum audit_kind kind, const char *format, ...) PRINTF_LIKE(3, 4);
struct audit_sequence *audit_sequence_of(struct audit *audit, uint64_t producer, uint16_t partition);

/* After the last folder: energy whose charge is in none of them. */
void audit_energies(struct audit *audit);

/* Reads a folder whole, with the folder of its older segments or its fallback (or NULL). A finding is none of the
 * status' business: ST_IO, ST_NOMEM, ST_NOTFOUND: there is no journal. */
NODISCARD enum status audit_scan(struct audit *audit, const char *folder, const char *more, struct error *err);

/* The ledger's marks, before folders are scanned (what moves on meanwhile is no finding); and what it says of accounts,
 * after that. */
NODISCARD enum status audit_marks(struct audit *audit, const struct ledger_client *client, struct error *err);
NODISCARD enum status audit_compare(struct audit *audit, const struct ledger_client *client, struct error *err);

#endif
