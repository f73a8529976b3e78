/* Records applied to a ledger in memory: the rules of ledger.lua over plain integers. Where the two could differ, this
 * file follows the order of checks there, so that a refused call gets the same answer; ledger_order.c has the orders.
 *
 *   check the call -> each record: sequence, chain, room -> memory -> plan -> change, mark last
 *
 * Nothing fails between a record's first change and its last. The whole chain of the last record is kept, not eight
 * bytes of it, so each record's seal is checked too, which Redis leaves to the emitter. */
#include "runtime/base/mem.h"
#include "server/billing/ledger_planted.h"
#include "server/billing/ledger_state.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* Who pays: shares of packages, in the order they are taken. `from` as the log writes it: L a lease, A free units, G
 * free units into a lease, X a lease that expired with its package. */
enum { SHARES_MAX = 2 * PACKAGES_MAX };
struct plan {
    uint32_t count;
    struct share {
        uint32_t package;
        char from;
        uint64_t units;
    } shares[SHARES_MAX];
};

static const char *const ANSWER_NAMES[] = {
#define X(name) #name,
    LEDGER_ANSWER_MAP(X)
#undef X
};

const char *ledger_answer_name(enum ledger_answer answer)
{
    return ANSWER_NAMES[answer];
}

bool ledger_answer_parse(const char *text, enum ledger_answer *out)
{
    for (size_t i = 0; i < sizeof ANSWER_NAMES / sizeof ANSWER_NAMES[0]; i++) {
        if (strcmp(text, ANSWER_NAMES[i]) == 0) {
            *out = (enum ledger_answer)i;
            return true;
        }
    }
    return false;
}

enum status ledger_create(struct ledger **ledger)
{
    struct ledger *created = mem_alloc(1, sizeof *created);
    if (created == NULL) return ST_NOMEM;
    buf_init(&created->funding, 0);
    *ledger = created;
    return ST_OK;
}

void ledger_destroy(struct ledger *ledger)
{
    if (ledger == NULL) return;
    ledger_empty(ledger);
    mem_free(ledger);
}

enum ledger_answer ledger_init(struct ledger *ledger, const char *uuid)
{
    if (!ledger_id_valid(uuid, LEDGER_UUID_CHARS, "-")) return LEDGER_BADARG;
    if (ledger->uuid[0] != 0) return strcmp(ledger->uuid, uuid) == 0 ? LEDGER_DUP : LEDGER_WRONGLEDGER;
    memcpy(ledger->uuid, uuid, strlen(uuid));
    return LEDGER_OK;
}

const char *ledger_uuid(const struct ledger *ledger)
{
    return ledger->uuid;
}

static bool package_serves(const struct package_balance *package, uint8_t mclass)
{
    return PLANTED_LEDGER(CLASS) || (package->class_mask >> mclass & 1) != 0;
}

static bool package_live(const struct package_balance *package, uint64_t now_ms)
{
    return PLANTED_LEDGER(LIVE) || (now_ms >= package->effective_ms && !package_ended(package, now_ms));
}

static void plan_add(struct plan *plan, uint32_t package, char from, uint64_t units)
{
    plan->shares[plan->count++] = (struct share){.package = package, .from = from, .units = units};
}

/* Takes free units in order of use; returns what is left of need. */
static uint64_t plan_free(const struct ledger_account *account, const struct record *record, char from, uint64_t need,
                          struct plan *plan)
{
    for (uint32_t i = 0; i < account->order_count && need > 0; i++) {
        const struct package_balance *package = &account->packages[account->order[i]].b;
        if (package->free == 0 || !package_serves(package, record->mclass) ||
            !package_live(package, (uint64_t)record->t_ms)) {
            continue;
        }
        uint64_t units = package->free < need ? package->free : need;
        plan_add(plan, account->order[i], from, units);
        need -= units;
    }
    return need;
}

/* Own leases first, then free units, each in order of use; returns the rest, which is overage: usage is a fact and
 * never refused (L2). */
