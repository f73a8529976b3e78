/* bill_audit*.c: a good journal is clean, and nothing can be flipped, deleted, swapped or cut in it unseen.
 *
 * A journal of three segments is written by journal.c, read into memory, changed there and audited through a disk of
 * memory. MILLRACE_AUDIT_ALL=1: every bit of every byte; else a part of them, and all bits of the last segment's
 * beginning. Records that are rewritten whole, with checksums and chain made anew, are only visible to a ledger: so one
 * stands beside it here. */
#include "tests/unit/server/journal_fixture.h"

#include "server/billing/bill_audit.h"
#include "server/billing/frame.h"
#include "tests/support/memory_ledger.h"

#include <inttypes.h>

enum { SEGMENT_BYTES = 65536, FILES_MAX = 8, CHARGES = 12 };

/* ---- a disk of memory, to be read from ---- */

struct file {
    char name[256];
    uint8_t *bytes;
    uint64_t length;
    bool gone;
};
static struct file files[FILES_MAX];
static uint32_t files_count;

static int memory_open(void *state, const char *path, enum disk_open how)
{
    (void)state;
    (void)how;
    const char *name = strrchr(path, '/');
    for (uint32_t i = 0; i < files_count; i++)
        if (!files[i].gone && name && strcmp(name + 1, files[i].name) == 0) return (int)i;
    return -2;
}
static void memory_close(void *state, int fd)
{
    (void)state;
    (void)fd;
}
static int64_t memory_read(void *state, int fd, void *out, size_t length, uint64_t offset)
{
    (void)state;
    const struct file *file = &files[fd];
    if (offset >= file->length) return 0;
    if (length > file->length - offset) length = (size_t)(file->length - offset);
    memcpy(out, file->bytes + offset, length);
    return (int64_t)length;
}
static int64_t memory_size(void *state, int fd)
{
    (void)state;
    return (int64_t)files[fd].length;
}
static int memory_list(void *state, const char *folder, void (*visit)(void *visitor, const char *name), void *visitor)
{
    (void)state;
    (void)folder;
    for (uint32_t i = 0; i < files_count; i++)
        if (!files[i].gone) visit(visitor, files[i].name);
    return 0;
}
static const struct disk memory_disk = {
    .open = memory_open, .close = memory_close, .read_at = memory_read, .size = memory_size, .list = memory_list};

/* ---- the journal ---- */

static struct memory_ledger memory;
static struct ledger_client client;

static void load_files(void)
{
    files_count = 0;
    DIR *listing = opendir(journal_folder);
    assert_non_null(listing);
    const struct dirent *entry;
    while ((entry = readdir(listing)) != NULL) {
        char path[512];
        if (!strstr(entry->d_name, ".mrj")) continue;
        assert_true(files_count < FILES_MAX);
        struct file *file = &files[files_count++];
        (void)snprintf(path, sizeof path, "%s/%s", journal_folder, entry->d_name);
        (void)snprintf(file->name, sizeof file->name, "%s", entry->d_name);
        FILE *from = fopen(path, "rb");
        assert_non_null(from);
        file->gone = false;
        file->bytes = calloc(1, SEGMENT_BYTES * 2);
        file->length = fread(file->bytes, 1, SEGMENT_BYTES * 2, from);
        fclose(from);
    }
    closedir(listing);
    for (uint32_t i = 0; i < files_count; i++) /* in order of their LSNs */
        for (uint32_t k = i + 1; k < files_count; k++)
            if (strcmp(files[k].name, files[i].name) < 0) {
                struct file other = files[i];
                files[i] = files[k];
                files[k] = other;
            }
}

/* What the ledger would have been told, for its marks. */
static void apply(const struct frame *frame, const struct segment_info *segment)
{
    struct record record;
    struct ledger_reply reply;
    struct encoded_record bytes = {frame->payload, frame->length};
    assert_int_equal(record_decode(frame->payload, frame->length, &record, NULL), ST_OK);
    ledger_apply(memory.ledger, record.partition, segment->producer, segment->epoch, ledger_uuid_text, &bytes, 1,
                 (uint64_t)record.t_ms, NULL, NULL, &reply);
    assert_int_equal(reply.answer, LEDGER_OK);
}

