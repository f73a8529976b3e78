/* Ranks, virtual token counters and the queues of tenants; see fair.h. */
#include "scheduler/fair.h"

#include "runtime/base/check.h"
#include "runtime/base/mem.h"
#include "scheduler/planted.h"

#include <string.h>

enum status fair_init(struct fair *fair, uint32_t tenants_max, uint32_t entries_max)
{
    memset(fair, 0, sizeof *fair);
    size_t accounts = (size_t)tenants_max * FAIR_RANKS;
    fair->entries = mem_alloc(entries_max, sizeof *fair->entries);
    fair->accounts = mem_alloc(accounts, sizeof *fair->accounts);
    fair->dirty = mem_alloc(accounts, sizeof *fair->dirty);
    bool ok = fair->entries && fair->accounts && fair->dirty;
    for (uint32_t r = 0; ok && r < FAIR_RANKS; r++)
        ok = heap_init(&fair->waiting[r], tenants_max) == ST_OK && heap_init(&fair->active[r], tenants_max) == ST_OK;
    if (!ok) {
        fair_free(fair);
        return ST_NOMEM;
    }
    for (size_t a = 0; a < accounts; a++) fair->accounts[a].root = FAIR_NONE;
    fair->tenants_max = tenants_max;
    fair->entries_max = entries_max;
    return ST_OK;
}

void fair_free(struct fair *fair)
{
    mem_free(fair->entries);
    mem_free(fair->accounts);
    mem_free(fair->dirty);
    for (uint32_t r = 0; r < FAIR_RANKS; r++) {
        heap_free(&fair->waiting[r]);
        heap_free(&fair->active[r]);
    }
    memset(fair, 0, sizeof *fair);
}

static bool before(const struct fair_entry *a, const struct fair_entry *b)
{
    if (a->group != b->group) return a->group < b->group;
    if (a->priority != b->priority) return a->priority < b->priority;
    return a->order < b->order;
}

/* The root of two heaps (FAIR_NONE = empty) made one. */
static uint32_t meld(struct fair *fair, uint32_t a, uint32_t b)
{
    if (a == FAIR_NONE) return b;
    if (b == FAIR_NONE) return a;
    fair->touched += 2;
    if (before(&fair->entries[b], &fair->entries[a])) {
        uint32_t swap = a;
        a = b;
        b = swap;
    }
    struct fair_entry *parent = &fair->entries[a], *child = &fair->entries[b];
    child->sibling = parent->child;
    child->previous = a;
    if (parent->child != FAIR_NONE) fair->entries[parent->child].previous = b;
    parent->child = b;
    return a;
}

/* Pairs the children of a removed node left to right, then melds the pairs right to left. */
static uint32_t meld_children(struct fair *fair, uint32_t first)
{
    uint32_t pairs = FAIR_NONE; /* a stack through `previous` */
    while (first != FAIR_NONE) {
        uint32_t a = first, b = fair->entries[a].sibling;
        first = b == FAIR_NONE ? FAIR_NONE : fair->entries[b].sibling;
        fair->entries[a].sibling = FAIR_NONE;
        if (b != FAIR_NONE) fair->entries[b].sibling = FAIR_NONE;
        a = meld(fair, a, b);
        fair->entries[a].previous = pairs;
        pairs = a;
    }
    uint32_t root = FAIR_NONE;
    while (pairs != FAIR_NONE) {
        uint32_t next = fair->entries[pairs].previous;
        fair->entries[pairs].previous = FAIR_NONE;
        root = meld(fair, root, pairs);
        pairs = next;
    }
    return root;
}

/* Brings both heaps of a rank in line with the account. An account that becomes active is lifted first. */
static void place(struct fair *fair, uint32_t tenant, uint32_t rank)
{
    struct fair_account *account = fair_account(fair, tenant, rank);
    struct heap *waiting = &fair->waiting[rank], *active = &fair->active[rank];
    if (!account->waiting_entries && !account->running) {
        heap_remove(waiting, tenant);
        heap_remove(active, tenant);
        return;
    }
    if (!heap_contains(active, tenant) && active->count) {
        uint64_t lowest = active->keys[heap_top(active)];
        if (account->counter < lowest) account->counter = lowest;
    }
    heap_set(active, tenant, account->counter);
    if (account->waiting_entries)
        heap_set(waiting, tenant, account->counter);
    else
        heap_remove(waiting, tenant);
}

