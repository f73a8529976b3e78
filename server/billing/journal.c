/* The writer: frames into memory, memory into segments.
 *
 *   put    frame -> pending, and onto `live`
 *   write  pending -> the segment's file (stamped with its salt and with what is synced by then)
 *   sync   fdatasync -> what was written is durable: it leaves pending and goes onto `settled`
 *   rotate no room: sync; the next segment with a checkpoint of `settled` and the rest of pending
 *   fail   any error of write, sync or rotate: the file is closed and never touched again; all of pending goes to a new
 *          segment likewise. Once. The second error ends the journal.
 *
 * Every frame is kept until it is durable, so the state before it (`settled`) is known whenever a segment begins: one
 * way serves rotation and failure. The price is that each frame is added up twice, about 0.2 us of a FINAL.
 *
 * Rejected: preallocated but unwritten segments (each fdatasync then writes metadata too: 2 to 4 times slower on ext4);
 * O_DIRECT (whole sectors only, and the rewriting of the last one puts durable bytes at risk); a log per partition. */
#include "server/billing/journal_internal.h"

#include "runtime/base/check.h"
#include "runtime/base/mem.h"
#include "runtime/base/random.h"
#include "server/billing/journal_planted.h"

#include <errno.h>
#include <stdio.h>

enum { PENDING_BYTES_MAX = 1 << 26, STEP_COUNTS_MAX = 2048, CHECK_EVERY_MS = 1000, WRITE_BYTES_MAX = 1 << 22 };

static enum status lock_folder(const struct disk *disk, const char *folder, int *lock_fd, struct error *err)
{
    char path[SEGMENT_PATH_MAX];
    TRY(disk_folder(disk, folder, err));
    (void)snprintf(path, sizeof path, "%s/lock", folder);
    int fd = disk->open(disk->state, path, DISK_CREATE);
    if (fd == -EEXIST) fd = disk->open(disk->state, path, DISK_WRITE);
    if (fd < 0) return error_set(err, ST_IO, "billing journal: cannot open %s (error %d)", path, -fd);
    *lock_fd = fd;
    int locked = disk->lock(disk->state, fd);
    if (locked == -EWOULDBLOCK) {
        return error_set(err, ST_AGAIN, "billing journal: %s is in use by another process", folder);
    }
    if (locked != 0) return error_set(err, ST_IO, "billing journal: cannot lock %s (error %d)", path, -locked);
    /* names that the last process gave may be in memory alone: they count from here on */
    int synced = JOURNAL_PLANTED(TRUST_NAMES) ? 0 : disk->sync_folder(disk->state, folder);
    if (synced != 0) return error_set(err, ST_IO, "billing journal: cannot sync %s (error %d)", folder, -synced);
    return ST_OK;
}

static enum status config_check(const struct journal_config *config, struct error *err)
{
    if (config->segment_bytes < SEGMENT_BYTES_MIN || config->segment_bytes % SEGMENT_HEADER_BYTES != 0 ||
        config->segment_bytes > UINT32_MAX) {
        return error_set(err, ST_INVAL, "billing journal: segments have 64 KiB to 4 GiB, in whole 4 KiB");
    }
    if (strlen(config->uuid) != LEDGER_UUID_CHARS) {
        return error_set(err, ST_INVAL, "billing journal: a ledger's uuid has %d characters", LEDGER_UUID_CHARS);
    }
    if (strlen(config->folder) > SEGMENT_FOLDER_MAX ||
        (config->fallback != NULL && strlen(config->fallback) > SEGMENT_FOLDER_MAX)) {
        return error_set(err, ST_INVAL, "billing journal: the folder's name is too long");
    }
    return ST_OK;
}

