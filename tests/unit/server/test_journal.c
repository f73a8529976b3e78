/* The journal on the machine's disk: what is put comes back, over restarts, rotation, kills, failed files, damage. What
 * power loss does is tests/billing_sim's. */
#include "tests/unit/server/journal_fixture.h"

#include "runtime/base/crc32c.h"

#include <inttypes.h>

struct seen {
    uint32_t frames[FRAME_ENERGY + 1];
    uint64_t last_lsn, finals_out;
    uint32_t crash_finals;
    uint64_t pseq[PARTITIONS];
    uint8_t chain[PARTITIONS][CHAIN_BYTES];
};

static void see_record(struct seen *seen, const struct frame *frame)
{
    struct record record;
    struct error err = {""};
    if (record_decode(frame->payload, frame->length, &record, &err) != ST_OK) fail_msg("%s", err.message);
    assert_int_equal(record.pseq, seen->pseq[record.partition] + 1);
    assert_true(record_sealed(frame->payload, frame->length, seen->chain[record.partition]));
    seen->pseq[record.partition] = record.pseq;
    memcpy(seen->chain[record.partition], record.chain, CHAIN_BYTES);
    seen->finals_out += record.out;
    seen->crash_finals += record.cause == CAUSE_NODE_CRASH;
}

/* Everything in the folder, checked as it is read. */
static enum status read_all(const struct journal_config *config, struct seen *seen, struct error *err)
{
    struct journal_reader *reader;
    struct frame frame;
    memset(seen, 0, sizeof *seen);
    enum status status = journal_reader_open(config->disk, config->folder, config->fallback, 0, &reader, err);
    if (status != ST_OK) return status;
    while ((status = journal_reader_next(reader, UINT64_MAX, &frame, err)) == ST_OK) {
        seen->frames[frame.type]++;
        if (frame.type == FRAME_CHECKPOINT) {
            uint64_t pseq[PARTITIONS];
            uint8_t chain[PARTITIONS][CHAIN_BYTES];
            assert_int_equal(frame_read_checkpoint(&frame, pseq, chain), ST_OK);
            assert_int_equal(frame.lsn, seen->last_lsn);
            for (int i = 0; i < PARTITIONS; i++) assert_int_equal(pseq[i], seen->pseq[i]);
            assert_memory_equal(chain, seen->chain, sizeof chain);
            continue;
        }
        assert_int_equal(frame.lsn, seen->last_lsn + 1);
        seen->last_lsn = frame.lsn;
        if (frame_is_record(frame.type)) see_record(seen, &frame);
    }
    uint64_t tail = journal_reader_tail(reader);
    journal_reader_close(reader);
    if (status == ST_AGAIN && tail > 0) return ST_LIMIT; /* torn */
    return status == ST_AGAIN ? ST_OK : status;
}

static void see_all(const struct journal_config *config, struct seen *seen)
{
    struct error err = {""};
    enum status status = read_all(config, seen, &err);
    if (status != ST_OK) fail_msg("%s %s", status_name(status), err.message);
}

