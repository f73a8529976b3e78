/* A billing record: the one final fact about a request, about a lease, or about a request's energy in a price slot.
 * What the journal keeps, what a ledger applies, what is exported are these bytes and nothing else.
 *
 *   journal  --record_encode-->  FINAL | GRANT | RELEASE | ENERGY frame  --the same bytes-->  ledger, Redis log,
 * archive, audit
 *
 * Records of one producer and one partition form a gapless sequence (pseq 1, 2, 3 ...) and a hash chain: the last 32
 * bytes are SHA-256(chain of the record before || all bytes of this one before its chain). The first one's predecessor
 * is 32 zero bytes. So a record changed, left out, doubled or moved shows in every later one.
 *
 * No prompt and no output stands in a record (J6): h_ids is a hash over the output ids. Pure, any thread.
 *
 * Bytes (little endian, in this order, no padding; text8 is a length byte and that many bytes without controls):
 *   all   kind u8  mclass u8  partition u16  pseq u64  account u64  t_ms i64
 *   F W   charge_id 16  part u32  request_id 16  idempotency 16  key u64  tenant text8  model text8  price_version u32
 *         weight_in_ppm weight_hit_ppm weight_out_ppm u64  cause u8  flags u16  month u32  boot u32
 *         opened_us first_us ended_us duration_us i64  units u64  h_ids 16
 *         in_total in_hit out out_reasoning out_trimmed forced choices recomputed spec_draft spec_rejected u32
 *   G     want least valid_ms u64
 *   E     charge_id 16  part u32  key u64  tenant text8  model text8  month u32  slot_ms i64  deferral_ms u64
 *         uj_prefill uj_decode uj_host uj_idle_share green_uj ugco2_loc ugco2_mkt u64  pue_ppm u32  flags u16
 *   all   chain 32 */
#ifndef SERVER_BILLING_RECORD_H
#define SERVER_BILLING_RECORD_H

#include "runtime/base/status.h"
#include "scheduler/request.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { PARTITIONS = 256, MODEL_CLASSES = 53, CHAIN_BYTES = 32, CHARGE_ID_BYTES = 16, HASH8_CHARS = 16 };
enum { ACCOUNT_NAME_MAX = 64, MODEL_NAME_MAX = 255, RECORD_BYTES_MAX = 768, CHARGE_BYTES_MAX = 480 };
enum { RECORD_FLAGS_ALL = 31 };
/* What a weight may be at most, in parts per million (1,000 tokens for one), and a request's tokens: their product is
 * below 2^53. */
#define WEIGHT_PPM_MAX     UINT64_C(1000000000)
#define REQUEST_TOKENS_MAX UINT64_C(9000000)
#define UNITS_MAX          UINT64_C(9007199254740991)
#define PSEQ_MAX           UINT64_C(9007199254740991)
#define WALL_US_MAX        INT64_C(253402300799999999) /* the year 9999's end: what a month's six digits can say */
#define GRANT_VALID_MS_MAX UINT64_C(86400000)

#define PUE_PPM_MIN UINT32_C(1000000)
#define PUE_PPM_MAX UINT32_C(100000000)

enum record_kind {
    RECORD_CHARGED = 'F',
    RECORD_WAIVED = 'W',
    RECORD_GRANT = 'G',
    RECORD_RELEASE = 'R',
    RECORD_ENERGY = 'E'
};

enum record_flag {
    RECORD_MISMATCH = 1,   /* the counts of scheduler, stream and KV disagreed: the lowest was taken */
    RECORD_CLOCK = 2,      /* wall and monotonic time parted by more than a second */
    RECORD_INCOMPLETE = 4, /* closed after a crash, from what was durable */
    RECORD_UNSEEN = 8,     /* CLIENT_GONE before a byte of the body was sent */
    RECORD_ESTIMATED = 16, /* relayed, and broken off before the upstream told its counts: the least it can have been */
};

/* What is known of a charge when its request is first scheduled, and does not change: OPEN carries it, FINAL repeats
 * it. A call with several prompts is several charges with one charge_id and parts 0, 1, .. in their order. */
struct charge {
    uint8_t charge_id[CHARGE_ID_BYTES]; /* our UUIDv7; in hex the response's id */
    uint32_t part;
    uint8_t request_id[16];  /* SHA-256 of the client's x-request-id, cut; for looking up, never a key */
    uint8_t idempotency[16]; /* SHA-256 of account and Idempotency-Key, cut; zero: none */
    uint64_t account, key;   /* key 0: the server asks for none */
    char tenant[ACCOUNT_NAME_MAX + 1];
    char model[MODEL_NAME_MAX + 1];
    uint8_t mclass; /* model class, 0..52: which packages may pay */
    uint32_t price_version;
    uint64_t weight_in_ppm, weight_hit_ppm, weight_out_ppm; /* micro-tokens a token */
};

