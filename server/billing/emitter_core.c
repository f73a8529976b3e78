/* Marks, window and answers of the emitter; see emitter_core.h. */
#include "server/billing/emitter_core.h"

#include "runtime/base/check.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"

#include <string.h>

enum { NO_SLOT = UINT32_MAX };
/* A stopped partition is tried again: the ledger may have been rebuilt or repaired. The hello changes nothing, but
 * where histories differ it makes us read the journal again. */
#define STOPPED_RETRY_NS (3 * NS_PER_S)
#define HISTORY_RETRY_NS (15 * NS_PER_S)
/* An answer that brings nothing forward is not repeated at once. */
#define STILL_RETRY_NS (NS_PER_S)
/* A partition without traffic asks where the ledger stands: it may have lost writes, or its identity, in a failover
 * that broke no connection of ours. A little more for each partition, so that they do not ask all at once. */
#define IDLE_HELLO_NS(partition) (10 * NS_PER_S + (partition)*10 * NS_PER_MS)
/* Refusals that pass (a slot on its way, a script that runs) are no outage before this. */
#define TROUBLE_NS (NS_PER_S)

enum phase { HELLO, SEEK, READY, STOPPED };

struct slot {
    uint64_t lsn, pseq, read_ns;
    uint32_t next, length;
    uint8_t bytes[RECORD_BYTES_MAX];
};

struct partition {
    enum phase phase;
    enum emitter_stop stop; /* STOPPED, and until the next good answer */
    bool flying;            /* a call is in flight */
    bool placed;            /* SEEK: the reader will come by record `mark`, or by its checkpoint */
    bool known;             /* hwm and chain are the ledger's and ours */
    bool lost;              /* nothing is known of the ledger since the connection was lost */
    uint32_t first, last, queued, sent;
    uint64_t hwm;
    uint8_t chain[CHAIN_BYTES]; /* of record hwm */
    uint64_t tail;              /* of the last record in the window, or hwm */
    uint8_t tail_chain[CHAIN_BYTES];
    uint64_t mark; /* SEEK */
    char mark_hash8[HASH8_CHARS + 1];
    uint64_t seen;                           /* the highest record read */
    uint64_t missed_lsn, missed_ns;          /* the first record that was passed over; 0: none */
    uint64_t retry_ns, trouble_ns, hello_ns; /* hello_ns: when an idle one asks again */
};

struct emitter_core {
    struct emitter_core_hooks hooks;
    struct partition partitions[PARTITIONS];
    struct slot *slots;
    uint32_t free_slot, window, used;
    uint64_t sought_lsn;
    uint64_t applied, duplicates, losses;
};

const char *emitter_stop_text(enum emitter_stop stop)
{
    static const char *const texts[] = {
#define X(name, text) text,
        EMITTER_STOP_MAP(X)
#undef X
    };
    return texts[stop];
}

enum status core_create(uint32_t window, const struct emitter_core_hooks *hooks, struct emitter_core **core)
{
    CHECK(window > 0 && window < NO_SLOT);
    struct emitter_core *c = mem_alloc(1, sizeof *c);
    if (c == NULL) return ST_NOMEM;
    c->slots = mem_alloc(window, sizeof *c->slots);
    if (c->slots == NULL) {
        mem_free(c);
        return ST_NOMEM;
    }
    c->hooks = *hooks;
    c->window = window;
    for (uint32_t i = 0; i < window; i++) c->slots[i].next = i + 1 < window ? i + 1 : NO_SLOT;
    for (uint32_t p = 0; p < PARTITIONS; p++) {
        c->partitions[p].first = c->partitions[p].last = NO_SLOT;
        c->partitions[p].lost = true;
    }
    *core = c;
    return ST_OK;
}

void core_destroy(struct emitter_core *core)
{
    if (core == NULL) return;
    mem_free(core->slots);
    mem_free(core);
}

/* ---- the window ---- */

static const uint8_t *chain_of(const struct slot *slot)
{
    return slot->bytes + slot->length - CHAIN_BYTES;
}

