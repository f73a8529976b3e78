/* Who may ask, and who pays: tenant -> account -> keys, in memory, made anew from lines at every change.
 *
 *   {"id":"a:NAME","kind":"account","name":"NAME","tenant":"T","state":"open","rpm":0,"tpm":0,"concurrency":0,
 *    "created_ms":0}
 *   {"id":"k:NUMBER","kind":"key","hash":"64 hex digits","account":"NAME","label":"","state":"active","rpm":0,"tpm":0,
 *    "concurrency":0,"created_ms":0}
 *
 * A key may also have "budget" (units) and "budget_period" (budget.h).
 * A line is one JSON object without a line end, as ledger_client.h's directory calls carry it. Names and tenants are 1
 * to 64 of [A-Za-z0-9-_.@]; state is open or closed, active or revoked; NUMBER is the key's number in 16 hex digits;
 * tenant, label, limits and created_ms may be left out; members that are not known are ignored. A limit of 0 is none of
 * its own: a key's, else its account's, else the server's holds. Only the hash of a key is ever kept.
 *
 * D1  One bad line refuses the whole, by its id and never by its content; the caller keeps the directory it has (F16).
 *     Half a directory could miss a revocation.
 * D2  Two accounts with one number, two keys with one number, a key of an account that is not there: refused.
 * D3  A key is hashed, found by the first bytes of its hash, and compared whole in constant time.
 *
 * Built by one thread; then read-only and any thread's, until destroyed. */
#ifndef SERVER_BILLING_DIRECTORY_H
#define SERVER_BILLING_DIRECTORY_H

#include "runtime/base/buf.h"
#include "runtime/base/status.h"
#include "server/billing/budget.h"
#include "server/billing/record.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    KEY_HASH_BYTES = 32,
    KEY_TEXT_CHARS = 46, /* "mr-" and 32 random bytes in base64url */
    KEY_LABEL_MAX = 64,
    DIRECTORY_ID_MAX = ACCOUNT_NAME_MAX + 2,
    DIRECTORY_LINE_MAX = 2048
};

#define KEY_TPM_MAX UINT64_C(9007199254740991) /* what JSON carries exactly */

/* Requests a minute, tokens a minute, requests at a time; 0: not limited here. */
struct key_limits {
    uint32_t rpm, concurrency;
    uint64_t tpm;
};

struct directory_account {
    char name[ACCOUNT_NAME_MAX + 1], tenant[ACCOUNT_NAME_MAX + 1];
    uint64_t number; /* account_number(name) */
    bool open;
    struct key_limits limits;
    int64_t created_ms;
};

struct directory_key {
    uint8_t hash[KEY_HASH_BYTES];
    uint64_t number;                         /* key_number(hash) */
    const struct directory_account *account; /* the directory's */
    char account_name[ACCOUNT_NAME_MAX + 1];
    char label[KEY_LABEL_MAX + 1];
    bool active;
    struct key_limits limits;
    struct key_budget budget;
    int64_t created_ms;
};

/* ---- keys ---- */

/* A new key from the kernel's randomness, NUL-terminated: shown once, kept nowhere. */
void key_make(char out[KEY_TEXT_CHARS + 1]);
void key_hash(const char *text, size_t length, uint8_t hash[KEY_HASH_BYTES]); /* SHA-256 */
uint64_t key_number(const uint8_t hash[KEY_HASH_BYTES]); /* its first eight bytes, big endian, without the top bit */

/* ---- lines ---- */

bool account_name_ok(const char *name, size_t length);

/* The line and its id. Fields are ours and checked (CHECK), but for a label that is not UTF-8. */
void directory_account_line(const struct directory_account *account, struct buf *line, char id[DIRECTORY_ID_MAX + 1]);
void directory_key_line(const struct directory_key *key, struct buf *line, char id[DIRECTORY_ID_MAX + 1]);

struct directory_line {
    char id[DIRECTORY_ID_MAX + 1];
    bool is_key;
    struct directory_account account;
    struct directory_key key; /* its account is NULL, account_name is set */
};
/* ST_INVAL: err says which member, and the line's id if it has a sane one; ST_NOMEM. */
NODISCARD enum status directory_line_read(const char *line, size_t length, struct directory_line *out,
                                          struct error *err);

/* ---- the whole ---- */

struct directory;

NODISCARD enum status directory_create(struct directory **directory);
void directory_destroy(struct directory *directory);
/* Adds a line; a later one of the same id takes the place of an earlier one. ST_INVAL, ST_NOMEM; ST_LIMIT:
 * directory_lines. After a failure the directory is only to be destroyed. */
NODISCARD enum status directory_add(struct directory *directory, const char *line, size_t length, struct error *err);
/* Ties keys to their accounts (D2); to be called once, after the last line and before any look-up. ST_INVAL. */
NODISCARD enum status directory_seal(struct directory *directory, struct error *err);

/* NULL: there is none. The result may be revoked, its account closed. */
const struct directory_key *directory_find_key(const struct directory *directory, const char *text, size_t length);
const struct directory_key *directory_find_number(const struct directory *directory, uint64_t number);
const struct directory_account *directory_find_account(const struct directory *directory, uint64_t number);
uint32_t directory_accounts(const struct directory *directory);
uint32_t directory_keys(const struct directory *directory);
const struct directory_account *directory_account_at(const struct directory *directory, uint32_t idx);
const struct directory_key *directory_key_at(const struct directory *directory, uint32_t idx);

/* The key's own limits, else its account's, else the server's, each by itself. */
struct key_limits directory_limits(const struct directory_key *key, const struct key_limits *server);

#endif