static uint64_t plan_use(const struct ledger_account *account, uint64_t producer, const struct record *record,
                         struct plan *plan)
{
    uint64_t need = record->units;
    for (uint32_t i = 0; i < account->order_count && need > 0 && !PLANTED_LEDGER(LEASE_FIRST); i++) {
        const struct ledger_lease *lease = ledger_lease_find(account, producer, account->order[i]);
        if (lease == NULL || lease->units == 0) continue;
        if (!package_serves(&account->packages[account->order[i]].b, record->mclass)) continue;
        uint64_t units = lease->units < need ? lease->units : need;
        plan_add(plan, account->order[i], 'L', units);
        need -= units;
    }
    return plan_free(account, record, 'A', need, plan);
}

/* Up to want of what is free; nothing when less than least. */
static void plan_grant(const struct ledger_account *account, uint64_t leased, const struct record *record,
                       struct plan *plan)
{
    if (account->state != 'A' && !(PLANTED_LEDGER(CLOSED) && account->state == 'C')) return;
    uint64_t room = UNITS_MAX - leased;
    uint64_t want = record->want < room || PLANTED_LEDGER(LEASE_CAP) ? record->want : room;
    uint64_t got = want - plan_free(account, record, 'G', want, plan);
    if (got < record->least && !PLANTED_LEDGER(LEAST)) plan->count = 0;
}

static void plan_release(const struct ledger_account *account, uint64_t producer, const struct record *record,
                         struct plan *plan)
{
    for (uint32_t i = 0; i < account->order_count; i++) {
        const struct ledger_lease *lease = ledger_lease_find(account, producer, account->order[i]);
        if (lease == NULL || lease->units == 0) continue;
        bool ended = package_ended(&account->packages[account->order[i]].b, (uint64_t)record->t_ms);
        plan_add(plan, account->order[i], ended ? 'X' : 'A', lease->units);
    }
}

/* What a grant answers: all this producer leases that its class may use. */
static uint64_t leased_for_class(const struct ledger_account *account, uint64_t producer, uint8_t mclass)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < account->leases_count; i++) {
        const struct ledger_lease *lease = &account->leases[i];
        if (lease->producer == producer &&
            (package_serves(&account->packages[lease->package].b, mclass) || PLANTED_LEDGER(GRANT_CLASS))) {
            sum += lease->units;
        }
    }
    return sum;
}

static bool has_room(uint64_t counter)
{
    return counter < COUNTER_ROOM || PLANTED_LEDGER(ROOM);
}

/* Every counter a record may add to. Packages cannot pass PACKAGE_UNITS_MAX. */
static bool room_for(const struct ledger_account *account, const struct month_total *total, const struct record *record)
{
    if (!has_room(account->used) || !has_room(account->overage)) return false;
    if (total == NULL) return true;
    if (record->kind == RECORD_WAIVED) {
        return has_room(total->waived_in) && has_room(total->waived_out) && has_room(total->waived_records);
    }
    if (record->kind == RECORD_ENERGY) {
        return has_room(total->energy_uj) && has_room(total->idle_uj) && has_room(total->green_uj) &&
               has_room(total->ugco2_loc) && has_room(total->ugco2_mkt) && has_room(total->energy_records);
    }
    return has_room(total->in_miss) && has_room(total->in_hit) && has_room(total->out) && has_room(total->units) &&
           has_room(total->records);
}

static void change_usage(struct ledger_account *account, uint64_t producer, struct month_total *total,
                         const struct record *record, const struct plan *plan, uint64_t over)
{
    if (record->kind == RECORD_WAIVED) {
        total->waived_in += record->in_total;
        total->waived_out += record->out;
        total->waived_records++;
        return;
    }
    for (uint32_t i = 0; i < plan->count; i++) {
        const struct share *share = &plan->shares[i];
        struct package_balance *package = &account->packages[share->package].b;
        if (share->from == 'L') {
            package->leased -= share->units;
            ledger_lease_find(account, producer, share->package)->units -= share->units;
        } else {
            package->free -= share->units;
        }
        package->used += share->units;
    }
    if (!PLANTED_LEDGER(OVERAGE)) account->overage += over;
    account->used += record->units;
    total->in_miss += record->in_total - record->in_hit;
    total->in_hit += record->in_hit;
    total->out += record->out;
    total->units += record->units;
    total->records++;
}

