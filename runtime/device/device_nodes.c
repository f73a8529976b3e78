/* See device_nodes.h. */
#include "runtime/device/device_nodes.h"

#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"
#include "runtime/batch_rows_wire.h"
#include "runtime/batch_wire.h"
#include "runtime/device/node_link.h"

#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

_Static_assert((int)DEVICE_SHARE_ID_BYTES == (int)RENDEZVOUS_BLOB_BYTES, "the id is what a rendezvous hands on");

enum nodes_frame { NODES_BLOCKS = 1, NODES_AGREED, NODES_READY, NODES_FAILED, NODES_STEP };

enum {
    WORD = 4,
    REASON_MAX = 400,
    TURN_MS = 20,       /* of a wait in which others are asked for */
    AHEAD_WAIT_MS = 20, /* a follower with a step under way waits so long for the next before it collects */
    SETTLE_MS = 500,
    OVER_MS = 2000,
    LOOK_MS = 50 /* is_lost looks at sockets no more often */
};

struct device_nodes {
    struct device device; /* first */
    struct device_nodes_config config;
    struct device_share share;
    struct rendezvous *rendezvous;
    struct node_link *link;
    struct device *inner;
    size_t step_bytes_max, entries_max, lists_max;
    uint64_t looked_ns, over_ns;
    struct told {
        bool blocks_came, ready;
        uint32_t blocks;
    } * told;          /* process 0: what each of the others has said */
    bool lost, failed; /* failed: this process has given up, and said so */
    struct error why;

    /* of a follower */
    struct batch *batch;
    struct batch_result *result;
    block_id *entries;
    struct batch_rows_memory rows;
};

static struct device_nodes *of(struct device *device)
{
    return (struct device_nodes *)(void *)device;
}

static bool is_first(const struct device_nodes *d)
{
    return d->config.meeting.process == 0;
}

static uint32_t peers_count(const struct device_nodes *d)
{
    return is_first(d) ? d->config.meeting.processes - 1 : 1;
}

static uint32_t process_of(const struct device_nodes *d, uint32_t peer)
{
    return is_first(d) ? peer + 1 : 0;
}

static void put_word(uint8_t *to, uint32_t word)
{
    for (int i = 0; i < WORD; i++) to[i] = (uint8_t)(word >> 8 * i);
}

