/* What the subcommands of `millrace bill` share: their settings, the ledger they work on, and where output goes.
 *
 *   cmd_bill.c   arguments, dispatch, stdout, exit codes
 *   bill_open.c  where the ledger is     bill_orders.c  init, account, key, topup, void, balance, reap
 *   bill_audit.c, bill_usage.c, bill_export.c, bill_node.c (replay, rebuild, adopt, repair), bill_probe.c
 *
 * Main thread. */
#ifndef SERVER_BILLING_BILL_H
#define SERVER_BILLING_BILL_H

#include "runtime/base/clock.h"
#include "server/billing/bill_args.h"
#include "server/billing/disk.h"
#include "server/billing/journal.h"
#include "server/billing/ledger_client.h"
#include "server/billing/redis_link.h"

/* Exit codes. Those of audit: 0, 1, and 2 for damage. */
enum { BILL_SEGMENTS_MAX = 16384 };
enum bill_exit { BILL_DONE = 0, BILL_REFUSED = 1, BILL_DIFFERENT = 1, BILL_USAGE_ERROR = 2, BILL_DAMAGED = 3 };

struct bill {
    const struct bill_options *options;
    const struct disk *disk;
    const struct clock *clock;
    struct buf *out;                                          /* for stdout; may be sent on by flush at any time */
    struct buf *note;                                         /* for stderr: what a script need not read */
    enum status (*flush)(struct buf *out, struct error *err); /* writes out to stdout and clears it */
    char secret[BILL_SECRET_BYTES_MAX];                       /* of a file */
    struct ledger_client ledger;                              /* calls NULL: none is open */
    struct redis_target *redis;                               /* of an open ledger in Redis, or NULL */
    const char *new_uuid;                                     /* init: of a journal folder that is to be made */
};

/* Opens the ledger that the options name. ST_INVAL: none is named, or what is named is not one. */
NODISCARD enum status bill_open_ledger(struct bill *bill, struct error *err);
bool bill_names_ledger(const struct bill *bill);
/* How a folder's journal is opened here: as it was made, without limits on the disk's room. uuid NULL: the folder's
 * own, copied to own_uuid (ST_NOTFOUND: there is no journal in it). */
NODISCARD enum status bill_journal_config(const struct bill *bill, const char *folder, const char *uuid,
                                          char own_uuid[LEDGER_UUID_CHARS + 1], struct journal_config *config,
                                          struct error *err);
/* --redis as a target, allocated (mem_free). */
NODISCARD enum status bill_redis_target(const struct bill *bill, struct redis_target **target, struct error *err);
void bill_close_ledger(struct bill *bill);
/* The first line of a file, or what the environment gave. ST_INVAL: neither, or longer than fits. */
NODISCARD enum status bill_secret(const char *file, const char *environment, const char *what, char *out,
                                  struct error *err);
/* A subcommand: *exit_code is set on ST_OK, and may be on failure (it is BILL_REFUSED before). */
typedef enum status (*bill_fn)(struct bill *bill, int *exit_code, struct error *err);
enum status bill_init(struct bill *bill, int *exit_code, struct error *err);
enum status bill_account_verb(struct bill *bill, int *exit_code, struct error *err);
enum status bill_key_verb(struct bill *bill, int *exit_code, struct error *err);
enum status bill_topup(struct bill *bill, int *exit_code, struct error *err); /* void too */
enum status bill_balance(struct bill *bill, int *exit_code, struct error *err);
enum status bill_reap(struct bill *bill, int *exit_code, struct error *err);
enum status bill_usage(struct bill *bill, int *exit_code, struct error *err);
enum status bill_audit(struct bill *bill, int *exit_code, struct error *err);
enum status bill_export(struct bill *bill, int *exit_code, struct error *err);
enum status bill_replay(struct bill *bill, int *exit_code, struct error *err);
enum status bill_rebuild(struct bill *bill, int *exit_code, struct error *err);
enum status bill_adopt(struct bill *bill, int *exit_code, struct error *err);
enum status bill_repair(struct bill *bill, int *exit_code, struct error *err);
enum status bill_probe(struct bill *bill, int *exit_code, struct error *err);

#endif