static bool hash8_equal(const uint8_t chain[CHAIN_BYTES], const char *hash8)
{
    char own[HASH8_CHARS + 1];
    record_hash8(chain, own);
    return strcmp(own, hash8) == 0;
}

/* Takes the first record of a partition out of the window. */
static void pop(struct emitter_core *c, struct partition *p)
{
    uint32_t i = p->first;
    struct slot *s = &c->slots[i];
    p->first = s->next;
    if (--p->queued == 0) p->last = NO_SLOT;
    s->next = c->free_slot;
    c->free_slot = i;
    c->used--;
}

/* Gives a partition's place in the window back; its records are read again. */
static void drop(struct emitter_core *c, struct partition *p)
{
    if (p->queued == 0) return;
    const struct slot *s = &c->slots[p->first];
    if (p->missed_lsn == 0 || s->lsn < p->missed_lsn) p->missed_lsn = s->lsn;
    if (p->missed_ns == 0 || s->read_ns < p->missed_ns) p->missed_ns = s->read_ns;
    while (p->queued > 0) pop(c, p);
    p->sent = 0;
    p->tail = p->hwm;
    memcpy(p->tail_chain, p->chain, CHAIN_BYTES);
}

/* Room for a record, if need be from a partition that has nobody to send to. */
static bool make_room(struct emitter_core *c)
{
    for (uint32_t i = 0; c->free_slot == NO_SLOT && i < PARTITIONS; i++)
        if (c->partitions[i].phase != READY && !c->partitions[i].flying) drop(c, &c->partitions[i]);
    return c->free_slot != NO_SLOT;
}

static void push(struct emitter_core *c, struct partition *p, uint64_t lsn, const struct record *record,
                 const uint8_t *bytes, uint32_t length, uint64_t now_ns)
{
    uint32_t i = c->free_slot;
    struct slot *s = &c->slots[i];
    c->free_slot = s->next;
    c->used++;
    *s = (struct slot){.lsn = lsn, .pseq = record->pseq, .read_ns = now_ns, .next = NO_SLOT, .length = length};
    memcpy(s->bytes, bytes, length);
    if (p->queued++ == 0)
        p->first = i;
    else
        c->slots[p->last].next = i;
    p->last = i;
    p->tail = record->pseq;
    memcpy(p->tail_chain, record->chain, CHAIN_BYTES);
}

static void stop(struct emitter_core *c, uint16_t partition, enum emitter_stop why, uint64_t now_ns)
{
    struct partition *p = &c->partitions[partition];
    p->phase = STOPPED;
    p->lost = false;
    p->trouble_ns = 0;
    /* fenced or damaged: nothing that happens elsewhere mends it */
    bool history = why == STOP_CONFLICT || why == STOP_BEHIND || why == STOP_HISTORY;
    p->retry_ns = why == STOP_FENCED || why == STOP_DAMAGE ? UINT64_MAX
                                                           : now_ns + (history ? HISTORY_RETRY_NS : STOPPED_RETRY_NS);
    drop(c, p);
    if (p->stop == why) return;
    p->stop = why;
    c->hooks.stopped(c->hooks.state, partition, why);
}

/* The ledger's mark is `hwm`, and our own record of that number has this chain. */
static void ready(struct emitter_core *c, uint16_t partition, uint64_t hwm, const uint8_t chain[CHAIN_BYTES])
{
    struct partition *p = &c->partitions[partition];
    bool moved = !p->known || p->hwm != hwm;
    p->phase = READY;
    p->known = true;
    p->lost = false;
    if (p->missed_lsn == 0) p->missed_ns = 0;
    p->hwm = hwm;
    memcpy(p->chain, chain, CHAIN_BYTES);
    if (p->queued == 0) {
        p->tail = hwm;
        memcpy(p->tail_chain, chain, CHAIN_BYTES);
    }
    if (p->seen < hwm) p->seen = hwm;
    if (p->stop != STOP_NONE) {
        p->stop = STOP_NONE;
        c->hooks.stopped(c->hooks.state, partition, STOP_NONE);
    }
    if (!moved || hwm == 0) return;
    char hash8[HASH8_CHARS + 1];
    record_hash8(chain, hash8);
    c->hooks.applied(c->hooks.state, partition, hwm, hash8);
}