/* Tells one run of the machine from the next. Zeros where the system does not say. */
static void boot_id_read(const struct disk *disk, uint8_t boot_id[16])
{
    char text[36] = {0};
    int fd = disk->open(disk->state, "/proc/sys/kernel/random/boot_id", DISK_READ);
    if (fd < 0) return;
    int64_t length = disk->read_at(disk->state, fd, text, sizeof text, 0);
    disk->close(disk->state, fd);
    for (int i = 0, digits = 0; i < length && digits < 32; i++) {
        const char *hex = "0123456789abcdef", *digit = text[i] == 0 ? NULL : strchr(hex, text[i]);
        if (digit == NULL) continue;
        boot_id[digits / 2] = (uint8_t)(boot_id[digits / 2] << 4 | (digit - hex));
        digits++;
    }
}

enum status journal_prepare(const struct journal_config *config, struct journal **journal, struct error *err)
{
    TRY(config_check(config, err));
    struct journal *made = mem_alloc(1, sizeof *made);
    if (made == NULL) return error_set(err, ST_NOMEM, "billing journal: no memory");
    *journal = made;
    made->config = *config;
    (void)snprintf(made->folder, sizeof made->folder, "%s", config->folder);
    (void)snprintf(made->uuid, sizeof made->uuid, "%s", config->uuid);
    made->config.folder = made->active = made->folder;
    made->config.uuid = made->uuid;
    made->lock_fds[0] = made->lock_fds[1] = made->fd = -1;
    state_init(&made->live);
    state_init(&made->settled);
    TRY(lock_folder(config->disk, made->folder, &made->lock_fds[0], err));
    if (config->fallback != NULL) {
        (void)snprintf(made->fallback, sizeof made->fallback, "%s", config->fallback);
        made->config.fallback = made->fallback;
        TRY(lock_folder(config->disk, made->fallback, &made->lock_fds[1], err));
        uint32_t ignored;
        if (spares_look(config->disk, made->fallback, config->segment_bytes, &ignored) != ST_OK) {
            return error_set(err, ST_IO, "billing journal: cannot look into %s", made->fallback);
        }
    }
    if (spares_look(config->disk, made->folder, config->segment_bytes, &made->stats.spares) != ST_OK) {
        return error_set(err, ST_IO, "billing journal: cannot look into %s", made->folder);
    }
    made->checkpoint.capacity = state_checkpoint_bytes_max(0);
    made->checkpoint.bytes = mem_alloc(1, made->checkpoint.capacity);
    if (made->checkpoint.bytes == NULL) return error_set(err, ST_NOMEM, "billing journal: no memory");
    boot_id_read(config->disk, made->boot_id);
    made->free_permille = config->disk->free_permille(config->disk->state, made->folder);
    return ST_OK;
}

void journal_release(struct journal *journal)
{
    if (journal == NULL) return;
    const struct disk *disk = journal->config.disk;
    if (journal->fd >= 0) disk->close(disk->state, journal->fd);
    for (int i = 0; i < 2; i++) {
        if (journal->lock_fds[i] >= 0) disk->close(disk->state, journal->lock_fds[i]);
    }
    state_free(&journal->live);
    state_free(&journal->settled);
    segment_list_free(&journal->segments);
    mem_free(journal->pending.bytes);
    mem_free(journal->checkpoint.bytes);
    mem_free(journal);
}

/* ---- appending ---- */

static bool pending_reserve(struct pending *pending, uint64_t more)
{
    if (pending->length + more > PENDING_BYTES_MAX) return false;
    if (pending->length + more <= pending->capacity) return true;
    size_t capacity = pending->capacity == 0 ? 1 << 16 : pending->capacity;
    while (capacity < pending->length + more) capacity *= 2;
    uint8_t *bytes = mem_resize(pending->bytes, capacity, 1);
    if (bytes == NULL) return false;
    pending->bytes = bytes;
    pending->capacity = capacity;
    return true;
}

