/* The emitter's thread: between the journal's files, emitter_core.h and Redis; see emitter.h.
 *
 *   round:  read the journal into the window -> a call for each partition that has something -> flush -> replies
 *
 * A round sends to every node before it waits for the first reply, so a round trip is paid once for all partitions.
 * A round is bounded (ROUND_RECORDS_MAX), so that a grant waits for one bounded round and not for a backlog's worth
 * of other accounts. Sending and waiting in turn on one thread, instead of a poll loop over nodes: one of a Cluster's
 * nodes that hangs holds the others up for one time-out, once in each of its pauses. */
#include "server/billing/emitter.h"

#include "runtime/base/check.h"
#include "runtime/base/cond.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"
#include "server/billing/journal_reader.h"
#include "server/billing/ledger_redis.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

enum {
    WINDOW_DEFAULT = 2048,
    ROUND_RECORDS_MAX = 2048,
    SEGMENTS_MAX = 8192,
    RETRY_MS = 50,        /* of a call that Redis could not run now */
    RETRY_LONG_MS = 1000, /* of one that needs a person: rights, an error that we do not know */
    IDLE_MS = 200         /* longest sleep, should a wake have been missed */
};

/* A call of this round. */
struct sent {
    uint16_t partition;
    uint32_t node;
    bool asking;
};

struct emitter {
    struct emitter_config config;
    char folder[512], fallback[512], uuid[LEDGER_UUID_CHARS + 1];
    pthread_t thread;
    pthread_mutex_t mutex; /* guards what stands below up to `view` */
    pthread_cond_t condition;
    uint64_t durable_lsn;
    bool stopping;
    uint64_t stop_ns; /* flush until */
    struct emitter_view view;

    /* the thread's */
    struct emitter_core *core;
    struct redis_link *link;
    struct apply_writer *writer;
    struct ledger_reply *reply;
    struct journal_reader *reader;
    struct frame held;                          /* a record that found no room in the window */
    bool holding, at_end, journal_bad, reading; /* reading: it has been opened once */
    uint64_t read_lsn;                          /* of the last frame that was read and taken */
    uint64_t journal_retry_ns;
    uint16_t slots[PARTITIONS];
    uint32_t nodes[PARTITIONS]; /* the one that a partition said hello to, and over which connection */
    uint64_t connections[PARTITIONS];
    uint32_t asked[PARTITIONS]; /* ASK: where its next call goes; REDIS_NODES_MAX: the usual way */
    uint16_t first;             /* partition that a round begins with: none waits behind others for ever */
    struct sent sent[PARTITIONS];
    uint32_t sent_count;
    bool reload[REDIS_NODES_MAX];
    struct {
        bool is;
        uint64_t hwm;
        char hash8[HASH8_CHARS + 1];
    } marks[PARTITIONS]; /* to be told at the end of the round */
    bool told_any, told_reachable, told_refuses;
    uint64_t told_losses;
    char reason[256];
    uint64_t directory_ns, directory_version;
    bool directory_known;
};

static uint64_t now_of(const struct emitter *e)
{
    return clock_now_ns(e->config.clock);
}

/* Why Redis cannot be used now; logged when it is another reason than before. */
static void note(struct emitter *e, const char *text)
{
    if (strcmp(e->reason, text) == 0) return;
    snprintf(e->reason, sizeof e->reason, "%s", text);
    if (text[0] != '\0') log_line(LOG_WARN, "emitter", "ledger=\"%s\"", e->reason);
}

/* ---- hooks of the core ---- */

static void on_granted(void *state, uint64_t account, uint8_t mclass, uint64_t pseq, uint64_t leased, bool open)
{
    struct emitter *e = state;
    e->config.hooks.granted(e->config.hooks.state, account, mclass, pseq, leased, open);
}

static void on_applied(void *state, uint16_t partition, uint64_t hwm, const char *hash8)
{
    struct emitter *e = state;
    e->marks[partition].is = true;
    e->marks[partition].hwm = hwm;
    memcpy(e->marks[partition].hash8, hash8, HASH8_CHARS + 1);
}