static uint32_t get_word(const uint8_t *b)
{
    return (uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
}

/* ---- is everybody there? ---- */

static enum status lose(struct device_nodes *d, const char *reason)
{
    if (!d->lost) (void)error_set(&d->why, ST_DEVICE, "%.*s", REASON_MAX, reason);
    if (!d->lost) log_line(LOG_ERROR, "nodes", "event=lost reason=\"%.*s\"", REASON_MAX, reason);
    d->lost = true;
    return ST_DEVICE;
}

static enum status lost_by_peer(struct device_nodes *d, uint32_t peer, const struct node_frame *frame)
{
    char text[REASON_MAX + 1], reason[REASON_MAX + 40];
    if (frame->kind != NODES_FAILED) {
        snprintf(reason, sizeof reason, "process %" PRIu32 " sent frame %u, which is not its turn", process_of(d, peer),
                 frame->kind);
        return lose(d, reason);
    }
    size_t length = frame->length < REASON_MAX ? frame->length : REASON_MAX;
    for (size_t i = 0; i < length; i++) {
        uint8_t c = frame->payload[i];
        text[i] = c < ' ' || c == '"' || c > '~' ? '\'' : (char)c;
    }
    text[length] = '\0';
    snprintf(reason, sizeof reason, "process %" PRIu32 " has given up: %s", process_of(d, peer), text);
    return lose(d, reason);
}

/* A frame that a follower sent; BLOCKS and READY once each, in their order. */
static enum status take_word(struct device_nodes *d, uint32_t peer, const struct node_frame *frame)
{
    struct told *told = &d->told[peer];
    if (frame->kind == NODES_BLOCKS && frame->length == WORD && !told->blocks_came) {
        told->blocks = get_word(frame->payload);
        told->blocks_came = true;
        return ST_OK;
    }
    if (frame->kind != NODES_READY || frame->length || !told->blocks_came || told->ready)
        return lost_by_peer(d, peer, frame);
    told->ready = true;
    return ST_OK;
}

/* Process 0: what the others say, then the link and the beats. A reason comes before the end of its connection. */
static enum status look(struct device_nodes *d)
{
    struct error why = {""};
    for (uint32_t i = 0; !d->lost && d->link && i < peers_count(d); i++) {
        struct node_frame frame;
        if (node_link_receive(d->link, i, 0, &frame) == ST_OK) (void)take_word(d, i, &frame);
    }
    if (!d->lost && d->link && node_link_is_lost(d->link, &why)) return lose(d, why.message);
    if (!d->lost && rendezvous_state(d->rendezvous, &why) != RENDEZVOUS_RUNS) return lose(d, why.message);
    return d->lost ? ST_DEVICE : ST_OK;
}

/* A connection ends a moment before or after the beats know why. */
static enum rendezvous_state how_it_ended(struct device_nodes *d, struct error *why)
{
    struct error of_beats = {""};
    uint64_t begin_ns = clock_now_ns(clock_system());
    enum rendezvous_state state = rendezvous_state(d->rendezvous, &of_beats);
    while (state == RENDEZVOUS_RUNS && clock_now_ns(clock_system()) - begin_ns < SETTLE_MS * NS_PER_MS) {
        poll(NULL, 0, 1);
        state = rendezvous_state(d->rendezvous, &of_beats);
    }
    if (state != RENDEZVOUS_RUNS) *why = of_beats;
    return state;
}

/* A follower that is lost: what process 0 said last is the best reason. */
static enum status lose_leader(struct device_nodes *d, const char *reason)
{
    struct node_frame frame;
    while (!d->lost && node_link_receive(d->link, 0, 0, &frame) == ST_OK)
        if (frame.kind == NODES_FAILED) return lost_by_peer(d, 0, &frame);
    return lose(d, reason);
}

/* A follower after the goodbye: what is under way ends by itself, and if it does not, soon. */
static bool is_overdue(struct device_nodes *d)
{
    uint64_t now_ns = clock_now_ns(clock_system());
    if (!d->over_ns) d->over_ns = now_ns;
    return now_ns - d->over_ns > OVER_MS * NS_PER_MS;
}

static enum status check(void *state, struct error *err)
{
    struct device_nodes *d = state;
    struct error why = {""};
    if (is_first(d)) {
        (void)look(d);
    } else if (!d->lost) {
        enum rendezvous_state met = rendezvous_state(d->rendezvous, &why);
        bool cut = met == RENDEZVOUS_RUNS && node_link_is_lost(d->link, &why);
        if (cut) met = how_it_ended(d, &why);
        if (met == RENDEZVOUS_OVER) return is_overdue(d) ? error_set(err, ST_DEVICE, "%s", why.message) : ST_OK;
        if (met == RENDEZVOUS_LOST || cut) (void)lose_leader(d, why.message);
    }
    return d->lost ? error_set(err, ST_DEVICE, "%s", d->why.message) : ST_OK;
}

/* Process 0: until all have said how many blocks they have, or that they are ready. */
static enum status await_all(struct device_nodes *d, bool ready, struct error *err)
{
    for (;;) {
        uint32_t there = 0;
        if (look(d) != ST_OK) return error_set(err, ST_DEVICE, "%s", d->why.message);
        for (uint32_t i = 0; i < peers_count(d); i++) there += ready ? d->told[i].ready : d->told[i].blocks_came;
        if (there == peers_count(d)) return ST_OK;
        poll(NULL, 0, 5);
    }
}

/* A follower: what process 0 says to all. */
static enum status await_agreed(struct device_nodes *d, uint32_t *blocks, struct error *err)
{
    for (;;) {
        struct node_frame frame;
        enum status status = node_link_receive(d->link, 0, TURN_MS, &frame);
        if (status == ST_OK && frame.kind == NODES_AGREED && frame.length == WORD) {
            *blocks = get_word(frame.payload);
            return ST_OK;
        }
        if (status == ST_OK) (void)lost_by_peer(d, 0, &frame);
        TRY(check(d, err));
    }
}

/* ---- creating ---- */

static enum status post(struct device_nodes *d, enum nodes_frame kind, const void *payload, size_t length)
{
    uint8_t *to;
    if (!is_first(d)) return node_link_send(d->link, (uint8_t)kind, payload, length);
    TRY(node_link_reserve(d->link, &to));
    memcpy(to, payload, length);
    node_link_post(d->link, (uint8_t)kind, length);
    return ST_OK;
}

static enum status agree(void *state, uint32_t *kv_blocks, struct error *err)
{
    struct device_nodes *d = state;
    uint8_t word[WORD];
    uint32_t smallest = *kv_blocks;
    if (is_first(d)) {
        TRY(await_all(d, false, err));
        for (uint32_t i = 0; i < peers_count(d); i++)
            if (d->told[i].blocks < smallest) smallest = d->told[i].blocks;
    }
    put_word(word, smallest);
    if (post(d, is_first(d) ? NODES_AGREED : NODES_BLOCKS, word, WORD) != ST_OK) return check(d, err);
    if (!is_first(d)) TRY(await_agreed(d, &smallest, err));
    if (smallest > *kv_blocks || smallest == 0)
        return error_set(err, ST_INVAL, "process 0 wants %" PRIu32 " KV blocks, there is room for %" PRIu32, smallest,
                         *kv_blocks);
    *kv_blocks = smallest;
    return ST_OK;
}

/* Says why this process gives up, so that the others need not guess. */
static void tell_failure(struct device_nodes *d, const char *reason)
{
    if (!d->link || d->failed || node_link_is_lost(d->link, NULL)) return;
    d->failed = true;
    (void)!post(d, NODES_FAILED, reason, strnlen(reason, REASON_MAX));
}

static enum status make_link(struct device_nodes *d, struct error *err)
{
    struct node_link_peer *peers = mem_alloc(peers_count(d), sizeof *peers);
    if (!peers) return error_set(err, ST_NOMEM, "no memory for the other processes");
    for (uint32_t i = 0; i < peers_count(d); i++) {
        rendezvous_take_channel(d->rendezvous, i, &peers[i].fd, peers[i].key);
        peers[i].process = process_of(d, i);
    }
    struct node_link_config config = {.first = is_first(d),
                                      .peers = peers,
                                      .peers_count = peers_count(d),
                                      .out_bytes_max = is_first(d) ? d->step_bytes_max : REASON_MAX,
                                      .in_bytes_max = is_first(d) ? REASON_MAX : d->step_bytes_max,
                                      .take_ms = d->config.take_ms};
    enum status status = node_link_create(&config, &d->link);
    explicit_bzero(peers, peers_count(d) * sizeof *peers);
    mem_free(peers);
    return status == ST_OK ? ST_OK : error_set(err, status, "no memory or thread for the other processes");
}

/* Sizes of a step's frame; all of it is page memory that is taken when it is used. */
static enum status measure(struct device_nodes *d, struct error *err)
{
    const struct device_nodes_config *c = &d->config;
    d->entries_max = (size_t)c->seqs_max * kv_blocks_for(c->context_max);
    d->lists_max = batch_rows_lists_max(c->seqs_max, c->context_max, c->vocab);
    size_t bytes = WORD + batch_wire_bytes_max(c->tokens_max, c->seqs_max, c->rows_max, d->entries_max) +
                   batch_rows_wire_bytes_max(c->rows_max, d->lists_max);
    if (d->entries_max > UINT32_MAX || bytes > UINT32_MAX)
        return error_set(err, ST_INVAL,
                         "a step may have %zu bytes, too many for several processes: lower --max-num-seqs or "
                         "--max-model-len",
                         bytes);
    d->step_bytes_max = bytes > REASON_MAX ? bytes : REASON_MAX;
    return ST_OK;
}

static enum status make(struct device_nodes *d, struct error *err)
{
    struct rendezvous_config meeting = d->config.meeting;
    meeting.channels = true;
    d->share = (struct device_share){.rank_first = meeting.process * d->config.ranks,
                                     .ranks_all = meeting.processes * d->config.ranks,
                                     .agree = agree,
                                     .check = check,
                                     .state = d};
    memcpy(d->share.id, d->config.id, sizeof d->share.id);
    TRY(measure(d, err));
    d->told = mem_alloc(peers_count(d), sizeof *d->told);
    if (!d->told) return error_set(err, ST_NOMEM, "no memory for the other processes");
    TRY(rendezvous_open(&meeting, d->share.id, &d->rendezvous, err));
    log_line(LOG_INFO, "nodes", "event=met process=%" PRIu32 " processes=%" PRIu32, meeting.process, meeting.processes);
    TRY(make_link(d, err));
    enum status status = d->config.create(d->config.state, &d->share, &d->inner, err);
    if (status == ST_OK && !device_runs_ahead(d->inner))
        status = error_set(err, ST_INVAL, "a device that runs one step at a time cannot be divided over processes");
    if (status != ST_OK && !d->lost) tell_failure(d, err ? err->message : "");
    if (status != ST_OK && d->lost) return error_set(err, ST_DEVICE, "%s", d->why.message);
    return status;
}

static void end(struct device_nodes *d, bool goodbye)
{
    if (goodbye) rendezvous_close(d->rendezvous); /* before the part: its end is no loss */
    if (!goodbye && d->inner && !d->lost) (void)lose(d, "this process has given up");
    if (!goodbye && d->inner) (void)device_is_lost(d->inner); /* it notices by check, and waits for nobody */
    device_destroy(d->inner);
    node_link_destroy(d->link);
    if (!goodbye) rendezvous_abandon(d->rendezvous);
    batch_destroy(d->batch);
    batch_result_destroy(d->result);
    batch_rows_memory_free(&d->rows);
    if (d->entries) mem_unmap(d->entries, d->entries_max * sizeof *d->entries);
    mem_free(d->told);
    mem_free(d);
}

static struct device_nodes *take(const struct device_nodes_config *config)
{
    struct device_nodes *d = mem_alloc(1, sizeof *d);
    if (d) d->config = *config;
    return d;
}

/* ---- process 0 ---- */

static enum status send_step(struct device_nodes *d, const struct batch *batch)
{
    uint8_t *to;
    size_t rows_bytes = batch_rows_wire_bytes(batch), batch_bytes = batch_wire_bytes(batch);
    TRY(node_link_reserve(d->link, &to));
    put_word(to, (uint32_t)batch_bytes);
    batch_wire_write(batch, to + WORD);
    batch_rows_wire_write(batch, to + WORD + batch_bytes);
    node_link_post(d->link, NODES_STEP, WORD + batch_bytes + rows_bytes);
    return ST_OK;
}

static bool is_lost(struct device *device)
{
    struct device_nodes *d = of(device);
    uint64_t now_ns = clock_now_ns(clock_system());
    if (!d->lost && now_ns - d->looked_ns >= LOOK_MS * NS_PER_MS) {
        d->looked_ns = now_ns;
        (void)look(d);
    }
    if (!d->lost && device_is_lost(d->inner)) {
        tell_failure(d, "its part of the device is lost");
        (void)lose(d, "process 0: its part of the device is lost");
    }
    return d->lost;
}

static enum status note(struct device_nodes *d, enum status status)
{
    if (status != ST_DEVICE || d->lost) return status;
    if (look(d) == ST_OK) {
        tell_failure(d, "its part of the device is lost");
        (void)lose(d, "process 0: its part of the device is lost");
    }
    return ST_DEVICE;
}

static enum status launch(struct device *device, const struct batch *batch)
{
    struct device_nodes *d = of(device);
    if (d->lost) return ST_DEVICE;
    TRY(note(d, device_launch(d->inner, batch))); /* first: what is no batch must not reach the others */
    return note(d, send_step(d, batch));
}

static enum status collect(struct device *device, struct batch_result *result)
{
    struct device_nodes *d = of(device);
    if (d->lost) return ST_DEVICE;
    enum status status = note(d, device_collect(d->inner, result));
    memcpy(device->phase_ticks, d->inner->phase_ticks, sizeof device->phase_ticks);
    return status;
}

static void destroy(struct device *device)
{
    struct device_nodes *d = of(device);
    d->looked_ns = 0;
    end(d, !is_lost(device));
}

enum status device_nodes_lead(const struct device_nodes_config *config, struct device **device, struct error *err)
{
    static const struct device_ops ops = {.destroy = destroy, .launch = launch, .collect = collect, .is_lost = is_lost};
    struct device_nodes *d = take(config);
    if (!d) return error_set(err, ST_NOMEM, "no memory for the device");
    enum status status = make(d, err);
    if (status == ST_OK) status = await_all(d, true, err);
    if (status != ST_OK) {
        end(d, false);
        return status;
    }
    d->device.ops = &ops;
    d->device.info = d->inner->info;
    snprintf(d->device.info.name, sizeof d->device.info.name, "%" PRIu32 " processes of %.40s",
             config->meeting.processes, d->inner->info.name);
    *device = &d->device;
    return ST_OK;
}

/* ---- the others ---- */

static enum status take_buffers(struct device_nodes *d, struct error *err)
{
    const struct device_nodes_config *c = &d->config;
    d->entries = mem_map(d->entries_max * sizeof *d->entries);
    if (!d->entries || batch_create(c->tokens_max, c->seqs_max, c->rows_max, &d->batch) != ST_OK ||
        batch_result_create(c->rows_max, &d->result) != ST_OK ||
        batch_rows_memory_take(&d->rows, c->rows_max, d->lists_max) != ST_OK)
        return error_set(err, ST_NOMEM, "no memory for the steps of the other processes");
    return ST_OK;
}

/* The batch of a frame. ST_PROTO. */
static enum status read_step(struct device_nodes *d, const struct node_frame *frame)
{
    if (frame->kind != NODES_STEP || frame->length < WORD) return ST_PROTO;
    size_t rest = frame->length - WORD, batch_bytes = get_word(frame->payload);
    if (batch_bytes > rest) return ST_PROTO;
    TRY(batch_wire_read(frame->payload + WORD, batch_bytes, d->batch, d->entries, d->entries_max));
    return batch_rows_wire_read(frame->payload + WORD + batch_bytes, rest - batch_bytes, d->batch, &d->rows);
}

static enum status collect_one(struct device_nodes *d, uint32_t *launched)
{
    TRY(device_collect(d->inner, d->result));
    --*launched;
    return ST_OK;
}

static enum status take_frame(struct device_nodes *d, const struct node_frame *frame, uint32_t *launched)
{
    if (frame->kind == NODES_FAILED) return lost_by_peer(d, 0, frame);
    enum status status = read_step(d, frame);
    if (status == ST_OK && *launched == LAUNCHED_MAX) status = collect_one(d, launched);
    if (status == ST_OK) status = device_launch(d->inner, d->batch);
    if (status == ST_OK) ++*launched;
    if (status == ST_PROTO || status == ST_INVAL) {
        tell_failure(d, "it was sent a step that is none");
        return lose(d, "process 0 sent a step that is none");
    }
    return status;
}

/* One turn: a step, or the end of one, or nothing. */
static enum status turn(struct device_nodes *d, uint32_t *launched)
{
    struct node_frame frame;
    enum status status = node_link_receive(d->link, 0, *launched ? AHEAD_WAIT_MS : TURN_MS, &frame);
    if (status == ST_OK) return take_frame(d, &frame, launched);
    if (status == ST_AGAIN) return *launched ? collect_one(d, launched) : ST_OK;
    return status;
}

/* Until process 0 says goodbye. */
static enum status run_steps(struct device_nodes *d, struct error *err)
{
    uint32_t launched = 0;
    for (;;) {
        struct error why = {""};
        enum status status = turn(d, &launched);
        if (status == ST_OK && device_is_lost(d->inner)) status = ST_DEVICE;
        (void)check(d, &why); /* first: whose fault it was */
        if (!d->lost && rendezvous_state(d->rendezvous, NULL) == RENDEZVOUS_OVER) return ST_OK;
        if (!d->lost && status != ST_OK) {
            tell_failure(d, "its part of the device is lost");
            (void)lose(d, "this process's part of the device is lost");
        }
        if (d->lost) return error_set(err, ST_DEVICE, "%s", d->why.message);
        if (d->config.stop && d->config.stop(d->config.state)) return error_set(err, ST_CANCELED, "told to stop");
    }
}

enum status device_nodes_follow(const struct device_nodes_config *config,
                                void (*ready)(void *state, const struct device_info *info), struct error *err)
{
    struct device_nodes *d = take(config);
    if (!d) return error_set(err, ST_NOMEM, "no memory for the device");
    enum status status = make(d, err);
    if (status == ST_OK) status = take_buffers(d, err);
    if (status == ST_OK && post(d, NODES_READY, "", 0) != ST_OK)
        status = error_set(err, ST_DEVICE, "process 0 has ended");
    if (status == ST_OK && ready) ready(config->state, &d->inner->info);
    if (status == ST_OK) status = run_steps(d, err);
    end(d, status == ST_OK);
    return status;
}
