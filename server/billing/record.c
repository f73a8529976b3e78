/* Records to bytes and back. What decode accepts, encode writes again byte for byte: there is one form of a record, so
 * its hash means it. Ranges are checked while reading, each against a named field, because these bytes come from a disk
 * that may lie, from an archive or from a Redis log. */
#include "server/billing/record.h"

#include "runtime/base/check.h"
#include "runtime/base/hash.h"
#include "server/billing/bytes.h"

#include <inttypes.h>

static const char HEX[] = "0123456789abcdef";

uint16_t record_partition(uint64_t account)
{
    uint8_t bytes[8];
    for (int i = 0; i < 8; i++) bytes[i] = (uint8_t)(account >> (8 * i));
    return (uint16_t)(hash_xxh64(bytes, sizeof bytes, 0) % PARTITIONS);
}

static void put_charge(struct byte_writer *to, const struct charge *charge)
{
    put_bytes(to, charge->charge_id, sizeof charge->charge_id);
    put_u32(to, charge->part);
    put_bytes(to, charge->request_id, sizeof charge->request_id);
    put_bytes(to, charge->idempotency, sizeof charge->idempotency);
    put_u64(to, charge->key);
    put_text8(to, charge->tenant);
    put_text8(to, charge->model);
    put_u32(to, charge->price_version);
    put_u64(to, charge->weight_in_ppm);
    put_u64(to, charge->weight_hit_ppm);
    put_u64(to, charge->weight_out_ppm);
}

static void put_counts(struct byte_writer *to, const struct record *record)
{
    const uint32_t counts[] = {record->in_total,    record->in_hit,       record->out,     record->out_reasoning,
                               record->out_trimmed, record->forced,       record->choices, record->recomputed,
                               record->spec_draft,  record->spec_rejected};
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) put_u32(to, counts[i]);
}

static void put_energy(struct byte_writer *to, const struct record *record)
{
    const struct record_energy *energy = &record->energy;
    const uint64_t amounts[] = {energy->deferral_ms,   energy->uj_prefill, energy->uj_decode, energy->uj_host,
                                energy->uj_idle_share, energy->green_uj,   energy->ugco2_loc, energy->ugco2_mkt};
    put_bytes(to, record->charge.charge_id, sizeof record->charge.charge_id);
    put_u32(to, record->charge.part);
    put_u64(to, record->charge.key);
    put_text8(to, record->charge.tenant);
    put_text8(to, record->charge.model);
    put_u32(to, record->month);
    put_i64(to, energy->slot_ms);
    for (size_t i = 0; i < sizeof amounts / sizeof amounts[0]; i++) put_u64(to, amounts[i]);
    put_u32(to, energy->pue_ppm);
    put_u16(to, energy->flags);
}

size_t record_encode(const struct record *record, uint8_t out[RECORD_BYTES_MAX])
{
    struct byte_writer to = {.bytes = out, .capacity = RECORD_BYTES_MAX};
    put_u8(&to, (uint8_t)record->kind);
    put_u8(&to, record->mclass);
    put_u16(&to, record->partition);
    put_u64(&to, record->pseq);
    put_u64(&to, record->account);
    put_i64(&to, record->t_ms);
    if (record->kind == RECORD_CHARGED || record->kind == RECORD_WAIVED) {
        put_charge(&to, &record->charge);
        put_u8(&to, (uint8_t)record->cause);
        put_u16(&to, record->flags);
        put_u32(&to, record->month);
        put_u32(&to, record->boot);
        put_i64(&to, record->opened_us);
        put_i64(&to, record->first_us);
        put_i64(&to, record->ended_us);
        put_i64(&to, record->duration_us);
        put_u64(&to, record->units);
        put_bytes(&to, record->h_ids, sizeof record->h_ids);
        put_counts(&to, record);
    } else if (record->kind == RECORD_GRANT) {
        put_u64(&to, record->want);
        put_u64(&to, record->least);
        put_u64(&to, record->valid_ms);
    } else if (record->kind == RECORD_ENERGY) {
        put_energy(&to, record);
    }
    put_bytes(&to, record->chain, CHAIN_BYTES);
    CHECK(!to.bad);
    return to.length;
}

size_t charge_encode(const struct charge *charge, uint8_t out[CHARGE_BYTES_MAX])
{
    struct byte_writer to = {.bytes = out, .capacity = CHARGE_BYTES_MAX};
    put_charge(&to, charge);
    CHECK(!to.bad);
    return to.length;
}

/* Reading: the first field out of its range is kept, for the message. */
struct field_check {
    const char *field;
    size_t offset;
};

