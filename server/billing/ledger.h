/* The ledger: balances, leases and monthly totals, made from records and orders alone. This is the form that runs in
 * the process, the default without Redis, and the second opinion on ledger.lua: the same calls, the same answers. Both
 * are held to one set of vectors (tests/ledger/). Rules L1-L4: README.md of this folder.
 *
 *   ledger_apply:  epoch, pseq and chain checked -> balances, months, log, high-water mark (HWM) in one step
 *   invariants  :  a package: granted = free + leased + used + expired, none below 0; leased = sum of its leases;
 *                  an account: used = sum of its packages' used + overage = units of the records up to the HWM
 *
 * A ledger is memory; durability is the journal's, from which it is refilled (ledger_save and later records). One
 * thread at a time. */
#ifndef SERVER_BILLING_LEDGER_H
#define SERVER_BILLING_LEDGER_H

#include "runtime/base/buf.h"
#include "runtime/base/status.h"
#include "server/billing/record.h"

#include <stdbool.h>
#include <stdint.h>

enum { PACKAGE_ID_MAX = 32, ORDER_ID_MAX = 64, PACKAGES_MAX = 256, LEDGER_UUID_CHARS = 36, APPLY_RECORDS_MAX = 256 };
#define PACKAGE_UNITS_MAX  UINT64_C(4600000000000000000)
#define LEASE_VALID_MS_MAX UINT64_C(86400000)

/* Answers, in both forms under these names. */
#define LEDGER_ANSWER_MAP(X)                                                                                           \
    X(OK)                                                                                                              \
    X(DUP)                                                                                                             \
    X(NOLEDGER) X(WRONGLEDGER) X(FENCED) X(CONFLICT) X(GAP) X(BADARG) X(BADSTATE) X(EXISTS) X(NOPACKAGE) X(EXPIRED)    \
        X(LIMIT)
enum ledger_answer {
#define X(name) LEDGER_##name,
    LEDGER_ANSWER_MAP(X)
#undef X
};
const char *ledger_answer_name(enum ledger_answer answer);           /* "OK", "GAP", ... static */
bool ledger_answer_parse(const char *text, enum ledger_answer *out); /* false: none of them */

/* "add", "inc", "void". PACKAGE_REAP is for journals of a ledger in the process alone, where what changes a balance
 * must be a frame: ledger_reap with units as its grace and created_ms as its time (ledger_store.h). */
enum package_op { PACKAGE_ADD, PACKAGE_INCREASE, PACKAGE_VOID, PACKAGE_REAP };
enum { PACKAGE_OPS = PACKAGE_REAP + 1 };

/* A change of packages, idempotent by id: the same id with the same terms is DUP, with others CONFLICT. */
struct order {
    char id[ORDER_ID_MAX + 1]; /* [A-Za-z0-9_.:-]+ */
    uint64_t account;
    enum package_op op;
    char package[PACKAGE_ID_MAX + 1];  /* [A-Za-z0-9_-]+ */
    uint64_t units;                    /* at most PACKAGE_UNITS_MAX */
    uint64_t priority;                 /* lower is used first */
    uint64_t effective_ms, expires_ms; /* unix; expires 0: never */
    uint64_t created_ms;               /* not part of the terms */
    uint64_t class_mask;               /* bit k: model class k; < 2^53 */
};

/* Whether an order (but for PACKAGE_REAP), or an order's id alone, can be taken at all. Asked before one goes into a
 * journal: what stands there must be readable for ever. */
bool order_valid(const struct order *order);
bool order_id_valid(const char *id);

struct package_balance {
    char id[PACKAGE_ID_MAX + 1];
    uint64_t granted, free, leased, used, expired;
    uint64_t priority, effective_ms, expires_ms, created_ms, class_mask;
};

struct account_balance {
    uint64_t account;
    bool known, open; /* known: it has had an order or a record; open: nobody closed it */
    uint64_t used, overage;
    uint32_t packages_count; /* those that may still pay, in order of use; then settled ones, newest first, while */
    struct package_balance packages[PACKAGES_MAX]; /* there is room */
};

/* Sums of a month of one account and model class. */
struct month_total {
    uint8_t mclass;
    uint64_t in_miss, in_hit, out, units, records;
    uint64_t waived_in, waived_out, waived_records;
    /* of ENERGY records, of charged and waived requests alike; microjoules and micrograms, never rounded */
    uint64_t energy_uj, idle_uj, green_uj, ugco2_loc, ugco2_mkt, energy_records;
};

