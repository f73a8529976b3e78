/* Records: every field at its limits and one past them, every truncation, every flipped bit, the chain, units, months.
 */
#include "tests/unit/unit.h"

#include "runtime/base/hash.h"
#include "server/billing/record.h"

#include <string.h>

/* Of a record with all the fields of a charge, those that an ENERGY record has, and its own. */
static struct record as_energy(const struct record *from)
{
    struct record record = {.kind = RECORD_ENERGY,
                            .mclass = from->mclass,
                            .partition = from->partition,
                            .pseq = from->pseq,
                            .account = from->account,
                            .t_ms = from->t_ms,
                            .month = from->month,
                            .charge = {.part = from->charge.part,
                                       .account = from->account,
                                       .key = from->charge.key,
                                       .mclass = from->mclass},
                            .energy = {.slot_ms = 1790000100000,
                                       .deferral_ms = 60000,
                                       .uj_prefill = 11000001,
                                       .uj_decode = 22000002,
                                       .uj_host = 3000003,
                                       .uj_idle_share = 4000004,
                                       .green_uj = 5000005,
                                       .ugco2_loc = 6000006,
                                       .ugco2_mkt = 7000007,
                                       .pue_ppm = 1300000,
                                       .flags = ENERGY_NOTE_PARTIAL | ENERGY_NOTE_MARGINAL}};
    memcpy(record.charge.charge_id, from->charge.charge_id, sizeof record.charge.charge_id);
    memcpy(record.charge.tenant, from->charge.tenant, sizeof record.charge.tenant);
    memcpy(record.charge.model, from->charge.model, sizeof record.charge.model);
    memcpy(record.chain, from->chain, CHAIN_BYTES);
    return record;
}

static struct record filled(enum record_kind kind)
{
    struct record record = {.kind = kind,
                            .mclass = 7,
                            .pseq = 0x0102030405,
                            .account = account_number("acct@example"),
                            .t_ms = 1790000000123};
    record.partition = record_partition(record.account);
    for (int i = 0; i < CHAIN_BYTES; i++) record.chain[i] = (uint8_t)(i * 7 + 1);
    if (kind == RECORD_GRANT) {
        record.want = 123456789;
        record.least = 1234;
        record.valid_ms = 120000;
    }
    if (kind == RECORD_GRANT || kind == RECORD_RELEASE) return record;
    struct charge *charge = &record.charge;
    for (int i = 0; i < 16; i++) {
        charge->charge_id[i] = (uint8_t)(i + 1);
        charge->request_id[i] = (uint8_t)(i + 101);
        charge->idempotency[i] = (uint8_t)(i + 201);
        record.h_ids[i] = (uint8_t)(255 - i);
    }
    charge->part = 3;
    charge->account = record.account;
    charge->mclass = record.mclass;
    charge->key = 0xf1f2f3f4f5f6f7f8;
    strcpy(charge->tenant, "tenant.one");
    strcpy(charge->model, "SmolLM2-135M-Instruct");
    charge->price_version = 4;
    charge->weight_in_ppm = 1000000;
    charge->weight_hit_ppm = 100000;
    charge->weight_out_ppm = 4000000;
    record.cause = CAUSE_LENGTH;
    record.flags = RECORD_MISMATCH | RECORD_CLOCK;
    record.month = 202609;
    record.boot = 17;
    record.opened_us = 1790000000000001;
    record.first_us = 1790000000100002;
    record.ended_us = 1790000000200003;
    record.duration_us = 200002;
    record.in_total = 1000;
    record.in_hit = 640;
    record.out = 77;
    record.out_reasoning = 20;
    record.out_trimmed = 2;
    record.forced = 5;
    record.choices = 2;
    record.recomputed = 300;
    record.spec_draft = 40;
    record.spec_rejected = 9;
    if (kind == RECORD_CHARGED) record.units = charge_units(charge, 360, 640, 77);
    if (kind == RECORD_ENERGY) record = as_energy(&record);
    return record;
}

