/* Records of a journal at rest into a ledger in Redis, by the emitter that a server uses: for replay and rebuild. */
#ifndef SERVER_BILLING_BILL_SEND_H
#define SERVER_BILLING_BILL_SEND_H

#include "server/billing/bill.h"

struct bill_send {
    const char *folder, *more; /* more: the folder of older segments, or the fallback, or NULL */
    const char *uuid;
    uint64_t producer, epoch, durable_lsn;
};

struct bill_sent {
    uint64_t applied, left;
    uint64_t hwm[PARTITIONS]; /* confirmed; 0: nothing was */
    char hash8[PARTITIONS][HASH8_CHARS + 1];
    bool refuses;
    char reason[256];
};

/* ST_INVAL: the ledger refuses (err says why); ST_TIMEOUT: it did not answer for half a minute. */
NODISCARD enum status bill_send_records(struct bill *bill, const struct bill_send *send, struct bill_sent *sent,
                                        struct error *err);
/* The LSN of the last whole frame. *tail: bytes of a torn write behind it. ST_INVAL: damage. */
NODISCARD enum status bill_last_lsn(const struct bill *bill, const char *folder, const char *more, uint64_t *lsn,
                                    uint64_t *tail, struct error *err);

#endif
