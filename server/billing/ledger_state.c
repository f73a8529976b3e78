/* Entries of a ledger and their memory; see ledger_state.h. */
#include "server/billing/ledger_state.h"

#include "runtime/base/hash.h"
#include "runtime/base/mem.h"
#include "server/billing/ledger_planted.h"

#include <string.h>

enum { INDEX_FIRST = 64, ARRAY_FIRST = 8 };

/* The next entry whose hash is the same, from *step on (0 at first); ENTRY_NONE: no more. */
static uint32_t index_next(const struct ledger_index *index, uint32_t hash, uint32_t *step)
{
    for (; *step < index->capacity; (*step)++) {
        const struct ledger_slot *slot = &index->slots[(hash + *step) & (index->capacity - 1)];
        if (slot->entry == 0) break;
        if (slot->hash == hash) {
            (*step)++;
            return slot->entry - 1;
        }
    }
    return ENTRY_NONE;
}

static void index_place(struct ledger_index *index, uint32_t hash, uint32_t entry)
{
    uint32_t at = hash & (index->capacity - 1);
    while (index->slots[at].entry != 0) at = (at + 1) & (index->capacity - 1);
    index->slots[at] = (struct ledger_slot){.hash = hash, .entry = entry + 1};
    index->count++;
}

static bool index_room(struct ledger_index *index)
{
    if (index->count < index->capacity / 4 * 3) return true;
    if (index->capacity > UINT32_MAX / 4) return false;
    struct ledger_index grown = {.capacity = index->capacity == 0 ? INDEX_FIRST : index->capacity * 2};
    grown.slots = mem_alloc(grown.capacity, sizeof grown.slots[0]);
    if (grown.slots == NULL) return false;
    for (uint32_t i = 0; i < index->capacity; i++) {
        if (index->slots[i].entry != 0) index_place(&grown, index->slots[i].hash, index->slots[i].entry - 1);
    }
    mem_free(index->slots);
    *index = grown;
    return true;
}

/* Room for one more item; returns the array, which may have moved, or NULL. */
static void *array_room(void *items, uint32_t count, uint32_t *capacity, size_t size_bytes)
{
    if (count < *capacity) return items;
    if (*capacity > UINT32_MAX / 4) return NULL;
    uint32_t wanted = *capacity == 0 ? ARRAY_FIRST : *capacity * 2;
    void *grown = items == NULL ? mem_alloc(wanted, size_bytes) : mem_resize(items, wanted, size_bytes);
    if (grown != NULL) *capacity = wanted;
    return grown;
}

static uint32_t hash_of(uint64_t a, uint64_t b)
{
    uint64_t key[2] = {a, b};
    return (uint32_t)hash_bytes(key, sizeof key, 0);
}

uint32_t ledger_account_find(const struct ledger *ledger, uint64_t account)
{
    uint32_t step = 0, entry;
    while ((entry = index_next(&ledger->account_index, hash_of(account, 0), &step)) != ENTRY_NONE) {
        if (ledger->accounts[entry].number == account) return entry;
    }
    return ENTRY_NONE;
}

uint32_t ledger_account_take(struct ledger *ledger, uint64_t account)
{
    uint32_t entry = ledger_account_find(ledger, account);
    if (entry != ENTRY_NONE) return entry;
    void *grown =
        array_room(ledger->accounts, ledger->accounts_count, &ledger->accounts_capacity, sizeof ledger->accounts[0]);
    if (grown == NULL) return ENTRY_NONE;
    ledger->accounts = grown;
    if (!index_room(&ledger->account_index)) return ENTRY_NONE;
    entry = ledger->accounts_count++;
    ledger->accounts[entry] = (struct ledger_account){.number = account};
    index_place(&ledger->account_index, hash_of(account, 0), entry);
    return entry;
}

static uint64_t month_key(uint32_t month, uint8_t mclass)
{
    return (uint64_t)month << 8 | mclass;
}

