/* Writes a random journal with a ledger in the process behind it, for reference.py to read: requests, grants, orders,
 * over several segments; ends in the middle, as kill -9 would, so that the next run has to recover.
 *
 *   journal_writer FOLDER SEED ROUNDS        prints ledger_dump of the ledger as it stands at the end (after recovery,
 * before the rounds, with ROUNDS 0) */
#include "runtime/base/clock.h"
#include "server/billing/ledger_store.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OPEN_MAX = 12, ACCOUNTS = 9 };

struct open_request {
    uint32_t handle, out;
    struct charge charge;
    uint32_t in_total, in_hit;
};

static struct journal *journal;
static uint64_t seed, charges;
static struct open_request open_requests[OPEN_MAX];
static uint32_t open_count;

static void need(bool fine, const char *what, const struct error *err)
{
    if (fine) return;
    fprintf(stderr, "journal_writer: %s: %s\n", what, err->message);
    _exit(2);
}

static uint64_t draw(uint64_t end)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (seed >> 33) % end;
}

static void put_open(void)
{
    struct open_request *request = &open_requests[open_count++];
    *request = (struct open_request){.in_total = (uint32_t)draw(3000) + 1};
    request->in_hit = (uint32_t)draw(request->in_total);
    struct charge *charge = &request->charge;
    *charge = (struct charge){.part = (uint32_t)draw(3),
                              .account = draw(ACCOUNTS) + 1,
                              .key = draw(100),
                              .mclass = (uint8_t)draw(4),
                              .price_version = 2,
                              .weight_in_ppm = draw(WEIGHT_PPM_MAX + 1),
                              .weight_hit_ppm = draw(1000000),
                              .weight_out_ppm = draw(5000000)};
    uint64_t id[2] = {++charges, seed};
    memcpy(charge->charge_id, id, sizeof id);
    snprintf(charge->tenant, sizeof charge->tenant, "tenant-%d", (int)draw(4));
    snprintf(charge->model, sizeof charge->model, "model/%d", (int)draw(3));
    struct open_counts counts = {
        .in_total = request->in_total, .in_hit = request->in_hit, .choices = 1, .opened_us = 5};
    need(journal_put_open(journal, charge, &counts, &request->handle) == ST_OK, "open", &(struct error){{0}});
}

static void put_steps(void)
{
    struct step_count counts[OPEN_MAX];
    for (uint32_t i = 0; i < open_count; i++) {
        counts[i] = (struct step_count){.handle = open_requests[i].handle, .ids = (uint32_t)draw(5)};
        open_requests[i].out += counts[i].ids;
    }
    if (open_count > 0) need(journal_put_step(journal, counts, open_count) == ST_OK, "step", &(struct error){{0}});
}

/* What was ended last, and which slot its energy stands in: energy follows its charge, once for a slot. */
static struct charge ended;
static int64_t ended_slot_ms;

static void put_final(void)
{
    const struct open_request *request = &open_requests[--open_count];
    struct record record = {.kind = draw(6) > 0 ? RECORD_CHARGED : RECORD_WAIVED,
                            .in_total = request->in_total,
                            .in_hit = request->in_hit,
                            .out = request->out,
                            .choices = 1,
                            .opened_us = 5,
                            .first_us = 6,
                            .ended_us = clock_unix_us(clock_system()),
                            .duration_us = 9};
    record.cause = record.kind == RECORD_CHARGED ? CAUSE_LENGTH : CAUSE_PLATFORM_ERROR;
    if (record.kind == RECORD_CHARGED) {
        record.units =
            charge_units(&request->charge, request->in_total - request->in_hit, request->in_hit, request->out);
    }
    need(journal_put_final(journal, request->handle, &record) == ST_OK, "final", &(struct error){{0}});
    ended = request->charge;
    ended_slot_ms = record.ended_us / 900000000 * 900000;
}

static void put_energy(void)
{
    struct record record = {.charge = ended,
                            .energy = {.slot_ms = ended_slot_ms,
                                       .deferral_ms = draw(100000),
                                       .uj_prefill = draw(UINT64_C(1) << 51),
                                       .uj_decode = draw(UINT64_C(1) << 51),
                                       .uj_host = draw(UINT64_C(1) << 51),
                                       .uj_idle_share = draw(UNITS_MAX),
                                       .green_uj = draw(UNITS_MAX),
                                       .ugco2_loc = draw(UNITS_MAX),
                                       .ugco2_mkt = draw(UNITS_MAX),
                                       .pue_ppm = PUE_PPM_MIN + (uint32_t)draw(1000000),
                                       .flags = (uint16_t)draw(ENERGY_NOTE_FLAGS_ALL + 1)}};
    need(journal_put_energy(journal, &record) == ST_OK, "energy", &(struct error){{0}});
    ended_slot_ms += 900000;
}