static void same_bytes(const struct record *record)
{
    uint8_t bytes[RECORD_BYTES_MAX], again[RECORD_BYTES_MAX];
    size_t length = record_encode(record, bytes);
    struct record back;
    struct error err = {""};
    if (record_decode(bytes, length, &back, &err) != ST_OK) fail_msg("%s", err.message);
    assert_int_equal(record_encode(&back, again), length);
    assert_memory_equal(bytes, again, length);
    assert_int_equal(back.charge.account, record->kind == 'G' || record->kind == 'R' ? 0 : record->account);
    assert_memory_equal(&back.energy, &record->energy, sizeof back.energy);
    assert_string_equal(back.charge.model, record->charge.model);
    assert_string_equal(back.charge.tenant, record->charge.tenant);
    assert_int_equal(back.pseq, record->pseq);
    assert_int_equal(back.units, record->units);
    assert_int_equal(back.spec_rejected, record->spec_rejected);
    assert_int_equal(back.first_us, record->first_us);
    assert_int_equal(back.want, record->want);
    assert_memory_equal(back.chain, record->chain, CHAIN_BYTES);
}

static void refused(const struct record *record, const char *field)
{
    uint8_t bytes[RECORD_BYTES_MAX];
    size_t length = record_encode(record, bytes);
    struct record back = {.pseq = 99};
    struct error err = {""};
    assert_int_equal(record_decode(bytes, length, &back, &err), ST_INVAL);
    assert_int_equal(back.pseq, 99);
    if (strstr(err.message, field) == NULL) fail_msg("\"%s\" does not name %s", err.message, field);
}

static const enum record_kind kinds[] = {RECORD_CHARGED, RECORD_WAIVED, RECORD_GRANT, RECORD_RELEASE, RECORD_ENERGY};
enum { KINDS = sizeof kinds / sizeof kinds[0] };

static void test_record_round_trip(void **state)
{
    (void)state;
    for (size_t i = 0; i < KINDS; i++) {
        struct record record = filled(kinds[i]);
        same_bytes(&record);
    }
}

/* The layout is a contract with what was written before and with other programs: its bytes are fixed here. */
static void test_record_layout(void **state)
{
    (void)state;
    struct record record = filled(RECORD_GRANT);
    uint8_t bytes[RECORD_BYTES_MAX];
    assert_int_equal(record_encode(&record, bytes), 28 + 24 + 32);
    assert_int_equal(bytes[0], 'G');
    assert_int_equal(bytes[1], 7);
    assert_int_equal(bytes[2] | bytes[3] << 8, record.partition);
    assert_memory_equal(bytes + 4, "\x05\x04\x03\x02\x01\0\0\0", 8);
    assert_int_equal(bytes[28] | bytes[29] << 8 | bytes[30] << 16 | bytes[31] << 24, 123456789);
    record = filled(RECORD_CHARGED);
    size_t length = record_encode(&record, bytes);
    assert_int_equal(length, 28 + 60 + 1 + 10 + 1 + 21 + 4 + 24 + 1 + 2 + 4 + 4 + 32 + 8 + 16 + 40 + 32);
    assert_memory_equal(bytes + 28, record.charge.charge_id, 16);
    assert_int_equal(bytes[88], 10);
    assert_memory_equal(bytes + 89, "tenant.one", 10);
    assert_memory_equal(bytes + length - 32 - 4, "\x09\0\0\0", 4);
    assert_memory_equal(bytes + length - 32, record.chain, 32);
    record = filled(RECORD_ENERGY);
    length = record_encode(&record, bytes);
    assert_int_equal(length, 28 + 16 + 4 + 8 + 1 + 10 + 1 + 21 + 4 + 8 + 64 + 4 + 2 + 32);
    assert_int_equal(bytes[0], 'E');
    assert_memory_equal(bytes + 28, record.charge.charge_id, 16);
    assert_memory_equal(bytes + length - 32 - 6, "\x20\xd6\x13\0\x22\0", 6);    /* pue_ppm, flags */
    assert_memory_equal(bytes + length - 32 - 14, "\xc7\xcf\x6a\0\0\0\0\0", 8); /* ugco2_mkt */
    record = filled(RECORD_CHARGED);
    memset(record.charge.tenant, 't', ACCOUNT_NAME_MAX);
    record.charge.tenant[ACCOUNT_NAME_MAX] = 0;
    memset(record.charge.model, 'm', MODEL_NAME_MAX);
    record.charge.model[MODEL_NAME_MAX] = 0;
    length = record_encode(&record, bytes);
    assert_true(length <= RECORD_BYTES_MAX);
    same_bytes(&record);
}

