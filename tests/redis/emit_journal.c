/* A journal that is written and an emitter behind it, steered by lines on standard input. For the tests of this folder.
 *
 *   emit_journal URL FOLDER UUID [segment=BYTES] [window=RECORDS] [replicas=N] [ca=FILE] [accounts=N]
 *                [timeout=MS] [adopt=1]
 *
 * In:  write N [BATCH]     N requests over the accounts, one commit for each BATCH (default 32)
 *      energy N            N energy records over the accounts, in one commit
 *      grant ACCOUNT WANT  a grant
 *      wait SECONDS        until all is applied; "waited 1 ..." or, when time is over, "waited 0 ..."
 *      disk 0 | 1          the emitter can open no file of the journal; it can again
 *      energies            account:energy:idle:green:location:market:records ...
 *      state, sums (units by account), marks (own last pseq and hash8 by partition), stop SECONDS
 * Out: an answer a line, and in between what the hooks are told: "event ledger REACHABLE REFUSES REASON", "event
 * granted ACCOUNT PSEQ LEASED OPEN", "event stopped PARTITION REASON", "event directory VERSION LINES". */
#include "runtime/base/mem.h"
#include "server/billing/emitter.h"
#include "server/billing/ledger_redis.h"

#include "server/billing/journal.h"
#include "server/billing/journal_repair.h"
#include "tests/support/journal_peek.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { ACCOUNTS_MAX = 10000 };

struct world {
    struct journal *journal;
    struct emitter *emitter;
    struct billing_stats stats;
    uint32_t accounts;
    uint64_t units[ACCOUNTS_MAX + 1], written, energies;
    struct month_total energy[ACCOUNTS_MAX + 1];
    pthread_mutex_t mutex; /* guards the marks and standard output */
    uint64_t marks[PARTITIONS], acks;
    uint32_t lines;
    _Atomic bool disk_fails;
};
static struct world world = {.mutex = PTHREAD_MUTEX_INITIALIZER};

static void say(const char *format, ...) PRINTF_LIKE(1, 2);
static void say(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    pthread_mutex_lock(&world.mutex);
    vprintf(format, arguments);
    putchar('\n');
    fflush(stdout);
    pthread_mutex_unlock(&world.mutex);
    va_end(arguments);
}

static void on_granted(void *state, uint64_t account, uint8_t mclass, uint64_t pseq, uint64_t leased, bool open)
{
    (void)state, (void)mclass;
    say("event granted %" PRIu64 " %" PRIu64 " %" PRIu64 " %d", account, pseq, leased, open);
}

static void on_state(void *state, bool reachable, bool refuses, const char *reason)
{
    (void)state;
    say("event ledger %d %d %s", reachable, refuses, reason);
}

static void on_applied(void *state, uint16_t partition, uint64_t hwm, const char *hash8)
{
    (void)state, (void)hash8;
    pthread_mutex_lock(&world.mutex);
    world.marks[partition] = hwm;
    world.acks++;
    pthread_mutex_unlock(&world.mutex);
}

static void on_stopped(void *state, uint16_t partition, enum emitter_stop stop)
{
    (void)state;
    say("event stopped %u %s", partition, stop == STOP_NONE ? "-" : emitter_stop_text(stop));
}

static void on_line(void *state, const char *line, size_t length)
{
    (void)state, (void)line, (void)length;
    world.lines++;
}

static void on_directory(void *state, uint64_t version)
{
    (void)state;
    say("event directory %" PRIu64 " %u", version, world.lines);
    world.lines = 0;
}

static void die(const char *what, const struct error *err)
{
    say("failed %s %s", what, err->message);
    _Exit(1);
}

static void commit(void)
{
    struct error err = {""};
    if (journal_commit(world.journal) != ST_OK) die("commit", &err);
    emitter_durable(world.emitter, journal_durable_lsn(world.journal));
}

static void write_request(uint64_t i)
{
    struct error err = {""};
    uint64_t account = 1 + i * 7919 % world.accounts;
    struct charge charge = {.account = account,
                            .price_version = 1,
                            .weight_in_ppm = 1000000,
                            .weight_hit_ppm = 100000,
                            .weight_out_ppm = 2000000,
                            .tenant = "t",
                            .model = "m"};
    memcpy(charge.charge_id, &i, sizeof i);
    int64_t now_us = clock_unix_us(clock_system());
    struct open_counts counts = {.in_total = 20 + (uint32_t)(i % 5),
                                 .in_hit = (uint32_t)(i % 5),
                                 .choices = 1,
                                 .opened_us = now_us,
                                 .opened_ns = clock_now_ns(clock_system())};
    uint32_t handle = 0;
    if (journal_put_open(world.journal, &charge, &counts, &handle) != ST_OK) die("open", &err);
    struct record record = {.kind = RECORD_CHARGED,
                            .t_ms = now_us / 1000,
                            .cause = CAUSE_STOP,
                            .in_total = counts.in_total,
                            .in_hit = counts.in_hit,
                            .out = 10 + (uint32_t)(i % 7),
                            .choices = 1,
                            .opened_us = now_us,
                            .first_us = now_us,
                            .ended_us = now_us};
    record.units = charge_units(&charge, record.in_total - record.in_hit, record.in_hit, record.out);
    if (journal_put_final(world.journal, handle, &record) != ST_OK) die("final", &err);
    world.units[account] += record.units;
    world.written++;
}

