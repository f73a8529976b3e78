/* Damage to a journal's files: every bit of a small one turned, bytes of an older segment, frames from another journal,
 * missing and swapped segments; repair; a disk that is full or fails. */
#include "tests/unit/server/journal_fixture.h"

#include "runtime/base/mem.h"
#include "server/billing/journal_segment.h"
#include "tests/support/sim_disk.h"

#include <errno.h>
#include <fcntl.h>

static uint8_t *file_bytes;
static size_t file_length;

static void file_read(const char *path)
{
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    free(file_bytes);
    file_bytes = malloc(1 << 20);
    file_length = fread(file_bytes, 1, 1 << 20, file);
    fclose(file);
}

static void byte_write(const char *path, size_t offset, uint8_t byte)
{
    int fd = open(path, O_WRONLY);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, &byte, 1, (off_t)offset), 1);
    close(fd);
}

/* ST_OK: whole; ST_LIMIT: a torn tail; else what the reader said. *frames: how many came. */
static enum status read_through(const struct journal_config *config, uint64_t *frames)
{
    struct journal_reader *reader;
    struct frame frame;
    struct error err = {""};
    *frames = 0;
    enum status status = journal_reader_open(config->disk, config->folder, config->fallback, 0, &reader, &err);
    if (status != ST_OK) {
        assert_true(err.message[0] != 0);
        return status;
    }
    while ((status = journal_reader_next(reader, UINT64_MAX, &frame, &err)) == ST_OK) ++*frames;
    uint64_t tail = journal_reader_tail(reader);
    if (status != ST_AGAIN) assert_true(err.message[0] != 0);
    journal_reader_close(reader);
    if (status == ST_AGAIN) return tail > 0 ? ST_LIMIT : ST_OK;
    return status;
}

static void one_request(struct journal *journal, uint64_t number)
{
    uint32_t handle = fixture_open(journal, number);
    fixture_step(journal, handle, 3);
    assert_int_equal(journal_commit(journal), ST_OK);
    fixture_final(journal, handle, 3);
    assert_int_equal(journal_commit(journal), ST_OK);
}

static void segment_path(char path[128], uint64_t base_lsn)
{
    snprintf(path, 128, "%s/%016llx.mrj", journal_folder, (unsigned long long)base_lsn);
}

/* Small: three requests. Every bit of its header and frames, and every seventh byte of the zeros behind them. */
static void test_every_flipped_bit_of_a_small_journal_is_found(void **state)
{
    (void)state;
    struct journal_config config = fixture_config();
    struct journal *journal = fixture_start(&config, NULL);
    for (uint64_t number = 1; number <= 3; number++) one_request(journal, number);
    journal_close(journal);
    char path[128];
    uint64_t frames, whole, end;
    segment_path(path, 1);
    file_read(path);
    assert_int_equal(file_length, config.segment_bytes);
    assert_int_equal(read_through(&config, &whole), ST_OK);
    for (end = file_length; file_bytes[end - 1] == 0;) end--;
    uint64_t torn = 0, refused = 0;
    int fd = open(path, O_WRONLY);
    for (size_t offset = 0; offset < file_length; offset += offset < end + 8 ? 1 : 7) {
        for (int bit = 0; bit < 8; bit++) {
            if (offset >= SEGMENT_HEADER_BYTES / 4 && offset < SEGMENT_HEADER_BYTES && bit != (int)(offset % 8))
                continue;
            if (offset > end && bit != (int)(offset % 8)) continue;
            uint8_t byte = file_bytes[offset] ^ (uint8_t)(1 << bit);
            assert_int_equal(pwrite(fd, &byte, 1, (off_t)offset), 1);
            enum status status = read_through(&config, &frames);
            if (status == ST_OK) fail_msg("byte %zu bit %d: not found", offset, bit);
            if (status != ST_LIMIT) assert_int_equal(status, ST_INVAL);
            torn += status == ST_LIMIT;
            refused += status == ST_INVAL;
            assert_true(frames <= whole);
        }
        assert_int_equal(pwrite(fd, &file_bytes[offset], 1, (off_t)offset), 1);
    }
    close(fd);
    assert_int_equal(read_through(&config, &frames), ST_OK);
    assert_true(torn > 0 && refused > torn);
}

