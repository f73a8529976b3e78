/* The journal on a disk that stops at every call: appends, commits in all three modes, rotation, spares, retirement,
 * both folders, failing calls; then a kill or a power loss with a random part of what was not synced, often a second
 * one during the start; then what is there is held against what was promised (journal_model.h).
 *
 *   journal_crash [--points N] [--seed S] [--plant B]
 *
 * Each seed is one folder that lives through many crashes; every stop is one crash point. Deterministic from the seed,
 * which a failure prints. With --plant (journal_crash_planted) the exit code is 0 when the planted bug was found. */
#include "tests/billing_sim/journal_model.h"

#include "runtime/base/check.h"
#include "runtime/base/mem.h"
#include "runtime/base/random.h"
#include "server/billing/journal_planted.h"
#include "tests/support/journal_peek.h"
#include "tests/support/sim_disk.h"

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef MILLRACE_JOURNAL_PLANTED
enum journal_planted journal_planted_bug;
#endif

enum { OPENS_MAX = 12, LIVES_A_SEED = 60 };

struct world {
    uint64_t seed, random, salts;
    uint64_t now_ns;
    int64_t now_us;
    struct sim_disk *sim;
    struct journal_config config;
    struct clock clock;
    struct journal *journal;
    struct model model;
    uint32_t open[OPENS_MAX]; /* numbers of open charges */
    uint32_t opens;
    bool promise_broken;
};

struct totals {
    uint64_t points, second, kills, lives, faults, failovers, rotations, deaths;
} totals;

static uint64_t world_now_ns(void *state)
{
    return ((struct world *)state)->now_ns += 1000;
}

static int64_t world_unix_us(void *state)
{
    return ((struct world *)state)->now_us += 1;
}

static void world_random(void *state, void *out, size_t length)
{
    uint8_t *bytes = out;
    for (size_t i = 0; i < length; i++) bytes[i] = (uint8_t)random_next(&((struct world *)state)->salts);
}

static uint64_t below(struct world *world, uint64_t bound)
{
    return random_next(&world->random) % bound;
}

/* ---- the workload ---- */

static void do_open(struct world *world)
{
    struct model *model = &world->model;
    const char *why;
    if (world->opens == OPENS_MAX || model->charges_count + 1 >= MODEL_CHARGES_MAX) return;
    if (!journal_accepts(world->journal, &why)) return;
    uint32_t number = model->charges_count;
    struct charge charge = {.account = 1 + below(world, 6), .weight_in_ppm = 1000000, .weight_out_ppm = 1000000};
    model_charge_id(number, charge.charge_id);
    (void)snprintf(charge.tenant, sizeof charge.tenant, "t%u", number % 7);
    struct open_counts counts = {.in_total = 10, .choices = 1, .opened_us = world->now_us, .opened_ns = world->now_ns};
    uint32_t handle;
    if (journal_put_open(world->journal, &charge, &counts, &handle) != ST_OK) return;
    model->charges[model->charges_count++] = (struct model_charge){.handle = handle};
    struct model_item *item = model_append(model, FRAME_OPEN);
    item->charge = number;
    item->a = handle;
    world->open[world->opens++] = number;
}

static void do_step(struct world *world)
{
    struct step_count counts[MODEL_STEPS_MAX];
    uint32_t numbers[MODEL_STEPS_MAX], count = 0;
    for (uint32_t i = 0; i < world->opens && count < MODEL_STEPS_MAX; i++) {
        if (below(world, 3) == 0) continue;
        numbers[count] = world->open[i];
        counts[count++] = (struct step_count){world->model.charges[world->open[i]].handle, (uint32_t)below(world, 300)};
    }
    if (count == 0) return;
    CHECK(journal_put_step(world->journal, counts, count) == ST_OK);
    struct model_item *item = model_append(&world->model, FRAME_STEP);
    item->steps_count = count;
    for (uint32_t i = 0; i < count; i++) {
        item->steps[i] = counts[i];
        item->step_charges[i] = numbers[i];
        world->model.charges[numbers[i]].ids += counts[i].ids;
    }
}

