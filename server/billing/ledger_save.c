/* A ledger as bytes and back, as text, and its invariants.
 *
 * Bytes: magic, then uuid, accounts (with packages, order of use, leases, their ends), months, marks, orders, each as a
 * count and its entries in the order they were made, little endian; last XXH64 of all before. The same records and
 * orders give the same bytes, whether they were applied at once or over a snapshot. Loading believes nothing: every
 * count is held against the bytes that are left, every index against its array, and ledger_check has the last word. */
#include "runtime/base/hash.h"
#include "runtime/base/mem.h"
#include "server/billing/bytes.h"
#include "server/billing/ledger_state.h"

#include <inttypes.h>
#include <string.h>

/* The second has energy in its months: written when there is any, so that a node without a meter keeps files that an
 * older program reads. */
static const char MAGIC[8] = "MRLEDG1", MAGIC_ENERGY[8] = "MRLEDG2";

enum { NUMBER_BYTES = 8, MONTH_NUMBERS = 11, ENERGY_NUMBERS = 6 };

static void save_number(struct buf *out, uint64_t value)
{
    uint8_t bytes[NUMBER_BYTES];
    for (int i = 0; i < NUMBER_BYTES; i++) bytes[i] = (uint8_t)(value >> (8 * i));
    buf_append(out, bytes, sizeof bytes);
}

static void save_text(struct buf *out, const char *text)
{
    buf_append_char(out, (char)strlen(text));
    buf_append_text(out, text);
}

static void save_account(struct buf *out, const struct ledger_account *account)
{
    save_number(out, account->number);
    save_number(out, (uint64_t)account->state << 1 | account->touched);
    save_number(out, account->used);
    save_number(out, account->overage);
    save_number(out, account->packages_count);
    for (uint32_t i = 0; i < account->packages_count; i++) {
        const struct package_balance *b = &account->packages[i].b;
        const uint64_t values[] = {b->granted,  b->free,         b->leased,     b->used,       b->expired,
                                   b->priority, b->effective_ms, b->expires_ms, b->created_ms, b->class_mask};
        save_text(out, b->id);
        for (size_t k = 0; k < sizeof values / sizeof values[0]; k++) save_number(out, values[k]);
    }
    save_number(out, account->order_count);
    for (uint32_t i = 0; i < account->order_count; i++) save_number(out, account->order[i]);
    save_number(out, account->leases_count);
    for (uint32_t i = 0; i < account->leases_count; i++) {
        save_number(out, account->leases[i].producer);
        save_number(out, account->leases[i].package);
        save_number(out, account->leases[i].units);
    }
    save_number(out, account->ends_count);
    for (uint32_t i = 0; i < account->ends_count; i++) {
        save_number(out, account->ends[i].producer);
        save_number(out, account->ends[i].until_ms);
    }
}

static void save_month(struct buf *out, const struct ledger_month *month, bool energy)
{
    const struct month_total *t = &month->total;
    const uint64_t values[] = {
        month->account, month->month, t->mclass,    t->in_miss,    t->in_hit,         t->out,
        t->units,       t->records,   t->waived_in, t->waived_out, t->waived_records, t->energy_uj,
        t->idle_uj,     t->green_uj,  t->ugco2_loc, t->ugco2_mkt,  t->energy_records};
    const size_t count = energy ? MONTH_NUMBERS + ENERGY_NUMBERS : MONTH_NUMBERS;
    for (size_t k = 0; k < count; k++) save_number(out, values[k]);
}

static bool any_energy(const struct ledger *ledger)
{
    for (uint32_t i = 0; i < ledger->months_count; i++) {
        if (ledger->months[i].total.energy_records > 0) return true;
    }
    return false;
}

static void save_order(struct buf *out, const struct ledger_done *order)
{
    const uint64_t values[] = {order->account,      order->op,         order->units,     order->priority,
                               order->effective_ms, order->expires_ms, order->class_mask};
    save_text(out, order->id);
    save_text(out, order->package);
    for (size_t k = 0; k < sizeof values / sizeof values[0]; k++) save_number(out, values[k]);
}