static void test_journal_what_is_put_comes_back(void **state)
{
    (void)state;
    struct journal_config config = fixture_config();
    struct journal_report report;
    struct journal *journal = fixture_start(&config, &report);
    assert_true(report.created);
    assert_int_equal(report.epoch, 1);
    assert_true(journal_accepts(journal, NULL));
    uint64_t producer = journal_producer(journal);
    uint32_t handle = fixture_open(journal, 1);
    fixture_step(journal, handle, 1);
    assert_true(journal_durable_lsn(journal) < journal_lsn(journal));
    assert_int_equal(journal_commit(journal), ST_OK);
    assert_int_equal(journal_durable_lsn(journal), journal_lsn(journal));
    fixture_step(journal, handle, 4);
    struct record final = fixture_final(journal, handle, 5);
    assert_int_equal(final.account, 2);
    assert_int_equal(final.pseq, 1);
    assert_int_equal(final.month, 202609);
    assert_int_equal(final.flags, 0);
    struct record grant = {.kind = RECORD_GRANT, .account = 2, .mclass = 3, .want = 10, .valid_ms = 1000};
    assert_int_equal(journal_put_record(journal, &grant), ST_OK);
    assert_int_equal(grant.pseq, 2);
    struct order order = {.id = "o1", .account = 2, .package = "p", .units = 5, .class_mask = 8};
    assert_int_equal(journal_put_order(journal, &order), ST_OK);
    assert_int_equal(journal_put_account(journal, 2, "o2", false), ST_OK);
    assert_int_equal(journal_put_ack(journal, grant.partition, 2, "0123456789abcdef"), ST_OK);
    journal_close(journal);

    struct seen seen;
    see_all(&config, &seen);
    assert_int_equal(seen.frames[FRAME_FINAL], 1);
    assert_int_equal(seen.frames[FRAME_STEP], 2);
    assert_int_equal(seen.frames[FRAME_GRANT], 1);
    assert_int_equal(seen.frames[FRAME_RECOVER], 1);
    assert_int_equal(seen.finals_out, 5);
    struct journal_reader *reader;
    struct frame frame;
    struct error err = {""};
    assert_int_equal(journal_reader_open(config.disk, config.folder, NULL, 0, &reader, &err), ST_OK);
    int checked = 0;
    while (journal_reader_next(reader, UINT64_MAX, &frame, &err) == ST_OK) {
        if (frame.type == FRAME_ORDER) {
            struct order back;
            assert_int_equal(frame_read_order(&frame, &back), ST_OK);
            assert_string_equal(back.id, "o1");
            assert_int_equal(back.class_mask, 8);
            checked++;
        } else if (frame.type == FRAME_ACCOUNT) {
            uint64_t account;
            char id[ORDER_ID_MAX + 1];
            bool open = true;
            assert_int_equal(frame_read_account(&frame, &account, id, &open), ST_OK);
            assert_string_equal(id, "o2");
            assert_false(open);
            checked++;
        } else if (frame.type == FRAME_ACK) {
            uint16_t partition;
            uint64_t hwm;
            char hash8[HASH8_CHARS + 1];
            assert_int_equal(frame_read_ack(&frame, &partition, &hwm, hash8), ST_OK);
            assert_int_equal(hwm, 2);
            assert_string_equal(hash8, "0123456789abcdef");
            checked++;
        }
    }
    assert_int_equal(checked, 3);
    assert_int_equal(journal_reader_segment(reader)->producer, producer);
    journal_reader_close(reader);

    journal = fixture_start(&config, &report);
    assert_false(report.created);
    assert_int_equal(report.epoch, 2);
    assert_int_equal(report.closed, 0);
    assert_int_equal(report.cut_bytes, 0);
    assert_int_equal(report.producer, producer);
    uint64_t pseq;
    uint8_t chain[CHAIN_BYTES];
    journal_partition(journal, grant.partition, &pseq, chain);
    assert_int_equal(pseq, 2);
    assert_memory_equal(chain, grant.chain, CHAIN_BYTES);
    journal_close(journal);
}

static void test_journal_one_process(void **state)
{
    (void)state;
    struct journal_config config = fixture_config();
    struct journal *journal = fixture_start(&config, NULL), *second = NULL;
    struct journal_report report;
    struct error err = {""};
    assert_int_equal(journal_open(&config, &second, &report, &err), ST_AGAIN);
    journal_close(journal);
    config.uuid = "99999999-2222-3333-4444-555555555555";
    assert_int_equal(journal_open(&config, &second, &report, &err), ST_INVAL);
    assert_non_null(strstr(err.message, "adopt"));
}

static void test_journal_kill_closes_what_was_open(void **state)
{
    (void)state;
    struct journal_config config = fixture_config();
    struct journal *journal = fixture_start(&config, NULL);
    uint32_t a = fixture_open(journal, 1), b = fixture_open(journal, 2);
    fixture_step(journal, a, 2);
    fixture_step(journal, b, 3);
    fixture_step(journal, a, 1);
    fixture_final(journal, b, 3);
    assert_int_equal(journal_commit(journal), ST_OK);
    fixture_step(journal, a, 50); /* never written */
    journal_release(journal);
    struct journal_report report;
    journal = fixture_start(&config, &report);
    assert_int_equal(report.closed, 1);
    journal_release(journal);
    struct seen seen;
    see_all(&config, &seen);
    assert_int_equal(seen.frames[FRAME_FINAL], 2);
    assert_int_equal(seen.crash_finals, 1);
    assert_int_equal(seen.finals_out, 6);
    journal = fixture_start(&config, &report);
    assert_int_equal(report.closed, 0);
    journal_close(journal);
}

