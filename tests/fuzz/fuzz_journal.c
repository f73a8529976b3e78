/* libFuzzer over the journal's reader, its start and its repair, on segments in memory. The mutator begins with a whole
 * journal of two segments, turns bytes in it and puts right the checksums of what it changed, so that it comes behind
 * them. What must hold: no crash; a refusal has a reason; what a start accepts reads through to its end. */
#include "runtime/base/crc32c.h"
#include "runtime/base/mem.h"
#include "runtime/base/random.h"
#include "server/billing/frame.h"
#include "server/billing/journal_repair.h"
#include "server/billing/journal_segment.h"
#include "tests/support/sim_disk.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t size_max, unsigned seed);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t size_max);

enum { SEGMENT = SEGMENT_BYTES_MIN, INPUT = 2 * SEGMENT };

static uint64_t fuzz_now_ns(void *state)
{
    return *(uint64_t *)state += 1000;
}
static int64_t fuzz_unix_us(void *state)
{
    return INT64_C(1790000000000000) + (int64_t)(++*(uint64_t *)state / 1000);
}
static uint64_t fuzz_time = 1000000000;
static const struct clock fuzz_clock = {.now_ns = fuzz_now_ns, .unix_us = fuzz_unix_us, .state = &fuzz_time};

static struct journal_config config_on(struct sim_disk *sim)
{
    return (struct journal_config){.disk = sim_disk_table(sim),
                                   .clock = &fuzz_clock,
                                   .folder = "/j",
                                   .uuid = "11111111-2222-3333-4444-555555555555",
                                   .segment_bytes = SEGMENT};
}

static void put_file(const struct disk *disk, const char *path, const uint8_t *bytes, size_t length)
{
    int fd = disk->open(disk->state, path, DISK_CREATE);
    if (fd < 0 || (length > 0 && disk_write_all(disk, fd, bytes, length, 0) != ST_OK)) abort();
    disk->close(disk->state, fd);
}

/* Everything that a reader of payloads would do. */
static void touch(const struct frame *frame)
{
    static uint64_t pseq[PARTITIONS];
    static uint8_t chain[PARTITIONS][CHAIN_BYTES];
    struct open_frame open;
    struct order order;
    struct record record;
    uint64_t number;
    uint16_t partition;
    char text[ORDER_ID_MAX + 1];
    bool flag;
    (void)!frame_read_open(frame, &open);
    (void)!frame_read_order(frame, &order);
    (void)!frame_read_account(frame, &number, text, &flag);
    (void)!frame_read_ack(frame, &partition, &number, text);
    (void)!frame_read_checkpoint(frame, pseq, chain);
    (void)!record_decode(frame->payload, frame->length, &record, NULL);
}

/* Frames up to the end; false: damage, with a reason. */
static bool read_through(const struct journal_config *config)
{
    struct journal_reader *reader;
    struct frame frame;
    struct error err = {""};
    enum status status = journal_reader_open(config->disk, config->folder, NULL, 0, &reader, &err);
    if (status == ST_OK) {
        while ((status = journal_reader_next(reader, UINT64_MAX, &frame, &err)) == ST_OK) touch(&frame);
        journal_reader_close(reader);
    }
    if (status != ST_AGAIN && err.message[0] == 0) abort();
    return status == ST_AGAIN;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct sim_disk *sim = sim_disk_create(1);
    struct journal_config config = config_on(sim);
    const struct disk *disk = config.disk;
    struct journal *journal = NULL;
    struct journal_report report;
    struct repair_report repaired;
    struct error err = {""};
    if (disk->make_folder(disk->state, "/j") != 0) abort();
    size_t first = size < SEGMENT ? size : SEGMENT;
    put_file(disk, "/j/0000000000000001.mrj", data, first);
    /* the second one's name is what its header says, else it would hardly ever be looked at */
    if (size > SEGMENT + SEGMENT_HEADER_BYTES) {
        struct segment_header header;
        const char *why;
        char path[64];
        uint64_t base = segment_header_decode(data + SEGMENT, &header, &why) == ST_OK ? header.base_lsn : 2;
        (void)snprintf(path, sizeof path, "/j/%016llx.mrj", (unsigned long long)base);
        if (base != 1) put_file(disk, path, data + SEGMENT, size - SEGMENT);
    }
    (void)read_through(&config);
    enum status status = journal_open(&config, &journal, &report, &err);
    if (status != ST_OK && err.message[0] == 0) abort();
    if (status != ST_OK) {
        if (journal_repair(&config, &repaired, &err) == ST_OK) status = journal_open(&config, &journal, &report, &err);
    }
    if (status == ST_OK) {
        journal_close(journal);
        /* the first segment may be damaged: a start reads the last one alone */
        if (!read_through(&config) && size <= SEGMENT) abort();
    }
    sim_disk_destroy(sim);
    return 0;
}

