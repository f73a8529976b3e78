/* A table by request id, and lists through it; see request_energy.h. */
#include "server/power/request_energy.h"

#include "runtime/base/check.h"
#include "runtime/base/id_table.h"
#include "runtime/base/mem.h"

#include <string.h>

enum { NONE = UINT32_MAX, REQUESTS_LIMIT = 1 << 20 };

struct slot_energy {
    int64_t slot_ms;
    uint64_t prefill_uj, decode_uj, idle_share_uj;
    struct carbon carbon;
    uint32_t pue_ppm;
    uint16_t flags;
};

enum entry_state { ENTRY_RUNS, ENTRY_ENDED, ENTRY_TOLD /* to the books */, ENTRY_DONE };

struct entry {
    uint64_t id, ended_ns;
    enum entry_state state;
    bool billed;
    uint32_t tenant;
    uint32_t next, previous;    /* of the live ones; next also of free and done ones */
    uint32_t noted;             /* slots whose note was taken */
    struct energy_account seen; /* as last looked at */
    struct energy_account cut;  /* of that already in slots */
    struct slot_energy slots[REQUEST_ENERGY_SLOTS];
    uint32_t slots_count;
    uint64_t deferral_ms;
    struct energy_note note; /* of the charge */
};

struct request_energy {
    struct entry *entries;
    uint32_t entries_max, used, free_first, live_first, done_first, done_last;
    struct id_table ids;
    struct tenant_energy *tenants;
    uint32_t tenants_max;
    int64_t slot_ms;                   /* of the last update */
    struct request_energy_terms terms; /* of the last update */
    struct request_energy_counts counts;
};

enum status request_energy_create(uint32_t requests_max, uint32_t tenants_max, struct request_energy **out,
                                  struct error *err)
{
    if (requests_max < 1 || requests_max > REQUESTS_LIMIT || tenants_max < 1)
        return error_set(err, ST_INVAL, "the limits of request_energy are 1 to %d", (int)REQUESTS_LIMIT);
    struct request_energy *re = mem_alloc(1, sizeof *re);
    enum status status = ST_NOMEM;
    if (re) {
        re->entries = mem_alloc(requests_max, sizeof *re->entries);
        status = id_table_init(&re->ids, requests_max);
        re->tenants = mem_alloc(tenants_max, sizeof *re->tenants);
    }
    if (status != ST_OK || !re->entries || !re->tenants) {
        request_energy_destroy(re);
        return error_set(err, ST_NOMEM, "no memory for the energy of %u requests", (unsigned)requests_max);
    }
    re->entries_max = requests_max;
    re->tenants_max = tenants_max;
    re->free_first = re->live_first = re->done_first = re->done_last = NONE;
    *out = re;
    return ST_OK;
}

void request_energy_destroy(struct request_energy *re)
{
    if (!re) return;
    mem_free(re->entries);
    id_table_free(&re->ids);
    mem_free(re->tenants);
    mem_free(re);
}

/* ---- lists ---- */

static void live_add(struct request_energy *re, uint32_t idx)
{
    struct entry *entry = &re->entries[idx];
    entry->previous = NONE;
    entry->next = re->live_first;
    if (entry->next != NONE) re->entries[entry->next].previous = idx;
    re->live_first = idx;
}

static void live_remove(struct request_energy *re, uint32_t idx)
{
    struct entry *entry = &re->entries[idx];
    if (entry->previous != NONE)
        re->entries[entry->previous].next = entry->next;
    else
        re->live_first = entry->next;
    if (entry->next != NONE) re->entries[entry->next].previous = entry->previous;
}

static void forget(struct request_energy *re, uint32_t idx)
{
    re->entries[idx].next = re->free_first;
    re->free_first = idx;
    re->counts.alive--;
}

/* ---- io ---- */