/* A start on each damaged last segment: refused, or cut at the damage; what it keeps is whole. */
static void test_a_start_cuts_or_refuses_each_flipped_byte(void **state)
{
    (void)state;
    struct journal_config config = fixture_config();
    struct journal *journal = fixture_start(&config, NULL);
    for (uint64_t number = 1; number <= 3; number++) one_request(journal, number);
    journal_close(journal);
    char path[128];
    uint64_t frames, end, cut = 0, refused = 0;
    segment_path(path, 1);
    file_read(path);
    for (end = file_length; file_bytes[end - 1] == 0;) end--;
    for (size_t offset = 0; offset < end; offset += 5) {
        struct journal_report report;
        struct error err = {""};
        byte_write(path, offset, file_bytes[offset] ^ 0x10);
        enum status status = journal_open(&config, &journal, &report, &err);
        if (status == ST_OK) {
            assert_true(report.cut_bytes > 0);
            journal_close(journal);
            assert_int_equal(read_through(&config, &frames), ST_OK);
            cut++;
        } else {
            assert_int_equal(status, ST_INVAL);
            refused++;
        }
        int fd = open(path, O_WRONLY);
        assert_int_equal(pwrite(fd, file_bytes, file_length, 0), (ssize_t)file_length);
        close(fd);
    }
    assert_true(cut > 0 && refused > cut);
}

static uint64_t fill_segments(struct journal *journal, uint64_t count)
{
    uint64_t number = 1, seen = 1, last = 0;
    while (seen < count) {
        one_request(journal, ++number);
        assert_int_equal(journal_tick(journal), ST_OK);
        if (journal_segment_lsn(journal) != last) seen += last != 0;
        last = journal_segment_lsn(journal);
    }
    return number;
}

static void test_an_older_segment_is_not_believed_when_damaged(void **state)
{
    (void)state;
    struct journal_config config = fixture_config();
    struct journal *journal = fixture_start(&config, NULL);
    fill_segments(journal, 4);
    journal_close(journal);
    struct segment_info info[8];
    uint32_t count;
    uint64_t whole, frames;
    struct error err = {""};
    assert_int_equal(journal_segments(config.disk, config.folder, NULL, info, 8, &count, &err), ST_OK);
    assert_int_equal(count, 4);
    struct segment_info newest;
    assert_int_equal(journal_newest(config.disk, config.folder, NULL, &newest, &err), ST_OK);
    assert_string_equal(newest.path, info[3].path);
    assert_int_equal(journal_newest(config.disk, "/nowhere", NULL, &newest, &err), ST_NOTFOUND);
    assert_int_equal(read_through(&config, &whole), ST_OK);
    file_read(info[1].path);
    for (size_t offset = 0; offset < file_length; offset += 97) {
        byte_write(info[1].path, offset, file_bytes[offset] ^ 0x04);
        assert_int_equal(read_through(&config, &frames), ST_INVAL);
        byte_write(info[1].path, offset, file_bytes[offset]);
    }
    uint32_t behind = 0;
    for (uint32_t i = 0; i < 3; i++) { /* a byte behind its last frame, where frames leave room */
        static const uint8_t zeros[48];
        file_read(info[i].path);
        if (memcmp(file_bytes + file_length - sizeof zeros, zeros, sizeof zeros) != 0) continue;
        byte_write(info[i].path, file_length - 1, 0x01);
        assert_int_equal(read_through(&config, &frames), ST_INVAL);
        byte_write(info[i].path, file_length - 1, 0);
        assert_int_equal(read_through(&config, &frames), ST_OK);
        behind++;
    }
    assert_true(behind > 0);
    /* gone */
    char away[600];
    snprintf(away, sizeof away, "%s/away", journal_folder);
    assert_int_equal(rename(info[1].path, away), 0);
    assert_int_equal(read_through(&config, &frames), ST_INVAL);
    assert_int_equal(journal_open(&config, &journal, &(struct journal_report){0}, &err), ST_INVAL);
    /* swapped with the next */
    assert_int_equal(rename(info[2].path, info[1].path), 0);
    assert_int_equal(rename(away, info[2].path), 0);
    assert_int_equal(read_through(&config, &frames), ST_INVAL);
    assert_int_equal(rename(info[2].path, away), 0);
    assert_int_equal(rename(info[1].path, info[2].path), 0);
    assert_int_equal(rename(away, info[1].path), 0);
    /* cut short */
    assert_int_equal(truncate(info[1].path, 40000), 0);
    assert_int_equal(read_through(&config, &frames), ST_INVAL);
}