#define AT_LIMIT(kind_, member, limit, past, name)                                                                     \
    do {                                                                                                               \
        struct record record = filled(kind_);                                                                          \
        record.member = (limit);                                                                                       \
        same_bytes(&record);                                                                                           \
        record.member = (past);                                                                                        \
        refused(&record, name);                                                                                        \
    } while (0)

static void test_record_every_field_at_its_limits(void **state)
{
    (void)state;
    const int64_t wall_max = 253402300799999999;
    AT_LIMIT(RECORD_RELEASE, mclass, 52, 53, "mclass");
    AT_LIMIT(RECORD_RELEASE, pseq, 1, 0, "pseq");
    AT_LIMIT(RECORD_RELEASE, pseq, PSEQ_MAX, PSEQ_MAX + 1, "pseq");
    AT_LIMIT(RECORD_RELEASE, t_ms, 0, -1, "t_ms");
    AT_LIMIT(RECORD_RELEASE, t_ms, wall_max / 1000, wall_max / 1000 + 1, "t_ms");
    AT_LIMIT(RECORD_GRANT, want, UNITS_MAX, UNITS_MAX + 1, "want");
    AT_LIMIT(RECORD_GRANT, least, UNITS_MAX, UNITS_MAX + 1, "least");
    AT_LIMIT(RECORD_GRANT, valid_ms, GRANT_VALID_MS_MAX, GRANT_VALID_MS_MAX + 1, "valid_ms");
    AT_LIMIT(RECORD_CHARGED, charge.weight_in_ppm, WEIGHT_PPM_MAX, WEIGHT_PPM_MAX + 1, "weight_in_ppm");
    AT_LIMIT(RECORD_CHARGED, charge.weight_hit_ppm, WEIGHT_PPM_MAX, WEIGHT_PPM_MAX + 1, "weight_hit_ppm");
    AT_LIMIT(RECORD_CHARGED, charge.weight_out_ppm, WEIGHT_PPM_MAX, WEIGHT_PPM_MAX + 1, "weight_out_ppm");
    AT_LIMIT(RECORD_WAIVED, cause, CAUSE_NODE_CRASH, CAUSE_NODE_CRASH + 1, "cause");
    AT_LIMIT(RECORD_WAIVED, flags, 31, 32, "flags");
    AT_LIMIT(RECORD_CHARGED, month, 197001, 196912, "month");
    AT_LIMIT(RECORD_CHARGED, month, 999912, 202613, "month");
    AT_LIMIT(RECORD_CHARGED, month, 202612, 202600, "month");
    AT_LIMIT(RECORD_CHARGED, opened_us, wall_max, wall_max + 1, "opened_us");
    AT_LIMIT(RECORD_CHARGED, first_us, 0, -1, "first_us");
    AT_LIMIT(RECORD_CHARGED, ended_us, wall_max, wall_max + 1, "ended_us");
    AT_LIMIT(RECORD_CHARGED, duration_us, 0, -1, "duration_us");
    AT_LIMIT(RECORD_CHARGED, duration_us, INT64_MAX, INT64_MIN, "duration_us");
    AT_LIMIT(RECORD_CHARGED, units, UNITS_MAX, UNITS_MAX + 1, "units");
    AT_LIMIT(RECORD_WAIVED, units, 0, 1, "units");
    AT_LIMIT(RECORD_CHARGED, in_total, REQUEST_TOKENS_MAX - 77, REQUEST_TOKENS_MAX + 1, "in_total");
    AT_LIMIT(RECORD_CHARGED, in_hit, 1000, 1001, "in_hit");
    AT_LIMIT(RECORD_CHARGED, out, REQUEST_TOKENS_MAX - 1000, REQUEST_TOKENS_MAX - 999, "out");
    AT_LIMIT(RECORD_CHARGED, out_reasoning, 77, 78, "out_reasoning");
    AT_LIMIT(RECORD_CHARGED, out_trimmed, 77, 78, "out_trimmed");
    AT_LIMIT(RECORD_CHARGED, forced, 77, 78, "forced");
    AT_LIMIT(RECORD_CHARGED, spec_rejected, 40, 41, "spec_rejected");
    AT_LIMIT(RECORD_ENERGY, month, 202612, 202613, "month");
    AT_LIMIT(RECORD_ENERGY, energy.slot_ms, wall_max / 1000, wall_max / 1000 + 1, "slot_ms");
    AT_LIMIT(RECORD_ENERGY, energy.slot_ms, 0, -1, "slot_ms");
    AT_LIMIT(RECORD_ENERGY, energy.deferral_ms, UNITS_MAX, UNITS_MAX + 1, "deferral_ms");
    AT_LIMIT(RECORD_ENERGY, energy.uj_prefill, UNITS_MAX - 25000005, UNITS_MAX + 1, "uj_prefill");
    AT_LIMIT(RECORD_ENERGY, energy.uj_decode, UNITS_MAX - 14000004, UNITS_MAX + 1, "uj_decode");
    AT_LIMIT(RECORD_ENERGY, energy.uj_host, UNITS_MAX - 33000003, UNITS_MAX + 1, "uj_host");
    AT_LIMIT(RECORD_ENERGY, energy.uj_host, UNITS_MAX - 33000003, UNITS_MAX - 33000002, "uj_decode + uj_host");
    AT_LIMIT(RECORD_ENERGY, energy.uj_idle_share, UNITS_MAX, UNITS_MAX + 1, "uj_idle_share");
    AT_LIMIT(RECORD_ENERGY, energy.green_uj, UNITS_MAX, UNITS_MAX + 1, "green_uj");
    AT_LIMIT(RECORD_ENERGY, energy.ugco2_loc, UNITS_MAX, UNITS_MAX + 1, "ugco2_loc");
    AT_LIMIT(RECORD_ENERGY, energy.ugco2_mkt, UNITS_MAX, UNITS_MAX + 1, "ugco2_mkt");
    AT_LIMIT(RECORD_ENERGY, energy.pue_ppm, PUE_PPM_MIN, PUE_PPM_MIN - 1, "pue_ppm");
    AT_LIMIT(RECORD_ENERGY, energy.pue_ppm, PUE_PPM_MAX, PUE_PPM_MAX + 1, "pue_ppm");
    AT_LIMIT(RECORD_ENERGY, energy.flags, 63, 64, "flags");
    struct record record = filled(RECORD_CHARGED);
    record.partition = (uint16_t)((record.partition + 1) % PARTITIONS);
    refused(&record, "partition");
    record = filled(RECORD_RELEASE);
    record.account = 0;
    record.partition = record_partition(0);
    refused(&record, "account");
    record.account = (uint64_t)INT64_MAX + 1;
    record.partition = record_partition(record.account);
    refused(&record, "account");
    record = filled(RECORD_CHARGED);
    record.charge.tenant[3] = '\n';
    refused(&record, "tenant");
    record = filled(RECORD_CHARGED);
    record.charge.model[0] = 0x7f;
    refused(&record, "model");
    record = filled(RECORD_CHARGED);
    record.kind = (enum record_kind)'X';
    refused(&record, "kind");
}

