/* Orders on a ledger in memory: packages added, increased, voided; accounts opened and closed; leases and packages past
 * their end reaped. As mr_order, mr_account and mr_reap of ledger.lua, with the same order of checks. */
#include "server/billing/ledger_planted.h"
#include "server/billing/ledger_state.h"

#include <string.h>

static enum ledger_answer identity(const struct ledger *ledger, const char *uuid)
{
    if (ledger->uuid[0] == 0) return LEDGER_NOLEDGER;
    return strcmp(ledger->uuid, uuid) == 0 || PLANTED_LEDGER(UUID) ? LEDGER_OK : LEDGER_WRONGLEDGER;
}

bool order_id_valid(const char *id)
{
    return ledger_id_valid(id, ORDER_ID_MAX, "_.:-");
}

bool order_valid(const struct order *order)
{
    return order_id_valid(order->id) && ledger_id_valid(order->package, PACKAGE_ID_MAX, "_-") &&
           (order->op == PACKAGE_ADD || order->op == PACKAGE_INCREASE || order->op == PACKAGE_VOID) &&
           order->units <= PACKAGE_UNITS_MAX && order->priority <= UNITS_MAX && order->effective_ms <= UNITS_MAX &&
           order->expires_ms <= UNITS_MAX && order->created_ms <= UNITS_MAX && order->class_mask <= UNITS_MAX;
}

static bool same_terms(const struct ledger_done *done, const struct order *order)
{
    return PLANTED_LEDGER(ORDER_TERMS) ||
           (done->op == order->op && strcmp(done->package, order->package) == 0 && done->units == order->units &&
            done->priority == order->priority && done->effective_ms == order->effective_ms &&
            done->expires_ms == order->expires_ms && done->class_mask == order->class_mask);
}

/* Order of use: priority, earliest expiry, effective, created, id. */
static int compare_packages(const struct package_balance *a, const struct package_balance *b)
{
    uint64_t end_a = a->expires_ms == 0 ? UNITS_MAX : a->expires_ms;
    uint64_t end_b = b->expires_ms == 0 ? UNITS_MAX : b->expires_ms;
    if (a->priority != b->priority) return a->priority < b->priority ? -1 : 1;
    if (end_a != end_b) return end_a < end_b ? -1 : 1;
    if (a->effective_ms != b->effective_ms) return a->effective_ms < b->effective_ms ? -1 : 1;
    if (a->created_ms != b->created_ms) return a->created_ms < b->created_ms ? -1 : 1;
    return strcmp(a->id, b->id);
}

/* Puts a package into the order of use, and all others where they belong now: a void changes where a package stands
 * only here, as in ledger.lua. */
static void list_package(struct ledger_account *account, uint32_t package)
{
    account->packages[package].listed = true;
    account->order[account->order_count++] = package;
    if (PLANTED_LEDGER(ORDER_OF_USE)) return;
    for (uint32_t i = 1; i < account->order_count; i++) {
        uint32_t moving = account->order[i], at = i;
        for (; at > 0; at--) {
            uint32_t before = account->order[at - 1];
            if (compare_packages(&account->packages[before].b, &account->packages[moving].b) < 0) break;
            account->order[at] = before;
        }
        account->order[at] = moving;
    }
}

static uint32_t package_find(const struct ledger_account *account, const char *id)
{
    for (uint32_t i = 0; i < account->packages_count; i++) {
        if (strcmp(account->packages[i].b.id, id) == 0) return i;
    }
    return ENTRY_NONE;
}

static enum ledger_answer add_package(struct ledger_account *account, const struct order *order)
{
    if (package_find(account, order->package) != ENTRY_NONE && !PLANTED_LEDGER(EXISTS)) return LEDGER_EXISTS;
    if (account->order_count >= PACKAGES_MAX) return LEDGER_LIMIT;
    if (!ledger_package_room(account)) return LEDGER_LIMIT;
    struct package_balance *package = &account->packages[account->packages_count].b;
    *package = (struct package_balance){
        .granted = order->units,
        .free = order->units,
        .priority = order->priority,
        .effective_ms = order->effective_ms,
        .expires_ms = order->expires_ms,
        .created_ms = order->created_ms,
        .class_mask = order->class_mask,
    };
    memcpy(package->id, order->package, strlen(order->package));
    list_package(account, account->packages_count++);
    if (account->state == 0) account->state = 'A'; /* used, overage stay: usage may have come before the order */
    return LEDGER_OK;
}

static enum ledger_answer increase_package(struct ledger_account *account, const struct order *order, uint64_t now_ms)
{
    uint32_t found = package_find(account, order->package);
    if (found == ENTRY_NONE) return LEDGER_NOPACKAGE;
    struct package_balance *package = &account->packages[found].b;
    if (package_ended(package, now_ms) && !PLANTED_LEDGER(INC_EXPIRED)) return LEDGER_EXPIRED;
    if (order->units > PACKAGE_UNITS_MAX - package->granted && !PLANTED_LEDGER(LIMIT)) return LEDGER_LIMIT;
    if (!account->packages[found].listed && !PLANTED_LEDGER(UNSETTLE)) { /* it was settled: it may pay again */
        if (account->order_count >= PACKAGES_MAX) return LEDGER_LIMIT;
        list_package(account, found);
    }
    package->granted += order->units;
    package->free += order->units;
    return LEDGER_OK;
}

