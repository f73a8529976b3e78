/* The inside of a ledger, for ledger*.c alone: arrays of accounts, months, marks and orders, each with an index by
 * hash. Nothing is ever taken out of them (an account, an order id and a month stay for good), so an index needs no
 * delete, and an entry keeps its number, though not its address: what grows an array makes pointers into it invalid.
 *
 * What may need memory comes before the first change of a record or order (ledger_*_take, ledger_lease_take), so a
 * failure leaves everything as it was but for empty entries, which nothing shows. */
#ifndef SERVER_BILLING_LEDGER_STATE_H
#define SERVER_BILLING_LEDGER_STATE_H

#include "server/billing/ledger.h"

/* A stored counter below this takes one more record without leaving int64. */
#define COUNTER_ROOM UINT64_C(9100000000000000000)

/* Open addressing, linear probing, a power of two, at most three quarters full. */
struct ledger_index {
    struct ledger_slot {
        uint32_t hash, entry; /* entry + 1; 0: empty */
    } * slots;
    uint32_t capacity, count;
};

struct ledger_package {
    struct package_balance b;
    bool listed; /* in the account's order: may still pay */
};

struct ledger_lease {
    uint64_t producer, units;
    uint32_t package;
};

struct ledger_lease_end {
    uint64_t producer, until_ms;
};

struct ledger_account {
    uint64_t number, used, overage;
    char state;   /* 0: no order yet; A open, C closed */
    bool touched; /* by a record */
    uint32_t packages_count, packages_capacity, order_count, leases_count, leases_capacity, ends_count, ends_capacity;
    struct ledger_package *packages;
    uint32_t *order; /* [packages_capacity]: packages in order of use */
    struct ledger_lease *leases;
    struct ledger_lease_end *ends;
};

struct ledger_month {
    uint64_t account;
    uint32_t month;
    struct month_total total; /* of one model class */
};

struct ledger_mark {
    uint64_t producer, epoch, pseq; /* epoch 0: nothing was stored yet */
    uint16_t partition;
    uint8_t chain[CHAIN_BYTES];
};

/* An order that took effect, or a change of an account (op ORDER_ACCOUNT_*): what makes a repeated one DUP. */
enum { ORDER_ACCOUNT_OPEN = PACKAGE_OPS, ORDER_ACCOUNT_CLOSE, ORDER_KINDS };
struct ledger_done {
    uint64_t account;
    char id[ORDER_ID_MAX + 1];
    uint8_t op;
    char package[PACKAGE_ID_MAX + 1];
    uint64_t units, priority, effective_ms, expires_ms, class_mask;
};

struct ledger {
    char uuid[LEDGER_UUID_CHARS + 1]; /* "": none yet */
    struct ledger_account *accounts;
    struct ledger_month *months;
    struct ledger_mark *marks;
    struct ledger_done *orders;
    uint32_t accounts_count, accounts_capacity, months_count, months_capacity, marks_count, marks_capacity,
        orders_count, orders_capacity;
    struct ledger_index account_index, month_index, mark_index, order_index;
    struct buf funding; /* text for the log */
};

enum { ENTRY_NONE = UINT32_MAX };

/* find: the entry or ENTRY_NONE. take: the same, made when it is not there; ENTRY_NONE: no memory. */
uint32_t ledger_account_find(const struct ledger *ledger, uint64_t account);
uint32_t ledger_account_take(struct ledger *ledger, uint64_t account);
uint32_t ledger_month_find(const struct ledger *ledger, uint64_t account, uint32_t month, uint8_t mclass);
uint32_t ledger_month_take(struct ledger *ledger, uint64_t account, uint32_t month, uint8_t mclass);
uint32_t ledger_mark_find(const struct ledger *ledger, uint16_t partition, uint64_t producer);
uint32_t ledger_mark_take(struct ledger *ledger, uint16_t partition, uint64_t producer);
uint32_t ledger_order_find(const struct ledger *ledger, uint64_t account, const char *id);
/* Appends; the caller has looked. The entry is counted only after ledger_order_keep. */
struct ledger_done *ledger_order_take(struct ledger *ledger, uint64_t account, const char *id);
void ledger_order_keep(struct ledger *ledger);

/* Room for one more package, for a producer's lease on `package` and its end. False: no memory. */
bool ledger_package_room(struct ledger_account *account);
struct ledger_lease *ledger_lease_find(const struct ledger_account *account, uint64_t producer, uint32_t package);
struct ledger_lease *ledger_lease_take(struct ledger_account *account, uint64_t producer, uint32_t package);
struct ledger_lease_end *ledger_lease_end_find(const struct ledger_account *account, uint64_t producer);
bool ledger_lease_end_room(struct ledger_account *account);
uint64_t ledger_leased(const struct ledger_account *account, uint64_t producer);
void ledger_give_back(struct ledger_account *account, uint64_t producer, uint64_t now_ms);

bool package_ended(const struct package_balance *package, uint64_t now_ms);
bool ledger_id_valid(const char *text, size_t length_max, const char *punctuation); /* letters, digits, punctuation */
void ledger_empty(struct ledger *ledger); /* frees everything inside; the ledger is as created */

#endif