/* A frame whose payload is already there, behind the place for its header. */
static enum status append(struct journal *journal, enum frame_type type, const struct byte_writer *payload)
{
    CHECK(!payload->bad);
    struct pending *pending = &journal->pending;
    uint64_t length = frame_aligned(FRAME_HEADER_BYTES + payload->length);
    if (!pending_reserve(pending, length)) return ST_NOMEM;
    uint8_t *bytes = pending->bytes + pending->length;
    memset(bytes + length - FRAME_ALIGN, 0, FRAME_ALIGN);
    memcpy(bytes + FRAME_HEADER_BYTES, payload->bytes, payload->length);
    struct frame frame = {.type = type,
                          .lsn = journal->live.lsn + 1,
                          .wall_us = clock_unix_us(journal->config.clock),
                          .mono_us = (int64_t)(clock_now_ns(journal->config.clock) / 1000),
                          .payload = bytes + FRAME_HEADER_BYTES,
                          .length = (uint32_t)payload->length};
    frame_head(bytes, &frame);
    const char *why;
    CHECK(state_apply(&journal->live, &frame, true, &why) == ST_OK);
    pending->length += length;
    journal->stats.frames++;
    journal->stats.open_requests = journal->live.opens;
    return ST_OK;
}

/* Room for one more open request in both states, in the checkpoint's scratch and in a segment. */
static enum status reserve_open(struct journal *journal, uint32_t handle)
{
    uint64_t bytes = state_checkpoint_bytes_max(journal->live.opens + 1 + (journal->live.opens >> 1));
    if (state_checkpoint_bytes_max(journal->live.opens + 1) > journal->config.segment_bytes / 2) return ST_LIMIT;
    if (!state_reserve(&journal->live, handle) || !state_reserve(&journal->settled, handle)) return ST_NOMEM;
    if (bytes <= journal->checkpoint.capacity) return ST_OK;
    uint8_t *scratch = mem_resize(journal->checkpoint.bytes, bytes, 1);
    if (scratch == NULL) return ST_NOMEM;
    journal->checkpoint.bytes = scratch;
    journal->checkpoint.capacity = bytes;
    return ST_OK;
}

uint64_t journal_segment_least(uint32_t opens)
{
    return 2 * (uint64_t)state_checkpoint_bytes_max(opens + 1);
}

enum status journal_put_open(struct journal *journal, const struct charge *charge, const struct open_counts *counts,
                             uint32_t *handle)
{
    CHECK(charge->account > 0 && charge->account <= INT64_MAX && charge->mclass < MODEL_CLASSES);
    CHECK(charge->weight_in_ppm <= WEIGHT_PPM_MAX && charge->weight_hit_ppm <= WEIGHT_PPM_MAX &&
          charge->weight_out_ppm <= WEIGHT_PPM_MAX);
    CHECK(counts->in_hit <= counts->in_total && counts->in_total <= REQUEST_TOKENS_MAX);
    CHECK(state_find(&journal->live, charge) == STATE_NONE); /* J2 */
    struct open_frame open = {.handle = state_free_handle(&journal->live), .charge = *charge, .counts = *counts};
    if (open.handle == STATE_NONE) return ST_LIMIT;
    TRY(reserve_open(journal, open.handle));
    uint8_t bytes[OPEN_BYTES_MAX];
    struct byte_writer payload = {.bytes = bytes, .capacity = sizeof bytes};
    frame_put_open(&payload, &open);
    TRY(append(journal, FRAME_OPEN, &payload));
    *handle = open.handle;
    return ST_OK;
}

static bool is_open(const struct journal *journal, uint32_t handle)
{
    return handle < journal->live.slots_count && journal->live.slots[handle].used;
}

enum status journal_put_step(struct journal *journal, const struct step_count *counts, uint32_t count)
{
    uint8_t bytes[STEP_COUNTS_MAX * STEP_COUNT_BYTES_MAX];
    uint64_t frames = count / STEP_COUNTS_MAX + 1;
    /* all of it or nothing: the frames that it needs fit before the first is appended */
    if (!pending_reserve(&journal->pending,
                         (uint64_t)count * STEP_COUNT_BYTES_MAX + frames * (FRAME_HEADER_BYTES + FRAME_ALIGN))) {
        return ST_NOMEM;
    }
    for (uint32_t from = 0; from < count; from += STEP_COUNTS_MAX) {
        struct byte_writer payload = {.bytes = bytes, .capacity = sizeof bytes};
        for (uint32_t i = from; i < count && i < from + STEP_COUNTS_MAX; i++) {
            CHECK(is_open(journal, counts[i].handle));
            frame_put_step(&payload, counts[i]);
        }
        TRY(append(journal, FRAME_STEP, &payload));
    }
    return ST_OK;
}