/* ---- reading ---- */

/* Record `mark`, for which the partition waits. E1 */
static void found_mark(struct emitter_core *c, uint16_t partition, const uint8_t chain[CHAIN_BYTES], uint64_t now_ns)
{
    struct partition *p = &c->partitions[partition];
    if (hash8_equal(chain, p->mark_hash8))
        ready(c, partition, p->mark, chain);
    else
        stop(c, partition, STOP_CONFLICT, now_ns);
}

static void pass_over(struct partition *p, uint64_t lsn, uint64_t now_ns)
{
    if (p->missed_lsn != 0 && p->missed_lsn <= lsn) return;
    p->missed_lsn = lsn;
    if (p->missed_ns == 0) p->missed_ns = now_ns;
}

enum status core_record(struct emitter_core *core, uint64_t lsn, const uint8_t *bytes, uint32_t length, uint64_t now_ns)
{
    struct record record;
    struct error err;
    CHECK(length <= RECORD_BYTES_MAX);
    if (record_decode(bytes, length, &record, &err) != ST_OK) return ST_INVAL;
    uint16_t partition = record.partition;
    struct partition *p = &core->partitions[partition];
    enum status status = ST_OK;
    if (p->phase == SEEK && p->placed) {
        if (record.pseq == p->mark)
            found_mark(core, partition, record.chain, now_ns);
        else if (record.pseq > p->mark)
            stop(core, partition, STOP_HISTORY, now_ns);
    } else if (p->phase != READY || p->missed_lsn != 0) {
        if (!p->known || record.pseq > p->tail) pass_over(p, lsn, now_ns);
    } else if (record.pseq > p->tail) {
        if (record.pseq != p->tail + 1)
            stop(core, partition, STOP_HISTORY, now_ns);
        else if (!record_sealed(bytes, length, p->tail_chain)) /* E3 */
            stop(core, partition, STOP_DAMAGE, now_ns);
        else if (make_room(core))
            push(core, p, lsn, &record, bytes, length, now_ns);
        else
            status = ST_AGAIN;
    }
    if (status == ST_OK && record.pseq > p->seen) p->seen = record.pseq;
    return status;
}

void core_end(struct emitter_core *core, uint64_t now_ns)
{
    for (uint16_t i = 0; i < PARTITIONS; i++) {
        const struct partition *p = &core->partitions[i];
        if (p->phase == SEEK && p->placed) stop(core, i, STOP_BEHIND, now_ns);
    }
}

bool core_seeks(const struct emitter_core *core)
{
    for (uint32_t i = 0; i < PARTITIONS; i++) {
        const struct partition *p = &core->partitions[i];
        if ((p->phase == SEEK && !p->placed) || (p->phase == READY && p->missed_lsn != 0)) return true;
    }
    return false;
}

bool core_checkpoint(struct emitter_core *core, uint64_t segment_lsn, const uint64_t *pseq,
                     const uint8_t (*chain)[CHAIN_BYTES], uint64_t now_ns)
{
    bool all = true;
    for (uint16_t i = 0; i < PARTITIONS; i++) {
        struct partition *p = &core->partitions[i];
        if (p->phase != SEEK || p->placed) continue;
        if (pseq[i] > p->mark) {
            all = false;
            continue;
        }
        p->placed = true;
        p->missed_lsn = 0; /* all of its records come by again */
        if (core->sought_lsn == 0 || segment_lsn < core->sought_lsn) core->sought_lsn = segment_lsn;
        if (pseq[i] == p->mark) found_mark(core, i, chain[i], now_ns);
    }
    return all;
}

uint64_t core_sought(struct emitter_core *core, uint64_t now_ns)
{
    for (uint16_t i = 0; i < PARTITIONS; i++) {
        struct partition *p = &core->partitions[i];
        if (p->phase == SEEK && !p->placed) stop(core, i, STOP_HISTORY, now_ns);
        if (p->phase != READY || p->missed_lsn == 0) continue;
        if (core->sought_lsn == 0 || p->missed_lsn < core->sought_lsn) core->sought_lsn = p->missed_lsn;
        p->missed_lsn = 0;
        p->missed_ns = 0;
    }
    uint64_t lsn = core->sought_lsn;
    core->sought_lsn = 0;
    return lsn;
}