static void on_stopped(void *state, uint16_t partition, enum emitter_stop stop)
{
    struct emitter *e = state;
    if (stop == STOP_NONE)
        log_line(LOG_INFO, "emitter", "partition=%u goes_on=1", partition);
    else
        log_line(LOG_ERROR, "emitter", "partition=%u stopped=\"%s\"", partition, emitter_stop_text(stop));
    if (e->config.hooks.stopped != NULL) e->config.hooks.stopped(e->config.hooks.state, partition, stop);
}

/* ---- the journal ---- */

static void close_reader(struct emitter *e)
{
    if (e->reader != NULL) journal_reader_close(e->reader);
    e->reader = NULL;
    e->holding = false;
}

static void journal_failed(struct emitter *e, const struct error *err)
{
    close_reader(e);
    if (!e->journal_bad) log_line(LOG_ERROR, "emitter", "journal=\"%s\"", err->message);
    e->journal_bad = true;
    e->journal_retry_ns = now_of(e) + 10 * NS_PER_S;
}

static const char *fallback_of(const struct emitter *e)
{
    return e->fallback[0] != '\0' ? e->fallback : NULL;
}

static bool open_reader(struct emitter *e, uint64_t lsn, struct error *err)
{
    close_reader(e);
    const struct disk *disk = e->config.disk;
    enum status status = journal_reader_open(disk, e->folder, fallback_of(e), lsn, &e->reader, err);
    if (status == ST_NOTFOUND && lsn > 0) { /* retired meanwhile: what is missing shows as a gap, or is not needed */
        lsn = 0;
        status = journal_reader_open(disk, e->folder, fallback_of(e), lsn, &e->reader, err);
    }
    e->reading = true;
    e->read_lsn = lsn > 0 ? lsn - 1 : 0;
    if (status == ST_OK) return true;
    e->reader = NULL;
    journal_failed(e, err);
    return false;
}

/* The checkpoint that a segment begins with. */
static enum status read_checkpoint(const struct emitter *e, uint64_t base_lsn, uint64_t *pseq,
                                   uint8_t (*chain)[CHAIN_BYTES], struct error *err)
{
    struct journal_reader *reader = NULL;
    TRY(journal_reader_open(e->config.disk, e->folder, fallback_of(e), base_lsn, &reader, err));
    struct frame frame;
    enum status status = journal_reader_next(reader, UINT64_MAX, &frame, err);
    if (status == ST_OK && frame.type != FRAME_CHECKPOINT)
        status = error_set(err, ST_INVAL, "the segment of LSN %" PRIu64 " does not begin with a checkpoint", base_lsn);
    if (status == ST_OK) status = frame_read_checkpoint(&frame, pseq, chain);
    journal_reader_close(reader);
    return status;
}

/* Finds where to read on for partitions whose records lie behind the reader. */
static void seek(struct emitter *e)
{
    struct error err = {""};
    struct segment_info *segments = mem_alloc(SEGMENTS_MAX, sizeof *segments);
    uint64_t *pseq = mem_alloc(PARTITIONS, sizeof *pseq);
    uint8_t(*chain)[CHAIN_BYTES] = mem_alloc(PARTITIONS, CHAIN_BYTES);
    uint32_t count = 0;
    enum status status =
        segments == NULL || pseq == NULL || chain == NULL
            ? error_set(&err, ST_NOMEM, "no memory to look for a record")
            : journal_segments(e->config.disk, e->folder, fallback_of(e), segments, SEGMENTS_MAX, &count, &err);
    bool all = false;
    while (status == ST_OK && !all && count > 0) {
        count--;
        if (count > 0 && segments[count].base_lsn == segments[count - 1].base_lsn) continue;
        if (segments[count].producer != e->config.producer) break; /* adopted: older records are another's */
        status = read_checkpoint(e, segments[count].base_lsn, pseq, chain, &err);
        if (status == ST_NOTFOUND && count < 2)
            status = ST_OK; /* retired meanwhile */
        else if (status == ST_OK)
            all = core_checkpoint(e->core, segments[count].base_lsn, pseq, chain, now_of(e));
    }
    mem_free(segments);
    mem_free(pseq);
    mem_free(chain);
    if (status != ST_OK) {
        journal_failed(e, &err);
        return;
    }
    uint64_t lsn = core_sought(e->core, now_of(e));
    /* a reader that failed stood where others have yet to read */
    if (lsn != 0 && e->reader == NULL && e->reading && e->read_lsn < lsn) lsn = e->read_lsn;
    if (lsn != 0 && (e->reader == NULL || lsn <= e->read_lsn)) (void)open_reader(e, lsn, &err);
}

