/* Records of a journal at rest into Redis; see bill_send.h. The emitter works on its own thread; this one looks at it
 * until nothing is left, nothing moves for half a minute, or the ledger refuses. */
#include "server/billing/bill_send.h"

#include "runtime/base/mem.h"
#include "server/billing/emitter.h"
#include "server/billing/journal_reader.h"

#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

enum { LOOK_MS = 20, STUCK_S = 30 };

struct sending {
    struct bill_sent *sent; /* the emitter's thread writes it, until emitter_stop */
    _Atomic bool refuses;
};

static void on_granted(void *state, uint64_t account, uint8_t mclass, uint64_t pseq, uint64_t leased, bool open)
{
    (void)state, (void)account, (void)mclass, (void)pseq, (void)leased, (void)open; /* nobody waits for them */
}

static void on_state(void *state, bool reachable, bool refuses, const char *reason)
{
    struct sending *sending = state;
    (void)reachable;
    if (reason) (void)snprintf(sending->sent->reason, sizeof sending->sent->reason, "%s", reason);
    sending->sent->refuses = refuses;
    atomic_store(&sending->refuses, refuses);
}

static void on_applied(void *state, uint16_t partition, uint64_t hwm, const char *hash8)
{
    struct sending *sending = state;
    sending->sent->hwm[partition] = hwm;
    (void)snprintf(sending->sent->hash8[partition], HASH8_CHARS + 1, "%s", hash8);
}

/* Until it is done, refused, or stuck. A partition that stopped stays so; the others go on. */
static void watch(const struct bill *bill, struct emitter *emitter, struct sending *sending)
{
    uint64_t moved_ns = clock_now_ns(bill->clock), applied = 0;
    for (;;) {
        struct emitter_view view;
        emitter_look(emitter, &view);
        uint64_t now_ns = clock_now_ns(bill->clock);
        if (view.applied + view.duplicates != applied) {
            applied = view.applied + view.duplicates;
            moved_ns = now_ns;
        }
        if (atomic_load(&sending->refuses) || now_ns - moved_ns > STUCK_S * NS_PER_S) return;
        /* done, when it has looked at all and nothing is left: a round that has applied nothing yet is no end */
        if (view.reachable && view.unapplied == 0 && now_ns - moved_ns > NS_PER_S) return;
        (void)poll(NULL, 0, LOOK_MS);
    }
}

enum status bill_send_records(struct bill *bill, const struct bill_send *send, struct bill_sent *sent,
                              struct error *err)
{
    struct redis_target *target = NULL;
    struct emitter *emitter;
    struct emitter_view view;
    struct sending sending = {.sent = sent};
    memset(sent, 0, sizeof *sent);
    TRY(bill_redis_target(bill, &target, err));
    struct emitter_config config = {
        .target = target,
        .disk = bill->disk,
        .folder = send->folder,
        .fallback = send->more,
        .uuid = send->uuid,
        .producer = send->producer,
        .epoch = send->epoch,
        .durable_lsn = send->durable_lsn,
        .clock = bill->clock,
        .hooks = {.state = &sending, .granted = on_granted, .ledger_state = on_state, .applied = on_applied},
    };
    enum status status = emitter_create(&config, &emitter);
    if (status != ST_OK) {
        mem_free(target);
        return error_set(err, status, "%s", status_text(status));
    }
    watch(bill, emitter, &sending);
    emitter_look(emitter, &view);
    sent->applied = view.applied;
    sent->left = emitter_stop(emitter, sending.refuses ? 0 : STUCK_S * NS_PER_S);
    mem_free(target);
    if (sent->refuses || view.stopped > 0)
        return error_set(err, ST_INVAL, "the ledger refuses the journal: %s",
                         view.stop != STOP_NONE ? emitter_stop_text(view.stop) : sent->reason);
    if (sent->left > 0 || !view.reachable)
        return error_set(err, ST_TIMEOUT, "the ledger does not answer: %s",
                         sent->reason[0] ? sent->reason : "no reason is known");
    return ST_OK;
}

enum status bill_last_lsn(const struct bill *bill, const char *folder, const char *more, uint64_t *lsn, uint64_t *tail,
                          struct error *err)
{
    struct journal_reader *reader;
    struct frame frame;
    TRY(journal_reader_open(bill->disk, folder, more, 0, &reader, err));
    enum status status = ST_OK;
    while ((status = journal_reader_next(reader, UINT64_MAX, &frame, err)) == ST_OK) *lsn = frame.lsn;
    if (status == ST_AGAIN) *tail = journal_reader_tail(reader);
    journal_reader_close(reader);
    return status == ST_AGAIN ? ST_OK : status;
}