uint32_t ledger_month_find(const struct ledger *ledger, uint64_t account, uint32_t month, uint8_t mclass)
{
    uint32_t step = 0, entry;
    while ((entry = index_next(&ledger->month_index, hash_of(account, month_key(month, mclass)), &step)) !=
           ENTRY_NONE) {
        const struct ledger_month *found = &ledger->months[entry];
        if (found->account == account && found->month == month && found->total.mclass == mclass) return entry;
    }
    return ENTRY_NONE;
}

uint32_t ledger_month_take(struct ledger *ledger, uint64_t account, uint32_t month, uint8_t mclass)
{
    uint32_t entry = ledger_month_find(ledger, account, month, mclass);
    if (entry != ENTRY_NONE) return entry;
    void *grown = array_room(ledger->months, ledger->months_count, &ledger->months_capacity, sizeof ledger->months[0]);
    if (grown == NULL) return ENTRY_NONE;
    ledger->months = grown;
    if (!index_room(&ledger->month_index)) return ENTRY_NONE;
    entry = ledger->months_count++;
    ledger->months[entry] = (struct ledger_month){.account = account, .month = month, .total = {.mclass = mclass}};
    index_place(&ledger->month_index, hash_of(account, month_key(month, mclass)), entry);
    return entry;
}

uint32_t ledger_mark_find(const struct ledger *ledger, uint16_t partition, uint64_t producer)
{
    uint32_t step = 0, entry;
    while ((entry = index_next(&ledger->mark_index, hash_of(producer, partition), &step)) != ENTRY_NONE) {
        const struct ledger_mark *mark = &ledger->marks[entry];
        if (mark->producer == producer && mark->partition == partition) return entry;
    }
    return ENTRY_NONE;
}

uint32_t ledger_mark_take(struct ledger *ledger, uint16_t partition, uint64_t producer)
{
    uint32_t entry = ledger_mark_find(ledger, partition, producer);
    if (entry != ENTRY_NONE) return entry;
    void *grown = array_room(ledger->marks, ledger->marks_count, &ledger->marks_capacity, sizeof ledger->marks[0]);
    if (grown == NULL) return ENTRY_NONE;
    ledger->marks = grown;
    if (!index_room(&ledger->mark_index)) return ENTRY_NONE;
    entry = ledger->marks_count++;
    ledger->marks[entry] = (struct ledger_mark){.producer = producer, .partition = partition};
    index_place(&ledger->mark_index, hash_of(producer, partition), entry);
    return entry;
}

static uint32_t order_hash(uint64_t account, const char *id)
{
    return hash_of(account, hash_bytes(id, strlen(id), 0));
}

uint32_t ledger_order_find(const struct ledger *ledger, uint64_t account, const char *id)
{
    uint32_t step = 0, entry;
    while ((entry = index_next(&ledger->order_index, order_hash(account, id), &step)) != ENTRY_NONE) {
        const struct ledger_done *order = &ledger->orders[entry];
        if (order->account == account && strcmp(order->id, id) == 0) return entry;
    }
    return ENTRY_NONE;
}

struct ledger_done *ledger_order_take(struct ledger *ledger, uint64_t account, const char *id)
{
    void *grown = array_room(ledger->orders, ledger->orders_count, &ledger->orders_capacity, sizeof ledger->orders[0]);
    if (grown == NULL) return NULL;
    ledger->orders = grown;
    if (!index_room(&ledger->order_index)) return NULL;
    struct ledger_done *order = &ledger->orders[ledger->orders_count];
    *order = (struct ledger_done){.account = account};
    memcpy(order->id, id, strlen(id));
    return order;
}

void ledger_order_keep(struct ledger *ledger)
{
    const struct ledger_done *order = &ledger->orders[ledger->orders_count];
    index_place(&ledger->order_index, order_hash(order->account, order->id), ledger->orders_count);
    ledger->orders_count++;
}