static void do_final(struct world *world)
{
    if (world->opens == 0) return;
    uint32_t at = (uint32_t)below(world, world->opens), number = world->open[at];
    struct model_charge *charge = &world->model.charges[number];
    struct record record = {.kind = RECORD_CHARGED,
                            .cause = CAUSE_STOP,
                            .in_total = 10,
                            .out = (uint32_t)charge->ids,
                            .opened_us = world->now_us,
                            .ended_us = world->now_us,
                            .choices = 1};
    CHECK(journal_put_final(world->journal, charge->handle, &record) == ST_OK);
    struct model_item *item = model_append(&world->model, FRAME_FINAL);
    item->charge = number;
    item->a = record.out;
    item->b = record.pseq;
    world->open[at] = world->open[--world->opens];
}

static void do_record(struct world *world)
{
    bool grant = below(world, 2) == 0;
    struct record record = {
        .kind = grant ? RECORD_GRANT : RECORD_RELEASE, .account = 1 + below(world, 6), .valid_ms = grant ? 1000 : 0};
    CHECK(journal_put_record(world->journal, &record) == ST_OK);
    struct model_item *item = model_append(&world->model, grant ? FRAME_GRANT : FRAME_RELEASE);
    item->a = record.account;
    item->b = record.pseq;
}

/* Of any charge there was: the journal does not ask. The first in a segment of version 1 ends that segment. */
static void do_energy(struct world *world)
{
    struct model *model = &world->model;
    if (model->charges_count == 0) return;
    uint32_t number = (uint32_t)below(world, model->charges_count);
    struct record record = {.charge = {.account = 1 + below(world, 6)},
                            .energy = {.slot_ms = world->now_us / 1000,
                                       .uj_decode = below(world, UINT64_C(1) << 40),
                                       .pue_ppm = PUE_PPM_MIN}};
    model_charge_id(number, record.charge.charge_id);
    CHECK(journal_put_energy(world->journal, &record) == ST_OK);
    struct model_item *item = model_append(model, FRAME_ENERGY);
    item->charge = number;
    item->a = record.energy.uj_decode;
    item->b = record.pseq;
}

static void do_orders(struct world *world, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        struct order order = {.account = 1, .package = "p", .units = below(world, 1 << 30)};
        memset(order.id, 'o', ORDER_ID_MAX);
        CHECK(journal_put_order(world->journal, &order) == ST_OK);
        model_append(&world->model, FRAME_ORDER)->a = order.units;
    }
}

static void do_account(struct world *world)
{
    uint64_t account = 1 + below(world, 9);
    CHECK(journal_put_account(world->journal, account, "close", below(world, 2) == 0) == ST_OK);
    model_append(&world->model, FRAME_ACCOUNT)->a = account;
}

/* A ledger confirms everything; then old segments may go. */
static void do_retire(struct world *world)
{
    for (uint64_t account = 1; account <= 6; account++) {
        uint16_t partition = record_partition(account);
        uint64_t pseq;
        uint8_t chain[CHAIN_BYTES];
        char hash8[HASH8_CHARS + 1];
        journal_partition(world->journal, partition, &pseq, chain);
        if (pseq == 0) continue;
        record_hash8(chain, hash8);
        CHECK(journal_put_ack(world->journal, partition, pseq, hash8) == ST_OK);
        struct model_item *item = model_append(&world->model, FRAME_ACK);
        item->a = partition;
        item->b = pseq;
    }
    (void)journal_retire(world->journal, world->now_us / 1000 + 10, 1);
}

/* What the journal has promised by now. `written`: a commit has returned, all was written. */
static void note_promises(struct world *world, bool written)
{
    struct model *model = &world->model;
    uint64_t durable = journal_durable_lsn(world->journal);
    if (durable > model->kill_safe) model->kill_safe = durable;
    if (world->journal->settled.lsn > model->power_safe) model->power_safe = world->journal->settled.lsn;
    if (written && model->appended > model->kill_safe) model->kill_safe = model->appended;
    if (written && world->config.mode == COMMIT_STEP && durable != model->appended) world->promise_broken = true;
}