/* Reads what is durable into the window, as far as there is room. */
static void read_journal(struct emitter *e, uint64_t durable_lsn)
{
    struct error err = {""};
    e->at_end = false;
    while (e->reader != NULL) {
        if (!e->holding) {
            enum status status = journal_reader_next(e->reader, durable_lsn, &e->held, &err);
            if (status == ST_AGAIN) {
                core_end(e->core, now_of(e));
                e->at_end = true;
                e->journal_bad = false;
                return;
            }
            if (status == ST_NOTFOUND) { /* overtaken by retention: what is needed shows as a gap, or is not needed */
                (void)open_reader(e, 0, &err);
                continue;
            }
            if (status != ST_OK) {
                journal_failed(e, &err);
                return;
            }
        }
        e->holding = false;
        e->read_lsn = e->held.lsn;
        /* before an adopt: another's, who has no part in this ledger's marks any more */
        if (journal_reader_segment(e->reader)->producer != e->config.producer) continue;
        if (!frame_is_record(e->held.type)) continue;
        enum status status = core_record(e->core, e->held.lsn, e->held.payload, e->held.length, now_of(e));
        if (status == ST_AGAIN) {
            e->holding = true; /* its bytes stay valid: the reader is not called before it is taken */
            return;
        }
        if (status != ST_OK) {
            error_set(&err, ST_INVAL, "a record at LSN %" PRIu64 " cannot be read", e->held.lsn);
            journal_failed(e, &err);
            return;
        }
    }
}

/* ---- Redis ---- */

static void lose_node(struct emitter *e, uint32_t node)
{
    uint64_t now = now_of(e), retry = now + redis_link_pause_ns(e->link);
    for (uint16_t p = 0; p < PARTITIONS; p++)
        if (e->connections[p] != 0 && e->nodes[p] == node) {
            core_lost(e->core, p, now, retry);
            e->connections[p] = 0;
        }
}

/* A connection may have ended outside a round, under a question of ours: all that went over it begins anew at once, not
 * each partition at its next call. */
static void lose_ended(struct emitter *e)
{
    for (uint16_t p = 0; p < PARTITIONS; p++)
        if (e->connections[p] != 0 && (!redis_node_open(e->link, e->nodes[p]) ||
                                       redis_node_generation(e->link, e->nodes[p]) != e->connections[p])) {
            core_lost(e->core, p, now_of(e), now_of(e));
            e->connections[p] = 0;
        }
}

/* The node for a partition's next call; a partition on a new connection has to say hello first. */
static bool find_node(struct emitter *e, uint16_t partition, uint32_t *node, bool *asking)
{
    struct error err = {""};
    uint64_t now = now_of(e);
    *asking = e->asked[partition] != REDIS_NODES_MAX;
    *node = e->asked[partition];
    e->asked[partition] = REDIS_NODES_MAX;
    enum status status =
        *asking ? redis_node_connect(e->link, *node, &err) : redis_link_route(e->link, e->slots[partition], node, &err);
    if (status != ST_OK) {
        if (status != ST_AGAIN) note(e, err.message);
        uint64_t pause = redis_link_pause_ns(e->link);
        core_lost(e->core, partition, now_of(e), now_of(e) + (pause > NS_PER_MS ? pause : NS_PER_MS));
        e->connections[partition] = 0;
        return false;
    }
    uint64_t connection = redis_node_generation(e->link, *node);
    if (*asking || (e->nodes[partition] == *node && e->connections[partition] == connection)) return true;
    if (e->connections[partition] != 0) core_lost(e->core, partition, now, now);
    e->nodes[partition] = *node;
    e->connections[partition] = connection;
    return true;
}

