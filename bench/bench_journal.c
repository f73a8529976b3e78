/* The journal on a real disk: what a commit costs in each mode, bytes a request, and how long a gibibyte takes.
 *
 *   bench_journal --folder DIR [--seconds S] [--gib G] [--streams N] [--json FILE]
 *
 * DIR is made and emptied again. Load: N streams (32) of 100 ids each; a step adds one id to each, its OPENs, STEP and
 * FINALs are one commit, without a pause in between. Reported: commits a second, median and 99th percentile of
 * journal_commit, the share of fdatasync, bytes a request (segments' checkpoints included), and what appending a step
 * costs without the commit. Then G gibibytes (1) of segments are written and left with N requests open; a start
 * (journal_open, which reads the last segment, closes those requests and syncs) and a reading of all frames
 * (journal_reader, each record decoded, as a ledger's start does) are timed, from the disk (the cache emptied with
 * POSIX_FADV_DONTNEED) and from the cache. */
#include "runtime/base/buf.h"
#include "runtime/base/mem.h"
#include "server/billing/journal_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { STREAMS_MAX = 4096, IDS = 100, SAMPLES_MAX = 1 << 20 };

static const char uuid[] = "11111111-2222-3333-4444-555555555555";
static double samples_us[SAMPLES_MAX];

static void die(const char *what)
{
    fprintf(stderr, "bench_journal: %s\n", what);
    exit(1);
}

struct load {
    struct journal *journal;
    uint32_t streams;
    uint32_t handles[STREAMS_MAX], ids[STREAMS_MAX];
    struct step_count counts[STREAMS_MAX];
    uint64_t opened, finals;
};

static double seconds_since(uint64_t start_ns)
{
    return (double)(clock_now_ns(clock_system()) - start_ns) / 1e9;
}

static void open_one(struct load *load, uint32_t stream)
{
    struct charge charge = {.account = 1 + load->opened % 1000,
                            .key = load->opened,
                            .price_version = 1,
                            .weight_in_ppm = 1000000,
                            .weight_hit_ppm = 100000,
                            .weight_out_ppm = 4000000};
    memcpy(charge.charge_id, &load->opened, sizeof load->opened);
    snprintf(charge.tenant, sizeof charge.tenant, "customer%03d", (int)(load->opened % 1000));
    snprintf(charge.model, sizeof charge.model, "SmolLM2-135M-Instruct");
    struct open_counts counts = {.in_total = 500,
                                 .in_hit = 400,
                                 .choices = 1,
                                 .opened_us = clock_unix_us(clock_system()),
                                 .opened_ns = clock_now_ns(clock_system())};
    if (journal_put_open(load->journal, &charge, &counts, &load->handles[stream]) != ST_OK) die("put_open");
    load->ids[stream] = IDS - (load->opened < load->streams ? (uint32_t)(load->opened * IDS / load->streams) : 0);
    load->opened++;
}

static void final_one(struct load *load, uint32_t stream)
{
    struct record record = {.kind = RECORD_CHARGED,
                            .in_total = 500,
                            .in_hit = 400,
                            .out = IDS,
                            .choices = 1,
                            .units = 500 * 1000000,
                            .opened_us = clock_unix_us(clock_system()),
                            .ended_us = clock_unix_us(clock_system())};
    if (journal_put_final(load->journal, load->handles[stream], &record) != ST_OK) die("put_final");
    load->finals++;
}

/* What the engine tells of one step. */
static void step(struct load *load)
{
    for (uint32_t i = 0; i < load->streams; i++) {
        if (load->ids[i] == 0) {
            if (load->opened >= load->streams) final_one(load, i);
            open_one(load, i);
        }
    }
    for (uint32_t i = 0; i < load->streams; i++) {
        load->counts[i] = (struct step_count){load->handles[i], 1};
        load->ids[i]--;
    }
    if (journal_put_step(load->journal, load->counts, load->streams) != ST_OK) die("put_step");
}

static void empty_folder_name(void *visitor, const char *name)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", (const char *)visitor, name);
    if (name[0] != '.') unlink(path);
}