/* Seals a record into the sequence of its partition and appends it. */
static enum status append_record(struct journal *journal, struct record *record)
{
    uint8_t bytes[RECORD_BYTES_MAX];
    record->partition = record_partition(record->account);
    const struct partition_state *partition = &journal->live.partitions[record->partition];
    record->pseq = partition->pseq + 1;
    record->t_ms = clock_unix_ms(journal->config.clock);
    struct byte_writer payload = {.bytes = bytes, .capacity = sizeof bytes};
    payload.length = record_encode(record, bytes);
    record_seal(bytes, payload.length, partition->chain);
    memcpy(record->chain, bytes + payload.length - CHAIN_BYTES, CHAIN_BYTES);
    return append(journal, frame_type_of(record->kind), &payload);
}

/* RECORD_CLOCK: computed from the record's own numbers, so that whoever reads it can compute it again. */
static bool clocks_parted(int64_t opened_us, int64_t ended_us, int64_t duration_us)
{
    int64_t parted = ended_us - opened_us - duration_us;
    return parted > 1000000 || parted < -1000000;
}

enum status journal_put_final(struct journal *journal, uint32_t handle, struct record *record)
{
    CHECK(is_open(journal, handle));
    CHECK(record->kind == RECORD_CHARGED || record->kind == RECORD_WAIVED);
    record->charge = journal->live.slots[handle].open.charge;
    record->account = record->charge.account;
    record->mclass = record->charge.mclass;
    record->month = record_month(record->ended_us, journal->config.utc_offset_s);
    record->boot = (uint32_t)journal->live.epoch;
    if (record->cause != CAUSE_NODE_CRASH && clocks_parted(record->opened_us, record->ended_us, record->duration_us)) {
        record->flags |= RECORD_CLOCK;
    }
    return append_record(journal, record);
}

enum status journal_put_record(struct journal *journal, struct record *record)
{
    CHECK(record->kind == RECORD_GRANT || record->kind == RECORD_RELEASE);
    return append_record(journal, record);
}

enum status journal_put_energy(struct journal *journal, struct record *record)
{
    CHECK(record_energy_wrong(&record->energy) == NULL);
    record->kind = RECORD_ENERGY;
    record->account = record->charge.account;
    record->mclass = record->charge.mclass;
    record->month = record_month(record->energy.slot_ms * 1000, journal->config.utc_offset_s);
    TRY(append_record(journal, record));
    journal->energy = true;
    return ST_OK;
}

enum status journal_put_order(struct journal *journal, const struct order *order)
{
    uint8_t bytes[512];
    struct byte_writer payload = {.bytes = bytes, .capacity = sizeof bytes};
    frame_put_order(&payload, order);
    return append(journal, FRAME_ORDER, &payload);
}

enum status journal_put_account(struct journal *journal, uint64_t account, const char *order_id, bool open)
{
    uint8_t bytes[512];
    struct byte_writer payload = {.bytes = bytes, .capacity = sizeof bytes};
    frame_put_account(&payload, account, order_id, open);
    return append(journal, FRAME_ACCOUNT, &payload);
}

enum status journal_put_ack(struct journal *journal, uint16_t partition, uint64_t hwm,
                            const char hash8[HASH8_CHARS + 1])
{
    CHECK(partition < PARTITIONS);
    uint8_t bytes[32];
    struct byte_writer payload = {.bytes = bytes, .capacity = sizeof bytes};
    frame_put_ack(&payload, partition, hwm, hash8);
    return append(journal, FRAME_ACK, &payload);
}