/* Queues one partition's call. Returns its records. */
static uint32_t send_call(struct emitter *e, uint16_t partition)
{
    struct emitter_batch batch;
    struct error err = {""};
    uint32_t node = 0;
    bool asking = false;
    if (!find_node(e, partition, &node, &asking)) return 0;
    uint64_t now = now_of(e);
    if (!core_next(e->core, partition, now, &batch)) return 0;
    const struct apply_call call = {.partition = partition,
                                    .producer = e->config.producer,
                                    .epoch = e->config.epoch,
                                    .uuid = e->uuid,
                                    .previous = batch.previous,
                                    .records = batch.records,
                                    .count = batch.count};
    struct redis_command command;
    enum status status = apply_write(e->writer, &call, &command, &err);
    CHECK(status == ST_OK); /* core_record has read the same bytes */
    const char *words[] = {"ASKING"};
    if (asking) status = redis_node_send(e->link, node, &(struct redis_command){1, words, NULL});
    if (status == ST_OK) status = redis_node_send(e->link, node, &command);
    if (status != ST_OK) {
        note(e, "no memory for a call to Redis");
        redis_node_close(e->link, node); /* half of it may be queued */
        core_lost(e->core, partition, now, now + RETRY_MS * NS_PER_MS);
        lose_node(e, node);
        return 0;
    }
    e->sent[e->sent_count++] = (struct sent){partition, node, asking};
    return batch.count;
}

/* A reply that is an error. */
static void fault(struct emitter *e, const struct sent *s, const struct redis_reply *reply)
{
    uint64_t now = now_of(e), retry = now + RETRY_MS * NS_PER_MS;
    enum redis_fault what = redis_fault_of(reply);
    redis_link_learn(e->link, e->slots[s->partition], s->node, reply, &e->asked[s->partition]);
    switch (what) {
    case REDIS_FAULT_MOVED:
    case REDIS_FAULT_ASK:
        if (what == REDIS_FAULT_ASK ? e->asked[s->partition] != REDIS_NODES_MAX : true) retry = now + NS_PER_MS;
        break;
    case REDIS_FAULT_FUNCTION: e->reload[s->node] = true; break;
    case REDIS_FAULT_MASTER: /* K1: redis_link_learn has closed it */
        note(e, reply->text);
        lose_node(e, s->node);
        return;
    case REDIS_FAULT_WAIT: note(e, reply->text); break;
    default: note(e, reply->text); retry = now + RETRY_LONG_MS * NS_PER_MS;
    }
    core_refused(e->core, s->partition, now, retry);
}

static void receive_call(struct emitter *e, const struct sent *s)
{
    struct error err = {""};
    struct redis_reply *reply = NULL;
    uint32_t timeout_ms = e->config.target->timeout_ms;
    enum status status = ST_IO;
    bool same = redis_node_open(e->link, s->node) &&
                (s->asking || e->connections[s->partition] == redis_node_generation(e->link, s->node));
    if (same) {
        status = redis_node_receive(e->link, s->node, timeout_ms, &reply, &err);
        if (s->asking && status == ST_OK) {
            redis_reply_free(reply);
            reply = NULL;
            status = redis_node_receive(e->link, s->node, timeout_ms, &reply, &err);
        }
        if (status == ST_OK && reply->type != REDIS_ERROR) {
            status = apply_read(reply, e->reply, &err);
            if (status != ST_OK) redis_node_close(e->link, s->node);
        }
        if (status != ST_OK) {
            note(e, err.message);
            lose_node(e, s->node);
        }
    }
    if (status != ST_OK) { /* L3: the hello tells what came of it */
        core_lost(e->core, s->partition, now_of(e), now_of(e) + redis_link_pause_ns(e->link));
    } else if (reply->type == REDIS_ERROR) {
        fault(e, s, reply);
    } else {
        note(e, "");
        core_answer(e->core, s->partition, e->reply, now_of(e));
    }
    redis_reply_free(reply);
}