static void change_grant(struct ledger_account *account, uint64_t producer, const struct record *record,
                         const struct plan *plan, uint64_t now_ms)
{
    for (uint32_t i = 0; i < plan->count; i++) {
        const struct share *share = &plan->shares[i];
        account->packages[share->package].b.free -= share->units;
        account->packages[share->package].b.leased += share->units;
        ledger_lease_find(account, producer, share->package)->units += share->units;
    }
    if (ledger_leased(account, producer) == 0 || (PLANTED_LEDGER(RENEW) && plan->count == 0)) return;
    struct ledger_lease_end *end = ledger_lease_end_find(account, producer);
    if (end == NULL) {
        end = &account->ends[account->ends_count++];
        end->producer = producer;
    }
    end->until_ms = now_ms + record->valid_ms; /* every answer renews, also one that adds nothing */
}

/* The call under way: what ledger_apply was given, and what it has found. */
struct application {
    struct ledger *ledger;
    struct ledger_mark *mark; /* stays where it is: marks are taken once a call */
    uint16_t partition;
    uint64_t producer, epoch, now_ms;
    ledger_log_fn log;
    void *log_state;
    struct ledger_reply *reply;
};

static void funding_text(struct buf *out, const struct ledger_account *account, const struct plan *plan)
{
    buf_clear(out);
    for (uint32_t i = 0; i < plan->count; i++) {
        buf_append_format(out, "%s%s:%c:%" PRIu64, i > 0 ? ";" : "", account->packages[plan->shares[i].package].b.id,
                          plan->shares[i].from, plan->shares[i].units);
    }
    buf_append(out, "", 1);
}

/* Memory for what the plan will change, and for the log's text. */
static bool take_memory(struct application *call, struct ledger_account *account, const struct record *record,
                        const struct plan *plan)
{
    if (record->kind == RECORD_GRANT) {
        for (uint32_t i = 0; i < plan->count; i++) {
            if (ledger_lease_take(account, call->producer, plan->shares[i].package) == NULL) return false;
        }
        if (!ledger_lease_end_room(account)) return false;
    }
    if (call->log == NULL) return true;
    funding_text(&call->ledger->funding, account, plan);
    return buf_ok(&call->ledger->funding);
}

static void tell(struct application *call, const struct record *record, const char *extra)
{
    if (call->log != NULL) call->log(call->log_state, record, call->ledger->funding.data, extra);
}

static enum ledger_answer apply_usage(struct application *call, struct ledger_account *account,
                                      const struct record *record)
{
    uint32_t entry = ledger_month_take(call->ledger, record->account, record->month, record->mclass);
    if (entry == ENTRY_NONE) return LEDGER_LIMIT;
    struct month_total *total = &call->ledger->months[entry].total;
    struct plan plan;
    plan.count = 0;
    if (!room_for(account, total, record)) return LEDGER_BADSTATE;
    uint64_t over = record->kind == RECORD_CHARGED ? plan_use(account, call->producer, record, &plan) : 0;
    if (!take_memory(call, account, record, &plan)) return LEDGER_LIMIT;
    change_usage(account, call->producer, total, record, &plan, over);
    char extra[24];
    snprintf(extra, sizeof extra, "%" PRIu64, over);
    tell(call, record, extra);
    return LEDGER_OK;
}

void month_add_energy(struct month_total *total, const struct record_energy *energy)
{
    total->energy_uj += record_energy_uj(energy);
    total->idle_uj += energy->uj_idle_share;
    total->green_uj += energy->green_uj;
    total->ugco2_loc += energy->ugco2_loc;
    total->ugco2_mkt += energy->ugco2_mkt;
    total->energy_records++;
}

/* Energy is counted and costs no units: nobody pays, and no package is looked at. */
static enum ledger_answer apply_energy(struct application *call, struct ledger_account *account,
                                       const struct record *record)
{
    static const struct plan nobody;
    uint32_t entry = ledger_month_take(call->ledger, record->account, record->month, record->mclass);
    if (entry == ENTRY_NONE) return LEDGER_LIMIT;
    struct month_total *total = &call->ledger->months[entry].total;
    if (!room_for(account, total, record)) return LEDGER_BADSTATE;
    if (!take_memory(call, account, record, &nobody)) return LEDGER_LIMIT;
    month_add_energy(total, &record->energy);
    tell(call, record, "");
    return LEDGER_OK;
}

