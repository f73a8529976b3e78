/* The records of journal folders, one after another, with whose they are: for usage, export, rebuild. Every record must
 * follow from the one before (chain); damage ends the reading. One thread. */
#ifndef SERVER_BILLING_BILL_SCAN_H
#define SERVER_BILLING_BILL_SCAN_H

#include "server/billing/bill.h"
#include "server/billing/journal_reader.h"

/* bytes: the record's, as it stands in the frame. Anything but ST_OK ends the scan with it. */
typedef enum status (*bill_record_fn)(void *state, const struct frame *frame, const struct segment_info *segment,
                                      const struct record *record, struct error *err);
typedef enum status (*bill_frame_fn)(void *state, const struct frame *frame, const struct segment_info *segment,
                                     struct error *err);

/* Every record of the folders that the options name. frames, if not NULL: gets the frames that are no records.
 * ST_INVAL: damage (*exit_code is BILL_DAMAGED then). */
NODISCARD enum status bill_scan(struct bill *bill, bill_record_fn records, bill_frame_fn frames, void *state,
                                int *exit_code, struct error *err);
/* Whether --from, --to, --month, --account, --tenant and --model let a charged or waived record through. */
bool bill_record_wanted(const struct bill_options *options, const struct record *record);
/* --account's comma-separated names as numbers, once: bill_record_wanted uses them. */
NODISCARD enum status bill_scan_prepare(const struct bill_options *options, struct error *err);

#endif