/* Whether enough replicas have all that went to this node over its connection. */
static bool replicated(struct emitter *e, uint32_t node)
{
    char count[16];
    snprintf(count, sizeof count, "%u", e->config.replicas_min);
    const char *words[] = {"WAIT", count, "1000"};
    const struct redis_command command = {3, words, NULL};
    struct redis_reply *reply = NULL;
    struct error err = {""};
    if (!redis_node_open(e->link, node)) return false;
    if (redis_node_call(e->link, node, &command, &reply, &err) != ST_OK) {
        lose_node(e, node);
        return false;
    }
    bool good = reply->type == REDIS_INTEGER && reply->integer >= (int64_t)e->config.replicas_min;
    redis_reply_free(reply);
    return good;
}

/* Marks that could not be told stay for a later round. A node is asked once a round. */
static void tell_marks(struct emitter *e)
{
    enum { NOT_ASKED, LACKS, HAS };
    uint8_t nodes[REDIS_NODES_MAX] = {NOT_ASKED};
    for (uint16_t p = 0; p < PARTITIONS; p++) {
        if (!e->marks[p].is) continue;
        uint8_t *node = &nodes[e->nodes[p]];
        if (e->config.replicas_min > 0 && *node == NOT_ASKED) *node = replicated(e, e->nodes[p]) ? HAS : LACKS;
        if (e->config.replicas_min > 0 && *node == LACKS) continue;
        e->marks[p].is = false;
        e->config.hooks.applied(e->config.hooks.state, p, e->marks[p].hwm, e->marks[p].hash8);
    }
}

static void send_round(struct emitter *e)
{
    uint32_t records = 0;
    struct error err = {""};
    e->sent_count = 0;
    lose_ended(e);
    struct emitter_view view;
    core_look(e->core, now_of(e), &view);
    if (view.busy) {
        for (uint32_t i = 0; i < PARTITIONS && records < ROUND_RECORDS_MAX; i++) {
            uint16_t p = (uint16_t)((e->first + i) % PARTITIONS);
            if (core_wants(e->core, p, now_of(e))) records += send_call(e, p);
        }
        e->first = (uint16_t)((e->first + 1) % PARTITIONS);
        for (uint32_t node = 0; node < redis_link_nodes(e->link); node++)
            if (redis_node_open(e->link, node) && redis_node_flush(e->link, node, &err) != ST_OK) {
                note(e, err.message);
                lose_node(e, node);
            }
        for (uint32_t i = 0; i < e->sent_count; i++) receive_call(e, &e->sent[i]);
    }
    tell_marks(e);
    for (uint32_t node = 0; node < REDIS_NODES_MAX; node++) {
        if (!e->reload[node]) continue;
        e->reload[node] = false;
        if (!redis_node_open(e->link, node)) continue;
        log_line(LOG_WARN, "emitter", "library=reloaded");
        if (ledger_redis_prepare(NULL, e->link, node, &err) != ST_OK) {
            note(e, err.message);
            redis_node_close(e->link, node);
            lose_node(e, node);
        }
    }
}

/* ---- what others see ---- */