static enum ledger_answer apply_grant(struct application *call, struct ledger_account *account,
                                      const struct record *record)
{
    struct plan plan;
    plan.count = 0;
    if (!room_for(account, NULL, record)) return LEDGER_BADSTATE;
    plan_grant(account, ledger_leased(account, call->producer), record, &plan);
    if (!take_memory(call, account, record, &plan)) return LEDGER_LIMIT;
    change_grant(account, call->producer, record, &plan, call->now_ms);
    uint64_t leased = leased_for_class(account, call->producer, record->mclass);
    struct ledger_reply *reply = call->reply;
    reply->grants[reply->grants_count].pseq = record->pseq;
    reply->grants[reply->grants_count].leased = leased;
    reply->grants[reply->grants_count++].open = account->state != 'C';
    char extra[24];
    snprintf(extra, sizeof extra, "%" PRIu64, leased);
    tell(call, record, extra);
    return LEDGER_OK;
}

static enum ledger_answer apply_release(struct application *call, struct ledger_account *account,
                                        const struct record *record)
{
    struct plan plan;
    plan.count = 0;
    if (!room_for(account, NULL, record)) return LEDGER_BADSTATE;
    plan_release(account, call->producer, record, &plan);
    if (!take_memory(call, account, record, &plan)) return LEDGER_LIMIT;
    ledger_give_back(account, call->producer, (uint64_t)record->t_ms);
    tell(call, record, "");
    return LEDGER_OK;
}

/* One record that is next in its sequence. */
static enum ledger_answer apply_next(struct application *call, const struct record *record)
{
    uint32_t entry = ledger_account_take(call->ledger, record->account);
    if (entry == ENTRY_NONE) return LEDGER_LIMIT;
    struct ledger_account *account = &call->ledger->accounts[entry];
    enum ledger_answer answer;
    if (record->kind == RECORD_GRANT) {
        answer = apply_grant(call, account, record);
    } else if (record->kind == RECORD_RELEASE) {
        answer = apply_release(call, account, record);
    } else if (record->kind == RECORD_ENERGY) {
        answer = apply_energy(call, account, record);
    } else {
        answer = apply_usage(call, account, record);
    }
    if (answer != LEDGER_OK) return answer;
    account->touched = true;
    call->mark->epoch = call->epoch;
    call->mark->pseq = record->pseq;
    memcpy(call->mark->chain, record->chain, CHAIN_BYTES);
    return LEDGER_OK;
}

static enum ledger_answer apply_one(struct application *call, const struct encoded_record *encoded)
{
    struct record record;
    if (record_decode(encoded->bytes, encoded->length, &record, NULL) != ST_OK) return LEDGER_BADARG;
    if (record.partition != call->partition) return LEDGER_BADARG;
    struct ledger_mark *mark = call->mark;
    if (record.pseq <= mark->pseq && !PLANTED_LEDGER(DUPLICATE)) {
        bool same = record.pseq < mark->pseq || memcmp(record.chain, mark->chain, CHAIN_BYTES) == 0;
        if (!same && !PLANTED_LEDGER(SAME_HASH)) return LEDGER_CONFLICT;
        call->reply->duplicates++;
        return LEDGER_OK;
    }
    if (record.pseq > mark->pseq + 1 && !PLANTED_LEDGER(GAP)) return LEDGER_GAP;
    if (!PLANTED_LEDGER(CHAIN) && !record_sealed(encoded->bytes, encoded->length, mark->chain)) return LEDGER_CONFLICT;
    return apply_next(call, &record);
}

static enum ledger_answer identity(const struct ledger *ledger, const char *uuid)
{
    if (ledger->uuid[0] == 0) return LEDGER_NOLEDGER;
    return strcmp(ledger->uuid, uuid) == 0 || PLANTED_LEDGER(UUID) ? LEDGER_OK : LEDGER_WRONGLEDGER;
}