enum status journal_put_recover(struct journal *journal, uint64_t epoch, uint64_t cut_bytes, uint32_t closed)
{
    uint8_t bytes[32];
    struct byte_writer payload = {.bytes = bytes, .capacity = sizeof bytes};
    frame_put_recover(&payload, epoch, cut_bytes, closed);
    return append(journal, FRAME_RECOVER, &payload);
}

/* ---- writing ---- */

/* The segment that is written to. */
static const struct segment *present(const struct journal *journal)
{
    return &journal->segments.items[journal->segments.count - 1];
}

/* Written frames are durable: they go onto `settled` and leave memory. */
static void settle(struct journal *journal)
{
    struct pending *pending = &journal->pending;
    for (size_t at = 0; at < pending->written;) {
        struct frame frame;
        uint64_t claimed, needed, rest = pending->written - at;
        const struct segment_header *header = &present(journal)->header;
        CHECK(frame_look(pending->bytes + at, rest, rest, header, &frame, &claimed, &needed) == FRAME_GOOD);
        const char *why;
        CHECK(state_apply(&journal->settled, &frame, true, &why) == ST_OK);
        at += needed;
    }
    size_t left = pending->length - pending->written;
    if (left > 0) memmove(pending->bytes, pending->bytes + pending->written, left); /* no bytes yet: no memory */
    pending->length = left;
    pending->written = 0;
}

static void note_synced(struct journal *journal)
{
    settle(journal);
    journal->synced_ns = clock_now_ns(journal->config.clock);
    journal->unsynced = false;
}

static enum status sync_segment(struct journal *journal)
{
    const struct disk *disk = journal->config.disk;
    uint64_t started_ns = clock_now_ns(journal->config.clock);
    int synced = JOURNAL_PLANTED(SKIP_COMMIT_SYNC) ? 0 : disk->sync(disk->state, journal->fd);
    if (synced != 0 && JOURNAL_PLANTED(RETRY_SYNC)) synced = disk->sync(disk->state, journal->fd);
    if (synced != 0) return ST_IO;
    uint64_t took_ns = clock_now_ns(journal->config.clock) - started_ns;
    journal->stats.syncs++;
    journal->stats.sync_ns_total += took_ns;
    if (took_ns > journal->stats.sync_ns_max) journal->stats.sync_ns_max = took_ns;
    note_synced(journal);
    return ST_OK;
}

void journal_checkpoint_make(struct journal *journal, const struct segment_header *header)
{
    struct byte_writer *to = &journal->checkpoint;
    const struct journal_state *state = JOURNAL_PLANTED(STALE_CHECKPOINT) ? &journal->live : &journal->settled;
    struct frame frame = {.type = FRAME_CHECKPOINT,
                          .lsn = journal->settled.lsn,
                          .wall_us = clock_unix_us(journal->config.clock),
                          .mono_us = (int64_t)(clock_now_ns(journal->config.clock) / 1000)};
    to->length = FRAME_HEADER_BYTES;
    state_checkpoint_put(state, to);
    CHECK(!to->bad);
    frame.length = (uint32_t)(to->length - FRAME_HEADER_BYTES);
    uint64_t whole = frame_aligned(to->length);
    memset(to->bytes + to->length, 0, whole - to->length);
    to->length = whole;
    frame_head(to->bytes, &frame);
    frame_stamp(to->bytes, header, journal->settled.lsn);
}

/* Bytes of the pending frames, from the first that is not written, that fit into `room` of a segment of the version. */
static size_t fitting(const struct pending *pending, uint64_t room, uint32_t version)
{
    size_t at = pending->written;
    while (at < pending->length) {
        uint64_t length = frame_aligned(frame_length(pending->bytes + at));
        if (at + length - pending->written > room || !frame_suits(pending->bytes + at, version)) break;
        at += length;
    }
    return at - pending->written;
}

static void note_written(struct journal *journal)
{
    const struct pending *pending = &journal->pending;
    uint64_t lsn =
        pending->written < pending->length ? frame_lsn(pending->bytes + pending->written) - 1 : journal->live.lsn;
    if (lsn > journal->written_lsn) journal->written_lsn = lsn;
}