enum energy_note_flag {
    ENERGY_NOTE_ESTIMATED = 1, /* no meter of the device: by the energy model */
    ENERGY_NOTE_PARTIAL = 2,   /* some of its steps are nobody's: they were lost, or before the meter's first window */
    ENERGY_NOTE_NO_HOST = 4,   /* no meter of the host: uj_host is 0 for want of one */
    ENERGY_NOTE_NO_PUE = 8,    /* nobody told the PUE: 1 was taken */
    ENERGY_NOTE_NO_CO2 = 16,   /* nobody told gCO2 a kWh: ugco2_* are 0 for want of it */
    ENERGY_NOTE_MARGINAL = 32, /* gCO2 of the next kWh, not of the mean one */
    ENERGY_NOTE_FLAGS_ALL = 63
};

/* What a request used in one price slot. The request's energy is uj_prefill + uj_decode + uj_host, at the device and
 * the host, before PUE; uj_idle_share stands beside it (what idle time and pauses cost in full), green_uj and the
 * grams are of energy times PUE. Integers: microjoules, micrograms. */
struct record_energy {
    int64_t slot_ms;      /* when the slot began, Unix time */
    uint64_t deferral_ms; /* how long the request was held back for it */
    uint64_t uj_prefill, uj_decode, uj_host, uj_idle_share, green_uj, ugco2_loc, ugco2_mkt;
    uint32_t pue_ppm; /* PUE_PPM_MIN .. PUE_PPM_MAX; 1,000,000 is 1 */
    uint16_t flags;
};

/* The field of an energy that no record can hold, or NULL: each amount, and the energy, is at most UNITS_MAX. */
const char *record_energy_wrong(const struct record_energy *energy);
/* uj_prefill + uj_decode + uj_host. */
uint64_t record_energy_uj(const struct record_energy *energy);

struct record {
    enum record_kind kind;
    uint8_t mclass;
    uint16_t partition; /* record_partition(account) */
    uint64_t pseq;      /* the journal's to give */
    uint64_t account;
    int64_t t_ms; /* wall clock, when it was made */
    /* F, W; E: charge_id, part, account, key, tenant, model and mclass of the charge, the rest 0 */
    struct charge charge;
    enum cause cause;
    uint16_t flags;
    uint32_t month;                        /* yyyymm of t_end (E: of the slot) in the configured offset from UTC */
    uint32_t boot;                         /* the epoch that opened it */
    int64_t opened_us, first_us, ended_us; /* wall; first_us 0: no token */
    int64_t duration_us;                   /* monotonic, from scheduled to done */
    uint64_t units;                        /* W: 0 */
    uint8_t h_ids[16]; /* SHA-256 over each choice's count and ids, u32 little endian, in order; cut */
    uint32_t in_total, in_hit, out, out_reasoning, out_trimmed, forced, choices, recomputed, spec_draft, spec_rejected;
    /* G */
    uint64_t want, least, valid_ms;
    /* E */
    struct record_energy energy;
    uint8_t chain[CHAIN_BYTES];
};

/* XXH64 of the eight little-endian bytes of the number, seed 0, modulo PARTITIONS. */
uint16_t record_partition(uint64_t account);

/* Bytes of the record with its chain at the end: at most RECORD_BYTES_MAX. Little endian, fixed order, no padding. */
size_t record_encode(const struct record *record, uint8_t out[RECORD_BYTES_MAX]);
/* Reads what record_encode wrote; every field is checked against its range. ST_INVAL: anything else (err says which
 * field at which byte). */
NODISCARD enum status record_decode(const uint8_t *bytes, size_t length, struct record *record, struct error *err);

/* The part of a record that an OPEN frame carries too: `charge_id ... weight_out_ppm` of the table above. Appends at
 * most CHARGE_BYTES_MAX; decode reads it at *offset, which it moves. */
size_t charge_encode(const struct charge *charge, uint8_t out[CHARGE_BYTES_MAX]);
NODISCARD enum status charge_decode(const uint8_t *bytes, size_t length, size_t *offset, struct charge *charge,
                                    struct error *err);

/* Puts the chain at the end of encoded bytes, given that of the record before. */
void record_seal(uint8_t *bytes, size_t length, const uint8_t previous[CHAIN_BYTES]);
bool record_sealed(const uint8_t *bytes, size_t length, const uint8_t previous[CHAIN_BYTES]);
/* First eight bytes of a chain in hex, NUL-terminated: how a ledger knows which record it saw last. */
void record_hash8(const uint8_t chain[CHAIN_BYTES], char out[HASH8_CHARS + 1]);

/* Whether a record can hold the request however long its answers get: REQUEST_TOKENS_MAX. */
bool charge_fits(uint64_t prompt, uint64_t choices, uint64_t max_tokens);

/* Micro-tokens of a finished request, or of a hold: in_miss * w_in + in_hit * w_hit + out * w_out. Exact; UNITS_MAX
 * when it would pass that (which the limits on its factors exclude). */
uint64_t charge_units(const struct charge *charge, uint64_t in_miss, uint64_t in_hit, uint64_t out);

/* Whether a cause is charged; unseen_waived: the operator waives what no byte was sent of. Table: README.md, "Causes".
 */
bool cause_is_charged(enum cause cause, bool unseen, bool unseen_waived);

/* yyyymm of a wall time in the offset; for years 1970 to 9999. */
uint32_t record_month(int64_t wall_us, int32_t utc_offset_s);

/* The number of an account: SHA-256 of its name, the first eight bytes big endian, without the top bit. 0 never. */
uint64_t account_number(const char *name);

#endif