/* A journal of two segments, as the writer makes it. */
static size_t whole_journal(uint8_t *out, uint64_t *random)
{
    struct sim_disk *sim = sim_disk_create(2);
    struct journal_config config = config_on(sim);
    struct journal *journal;
    struct journal_report report;
    struct error err;
    if (journal_open(&config, &journal, &report, &err) != ST_OK) abort();
    struct journal_stats stats;
    uint32_t handles[4];
    uint64_t number = random_next(random) << 16;
    while (journal_segment_lsn(journal) == 1 || random_next(random) % 8 != 0) {
        struct open_counts counts = {.in_total = 5, .choices = 1};
        for (int i = 0; i < 4; i++) {
            struct charge charge = {.account = 1 + number % 7, .tenant = "t", .model = "m"};
            number++;
            memcpy(charge.charge_id, &number, sizeof number);
            if (journal_put_open(journal, &charge, &counts, &handles[i]) != ST_OK) abort();
            struct step_count count = {handles[i], (uint32_t)i};
            if (journal_put_step(journal, &count, 1) != ST_OK) abort();
        }
        for (int i = 0; i < 4; i++) {
            struct record record = {.kind = RECORD_CHARGED, .in_total = 5, .out = (uint32_t)i};
            journal_stats_read(journal, &stats);
            bool stays = stats.open_requests < 12 && random_next(random) % 16 == 0;
            if (!stays && journal_put_final(journal, handles[i], &record) != ST_OK) abort();
        }
        if (random_next(random) % 64 == 0) { /* the second segment is of version 2 then */
            struct record record = {.charge = {.account = 1 + number % 7, .tenant = "t", .model = "m"},
                                    .energy = {.uj_decode = number & 0xffff, .pue_ppm = PUE_PPM_MIN}};
            memcpy(record.charge.charge_id, &number, sizeof number);
            if (journal_put_energy(journal, &record) != ST_OK) abort();
        }
        if (journal_commit(journal) != ST_OK) abort();
    }
    struct segment_info info[8];
    uint32_t count;
    if (journal_segments(config.disk, "/j", NULL, info, 8, &count, &err) != ST_OK) abort();
    for (uint32_t i = 0; i < 2; i++) {
        int fd = config.disk->open(config.disk->state, info[i].path, DISK_READ);
        if (disk_read_all(config.disk, fd, out + (size_t)i * SEGMENT, SEGMENT, 0) != ST_OK) abort();
        config.disk->close(config.disk->state, fd);
    }
    journal_close(journal);
    sim_disk_destroy(sim);
    return INPUT;
}

/* Checksums of the headers and of all frames, as far as their lengths lead. */
static void put_right(uint8_t *data, size_t size)
{
    for (size_t at = 0; at + SEGMENT_HEADER_BYTES < size; at += SEGMENT) {
        uint32_t crc = crc32c(data + at, SEGMENT_HEADER_BYTES - 4);
        memcpy(data + at + SEGMENT_HEADER_BYTES - 4, &crc, 4);
        size_t end = size - at < SEGMENT ? size : at + SEGMENT;
        for (size_t frame = at + SEGMENT_HEADER_BYTES; frame + FRAME_HEADER_BYTES <= end;) {
            uint64_t length = frame_length(data + frame);
            if (length < FRAME_HEADER_BYTES || frame + length > end) break;
            crc = crc32c(data + frame + 4, length - 4);
            memcpy(data + frame, &crc, 4);
            frame += frame_aligned(length);
        }
    }
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t size_max, unsigned seed)
{
    uint64_t random = seed;
    if (size_max < INPUT) return LLVMFuzzerMutate(data, size, size_max);
    if (size < SEGMENT || random_next(&random) % 64 == 0) size = whole_journal(data, &random);
    uint64_t way = random_next(&random) % 16;
    if (way == 0) return LLVMFuzzerMutate(data, size, size_max);
    size_t segment = random_next(&random) % 2 == 0 && size > SEGMENT + SEGMENT_HEADER_BYTES ? SEGMENT : 0;
    size_t at = segment + (way < 3 ? 0 : SEGMENT_HEADER_BYTES) + random_next(&random) % (way < 8 ? 160 : 40000);
    if (at + 64 > size) at = size - 64;
    LLVMFuzzerMutate(data + at, 1 + random_next(&random) % 63, 64);
    if (way != 15) put_right(data, size);
    return size;
}