static void test_record_every_truncation_is_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < KINDS; i++) {
        struct record record = filled(kinds[i]), back;
        uint8_t bytes[RECORD_BYTES_MAX + 1] = {0};
        size_t length = record_encode(&record, bytes);
        for (size_t cut = 0; cut < length; cut++) {
            assert_int_equal(record_decode(bytes, cut, &back, NULL), ST_INVAL);
        }
        assert_int_equal(record_decode(bytes, length + 1, &back, NULL), ST_INVAL);
    }
}

/* A bit turned is refused, or is another record whose own bytes these are; and the chain always sees it. */
static void test_record_every_flipped_bit(void **state)
{
    (void)state;
    static const uint8_t previous[CHAIN_BYTES] = {1, 2, 3};
    for (size_t i = 0; i < KINDS; i++) {
        struct record record = filled(kinds[i]), back;
        uint8_t bytes[RECORD_BYTES_MAX], again[RECORD_BYTES_MAX];
        size_t length = record_encode(&record, bytes);
        record_seal(bytes, length, previous);
        assert_true(record_sealed(bytes, length, previous));
        for (size_t bit = 0; bit < length * 8; bit++) {
            bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
            assert_false(record_sealed(bytes, length, previous));
            if (record_decode(bytes, length, &back, NULL) == ST_OK) {
                assert_int_equal(record_encode(&back, again), length);
                assert_memory_equal(bytes, again, length);
            }
            bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
        }
    }
}

