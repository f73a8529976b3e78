/* The ledger in the process and the leases, as the meter keeps them; see meter.h. */
#include "server/billing/budget_book.h"
#include "server/billing/ledger_lines.h"
#include "server/billing/meter_parts.h"

#include "runtime/base/log.h"

#include <string.h>

/* ---- leases ---- */

enum lease_verdict meter_hold(struct meter *m, struct metered *metered, struct lease_ask *ask, uint64_t *got)
{
    *got = ask->most;
    if (!m->leases) return LEASE_HELD;
    pthread_mutex_lock(&m->leases_mutex);
    enum lease_verdict verdict =
        lease_hold(m->leases, metered->charge.account, metered->charge.mclass, ask, clock_now_ns(m->config.clock), got);
    if (verdict == LEASE_HELD) metered->held += *got;
    pthread_mutex_unlock(&m->leases_mutex);
    if (verdict == LEASE_WAITS) meter_wake(m); /* its grant */
    return verdict;
}

void meter_drop(struct meter *m, struct metered *metered)
{
    if (!m->leases) return;
    pthread_mutex_lock(&m->leases_mutex);
    if (metered->held > 0) lease_drop(m->leases, metered->charge.account, metered->charge.mclass, metered->held);
    metered->held = 0;
    pthread_mutex_unlock(&m->leases_mutex);
}

void meter_leases_sum(struct meter *m, struct lease_sums *sums)
{
    *sums = (struct lease_sums){0};
    if (!m->leases) return;
    pthread_mutex_lock(&m->leases_mutex);
    leases_sum(m->leases, clock_now_ns(m->config.clock), sums);
    pthread_mutex_unlock(&m->leases_mutex);
}

void meter_release_leases(struct meter *m)
{
    if (!m->leases) return;
    pthread_mutex_lock(&m->leases_mutex);
    lease_release_all(m->leases);
    pthread_mutex_unlock(&m->leases_mutex);
    if (!m->stopped) meter_wake(m);
}

enum status meter_send_wishes(struct meter *m, uint64_t now_ns)
{
    if (!m->leases) return ST_OK;
    enum status status = ST_OK;
    struct grant_wish wish;
    pthread_mutex_lock(&m->leases_mutex);
    while (status == ST_OK && lease_next_wish(m->leases, now_ns, &wish)) {
        struct record record = {.kind = wish.release ? RECORD_RELEASE : RECORD_GRANT,
                                .account = wish.account,
                                .mclass = wish.mclass,
                                .want = wish.want,
                                .least = wish.least,
                                .valid_ms = wish.valid_ms};
        status = journal_put_record(m->journal, &record);
        if (status != ST_OK) break;
        lease_sent(m->leases, &wish, record.pseq, now_ns);
        m->ledger_due = true;
    }
    pthread_mutex_unlock(&m->leases_mutex);
    return status;
}

void meter_granted(struct meter *m, uint64_t account, uint8_t mclass, uint64_t pseq, uint64_t leased, bool open)
{
    if (!m->leases) return;
    pthread_mutex_lock(&m->leases_mutex);
    lease_answered(m->leases, account, mclass, pseq, leased, open, clock_now_ns(m->config.clock));
    pthread_mutex_unlock(&m->leases_mutex);
    atomic_fetch_add(&m->answers, 1);
    if (m->config.wake) m->config.wake(m->config.wake_state);
}

void meter_ledger_state(struct meter *m, bool reachable, bool refuses)
{
    if (!m->leases) return;
    pthread_mutex_lock(&m->leases_mutex);
    lease_ledger_state(m->leases, reachable, refuses, clock_now_ns(m->config.clock));
    pthread_mutex_unlock(&m->leases_mutex);
    atomic_fetch_add(&m->answers, 1);
    if (m->config.wake) m->config.wake(m->config.wake_state);
}

/* ---- the ledger in the process ---- */

static void on_grant(void *state, uint64_t account, uint8_t mclass, uint64_t pseq, uint64_t leased, bool open)
{
    meter_granted(state, account, mclass, pseq, leased, open);
}