static void need(struct field_check *check, const struct byte_reader *from, bool fine, const char *field)
{
    if ((!fine || from->bad) && check->field == NULL) {
        check->field = field;
        check->offset = from->offset;
    }
}

static void get_charge(struct byte_reader *from, struct charge *charge, struct field_check *check)
{
    get_copy(from, charge->charge_id, sizeof charge->charge_id);
    charge->part = get_u32(from);
    get_copy(from, charge->request_id, sizeof charge->request_id);
    get_copy(from, charge->idempotency, sizeof charge->idempotency);
    charge->key = get_u64(from);
    need(check, from, true, "charge_id");
    get_text8(from, charge->tenant, sizeof charge->tenant);
    need(check, from, true, "tenant");
    get_text8(from, charge->model, sizeof charge->model);
    need(check, from, true, "model");
    charge->price_version = get_u32(from);
    charge->weight_in_ppm = get_u64(from);
    need(check, from, charge->weight_in_ppm <= WEIGHT_PPM_MAX, "weight_in_ppm");
    charge->weight_hit_ppm = get_u64(from);
    need(check, from, charge->weight_hit_ppm <= WEIGHT_PPM_MAX, "weight_hit_ppm");
    charge->weight_out_ppm = get_u64(from);
    need(check, from, charge->weight_out_ppm <= WEIGHT_PPM_MAX, "weight_out_ppm");
}

static int64_t get_wall(struct byte_reader *from, struct field_check *check, const char *field)
{
    int64_t wall_us = get_i64(from);
    need(check, from, wall_us >= 0 && wall_us <= WALL_US_MAX, field);
    return wall_us;
}

static uint32_t get_count(struct byte_reader *from, struct field_check *check, uint64_t max, const char *field)
{
    uint32_t count = get_u32(from);
    need(check, from, count <= max, field);
    return count;
}

static bool month_valid(uint32_t month)
{
    return month >= 197001 && month <= 999912 && month % 100 >= 1 && month % 100 <= 12;
}

static void get_usage(struct byte_reader *from, struct record *record, struct field_check *check)
{
    get_charge(from, &record->charge, check);
    record->charge.account = record->account;
    record->charge.mclass = record->mclass;
    uint8_t cause = get_u8(from);
    need(check, from, cause < CAUSES, "cause");
    record->cause = cause < CAUSES ? (enum cause)cause : CAUSE_STOP;
    record->flags = get_u16(from);
    need(check, from, (record->flags & ~RECORD_FLAGS_ALL) == 0, "flags");
    record->month = get_u32(from);
    need(check, from, month_valid(record->month), "month");
    record->boot = get_u32(from);
    record->opened_us = get_wall(from, check, "opened_us");
    record->first_us = get_wall(from, check, "first_us");
    record->ended_us = get_wall(from, check, "ended_us");
    record->duration_us = get_i64(from);
    need(check, from, record->duration_us >= 0, "duration_us");
    record->units = get_u64(from);
    need(check, from, record->units <= (record->kind == RECORD_CHARGED ? UNITS_MAX : 0), "units");
    get_copy(from, record->h_ids, sizeof record->h_ids);
    record->in_total = get_count(from, check, REQUEST_TOKENS_MAX, "in_total");
    record->in_hit = get_count(from, check, record->in_total, "in_hit");
    record->out = get_count(from, check, REQUEST_TOKENS_MAX - record->in_total, "out");
    record->out_reasoning = get_count(from, check, record->out, "out_reasoning");
    record->out_trimmed = get_count(from, check, record->out, "out_trimmed");
    record->forced = get_count(from, check, record->out, "forced");
    record->choices = get_count(from, check, UINT32_MAX, "choices");
    record->recomputed = get_count(from, check, UINT32_MAX, "recomputed");
    record->spec_draft = get_count(from, check, UINT32_MAX, "spec_draft");
    record->spec_rejected = get_count(from, check, record->spec_draft, "spec_rejected");
}

uint64_t record_energy_uj(const struct record_energy *energy)
{
    return energy->uj_prefill + energy->uj_decode + energy->uj_host;
}

const char *record_energy_wrong(const struct record_energy *energy)
{
    const struct {
        uint64_t amount;
        const char *field;
    } amounts[] = {{energy->deferral_ms, "deferral_ms"},     {energy->uj_prefill, "uj_prefill"},
                   {energy->uj_decode, "uj_decode"},         {energy->uj_host, "uj_host"},
                   {energy->uj_idle_share, "uj_idle_share"}, {energy->green_uj, "green_uj"},
                   {energy->ugco2_loc, "ugco2_loc"},         {energy->ugco2_mkt, "ugco2_mkt"}};
    if (energy->slot_ms < 0 || energy->slot_ms > WALL_US_MAX / 1000) return "slot_ms";
    for (size_t i = 0; i < sizeof amounts / sizeof amounts[0]; i++) {
        if (amounts[i].amount > UNITS_MAX) return amounts[i].field;
    }
    if (record_energy_uj(energy) > UNITS_MAX) return "uj_prefill + uj_decode + uj_host";
    if (energy->pue_ppm < PUE_PPM_MIN || energy->pue_ppm > PUE_PPM_MAX) return "pue_ppm";
    return (energy->flags & ~ENERGY_NOTE_FLAGS_ALL) != 0 ? "flags" : NULL;
}

