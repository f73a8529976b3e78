/* The ledger in Redis: ledger.lua's calls as C calls.
 *
 *   ledger_client.h's table, for the admin endpoints and `millrace bill`     ledger_redis.c
 *   mr_apply's arguments and answer, for the emitter                        ledger_redis_apply.c
 *
 * L1-L4 are ledger.lua's; here nothing is computed and nothing is sent twice by itself: a call whose outcome is not
 * known is ST_IO or ST_TIMEOUT, and is safe to repeat with the same order id. Keys are ledger.lua's. A reply is checked
 * field by field: a Redis that answers nonsense is ST_PROTO, never a number. */
#ifndef SERVER_BILLING_LEDGER_REDIS_H
#define SERVER_BILLING_LEDGER_REDIS_H

#include "server/billing/ledger_client.h"
#include "server/billing/redis_link.h"

enum { LEDGER_KEY_MAX = 48, APPLY_SEND_MAX = 128 /* records of one call; ledger.lua takes APPLY_RECORDS_MAX */ };

/* Connects, loads the library where it is missing or older, and checks the settings that correct bills depend on.
 * ST_INVAL: they are wrong, or our rights do not suffice (err: what to set or to allow); ST_IO, ST_TIMEOUT, ST_PROTO:
 * no answer; ST_NOMEM. target is borrowed until close. */
NODISCARD enum status ledger_redis_open(const struct redis_target *target, struct ledger_client *client,
                                        struct error *err);

/* The same, but connects with the first call that needs it: for a server that must start without Redis. ST_NOMEM. */
NODISCARD enum status ledger_redis_create(const struct redis_target *target, struct ledger_client *client,
                                          struct error *err);

/* Writes all of a ledger into a Redis that holds none, as ledger.lua would have stored it; the log stays empty, and so
 * does the directory. ST_INVAL: something is there already (err: what), or as ledger_redis_open. Cut off on the way,
 * the Redis holds no usable ledger: empty it and repeat. */
NODISCARD enum status ledger_redis_fill(const struct redis_target *target, const struct ledger *ledger,
                                        struct error *err);

/* For redis_link_create: the library and the settings of a node. */
NODISCARD enum status ledger_redis_prepare(void *state, struct redis_link *link, uint32_t node, struct error *err);

/* "mr:{b007}:hwm" for name "hwm". */
void ledger_redis_key(uint16_t partition, const char *name, char key[LEDGER_KEY_MAX]);
/* Unsigned decimal without sign or leading zeros. false: anything else, also NULL. */
bool ledger_redis_number(const char *text, uint64_t *out);

#define DIRECTORY_LINES_KEY   "mr:{dir}:lines"
#define DIRECTORY_VERSION_KEY "mr:{dir}:version"
/* The directory's version, or its lines, over an open link; ledger_client.h's calls of these names. */
NODISCARD enum status ledger_redis_directory_version(struct redis_link *link, uint32_t timeout_ms, uint64_t *version,
                                                     struct error *err);
NODISCARD enum status ledger_redis_directory_read(struct redis_link *link, uint32_t timeout_ms,
                                                  void (*visit)(void *visitor, const char *line, size_t length),
                                                  void *visitor, uint64_t *version, struct error *err);

/* ---- mr_apply ---- */

struct apply_call {
    uint16_t partition;
    uint64_t producer, epoch;
    const char *uuid;
    const uint8_t *previous; /* chain of the record before the first, CHAIN_BYTES */
    const struct encoded_record *records;
    uint32_t count; /* 0: the hello; at most APPLY_SEND_MAX */
};

struct apply_writer; /* room for one call's arguments */
NODISCARD enum status apply_writer_create(struct apply_writer **writer);
void apply_writer_destroy(struct apply_writer *writer);
/* The call's arguments, valid until the next call with this writer and as long as the records. ST_INVAL: a record that
 * cannot be read, or of another partition (err). */
NODISCARD enum status apply_write(struct apply_writer *writer, const struct apply_call *call,
                                  struct redis_command *command, struct error *err);
/* ST_PROTO: no answer of mr_apply. */
NODISCARD enum status apply_read(const struct redis_reply *reply, struct ledger_reply *out, struct error *err);

#endif