bool ledger_package_room(struct ledger_account *account)
{
    uint32_t capacity = account->packages_capacity;
    void *grown = array_room(account->packages, account->packages_count, &capacity, sizeof account->packages[0]);
    if (grown == NULL) return false;
    account->packages = grown;
    if (capacity == account->packages_capacity) return true;
    void *order = account->order == NULL ? mem_alloc(capacity, sizeof account->order[0])
                                         : mem_resize(account->order, capacity, sizeof account->order[0]);
    if (order == NULL) return false;
    account->order = order;
    account->packages_capacity = capacity;
    return true;
}

struct ledger_lease *ledger_lease_find(const struct ledger_account *account, uint64_t producer, uint32_t package)
{
    for (uint32_t i = 0; i < account->leases_count; i++) {
        struct ledger_lease *lease = &account->leases[i];
        if (lease->producer == producer && lease->package == package) return lease;
    }
    return NULL;
}

struct ledger_lease *ledger_lease_take(struct ledger_account *account, uint64_t producer, uint32_t package)
{
    struct ledger_lease *lease = ledger_lease_find(account, producer, package);
    if (lease != NULL) return lease;
    void *grown =
        array_room(account->leases, account->leases_count, &account->leases_capacity, sizeof account->leases[0]);
    if (grown == NULL) return NULL;
    account->leases = grown;
    lease = &account->leases[account->leases_count++];
    *lease = (struct ledger_lease){.producer = producer, .package = package};
    return lease;
}

struct ledger_lease_end *ledger_lease_end_find(const struct ledger_account *account, uint64_t producer)
{
    for (uint32_t i = 0; i < account->ends_count; i++) {
        if (account->ends[i].producer == producer) return &account->ends[i];
    }
    return NULL;
}

bool ledger_lease_end_room(struct ledger_account *account)
{
    void *grown = array_room(account->ends, account->ends_count, &account->ends_capacity, sizeof account->ends[0]);
    if (grown != NULL) account->ends = grown;
    return grown != NULL;
}

uint64_t ledger_leased(const struct ledger_account *account, uint64_t producer)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < account->leases_count; i++) {
        if (account->leases[i].producer == producer) sum += account->leases[i].units;
    }
    return sum;
}

void ledger_give_back(struct ledger_account *account, uint64_t producer, uint64_t now_ms)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < account->leases_count; i++) {
        const struct ledger_lease *lease = &account->leases[i];
        if (lease->producer != producer) {
            account->leases[kept++] = *lease;
            continue;
        }
        struct package_balance *package = &account->packages[lease->package].b;
        package->leased -= lease->units;
        if (package_ended(package, now_ms) && !PLANTED_LEDGER(BACK_EXPIRED)) {
            package->expired += lease->units;
        } else {
            package->free += lease->units;
        }
    }
    account->leases_count = kept;
    kept = 0;
    for (uint32_t i = 0; i < account->ends_count; i++) {
        if (account->ends[i].producer != producer) account->ends[kept++] = account->ends[i];
    }
    account->ends_count = kept;
}

bool package_ended(const struct package_balance *package, uint64_t now_ms)
{
    return package->expires_ms > 0 && now_ms >= package->expires_ms;
}

bool ledger_id_valid(const char *text, size_t length_max, const char *punctuation)
{
    size_t length = strnlen(text, length_max + 1);
    if (length == 0 || length > length_max) return false;
    for (size_t i = 0; i < length; i++) {
        char c = text[i];
        bool plain = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
        if (!plain && strchr(punctuation, c) == NULL) return false;
    }
    return true;
}

void ledger_empty(struct ledger *ledger)
{
    for (uint32_t i = 0; i < ledger->accounts_count; i++) {
        mem_free(ledger->accounts[i].packages);
        mem_free(ledger->accounts[i].order);
        mem_free(ledger->accounts[i].leases);
        mem_free(ledger->accounts[i].ends);
    }
    mem_free(ledger->accounts);
    mem_free(ledger->months);
    mem_free(ledger->marks);
    mem_free(ledger->orders);
    mem_free(ledger->account_index.slots);
    mem_free(ledger->month_index.slots);
    mem_free(ledger->mark_index.slots);
    mem_free(ledger->order_index.slots);
    buf_free(&ledger->funding);
    *ledger = (struct ledger){0};
}