/* Requests that stay open over many segments, while the older ones go. */
static void test_journal_rotates_and_retires(void **state)
{
    (void)state;
    struct journal_config config = fixture_config();
    struct journal *journal = fixture_start(&config, NULL);
    uint32_t stays = fixture_open(journal, 1000000);
    uint64_t out = 0, number = 1;
    fixture_step(journal, stays, 9);
    while (journal_segment_lsn(journal) < 2000) {
        uint32_t handle = fixture_open(journal, ++number);
        fixture_step(journal, handle, 2);
        fixture_final(journal, handle, 2);
        out += 2;
        assert_int_equal(journal_commit(journal), ST_OK);
        assert_int_equal(journal_tick(journal), ST_OK);
    }
    struct seen seen;
    see_all(&config, &seen);
    assert_true(seen.frames[FRAME_CHECKPOINT] > 5);
    assert_int_equal(seen.finals_out, out);
    assert_int_equal(seen.last_lsn, journal_lsn(journal));
    /* nothing goes before it is confirmed, and nothing of this hour */
    int64_t later_ms = test_clock.us / 1000 + 3600000;
    assert_int_equal(journal_retire(journal, later_ms, 1000), 0);
    for (uint16_t i = 0; i < PARTITIONS; i++) {
        uint64_t pseq;
        uint8_t chain[CHAIN_BYTES];
        char hash8[HASH8_CHARS + 1];
        journal_partition(journal, i, &pseq, chain);
        record_hash8(chain, hash8);
        if (pseq > 0) assert_int_equal(journal_put_ack(journal, i, pseq, hash8), ST_OK);
    }
    assert_int_equal(journal_commit(journal), ST_OK);
    assert_int_equal(journal_retire(journal, later_ms, 7200000), 0);
    assert_int_equal(journal_retire(journal, later_ms, 1000), seen.frames[FRAME_CHECKPOINT] - 1);
    journal_release(journal);
    struct journal_report report;
    journal = fixture_start(&config, &report);
    assert_int_equal(report.closed, 1); /* its OPEN stood in a segment that is gone */
    assert_int_equal(report.segments, 1);
    journal_close(journal);
    struct segment_info info[4];
    uint32_t count;
    struct error err = {""};
    assert_int_equal(journal_segments(config.disk, config.folder, NULL, info, 4, &count, &err), ST_OK);
    assert_int_equal(count, 1);
}

static void test_journal_reader_follows(void **state)
{
    (void)state;
    struct journal_config config = fixture_config();
    struct journal *journal = fixture_start(&config, NULL);
    struct journal_reader *reader;
    struct frame frame;
    struct error err = {""};
    assert_int_equal(journal_reader_open(config.disk, config.folder, NULL, 0, &reader, &err), ST_OK);
    uint64_t seen = 0, finals = 0;
    for (uint64_t number = 1; number <= 400; number++) {
        uint32_t handle = fixture_open(journal, number);
        fixture_step(journal, handle, 2);
        fixture_final(journal, handle, 2);
        if (number % 3 == 0) assert_int_equal(journal_commit(journal), ST_OK);
        enum status status;
        while ((status = journal_reader_next(reader, journal_durable_lsn(journal), &frame, &err)) == ST_OK) {
            if (frame.type == FRAME_CHECKPOINT) continue;
            assert_int_equal(frame.lsn, ++seen);
            finals += frame.type == FRAME_FINAL;
        }
        assert_int_equal(status, ST_AGAIN);
        assert_int_equal(seen, journal_durable_lsn(journal));
    }
    assert_int_equal(finals, 399);
    assert_true(journal_segment_lsn(journal) > 1);
    journal_reader_close(reader);
    /* from the middle: the segment that holds it */
    assert_int_equal(journal_reader_open(config.disk, config.folder, NULL, 700, &reader, &err), ST_OK);
    assert_int_equal(journal_reader_next(reader, UINT64_MAX, &frame, &err), ST_OK);
    assert_int_equal(frame.type, FRAME_CHECKPOINT);
    assert_true(frame.lsn < 700);
    journal_reader_close(reader);
    journal_close(journal);
}

