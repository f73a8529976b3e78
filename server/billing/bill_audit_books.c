/* What a ledger says beside what journals say; see bill_audit.h. Marks are read before the journals and balances after:
 * where a ledger moves on meanwhile, its marks have moved, and that account is not compared. */
#include "server/billing/bill_audit.h"

#include "runtime/base/mem.h"

#include <inttypes.h>
#include <string.h>

/* ---- marks ---- */

struct mark_visit {
    struct audit *audit;
    uint16_t partition;
    bool moved;   /* a later reading differs */
    bool foreign; /* producers whose journals are not here */
    enum status status;
};

static void on_mark(void *state, uint64_t producer, uint64_t epoch, uint64_t hwm, const char *hash8)
{
    struct mark_visit *visit = state;
    struct audit_sequence *sequence = audit_sequence_of(visit->audit, producer, visit->partition);
    (void)epoch;
    if (!sequence) {
        visit->status = ST_NOMEM;
        return;
    }
    sequence->marked = true;
    sequence->hwm = hwm;
    memcpy(sequence->hash8, hash8, sizeof sequence->hash8);
}

enum status audit_marks(struct audit *audit, const struct ledger_client *client, struct error *err)
{
    TRY(client->calls->uuid(client->state, audit->uuid, err));
    if (!audit->uuid[0]) return error_set(err, ST_INVAL, "there is no ledger yet where one was named");
    audit->ledger = true;
    for (uint16_t i = 0; i < PARTITIONS; i++) {
        struct mark_visit visit = {.audit = audit, .partition = i};
        TRY(client->calls->marks(client->state, i, on_mark, &visit, err));
        TRY(visit.status);
    }
    return ST_OK;
}

static void on_mark_again(void *state, uint64_t producer, uint64_t epoch, uint64_t hwm, const char *hash8)
{
    struct mark_visit *visit = state;
    struct audit_sequence_key key = {producer, visit->partition};
    const struct audit_sequence *sequence = bill_map_find(&visit->audit->sequences, &key);
    (void)epoch;
    (void)hash8;
    if (!sequence || sequence->hwm != hwm) visit->moved = true;
    if (hwm > 0 && (!sequence || !sequence->known)) visit->foreign = true;
}

/* Each producer's end against the ledger's mark. */
static void check_sequences(struct audit *audit)
{
    char text[HASH8_CHARS + 1];
    for (uint32_t i = 0; i < audit->sequences.count; i++) {
        const struct audit_sequence *sequence = bill_map_at(&audit->sequences, i);
        if (!sequence->marked || !sequence->known || sequence->hwm < sequence->first) continue;
        if (sequence->hwm > sequence->pseq) {
            audit->counts.lost += sequence->hwm - sequence->pseq;
            audit_find(audit, AUDIT_DIFFERENCE,
                       "partition %" PRIu64 ": the ledger has record %" PRIu64 " of producer %016" PRIx64
                       ", the journal ends at %" PRIu64 " (cut, or restored)",
                       sequence->key.partition, sequence->hwm, sequence->key.producer, sequence->pseq);
            continue;
        }
        uint8_t chain[CHAIN_BYTES] = {0};
        uint64_t hash = sequence->hashes[sequence->hwm - sequence->first];
        for (int k = 0; k < 8; k++) chain[k] = (uint8_t)(hash >> (56 - 8 * k));
        record_hash8(chain, text);
        if (strcmp(text, sequence->hash8) != 0)
            audit_find(audit, AUDIT_DIFFERENCE,
                       "partition %" PRIu64 ": record %" PRIu64 " of producer %016" PRIx64
                       " is another one in the ledger (cloned, or rewritten)",
                       sequence->key.partition, sequence->hwm, sequence->key.producer);
    }
}

/* ---- balances ---- */

static void check_packages(struct audit *audit, const struct account_balance *balance)
{
    uint64_t used = balance->overage;
    for (uint32_t i = 0; i < balance->packages_count; i++) {
        const struct package_balance *package = &balance->packages[i];
        used += package->used;
        if (package->granted != package->free + package->leased + package->used + package->expired)
            audit_find(audit, AUDIT_DIFFERENCE,
                       "account id:%" PRIu64 ", package %s: granted is not available + leased + used + expired",
                       balance->account, package->id);
    }
    bool all = balance->packages_count < PACKAGES_MAX; /* else settled ones were left out */
    if (all ? used != balance->used : used > balance->used)
        audit_find(audit, AUDIT_DIFFERENCE,
                   "account id:%" PRIu64 ": %" PRIu64 " units used, its packages and overage give %" PRIu64,
                   balance->account, balance->used, used);
}

static bool differs(bool exact, uint64_t ours, uint64_t ledgers)
{
    return exact ? ours != ledgers : ours > ledgers;
}