void ledger_save(const struct ledger *ledger, struct buf *out)
{
    size_t start = out->length;
    bool energy = any_energy(ledger);
    buf_append(out, energy ? MAGIC_ENERGY : MAGIC, sizeof MAGIC);
    save_text(out, ledger->uuid);
    save_number(out, ledger->accounts_count);
    for (uint32_t i = 0; i < ledger->accounts_count; i++) save_account(out, &ledger->accounts[i]);
    save_number(out, ledger->months_count);
    for (uint32_t i = 0; i < ledger->months_count; i++) save_month(out, &ledger->months[i], energy);
    save_number(out, ledger->marks_count);
    for (uint32_t i = 0; i < ledger->marks_count; i++) {
        const struct ledger_mark *mark = &ledger->marks[i];
        save_number(out, mark->partition);
        save_number(out, mark->producer);
        save_number(out, mark->epoch);
        save_number(out, mark->pseq);
        buf_append(out, mark->chain, CHAIN_BYTES);
    }
    save_number(out, ledger->orders_count);
    for (uint32_t i = 0; i < ledger->orders_count; i++) save_order(out, &ledger->orders[i]);
    if (buf_ok(out)) save_number(out, hash_xxh64(out->data + start, out->length - start, 0));
}

/* A count of entries that take at least `bytes` each; 0 and bad when so many cannot be there. */
static uint64_t load_count(struct byte_reader *from, size_t bytes)
{
    uint64_t count = get_u64(from);
    if (count > (from->length - from->offset) / bytes) from->bad = true;
    return from->bad ? 0 : count;
}

static uint64_t load_below(struct byte_reader *from, uint64_t end)
{
    uint64_t value = get_u64(from);
    if (value >= end) from->bad = true;
    return from->bad ? 0 : value;
}

static void load_text(struct byte_reader *from, char *out, size_t length_max, const char *punctuation, bool empty)
{
    get_text8(from, out, length_max + 1);
    if (!ledger_id_valid(out, length_max, punctuation) && !(empty && out[0] == 0)) from->bad = true;
}

static enum status load_packages(struct byte_reader *from, struct ledger_account *account)
{
    uint64_t count = load_count(from, 1 + 10 * NUMBER_BYTES);
    for (uint64_t i = 0; i < count && !from->bad; i++) {
        if (!ledger_package_room(account)) return ST_NOMEM;
        struct package_balance *b = &account->packages[account->packages_count].b;
        account->packages[account->packages_count].listed = false;
        load_text(from, b->id, PACKAGE_ID_MAX, "_-", false);
        uint64_t *const values[] = {&b->granted,  &b->free,         &b->leased,     &b->used,       &b->expired,
                                    &b->priority, &b->effective_ms, &b->expires_ms, &b->created_ms, &b->class_mask};
        for (size_t k = 0; k < sizeof values / sizeof values[0]; k++) {
            *values[k] = load_below(from, k < 5 ? PACKAGE_UNITS_MAX + 1 : UNITS_MAX + 1);
        }
        account->packages_count++;
    }
    count = load_count(from, NUMBER_BYTES);
    if (count > PACKAGES_MAX) from->bad = true;
    for (uint64_t i = 0; i < count && !from->bad; i++) {
        uint32_t package = (uint32_t)load_below(from, account->packages_count);
        if (from->bad || account->packages[package].listed) {
            from->bad = true;
            break;
        }
        account->packages[package].listed = true;
        account->order[account->order_count++] = package;
    }
    return ST_OK;
}