static enum status do_commit(struct world *world)
{
    enum status status = journal_commit(world->journal);
    if (status == ST_OK) note_promises(world, true);
    return status;
}

/* Time passes; in group mode what was written before is durable then. */
static enum status do_tick(struct world *world)
{
    bool late = below(world, 2) == 0;
    uint64_t written = world->model.kill_safe;
    world->now_ns += late ? 50 * NS_PER_MS : NS_PER_MS;
    world->now_us += late ? 50000 : 1000;
    enum status status = journal_tick(world->journal);
    if (status == ST_OK) note_promises(world, false);
    if (status == ST_OK && late && world->config.mode == COMMIT_GROUP &&
        journal_durable_lsn(world->journal) < written) {
        world->promise_broken = true;
    }
    return status;
}

static void do_spare(struct world *world)
{
    if (!journal_spare_wanted(world->journal)) return;
    if (journal_spare_make(&world->config, NULL) == ST_OK) journal_spare_add(world->journal);
}

static enum status act(struct world *world)
{
    switch (below(world, 16)) {
    case 0:
    case 1: do_open(world); return ST_OK;
    case 2:
    case 3:
    case 4: do_step(world); return ST_OK;
    case 5:
    case 6: do_final(world); return ST_OK;
    case 7:
        if (below(world, 4) == 0) {
            do_energy(world);
        } else {
            do_record(world);
        }
        return ST_OK;
    case 8: do_orders(world, below(world, 8) == 0 ? 40 : 2); return ST_OK;
    case 9: do_account(world); return ST_OK;
    case 10:
        if (below(world, 6) == 0) do_retire(world);
        return ST_OK;
    case 11: do_spare(world); return ST_OK;
    case 12: return do_tick(world);
    default: return do_commit(world);
    }
}

/* ---- crashes ---- */

static bool fail(const struct world *world, const char *what)
{
    (void)printf("journal_crash: seed %" PRIu64 ", point %" PRIu64 ": %s\n", world->seed, totals.points, what);
    return false;
}

/* The process is gone. What must have survived from here on. */
static uint64_t crash(struct world *world, uint64_t safe)
{
    const struct model *model = &world->model;
    bool power = below(world, 3) != 0;
    totals.points += sim_disk_stopped(world->sim);
    totals.kills += !power;
    if (world->journal != NULL) journal_release(world->journal);
    world->journal = NULL;
    if (power) {
        sim_disk_power_loss(world->sim);
    } else {
        sim_disk_kill(world->sim);
    }
    uint64_t kept = power ? model->power_safe : model->kill_safe;
    return kept < safe ? kept : safe;
}

/* Starts until it works, with crashes and failing calls on the way. */
static bool start(struct world *world, uint64_t safe)
{
    struct journal_report report;
    struct error err = {""};
    for (int attempt = 0;; attempt++) {
        bool faulty = attempt < 4 && below(world, 8) == 0;
        if (attempt < 4 && below(world, 3) == 0) sim_disk_stop_after(world->sim, 1 + below(world, 30));
        if (faulty) {
            sim_disk_fault_after(world->sim, 1 + below(world, 20), (enum sim_fault)(1 + below(world, 4)));
            totals.faults++;
        }
        enum status status = journal_open(&world->config, &world->journal, &report, &err);
        bool stopped = sim_disk_stopped(world->sim);
        if (status == ST_OK && !stopped) break;
        if (status != ST_OK) world->journal = NULL;
        if (status != ST_OK && !stopped && !faulty) return fail(world, err.message);
        totals.second += stopped;
        safe = crash(world, safe);
    }
    sim_disk_stop_after(world->sim, 0);
    sim_disk_fault_after(world->sim, 0, SIM_FAULT_NONE);
    if (!model_check(&world->model, &world->config, &report, safe)) return fail(world, world->model.complaint);
    world->model.power_safe = world->model.kill_safe = world->model.appended;
    if (journal_durable_lsn(world->journal) != world->model.appended) return fail(world, "opened, but not durable");
    world->opens = 0;
    return true;
}