/* What is about to be written, for a segment of this header. */
static void stamp_pending(struct journal *journal, size_t length, const struct segment_header *header)
{
    if (length == 0) return; /* then there may be no memory yet either */
    uint8_t *from = journal->pending.bytes + journal->pending.written;
    for (size_t at = 0; at < length; at += frame_aligned(frame_length(from + at))) {
        frame_stamp(from + at, header, journal->settled.lsn);
    }
}

enum status journal_segment_begin(struct journal *journal, bool given_up)
{
    const struct disk *disk = journal->config.disk;
    struct pending *pending = &journal->pending;
    struct segment segment;
    struct segment_start start = {
        .header = {.version = journal->energy ? SEGMENT_VERSION_ENERGY : SEGMENT_VERSION_PLAIN,
                   .given_up = given_up,
                   .producer = journal->producer,
                   .epoch = journal->live.epoch > 0 ? journal->live.epoch : 1,
                   .base_lsn = journal->settled.lsn + 1,
                   .serial = ++journal->serial,
                   .segment_bytes = journal->config.segment_bytes,
                   .created_us = clock_unix_us(journal->config.clock)}};
    memcpy(start.header.uuid, journal->uuid, sizeof start.header.uuid);
    memcpy(start.header.boot_id, journal->boot_id, sizeof start.header.boot_id);
    random_fill(&start.header.salt, sizeof start.header.salt);
    CHECK(pending->written == 0);
    journal_checkpoint_make(journal, &start.header);
    start.checkpoint = journal->checkpoint.bytes;
    start.checkpoint_bytes = journal->checkpoint.length;
    uint64_t used = SEGMENT_HEADER_BYTES + start.checkpoint_bytes;
    start.frames_bytes = fitting(pending, start.header.segment_bytes - used, start.header.version);
    start.frames = pending->bytes;
    stamp_pending(journal, start.frames_bytes, &start.header);
    if (journal->fd >= 0) disk->close(disk->state, journal->fd);
    journal->fd = -1;
    TRY(segment_create(disk, journal->active, &start, &journal->fd, &journal->stats.spares, &segment));
    uint32_t count = journal->segments.count;
    if (count > 0 && journal->segments.items[count - 1].info.base_lsn == start.header.base_lsn)
        journal->segments.count--;
    TRY(segment_list_add(&journal->segments, &segment));
    journal->position = used + start.frames_bytes;
    journal->stats.bytes += start.checkpoint_bytes + start.frames_bytes;
    pending->written = start.frames_bytes;
    note_written(journal);
    note_synced(journal);
    return ST_OK;
}

static enum status write_pending(struct journal *journal, size_t length)
{
    struct pending *pending = &journal->pending;
    stamp_pending(journal, length, &present(journal)->header);
    TRY(disk_write_all(journal->config.disk, journal->fd, pending->bytes + pending->written, length,
                       journal->position));
    journal->position += length;
    journal->stats.bytes += length;
    journal->unsynced = true;
    pending->written += length;
    note_written(journal);
    if (JOURNAL_PLANTED(FORGET_ON_FAILURE)) settle(journal);
    return ST_OK;
}

static enum status push(struct journal *journal, bool sync)
{
    struct pending *pending = &journal->pending;
    while (pending->written < pending->length) {
        uint64_t room = present(journal)->info.bytes - journal->position;
        size_t length = fitting(pending, room, present(journal)->header.version);
        if (length > 0) TRY(write_pending(journal, length));
        if (pending->written == pending->length) break;
        TRY(sync_segment(journal));
        TRY(journal_segment_begin(journal, false));
    }
    if (pending->written >= WRITE_BYTES_MAX) sync = true;
    return sync && journal->unsynced ? sync_segment(journal) : ST_OK;
}