static enum status load_leases(struct byte_reader *from, struct ledger_account *account)
{
    uint64_t count = load_count(from, 3 * NUMBER_BYTES);
    for (uint64_t i = 0; i < count && !from->bad; i++) {
        uint64_t producer = get_u64(from);
        uint32_t package = (uint32_t)load_below(from, account->packages_count);
        if (from->bad) break;
        uint32_t before = account->leases_count;
        struct ledger_lease *lease = ledger_lease_take(account, producer, package);
        if (lease == NULL) return ST_NOMEM;
        if (account->leases_count == before) from->bad = true;
        lease->units = load_below(from, UNITS_MAX + 1);
    }
    count = load_count(from, 2 * NUMBER_BYTES);
    for (uint64_t i = 0; i < count && !from->bad; i++) {
        uint64_t producer = get_u64(from);
        if (ledger_lease_end_find(account, producer) != NULL) from->bad = true;
        if (!ledger_lease_end_room(account)) return ST_NOMEM;
        account->ends[account->ends_count++] =
            (struct ledger_lease_end){.producer = producer, .until_ms = load_below(from, 2 * UNITS_MAX)};
    }
    return ST_OK;
}

static enum status load_accounts(struct byte_reader *from, struct ledger *ledger)
{
    uint64_t count = load_count(from, 8 * NUMBER_BYTES);
    for (uint64_t i = 0; i < count && !from->bad; i++) {
        uint64_t number = load_below(from, UINT64_C(1) << 63);
        if (ledger_account_find(ledger, number) != ENTRY_NONE) from->bad = true;
        uint32_t entry = ledger_account_take(ledger, number);
        if (entry == ENTRY_NONE) return ST_NOMEM;
        struct ledger_account *account = &ledger->accounts[entry];
        uint64_t state = get_u64(from);
        account->touched = (state & 1) != 0;
        account->state = (char)(state >> 1 & 127);
        if (state >> 1 != 0 && state >> 1 != 'A' && state >> 1 != 'C') from->bad = true;
        account->used = get_u64(from);
        account->overage = get_u64(from);
        TRY(load_packages(from, account));
        TRY(load_leases(from, account));
    }
    return ST_OK;
}

static enum status load_months(struct byte_reader *from, struct ledger *ledger, bool energy)
{
    uint64_t count = load_count(from, (size_t)(energy ? MONTH_NUMBERS + ENERGY_NUMBERS : MONTH_NUMBERS) * NUMBER_BYTES);
    for (uint64_t i = 0; i < count && !from->bad; i++) {
        uint64_t account = load_below(from, UINT64_C(1) << 63);
        uint32_t month = (uint32_t)load_below(from, 1000000);
        uint8_t mclass = (uint8_t)load_below(from, MODEL_CLASSES);
        if (ledger_month_find(ledger, account, month, mclass) != ENTRY_NONE) from->bad = true;
        uint32_t entry = ledger_month_take(ledger, account, month, mclass);
        if (entry == ENTRY_NONE) return ST_NOMEM;
        struct month_total *t = &ledger->months[entry].total;
        uint64_t *const values[] = {&t->in_miss,   &t->in_hit,        &t->out,        &t->units,
                                    &t->records,   &t->waived_in,     &t->waived_out, &t->waived_records,
                                    &t->energy_uj, &t->idle_uj,       &t->green_uj,   &t->ugco2_loc,
                                    &t->ugco2_mkt, &t->energy_records};
        const size_t known = sizeof values / sizeof values[0] - (energy ? 0 : ENERGY_NUMBERS);
        for (size_t k = 0; k < known; k++) *values[k] = load_below(from, INT64_MAX);
    }
    return ST_OK;
}

static enum status load_marks(struct byte_reader *from, struct ledger *ledger)
{
    uint64_t count = load_count(from, 4 * NUMBER_BYTES + CHAIN_BYTES);
    for (uint64_t i = 0; i < count && !from->bad; i++) {
        uint16_t partition = (uint16_t)load_below(from, PARTITIONS);
        uint64_t producer = get_u64(from);
        if (ledger_mark_find(ledger, partition, producer) != ENTRY_NONE) from->bad = true;
        uint32_t entry = ledger_mark_take(ledger, partition, producer);
        if (entry == ENTRY_NONE) return ST_NOMEM;
        ledger->marks[entry].epoch = load_below(from, UNITS_MAX + 1);
        ledger->marks[entry].pseq = load_below(from, PSEQ_MAX + 1);
        get_copy(from, ledger->marks[entry].chain, CHAIN_BYTES);
    }
    return ST_OK;
}