static void on_order(void *state, uint64_t lsn, enum ledger_answer answer, uint32_t leases, uint32_t packages)
{
    struct meter *m = state;
    m->order.lsn = lsn;
    m->order.answer = answer;
    m->order.leases = leases;
    m->order.packages = packages;
}

enum status meter_follow(struct meter *m)
{
    if (!m->store || !m->ledger_due) return ST_OK;
    uint64_t durable_lsn = journal_durable_lsn(m->journal);
    const struct ledger_store_events events = {.state = m, .grant = on_grant, .order = on_order};
    struct error err = {""};
    enum status status = ledger_store_follow(m->store, durable_lsn, &events, &err);
    if (status != ST_OK) log_line(LOG_ERROR, "billing", "ledger: %s", err.message);
    billing_stats_set(&m->config.stats->ledger_reachable, status == ST_OK);
    m->ledger_due = durable_lsn < journal_lsn(m->journal);
    return status == ST_NOMEM ? ST_OK : status; /* asked again in the next round */
}

void meter_save_ledger(struct meter *m, bool at_end)
{
    struct error err = {""};
    if (!m->store || (!at_end && !ledger_store_snapshot_wanted(m->store, journal_segment_lsn(m->journal)))) return;
    if (ledger_store_snapshot(m->store, m->journal, &err) != ST_OK)
        log_line(LOG_WARN, "billing", "no snapshot of the ledger, the next start reads more reason=\"%s\"",
                 err.message);
}

/* ---- its client: calls of any thread but io's ---- */

/* Commits what was just put and lets the ledger follow; under work. */
static enum status commit_order(struct meter *m, enum status put, enum ledger_answer *answer, struct error *err)
{
    if (put != ST_OK) return error_set(err, put, "no memory");
    uint64_t lsn = journal_lsn(m->journal);
    enum status status = journal_commit(m->journal);
    while (status == ST_OK && journal_durable_lsn(m->journal) < lsn) status = journal_sync(m->journal);
    m->committed_lsn = journal_lsn(m->journal);
    m->ledger_due = true;
    if (status == ST_OK) status = meter_follow(m);
    if (status != ST_OK || m->order.lsn != lsn)
        return error_set(err, ST_IO, "the journal has failed; whether the order holds shows at the next start");
    *answer = m->order.answer;
    return ST_OK;
}

static enum status begin_order(struct meter *m, struct error *err)
{
    pthread_mutex_lock(&m->work);
    if (!atomic_load(&m->failed)) return ST_OK;
    pthread_mutex_unlock(&m->work);
    return error_set(err, ST_IO, "the journal has failed");
}

static enum status end_order(struct meter *m, enum status status)
{
    pthread_mutex_unlock(&m->work);
    meter_wake(m);
    return status;
}

static enum status client_order(void *state, const struct order *order, enum ledger_answer *answer, struct error *err)
{
    struct meter *m = state;
    struct order stamped = *order; /* the time it is judged at */
    stamped.created_ms = (uint64_t)clock_unix_ms(m->config.clock);
    if (!order_valid(&stamped)) { /* in the journal, what nobody can read would stop the ledger for good */
        *answer = LEDGER_BADARG;
        return ST_OK;
    }
    TRY(begin_order(m, err));
    return end_order(m, commit_order(m, journal_put_order(m->journal, &stamped), answer, err));
}

static enum status client_account_set(void *state, uint64_t account, const char *order_id, bool open,
                                      enum ledger_answer *answer, struct error *err)
{
    struct meter *m = state;
    if (!order_id_valid(order_id)) {
        *answer = LEDGER_BADARG;
        return ST_OK;
    }
    TRY(begin_order(m, err));
    return end_order(m, commit_order(m, journal_put_account(m->journal, account, order_id, open), answer, err));
}

static enum status client_reap(void *state, uint64_t account, uint64_t grace_ms, uint32_t *leases, uint32_t *packages,
                               enum ledger_answer *answer, struct error *err)
{
    struct meter *m = state;
    struct order order = {.account = account,
                          .op = PACKAGE_REAP,
                          .units = grace_ms,
                          .created_ms = (uint64_t)clock_unix_ms(m->config.clock)};
    TRY(begin_order(m, err));
    enum status status = commit_order(m, journal_put_order(m->journal, &order), answer, err);
    *leases = m->order.leases;
    *packages = m->order.packages;
    return end_order(m, status);
}