static enum ledger_answer apply_call(struct application *call, const char *uuid, const struct encoded_record *records,
                                     uint32_t count)
{
    if (count > APPLY_RECORDS_MAX || call->epoch > UNITS_MAX || call->partition >= PARTITIONS) return LEDGER_BADARG;
    enum ledger_answer answer = identity(call->ledger, uuid);
    if (answer != LEDGER_OK) return answer;
    uint32_t entry = ledger_mark_take(call->ledger, call->partition, call->producer);
    if (entry == ENTRY_NONE) return LEDGER_LIMIT;
    call->mark = &call->ledger->marks[entry];
    if (call->epoch < call->mark->epoch && !PLANTED_LEDGER(FENCE)) return LEDGER_FENCED;
    if (count == 0) call->mark->epoch = call->epoch; /* the hello; else the first record applied stores it */
    for (uint32_t i = 0; i < count && answer == LEDGER_OK; i++) answer = apply_one(call, &records[i]);
    return answer;
}

static void mark_tell(const struct ledger_mark *mark, uint64_t *hwm, char hash8[HASH8_CHARS + 1])
{
    *hwm = mark->pseq;
    record_hash8(mark->chain, hash8);
}

void ledger_apply(struct ledger *ledger, uint16_t partition, uint64_t producer, uint64_t epoch, const char *uuid,
                  const struct encoded_record *records, uint32_t count, uint64_t now_ms, ledger_log_fn log,
                  void *log_state, struct ledger_reply *reply)
{
    static const struct ledger_mark none;
    struct application call = {
        .ledger = ledger,
        .partition = partition,
        .producer = producer,
        .epoch = epoch,
        .now_ms = now_ms,
        .log = log,
        .log_state = log_state,
        .reply = reply,
    };
    reply->duplicates = 0;
    reply->grants_count = 0;
    reply->answer = apply_call(&call, uuid, records, count);
    mark_tell(call.mark != NULL ? call.mark : &none, &reply->hwm, reply->hash8);
}

static void balance_package(struct account_balance *balance, const struct ledger_package *package)
{
    if (balance->packages_count < PACKAGES_MAX) balance->packages[balance->packages_count++] = package->b;
}

void ledger_balance(const struct ledger *ledger, uint64_t account, struct account_balance *balance)
{
    *balance = (struct account_balance){.account = account, .open = true};
    uint32_t entry = ledger_account_find(ledger, account);
    if (entry == ENTRY_NONE) return;
    const struct ledger_account *found = &ledger->accounts[entry];
    balance->known = found->state != 0 || found->touched;
    balance->open = found->state != 'C';
    balance->used = found->used;
    balance->overage = found->overage;
    for (uint32_t i = 0; i < found->order_count; i++) balance_package(balance, &found->packages[found->order[i]]);
    for (uint32_t i = found->packages_count; i-- > 0;) {
        if (!found->packages[i].listed) balance_package(balance, &found->packages[i]);
    }
}

static bool month_used(const struct month_total *total)
{
    return total->records > 0 || total->waived_records > 0 || total->energy_records > 0;
}

uint32_t ledger_month(const struct ledger *ledger, uint64_t account, uint32_t month,
                      struct month_total totals[MODEL_CLASSES])
{
    uint32_t count = 0;
    for (uint8_t mclass = 0; mclass < MODEL_CLASSES; mclass++) {
        uint32_t entry = ledger_month_find(ledger, account, month, mclass);
        if (entry != ENTRY_NONE && month_used(&ledger->months[entry].total)) {
            totals[count++] = ledger->months[entry].total;
        }
    }
    return count;
}

bool ledger_hwm(const struct ledger *ledger, uint16_t partition, uint64_t producer, uint64_t *epoch, uint64_t *hwm,
                char hash8[HASH8_CHARS + 1])
{
    uint32_t entry = ledger_mark_find(ledger, partition, producer);
    if (entry == ENTRY_NONE || ledger->marks[entry].epoch == 0) return false;
    *epoch = ledger->marks[entry].epoch;
    mark_tell(&ledger->marks[entry], hwm, hash8);
    return true;
}

void ledger_marks(const struct ledger *ledger, uint16_t partition, ledger_mark_fn visit, void *state)
{
    for (uint32_t i = 0; i < ledger->marks_count; i++) {
        const struct ledger_mark *mark = &ledger->marks[i];
        if (mark->partition != partition || mark->epoch == 0) continue;
        uint64_t hwm;
        char hash8[HASH8_CHARS + 1];
        mark_tell(mark, &hwm, hash8);
        visit(state, mark->producer, mark->epoch, hwm, hash8);
    }
}
