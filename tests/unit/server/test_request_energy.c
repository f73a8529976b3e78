/* Requests and their joules: notes add up to what the books gave them, slot by slot; ends wait for steps that are under
 * way; tables that are full; what a look tells before the windows are closed. */
#include "tests/unit/unit.h"

#include "runtime/base/mem.h"
#include "runtime/base/random.h"
#include "server/power/request_energy.h"

#include <math.h>
#include <string.h>

#define MS UINT64_C(1000000)
#define S  UINT64_C(1000000000)

static const struct energy_model device = {.joules = {1, 0.01, 0, 0.5, 0.001}};
static const struct request_energy_terms terms = {.now_ms = 900000, .pue_ppm = 1250000, .flags = ENERGY_NOTE_NO_HOST};

struct rig {
    struct attribution *at;
    struct request_energy *re;
    uint64_t now_ns, uj, changes;
    int64_t now_ms;
    struct energy_note noted; /* all of them together */
    uint32_t notes;
    int64_t slots[64];
};

static void start(struct rig *rig, uint32_t requests_max)
{
    struct error err;
    *rig = (struct rig){.now_ms = 900000};
    const struct attribution_config books = {
        .accounts_max = 256, .steps_max = 512, .shares_max = 4096, .groups_max = 4};
    assert_int_equal(attribution_create(&books, &rig->at, &err), ST_OK);
    attribution_rates(rig->at, &(struct carbon_rates){.pue = 1.25, .green_w = 50, .mean_g = 360, .residual_g = 500});
    assert_int_equal(request_energy_create(requests_max, 4, &rig->re, &err), ST_OK);
    attribution_meter(rig->at, &(struct sensor_reading){.changes = ++rig->changes}, 100);
}

static void stop(struct rig *rig)
{
    request_energy_destroy(rig->re);
    attribution_destroy(rig->at);
}

static void begin(struct rig *rig, uint64_t id, bool billed)
{
    struct charge charge = {.account = 7, .part = (uint32_t)id, .model = "m", .tenant = "acme"};
    memcpy(charge.charge_id, &id, sizeof id);
    request_energy_begin(rig->re, id,
                         &(struct request_energy_who){
                             .tenant = (uint32_t)(id % 3), .tenant_name = "acme", .charge = billed ? &charge : NULL});
}

static void take(struct rig *rig)
{
    struct energy_note note;
    while (request_energy_take(rig->re, &note)) {
        assert_null(record_energy_wrong(&note.energy));
        assert_int_equal(note.energy.slot_ms % REQUEST_SLOT_MS, 0);
        rig->noted.energy.uj_prefill += note.energy.uj_prefill;
        rig->noted.energy.uj_decode += note.energy.uj_decode;
        rig->noted.energy.uj_idle_share += note.energy.uj_idle_share;
        rig->noted.energy.green_uj += note.energy.green_uj;
        rig->noted.energy.ugco2_loc += note.energy.ugco2_loc;
        rig->noted.energy.ugco2_mkt += note.energy.ugco2_mkt;
        rig->noted.energy.deferral_ms += note.energy.deferral_ms;
        if (rig->notes < 64) rig->slots[rig->notes] = note.energy.slot_ms;
        rig->notes++;
    }
}

/* 100 ms: a step of the ids, then the meter moves. */
static void step(struct rig *rig, const uint64_t *ids, uint32_t count)
{
    struct energy_share shares[16];
    for (uint32_t i = 0; i < count; i++)
        shares[i] = (struct energy_share){.request_id = ids[i], .decode_rows = 1, .decode_context = 100};
    attribution_step(rig->at, &device, rig->now_ns, rig->now_ns + 80 * MS, shares, count);
    rig->now_ns += 100 * MS;
    rig->now_ms += 100;
    rig->uj += 20000003;
    attribution_known(rig->at, rig->now_ns);
    attribution_meter(
        rig->at, &(struct sensor_reading){.energy_uj = rig->uj, .published_ns = rig->now_ns, .changes = ++rig->changes},
        100);
}

static void update(struct rig *rig)
{
    struct request_energy_terms now = terms;
    now.now_ms = rig->now_ms;
    request_energy_update(rig->re, rig->at, rig->now_ns, &now);
    take(rig);
}

