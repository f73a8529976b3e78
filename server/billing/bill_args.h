/* The arguments of `millrace bill`: one table of subcommands and one of options, from which --help is made too. Secrets
 * come from the environment or from files, never from arguments. Pure, any thread. */
#ifndef SERVER_BILLING_BILL_ARGS_H
#define SERVER_BILLING_BILL_ARGS_H

#include "runtime/base/buf.h"
#include "runtime/base/status.h"

#include <stdbool.h>
#include <stdint.h>

enum bill_command {
    BILL_INIT,
    BILL_ACCOUNT,
    BILL_KEY,
    BILL_TOPUP,
    BILL_VOID,
    BILL_BALANCE,
    BILL_USAGE,
    BILL_AUDIT,
    BILL_REPLAY,
    BILL_REBUILD,
    BILL_EXPORT,
    BILL_ADOPT,
    BILL_REPAIR,
    BILL_REAP,
    BILL_PROBE,
    BILL_COMMANDS
};

enum { BILL_NAMES_MAX = 64, BILL_SECRET_BYTES_MAX = 512 };

struct bill_options {
    enum bill_command command;
    const char *verb; /* of account and key: "create", ..; else NULL */
    const char *names[BILL_NAMES_MAX];
    uint32_t names_count;
    /* where the ledger is: exactly one, or none */
    const char *redis, *journal, *server;
    const char *redis_password_file, *redis_ca_file, *redis_cert_file, *redis_key_file;
    const char *admin_key_file, *ca_file;
    const char *redis_password, *admin_key, *api_key; /* of the environment alone */
    bool json, help;
    const char *uuid, *order, *package, *account, *tenant, *by, *format, *output, *archive, *fallback, *model, *label,
        *orders, *log, *api_key_file;
    uint64_t units; /* --tokens */
    bool units_given, increase, force, trim;
    uint64_t priority, classes;
    int64_t effective_ms, expires_ms, from_ms, to_ms; /* 0: not given */
    uint32_t month;                                   /* 0: not given */
    int32_t utc_offset_s;
    bool utc_offset_given;
    uint64_t rpm, tpm, concurrency, count, grace_s;
    bool rpm_given, tpm_given, concurrency_given;
    uint64_t budget_units; /* --budget */
    bool budget_given;
    const char *budget_period;
};

/* argv without program and "bill". ST_INVAL: err says what is wrong and what to do. With help set nothing else is
 * checked; command is BILL_COMMANDS when none was named. Texts point into argv and environment. */
NODISCARD enum status bill_args_read(struct bill_options *options, int argc, char **argv, char **environment,
                                     struct error *err);
/* Help of one subcommand, or of all (BILL_COMMANDS). */
void bill_args_help(enum bill_command command, struct buf *out);
const char *bill_command_name(enum bill_command command);

#endif