void fair_push(struct fair *fair, uint32_t entry, uint32_t tenant, uint32_t rank, enum fair_group group,
               int32_t priority, uint64_t order)
{
    CHECK(entry < fair->entries_max && tenant < fair->tenants_max && rank < FAIR_RANKS);
    struct fair_entry *record = &fair->entries[entry];
    CHECK(!record->waiting); /* R3 */
    *record = (struct fair_entry){.order = order,
                                  .tenant = tenant,
                                  .child = FAIR_NONE,
                                  .sibling = FAIR_NONE,
                                  .previous = FAIR_NONE,
                                  .priority = priority,
                                  .group = (uint8_t)group,
                                  .rank = (uint8_t)rank,
                                  .waiting = true};
    struct fair_account *account = fair_account(fair, tenant, rank);
    account->root = meld(fair, account->root, entry);
    account->waiting_entries++;
    fair->waiting_count++;
    fair->touched++;
    place(fair, tenant, rank);
}

void fair_remove(struct fair *fair, uint32_t entry)
{
    struct fair_entry *record = &fair->entries[entry];
    if (!record->waiting) return;
    struct fair_account *account = fair_account(fair, record->tenant, record->rank);
    uint32_t children = meld_children(fair, record->child);
    if (account->root == entry) {
        account->root = children;
    } else {
        struct fair_entry *left = &fair->entries[record->previous];
        if (left->child == entry)
            left->child = record->sibling;
        else
            left->sibling = record->sibling;
        if (record->sibling != FAIR_NONE) fair->entries[record->sibling].previous = record->previous;
        account->root = meld(fair, account->root, children);
    }
    record->waiting = false;
    account->waiting_entries--;
    fair->waiting_count--;
    fair->touched++;
    place(fair, record->tenant, record->rank);
}

uint32_t fair_top(const struct fair *fair)
{
    for (uint32_t r = 0; r < FAIR_RANKS; r++) {
        uint32_t tenant = heap_top(&fair->waiting[r]);
        if (tenant != HEAP_NONE) return fair_account(fair, tenant, r)->root;
    }
    return FAIR_NONE;
}

void fair_run_begin(struct fair *fair, uint32_t tenant, uint32_t rank)
{
    if (fair_account(fair, tenant, rank)->running++ == 0) place(fair, tenant, rank);
}

void fair_run_end(struct fair *fair, uint32_t tenant, uint32_t rank)
{
    struct fair_account *account = fair_account(fair, tenant, rank);
    CHECK(account->running > 0);
    if (--account->running == 0) place(fair, tenant, rank);
}

void fair_charge(struct fair *fair, uint32_t tenant, uint32_t rank, uint64_t tokens)
{
    struct fair_account *account = fair_account(fair, tenant, rank);
    account->counter += tokens;
    if (account->dirty) return;
    account->dirty = true;
    fair->dirty[fair->dirty_count++] = tenant * FAIR_RANKS + rank;
}

void fair_settle(struct fair *fair)
{
    for (uint32_t i = 0; i < fair->dirty_count; i++) {
        uint32_t tenant = fair->dirty[i] / FAIR_RANKS, rank = fair->dirty[i] % FAIR_RANKS;
        struct fair_account *account = &fair->accounts[fair->dirty[i]];
        account->dirty = false;
        fair->touched++;
        if (account->waiting_entries || account->running) place(fair, tenant, rank);
    }
    fair->dirty_count = 0;
}

uint64_t fair_touched(const struct fair *fair)
{
    uint64_t touched = fair->touched;
    for (uint32_t r = 0; r < FAIR_RANKS; r++) touched += fair->waiting[r].touched + fair->active[r].touched;
    return touched;
}