static enum status fail_over(struct journal *journal)
{
    const struct disk *disk = journal->config.disk;
    if (journal->fd >= 0) disk->close(disk->state, journal->fd); /* never synced again */
    journal->fd = -1;
    if (journal->stats.failovers == 0) {
        journal->stats.failovers++;
        if (journal->config.fallback != NULL) {
            journal->active = journal->fallback;
            journal->stats.spares = 0;
        }
        journal->pending.written = 0;
        if (journal_segment_begin(journal, true) == ST_OK && push(journal, true) == ST_OK) return ST_OK;
    }
    journal->failed = true;
    return ST_IO;
}

enum status journal_sync(struct journal *journal)
{
    if (journal->failed) return ST_IO;
    return push(journal, true) == ST_OK ? ST_OK : fail_over(journal);
}

static bool sync_due(const struct journal *journal)
{
    if (journal->config.mode != COMMIT_GROUP) return journal->config.mode == COMMIT_STEP;
    uint64_t waited_ns = clock_now_ns(journal->config.clock) - journal->synced_ns;
    return waited_ns >= journal->config.group_ms * NS_PER_MS;
}

enum status journal_commit(struct journal *journal)
{
    if (journal->failed) return ST_IO;
    journal->stats.commits++;
    return push(journal, sync_due(journal)) == ST_OK ? ST_OK : fail_over(journal);
}

enum status journal_tick(struct journal *journal)
{
    if (journal->failed) return ST_IO;
    if (journal->config.mode == COMMIT_GROUP && journal->unsynced && sync_due(journal)) TRY(journal_sync(journal));
    uint64_t now_ns = clock_now_ns(journal->config.clock);
    if (now_ns - journal->checked_ns < CHECK_EVERY_MS * NS_PER_MS) return ST_OK;
    journal->checked_ns = now_ns;
    const struct disk *disk = journal->config.disk;
    journal->free_permille = disk->free_permille(disk->state, journal->active);
    if (journal->stats.spares == 0 && journal->free_permille >= (int32_t)journal->config.free_permille_min &&
        spare_make(disk, journal->active, journal->config.segment_bytes, NULL) == ST_OK) {
        journal->stats.spares++;
    }
    return ST_OK;
}

void journal_close(struct journal *journal)
{
    if (journal == NULL) return;
    if (journal_sync(journal) != ST_OK) journal->failed = true; /* the next start makes good what it can */
    journal_release(journal);
}

/* ---- spares, retention ---- */

bool journal_spare_wanted(const struct journal *journal)
{
    return !journal->failed && journal->active == journal->folder && journal->stats.spares < SPARES_WANTED &&
           journal->free_permille >= (int32_t)journal->config.free_permille_min;
}

enum status journal_spare_make(const struct journal_config *config, struct error *err)
{
    return spare_make(config->disk, config->folder, config->segment_bytes, err);
}

void journal_spare_add(struct journal *journal)
{
    if (journal->active == journal->folder) journal->stats.spares++;
}

/* A segment's checkpoint. ST_INVAL, ST_IO, ST_NOMEM. */
static enum status checkpoint_read(const struct disk *disk, const struct segment *segment, struct journal_state *state)
{
    uint64_t room = segment->info.bytes - SEGMENT_HEADER_BYTES, length = room < 65536 ? room : 65536;
    int fd = disk->open(disk->state, segment->info.path, DISK_READ);
    if (fd < 0) return ST_IO;
    enum status status = ST_AGAIN;
    while (status == ST_AGAIN) { /* a second time when it is longer than most */
        struct frame frame;
        uint64_t claimed, needed = 0;
        uint8_t *bytes = mem_alloc(1, length);
        status = bytes == NULL ? ST_NOMEM : disk_read_all(disk, fd, bytes, length, SEGMENT_HEADER_BYTES);
        if (status == ST_OK) {
            enum frame_look looked = frame_look(bytes, length, room, &segment->header, &frame, &claimed, &needed);
            status = looked == FRAME_GOOD ? state_checkpoint_load(state, &frame) : ST_INVAL;
            if (looked == FRAME_SHORT) status = ST_AGAIN;
        }
        mem_free(bytes);
        length = needed;
    }
    disk->close(disk->state, fd);
    return status;
}