static void fill_ledger(void)
{
    struct journal_reader *reader;
    struct frame frame;
    struct error err;
    assert_int_equal(journal_reader_open(&memory_disk, "/j", NULL, 0, &reader, &err), ST_OK);
    while (journal_reader_next(reader, UINT64_MAX, &frame, &err) == ST_OK)
        if (frame_is_record(frame.type)) apply(&frame, journal_reader_segment(reader));
    journal_reader_close(reader);
}

/* Charges in every segment, one over a boundary, an ACK, and padding STEPs to fill the segments. */
enum { SLOT_S = 900 };
static const int64_t SLOT_MS = INT64_C(1790000100000) / (SLOT_S * 1000) * (SLOT_S * 1000);

static int set_up(void **state)
{
    fixture_setup(state);
    struct journal_config config = fixture_config();
    struct journal *journal = fixture_start(&config, NULL);
    uint64_t number = 0, segment = journal_segment_lsn(journal);
    uint32_t rotations = 0, open = fixture_open(journal, 1000), ids = 0;
    for (; rotations < 2; number++) {
        uint32_t handle = number % 64 == 0 ? fixture_open(journal, 100 + number) : 0;
        fixture_step(journal, open, 1);
        ids++;
        if (number % 64 == 0) {
            fixture_step(journal, handle, 3);
            (void)fixture_final(journal, handle, 3);
            (void)fixture_energy(journal, 100 + number, SLOT_MS, number + 1);
            (void)fixture_energy(journal, 100 + number, SLOT_MS + 900000, number + 1); /* two slots were touched */
        }
        assert_int_equal(journal_commit(journal), ST_OK);
        rotations += journal_segment_lsn(journal) != segment;
        segment = journal_segment_lsn(journal);
    }
    (void)fixture_final(journal, open, ids);
    for (; number % 64 != 40; number++) {
        uint32_t handle = fixture_open(journal, 5000 + number);
        fixture_step(journal, handle, 2);
        (void)fixture_final(journal, handle, 2);
    }
    struct record grant = {.kind = RECORD_GRANT, .account = 2, .mclass = 3, .want = 10, .least = 1, .valid_ms = 1000};
    assert_int_equal(journal_put_record(journal, &grant), ST_OK);
    uint16_t partition = record_partition(2);
    uint64_t pseq;
    uint8_t chain[CHAIN_BYTES];
    char hash8[HASH8_CHARS + 1];
    journal_partition(journal, partition, &pseq, chain);
    record_hash8(chain, hash8);
    assert_int_equal(journal_put_ack(journal, partition, pseq, hash8), ST_OK);
    assert_int_equal(journal_commit(journal), ST_OK);
    journal_close(journal);
    load_files();
    memory_ledger_init(&memory, ledger_uuid_text, &client);
    fill_ledger();
    return files_count == 3 ? 0 : -1;
}

static int tear_down(void **state)
{
    for (uint32_t i = 0; i < files_count; i++) free(files[i].bytes);
    memory_ledger_free(&memory);
    return fixture_teardown(state);
}

/* ---- auditing ---- */

static struct audit audit;

static enum audit_kind run(bool with_ledger)
{
    struct error err = {""};
    audit_free(&audit);
    assert_int_equal(audit_init(&audit, &memory_disk), ST_OK);
    if (with_ledger) assert_int_equal(audit_marks(&audit, &client, &err), ST_OK);
    enum status status = audit_scan(&audit, "/j", NULL, &err);
    if (status != ST_OK) return AUDIT_DAMAGE; /* no journal left, or not to be read: told, too */
    audit_energies(&audit);
    if (with_ledger) assert_int_equal(audit_compare(&audit, &client, &err), ST_OK);
    return audit.worst;
}