static enum status client_balance(void *state, uint64_t account, struct account_balance *balance, struct error *err)
{
    struct meter *m = state;
    (void)err;
    pthread_mutex_lock(&m->work);
    ledger_balance(ledger_store_ledger(m->store), account, balance);
    pthread_mutex_unlock(&m->work);
    return ST_OK;
}

static enum status client_month(void *state, uint64_t account, uint32_t month, struct month_total totals[MODEL_CLASSES],
                                uint32_t *count, struct error *err)
{
    struct meter *m = state;
    (void)err;
    pthread_mutex_lock(&m->work);
    *count = ledger_month(ledger_store_ledger(m->store), account, month, totals);
    pthread_mutex_unlock(&m->work);
    return ST_OK;
}

static enum status client_marks(void *state, uint16_t partition, ledger_mark_fn visit, void *visitor, struct error *err)
{
    struct meter *m = state;
    (void)err;
    pthread_mutex_lock(&m->work);
    ledger_marks(ledger_store_ledger(m->store), partition, visit, visitor);
    pthread_mutex_unlock(&m->work);
    return ST_OK;
}

static enum status client_uuid(void *state, char uuid[LEDGER_UUID_CHARS + 1], struct error *err)
{
    struct meter *m = state;
    (void)err;
    memcpy(uuid, journal_uuid(m->journal), LEDGER_UUID_CHARS + 1);
    return ST_OK;
}

static enum status client_init(void *state, const char *uuid, enum ledger_answer *answer, struct error *err)
{
    struct meter *m = state;
    (void)err;
    *answer = strcmp(uuid, journal_uuid(m->journal)) ? LEDGER_WRONGLEDGER : LEDGER_DUP;
    return ST_OK;
}

/* ---- tenants, accounts and keys ---- */

static enum status client_directory_version(void *state, uint64_t *version, struct error *err)
{
    struct meter *m = state;
    pthread_mutex_lock(&m->work);
    enum status status = ledger_lines_version(m->config.journal.disk, m->config.journal.folder, version, err);
    pthread_mutex_unlock(&m->work);
    return status;
}

static enum status client_directory_read(void *state, void (*visit)(void *visitor, const char *line, size_t length),
                                         void *visitor, uint64_t *version, struct error *err)
{
    struct meter *m = state;
    pthread_mutex_lock(&m->work);
    enum status status =
        ledger_lines_read(m->config.journal.disk, m->config.journal.folder, visit, visitor, version, err);
    pthread_mutex_unlock(&m->work);
    return status;
}

static enum status client_directory_put(void *state, const char *id, const char *line, struct error *err)
{
    struct meter *m = state;
    pthread_mutex_lock(&m->work);
    enum status status = ledger_lines_put(m->config.journal.disk, m->config.journal.folder, id, line, err);
    pthread_mutex_unlock(&m->work);
    return status;
}

static enum status client_budget(void *state, const struct budget_ask *ask, struct budget_answer *answer,
                                 struct error *err)
{
    struct meter *m = state;
    pthread_mutex_lock(&m->work);
    enum status status = budget_book_ask(m->config.journal.disk, m->config.journal.folder,
                                         clock_unix_ms(m->config.clock) / 1000, ask, answer, err);
    pthread_mutex_unlock(&m->work);
    return status;
}

static void client_close(void *state)
{
    (void)state;
}

static const struct ledger_client_calls client_calls = {.close = client_close,
                                                        .init = client_init,
                                                        .uuid = client_uuid,
                                                        .order = client_order,
                                                        .account_set = client_account_set,
                                                        .reap = client_reap,
                                                        .balance = client_balance,
                                                        .month = client_month,
                                                        .marks = client_marks,
                                                        .directory_version = client_directory_version,
                                                        .directory_read = client_directory_read,
                                                        .directory_put = client_directory_put,
                                                        .budget = client_budget};

void meter_ledger_client(struct meter *m, struct ledger_client *client)
{
    *client = (struct ledger_client){.calls = &client_calls, .state = m};
}