/* Two journals that were one: frames of the same place and number, valid in themselves. The salt tells them apart. */
static void test_frames_of_another_segment_do_not_count(void **state)
{
    (void)state;
    struct journal_config config = fixture_config();
    struct journal *journal = fixture_start(&config, NULL);
    char path[128];
    uint64_t frames, expected;
    segment_path(path, 1);
    for (uint64_t number = 1; number <= 3; number++) one_request(journal, number);
    journal_close(journal);
    assert_int_equal(read_through(&config, &expected), ST_OK);
    file_read(path);
    uint8_t *other = malloc(file_length);
    memcpy(other, file_bytes, file_length);
    folder_remove(journal_folder);
    journal = fixture_start(&config, NULL);
    one_request(journal, 1);
    journal_close(journal);
    file_read(path);
    size_t end = file_length;
    while (file_bytes[end - 1] == 0) end--;
    end = frame_aligned(end);
    int fd = open(path, O_WRONLY);
    assert_true(pwrite(fd, other + end, file_length - end, (off_t)end) > 0);
    close(fd);
    free(other);
    assert_int_equal(read_through(&config, &frames), ST_LIMIT);
    assert_true(frames < expected);
    struct journal_report report;
    journal = fixture_start(&config, &report);
    assert_true(report.cut_bytes > 0);
    journal_close(journal);
}

static void test_repair_saves_and_cuts(void **state)
{
    (void)state;
    struct journal_config config = fixture_config();
    struct journal *journal = fixture_start(&config, NULL);
    for (uint64_t number = 1; number <= 5; number++) one_request(journal, number);
    journal_close(journal);
    char path[128];
    segment_path(path, 1);
    file_read(path);
    size_t end = file_length, middle;
    while (file_bytes[end - 1] == 0) end--;
    middle = (SEGMENT_HEADER_BYTES + end) / 2;
    uint8_t damaged[4] = {0xde, 0xad, 0xbe, 0xef};
    int fd = open(path, O_WRONLY);
    assert_int_equal(pwrite(fd, damaged, 4, (off_t)middle), 4);
    close(fd);
    struct journal_report report;
    struct repair_report repaired;
    struct error err = {""};
    assert_int_equal(journal_open(&config, &journal, &report, &err), ST_INVAL);
    assert_non_null(strstr(err.message, "repair"));
    assert_int_equal(journal_repair(&config, &repaired, &err), ST_OK);
    assert_true(repaired.cut_offset <= middle && repaired.cut_offset + repaired.cut_bytes == end);
    assert_true(repaired.frames_lost > 0);
    struct stat info;
    assert_int_equal(stat(repaired.saved, &info), 0);
    assert_int_equal(info.st_size, repaired.cut_bytes);
    journal = fixture_start(&config, &report);
    assert_int_equal(report.cut_bytes, 0);
    journal_close(journal);
    uint64_t frames;
    assert_int_equal(read_through(&config, &frames), ST_OK);
    /* nothing to mend */
    assert_int_equal(journal_repair(&config, &repaired, &err), ST_OK);
    assert_int_equal(repaired.cut_bytes, 0);
    assert_string_equal(repaired.saved, "");
}

/* A damaged checkpoint: the state comes from the segment before; without one there is nothing to go on. */
static void test_repair_of_a_checkpoint(void **state)
{
    (void)state;
    struct journal_config config = fixture_config();
    struct journal *journal = fixture_start(&config, NULL);
    fill_segments(journal, 2);
    uint64_t base = journal_segment_lsn(journal), pseq;
    uint8_t chain[CHAIN_BYTES], chain_after[CHAIN_BYTES];
    struct record last;
    journal_close(journal);
    char path[128];
    segment_path(path, base);
    byte_write(path, SEGMENT_HEADER_BYTES + 60, 0x77);
    struct journal_report report;
    struct repair_report repaired;
    struct error err = {""};
    assert_int_equal(journal_open(&config, &journal, &report, &err), ST_INVAL);
    assert_int_equal(journal_repair(&config, &repaired, &err), ST_OK);
    assert_int_equal(repaired.last_lsn, base - 1);
    journal = fixture_start(&config, &report);
    uint32_t handle = fixture_open(journal, 99999999);
    last = fixture_final(journal, handle, 0);
    journal_partition(journal, last.partition, &pseq, chain);
    assert_int_equal(pseq, last.pseq);
    journal_close(journal);
    uint64_t frames;
    assert_int_equal(read_through(&config, &frames), ST_OK);
    journal = fixture_start(&config, &report);
    journal_partition(journal, last.partition, &pseq, chain_after);
    assert_memory_equal(chain, chain_after, CHAIN_BYTES);
    journal_close(journal);

    folder_remove(journal_folder);
    journal = fixture_start(&config, NULL);
    journal_close(journal);
    segment_path(path, 1);
    byte_write(path, SEGMENT_HEADER_BYTES + 44, 0x77);
    file_read(path);
    assert_int_equal(journal_repair(&config, &repaired, &err), ST_INVAL);
    uint8_t *before = malloc(file_length);
    memcpy(before, file_bytes, file_length);
    file_read(path);
    assert_memory_equal(before, file_bytes, file_length); /* nothing was changed */
    free(before);
    folder_remove(journal_folder);
    assert_int_equal(journal_repair(&config, &repaired, &err), ST_NOTFOUND);
}