/* The emitter's disk: the machine's, but for files that cannot be opened. */
static int open_or_fail(void *state, const char *path, enum disk_open how)
{
    return atomic_load(&world.disk_fails) ? -EMFILE : disk_system()->open(state, path, how);
}

static void write_grant(uint64_t account, uint64_t want)
{
    struct error err = {""};
    struct record record = {.kind = RECORD_GRANT,
                            .account = account,
                            .t_ms = clock_unix_us(clock_system()) / 1000,
                            .want = want,
                            .valid_ms = 120000};
    if (journal_put_record(world.journal, &record) != ST_OK) die("grant", &err);
    commit();
    say("ok %" PRIu64, record.pseq);
}

static void write_energy(uint64_t i)
{
    struct error err = {""};
    uint64_t account = 1 + i * 104729 % world.accounts;
    struct record record = {.charge = {.account = account, .mclass = 3, .tenant = "t", .model = "m"},
                            .energy = {.slot_ms = clock_unix_us(clock_system()) / 1000,
                                       .uj_prefill = i * 1000003,
                                       .uj_decode = UINT64_C(1) << 51,
                                       .uj_host = i,
                                       .uj_idle_share = 3 * i,
                                       .green_uj = UNITS_MAX,
                                       .ugco2_loc = 7 * i,
                                       .ugco2_mkt = UNITS_MAX - i,
                                       .pue_ppm = PUE_PPM_MIN}};
    memcpy(record.charge.charge_id, &i, sizeof i);
    if (journal_put_energy(world.journal, &record) != ST_OK) die("energy", &err);
    month_add_energy(&world.energy[account], &record.energy);
    world.energies++;
}

static void print_energy(void)
{
    pthread_mutex_lock(&world.mutex);
    printf("energies");
    for (uint32_t i = 1; i <= world.accounts; i++) {
        const struct month_total *t = &world.energy[i];
        if (t->energy_records == 0) continue;
        printf(" %u:%" PRIu64 ":%" PRIu64 ":%" PRIu64 ":%" PRIu64 ":%" PRIu64 ":%" PRIu64, i, t->energy_uj, t->idle_uj,
               t->green_uj, t->ugco2_loc, t->ugco2_mkt, t->energy_records);
    }
    printf("\n");
    fflush(stdout);
    pthread_mutex_unlock(&world.mutex);
}

static void show(const char *word, int value)
{
    struct emitter_view view;
    emitter_look(world.emitter, &view);
    pthread_mutex_lock(&world.mutex);
    uint64_t acks = world.acks;
    pthread_mutex_unlock(&world.mutex);
    say("%s %d reachable=%d refuses=%d stopped=%u unapplied=%" PRIu64 " applied=%" PRIu64 " duplicates=%" PRIu64
        " losses=%" PRIu64 " written=%" PRIu64 " acks=%" PRIu64,
        word, value, view.reachable, view.refuses, view.stopped, view.unapplied, view.applied, view.duplicates,
        view.losses, world.written, acks);
}

/* All that is durable is confirmed: by the marks that the hook has told, which are the journal's own last ones. */
static bool all_applied(void)
{
    struct emitter_view view;
    emitter_look(world.emitter, &view);
    if (!view.reachable || view.unapplied != 0) return false;
    bool all = true;
    for (uint16_t p = 0; p < PARTITIONS && all; p++) {
        uint64_t pseq = 0;
        uint8_t chain[CHAIN_BYTES];
        journal_partition(world.journal, p, &pseq, chain);
        pthread_mutex_lock(&world.mutex);
        all = world.marks[p] == pseq;
        pthread_mutex_unlock(&world.mutex);
    }
    return all;
}

static void wait_applied(double seconds)
{
    uint64_t until = clock_now_ns(clock_system()) + (uint64_t)(seconds * 1e9);
    struct timespec pause = {0, 2000000};
    while (!all_applied() && clock_now_ns(clock_system()) < until) nanosleep(&pause, NULL);
    show("waited", all_applied());
}