static void show(void)
{
    const char *at = audit.findings.data;
    for (uint32_t i = 0; i < audit.findings_count; i++, at += strlen(at) + 1) print_message("  %s\n", at);
}

static void test_audit_good_journal_is_clean(void **state)
{
    (void)state;
    for (int ledger = 0; ledger < 2; ledger++) {
        if (run(ledger) != AUDIT_NOTE) {
            show();
            fail_msg("a good journal is not clean");
        }
        assert_int_equal(audit.findings_count, 0);
        assert_int_equal(audit.counts.segments, 3);
        assert_int_equal(audit.counts.lost + audit.counts.doubled + audit.counts.mismatch + audit.counts.open, 0);
        assert_int_equal(audit.counts.grants, 1);
        assert_int_equal(audit.counts.charged + 1 + audit.counts.energies, audit.counts.records);
        assert_true(audit.counts.energies >= 10);
        assert_true(audit.counts.charged > 30);
        assert_int_equal(audit.counts.unapplied, 0);
        assert_int_equal(audit.counts.accounts_compared, ledger ? 5 : 0);
        assert_true(!ledger || audit.counts.overage_units == audit.counts.units);
    }
}

static void test_audit_every_flipped_bit(void **state)
{
    (void)state;
    bool all = getenv("MILLRACE_AUDIT_ALL") != NULL;
    uint64_t tried = 0;
    for (uint32_t i = 0; i < files_count; i++)
        for (uint64_t bit = 0; bit < files[i].length * 8; tried++) {
            files[i].bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
            if (run(false) == AUDIT_NOTE) fail_msg("%s: bit %" PRIu64 " flipped unseen", files[i].name, bit);
            files[i].bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
            bit += all ? 1 : 997; /* a prime: all bits of a byte have their turn */
        }
    print_message("%" PRIu64 " flips\n", tried);
    assert_int_equal(run(false), AUDIT_NOTE);
}

/* Where the frames of a file stand. */
static uint32_t frames_of(uint32_t idx, uint64_t *offsets, uint32_t *lengths, uint32_t max)
{
    struct journal_reader *reader;
    struct frame frame;
    struct error err;
    uint32_t count = 0;
    assert_int_equal(journal_reader_open(&memory_disk, "/j", NULL, 0, &reader, &err), ST_OK);
    while (journal_reader_next(reader, UINT64_MAX, &frame, &err) == ST_OK) {
        if (!strstr(journal_reader_segment(reader)->path, files[idx].name)) continue;
        assert_true(count < max);
        offsets[count] = frame.offset;
        lengths[count++] = (uint32_t)frame_aligned(FRAME_HEADER_BYTES + frame.length);
    }
    journal_reader_close(reader);
    return count;
}

static uint64_t offsets[4096];
static uint32_t lengths[4096];
static uint8_t saved[SEGMENT_BYTES * 2];

/* Takes a frame out; what follows moves up. */
static void test_audit_every_deleted_frame(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < files_count; i++) {
        uint32_t count = frames_of(i, offsets, lengths, 4096);
        memcpy(saved, files[i].bytes, files[i].length);
        for (uint32_t k = 0; k < count; k++) {
            uint64_t end = offsets[k] + lengths[k];
            memmove(files[i].bytes + offsets[k], files[i].bytes + end, files[i].length - end);
            memset(files[i].bytes + files[i].length - lengths[k], 0, lengths[k]);
            bool last = i + 1 == files_count && k + 1 == count; /* a cut at a frame's end: see the next test */
            if (!last && run(false) == AUDIT_NOTE) fail_msg("%s: frame %u deleted unseen", files[i].name, k);
            memcpy(files[i].bytes, saved, files[i].length);
        }
    }
}