static void test_journal_adopt_starts_another_producer(void **state)
{
    (void)state;
    struct journal_config config = fixture_config();
    struct journal_report report;
    struct journal *journal = fixture_start(&config, &report);
    uint32_t handle = fixture_open(journal, 1);
    fixture_final(journal, handle, 0);
    fixture_open(journal, 2);
    assert_int_equal(journal_commit(journal), ST_OK);
    journal_release(journal);
    config.uuid = "99999999-2222-3333-4444-555555555555";
    uint64_t producer = 0;
    struct error err = {""};
    assert_int_equal(journal_adopt(&config, &producer, &err), ST_OK);
    assert_true(producer != 0 && producer != report.producer);
    journal = fixture_start(&config, &report);
    assert_int_equal(report.producer, producer);
    assert_int_equal(report.closed, 0);
    uint64_t pseq;
    uint8_t chain[CHAIN_BYTES];
    journal_partition(journal, record_partition(2), &pseq, chain);
    assert_int_equal(pseq, 0);
    handle = fixture_open(journal, 3);
    struct record final = fixture_final(journal, handle, 0);
    assert_int_equal(final.pseq, 1);
    journal_close(journal);
}

/* The version in the header of the segment that begins at an LSN. */
static uint32_t version_of(uint64_t base_lsn)
{
    char path[160];
    uint8_t bytes[SEGMENT_HEADER_BYTES];
    struct segment_header header;
    const char *why;
    (void)snprintf(path, sizeof path, "%s/%016" PRIx64 ".mrj", journal_folder, base_lsn);
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    assert_int_equal(fread(bytes, 1, sizeof bytes, file), sizeof bytes);
    fclose(file);
    assert_int_equal(segment_header_decode(bytes, &header, &why), ST_OK);
    return header.version;
}

/* Without energy all segments are of version 1. The first energy ends such a segment; what is put before it stays
 * there, and a start goes on in the segment of version 2 without making more of them until there is energy again. */
static void test_journal_energy_makes_version_2(void **state)
{
    (void)state;
    struct journal_config config = fixture_config();
    struct journal *journal = fixture_start(&config, NULL);
    uint32_t handle = fixture_open(journal, 1);
    fixture_step(journal, handle, 2);
    (void)fixture_final(journal, handle, 2);
    uint64_t plain = journal_segment_lsn(journal);
    struct record energy = fixture_energy(journal, 1, 1790000100000, 1000);
    assert_int_equal(energy.pseq, 2);
    assert_int_equal(energy.account, 2);
    assert_int_equal(energy.mclass, 3);
    assert_int_equal(energy.month, 202609);
    assert_int_equal(journal_commit(journal), ST_OK);
    assert_int_equal(journal_durable_lsn(journal), journal_lsn(journal));
    uint64_t second = journal_segment_lsn(journal);
    assert_int_equal(second, journal_lsn(journal)); /* the energy alone went into the next one */
    assert_int_equal(version_of(plain), SEGMENT_VERSION_PLAIN);
    assert_int_equal(version_of(second), SEGMENT_VERSION_ENERGY);
    (void)fixture_energy(journal, 1, 1790001000000, 500);
    assert_int_equal(journal_commit(journal), ST_OK);
    assert_int_equal(journal_segment_lsn(journal), second);
    journal_close(journal);
    struct seen seen;
    see_all(&config, &seen);
    assert_int_equal(seen.frames[FRAME_ENERGY], 2);
    journal = fixture_start(&config, NULL); /* goes on in the segment of version 2 */
    assert_int_equal(journal_segment_lsn(journal), second);
    while (journal_segment_lsn(journal) == second) {
        handle = fixture_open(journal, 2);
        (void)fixture_final(journal, handle, 0);
        assert_int_equal(journal_commit(journal), ST_OK);
    }
    assert_int_equal(version_of(journal_segment_lsn(journal)), SEGMENT_VERSION_PLAIN);
    journal_close(journal);
    see_all(&config, &seen);
    assert_int_equal(seen.frames[FRAME_ENERGY], 2);
}

/* A month begins by the operator's clock, and energy counts when it was used. */
static void test_journal_energy_is_of_its_slots_month(void **state)
{
    (void)state;
    struct journal_config config = fixture_config();
    config.utc_offset_s = 8 * 3600;
    struct journal *journal = fixture_start(&config, NULL);
    assert_int_equal(fixture_energy(journal, 1, 1790783999999 / 900000 * 900000, 1).month, 202609); /* 23:45 */
    assert_int_equal(fixture_energy(journal, 1, 1790784000000, 1).month, 202610); /* midnight at +08:00 */
    journal_close(journal);
}