static void get_energy(struct byte_reader *from, struct record *record, struct field_check *check)
{
    struct record_energy *energy = &record->energy;
    uint64_t *const amounts[] = {&energy->deferral_ms,   &energy->uj_prefill, &energy->uj_decode, &energy->uj_host,
                                 &energy->uj_idle_share, &energy->green_uj,   &energy->ugco2_loc, &energy->ugco2_mkt};
    record->charge.account = record->account;
    record->charge.mclass = record->mclass;
    get_copy(from, record->charge.charge_id, sizeof record->charge.charge_id);
    record->charge.part = get_u32(from);
    record->charge.key = get_u64(from);
    need(check, from, true, "charge_id");
    get_text8(from, record->charge.tenant, sizeof record->charge.tenant);
    need(check, from, true, "tenant");
    get_text8(from, record->charge.model, sizeof record->charge.model);
    need(check, from, true, "model");
    record->month = get_u32(from);
    need(check, from, month_valid(record->month), "month");
    energy->slot_ms = get_i64(from);
    for (size_t i = 0; i < sizeof amounts / sizeof amounts[0]; i++) *amounts[i] = get_u64(from);
    energy->pue_ppm = get_u32(from);
    energy->flags = get_u16(from);
    const char *wrong = record_energy_wrong(energy);
    need(check, from, wrong == NULL, wrong != NULL ? wrong : "energy");
}

static void get_head(struct byte_reader *from, struct record *record, struct field_check *check)
{
    uint8_t kind = get_u8(from);
    need(check, from, kind == 'F' || kind == 'W' || kind == 'G' || kind == 'R' || kind == 'E', "kind");
    record->kind = (enum record_kind)kind;
    record->mclass = get_u8(from);
    need(check, from, record->mclass < MODEL_CLASSES, "mclass");
    record->partition = get_u16(from);
    need(check, from, record->partition < PARTITIONS, "partition");
    record->pseq = get_u64(from);
    need(check, from, record->pseq >= 1 && record->pseq <= PSEQ_MAX, "pseq");
    record->account = get_u64(from);
    need(check, from, record->account >= 1 && record->account <= INT64_MAX, "account");
    if (check->field == NULL) {
        need(check, from, record->partition == record_partition(record->account), "partition of the account");
    }
    record->t_ms = get_i64(from);
    need(check, from, record->t_ms >= 0 && record->t_ms <= WALL_US_MAX / 1000, "t_ms");
}

enum status record_decode(const uint8_t *bytes, size_t length, struct record *record, struct error *err)
{
    struct byte_reader from = {.bytes = bytes, .length = length};
    struct field_check check = {0};
    struct record read = {0};
    get_head(&from, &read, &check);
    if (check.field == NULL && (read.kind == RECORD_CHARGED || read.kind == RECORD_WAIVED)) {
        get_usage(&from, &read, &check);
    } else if (check.field == NULL && read.kind == RECORD_GRANT) {
        read.want = get_u64(&from);
        need(&check, &from, read.want <= UNITS_MAX, "want");
        read.least = get_u64(&from);
        need(&check, &from, read.least <= UNITS_MAX, "least");
        read.valid_ms = get_u64(&from);
        need(&check, &from, read.valid_ms <= GRANT_VALID_MS_MAX, "valid_ms");
    } else if (check.field == NULL && read.kind == RECORD_ENERGY) {
        get_energy(&from, &read, &check);
    }
    get_copy(&from, read.chain, CHAIN_BYTES);
    need(&check, &from, from.offset == length, "length");
    if (check.field != NULL) {
        return error_set(err, ST_INVAL, "billing record: %s is not valid (byte %zu of %zu)", check.field, check.offset,
                         length);
    }
    *record = read;
    return ST_OK;
}

enum status charge_decode(const uint8_t *bytes, size_t length, size_t *offset, struct charge *charge, struct error *err)
{
    struct byte_reader from = {.bytes = bytes, .offset = *offset, .length = length, .bad = *offset > length};
    struct field_check check = {0};
    struct charge read = {0};
    get_charge(&from, &read, &check);
    if (check.field != NULL) {
        return error_set(err, ST_INVAL, "billing charge: %s is not valid (byte %zu of %zu)", check.field, check.offset,
                         length);
    }
    *offset = from.offset;
    *charge = read;
    return ST_OK;
}