/* Frames of the same length change places; others are moved whole. */
static void test_audit_every_swap(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < files_count; i++) {
        uint32_t count = frames_of(i, offsets, lengths, 4096);
        memcpy(saved, files[i].bytes, files[i].length);
        for (uint32_t k = 0; k + 1 < count; k++) {
            uint8_t *at = files[i].bytes + offsets[k];
            memcpy(at, saved + offsets[k + 1], lengths[k + 1]);
            memcpy(at + lengths[k + 1], saved + offsets[k], lengths[k]);
            if (run(false) == AUDIT_NOTE) fail_msg("%s: frames %u and %u swapped unseen", files[i].name, k, k + 1);
            memcpy(files[i].bytes, saved, files[i].length);
        }
    }
    for (uint32_t i = 0; i < files_count; i++) /* whole files under each other's names */
        for (uint32_t k = i + 1; k < files_count; k++) {
            uint8_t *bytes = files[i].bytes;
            files[i].bytes = files[k].bytes, files[k].bytes = bytes;
            assert_int_not_equal(run(false), AUDIT_NOTE);
            bytes = files[i].bytes;
            files[i].bytes = files[k].bytes, files[k].bytes = bytes;
        }
}

/* The file ends early; or it is zero from there on. A cut of the last segment at a frame's end leaves a journal that
 * could have ended there: if a record went, the ledger's mark tells. */
static void test_audit_every_truncation(void **state)
{
    (void)state;
    bool all = getenv("MILLRACE_AUDIT_ALL") != NULL;
    for (uint32_t i = 0; i < files_count; i++) {
        uint64_t whole = files[i].length;
        uint32_t count = frames_of(i, offsets, lengths, 4096);
        for (uint64_t length = 0; length < whole; length += all ? 1 : 89) {
            files[i].length = length;
            if (run(false) == AUDIT_NOTE) fail_msg("%s: cut to %" PRIu64 " bytes unseen", files[i].name, length);
        }
        files[i].length = whole + 4096; /* zeros behind the end */
        assert_int_equal(run(false), AUDIT_DAMAGE);
        files[i].length = whole;
        memcpy(saved, files[i].bytes, whole);
        for (uint32_t k = 0; k < count; k++) {
            memset(files[i].bytes + offsets[k], 0, whole - offsets[k]);
            bool last = i + 1 == files_count;
            if (!last && run(false) == AUDIT_NOTE) fail_msg("%s: zeros from frame %u on unseen", files[i].name, k);
            memcpy(files[i].bytes, saved, whole);
        }
    }
    assert_int_equal(run(true), AUDIT_NOTE);
    uint64_t records = audit.counts.records;
    uint32_t last = files_count - 1, count = frames_of(last, offsets, lengths, 4096);
    memcpy(saved, files[last].bytes, files[last].length);
    for (uint32_t k = 0; k < count; k++) {
        memset(files[last].bytes + offsets[k], 0, files[last].length - offsets[k]);
        bool clean = run(true) == AUDIT_NOTE;
        if (clean && audit.counts.records < records) fail_msg("records lost from frame %u on, and the mark unseen", k);
        assert_int_equal(audit.counts.lost, records - audit.counts.records);
        memcpy(files[last].bytes, saved, files[last].length);
    }
}

static void test_audit_every_missing_segment(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < files_count; i++) {
        files[i].gone = true;
        enum audit_kind alone = run(false), beside = run(true);
        files[i].gone = false;
        if (i == 0)
            assert_false(audit.complete); /* kept no longer: a note, and a difference with --archive */
        else if (i + 1 < files_count)
            assert_int_not_equal(alone, AUDIT_NOTE);
        else
            assert_int_not_equal(beside, AUDIT_NOTE);
    }
}

/* A frame with a checksum that fits again: what a forger would write. */
static void seal_frame(uint8_t *frame, const struct segment_header *header)
{
    uint64_t lsn = frame_lsn(frame);
    uint16_t lag = (uint16_t)(frame[22] | frame[23] << 8);
    frame_stamp(frame, header, lag == FRAME_LAG_NONE ? 0 : lsn - lag);
}