static bool life(struct world *world)
{
    struct journal_stats stats;
    totals.lives++;
    world->config.mode = (enum commit_mode)below(world, 3);
    journal_release(world->journal); /* the mode is chosen at a start */
    world->journal = NULL;
    sim_disk_kill(world->sim);
    if (!start(world, world->model.appended)) return false;
    sim_disk_full(world->sim, below(world, 20) == 0);
    sim_disk_stop_after(world->sim, 1 + below(world, below(world, 8) == 0 ? 300 : 40));
    if (below(world, 4) == 0) {
        sim_disk_fault_after(world->sim, 1 + below(world, 30), (enum sim_fault)(1 + below(world, 5)));
        totals.faults++;
    }
    enum status status = ST_OK;
    for (int i = 0; i < 2000 && !sim_disk_stopped(world->sim) && status == ST_OK; i++) status = act(world);
    if (status != ST_OK && !sim_disk_stopped(world->sim)) totals.deaths++;
    journal_stats_read(world->journal, &stats);
    if (!sim_disk_stopped(world->sim)) totals.failovers += stats.failovers;
    if (world->promise_broken) return fail(world, "a commit returned, and what its mode promises is not so");
    uint64_t safe = crash(world, UINT64_MAX);
    sim_disk_full(world->sim, false);
    if (!start(world, safe)) return false;
    const char *violation = sim_disk_violation(world->sim);
    return violation == NULL || fail(world, violation);
}

static bool run_seed(uint64_t seed, uint64_t points)
{
    static struct world world;
    world =
        (struct world){.seed = seed, .random = seed, .salts = ~seed, .now_ns = NS_PER_S, .now_us = 1790000000000000};
    world.sim = sim_disk_create(seed * 31 + 7);
    world.clock = (struct clock){.now_ns = world_now_ns, .unix_us = world_unix_us, .state = &world};
    world.config = (struct journal_config){.disk = sim_disk_table(world.sim),
                                           .clock = &world.clock,
                                           .folder = "/j",
                                           .fallback = seed % 2 == 0 ? "/k" : NULL,
                                           .uuid = "11111111-2222-3333-4444-555555555555",
                                           .mode = COMMIT_STEP,
                                           .group_ms = 20,
                                           .segment_bytes = 65536,
                                           .free_permille_min = 100};
    random_hook_set(world_random, &world);
    model_init(&world.model);
    bool fine = start(&world, 0);
    for (int i = 0; i < LIVES_A_SEED && fine && totals.points < points; i++) fine = life(&world);
    if (fine) totals.rotations += journal_segment_lsn(world.journal) > 1;
    if (world.journal != NULL) journal_release(world.journal);
    model_free(&world.model);
    sim_disk_destroy(world.sim);
    return fine;
}

static void on_abort(int signal_number)
{
    (void)signal_number;
    static const char text[] = "journal_crash: found by a CHECK\n";
    (void)!write(STDOUT_FILENO, text, sizeof text - 1);
    _exit(0);
}

int main(int argc, char **argv)
{
    uint64_t points = 21000, seed = 1;
    int planted = 0;
    for (int i = 1; i + 1 < argc; i += 2) {
        uint64_t value = strtoull(argv[i + 1], NULL, 10);
        if (strcmp(argv[i], "--points") == 0) points = value;
        if (strcmp(argv[i], "--seed") == 0) seed = value;
        if (strcmp(argv[i], "--plant") == 0) planted = (int)value;
    }
#ifdef MILLRACE_JOURNAL_PLANTED
    journal_planted_bug = (enum journal_planted)planted;
#endif
    if (planted != 0) (void)signal(SIGABRT, on_abort);
    bool fine = true;
    for (; fine && totals.points < points; seed++) fine = run_seed(seed, points);
    (void)printf("journal_crash: %" PRIu64 " crash points (%" PRIu64 " while starting, %" PRIu64 " kills), %" PRIu64
                 " lives, %" PRIu64 " failing calls, %" PRIu64 " failovers, %" PRIu64 " journals given up: %s\n",
                 totals.points, totals.second, totals.kills, totals.lives, totals.faults, totals.failovers,
                 totals.deaths, fine ? "no violation" : "VIOLATION");
    return (planted != 0) == fine;
}