static struct journal_config on_sim(struct sim_disk *sim, const char *fallback)
{
    struct journal_config config = fixture_config();
    config.disk = sim_disk_table(sim);
    config.folder = "/j";
    config.fallback = fallback;
    config.free_permille_min = 100;
    return config;
}

/* Between a look for a spare and the making of one, another thread makes that spare: it stays as it is. */
static bool looked;
static int open_and_overtake(void *state, const char *path, enum disk_open how)
{
    int fd = disk_system()->open(state, path, how);
    if (looked || how != DISK_READ || strstr(path, "/spare-0.mrs") == NULL) return fd;
    looked = true;
    assert_int_equal(fd, -ENOENT);
    assert_int_equal(spare_make(disk_system(), journal_folder, 65536, NULL), ST_OK);
    return fd;
}

static void test_a_spare_is_not_made_over_another(void **state)
{
    (void)state;
    char path[128];
    struct stat before, after;
    struct disk disk = *disk_system();
    uint32_t count;
    assert_int_equal(mkdir(journal_folder, 0750), 0);
    looked = false;
    disk.open = open_and_overtake;
    assert_int_equal(spare_make(&disk, journal_folder, 65536, NULL), ST_OK);
    assert_true(looked);
    assert_int_equal(spares_look(disk_system(), journal_folder, 65536, &count), ST_OK);
    assert_int_equal(count, 2);
    snprintf(path, sizeof path, "%s/spare-1.mrs", journal_folder);
    assert_int_equal(stat(path, &before), 0);
    snprintf(path, sizeof path, "%s/spare-0.mrs", journal_folder);
    assert_int_equal(stat(path, &after), 0);
    assert_true(before.st_ino != after.st_ino);
}

/* A disk that fills up: admission ends, what runs may use the last spare. */
static void test_full_disk_keeps_the_last_spare_for_what_runs(void **state)
{
    (void)state;
    struct sim_disk *sim = sim_disk_create(1);
    struct journal_config config = on_sim(sim, NULL);
    struct journal *journal = fixture_start(&config, NULL);
    const char *why;
    assert_true(journal_accepts(journal, &why));
    uint32_t handle = fixture_open(journal, 1);
    assert_int_equal(journal_commit(journal), ST_OK);
    sim_disk_full(sim, true);
    test_clock.ns += 2 * NS_PER_S;
    assert_int_equal(journal_tick(journal), ST_OK);
    assert_false(journal_accepts(journal, &why));
    assert_non_null(strstr(why, "full"));
    assert_false(journal_spare_wanted(journal));
    uint64_t base = journal_segment_lsn(journal);
    uint32_t commits = 0;
    while (journal_segment_lsn(journal) == base && commits < 10000) { /* into the spare */
        fixture_step(journal, handle, 1);
        assert_int_equal(journal_commit(journal), ST_OK);
        commits++;
    }
    assert_true(commits < 10000);
    fixture_final(journal, handle, commits);
    assert_int_equal(journal_commit(journal), ST_OK);
    struct journal_stats stats;
    journal_stats_read(journal, &stats);
    assert_int_equal(stats.spares, 0);
    assert_int_equal(stats.failovers, 0);
    handle = fixture_open(journal, 2);
    enum status status = ST_OK;
    for (commits = 0; commits < 10000 && status == ST_OK; commits++) { /* and then it is over */
        fixture_step(journal, handle, 1);
        status = journal_commit(journal);
    }
    assert_int_equal(status, ST_IO);
    assert_false(journal_accepts(journal, &why));
    assert_int_equal(journal_commit(journal), ST_IO);
    journal_close(journal);
    sim_disk_destroy(sim);
}