static void test_record_noise_never_crashes(void **state)
{
    (void)state;
    uint64_t random = 99;
    for (int round = 0; round < 200000; round++) {
        struct record record = filled(kinds[round & 3]), back;
        uint8_t bytes[RECORD_BYTES_MAX], again[RECORD_BYTES_MAX];
        size_t length = record_encode(&record, bytes);
        for (int k = 0; k < 1 + round % 5; k++) {
            random = random * 6364136223846793005u + 1442695040888963407u;
            bytes[(random >> 33) % length] = (uint8_t)(random >> 20);
        }
        if (record_decode(bytes, length, &back, NULL) != ST_OK) continue;
        assert_int_equal(record_encode(&back, again), length);
        assert_memory_equal(bytes, again, length);
    }
}

static void test_record_chain(void **state)
{
    (void)state;
    struct record record = filled(RECORD_GRANT);
    uint8_t bytes[RECORD_BYTES_MAX], joined[CHAIN_BYTES + RECORD_BYTES_MAX] = {9, 9}, want[32];
    uint8_t previous[CHAIN_BYTES] = {9, 9};
    size_t length = record_encode(&record, bytes);
    record_seal(bytes, length, previous);
    memcpy(joined + CHAIN_BYTES, bytes, length - CHAIN_BYTES);
    sha256(joined, length, want);
    assert_memory_equal(bytes + length - CHAIN_BYTES, want, 32);
    previous[0] = 8;
    assert_false(record_sealed(bytes, length, previous));
    assert_false(record_sealed(bytes, 31, previous));
    char text[HASH8_CHARS + 1];
    uint8_t chain[CHAIN_BYTES] = {0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0xff};
    record_hash8(chain, text);
    assert_string_equal(text, "0123456789abcdef");
}

static void test_record_charge_alone(void **state)
{
    (void)state;
    struct record record = filled(RECORD_CHARGED);
    uint8_t bytes[CHARGE_BYTES_MAX + 4] = {0}, whole[RECORD_BYTES_MAX];
    size_t length = charge_encode(&record.charge, bytes);
    record_encode(&record, whole);
    assert_memory_equal(bytes, whole + 28, length); /* the same bytes as in a record */
    struct charge charge;
    size_t offset = 0;
    assert_int_equal(charge_decode(bytes, length, &offset, &charge, NULL), ST_OK);
    assert_int_equal(offset, length);
    assert_string_equal(charge.model, record.charge.model);
    assert_int_equal(charge.weight_out_ppm, 4000000);
    for (size_t cut = 0; cut < length; cut++) {
        offset = 0;
        assert_int_equal(charge_decode(bytes, cut, &offset, &charge, NULL), ST_INVAL);
    }
    offset = length + 1;
    assert_int_equal(charge_decode(bytes, length, &offset, &charge, NULL), ST_INVAL);
}

static void test_record_units(void **state)
{
    (void)state;
    struct charge charge = {.weight_in_ppm = 1000000, .weight_hit_ppm = 100000, .weight_out_ppm = 4000000};
    assert_int_equal(charge_units(&charge, 360, 640, 77), 360000000u + 64000000u + 308000000u);
    assert_int_equal(charge_units(&charge, 0, 0, 0), 0);
    charge = (struct charge){
        .weight_in_ppm = WEIGHT_PPM_MAX, .weight_hit_ppm = WEIGHT_PPM_MAX, .weight_out_ppm = WEIGHT_PPM_MAX};
    assert_true(charge_units(&charge, REQUEST_TOKENS_MAX - 2, 1, 1) == REQUEST_TOKENS_MAX * WEIGHT_PPM_MAX);
    assert_true(REQUEST_TOKENS_MAX * WEIGHT_PPM_MAX < UNITS_MAX);
    assert_true(charge_units(&charge, UINT64_MAX, 0, 0) == UNITS_MAX);
    assert_true(charge_units(&charge, UINT64_MAX / WEIGHT_PPM_MAX, UINT64_MAX / WEIGHT_PPM_MAX, 0) == UNITS_MAX);
    assert_true(charge_units(&charge, 9007199, 0, 1) == UNITS_MAX);
}

