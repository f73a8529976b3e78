/* The meter's life, thread and rounds; see meter.h.
 *
 *   round: engines' events -> frames in memory -> grants that are due -> one commit -> ledger -> events out -> one wake
 *
 * The journal's zero-filled spares are made by a second thread, because that takes a while. */
#include "server/billing/meter_parts.h"

#include "runtime/base/check.h"
#include "runtime/base/cond.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"

#include <string.h>

void meter_wake(struct meter *m)
{
    doorbell_ring(&m->doorbell);
}

static void wake_io(struct meter *m)
{
    if (m->config.wake) m->config.wake(m->config.wake_state);
}

/* ---- spares ---- */

static void *spare_thread(void *state)
{
    struct meter *m = state;
    pthread_mutex_lock(&m->spare_mutex);
    while (!atomic_load(&m->stop)) {
        if (!m->spare_wanted) {
            pthread_cond_wait(&m->spare_condition, &m->spare_mutex);
            continue;
        }
        pthread_mutex_unlock(&m->spare_mutex);
        struct error err = {""};
        bool made = journal_spare_make(&m->config.journal, &err) == ST_OK;
        if (!made) log_line(LOG_ERROR, "billing", "no spare segment reason=\"%s\"", err.message);
        pthread_mutex_lock(&m->spare_mutex);
        m->spare_wanted = false;
        m->spare_made = made;
        if (made) continue;
        uint64_t until_ns = clock_now_ns(clock_system()) + NS_PER_S; /* a full disk is not asked without end */
        (void)cond_wait_until(&m->spare_condition, &m->spare_mutex, until_ns);
    }
    pthread_mutex_unlock(&m->spare_mutex);
    return NULL;
}

static void look_after_spares(struct meter *m)
{
    bool wanted = journal_spare_wanted(m->journal), made;
    pthread_mutex_lock(&m->spare_mutex);
    made = m->spare_made;
    m->spare_made = false;
    if (wanted && !made && !m->spare_wanted) {
        m->spare_wanted = true;
        pthread_cond_signal(&m->spare_condition);
    }
    pthread_mutex_unlock(&m->spare_mutex);
    if (made) journal_spare_add(m->journal);
}

/* ---- a round ---- */

static void fail(struct meter *m, enum status status)
{
    log_line(LOG_ERROR, "billing",
             "the journal has failed (%s): running requests are ended and counted by the next start's recovery",
             status_text(status));
    atomic_store(&m->failed, true);
    meter_drop_energy(m);
    atomic_store(&m->accepts, false);
    billing_stats_set(&m->config.stats->journal_accepts, 0);
    wake_io(m);
}

static bool next_event(struct meter_port *port, struct event *event)
{
    return port->engine ? engine_poll(port->engine, event) : ring_pop(&port->in, event);
}

/* Takes what the engine has told, as far as there is room for it on the way to io. */
static enum status take_events(struct meter *m, struct meter_port *port)
{
    struct event event;
    uint32_t room = ring_room(&port->out);
    room = room > port->waiting ? room - port->waiting : 0;
    if (room > m->pending_capacity - m->pending_count) room = m->pending_capacity - m->pending_count;
    bool gone_out = false;
    for (; room > 0 && next_event(port, &event); room--) {
        bool counted;
        enum status status = meter_note_event(m, &event, &counted);
        if (status == ST_OK && counted) {
            CHECK(ring_push(&port->out, &event));
            gone_out = true;
            continue;
        }
        m->pending[m->pending_count++] = (struct pending_event){.port = port, .event = event, .lsn = UINT64_MAX};
        port->waiting++;
        TRY(status); /* it comes out when the rest is let go: an end must not be lost */
    }
    if (gone_out) wake_io(m);
    m->busy = m->busy || gone_out;
    return ST_OK;
}

/* Tokens go out when they are written as the mode wants it, the end of a request when its FINAL is durable (J4). */
static bool give_events(struct meter *m)
{
    uint64_t durable_lsn = journal_durable_lsn(m->journal);
    bool let_go = atomic_load(&m->let_go), given = false;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < m->pending_count; i++) {
        struct pending_event *pending = &m->pending[i];
        if (pending->lsn == UINT64_MAX) pending->lsn = m->committed_lsn;
        if (pending->event.kind == REQUEST_DONE && pending->lsn > durable_lsn && !let_go) {
            m->pending[kept++] = *pending;
            continue;
        }
        CHECK(ring_push(&pending->port->out, &pending->event));
        pending->port->waiting--;
        given = true;
    }
    m->pending_count = kept;
    return given;
}