/* Frames are of their segment's version: one that says another was not written by us. */
static void test_journal_versions_are_not_mixed(void **state)
{
    (void)state;
    struct journal_config config = fixture_config();
    struct journal *journal = fixture_start(&config, NULL);
    (void)fixture_energy(journal, 1, 1790000100000, 1000);
    assert_int_equal(journal_commit(journal), ST_OK);
    char path[160];
    uint8_t bytes[SEGMENT_HEADER_BYTES];
    (void)snprintf(path, sizeof path, "%s/%016" PRIx64 ".mrj", journal_folder, journal_segment_lsn(journal));
    journal_close(journal);
    FILE *file = fopen(path, "r+b");
    assert_non_null(file);
    assert_int_equal(fread(bytes, 1, sizeof bytes, file), sizeof bytes);
    assert_int_equal(bytes[8], SEGMENT_VERSION_ENERGY);
    bytes[8] = SEGMENT_VERSION_PLAIN;
    uint32_t crc = crc32c(bytes, SEGMENT_HEADER_BYTES - 4);
    memcpy(bytes + SEGMENT_HEADER_BYTES - 4, &crc, 4);
    rewind(file);
    assert_int_equal(fwrite(bytes, 1, sizeof bytes, file), sizeof bytes);
    fclose(file);
    struct seen seen;
    struct error err = {""};
    assert_int_equal(read_all(&config, &seen, &err), ST_INVAL);
    assert_non_null(strstr(err.message, "checkpoint is not valid"));
}

/* A segment of a version to come is neither damage nor a torn tail: nothing is cut, and the message says what it is. */
static void test_journal_newer_version_is_refused(void **state)
{
    (void)state;
    struct journal_config config = fixture_config();
    struct journal *journal = fixture_start(&config, NULL);
    char path[160];
    uint8_t bytes[SEGMENT_HEADER_BYTES], after[SEGMENT_HEADER_BYTES];
    (void)snprintf(path, sizeof path, "%s/%016" PRIx64 ".mrj", journal_folder, journal_segment_lsn(journal));
    journal_close(journal);
    FILE *file = fopen(path, "r+b");
    assert_non_null(file);
    assert_int_equal(fread(bytes, 1, sizeof bytes, file), sizeof bytes);
    bytes[8] = 3;
    struct error err = {""};
    struct journal_report report;
    for (int fits = 0; fits < 2; fits++) { /* without its checksum it is a flipped byte: damage */
        uint32_t crc = crc32c(bytes, SEGMENT_HEADER_BYTES - 4);
        if (fits == 1) memcpy(bytes + SEGMENT_HEADER_BYTES - 4, &crc, 4);
        rewind(file);
        assert_int_equal(fwrite(bytes, 1, sizeof bytes, file), sizeof bytes);
        fflush(file);
        const char *says = fits == 1 ? "newer version of this program" : "its header is damaged";
        assert_int_equal(journal_open(&config, &journal, &report, &err), fits == 1 ? ST_PROTO : ST_INVAL);
        assert_non_null(strstr(err.message, says));
        assert_true(fits == 0 || strstr(err.message, "damaged") == NULL);
        struct seen seen;
        assert_int_equal(read_all(&config, &seen, &err), fits == 1 ? ST_PROTO : ST_INVAL);
        struct repair_report repair;
        assert_int_not_equal(journal_repair(&config, &repair, &err), ST_OK);
        assert_non_null(strstr(err.message, says));
        rewind(file);
        assert_int_equal(fread(after, 1, sizeof after, file), sizeof after);
        assert_memory_equal(bytes, after, sizeof bytes);
    }
    fclose(file);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, fixture_setup, fixture_teardown)
    const struct CMUnitTest tests[] = {TEST(test_journal_what_is_put_comes_back),
                                       TEST(test_journal_one_process),
                                       TEST(test_journal_kill_closes_what_was_open),
                                       TEST(test_journal_rotates_and_retires),
                                       TEST(test_journal_reader_follows),
                                       TEST(test_journal_energy_makes_version_2),
                                       TEST(test_journal_energy_is_of_its_slots_month),
                                       TEST(test_journal_newer_version_is_refused),
                                       TEST(test_journal_versions_are_not_mixed),
                                       TEST(test_journal_adopt_starts_another_producer)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