static void put_lease(void)
{
    struct record record = {.account = draw(ACCOUNTS) + 1, .mclass = (uint8_t)draw(4), .kind = RECORD_RELEASE};
    if (draw(4) > 0) {
        record.kind = RECORD_GRANT;
        record.want = draw(3) == 0 ? UNITS_MAX : draw(UINT64_C(1) << 40);
        record.least = draw(4) == 0 ? record.want : 0;
        record.valid_ms = draw(3000);
    }
    need(journal_put_record(journal, &record) == ST_OK, "record", &(struct error){{0}});
}

static void put_order(void)
{
    uint64_t now_ms = (uint64_t)(clock_unix_us(clock_system()) / 1000);
    struct order order = {.account = draw(ACCOUNTS) + 1,
                          .op = (enum package_op)draw(PACKAGE_OPS),
                          .units = draw(3) == 0 ? PACKAGE_UNITS_MAX - draw(9) : draw(UINT64_C(1) << 42),
                          .priority = draw(3),
                          .class_mask = draw(2) == 0 ? UNITS_MAX : draw(16),
                          .created_ms = now_ms};
    if (order.op == PACKAGE_REAP) order.units = draw(2000);
    if (draw(2) == 0) order.effective_ms = now_ms + draw(400);
    if (draw(2) == 0) order.expires_ms = now_ms + draw(400);
    snprintf(order.id, sizeof order.id, "o%d", (int)draw(300));
    snprintf(order.package, sizeof order.package, "p%d", (int)draw(12));
    need(journal_put_order(journal, &order) == ST_OK, "order", &(struct error){{0}});
}

static void put_account(void)
{
    char id[16];
    snprintf(id, sizeof id, "c%d", (int)draw(40));
    need(journal_put_account(journal, draw(ACCOUNTS) + 1, id, draw(3) > 0) == ST_OK, "account", &(struct error){{0}});
}

static void put_round(void)
{
    if (open_count < OPEN_MAX && draw(3) > 0) put_open();
    put_steps();
    if (open_count > 0 && draw(2) == 0) put_final();
    if (ended_slot_ms > 0 && draw(2) == 0) put_energy();
    if (draw(3) == 0) put_lease();
    if (draw(4) == 0) put_order();
    if (draw(20) == 0) put_account();
}

static void print_dump(const struct ledger_store *store)
{
    struct buf text;
    buf_init(&text, 0);
    ledger_dump(ledger_store_ledger(store), &text);
    fwrite(text.data, 1, text.length, stdout);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    if (argc != 4) return 2;
    seed = strtoull(argv[2], NULL, 10);
    charges = seed << 32;
    unsigned long rounds = strtoul(argv[3], NULL, 10);
    struct error err = {{0}};
    const struct journal_config config = {.disk = disk_system(),
                                          .clock = clock_system(),
                                          .folder = argv[1],
                                          .uuid = "11111111-2222-3333-4444-555555555555",
                                          .mode = COMMIT_WRITE,
                                          .segment_bytes = 65536};
    struct journal_report report;
    need(journal_open(&config, &journal, &report, &err) == ST_OK, "journal_open", &err);
    const struct ledger_store_config kept = {.disk = config.disk, .folder = config.folder, .uuid = config.uuid};
    struct ledger_store *store;
    struct ledger_store_report found;
    need(ledger_store_open(&kept, journal_durable_lsn(journal), &store, &found, &err) == ST_OK, "ledger_store_open",
         &err);
    for (unsigned long i = 0; i < rounds; i++) {
        put_round();
        need(journal_commit(journal) == ST_OK, "commit", &err);
        need(ledger_store_follow(store, journal_durable_lsn(journal), NULL, &err) == ST_OK, "follow", &err);
        if (ledger_store_snapshot_wanted(store, journal_segment_lsn(journal))) {
            need(ledger_store_snapshot(store, NULL, &err) == ST_OK, "snapshot", &err);
        }
    }
    need(ledger_check(ledger_store_ledger(store), &err), "ledger_check", &err);
    print_dump(store);
    _exit(0); /* nothing is closed */
}