static void chain_of(const uint8_t *bytes, size_t length, const uint8_t previous[CHAIN_BYTES],
                     uint8_t chain[CHAIN_BYTES])
{
    CHECK(length >= CHAIN_BYTES && length <= RECORD_BYTES_MAX);
    uint8_t both[CHAIN_BYTES + RECORD_BYTES_MAX];
    memcpy(both, previous, CHAIN_BYTES);
    memcpy(both + CHAIN_BYTES, bytes, length - CHAIN_BYTES);
    sha256(both, length, chain);
}

void record_seal(uint8_t *bytes, size_t length, const uint8_t previous[CHAIN_BYTES])
{
    uint8_t chain[CHAIN_BYTES];
    chain_of(bytes, length, previous, chain);
    memcpy(bytes + length - CHAIN_BYTES, chain, CHAIN_BYTES);
}

bool record_sealed(const uint8_t *bytes, size_t length, const uint8_t previous[CHAIN_BYTES])
{
    if (length < CHAIN_BYTES || length > RECORD_BYTES_MAX) return false;
    uint8_t chain[CHAIN_BYTES];
    chain_of(bytes, length, previous, chain);
    return memcmp(bytes + length - CHAIN_BYTES, chain, CHAIN_BYTES) == 0;
}

void record_hash8(const uint8_t chain[CHAIN_BYTES], char out[HASH8_CHARS + 1])
{
    for (int i = 0; i < HASH8_CHARS / 2; i++) {
        out[2 * i] = HEX[chain[i] >> 4];
        out[2 * i + 1] = HEX[chain[i] & 15];
    }
    out[HASH8_CHARS] = 0;
}

bool charge_fits(uint64_t prompt, uint64_t choices, uint64_t max_tokens)
{
    uint64_t out;
    return !__builtin_mul_overflow(choices, max_tokens, &out) && prompt <= REQUEST_TOKENS_MAX &&
           out <= REQUEST_TOKENS_MAX - prompt;
}

uint64_t charge_units(const struct charge *charge, uint64_t in_miss, uint64_t in_hit, uint64_t out)
{
    uint64_t a, b, c, sum;
    bool over = __builtin_mul_overflow(in_miss, charge->weight_in_ppm, &a);
    over |= __builtin_mul_overflow(in_hit, charge->weight_hit_ppm, &b);
    over |= __builtin_mul_overflow(out, charge->weight_out_ppm, &c);
    over |= __builtin_add_overflow(a, b, &sum);
    over |= __builtin_add_overflow(sum, c, &sum);
    return over || sum > UNITS_MAX ? UNITS_MAX : sum;
}

bool cause_is_charged(enum cause cause, bool unseen, bool unseen_waived)
{
    switch (cause) {
    case CAUSE_STOP:
    case CAUSE_LENGTH:
    case CAUSE_QUOTA_END:
    case CAUSE_ACCOUNT_STOP: return true;
    case CAUSE_CLIENT_GONE: return !(unseen && unseen_waived);
    case CAUSE_PLATFORM_CANCEL:
    case CAUSE_PLATFORM_ERROR:
    case CAUSE_NODE_CRASH: return false;
    }
    return false;
}

/* Days to a date: Hinnant, "chrono-Compatible Low-Level Date Algorithms", civil_from_days, for days >= 0. */
uint32_t record_month(int64_t wall_us, int32_t utc_offset_s)
{
    int64_t seconds = wall_us / 1000000 - (wall_us % 1000000 < 0) + utc_offset_s;
    if (seconds < 0) seconds = 0;
    if (seconds > WALL_US_MAX / 1000000) seconds = WALL_US_MAX / 1000000;
    uint64_t days = (uint64_t)seconds / 86400 + 719468; /* since 0000-03-01 */
    uint64_t era = days / 146097, day_of_era = days % 146097;
    uint64_t year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146096) / 365;
    uint64_t day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    uint64_t month_from_march = (5 * day_of_year + 2) / 153;
    uint64_t month = month_from_march < 10 ? month_from_march + 3 : month_from_march - 9;
    uint64_t year = era * 400 + year_of_era + (month <= 2);
    return (uint32_t)(year * 100 + month);
}

uint64_t account_number(const char *name)
{
    uint8_t digest[32];
    sha256(name, strlen(name), digest);
    uint64_t number = 0;
    for (int i = 0; i < 8; i++) number = number << 8 | digest[i];
    number &= INT64_MAX;
    return number == 0 ? 1 : number;
}