/* Reads on to the durable LSN; every frame comes once, in order. */
static void follow(struct journal_reader *reader, const struct journal *journal, uint64_t *lsn)
{
    struct frame frame;
    struct error err = {""};
    enum status status;
    while ((status = journal_reader_next(reader, journal_durable_lsn(journal), &frame, &err)) == ST_OK) {
        if (frame.type == FRAME_CHECKPOINT) continue;
        assert_int_equal(frame.lsn, *lsn + 1);
        *lsn = frame.lsn;
    }
    if (status != ST_AGAIN) fail_msg("%s", err.message);
    assert_int_equal(*lsn, journal_durable_lsn(journal));
}

/* A reader behind the writer (a ledger, the emitter) goes on when a file has failed: the frames whose fdatasync failed
 * still stand in the old file's cache and in the new segment, and count once. */
static void test_a_reader_follows_over_a_failed_sync(void **state)
{
    (void)state;
    const char *fallbacks[] = {NULL, "/k"};
    for (int i = 0; i < 6; i++) {
        enum commit_mode mode = (enum commit_mode)(i % 3);
        struct sim_disk *sim = sim_disk_create(20 + (uint64_t)i);
        struct journal_config config = on_sim(sim, fallbacks[i / 3]);
        struct journal_reader *reader;
        struct error err = {""};
        uint64_t lsn = 0;
        config.mode = mode;
        config.free_permille_min = 0;
        struct journal *journal = fixture_start(&config, NULL);
        assert_int_equal(journal_reader_open(config.disk, "/j", config.fallback, 0, &reader, &err), ST_OK);
        one_request(journal, 1);
        assert_int_equal(journal_sync(journal), ST_OK);
        follow(reader, journal, &lsn);
        uint32_t handle = fixture_open(journal, 2);
        fixture_step(journal, handle, 4);
        if (mode != COMMIT_STEP) { /* written, and in write mode read, before the fdatasync */
            assert_int_equal(journal_commit(journal), ST_OK);
            follow(reader, journal, &lsn);
            fixture_step(journal, handle, 1);
        }
        sim_disk_fault_after(sim, 2, SIM_FAULT_IO); /* write, then fdatasync */
        assert_int_equal(journal_sync(journal), ST_OK);
        follow(reader, journal, &lsn);
        fixture_final(journal, handle, 4);
        assert_int_equal(journal_sync(journal), ST_OK);
        follow(reader, journal, &lsn);
        struct journal_stats stats;
        journal_stats_read(journal, &stats);
        assert_int_equal(stats.failovers, 1);
        journal_reader_close(reader);
        journal_close(journal);
        sim_disk_destroy(sim);
    }
}

/* One failed fdatasync: the frames go on in the other folder with their numbers; the second one is the end. */
static void test_a_failed_sync_moves_to_the_fallback(void **state)
{
    (void)state;
    struct sim_disk *sim = sim_disk_create(2);
    struct journal_config config = on_sim(sim, "/k");
    struct journal *journal = fixture_start(&config, NULL);
    uint32_t handle = fixture_open(journal, 1);
    fixture_step(journal, handle, 4);
    uint64_t lsn = journal_lsn(journal);
    sim_disk_fault_after(sim, 2, SIM_FAULT_IO); /* write, then fdatasync */
    assert_int_equal(journal_commit(journal), ST_OK);
    assert_int_equal(journal_durable_lsn(journal), lsn);
    struct journal_stats stats;
    journal_stats_read(journal, &stats);
    assert_int_equal(stats.failovers, 1);
    assert_null(sim_disk_violation(sim));
    struct segment_info info[4];
    uint32_t count;
    struct error err = {""};
    assert_int_equal(journal_segments(config.disk, "/j", "/k", info, 4, &count, &err), ST_OK);
    assert_int_equal(count, 2);
    assert_non_null(strstr(info[1].path, "/k/"));
    assert_true(info[1].given_up);
    fixture_final(journal, handle, 4);
    sim_disk_fault_after(sim, 2, SIM_FAULT_IO);
    assert_int_equal(journal_commit(journal), ST_IO);
    assert_false(journal_accepts(journal, NULL));
    journal_close(journal);
    sim_disk_power_loss(sim);
    struct journal_report report;
    journal = fixture_start(&config, &report);
    assert_true(report.closed <= 1); /* the FINAL was not promised */
    uint64_t frames;
    assert_int_equal(read_through(&config, &frames), ST_OK);
    journal_close(journal);
    sim_disk_destroy(sim);
}

