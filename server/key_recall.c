/* Idempotency-Keys that an earlier process was billed for: read from the journal in the pool, at the start; see
 * serve_parts.h, idempotency.h (K5) and billing/journal_recall.h.
 *
 *   start -> [pool: journal_recall, up to what the start's recovery left] -> loop: into the table; waiting calls go on
 *
 * A day of a busy node is gigabytes, so nothing waits for this but calls with a key. What cannot be read leaves those
 * keys unknown: a retry of them would be billed again, so it is logged as an error. */
#include "server/serve_parts.h"

#include "runtime/base/clock.h"
#include "runtime/base/limits.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"
#include "server/billing/journal_recall.h"

#include <inttypes.h>
#include <string.h>

struct recalled_key {
    uint8_t digest[16], charge_id[CHARGE_ID_BYTES];
    int64_t ended_us;
};

struct key_recall {
    struct server *server;
    uv_work_t work;
    struct recalled_key *keys; /* a ring: the youngest idempotency_entries of them */
    uint64_t seen, room;
    uint64_t until_lsn;
    int64_t now_us, since_us; /* since: the life of a key, or of the oldest batch that has not ended */
    enum status status;
    struct error err;
};

static void take_key(void *state, const struct record *record)
{
    struct key_recall *recall = state;
    struct recalled_key *key = &recall->keys[recall->seen++ % recall->room];
    memcpy(key->digest, record->charge.idempotency, sizeof key->digest);
    memcpy(key->charge_id, record->charge.charge_id, sizeof key->charge_id);
    key->ended_us = record->ended_us;
}

static void read_keys(uv_work_t *work)
{
    struct key_recall *recall = work->data;
    const struct config *config = recall->server->config;
    recall->status = journal_recall(disk_system(), config->journal, config->journal_fallback, recall->since_us,
                                    recall->until_lsn, &recall->server->recall_stop, take_key, recall, &recall->err);
}

static void keys_read(uv_work_t *work, int uv_status)
{
    struct key_recall *recall = work->data;
    struct server *server = recall->server;
    uint64_t count = recall->seen < recall->room ? recall->seen : recall->room;
    for (uint64_t i = 0; i < count; i++) {
        const struct recalled_key *key = &recall->keys[(recall->seen - count + i) % recall->room];
        uint64_t age_us = recall->now_us > key->ended_us ? (uint64_t)(recall->now_us - key->ended_us) : 0;
        char id[2 * CHARGE_ID_BYTES + 1];
        for (int k = 0; k < CHARGE_ID_BYTES; k++) {
            id[2 * k] = "0123456789abcdef"[key->charge_id[k] >> 4];
            id[2 * k + 1] = "0123456789abcdef"[key->charge_id[k] & 15];
        }
        id[2 * CHARGE_ID_BYTES] = '\0';
        if (age_us <= limits.idempotency_keep_ms * 1000)
            exchanges_recall(&server->exchanges, key->digest, id, age_us * 1000);
        batches_recall(server->batches, key->digest);
    }
    if (uv_status != 0 || recall->status != ST_OK)
        log_line(LOG_ERROR, "idempotency", "keys of earlier requests are not all known reason=\"%s\"",
                 uv_status ? "stopped" : recall->err.message);
    else if (count > 0)
        log_line(LOG_INFO, "idempotency", "recalled keys=%" PRIu64, count);
    exchanges_recalled(&server->exchanges);
    batches_recalled(server->batches);
    mem_free(recall->keys);
    mem_free(recall);
}

void key_recall_start(struct server *server)
{
    if (!server->billing) return;
    struct key_recall *recall = mem_alloc(1, sizeof *recall);
    if (recall) recall->keys = mem_alloc(limits.idempotency_entries, sizeof *recall->keys);
    if (!recall || !recall->keys) {
        mem_free(recall);
        log_line(LOG_ERROR, "idempotency", "keys of earlier requests are not known reason=\"out of memory\"");
        return;
    }
    recall->server = server;
    recall->room = limits.idempotency_entries;
    recall->until_lsn = meter_durable_lsn(server->billing->meter);
    recall->now_us = clock_unix_us(clock_system());
    recall->since_us = recall->now_us - (int64_t)limits.idempotency_keep_ms * 1000;
    int64_t oldest_us = batches_oldest_s(server->batches) * 1000000;
    if (oldest_us && oldest_us < recall->since_us) recall->since_us = oldest_us;
    recall->work.data = recall;
    server->exchanges.recalling = true;
    batches_await_recall(server->batches);
    if (uv_queue_work(&server->loop, &recall->work, read_keys, keys_read) != 0) keys_read(&recall->work, UV_ECANCELED);
}