static enum status note_acks(struct meter *m, uint64_t now_ns)
{
    if (now_ns - m->acked_ns < ACK_EVERY_MS * NS_PER_MS) return ST_OK;
    m->acked_ns = now_ns;
    pthread_mutex_lock(&m->acks_mutex);
    enum status status = ST_OK;
    for (uint16_t i = 0; i < PARTITIONS && status == ST_OK; i++) {
        struct meter_ack *ack = &m->acks[i];
        if (ack->hwm == ack->noted) continue;
        status = journal_put_ack(m->journal, i, ack->hwm, ack->hash8);
        ack->noted = ack->hwm;
    }
    pthread_mutex_unlock(&m->acks_mutex);
    return status;
}

/* Frames of this round, and with them everything that waited for their company. */
static enum status write_round(struct meter *m, uint64_t now_ns)
{
    for (struct meter_port *port = m->ports; port; port = port->next) TRY(take_events(m, port));
    TRY(meter_flush_steps(m));
    TRY(meter_write_energy(m));
    TRY(meter_send_wishes(m, now_ns));
    TRY(note_acks(m, now_ns));
    if (journal_lsn(m->journal) > m->committed_lsn) {
        uint64_t lsn = journal_lsn(m->journal), start_ns = clock_now_ns(m->config.clock);
        TRY(journal_commit(m->journal));
        m->committed_lsn = lsn;
        billing_stats_sync(m->config.stats, clock_now_ns(m->config.clock) - start_ns);
        billing_stats_add(&m->config.stats->commits, 1);
    }
    return journal_tick(m->journal);
}

static void tell_stats(struct meter *m)
{
    struct billing_stats *stats = m->config.stats;
    struct journal_stats journal;
    const char *why_not = NULL;
    bool accepts = journal_accepts(m->journal, &why_not) && !atomic_load(&m->failed);
    if (accepts != atomic_load(&m->accepts))
        log_line(accepts ? LOG_INFO : LOG_ERROR, "billing", accepts ? "the journal takes requests again" : "closed: %s",
                 why_not ? why_not : "");
    atomic_store(&m->why_not, why_not);
    atomic_store(&m->accepts, accepts);
    journal_stats_read(m->journal, &journal);
    billing_stats_set(&stats->frames, journal.frames);
    billing_stats_set(&stats->bytes, journal.bytes);
    billing_stats_set(&stats->journal_accepts, accepts);
    billing_stats_set(&stats->journal_open_requests, journal.open_requests);
    billing_stats_set(&stats->journal_spares, journal.spares);
    billing_stats_set(&stats->journal_failovers, journal.failovers);
}

/* After a failure, when io has failed its calls: events go through in their order, without journal and ledger. */
static bool let_through(struct meter *m)
{
    for (struct meter_port *port = m->ports; port; port = port->next) CHECK(take_events(m, port) == ST_OK);
    bool given = give_events(m);
    if (given) wake_io(m);
    return given;
}

/* Whether anything was done; under work. */
static bool round_locked(struct meter *m)
{
    if (atomic_load(&m->failed)) return atomic_load(&m->let_go) && let_through(m);
    uint64_t now_ns = clock_now_ns(m->config.clock), before_lsn = journal_durable_lsn(m->journal);
    m->round++;
    m->busy = false;
    enum status status = write_round(m, now_ns);
    if (status != ST_OK) {
        fail(m, status);
        return false;
    }
    uint64_t durable_lsn = journal_durable_lsn(m->journal);
    atomic_store(&m->durable_lsn, durable_lsn);
    bool moved = durable_lsn != before_lsn;
    if (moved && m->durable) m->durable(m->durable_state, durable_lsn);
    status = meter_follow(m);
    if (status != ST_OK) {
        fail(m, status);
        return false;
    }
    bool given = give_events(m);
    meter_save_ledger(m, false);
    look_after_spares(m);
    if (now_ns - m->retired_ns > RETIRE_EVERY_MS * NS_PER_MS) {
        m->retired_ns = now_ns;
        (void)journal_retire(m->journal, clock_unix_ms(m->config.clock), m->config.keep_ms);
    }
    tell_stats(m);
    if (given) wake_io(m);
    return given || moved || m->busy;
}

/* How long until time is looked at, when nothing is told: group mode keeps its word about what is not synced. */
static uint64_t wait_ns(const struct meter *m)
{
    bool unsynced = journal_durable_lsn(m->journal) < journal_lsn(m->journal) && !atomic_load(&m->failed);
    if (m->config.journal.mode == COMMIT_GROUP && unsynced) return NS_PER_MS;
    return (m->leases ? ROUND_IDLE_MS / 10 : ROUND_IDLE_MS) * NS_PER_MS;
}