static enum status load_orders(struct byte_reader *from, struct ledger *ledger)
{
    uint64_t count = load_count(from, 2 + 7 * NUMBER_BYTES);
    for (uint64_t i = 0; i < count && !from->bad; i++) {
        char id[ORDER_ID_MAX + 1], package[PACKAGE_ID_MAX + 1];
        load_text(from, id, ORDER_ID_MAX, "_.:-", false);
        load_text(from, package, PACKAGE_ID_MAX, "_-", true);
        uint64_t account = load_below(from, UINT64_C(1) << 63);
        if (from->bad || ledger_order_find(ledger, account, id) != ENTRY_NONE) {
            from->bad = true;
            break;
        }
        struct ledger_done *order = ledger_order_take(ledger, account, id);
        if (order == NULL) return ST_NOMEM;
        memcpy(order->package, package, sizeof package);
        order->op = (uint8_t)load_below(from, ORDER_KINDS);
        if (order->op == PACKAGE_REAP) from->bad = true; /* is no order that is remembered */
        order->units = load_below(from, PACKAGE_UNITS_MAX + 1);
        order->priority = load_below(from, UNITS_MAX + 1);
        order->effective_ms = load_below(from, UNITS_MAX + 1);
        order->expires_ms = load_below(from, UNITS_MAX + 1);
        order->class_mask = load_below(from, UNITS_MAX + 1);
        ledger_order_keep(ledger);
    }
    return ST_OK;
}

static enum status load_all(struct byte_reader *from, struct ledger *ledger, bool energy, struct error *err)
{
    load_text(from, ledger->uuid, LEDGER_UUID_CHARS, "-", true);
    enum status status = load_accounts(from, ledger);
    if (status == ST_OK) status = load_months(from, ledger, energy);
    if (status == ST_OK) status = load_marks(from, ledger);
    if (status == ST_OK) status = load_orders(from, ledger);
    if (status != ST_OK) return error_set(err, status, "out of memory for a ledger of %zu bytes", from->length);
    if (from->bad || from->offset != from->length) {
        return error_set(err, ST_INVAL, "saved ledger: damaged at byte %zu", from->offset);
    }
    return ledger_check(ledger, err) ? ST_OK : ST_INVAL;
}

enum status ledger_load(struct ledger *ledger, const void *bytes, size_t length, struct error *err)
{
    const uint8_t *all = bytes;
    bool energy = length >= sizeof MAGIC && memcmp(all, MAGIC_ENERGY, sizeof MAGIC) == 0;
    if (length < sizeof MAGIC + NUMBER_BYTES || (!energy && memcmp(all, MAGIC, sizeof MAGIC) != 0)) {
        return error_set(err, ST_INVAL, "saved ledger: not one (%zu bytes)", length);
    }
    struct byte_reader sum = {.bytes = all, .offset = length - NUMBER_BYTES, .length = length};
    if (get_u64(&sum) != hash_xxh64(all, length - NUMBER_BYTES, 0)) {
        return error_set(err, ST_INVAL, "saved ledger: its checksum does not fit its %zu bytes", length);
    }
    struct byte_reader from = {.bytes = all, .offset = sizeof MAGIC, .length = length - NUMBER_BYTES};
    struct ledger loaded = {0};
    buf_init(&loaded.funding, 0);
    enum status status = load_all(&from, &loaded, energy, err);
    if (status != ST_OK) {
        ledger_empty(&loaded);
        return status;
    }
    ledger_empty(ledger);
    *ledger = loaded;
    return ST_OK;
}

static bool broken(struct error *err, uint64_t account, const char *package, const char *rule)
{
    (void)error_set(err, ST_INVAL, "ledger: account %" PRIu64 "%s%s: %s", account, package[0] != 0 ? ", package " : "",
                    package, rule);
    return false;
}

