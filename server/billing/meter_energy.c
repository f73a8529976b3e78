/* Energy notes on their way to the journal; see energy_record.h. The power thread must not wait for a disk and the
 * meter's thread holds `work` over an fdatasync, so notes pass through an array of their own: one is filled while the
 * other is written. Nobody is woken for them: the next round comes within 100 ms, and a note costs no fdatasync of its
 * own where requests run. */
#include "server/billing/meter_parts.h"

#include "runtime/base/mem.h"

#include <string.h>

enum { NOTES_FIRST = 64 };

void energy_note_charge(struct energy_note *note, const struct charge *charge)
{
    memcpy(note->charge_id, charge->charge_id, sizeof note->charge_id);
    note->part = charge->part;
    note->account = charge->account;
    note->key = charge->key;
    note->mclass = charge->mclass;
    memcpy(note->tenant, charge->tenant, sizeof note->tenant);
    memcpy(note->model, charge->model, sizeof note->model);
}

static enum status take(struct meter_notes *notes, const struct energy_note *note)
{
    if (notes->count == ENERGY_NOTES_MAX) return ST_LIMIT;
    if (notes->count == notes->capacity) {
        uint32_t capacity = notes->capacity == 0 ? NOTES_FIRST : 2 * notes->capacity;
        struct energy_note *items = notes->items == NULL ? mem_alloc(capacity, sizeof *items)
                                                         : mem_resize(notes->items, capacity, sizeof *items);
        if (items == NULL) return ST_NOMEM;
        notes->items = items;
        notes->capacity = capacity;
    }
    notes->items[notes->count++] = *note;
    return ST_OK;
}

enum status meter_note_energy(struct meter *m, const struct energy_note *note)
{
    bool valid = record_energy_wrong(&note->energy) == NULL && note->account > 0 && note->account <= INT64_MAX &&
                 note->mclass < MODEL_CLASSES;
    enum status status = valid ? ST_OK : ST_INVAL;
    if (status == ST_OK) {
        pthread_mutex_lock(&m->energy_mutex);
        status = atomic_load(&m->failed) ? ST_IO : take(&m->noted, note);
        pthread_mutex_unlock(&m->energy_mutex);
    }
    if (status != ST_OK) billing_stats_add(&m->config.stats->energy_dropped, 1);
    return status;
}

static enum status write_note(struct meter *m, const struct energy_note *note)
{
    struct record record = {.energy = note->energy};
    struct charge *charge = &record.charge;
    memcpy(charge->charge_id, note->charge_id, sizeof charge->charge_id);
    charge->part = note->part;
    charge->account = note->account;
    charge->key = note->key;
    charge->mclass = note->mclass;
    memcpy(charge->tenant, note->tenant, sizeof charge->tenant);
    memcpy(charge->model, note->model, sizeof charge->model);
    TRY(journal_put_energy(m->journal, &record));
    billing_stats_add(&m->config.stats->records_energy, 1);
    m->ledger_due = true;
    return ST_OK;
}

enum status meter_write_energy(struct meter *m)
{
    pthread_mutex_lock(&m->energy_mutex);
    struct meter_notes noted = m->noted;
    m->noted = m->writing;
    pthread_mutex_unlock(&m->energy_mutex);
    m->writing = noted;
    enum status status = ST_OK;
    for (uint32_t i = 0; i < noted.count && status == ST_OK; i++) status = write_note(m, &noted.items[i]);
    m->writing.count = 0;
    return status;
}

void meter_drop_energy(struct meter *m)
{
    pthread_mutex_lock(&m->energy_mutex);
    billing_stats_add(&m->config.stats->energy_dropped, m->noted.count);
    m->noted.count = 0;
    pthread_mutex_unlock(&m->energy_mutex);
}

void meter_energy_free(struct meter *m)
{
    mem_free(m->noted.items);
    mem_free(m->writing.items);
}