void request_energy_begin(struct request_energy *re, uint64_t id, const struct request_energy_who *who)
{
    uint32_t idx = re->free_first;
    if (idx != NONE)
        re->free_first = re->entries[idx].next;
    else if (re->used < re->entries_max)
        idx = re->used++;
    if (idx == NONE) {
        re->counts.unkept++;
        return;
    }
    struct entry *entry = &re->entries[idx];
    *entry = (struct entry){.id = id,
                            .billed = who->charge != NULL,
                            .tenant = who->tenant < re->tenants_max ? who->tenant : re->tenants_max - 1};
    if (who->charge) energy_note_charge(&entry->note, who->charge);
    struct tenant_energy *tenant = &re->tenants[entry->tenant];
    if (!tenant->name[0]) strncpy(tenant->name, who->tenant_name, sizeof tenant->name - 1);
    id_table_add(&re->ids, id, idx);
    live_add(re, idx);
    re->counts.alive++;
}

void request_energy_end(struct request_energy *re, uint64_t id, uint64_t deferral_ms, uint64_t now_ns)
{
    uint32_t idx = id_table_find(&re->ids, id);
    if (idx == NONE || re->entries[idx].state != ENTRY_RUNS) return;
    re->entries[idx].state = ENTRY_ENDED;
    re->entries[idx].ended_ns = now_ns;
    re->entries[idx].deferral_ms = deferral_ms;
}

bool request_energy_look(const struct request_energy *re, uint64_t id, struct request_energy_shown *shown)
{
    uint32_t idx = id_table_find(&re->ids, id);
    if (idx == NONE) return false;
    const struct energy_account *seen = &re->entries[idx].seen;
    *shown = (struct request_energy_shown){.uj = seen->prefill_uj + seen->decode_uj,
                                           .open_j = seen->open_j,
                                           .prompts = seen->prefill_tokens,
                                           .rows = seen->decode_rows};
    return true;
}

/* ---- the power thread ---- */

static struct carbon carbon_less(const struct carbon *all, const struct carbon *part)
{
    return (struct carbon){.green_uj = all->green_uj - part->green_uj,
                           .location_ug = all->location_ug - part->location_ug,
                           .market_ug = all->market_ug - part->market_ug,
                           .marginal_ug = all->marginal_ug - part->marginal_ug};
}

/* What was seen and is in no slot yet is this slot's. */
static void cut(struct entry *entry, int64_t slot_ms, const struct request_energy_terms *terms)
{
    const struct energy_account *seen = &entry->seen, *before = &entry->cut;
    uint64_t prefill_uj = seen->prefill_uj - before->prefill_uj, decode_uj = seen->decode_uj - before->decode_uj;
    uint64_t idle_uj = seen->idle_share_uj - before->idle_share_uj;
    if (prefill_uj + decode_uj + idle_uj == 0) return;
    bool is_new = entry->slots_count == 0 || entry->slots[entry->slots_count - 1].slot_ms != slot_ms;
    if (is_new && entry->slots_count < REQUEST_ENERGY_SLOTS)
        entry->slots[entry->slots_count++] = (struct slot_energy){.slot_ms = slot_ms};
    struct slot_energy *slot = &entry->slots[entry->slots_count - 1];
    struct carbon carbon = carbon_less(&seen->carbon, &before->carbon);
    slot->prefill_uj += prefill_uj;
    slot->decode_uj += decode_uj;
    slot->idle_share_uj += idle_uj;
    carbon_add(&slot->carbon, &carbon);
    slot->pue_ppm = terms->pue_ppm;
    slot->flags |= terms->flags;
    if (seen->flags & ENERGY_ESTIMATED) slot->flags |= ENERGY_NOTE_ESTIMATED;
    if (seen->flags & ENERGY_PARTIAL) slot->flags |= ENERGY_NOTE_PARTIAL;
    entry->cut = *seen;
}