/* ---- sending ---- */

bool core_wants(const struct emitter_core *core, uint16_t partition, uint64_t now_ns)
{
    const struct partition *p = &core->partitions[partition];
    return !p->flying && now_ns >= p->retry_ns && p->phase != SEEK &&
           (p->phase != READY || p->queued > 0 || now_ns >= p->hello_ns);
}

bool core_next(struct emitter_core *core, uint16_t partition, uint64_t now_ns, struct emitter_batch *batch)
{
    struct partition *p = &core->partitions[partition];
    if (!core_wants(core, partition, now_ns)) return false;
    if (p->phase == STOPPED) p->phase = HELLO;
    batch->count = 0;
    memcpy(batch->previous, p->chain, CHAIN_BYTES);
    if (p->phase == READY) {
        for (uint32_t i = p->first; i != NO_SLOT && batch->count < BATCH_RECORDS_MAX; i = core->slots[i].next)
            batch->records[batch->count++] =
                (struct encoded_record){.bytes = core->slots[i].bytes, .length = core->slots[i].length};
    }
    p->sent = batch->count;
    p->flying = true;
    return true;
}

/* Grants are answered by number; whose they were stands in the records that were sent. */
static void tell_grants(struct emitter_core *c, const struct partition *p, const struct ledger_reply *reply)
{
    uint32_t i = p->first;
    for (uint32_t g = 0; g < reply->grants_count; g++) {
        while (i != NO_SLOT && c->slots[i].pseq < reply->grants[g].pseq) i = c->slots[i].next;
        if (i == NO_SLOT || c->slots[i].pseq != reply->grants[g].pseq) return;
        struct record record;
        struct error err;
        if (record_decode(c->slots[i].bytes, c->slots[i].length, &record, &err) != ST_OK) return;
        if (record.kind == RECORD_GRANT)
            c->hooks.granted(c->hooks.state, record.account, record.mclass, record.pseq, reply->grants[g].leased,
                             reply->grants[g].open);
    }
}

static void seek(struct emitter_core *c, struct partition *p, uint64_t hwm, const char *hash8)
{
    p->known = false;
    drop(c, p);
    p->missed_lsn = 0;
    p->phase = SEEK;
    p->placed = false;
    p->lost = false;
    p->mark = hwm;
    memcpy(p->mark_hash8, hash8, sizeof p->mark_hash8);
}

/* The ledger stands at hwm with hash8. */
static void settle(struct emitter_core *c, uint16_t partition, uint64_t hwm, const char *hash8, uint64_t now_ns)
{
    struct partition *p = &c->partitions[partition];
    if (!p->known || hwm < p->hwm || hwm > p->tail) {
        seek(c, p, hwm, hash8);
        return;
    }
    const uint8_t *chain = p->chain;
    uint32_t i = p->first;
    uint32_t below = 0;
    while (hwm > p->hwm) {
        CHECK(i != NO_SLOT);
        below++;
        if (c->slots[i].pseq == hwm) {
            chain = chain_of(&c->slots[i]);
            break;
        }
        i = c->slots[i].next;
    }
    if (!hash8_equal(chain, hash8)) { /* E1 */
        stop(c, partition, STOP_CONFLICT, now_ns);
        return;
    }
    uint8_t copy[CHAIN_BYTES];
    memcpy(copy, chain, CHAIN_BYTES);
    for (uint32_t n = 0; n < below; n++) pop(c, p);
    c->applied += below;
    ready(c, partition, hwm, copy);
}