/* Every byte of every record changed by one, under a checksum that fits: the chain breaks, or the mark differs. */
static void test_audit_every_forged_byte(void **state)
{
    (void)state;
    bool all = getenv("MILLRACE_AUDIT_ALL") != NULL;
    uint64_t tried = 0;
    for (uint32_t i = 0; i < files_count; i++) {
        uint32_t count = frames_of(i, offsets, lengths, 4096);
        struct segment_header header;
        const char *why;
        assert_int_equal(segment_header_decode(files[i].bytes, &header, &why), ST_OK);
        memcpy(saved, files[i].bytes, files[i].length);
        for (uint32_t k = 0; k < count; k++) {
            uint8_t *frame = files[i].bytes + offsets[k];
            if (frame[20] != FRAME_FINAL && frame[20] != FRAME_ENERGY) continue;
            for (uint32_t at = FRAME_HEADER_BYTES; at < frame_length(frame); at += all ? 1 : 7, tried++) {
                frame[at]++;
                seal_frame(frame, &header);
                if (run(true) == AUDIT_NOTE) fail_msg("%s: frame %u, byte %u forged unseen", files[i].name, k, at);
                memcpy(frame, saved + offsets[k], lengths[k]);
            }
            if (!all) k += 8;
        }
    }
    print_message("%" PRIu64 " forgeries\n", tried);
}

/* What a ledger holds that journals do not, and the other way round. */
static void test_audit_ledger_differs(void **state)
{
    (void)state;
    struct memory_ledger other;
    struct ledger_client to_other, mine = client;
    struct error err;
    memory_ledger_init(&other, "99999999-2222-3333-4444-555555555555", &to_other);
    client = to_other;
    assert_int_equal(run(true), AUDIT_DIFFERENCE); /* another ledger's uuid */
    memory_ledger_free(&other);
    memory_ledger_init(&other, ledger_uuid_text, &to_other);
    assert_int_equal(run(true), AUDIT_NOTE); /* an empty one: nothing is applied yet */
    assert_int_equal(audit.counts.unapplied, audit.counts.records);
    client = mine;
    memory_ledger_free(&other);
    audit_free(&audit);
    assert_int_equal(audit_init(&audit, &memory_disk), ST_OK); /* an unnamed one */
    memory_ledger_init(&other, NULL, &to_other);
    assert_int_equal(audit_marks(&audit, &to_other, &err), ST_INVAL);
    memory_ledger_free(&other);
}

/* A ledger whose month differs in one number alone, by one. */
static size_t off_by_one; /* of a month_total */
static enum status month_off(void *state, uint64_t account, uint32_t month, struct month_total totals[MODEL_CLASSES],
                             uint32_t *count, struct error *err)
{
    TRY(client.calls->month(state, account, month, totals, count, err));
    for (uint32_t i = 0; i < *count; i++) {
        uint64_t value;
        memcpy(&value, (const char *)&totals[i] + off_by_one, sizeof value);
        value++;
        memcpy((char *)&totals[i] + off_by_one, &value, sizeof value);
    }
    return ST_OK;
}

static void test_audit_month_differs_in_one_number(void **state)
{
    (void)state;
#define OF(member) offsetof(struct month_total, member)
    static const size_t members[] = {
        OF(in_miss),        OF(in_hit),    OF(out),     OF(units),    OF(records),   OF(waived_in), OF(waived_out),
        OF(waived_records), OF(energy_uj), OF(idle_uj), OF(green_uj), OF(ugco2_loc), OF(ugco2_mkt), OF(energy_records)};
#undef OF
    struct ledger_client_calls calls = *client.calls;
    calls.month = month_off;
    const struct ledger_client changed = {.calls = &calls, .state = client.state};
    struct error err = {""};
    for (size_t i = 0; i < sizeof members / sizeof *members; i++) {
        off_by_one = members[i];
        audit_free(&audit);
        assert_int_equal(audit_init(&audit, &memory_disk), ST_OK);
        assert_int_equal(audit_marks(&audit, &changed, &err), ST_OK);
        assert_int_equal(audit_scan(&audit, "/j", NULL, &err), ST_OK);
        assert_int_equal(audit_compare(&audit, &changed, &err), ST_OK);
        if (audit.worst != AUDIT_DIFFERENCE) fail_msg("member %zu of a month differs unseen", i);
    }
}