static bool total_differs(bool exact, const struct month_total *ours, const struct month_total *ledgers)
{
    return differs(exact, ours->in_miss, ledgers->in_miss) || differs(exact, ours->in_hit, ledgers->in_hit) ||
           differs(exact, ours->out, ledgers->out) || differs(exact, ours->units, ledgers->units) ||
           differs(exact, ours->records, ledgers->records) || differs(exact, ours->waived_in, ledgers->waived_in) ||
           differs(exact, ours->waived_out, ledgers->waived_out) ||
           differs(exact, ours->waived_records, ledgers->waived_records) ||
           differs(exact, ours->energy_uj, ledgers->energy_uj) || differs(exact, ours->idle_uj, ledgers->idle_uj) ||
           differs(exact, ours->green_uj, ledgers->green_uj) || differs(exact, ours->ugco2_loc, ledgers->ugco2_loc) ||
           differs(exact, ours->ugco2_mkt, ledgers->ugco2_mkt) ||
           differs(exact, ours->energy_records, ledgers->energy_records);
}

/* All months of an account that the journals have. */
static enum status check_months(struct audit *audit, const struct ledger_client *client, uint64_t account, bool exact,
                                bool *found, struct error *err)
{
    for (uint32_t i = 0; i < audit->sums.count; i++) {
        const struct audit_sum *sum = bill_map_at(&audit->sums, i);
        struct month_total totals[MODEL_CLASSES];
        const struct month_total none = {0}, *ledgers = &none;
        uint32_t count;
        if (sum->key.account != account || (audit->month && sum->key.month != audit->month)) continue;
        TRY(client->calls->month(client->state, account, sum->key.month, totals, &count, err));
        for (uint32_t k = 0; k < count; k++)
            if (totals[k].mclass == sum->key.mclass) ledgers = &totals[k];
        if (!total_differs(exact, &sum->total, ledgers)) continue;
        *found = true;
        audit_find(audit, AUDIT_DIFFERENCE,
                   "account id:%" PRIu64 ", month %" PRIu32 ", class %" PRIu32 ": %" PRIu64 " records and %" PRIu64
                   " units in the journals, %" PRIu64 " and %" PRIu64 " in the ledger; energy records %" PRIu64
                   " of %" PRIu64 " uJ, %" PRIu64 " of %" PRIu64,
                   account, sum->key.month, sum->key.mclass, sum->total.records, sum->total.units, ledgers->records,
                   ledgers->units, sum->total.energy_records, sum->total.energy_uj, ledgers->energy_records,
                   ledgers->energy_uj);
    }
    return ST_OK;
}

static enum status look_again(struct audit *audit, const struct ledger_client *client, uint16_t partition,
                              struct mark_visit *visit, struct error *err)
{
    *visit = (struct mark_visit){.audit = audit, .partition = partition};
    return client->calls->marks(client->state, partition, on_mark_again, visit, err);
}

static enum status check_account(struct audit *audit, const struct ledger_client *client,
                                 const struct audit_account *account, struct account_balance *balance,
                                 struct error *err)
{
    struct mark_visit before, after;
    uint16_t partition = record_partition(account->account);
    TRY(look_again(audit, client, partition, &before, err));
    TRY(client->calls->balance(client->state, account->account, balance, err));
    bool exact = audit->complete && !before.foreign, found = false;
    uint32_t findings = audit->findings_count, left_out = audit->findings_left_out;
    size_t length = audit->findings.length;
    enum audit_kind worst = audit->worst;
    TRY(check_months(audit, client, account->account, exact, &found, err));
    if (differs(exact, account->units, balance->used))
        audit_find(audit, AUDIT_DIFFERENCE,
                   "account id:%" PRIu64 ": %" PRIu64 " units in the journals, %" PRIu64 " in the ledger",
                   account->account, account->units, balance->used);
    TRY(look_again(audit, client, partition, &after, err));
    if (before.moved || after.moved) { /* what was found may be of that */
        audit->findings_count = findings;
        audit->findings_left_out = left_out;
        audit->findings.length = length;
        audit->worst = worst;
        audit->counts.accounts_moving++;
        return ST_OK;
    }
    check_packages(audit, balance);
    audit->counts.overage_units += balance->overage;
    audit->counts.accounts_compared++;
    return ST_OK;
}

enum status audit_compare(struct audit *audit, const struct ledger_client *client, struct error *err)
{
    struct account_balance *balance = mem_alloc(1, sizeof *balance);
    if (!balance) return error_set(err, ST_NOMEM, "%s", status_text(ST_NOMEM));
    check_sequences(audit);
    enum status status = ST_OK;
    for (uint32_t i = 0; i < audit->accounts.count && status == ST_OK; i++)
        status = check_account(audit, client, bill_map_at(&audit->accounts, i), balance, err);
    mem_free(balance);
    if (status == ST_OK && !audit->complete)
        audit_find(audit, AUDIT_NOTE,
                   "the journals here do not begin at their first record: sums are compared as a part "
                   "of the ledger's");
    return status;
}
