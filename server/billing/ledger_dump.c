/* A ledger as text, under the names that ledger.lua stores it by, so that two of them can be laid side by side. */
#include "server/billing/ledger_state.h"

#include <inttypes.h>
#include <stdio.h>

static void line(struct buf *out, const char *key, const char *prefix, const char *field, uint64_t value)
{
    if (value != 0) buf_append_format(out, "%s %s%s %" PRIu64 "\n", key, prefix, field, value);
}

static void dump_packages(const struct ledger_account *account, const char *key, struct buf *out)
{
    for (uint32_t i = 0; i < account->packages_count; i++) {
        const struct package_balance *b = &account->packages[i].b;
        line(out, key, b->id, ".gr", b->granted);
        line(out, key, b->id, ".av", b->free);
        line(out, key, b->id, ".rs", b->leased);
        line(out, key, b->id, ".us", b->used);
        line(out, key, b->id, ".xp", b->expired);
        line(out, key, b->id, ".pr", b->priority);
        line(out, key, b->id, ".ef", b->effective_ms);
        line(out, key, b->id, ".ex", b->expires_ms);
        line(out, key, b->id, ".cr", b->created_ms);
        line(out, key, b->id, ".mk", b->class_mask);
    }
    if (account->order_count > 0) {
        buf_append_format(out, "%s ord ", key);
        for (uint32_t i = 0; i < account->order_count; i++) {
            buf_append_format(out, "%s%s", i > 0 ? "," : "", account->packages[account->order[i]].b.id);
        }
        buf_append_char(out, '\n');
    }
}

static void dump_account(const struct ledger_account *account, struct buf *out)
{
    char key[32], field[32];
    snprintf(key, sizeof key, "a:%" PRIu64, account->number);
    if (account->state != 0) buf_append_format(out, "%s st %c\n", key, account->state);
    line(out, key, "", "us", account->used);
    line(out, key, "", "ov", account->overage);
    dump_packages(account, key, out);
    for (uint32_t i = 0; i < account->leases_count; i++) {
        const struct ledger_lease *lease = &account->leases[i];
        snprintf(field, sizeof field, "L:%016" PRIx64 ":", lease->producer);
        line(out, key, field, account->packages[lease->package].b.id, lease->units);
    }
    for (uint32_t i = 0; i < account->ends_count; i++) {
        snprintf(field, sizeof field, "X:%016" PRIx64, account->ends[i].producer);
        line(out, key, "", field, account->ends[i].until_ms);
    }
}

static void dump_month(const struct ledger_month *month, struct buf *out)
{
    const struct month_total *t = &month->total;
    char key[48], class[16];
    snprintf(key, sizeof key, "m:%06" PRIu32 ":%" PRIu64, month->month, month->account);
    snprintf(class, sizeof class, "c%u", t->mclass);
    line(out, key, class, ".im", t->in_miss);
    line(out, key, class, ".ih", t->in_hit);
    line(out, key, class, ".ou", t->out);
    line(out, key, class, ".un", t->units);
    line(out, key, class, ".n", t->records);
    line(out, key, class, ".wi", t->waived_in);
    line(out, key, class, ".wo", t->waived_out);
    line(out, key, class, ".wn", t->waived_records);
    line(out, key, class, ".en", t->energy_uj);
    line(out, key, class, ".ei", t->idle_uj);
    line(out, key, class, ".eg", t->green_uj);
    line(out, key, class, ".cl", t->ugco2_loc);
    line(out, key, class, ".cm", t->ugco2_mkt);
    line(out, key, class, ".ne", t->energy_records);
}

static void dump_order(const struct ledger_done *order, struct buf *out)
{
    static const char *const ops[ORDER_KINDS] = {
        [PACKAGE_ADD] = "add",         [PACKAGE_INCREASE] = "inc",      [PACKAGE_VOID] = "void",
        [ORDER_ACCOUNT_OPEN] = "open", [ORDER_ACCOUNT_CLOSE] = "close",
    };
    buf_append_format(out, "a:%" PRIu64 " o:%s %s", order->account, order->id, ops[order->op]);
    if (order->op < PACKAGE_OPS) {
        buf_append_format(out, "|%s|%" PRIu64 "|%" PRIu64 "|%" PRIu64 "|%" PRIu64 "|%" PRIu64, order->package,
                          order->units, order->priority, order->effective_ms, order->expires_ms, order->class_mask);
    }
    buf_append_char(out, '\n');
}

void ledger_dump(const struct ledger *ledger, struct buf *out)
{
    if (ledger->uuid[0] != 0) buf_append_format(out, "hwm uuid %s\n", ledger->uuid);
    for (uint32_t i = 0; i < ledger->marks_count; i++) {
        const struct ledger_mark *mark = &ledger->marks[i];
        char hash8[HASH8_CHARS + 1];
        record_hash8(mark->chain, hash8);
        if (mark->epoch == 0) continue;
        buf_append_format(out, "hwm:%03u %016" PRIx64 " %" PRIu64 "|%" PRIu64 "|%s\n", mark->partition, mark->producer,
                          mark->epoch, mark->pseq, hash8);
    }
    for (uint32_t i = 0; i < ledger->accounts_count; i++) dump_account(&ledger->accounts[i], out);
    for (uint32_t i = 0; i < ledger->months_count; i++) dump_month(&ledger->months[i], out);
    for (uint32_t i = 0; i < ledger->orders_count; i++) dump_order(&ledger->orders[i], out);
}