static void obey(char *line)
{
    char word[16] = "";
    uint64_t a = 0, b = 0;
    int n = sscanf(line, "%15s %" SCNu64 " %" SCNu64, word, &a, &b);
    if (strcmp(word, "write") == 0 && n >= 2) {
        if (n < 3) b = 32;
        for (uint64_t i = 0; i < a; i++) {
            write_request(world.written);
            if ((i + 1) % b == 0 || i + 1 == a) commit();
        }
        say("ok %" PRIu64, world.written);
    } else if (strcmp(word, "energy") == 0 && n >= 2) {
        for (uint64_t i = 0; i < a; i++) write_energy(world.energies);
        commit();
        say("ok %" PRIu64, world.energies);
    } else if (strcmp(word, "energies") == 0) {
        print_energy();
    } else if (strcmp(word, "grant") == 0 && n == 3) {
        write_grant(a, b);
    } else if (strcmp(word, "disk") == 0 && n == 2) {
        atomic_store(&world.disk_fails, a == 0);
        say("ok");
    } else if (strcmp(word, "wait") == 0) {
        wait_applied(strtod(line + 4, NULL));
    } else if (strcmp(word, "state") == 0) {
        show("state", 0);
    } else if (strcmp(word, "sums") == 0) {
        pthread_mutex_lock(&world.mutex);
        printf("sums");
        for (uint32_t i = 1; i <= world.accounts; i++) printf(" %u:%" PRIu64, i, world.units[i]);
        printf("\n");
        fflush(stdout);
        pthread_mutex_unlock(&world.mutex);
    } else {
        say("what?");
    }
}

int main(int argc, char **argv)
{
    if (argc < 4) return 2;
    struct redis_settings settings = {.url = argv[1], .password = getenv("MILLRACE_REDIS_PASSWORD")};
    uint64_t segment_bytes = 1 << 16;
    struct disk disk = *disk_system();
    disk.open = open_or_fail;
    struct emitter_config config = {.folder = argv[2], .disk = &disk, .clock = clock_system()};
    world.accounts = 50;
    for (int i = 4; i < argc; i++) {
        if (strncmp(argv[i], "ca=", 3) == 0) settings.ca_file = argv[i] + 3;
        if (strncmp(argv[i], "segment=", 8) == 0) segment_bytes = strtoull(argv[i] + 8, NULL, 10);
        if (strncmp(argv[i], "window=", 7) == 0) config.window = (uint32_t)strtoul(argv[i] + 7, NULL, 10);
        if (strncmp(argv[i], "replicas=", 9) == 0) config.replicas_min = (uint32_t)strtoul(argv[i] + 9, NULL, 10);
        if (strncmp(argv[i], "accounts=", 9) == 0) world.accounts = (uint32_t)strtoul(argv[i] + 9, NULL, 10);
    }
    struct error err = {""};
    static struct redis_target target;
    if (redis_target_read(&settings, &target, &err) != ST_OK) die("url", &err);
    const struct journal_config journal = {.disk = disk_system(),
                                           .clock = clock_system(),
                                           .folder = argv[2],
                                           .uuid = argv[3],
                                           .mode = COMMIT_WRITE,
                                           .group_ms = 1,
                                           .segment_bytes = segment_bytes};
    static struct journal_report report;
    for (int i = 4; i < argc; i++)
        if (strncmp(argv[i], "timeout=", 8) == 0) target.timeout_ms = (uint32_t)strtoul(argv[i] + 8, NULL, 10);
    for (int i = 4; i < argc; i++)
        if (strcmp(argv[i], "adopt=1") == 0 && journal_adopt(&journal, &config.producer, &err) != ST_OK)
            die("adopt", &err);
    if (journal_open(&journal, &world.journal, &report, &err) != ST_OK) die("journal", &err);
    config.target = &target;
    config.uuid = argv[3];
    config.producer = journal_producer(world.journal);
    config.epoch = journal_epoch(world.journal);
    config.durable_lsn = journal_durable_lsn(world.journal);
    config.stats = &world.stats;
    config.hooks = (struct emitter_hooks){NULL, on_granted, on_state, on_applied, on_stopped, on_line, on_directory};
    if (emitter_create(&config, &world.emitter) != ST_OK) die("emitter", &err);
    say("ready %016" PRIx64 " %" PRIu64, config.producer, config.epoch);
    static char line[256];
    while (fgets(line, sizeof line, stdin) != NULL) {
        if (strncmp(line, "stop", 4) == 0) {
            say("left %" PRIu64, emitter_stop(world.emitter, (uint64_t)(strtod(line + 4, NULL) * 1e9)));
            journal_close(world.journal);
            return 0;
        }
        obey(line);
    }
    (void)emitter_stop(world.emitter, 0);
    journal_close(world.journal);
    return 0;
}