/* What is free expires now, what is leased when it comes back. */
static enum ledger_answer void_package(struct ledger_account *account, const struct order *order)
{
    uint32_t found = package_find(account, order->package);
    if (found == ENTRY_NONE) return LEDGER_NOPACKAGE;
    struct package_balance *package = &account->packages[found].b;
    package->expired += package->free;
    package->free = 0;
    if (!PLANTED_LEDGER(VOID_EXPIRY)) package->expires_ms = 1; /* for every clock: no node can revive it */
    return LEDGER_OK;
}

enum ledger_answer ledger_order(struct ledger *ledger, const char *uuid, const struct order *order, uint64_t now_ms)
{
    enum ledger_answer answer = identity(ledger, uuid);
    if (answer != LEDGER_OK) return answer;
    if (!order_valid(order)) return LEDGER_BADARG;
    uint32_t seen = ledger_order_find(ledger, order->account, order->id);
    if (seen != ENTRY_NONE && !PLANTED_LEDGER(ORDER_DUP)) {
        return same_terms(&ledger->orders[seen], order) ? LEDGER_DUP : LEDGER_CONFLICT;
    }
    struct ledger_done *done = ledger_order_take(ledger, order->account, order->id);
    uint32_t entry = ledger_account_take(ledger, order->account);
    if (done == NULL || entry == ENTRY_NONE) return LEDGER_LIMIT;
    struct ledger_account *account = &ledger->accounts[entry];
    if (order->op == PACKAGE_ADD) {
        answer = add_package(account, order);
    } else if (order->op == PACKAGE_INCREASE) {
        answer = increase_package(account, order, now_ms);
    } else {
        answer = void_package(account, order);
    }
    if (answer != LEDGER_OK) return answer;
    done->op = (uint8_t)order->op;
    memcpy(done->package, order->package, sizeof done->package);
    done->units = order->units;
    done->priority = order->priority;
    done->effective_ms = order->effective_ms;
    done->expires_ms = order->expires_ms;
    done->class_mask = order->class_mask;
    ledger_order_keep(ledger);
    return LEDGER_OK;
}

enum ledger_answer ledger_account_set(struct ledger *ledger, const char *uuid, uint64_t account, const char *order_id,
                                      bool open)
{
    enum ledger_answer answer = identity(ledger, uuid);
    if (answer != LEDGER_OK) return answer;
    if (!order_id_valid(order_id)) return LEDGER_BADARG;
    uint8_t op = open ? ORDER_ACCOUNT_OPEN : ORDER_ACCOUNT_CLOSE;
    uint32_t seen = ledger_order_find(ledger, account, order_id);
    if (seen != ENTRY_NONE && !PLANTED_LEDGER(ORDER_DUP)) {
        return ledger->orders[seen].op == op ? LEDGER_DUP : LEDGER_CONFLICT;
    }
    struct ledger_done *done = ledger_order_take(ledger, account, order_id);
    uint32_t entry = ledger_account_take(ledger, account);
    if (done == NULL || entry == ENTRY_NONE) return LEDGER_LIMIT;
    ledger->accounts[entry].state = open ? 'A' : 'C';
    done->op = op;
    ledger_order_keep(ledger);
    return LEDGER_OK;
}

static bool package_settled(const struct package_balance *package, uint64_t now_ms)
{
    if (package_ended(package, now_ms)) return package->leased == 0;
    return package->free == 0 && package->leased == 0;
}

static bool lease_late(const struct ledger_lease_end *end, uint64_t grace_ms, uint64_t now_ms)
{
    return end->until_ms + (PLANTED_LEDGER(REAP_GRACE) ? 0 : grace_ms) < now_ms;
}

enum ledger_answer ledger_reap(struct ledger *ledger, const char *uuid, uint64_t account, uint64_t grace_ms,
                               uint64_t now_ms, uint32_t *leases_ended, uint32_t *packages_expired)
{
    *leases_ended = *packages_expired = 0;
    enum ledger_answer answer = identity(ledger, uuid);
    if (answer != LEDGER_OK) return answer;
    if (grace_ms > UNITS_MAX || now_ms > UNITS_MAX) return LEDGER_BADARG;
    uint32_t entry = ledger_account_find(ledger, account);
    if (entry == ENTRY_NONE) return LEDGER_OK;
    struct ledger_account *found = &ledger->accounts[entry];
    for (uint32_t i = 0; i < found->order_count; i++) {
        const struct package_balance *package = &found->packages[found->order[i]].b;
        if (package_ended(package, now_ms) && package->free > 0) (*packages_expired)++;
    }
    for (uint32_t i = 0; i < found->ends_count;) {
        if (lease_late(&found->ends[i], grace_ms, now_ms)) {
            ledger_give_back(found, found->ends[i].producer, now_ms);
            (*leases_ended)++;
            i = 0;
        } else {
            i++;
        }
    }
    uint32_t kept = 0;
    for (uint32_t i = 0; i < found->order_count; i++) {
        struct ledger_package *package = &found->packages[found->order[i]];
        if (package_ended(&package->b, now_ms)) {
            package->b.expired += package->b.free;
            package->b.free = 0;
        }
        package->listed = !package_settled(&package->b, now_ms);
        if (package->listed) found->order[kept++] = found->order[i];
    }
    found->order_count = kept;
    return LEDGER_OK;
}