static void tell_state(struct emitter *e)
{
    struct emitter_view view;
    uint64_t now = now_of(e);
    core_look(e->core, now, &view);
    const struct emitter_hooks *hooks = &e->config.hooks;
    bool refuses = view.refuses || e->journal_bad;
    const char *reason = view.refuses     ? emitter_stop_text(view.stop)
                         : e->journal_bad ? "the journal cannot be read"
                         : view.reachable ? ""
                                          : e->reason;
    /* a connection that was lost and found between two looks took answers with it */
    if (e->told_any && e->told_reachable && view.reachable && view.losses != e->told_losses) {
        hooks->ledger_state(hooks->state, false, refuses, "the connection to Redis was lost");
        e->told_reachable = false;
    }
    if (!e->told_any || view.reachable != e->told_reachable || refuses != e->told_refuses) {
        hooks->ledger_state(hooks->state, view.reachable, refuses, reason);
        if (view.reachable) log_line(LOG_INFO, "emitter", "ledger=reachable refuses=%d", refuses);
    }
    e->told_any = true;
    e->told_reachable = view.reachable;
    e->told_refuses = refuses;
    e->told_losses = view.losses;
    struct billing_stats *s = e->config.stats;
    if (s != NULL) {
        billing_stats_add(&s->applied, view.applied - e->view.applied);
        billing_stats_add(&s->duplicates, view.duplicates - e->view.duplicates);
        billing_stats_set(&s->unapplied, view.unapplied);
        billing_stats_set(&s->unapplied_since_ns, view.unapplied_since_ns);
        billing_stats_set(&s->ledger_reachable, view.reachable);
        billing_stats_set(&s->ledger_refuses, refuses);
        billing_stats_set(&s->partitions_stopped, view.stopped);
        if (view.losses != e->view.losses) billing_stats_add(&s->ledger_reconnects, 1);
    }
    pthread_mutex_lock(&e->mutex);
    e->view = view;
    e->view.refuses = refuses;
    pthread_mutex_unlock(&e->mutex);
}

static void give_line(void *state, const char *line, size_t length)
{
    struct emitter *e = state;
    e->config.hooks.directory_line(e->config.hooks.state, line, length);
}

static void poll_directory(struct emitter *e)
{
    uint64_t now = now_of(e), version = 0;
    struct error err = {""};
    if (e->config.hooks.directory == NULL || now < e->directory_ns || !e->told_reachable) return;
    uint32_t timeout_ms = e->config.target->timeout_ms;
    e->directory_ns = now + e->config.directory_poll_ns;
    enum status status = ledger_redis_directory_version(e->link, timeout_ms, &version, &err);
    if (status == ST_OK && (!e->directory_known || version != e->directory_version)) {
        status = ledger_redis_directory_read(e->link, timeout_ms, give_line, e, &version, &err);
        if (status == ST_OK) {
            e->directory_known = true;
            e->directory_version = version;
            e->config.hooks.directory(e->config.hooks.state, version);
        }
    }
    if (status != ST_OK) note(e, err.message);
}

/* ---- the thread ---- */

/* Until the time, at most IDLE_MS, or until more is durable or the end is asked for. */
static void sleep_until(struct emitter *e, uint64_t wake_ns, uint64_t seen_lsn, bool stopping)
{
    uint64_t now = now_of(e), longest = now + IDLE_MS * NS_PER_MS;
    if (wake_ns > longest) wake_ns = longest;
    if (wake_ns <= now) return;
    uint64_t until_ns = clock_now_ns(clock_system()) + (wake_ns - now);
    pthread_mutex_lock(&e->mutex);
    while (e->durable_lsn == seen_lsn && e->stopping == stopping)
        if (!cond_wait_until(&e->condition, &e->mutex, until_ns)) break;
    pthread_mutex_unlock(&e->mutex);
}

static void *run(void *state)
{
    struct emitter *e = state;
    for (;;) {
        pthread_mutex_lock(&e->mutex);
        uint64_t durable_lsn = e->durable_lsn, stop_ns = e->stop_ns;
        bool stopping = e->stopping;
        pthread_mutex_unlock(&e->mutex);
        struct error err;
        if (now_of(e) >= e->journal_retry_ns) {
            if (core_seeks(e->core))
                seek(e);
            else if (e->reading && e->reader == NULL)
                (void)open_reader(e, 0, &err);
        }
        read_journal(e, durable_lsn);
        send_round(e);
        tell_state(e);
        poll_directory(e);
        struct emitter_view view;
        core_look(e->core, now_of(e), &view);
        bool idle = e->at_end && view.reachable && !view.busy && view.unapplied == 0 && !core_seeks(e->core);
        if (stopping && (idle || now_of(e) >= stop_ns)) return NULL;
        bool more =
            view.busy || (core_seeks(e->core) && now_of(e) >= e->journal_retry_ns) || (e->holding && e->sent_count > 0);
        if (!more) sleep_until(e, stopping && stop_ns < view.wake_ns ? stop_ns : view.wake_ns, durable_lsn, stopping);
    }
}