/* One charge in a journal of its own, its FINAL as `change` makes it: a writer's fault, under right checksums. */
static void write_wrong(void (*change)(struct record *record), uint32_t ids)
{
    struct journal_config config = fixture_config();
    struct journal *journal = fixture_start(&config, NULL);
    uint32_t handle = fixture_open(journal, 1);
    fixture_step(journal, handle, ids);
    struct record record = {.kind = RECORD_CHARGED,
                            .cause = CAUSE_STOP,
                            .in_total = 100,
                            .in_hit = 20,
                            .out = 3,
                            .choices = 1,
                            .opened_us = test_clock.us,
                            .ended_us = test_clock.us + 1000,
                            .duration_us = 1000,
                            .units = 80 * 1000000 + 20 * 100000 + 3 * UINT64_C(4000000)};
    change(&record);
    assert_int_equal(journal_put_final(journal, handle, &record), ST_OK);
    assert_int_equal(journal_commit(journal), ST_OK);
    journal_close(journal);
}

static void change_nothing(struct record *record)
{
    (void)record;
}
static void change_units(struct record *record)
{
    record->units++;
}
static void change_input(struct record *record)
{
    record->in_total++;
    record->units += 1000000;
}
static void change_kind(struct record *record)
{
    record->kind = RECORD_WAIVED;
    record->units = 0;
}
static void change_cause(struct record *record)
{
    record->cause = CAUSE_PLATFORM_ERROR;
}
static void change_flag(struct record *record)
{
    record->flags = RECORD_INCOMPLETE;
}