static void count_tenant(struct request_energy *re, const struct entry *entry)
{
    struct tenant_energy *tenant = &re->tenants[entry->tenant];
    tenant->requests++;
    tenant->prefill_uj += entry->seen.prefill_uj;
    tenant->decode_uj += entry->seen.decode_uj;
    tenant->idle_share_uj += entry->seen.idle_share_uj;
    carbon_add(&tenant->carbon, &entry->seen.carbon);
    re->counts.ended++;
}

static void finish(struct request_energy *re, uint32_t idx)
{
    struct entry *entry = &re->entries[idx];
    live_remove(re, idx);
    id_table_remove(&re->ids, re->entries[idx].id);
    entry->state = ENTRY_DONE;
    if (!entry->billed || entry->slots_count == 0) {
        forget(re, idx);
        return;
    }
    entry->next = NONE;
    if (re->done_first == NONE)
        re->done_first = idx;
    else
        re->entries[re->done_last].next = idx;
    re->done_last = idx;
}

/* An end is told once no step of the request can come any more. */
static void tell_ends(struct request_energy *re, struct attribution *at, uint64_t known_ns)
{
    for (uint32_t idx = re->live_first, next; idx != NONE; idx = next) {
        struct entry *entry = &re->entries[idx];
        next = entry->next;
        if (entry->state != ENTRY_ENDED || entry->ended_ns > known_ns) continue;
        entry->state = ENTRY_TOLD;
        if (attribution_end(at, entry->id)) continue;
        re->counts.unbooked++; /* refused, or its steps were lost */
        finish(re, idx);
    }
}

void request_energy_update(struct request_energy *re, struct attribution *at, uint64_t known_ns,
                           const struct request_energy_terms *terms)
{
    struct energy_account account;
    int64_t slot_ms = terms->now_ms - terms->now_ms % REQUEST_SLOT_MS;
    if (slot_ms != re->slot_ms)
        for (uint32_t idx = re->live_first; idx != NONE; idx = re->entries[idx].next)
            cut(&re->entries[idx], re->slot_ms, &re->terms);
    re->slot_ms = slot_ms;
    re->terms = *terms;
    tell_ends(re, at, known_ns);
    while (attribution_take(at, &account)) {
        uint32_t idx = id_table_find(&re->ids, account.request_id);
        if (idx == NONE) continue; /* had no place here */
        struct entry *entry = &re->entries[idx];
        entry->seen = account;
        cut(entry, slot_ms, terms);
        count_tenant(re, entry);
        finish(re, idx);
    }
    for (uint32_t idx = re->live_first; idx != NONE; idx = re->entries[idx].next)
        if (attribution_look(at, re->entries[idx].id, &account)) re->entries[idx].seen = account;
}

bool request_energy_take(struct request_energy *re, struct energy_note *note)
{
    uint32_t idx = re->done_first;
    if (idx == NONE) return false;
    struct entry *entry = &re->entries[idx];
    const struct slot_energy *slot = &entry->slots[entry->noted++];
    *note = entry->note;
    note->energy = (struct record_energy){.slot_ms = slot->slot_ms,
                                          .deferral_ms = entry->noted == 1 ? entry->deferral_ms : 0,
                                          .uj_prefill = slot->prefill_uj,
                                          .uj_decode = slot->decode_uj,
                                          .uj_idle_share = slot->idle_share_uj,
                                          .green_uj = slot->carbon.green_uj,
                                          .ugco2_loc = slot->carbon.location_ug,
                                          .ugco2_mkt = slot->carbon.market_ug,
                                          .pue_ppm = slot->pue_ppm,
                                          .flags = slot->flags};
    if (entry->noted == entry->slots_count) {
        re->done_first = entry->next;
        forget(re, idx);
    }
    return true;
}

void request_energy_counts(const struct request_energy *re, struct request_energy_counts *counts)
{
    *counts = re->counts;
}

bool request_energy_tenant(const struct request_energy *re, uint32_t *next, struct tenant_energy *tenant)
{
    while (*next < re->tenants_max) {
        *tenant = re->tenants[(*next)++];
        if (tenant->requests > 0) return true;
    }
    return false;
}