static bool check_package(const struct ledger_account *account, uint32_t at, struct error *err)
{
    const struct ledger_package *package = &account->packages[at];
    const struct package_balance *b = &package->b;
    if (b->granted > PACKAGE_UNITS_MAX) return broken(err, account->number, b->id, "granted passes its limit");
    if (b->free > b->granted || b->leased > b->granted || b->used > b->granted || b->expired > b->granted) {
        return broken(err, account->number, b->id, "a part is larger than what was granted");
    }
    uint64_t sum = b->free + b->leased, rest = b->used + b->expired; /* each at most 9.2e18: no overflow */
    if (sum > b->granted || b->granted - sum != rest) {
        return broken(err, account->number, b->id, "granted is not free + leased + used + expired");
    }
    uint64_t leased = 0;
    for (uint32_t i = 0; i < account->leases_count; i++) {
        const struct ledger_lease *lease = &account->leases[i];
        if (lease->package == at && __builtin_add_overflow(leased, lease->units, &leased)) {
            return broken(err, account->number, b->id, "leases overflow");
        }
    }
    if (leased != b->leased) return broken(err, account->number, b->id, "leased is not the sum of its leases");
    if (!package->listed && b->free + b->leased > 0) {
        return broken(err, account->number, b->id, "settled, but holds units");
    }
    return true;
}

static bool check_account(const struct ledger_account *account, struct error *err)
{
    uint64_t used = account->overage;
    for (uint32_t i = 0; i < account->packages_count; i++) {
        if (!check_package(account, i, err)) return false;
        if (__builtin_add_overflow(used, account->packages[i].b.used, &used)) {
            return broken(err, account->number, "", "used overflows");
        }
    }
    if (account->used > INT64_MAX || used != account->used) {
        return broken(err, account->number, "", "used is not what its packages and overage make");
    }
    for (uint32_t i = 0; i < account->ends_count; i++) {
        for (uint32_t k = 0; k < i; k++) {
            if (account->ends[k].producer == account->ends[i].producer) {
                return broken(err, account->number, "", "a producer's leases end twice");
            }
        }
    }
    for (uint32_t i = 0; i < account->leases_count; i++) {
        if (ledger_lease_end_find(account, account->leases[i].producer) == NULL && account->leases[i].units > 0) {
            return broken(err, account->number, "", "a lease without an end");
        }
        if (ledger_leased(account, account->leases[i].producer) > UNITS_MAX) {
            return broken(err, account->number, "", "a producer leases more than 2^53 - 1");
        }
    }
    return true;
}

/* Months of an account add up to what it used; summed in one pass over the months into `sums` beside the accounts. */
static bool check_months(const struct ledger *ledger, uint64_t *sums, struct error *err)
{
    for (uint32_t i = 0; i < ledger->months_count; i++) {
        const struct ledger_month *month = &ledger->months[i];
        uint32_t entry = ledger_account_find(ledger, month->account);
        if (entry == ENTRY_NONE && month->total.units == 0) continue;
        if (entry == ENTRY_NONE || __builtin_add_overflow(sums[entry], month->total.units, &sums[entry])) {
            return broken(err, month->account, "", "a month that is nobody's, or overflows");
        }
    }
    for (uint32_t i = 0; i < ledger->accounts_count; i++) {
        if (sums[i] != ledger->accounts[i].used) {
            return broken(err, ledger->accounts[i].number, "", "used is not what its months make");
        }
    }
    return true;
}

bool ledger_check(const struct ledger *ledger, struct error *err)
{
    for (uint32_t i = 0; i < ledger->accounts_count; i++) {
        if (!check_account(&ledger->accounts[i], err)) return false;
    }
    uint64_t *sums = mem_alloc(ledger->accounts_count, sizeof sums[0]);
    if (sums == NULL) {
        (void)error_set(err, ST_NOMEM, "ledger: no memory to add up its months");
        return false;
    }
    bool fine = check_months(ledger, sums, err);
    mem_free(sums);
    return fine;
}
