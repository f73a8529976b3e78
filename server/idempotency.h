/* Idempotency-Key: a request that is sent again is answered from the first one, or waits for it; it is billed once.
 *
 *   begin --> NEW: runs --> keep (its bytes, as they are sent) --> done --+--> answered from memory
 *               |                          \-- forget: nothing was billed |
 *               +-- RUNS: a later one waits for done or forget            +--> body evicted, or a restart: GONE (409)
 *
 * K1  An entry is known by SHA-256 over account and key, cut to 16 bytes: as the journal has it (struct charge). An
 *     account can never meet another's.
 * K2  The same key with another method, path or body is REUSED (422), while the fingerprint is known.
 * K3  Answers are in memory alone, at most idempotency_bytes of them: those that ended first go first, and leave their
 *     id. An answer that does not fit at all leaves its id, too.
 * K4  At most idempotency_entries, for at most idempotency_keep_ms: the oldest that does not run goes. From then on its
 *     key is new. If all of them run, a new one is refused (FULL).
 * K5  After a restart, the journal's OPEN frames tell which keys were used (idempotency_recall): GONE.
 *
 * A request with a key goes on when its client leaves: it will come back for the answer, and is billed as a whole.
 *
 * Pure: now_ns (monotonic) goes in. One thread. */
#ifndef SERVER_IDEMPOTENCY_H
#define SERVER_IDEMPOTENCY_H

#include "runtime/base/buf.h"
#include "runtime/base/status.h"

#include <stdbool.h>
#include <stdint.h>

enum { IDEMPOTENCY_KEY_MAX = 255, IDEMPOTENCY_DIGEST_BYTES = 16, IDEMPOTENCY_PRINT_BYTES = 32, CALL_ID_MAX = 63 };

struct idempotency;
struct idempotency_entry;

enum idempotency_verdict {
    IDEMPOTENCY_NEW,    /* run it; the entry is the caller's until done or forget */
    IDEMPOTENCY_RUNS,   /* wait: begin again when the entry is done or forgotten */
    IDEMPOTENCY_DONE,   /* answer with idempotency_answer */
    IDEMPOTENCY_GONE,   /* it was answered, or cut off; the answer is not there: 409, idempotency_id */
    IDEMPOTENCY_REUSED, /* K2 */
    IDEMPOTENCY_FULL    /* K4, or no memory: 503 */
};

/* Whether a header's value may be a key: 1 to 255 printable ASCII bytes. */
bool idempotency_key_ok(const char *key);
void idempotency_digest(uint64_t account, const char *key, uint8_t digest[IDEMPOTENCY_DIGEST_BYTES]);
void idempotency_print(const char *method, const char *path, const void *body, size_t length,
                       uint8_t print[IDEMPOTENCY_PRINT_BYTES]);

NODISCARD enum status idempotency_create(struct idempotency **table);
void idempotency_destroy(struct idempotency *table);

/* *entry: of all but FULL; valid until the next begin, tick or keep, or for NEW until done or forget. */
enum idempotency_verdict idempotency_begin(struct idempotency *table, const uint8_t digest[IDEMPOTENCY_DIGEST_BYTES],
                                           const uint8_t print[IDEMPOTENCY_PRINT_BYTES], const char *call_id,
                                           uint64_t now_ns, struct idempotency_entry **entry);
/* More bytes of the answer. */
void idempotency_keep(struct idempotency *table, struct idempotency_entry *entry, const void *bytes, size_t length);
/* The answer is whole, or was cut off and billed: whole false, which keeps the id alone. */
void idempotency_done(struct idempotency *table, struct idempotency_entry *entry, bool stream, bool whole);
/* It was not billed: a retry is to run. */
void idempotency_forget(struct idempotency *table, struct idempotency_entry *entry);

/* Of DONE. stream: the bytes are server-sent events. */
const struct buf *idempotency_answer(const struct idempotency_entry *entry, bool *stream);
const char *idempotency_id(const struct idempotency_entry *entry); /* of the first request's answer */

/* K5: a key that an earlier process used age_ns ago. Never takes the place of a younger entry. */
void idempotency_recall(struct idempotency *table, const uint8_t digest[IDEMPOTENCY_DIGEST_BYTES], const char *call_id,
                        uint64_t age_ns, uint64_t now_ns);
void idempotency_tick(struct idempotency *table, uint64_t now_ns); /* every second or so: K4 */

uint64_t idempotency_bytes(const struct idempotency *table);
uint32_t idempotency_entries(const struct idempotency *table);

#endif