static bool do_round(struct meter *m, uint64_t *rest_ns)
{
    pthread_mutex_lock(&m->work);
    bool busy = round_locked(m);
    *rest_ns = wait_ns(m);
    pthread_mutex_unlock(&m->work);
    return busy;
}

static void *meter_thread(void *state)
{
    struct meter *m = state;
    uint64_t rest_ns;
    for (;;) {
        uint32_t heard = doorbell_rings(&m->doorbell);
        if (atomic_load(&m->stop)) return NULL;
        if (!do_round(m, &rest_ns)) doorbell_sleep(&m->doorbell, heard, rest_ns);
    }
}

/* ---- ports ---- */

static enum status port_open(struct meter *m, struct engine *engine, struct meter_port **out)
{
    struct meter_port *port = mem_alloc(1, sizeof *port);
    if (!port || ring_init(&port->out, PORT_EVENTS, sizeof(struct event)) != ST_OK) {
        mem_free(port);
        return ST_NOMEM;
    }
    if (!engine && ring_init(&port->in, PORT_EVENTS, sizeof(struct event)) != ST_OK) {
        ring_free(&port->out);
        mem_free(port);
        return ST_NOMEM;
    }
    port->meter = m;
    port->engine = engine;
    pthread_mutex_lock(&m->work);
    port->next = m->ports;
    m->ports = port;
    pthread_mutex_unlock(&m->work);
    *out = port;
    return ST_OK;
}

enum status meter_port_open(struct meter *m, struct engine *engine, struct meter_port **out)
{
    CHECK(engine != NULL);
    return port_open(m, engine, out);
}

enum status meter_port_open_told(struct meter *m, struct meter_port **out)
{
    return port_open(m, NULL, out);
}

bool meter_tell(struct meter_port *port, const struct event *events, uint32_t count)
{
    if (ring_room(&port->in) < count) return false;
    for (uint32_t i = 0; i < count; i++) CHECK(ring_push(&port->in, &events[i]));
    meter_wake(port->meter);
    return true;
}

void meter_port_close(struct meter_port *port)
{
    if (!port) return;
    struct meter *m = port->meter;
    pthread_mutex_lock(&m->work);
    CHECK(port->waiting == 0 && ring_count(&port->out) == 0);
    CHECK(port->engine || ring_count(&port->in) == 0);
    struct meter_port **link = &m->ports;
    while (*link != port) link = &(*link)->next;
    *link = port->next;
    pthread_mutex_unlock(&m->work);
    ring_free(&port->out);
    if (!port->engine) ring_free(&port->in);
    mem_free(port);
}

bool meter_poll(struct meter_port *port, struct event *event)
{
    struct meter *m = port->meter;
    while (!ring_pop(&port->out, event)) {
        if (!m->stopped) return false;
        /* In group mode the last ends wait for their time: at the end there is nothing to wait for. */
        pthread_mutex_lock(&m->work);
        bool busy = round_locked(m) || m->pending_count > 0;
        if (atomic_load(&m->failed)) atomic_store(&m->let_go, true);
        pthread_mutex_unlock(&m->work);
        if (!busy && ring_count(&port->out) == 0) return false;
    }
    if (!m->stopped && ring_count(&port->out) == PORT_EVENTS / 2) meter_wake(m); /* there is room again */
    return true;
}

/* ---- state for io ---- */

bool meter_accepts(struct meter *m, const char **why_not)
{
    bool failed = atomic_load(&m->failed); /* is told by itself: from the moment on in which meter_failed says so */
    *why_not = failed ? "the billing journal has failed" : atomic_load(&m->why_not);
    return !failed && atomic_load(&m->accepts);
}

bool meter_enforces(const struct meter *m)
{
    return m->leases != NULL;
}

bool meter_failed(const struct meter *m)
{
    return atomic_load(&m->failed);
}

void meter_let_go(struct meter *m)
{
    atomic_store(&m->let_go, true);
    meter_wake(m);
}

uint64_t meter_answers(const struct meter *m)
{
    return atomic_load(&m->answers);
}

uint64_t meter_durable_lsn(const struct meter *m)
{
    return atomic_load(&m->durable_lsn);
}

void meter_durable_hook(struct meter *m, void (*durable)(void *state, uint64_t lsn), void *state)
{
    pthread_mutex_lock(&m->work);
    m->durable = durable;
    m->durable_state = state;
    pthread_mutex_unlock(&m->work);
}

void meter_applied(struct meter *m, uint16_t partition, uint64_t hwm, const char *hash8)
{
    pthread_mutex_lock(&m->acks_mutex);
    m->acks[partition].hwm = hwm;
    memcpy(m->acks[partition].hash8, hash8, sizeof m->acks[partition].hash8);
    pthread_mutex_unlock(&m->acks_mutex);
}

