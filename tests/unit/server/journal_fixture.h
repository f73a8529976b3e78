/* What the journal's tests share: a journal in a folder of its own on the machine's disk, and frames to put into it. */
#ifndef TESTS_UNIT_SERVER_JOURNAL_FIXTURE_H
#define TESTS_UNIT_SERVER_JOURNAL_FIXTURE_H

#include "tests/unit/unit.h"

#include "server/billing/journal_reader.h"
#include "server/billing/journal_repair.h"
#include "tests/support/journal_peek.h"

#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>

static const char ledger_uuid_text[] = "11111111-2222-3333-4444-555555555555";
static char fixture_folder[64], journal_folder[96], journal_fallback[96];

struct test_clock {
    uint64_t ns;
    int64_t us;
};
static struct test_clock test_clock = {.ns = 5000000000, .us = 1790000000000000};
static uint64_t test_now_ns(void *state)
{
    return ((struct test_clock *)state)->ns += 1000;
}
static int64_t test_unix_us(void *state)
{
    return ((struct test_clock *)state)->us += 1;
}
static const struct clock fixture_clock = {.now_ns = test_now_ns, .unix_us = test_unix_us, .state = &test_clock};

static inline struct journal_config fixture_config(void)
{
    return (struct journal_config){.disk = disk_system(),
                                   .clock = &fixture_clock,
                                   .folder = journal_folder,
                                   .uuid = ledger_uuid_text,
                                   .mode = COMMIT_STEP,
                                   .group_ms = 10,
                                   .segment_bytes = 65536,
                                   .free_permille_min = 0};
}

static inline void folder_remove(const char *folder)
{
    DIR *listing = opendir(folder);
    if (listing == NULL) return;
    const struct dirent *entry;
    while ((entry = readdir(listing)) != NULL) {
        char path[512];
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        unlink(path);
    }
    closedir(listing);
    rmdir(folder);
}

static inline int fixture_setup(void **state)
{
    (void)state;
    snprintf(fixture_folder, sizeof fixture_folder, "/tmp/millrace-journal-XXXXXX");
    if (mkdtemp(fixture_folder) == NULL) return -1;
    snprintf(journal_folder, sizeof journal_folder, "%s/journal", fixture_folder);
    snprintf(journal_fallback, sizeof journal_fallback, "%s/fallback", fixture_folder);
    return 0;
}

static inline int fixture_teardown(void **state)
{
    (void)state;
    folder_remove(journal_folder);
    folder_remove(journal_fallback);
    return rmdir(fixture_folder);
}

static inline struct charge fixture_charge(uint64_t number)
{
    struct charge charge = {.account = number % 5 + 1,
                            .key = 7,
                            .mclass = 3,
                            .price_version = 1,
                            .weight_in_ppm = 1000000,
                            .weight_hit_ppm = 100000,
                            .weight_out_ppm = 4000000};
    memcpy(charge.charge_id, &number, sizeof number);
    snprintf(charge.tenant, sizeof charge.tenant, "tenant%d", (int)(number % 5));
    snprintf(charge.model, sizeof charge.model, "SmolLM2-135M");
    return charge;
}

static inline uint32_t fixture_open(struct journal *journal, uint64_t number)
{
    struct charge charge = fixture_charge(number);
    struct open_counts counts = {
        .in_total = 100, .in_hit = 20, .choices = 1, .opened_us = test_clock.us, .opened_ns = test_clock.ns};
    uint32_t handle;
    assert_int_equal(journal_put_open(journal, &charge, &counts, &handle), ST_OK);
    return handle;
}

static inline void fixture_step(struct journal *journal, uint32_t handle, uint32_t ids)
{
    struct step_count count = {.handle = handle, .ids = ids};
    assert_int_equal(journal_put_step(journal, &count, 1), ST_OK);
}

static inline struct record fixture_final(struct journal *journal, uint32_t handle, uint32_t out)
{
    struct record record = {.kind = RECORD_CHARGED,
                            .cause = CAUSE_STOP,
                            .in_total = 100,
                            .in_hit = 20,
                            .out = out,
                            .choices = 1,
                            .opened_us = test_clock.us,
                            .ended_us = test_clock.us + 1000,
                            .duration_us = 1000,
                            .units = 80 * 1000000 + 20 * 100000 + out * UINT64_C(4000000)};
    assert_int_equal(journal_put_final(journal, handle, &record), ST_OK);
    return record;
}

/* Energy of a charge in a slot: amounts that follow from `uj`. */
static inline struct record fixture_energy(struct journal *journal, uint64_t number, int64_t slot_ms, uint64_t uj)
{
    struct record record = {.charge = fixture_charge(number),
                            .energy = {.slot_ms = slot_ms,
                                       .uj_prefill = uj,
                                       .uj_decode = 2 * uj,
                                       .uj_host = 3,
                                       .uj_idle_share = uj / 2,
                                       .green_uj = uj / 3,
                                       .ugco2_loc = 7 * uj,
                                       .ugco2_mkt = 5 * uj,
                                       .pue_ppm = 1250000,
                                       .flags = ENERGY_NOTE_NO_HOST}};
    assert_int_equal(journal_put_energy(journal, &record), ST_OK);
    return record;
}

static inline struct journal *fixture_start(const struct journal_config *config, struct journal_report *report)
{
    struct journal *journal = NULL;
    struct journal_report ignored;
    struct error err = {""};
    if (journal_open(config, &journal, report != NULL ? report : &ignored, &err) != ST_OK) fail_msg("%s", err.message);
    return journal;
}

/* Ends a journal as kill -9 would: what has been written stays, nothing is added. The descriptors stay open, but the
 * locks are given back. */
void journal_release(struct journal *journal);

#endif