static void test_record_holds_any_answer_of_what_fits(void **state)
{
    (void)state;
    assert_true(charge_fits(REQUEST_TOKENS_MAX, 16, 0));
    assert_true(charge_fits(REQUEST_TOKENS_MAX - 32, 16, 2));
    assert_false(charge_fits(REQUEST_TOKENS_MAX - 31, 16, 2));
    assert_false(charge_fits(1, 16, 1 << 20)); /* n = 16 in a context of a million */
    assert_false(charge_fits(REQUEST_TOKENS_MAX + 1, 1, 0));
    assert_false(charge_fits(1, UINT64_MAX, 2));
}

static void test_record_causes(void **state)
{
    (void)state;
    static const bool charged[CAUSES] = {true, true, true, true, true, false, false, false};
    for (int cause = 0; cause < CAUSES; cause++) {
        assert_int_equal(cause_is_charged((enum cause)cause, false, true), charged[cause]);
        assert_int_equal(cause_is_charged((enum cause)cause, true, false), charged[cause]);
        assert_int_equal(cause_is_charged((enum cause)cause, true, true), charged[cause] && cause != CAUSE_CLIENT_GONE);
    }
}

static void test_record_month(void **state)
{
    (void)state;
    assert_int_equal(record_month(0, 0), 197001);
    assert_int_equal(record_month(0, -3600), 197001); /* never before the first month */
    assert_int_equal(record_month(INT64_MIN, 0), 197001);
    assert_int_equal(record_month(INT64_MAX, 0), 999912);
    assert_int_equal(record_month(951868799999999, 0), 200002); /* 2000-02-29 23:59:59.999999 */
    assert_int_equal(record_month(951868800000000, 0), 200003);
    assert_int_equal(record_month(951868800000000, -1), 200002);
    assert_int_equal(record_month(951868799000000, 1), 200003);
    assert_int_equal(record_month(4107542399999999, 0), 210002); /* 2100 has no 29 February */
    assert_int_equal(record_month(4107542400000000, 0), 210003);
    assert_int_equal(record_month(1798761599999999, 0), 202612);
    assert_int_equal(record_month(1798761599999999, 8 * 3600), 202701);
    assert_int_equal(record_month(253402300799999999, 0), 999912);
    /* every month's first and last second, counted along the calendar */
    int64_t second = 0;
    for (uint32_t year = 1970; year < 2400; year++) {
        for (uint32_t month = 1; month <= 12; month++) {
            static const int days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
            bool leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            int length = days[month - 1] + (month == 2 && leap);
            assert_int_equal(record_month(second * 1000000, 0), year * 100 + month);
            second += (int64_t)length * 86400;
            assert_int_equal(record_month(second * 1000000 - 1, 0), year * 100 + month);
        }
    }
}

static void test_record_account_numbers(void **state)
{
    (void)state;
    /* printf default | sha256sum: 37a8eec1ce19687d ... */
    assert_true(account_number("default") == UINT64_C(0x37a8eec1ce19687d));
    assert_true(account_number("acct@example") <= INT64_MAX);
    assert_true(account_number("a") != account_number("b"));
    assert_int_equal(record_partition(1), hash_xxh64("\1\0\0\0\0\0\0\0", 8, 0) % 256);
    uint32_t seen[PARTITIONS] = {0};
    for (uint64_t account = 1; account <= 100000; account++) seen[record_partition(account)]++;
    for (int i = 0; i < PARTITIONS; i++) assert_in_range(seen[i], 200, 600);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_record_round_trip),
        cmocka_unit_test(test_record_layout),
        cmocka_unit_test(test_record_every_field_at_its_limits),
        cmocka_unit_test(test_record_every_truncation_is_refused),
        cmocka_unit_test(test_record_every_flipped_bit),
        cmocka_unit_test(test_record_noise_never_crashes),
        cmocka_unit_test(test_record_chain),
        cmocka_unit_test(test_record_charge_alone),
        cmocka_unit_test(test_record_units),
        cmocka_unit_test(test_record_holds_any_answer_of_what_fits),
        cmocka_unit_test(test_record_causes),
        cmocka_unit_test(test_record_month),
        cmocka_unit_test(test_record_account_numbers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