/* ---- life ---- */

static void make_conditions(struct meter *m)
{
    doorbell_init(&m->doorbell);
    (void)cond_init(&m->spare_condition);
    pthread_mutex_init(&m->work, NULL);
    pthread_mutex_init(&m->leases_mutex, NULL);
    pthread_mutex_init(&m->acks_mutex, NULL);
    pthread_mutex_init(&m->spare_mutex, NULL);
    pthread_mutex_init(&m->energy_mutex, NULL);
}

static void meter_free(struct meter *m)
{
    ledger_store_close(m->store);
    journal_close(m->journal);
    leases_destroy(m->leases);
    meter_energy_free(m);
    mem_free(m->pending);
    doorbell_free(&m->doorbell);
    pthread_cond_destroy(&m->spare_condition);
    pthread_mutex_destroy(&m->work);
    pthread_mutex_destroy(&m->leases_mutex);
    pthread_mutex_destroy(&m->acks_mutex);
    pthread_mutex_destroy(&m->spare_mutex);
    pthread_mutex_destroy(&m->energy_mutex);
    mem_free(m);
}

static enum status open_parts(struct meter *m, struct journal_report *report, struct error *err)
{
    const struct meter_config *config = &m->config;
    m->pending_capacity = 2 * PORT_EVENTS;
    m->pending = mem_alloc(m->pending_capacity, sizeof *m->pending);
    if (!m->pending) return error_set(err, ST_NOMEM, "no memory for the meter");
    if (config->enforce && leases_create(&config->leases, &m->leases) != ST_OK)
        return error_set(err, ST_NOMEM, "no memory for leases");
    TRY(journal_open(&config->journal, &m->journal, report, err));
    if (!config->remote) {
        struct ledger_store_report found;
        struct ledger_store_config store = {.disk = config->journal.disk,
                                            .folder = config->journal.folder,
                                            .fallback = config->journal.fallback,
                                            .uuid = journal_uuid(m->journal)};
        TRY(ledger_store_open(&store, journal_durable_lsn(m->journal), &m->store, &found, err));
        journal_keep_from(m->journal, ledger_store_kept_lsn(m->store) + 1);
        if (m->leases) lease_ledger_state(m->leases, true, false, clock_now_ns(config->clock));
    }
    m->committed_lsn = journal_lsn(m->journal);
    atomic_store(&m->durable_lsn, journal_durable_lsn(m->journal));
    atomic_store(&m->accepts, true);
    return ST_OK;
}

enum status meter_create(const struct meter_config *config, struct meter **meter, struct journal_report *report,
                         struct error *err)
{
    struct meter *m = mem_alloc(1, sizeof *m);
    if (!m) return error_set(err, ST_NOMEM, "no memory for the meter");
    m->config = *config;
    make_conditions(m);
    enum status status = open_parts(m, report, err);
    if (status == ST_OK && pthread_create(&m->thread, NULL, meter_thread, m) != 0)
        status = error_set(err, ST_NOMEM, "the system gives no thread");
    if (status == ST_OK && pthread_create(&m->spare_thread, NULL, spare_thread, m) != 0) {
        atomic_store(&m->stop, true);
        meter_wake(m);
        (void)pthread_join(m->thread, NULL);
        status = error_set(err, ST_NOMEM, "the system gives no thread");
    }
    if (status != ST_OK) {
        meter_free(m);
        return status;
    }
    *meter = m;
    return ST_OK;
}

void meter_stop(struct meter *m)
{
    if (!m || m->stopped) return;
    atomic_store(&m->stop, true);
    meter_wake(m);
    pthread_mutex_lock(&m->spare_mutex);
    pthread_cond_signal(&m->spare_condition);
    pthread_mutex_unlock(&m->spare_mutex);
    CHECK(pthread_join(m->thread, NULL) == 0 && pthread_join(m->spare_thread, NULL) == 0);
    m->stopped = true;
}

void meter_finish(struct meter *m)
{
    meter_stop(m);
    CHECK(m->ports == NULL);
    meter_release_leases(m);
    if (meter_failed(m)) return;
    pthread_mutex_lock(&m->work);
    (void)round_locked(m);
    if (journal_sync(m->journal) == ST_OK) {
        atomic_store(&m->durable_lsn, journal_durable_lsn(m->journal));
        if (m->durable) m->durable(m->durable_state, journal_durable_lsn(m->journal));
        m->ledger_due = true;
        if (meter_follow(m) == ST_OK) meter_save_ledger(m, true);
    }
    pthread_mutex_unlock(&m->work);
}

void meter_destroy(struct meter *m)
{
    if (!m) return;
    meter_stop(m);
    meter_free(m);
}