/* Adds what one ENERGY record says. */
void month_add_energy(struct month_total *total, const struct record_energy *energy);

struct ledger_reply {
    enum ledger_answer answer;
    uint64_t hwm;
    char hash8[HASH8_CHARS + 1];
    uint32_t duplicates;
    uint32_t grants_count;
    struct {
        uint64_t pseq;
        uint64_t leased; /* absolute: all that this producer leases on the account for that class now */
        bool open;       /* nobody closed the account: a closed one gets nothing new */
    } grants[APPLY_RECORDS_MAX];
};

/* What one applied record did: who paid. For the log of a ledger that keeps one; text as ledger.lua writes it. */
typedef void (*ledger_log_fn)(void *state, const struct record *record, const char *funding, const char *extra);

struct ledger;

/* An empty ledger without an identity (every call answers NOLEDGER until ledger_init). ST_NOMEM. */
NODISCARD enum status ledger_create(struct ledger **ledger);
void ledger_destroy(struct ledger *ledger);

enum ledger_answer ledger_init(struct ledger *ledger, const char *uuid); /* OK, DUP, WRONGLEDGER, BADARG */
const char *ledger_uuid(const struct ledger *ledger);                    /* "" without one */

/* Applies encoded records (record.h) of one partition of one producer, in order. count 0 is the hello: stores a higher
 * epoch and tells the HWM. now_ms: the ledger's clock, for lease expiry. LIMIT: out of memory, nothing was changed by
 * the record it stopped at. Records before the one that stopped the call stay applied, and the HWM says so. */
struct encoded_record {
    const uint8_t *bytes;
    uint32_t length;
};
void ledger_apply(struct ledger *ledger, uint16_t partition, uint64_t producer, uint64_t epoch, const char *uuid,
                  const struct encoded_record *records, uint32_t count, uint64_t now_ms, ledger_log_fn log,
                  void *log_state, struct ledger_reply *reply);

enum ledger_answer ledger_order(struct ledger *ledger, const char *uuid, const struct order *order, uint64_t now_ms);
/* Opens or closes an account. Idempotent by order id. */
enum ledger_answer ledger_account_set(struct ledger *ledger, const char *uuid, uint64_t account, const char *order_id,
                                      bool open);
/* Ends leases that expired more than grace_ms ago, expires packages past their end, and settles packages that hold
 * nothing: records no longer look at them, and an increase brings one back. */
enum ledger_answer ledger_reap(struct ledger *ledger, const char *uuid, uint64_t account, uint64_t grace_ms,
                               uint64_t now_ms, uint32_t *leases_ended, uint32_t *packages_expired);

/* Queries. months: [MODEL_CLASSES], count of those with anything. */
void ledger_balance(const struct ledger *ledger, uint64_t account, struct account_balance *balance);
uint32_t ledger_month(const struct ledger *ledger, uint64_t account, uint32_t month,
                      struct month_total totals[MODEL_CLASSES]);
bool ledger_hwm(const struct ledger *ledger, uint16_t partition, uint64_t producer, uint64_t *epoch, uint64_t *hwm,
                char hash8[HASH8_CHARS + 1]);
/* Marks of all producers of a partition, in no order. */
typedef void (*ledger_mark_fn)(void *state, uint64_t producer, uint64_t epoch, uint64_t hwm, const char *hash8);
void ledger_marks(const struct ledger *ledger, uint16_t partition, ledger_mark_fn visit, void *state);
/* Whether all invariants hold; false: err names the account and the rule. */
bool ledger_check(const struct ledger *ledger, struct error *err);

/* Everything as text, "<key> <field> <value>\n" under the names of ledger.lua's keys (without their prefix) and fields,
 * zeros and empty fields left out: what an audit or a test lays beside a Redis. In no order. */
void ledger_dump(const struct ledger *ledger, struct buf *out);

/* The whole state as bytes with a checksum, and back. load replaces everything; ST_INVAL: damaged, nothing changed. */
void ledger_save(const struct ledger *ledger, struct buf *out);
NODISCARD enum status ledger_load(struct ledger *ledger, const void *bytes, size_t length, struct error *err);

#endif