static void empty_folder(const char *folder)
{
    char copy[512];
    snprintf(copy, sizeof copy, "%s", folder);
    disk_system()->list(NULL, folder, empty_folder_name, copy);
}

static void begin(struct load *load, const struct journal_config *config, uint32_t streams)
{
    struct journal_report report;
    struct error err;
    empty_folder(config->folder);
    *load = (struct load){.streams = streams};
    if (journal_open(config, &load->journal, &report, &err) != ST_OK) die(err.message);
    for (uint32_t i = 0; i < streams; i++) load->ids[i] = 0;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void run_mode(struct journal_config config, const char *name, uint32_t streams, double seconds, struct buf *json)
{
    static struct load load;
    const struct clock *clock = clock_system();
    begin(&load, &config, streams);
    uint64_t start_ns = clock_now_ns(clock), commits = 0;
    double put_s = 0;
    while (seconds_since(start_ns) < seconds) {
        uint64_t put_ns = clock_now_ns(clock);
        step(&load);
        uint64_t commit_ns = clock_now_ns(clock);
        if (journal_commit(load.journal) != ST_OK) die("commit");
        if (commits < SAMPLES_MAX) samples_us[commits] = (double)(clock_now_ns(clock) - commit_ns) / 1e3;
        put_s += (double)(commit_ns - put_ns) / 1e9;
        commits++;
        if (journal_spare_wanted(load.journal) && commits % 1024 == 0 && journal_spare_make(&config, NULL) == ST_OK) {
            journal_spare_add(load.journal);
        }
    }
    double took = seconds_since(start_ns);
    struct journal_stats stats;
    journal_stats_read(load.journal, &stats);
    uint64_t kept = commits < SAMPLES_MAX ? commits : SAMPLES_MAX;
    qsort(samples_us, kept, sizeof *samples_us, by_value);
    double requests = (double)commits * streams / IDS;
    buf_append_format(json,
                      "%s\n  {\"mode\": \"%s\", \"commits_per_s\": %.0f, \"ids_per_s\": %.0f, \"commit_us_p50\": %.1f, "
                      "\"commit_us_p99\": %.1f, \"put_us\": %.2f, \"sync_share\": %.3f, \"syncs\": %llu, "
                      "\"bytes_per_request\": %.0f}",
                      strcmp(name, "step") == 0 ? "" : ",", name, (double)commits / took,
                      (double)commits * streams / took, samples_us[kept / 2], samples_us[kept * 99 / 100],
                      put_s / (double)commits * 1e6, (double)stats.sync_ns_total / 1e9 / took,
                      (unsigned long long)stats.syncs, (double)stats.bytes / requests);
    printf("%-10s %8.0f commits/s  commit p50 %8.1f us  p99 %8.1f us  put %6.2f us  %4.0f B a request\n", name,
           (double)commits / took, samples_us[kept / 2], samples_us[kept * 99 / 100], put_s / (double)commits * 1e6,
           (double)stats.bytes / requests);
    journal_close(load.journal);
    empty_folder(config.folder);
}

static void uncache_name(void *visitor, const char *name)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", (const char *)visitor, name);
    int fd = open(path, O_RDONLY);
    if (fd < 0) return;
    (void)fdatasync(fd);
    (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    close(fd);
}

static double time_read(const struct journal_config *config, uint64_t *frames, uint64_t *records)
{
    struct journal_reader *reader;
    struct frame frame;
    struct error err = {""};
    uint64_t start_ns = clock_now_ns(clock_system());
    if (journal_reader_open(config->disk, config->folder, NULL, 0, &reader, &err) != ST_OK) die(err.message);
    enum status status;
    *frames = *records = 0;
    while ((status = journal_reader_next(reader, UINT64_MAX, &frame, &err)) == ST_OK) {
        struct record record;
        ++*frames;
        if (frame.type != FRAME_FINAL) continue;
        if (record_decode(frame.payload, frame.length, &record, &err) != ST_OK) die(err.message);
        ++*records;
    }
    if (status != ST_AGAIN) die(err.message);
    journal_reader_close(reader);
    return seconds_since(start_ns);
}

static void run_recovery(struct journal_config config, uint32_t streams, double gib, struct buf *json)
{
    static struct load load;
    char copy[512];
    struct journal_stats stats = {0};
    struct journal_report report;
    struct error err = {""};
    uint64_t frames, records;
    snprintf(copy, sizeof copy, "%s", config.folder);
    config.mode = COMMIT_WRITE;
    begin(&load, &config, streams);
    /* up to the end of a segment, so that the start has a whole one to read */
    uint64_t room = config.segment_bytes - (config.segment_bytes >> 5);
    while ((double)stats.bytes < gib * (1 << 30) || load.journal->position < room) {
        step(&load);
        if (journal_commit(load.journal) != ST_OK) die("commit");
        journal_stats_read(load.journal, &stats);
    }
    journal_release(load.journal); /* as kill -9 */
    for (int cached = 0; cached < 2; cached++) {
        if (!cached) disk_system()->list(NULL, config.folder, uncache_name, copy);
        uint64_t start_ns = clock_now_ns(clock_system());
        struct journal *journal;
        if (journal_open(&config, &journal, &report, &err) != ST_OK) die(err.message);
        double open_s = seconds_since(start_ns);
        journal_release(journal);
        if (!cached) disk_system()->list(NULL, config.folder, uncache_name, copy);
        double read_s = time_read(&config, &frames, &records);
        buf_append_format(
            json,
            ",\n  {\"mode\": \"recovery\", \"cached\": %s, \"gib\": %.2f, \"segments\": %u, \"open_s\": %.3f, "
            "\"closed\": %u, \"read_s\": %.3f, \"frames\": %llu, \"records\": %llu}",
            cached ? "true" : "false", (double)stats.bytes / (1 << 30), report.segments, open_s, report.closed, read_s,
            (unsigned long long)frames, (unsigned long long)records);
        printf("%-10s start %.3f s (%u requests closed), reading %.2f GiB %.3f s (%llu frames, %llu records)\n",
               cached ? "cached" : "from disk", open_s, report.closed, (double)stats.bytes / (1 << 30), read_s,
               (unsigned long long)frames, (unsigned long long)records);
    }
    empty_folder(config.folder);
}

int main(int argc, char **argv)
{
    const char *folder = NULL, *json_path = NULL;
    double seconds = 5, gib = 1;
    uint32_t streams = 32;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--folder") == 0) folder = argv[i + 1];
        if (strcmp(argv[i], "--json") == 0) json_path = argv[i + 1];
        if (strcmp(argv[i], "--seconds") == 0) seconds = strtod(argv[i + 1], NULL);
        if (strcmp(argv[i], "--gib") == 0) gib = strtod(argv[i + 1], NULL);
        if (strcmp(argv[i], "--streams") == 0) streams = (uint32_t)strtoul(argv[i + 1], NULL, 10);
    }
    if (folder == NULL || streams == 0 || streams > STREAMS_MAX) {
        die("usage: bench_journal --folder DIR [--seconds S] [--gib G] [--streams N] [--json FILE]");
    }
    struct journal_config config = {.disk = disk_system(),
                                    .clock = clock_system(),
                                    .folder = folder,
                                    .uuid = uuid,
                                    .group_ms = 10,
                                    .segment_bytes = 64 << 20};
    static const struct {
        enum commit_mode mode;
        const char *name;
    } modes[] = {{COMMIT_STEP, "step"}, {COMMIT_GROUP, "group:10"}, {COMMIT_WRITE, "write"}};
    struct buf json;
    buf_init(&json, 0);
    buf_append_format(&json, "{\"streams\": %u, \"ids_a_request\": %d, \"results\": [", streams, (int)IDS);
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
        config.mode = modes[i].mode;
        run_mode(config, modes[i].name, streams, seconds, &json);
    }
    if (gib > 0) run_recovery(config, streams, gib, &json);
    buf_append_text(&json, "\n]}\n");
    if (json_path != NULL) {
        FILE *file = fopen(json_path, "wb");
        if (file == NULL || fwrite(json.data, 1, json.length, file) != json.length || fclose(file) != 0) {
            die("the JSON file cannot be written");
        }
    }
    buf_free(&json);
    return rmdir(folder) == 0 || errno == ENOENT ? 0 : 1;
}