void core_answer(struct emitter_core *core, uint16_t partition, const struct ledger_reply *reply, uint64_t now_ns)
{
    static const struct {
        enum ledger_answer answer;
        enum emitter_stop stop;
    } stops[] = {{LEDGER_NOLEDGER, STOP_NOLEDGER},
                 {LEDGER_WRONGLEDGER, STOP_WRONGLEDGER},
                 {LEDGER_FENCED, STOP_FENCED},
                 {LEDGER_CONFLICT, STOP_CONFLICT},
                 {LEDGER_BADARG, STOP_BADARG}};
    struct partition *p = &core->partitions[partition];
    CHECK(p->flying);
    p->flying = false;
    p->retry_ns = 0;
    p->trouble_ns = 0;
    p->hello_ns = now_ns + IDLE_HELLO_NS(partition);
    core->duplicates += reply->duplicates;
    tell_grants(core, p, reply);
    uint32_t sent = p->sent;
    p->sent = 0;
    if (reply->answer == LEDGER_OK || reply->answer == LEDGER_GAP) {
        uint64_t before = p->hwm;
        settle(core, partition, reply->hwm, reply->hash8, now_ns);
        if (sent > 0 && p->phase == READY && p->hwm == before) p->retry_ns = now_ns + STILL_RETRY_NS;
        return;
    }
    enum emitter_stop why = STOP_BADSTATE; /* also for an answer that mr_apply does not give. E2 */
    for (size_t i = 0; i < sizeof stops / sizeof *stops; i++)
        if (stops[i].answer == reply->answer) why = stops[i].stop;
    stop(core, partition, why, now_ns);
}

void core_refused(struct emitter_core *core, uint16_t partition, uint64_t now_ns, uint64_t retry_ns)
{
    struct partition *p = &core->partitions[partition];
    p->flying = false;
    p->sent = 0;
    p->retry_ns = retry_ns;
    if (p->trouble_ns == 0) p->trouble_ns = now_ns;
}

void core_lost(struct emitter_core *core, uint16_t partition, uint64_t now_ns, uint64_t retry_ns)
{
    struct partition *p = &core->partitions[partition];
    bool final = p->phase == STOPPED && p->retry_ns == UINT64_MAX;
    if (!p->lost && p->phase != STOPPED) core->losses++;
    core_refused(core, partition, now_ns, final ? UINT64_MAX : retry_ns);
    if (final) return;
    /* a mark that was being looked for is asked anew: the records from it on were dropped */
    p->phase = HELLO;
    p->lost = p->stop == STOP_NONE;
}

/* ---- how it stands ---- */

static uint64_t waiting_since(const struct emitter_core *c, const struct partition *p)
{
    if (!p->known || p->seen <= p->hwm) return p->known ? 0 : p->missed_ns;
    uint64_t since = p->missed_ns;
    if (p->queued > 0 && (since == 0 || c->slots[p->first].read_ns < since)) since = c->slots[p->first].read_ns;
    return since;
}

void core_look(const struct emitter_core *core, uint64_t now_ns, struct emitter_view *view)
{
    *view = (struct emitter_view){.reachable = true, .wake_ns = UINT64_MAX};
    view->applied = core->applied;
    view->duplicates = core->duplicates;
    view->losses = core->losses;
    for (uint16_t i = 0; i < PARTITIONS; i++) {
        const struct partition *p = &core->partitions[i];
        if (p->lost || (p->trouble_ns != 0 && now_ns - p->trouble_ns >= TROUBLE_NS)) view->reachable = false;
        if (p->stop != STOP_NONE) {
            if (view->stopped++ == 0) {
                view->stop = p->stop;
                view->stop_partition = i;
            }
            if (p->stop != STOP_BADARG && p->stop != STOP_BADSTATE) view->refuses = true;
        }
        if (p->known && p->seen > p->hwm) view->unapplied += p->seen - p->hwm;
        if (p->phase == SEEK) view->unapplied += p->seen > p->mark ? p->seen - p->mark : 1; /* to be found out */
        uint64_t since = waiting_since(core, p);
        if (since != 0 && (view->unapplied_since_ns == 0 || since < view->unapplied_since_ns))
            view->unapplied_since_ns = since;
        if (core_wants(core, i, now_ns))
            view->busy = true;
        else if (p->retry_ns > now_ns && p->retry_ns < view->wake_ns)
            view->wake_ns = p->retry_ns;
        else if (p->phase == READY && p->hello_ns < view->wake_ns)
            view->wake_ns = p->hello_ns;
    }
}