/* Energy: of charges with and without a FINAL, again, of another account. What a crash leaves out is no finding. */
static void test_audit_energy(void **state)
{
    (void)state;
    static const struct {
        uint64_t first, second;      /* charges that the two notes are of; 0: no note */
        int64_t apart_ms;            /* of their slots */
        uint64_t account;            /* of the second; 0: its own */
        const char *text;            /* of the finding; NULL: none */
    } cases[] = {{0, 0, 0, 0, NULL}, /* two charges, a crash before their windows closed */
                 {1, 0, 0, 0, NULL}, /* ... between them */
                 {1, 2, 0, 0, NULL},
                 {1, 1, 900000, 0, NULL},
                 {1, 1, 0, 0, "energy of a charge in a slot again"},
                 {1, 9, 0, 0, "energy of a charge that is not there"},
                 {1, 2, 0, 1, "energy of a charge that is another account's"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        folder_remove(journal_folder);
        struct journal_config config = fixture_config();
        struct journal *journal = fixture_start(&config, NULL);
        uint32_t handles[2] = {fixture_open(journal, 1), fixture_open(journal, 2)};
        for (int k = 0; k < 2; k++) {
            fixture_step(journal, handles[k], 3);
            if (k == 0) (void)fixture_final(journal, handles[k], 3); /* the other one is running still */
        }
        if (cases[i].first) (void)fixture_energy(journal, cases[i].first, SLOT_MS, 1000);
        if (cases[i].second) {
            struct record energy = {.charge = fixture_charge(cases[i].second),
                                    .energy = {.slot_ms = SLOT_MS + cases[i].apart_ms, .pue_ppm = PUE_PPM_MIN}};
            if (cases[i].account) energy.charge.account = cases[i].account;
            assert_int_equal(journal_put_energy(journal, &energy), ST_OK);
        }
        assert_int_equal(journal_commit(journal), ST_OK);
        journal_close(journal);
        struct error err = {""};
        audit_free(&audit);
        assert_int_equal(audit_init(&audit, disk_system()), ST_OK);
        assert_int_equal(audit_scan(&audit, journal_folder, NULL, &err), ST_OK);
        audit_energies(&audit);
        const char *found = audit.findings_count > 0 ? audit.findings.data : "";
        if (audit.findings_count != (cases[i].text != NULL) || (cases[i].text && !strstr(found, cases[i].text)))
            fail_msg("case %zu: %u findings, %s", i, audit.findings_count, found);
        assert_int_equal(audit.worst, cases[i].text ? AUDIT_DIFFERENCE : AUDIT_NOTE);
        assert_int_equal(audit.counts.energies, (cases[i].first != 0) + (cases[i].second != 0));
        assert_int_equal(audit.counts.lost, 0);
        assert_int_equal(audit.counts.energy_uj, cases[i].first ? 3003 : 0);
    }
}

/* Midnight at +08:00: the slot is of October there and of September in UTC. */
static void test_audit_energy_of_another_month(void **state)
{
    (void)state;
    for (int wrong = 0; wrong < 2; wrong++) {
        folder_remove(journal_folder);
        struct journal_config config = fixture_config();
        config.utc_offset_s = 8 * 3600;
        struct journal *journal = fixture_start(&config, NULL);
        (void)fixture_open(journal, 1);
        (void)fixture_energy(journal, 1, 1790784000000, 1000);
        assert_int_equal(journal_commit(journal), ST_OK);
        journal_close(journal);
        struct error err = {""};
        audit_free(&audit);
        assert_int_equal(audit_init(&audit, disk_system()), ST_OK);
        audit.utc_offset_given = true;
        audit.utc_offset_s = wrong ? 0 : 8 * 3600;
        assert_int_equal(audit_scan(&audit, journal_folder, NULL, &err), ST_OK);
        assert_int_equal(audit.findings_count, wrong);
        assert_true(!wrong || strstr(audit.findings.data, "month 202610 is not that of its slot") != NULL);
    }
}

static void test_audit_wrong_records(void **state)
{
    (void)state;
    static const struct {
        void (*change)(struct record *record);
        uint32_t ids;
        const char *text; /* of the finding; NULL: none */
    } cases[] = {{change_nothing, 3, NULL},
                 {change_units, 3, "its weights give"},
                 {change_input, 3, "does not say what its OPEN said"},
                 {change_kind, 3, "is not waived"},
                 {change_cause, 3, "is not charged"},
                 {change_flag, 3, "the flag without it"},
                 {change_nothing, 2, "its STEPs"},
                 {change_nothing, 9, "its STEPs"}};
    struct file kept[FILES_MAX];
    uint32_t kept_count = files_count;
    memcpy(kept, files, sizeof kept);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        folder_remove(journal_folder);
        write_wrong(cases[i].change, cases[i].ids);
        load_files();
        enum audit_kind found = run(false);
        if (found != (cases[i].text ? AUDIT_DIFFERENCE : AUDIT_NOTE)) fail_msg("case %zu: %d", i, found);
        if (cases[i].text && !strstr(audit.findings.data, cases[i].text))
            fail_msg("case %zu: %s", i, audit.findings.data);
        for (uint32_t k = 0; k < files_count; k++) free(files[k].bytes);
    }
    memcpy(files, kept, sizeof kept);
    files_count = kept_count;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_audit_good_journal_is_clean),
        cmocka_unit_test(test_audit_every_flipped_bit),
        cmocka_unit_test(test_audit_every_deleted_frame),
        cmocka_unit_test(test_audit_every_swap),
        cmocka_unit_test(test_audit_every_truncation),
        cmocka_unit_test(test_audit_every_missing_segment),
        cmocka_unit_test(test_audit_every_forged_byte),
        cmocka_unit_test(test_audit_ledger_differs),
        cmocka_unit_test(test_audit_month_differs_in_one_number),
        cmocka_unit_test(test_audit_wrong_records),
        cmocka_unit_test(test_audit_energy),
        cmocka_unit_test(test_audit_energy_of_another_month),
    };
    int failed = cmocka_run_group_tests(tests, set_up, tear_down);
    audit_free(&audit);
    return failed;
}