/* Whether the ledger's marks cover every record before this segment. Marks are those of the present producer: what
 * another one wrote nobody confirms, so it stays. */
static bool confirmed_before(struct journal *journal, const struct segment *segment)
{
    struct journal_state *state = mem_alloc(1, sizeof *state);
    if (state == NULL) return false;
    state_init(state);
    bool covered = checkpoint_read(journal->config.disk, segment, state) == ST_OK;
    for (int i = 0; i < PARTITIONS && covered; i++) {
        covered = state->partitions[i].pseq <= journal->live.partitions[i].confirmed;
    }
    state_free(state);
    mem_free(state);
    return covered;
}

void journal_keep_from(struct journal *journal, uint64_t lsn)
{
    journal->keeps = true;
    journal->keep_from = lsn;
}

/* Removes a segment, and before it a void one of the same base in the other folder, which would count again without it.
 * Folders are synced before each removal: a crash must not bring an older segment back and lose a younger one. */
static bool remove_segment(struct journal *journal, const struct segment *segment)
{
    const struct disk *disk = journal->config.disk;
    const char *name = strrchr(segment->info.path, '/');
    const char *folders[] = {journal->folder, journal->config.fallback};
    char path[2 * SEGMENT_PATH_MAX];
    CHECK(name != NULL);
    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; i < 2; i++) {
            if (folders[i] == NULL) continue;
            (void)snprintf(path, sizeof path, "%s%s", folders[i], name);
            bool own = strcmp(path, segment->info.path) == 0;
            if (own != (pass == 1)) continue;
            int removed = disk->remove(disk->state, path);
            if (removed != 0 && removed != -ENOENT) return false;
        }
        for (int i = 0; i < 2; i++) {
            if (folders[i] != NULL && disk->sync_folder(disk->state, folders[i]) != 0) return false;
        }
    }
    return true;
}

uint32_t journal_retire(struct journal *journal, int64_t now_ms, uint64_t keep_ms)
{
    uint32_t removed = 0;
    while (!journal->failed && journal->segments.count > 1) {
        const struct segment *oldest = &journal->segments.items[0], *next = oldest + 1;
        if (journal->keeps && next->info.base_lsn > journal->keep_from) break;
        int64_t ended_ms = next->info.created_us / 1000;
        if (now_ms < ended_ms || (uint64_t)(now_ms - ended_ms) <= keep_ms ||
            oldest->info.producer != journal->producer || !confirmed_before(journal, next) ||
            !remove_segment(journal, oldest)) {
            break;
        }
        journal->segments.count--;
        memmove(journal->segments.items, journal->segments.items + 1,
                journal->segments.count * sizeof *journal->segments.items);
        removed++;
    }
    return removed;
}

/* ---- queries ---- */

bool journal_accepts(const struct journal *journal, const char **why_not)
{
    const char *why = NULL;
    if (journal->failed) {
        why = "the journal cannot be written";
    } else if (journal->free_permille < (int32_t)journal->config.free_permille_min) {
        why = "the journal's disk is nearly full";
    } else if (journal->stats.spares == 0) {
        why = "the journal has no spare segment";
    }
    if (why_not != NULL) *why_not = why;
    return why == NULL;
}

uint64_t journal_lsn(const struct journal *journal)
{
    return journal->live.lsn;
}

uint64_t journal_durable_lsn(const struct journal *journal)
{
    return journal->config.mode == COMMIT_WRITE ? journal->written_lsn : journal->settled.lsn;
}

uint64_t journal_segment_lsn(const struct journal *journal)
{
    return journal->segments.items[journal->segments.count - 1].info.base_lsn;
}

uint64_t journal_producer(const struct journal *journal)
{
    return journal->producer;
}

uint64_t journal_epoch(const struct journal *journal)
{
    return journal->live.epoch;
}

const char *journal_uuid(const struct journal *journal)
{
    return journal->uuid;
}

void journal_stats_read(const struct journal *journal, struct journal_stats *stats)
{
    *stats = journal->stats;
}
