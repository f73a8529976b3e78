/* What the power accounts tell the books: how much a charge used in one price slot. It becomes an ENERGY record (kind
 * 'E', record.h) in the journal and goes the way of all records: chained, durable, applied once.
 *
 *   attribution (windows closed) -> energy_note, one for each price slot that the request touched
 *        --billing_note_energy--> meter's queue --> journal --> ledger, export, audit
 *
 * Once for a charge, part and slot: what was noted is in the journal or, when the process dies first, nowhere. A charge
 * without one is no loss (its tokens are what is billed); a second one is a difference that the audit tells. Nothing
 * waits for it: usage leaves with FINAL. */
#ifndef SERVER_BILLING_ENERGY_RECORD_H
#define SERVER_BILLING_ENERGY_RECORD_H

#include "server/billing/record.h"

struct billing;

struct energy_note {
    /* of the charge, as its OPEN had them: energy_note_charge fills these in */
    uint8_t charge_id[CHARGE_ID_BYTES];
    uint32_t part;
    uint64_t account, key;
    uint8_t mclass;
    char tenant[ACCOUNT_NAME_MAX + 1];
    char model[MODEL_NAME_MAX + 1];
    struct record_energy energy;
};

/* Whose energy: copies what a record needs of the charge, which may be gone by the time its windows are closed. Leaves
 * `energy` alone. Pure. */
void energy_note_charge(struct energy_note *note, const struct charge *charge);

/* Takes a note for the journal; durable within about 100 ms, as the journal's mode says. Copies, never blocks on a
 * disk. Any thread, until billing_close. ST_OK also without billing (NULL): then there are no books. ST_INVAL: a number
 * that no record can hold (record_energy_wrong), ST_LIMIT: ENERGY_NOTES_MAX wait, ST_NOMEM, ST_IO: the journal has
 * failed. In each of these it is in no book, and mr_billing_energy_dropped_total counts it. */
NODISCARD enum status billing_note_energy(struct billing *billing, const struct energy_note *note);

#endif