/* Notes + those that are not billed + nobody's = the meter; over three price slots. */
static void test_request_energy_adds_up(void **state)
{
    (void)state;
    struct rig rig;
    uint64_t rng = 3, alive[8], count = 0, next_id = 1, unbilled_uj = 0;
    struct tenant_energy tenant, all = {.requests = 0};
    start(&rig, 64);
    for (uint32_t i = 0; i < 3000; i++) {
        if (count < 8 && random_next(&rng) % 3 == 0) {
            begin(&rig, next_id, next_id % 4 != 0);
            alive[count++] = next_id++;
        }
        step(&rig, alive, (uint32_t)count);
        if (count > 0 && random_next(&rng) % 4 == 0) {
            request_energy_end(rig.re, alive[0], 5, rig.now_ns);
            memmove(alive, alive + 1, --count * sizeof *alive);
        }
        if (i % 1000 == 999) rig.now_ms += 800000; /* to another slot */
        update(&rig);
    }
    for (uint32_t i = 0; i < count; i++) request_energy_end(rig.re, alive[i], 5, rig.now_ns);
    update(&rig);
    struct energy_books books;
    attribution_books(rig.at, &books);
    for (uint32_t next = 0; request_energy_tenant(rig.re, &next, &tenant);) {
        assert_string_equal(tenant.name, "acme");
        all.requests += tenant.requests;
        all.prefill_uj += tenant.prefill_uj;
        all.decode_uj += tenant.decode_uj;
        carbon_add(&all.carbon, &tenant.carbon);
    }
    struct request_energy_counts counts;
    request_energy_counts(rig.re, &counts);
    assert_int_equal(all.requests, next_id - 1 - counts.unbooked);
    assert_int_equal(all.decode_uj, books.decode_uj);
    assert_memory_equal(&all.carbon, &books.carbon_requests, sizeof all.carbon);
    assert_int_equal(books.decode_uj + books.idle_uj + books.paced_uj + books.unattributed_uj, books.meter_uj);
    assert_int_equal(books.meter_uj + books.pending_uj, rig.uj);
    unbilled_uj = all.decode_uj - rig.noted.energy.uj_decode;
    assert_true(unbilled_uj > all.decode_uj / 8 && unbilled_uj < all.decode_uj / 2); /* a quarter of the requests */
    assert_true(counts.alive == 0 && counts.unkept == 0 && rig.notes > 300);
    assert_true(rig.noted.energy.ugco2_loc > 0 && rig.noted.energy.green_uj > 0);
    stop(&rig);
}

/* One request over two slots gives two notes, and its deferral once; the end waits for the step under way. */
static void test_request_energy_slots_and_ends(void **state)
{
    (void)state;
    struct rig rig;
    const uint64_t one = 1;
    start(&rig, 8);
    begin(&rig, 1, true);
    step(&rig, &one, 1);
    update(&rig);
    rig.now_ms += 900000;
    update(&rig);
    step(&rig, &one, 1);
    request_energy_end(rig.re, 1, 5, rig.now_ns);
    struct request_energy_terms now = terms;
    now.now_ms = rig.now_ms;
    request_energy_update(rig.re, rig.at, rig.now_ns - 1, &now); /* a step that began before its end is under way */
    take(&rig);
    assert_int_equal(rig.notes, 0);
    step(&rig, &one, 1); /* a row that came to nothing is its own */
    update(&rig);
    assert_int_equal(rig.notes, 2);
    assert_true(rig.slots[1] == rig.slots[0] + REQUEST_SLOT_MS && rig.noted.energy.deferral_ms == 5);
    struct energy_books books;
    attribution_books(rig.at, &books);
    assert_int_equal(rig.noted.energy.uj_decode, books.decode_uj);
    assert_int_equal(rig.noted.energy.uj_idle_share, books.idle_shared_uj);
    assert_int_equal(books.unattributed_uj, 0);
    stop(&rig);
}

static void test_request_energy_full_and_early(void **state)
{
    (void)state;
    struct rig rig;
    struct request_energy_shown shown;
    struct request_energy_counts counts;
    const uint64_t two[2] = {1, 2};
    start(&rig, 2);
    for (uint64_t id = 1; id <= 3; id++) begin(&rig, id, true);
    request_energy_counts(rig.re, &counts);
    assert_true(counts.unkept == 1 && counts.alive == 2);
    assert_false(request_energy_look(rig.re, 3, &shown));
    request_energy_end(rig.re, 3, 5, 0);
    const struct energy_share share = {.request_id = 1, .prefill_tokens = 50};
    attribution_step(rig.at, &device, 0, 50 * MS, &share, 1);
    rig.now_ns = 50 * MS;
    update(&rig);
    assert_true(request_energy_look(rig.re, 1, &shown));
    assert_true(shown.uj == 0 && shown.prompts == 50 && fabs(shown.open_j - 1.5) < 1e-9); /* no window yet */
    step(&rig, two, 2);
    update(&rig);
    assert_true(request_energy_look(rig.re, 1, &shown));
    assert_true(shown.uj > 0 && shown.open_j == 0 && shown.rows == 1);
    request_energy_end(rig.re, 1, 5, rig.now_ns);
    request_energy_end(rig.re, 2, 5, rig.now_ns);
    update(&rig);
    begin(&rig, 4, true); /* their places are free again; it ends without a step */
    request_energy_end(rig.re, 4, 5, rig.now_ns);
    update(&rig);
    request_energy_counts(rig.re, &counts);
    assert_true(counts.alive == 0 && counts.unbooked == 1 && counts.ended == 2 && rig.notes == 2);
    stop(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_request_energy_adds_up),
        cmocka_unit_test(test_request_energy_slots_and_ends),
        cmocka_unit_test(test_request_energy_full_and_early),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