static void release(struct emitter *e)
{
    close_reader(e);
    core_destroy(e->core);
    redis_link_destroy(e->link);
    apply_writer_destroy(e->writer);
    mem_free(e->reply);
    pthread_cond_destroy(&e->condition);
    pthread_mutex_destroy(&e->mutex);
    mem_free(e);
}

static void init_thread_parts(struct emitter *e)
{
    pthread_mutex_init(&e->mutex, NULL);
    (void)cond_init(&e->condition);
    for (uint16_t p = 0; p < PARTITIONS; p++) {
        char key[LEDGER_KEY_MAX];
        ledger_redis_key(p, "hwm", key);
        e->slots[p] = redis_slot(key);
        e->asked[p] = REDIS_NODES_MAX;
    }
}

enum status emitter_create(const struct emitter_config *config, struct emitter **emitter)
{
    CHECK(strlen(config->uuid) <= LEDGER_UUID_CHARS && strlen(config->folder) < sizeof(*emitter)->folder);
    struct emitter *e = mem_alloc(1, sizeof *e);
    if (e == NULL) return ST_NOMEM;
    e->config = *config;
    snprintf(e->folder, sizeof e->folder, "%s", config->folder);
    snprintf(e->fallback, sizeof e->fallback, "%s", config->fallback != NULL ? config->fallback : "");
    snprintf(e->uuid, sizeof e->uuid, "%s", config->uuid);
    e->durable_lsn = config->durable_lsn;
    e->directory_version = config->directory_version;
    e->directory_known = config->directory_version != 0;
    if (e->config.directory_poll_ns == 0) e->config.directory_poll_ns = NS_PER_S;
    init_thread_parts(e);
    const struct emitter_core_hooks hooks = {e, on_granted, on_applied, on_stopped};
    e->reply = mem_alloc(1, sizeof *e->reply);
    enum status status = e->reply != NULL ? ST_OK : ST_NOMEM;
    if (status == ST_OK) status = core_create(config->window != 0 ? config->window : WINDOW_DEFAULT, &hooks, &e->core);
    if (status == ST_OK) status = apply_writer_create(&e->writer);
    if (status == ST_OK) status = redis_link_create(config->target, ledger_redis_prepare, NULL, &e->link);
    if (status == ST_OK && pthread_create(&e->thread, NULL, run, e) != 0) status = ST_NOMEM;
    if (status != ST_OK) {
        release(e);
        return status;
    }
    *emitter = e;
    return ST_OK;
}

void emitter_durable(struct emitter *emitter, uint64_t lsn)
{
    pthread_mutex_lock(&emitter->mutex);
    if (lsn > emitter->durable_lsn) {
        emitter->durable_lsn = lsn;
        pthread_cond_signal(&emitter->condition);
    }
    pthread_mutex_unlock(&emitter->mutex);
}

void emitter_look(struct emitter *emitter, struct emitter_view *view)
{
    pthread_mutex_lock(&emitter->mutex);
    *view = emitter->view;
    pthread_mutex_unlock(&emitter->mutex);
}

uint64_t emitter_stop(struct emitter *emitter, uint64_t flush_ns)
{
    pthread_mutex_lock(&emitter->mutex);
    emitter->stopping = true;
    emitter->stop_ns = now_of(emitter) + flush_ns;
    pthread_cond_signal(&emitter->condition);
    pthread_mutex_unlock(&emitter->mutex);
    CHECK(pthread_join(emitter->thread, NULL) == 0);
    struct emitter_view view;
    core_look(emitter->core, now_of(emitter), &view);
    release(emitter);
    return view.unapplied;
}