static void test_interrupts_and_short_writes_are_nothing(void **state)
{
    (void)state;
    static const enum sim_fault faults[] = {SIM_FAULT_INTERRUPT, SIM_FAULT_SHORT};
    for (int i = 0; i < 2; i++) {
        struct sim_disk *sim = sim_disk_create(3);
        struct journal_config config = on_sim(sim, NULL);
        struct journal *journal = fixture_start(&config, NULL);
        uint32_t handle = fixture_open(journal, 1);
        fixture_final(journal, handle, 0);
        sim_disk_fault_after(sim, 1, faults[i]);
        assert_int_equal(journal_commit(journal), ST_OK);
        struct journal_stats stats;
        journal_stats_read(journal, &stats);
        assert_int_equal(stats.failovers, 0);
        journal_close(journal);
        sim_disk_power_loss(sim);
        uint64_t frames;
        assert_int_equal(read_through(&config, &frames), ST_OK);
        assert_int_equal(frames, 4); /* CHECKPOINT RECOVER OPEN FINAL */
        sim_disk_destroy(sim);
    }
}

/* RECORD_CLOCK is computed where the record is made, from its own numbers. */
static void test_parted_clocks_are_flagged(void **state)
{
    (void)state;
    static const struct {
        int64_t wall_us, mono_us;
        bool parted;
    } cases[] = {{5000000, 5000000, false},
                 {6000000, 5000000, false},
                 {6000001, 5000000, true},
                 {3999999, 5000000, true},
                 {-3600000000, 1000, true}};
    struct journal_config config = fixture_config();
    struct journal *journal = fixture_start(&config, NULL);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint32_t handle = fixture_open(journal, i + 1);
        int64_t opened_us = INT64_C(1790000000000000);
        struct record record = {.kind = RECORD_CHARGED,
                                .opened_us = opened_us,
                                .ended_us = opened_us + cases[i].wall_us,
                                .duration_us = cases[i].mono_us};
        assert_int_equal(journal_put_final(journal, handle, &record), ST_OK);
        assert_int_equal((record.flags & RECORD_CLOCK) != 0, cases[i].parted);
    }
    journal_close(journal);
}

/* Out of memory at each allocation: an error, and nothing appended by halves. */
static uint64_t allocations_left;
static bool fail_later(void *state, size_t size_bytes)
{
    (void)state;
    (void)size_bytes;
    return allocations_left > 0 && --allocations_left > 0;
}

static void test_no_memory_is_an_error(void **state)
{
    (void)state;
    struct journal_config config = fixture_config();
    for (uint64_t k = 1; k < 40; k++) {
        struct journal *journal = NULL;
        struct journal_report report;
        struct error err = {""};
        folder_remove(journal_folder);
        allocations_left = k;
        mem_hook_set(fail_later, NULL);
        enum status status = journal_open(&config, &journal, &report, &err);
        mem_hook_set(NULL, NULL);
        if (status != ST_OK) {
            assert_int_equal(status, ST_NOMEM);
            journal = fixture_start(&config, NULL);
        }
        uint64_t lsn = journal_lsn(journal);
        struct charge charge = fixture_charge(1);
        struct open_counts counts = {.in_total = 1};
        uint32_t handle;
        allocations_left = 1;
        mem_hook_set(fail_later, NULL);
        status = journal_put_open(journal, &charge, &counts, &handle);
        mem_hook_set(NULL, NULL);
        assert_int_equal(journal_lsn(journal), lsn + (status == ST_OK));
        journal_close(journal);
        uint64_t frames;
        assert_int_equal(read_through(&config, &frames), ST_OK);
    }
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, fixture_setup, fixture_teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_every_flipped_bit_of_a_small_journal_is_found),
        TEST(test_a_start_cuts_or_refuses_each_flipped_byte),
        TEST(test_an_older_segment_is_not_believed_when_damaged),
        TEST(test_frames_of_another_segment_do_not_count),
        TEST(test_repair_saves_and_cuts),
        TEST(test_repair_of_a_checkpoint),
        TEST(test_full_disk_keeps_the_last_spare_for_what_runs),
        TEST(test_a_spare_is_not_made_over_another),
        TEST(test_a_reader_follows_over_a_failed_sync),
        TEST(test_a_failed_sync_moves_to_the_fallback),
        TEST(test_interrupts_and_short_writes_are_nothing),
        TEST(test_parted_clocks_are_flagged),
        TEST(test_no_memory_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
