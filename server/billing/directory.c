/* Accounts and keys in two arrays, each with an index by number (open addressing, at most half full); see directory.h.
 * Numbers are cut from SHA-256, so a place in the index tells nothing that helps to guess a key. */
#include "server/billing/directory.h"

#include "runtime/base/check.h"
#include "runtime/base/hash.h"
#include "runtime/base/json.h"
#include "runtime/base/limits.h"
#include "runtime/base/mem.h"
#include "runtime/base/random.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { ROOM_MIN = 64 };

struct index {
    uint32_t *places; /* 0: free, else position + 1 */
    uint32_t mask;    /* count of places - 1 */
};

struct directory {
    struct directory_account *accounts;
    struct directory_key *keys;
    uint32_t accounts_count, accounts_room, keys_count, keys_room;
    struct index account_index, key_index;
    bool sealed;
};

/* ---- keys ---- */

void key_make(char out[KEY_TEXT_CHARS + 1])
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    uint8_t bytes[33] = {0}; /* 32, and zero bits to fill the last digit: RFC 4648 section 5 without padding */
    random_fill(bytes, 32);
    memcpy(out, "mr-", 3);
    for (size_t i = 0; i < KEY_TEXT_CHARS - 3; i++) {
        size_t bit = 6 * i, at = bit / 8;
        unsigned two = (unsigned)bytes[at] << 8 | (at + 1 < sizeof bytes ? bytes[at + 1] : 0);
        out[3 + i] = digits[two >> (10 - bit % 8) & 63];
    }
    out[KEY_TEXT_CHARS] = '\0';
    memset(bytes, 0, sizeof bytes);
}

void key_hash(const char *text, size_t length, uint8_t hash[KEY_HASH_BYTES])
{
    sha256(text, length, hash);
}

uint64_t key_number(const uint8_t hash[KEY_HASH_BYTES])
{
    uint64_t number = 0;
    for (int i = 0; i < 8; i++) number = number << 8 | hash[i];
    number &= UINT64_MAX >> 1;
    return number ? number : 1; /* 0 stands for no key */
}

/* ---- lines ---- */

bool account_name_ok(const char *name, size_t length)
{
    if (length == 0 || length > ACCOUNT_NAME_MAX) return false;
    for (size_t i = 0; i < length; i++) {
        char c = name[i];
        bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
        if (!plain && c != '-' && c != '_' && c != '.' && c != '@') return false;
    }
    return true;
}

static void append_tail(const struct key_limits *own, int64_t created_ms, struct buf *line)
{
    buf_append_format(
        line, ",\"rpm\":%" PRIu32 ",\"tpm\":%" PRIu64 ",\"concurrency\":%" PRIu32 ",\"created_ms\":%" PRId64 "}",
        own->rpm, own->tpm, own->concurrency, created_ms);
}

static void account_id(const char *name, char id[DIRECTORY_ID_MAX + 1])
{
    size_t length = strlen(name);
    memcpy(id, "a:", 2);
    memcpy(id + 2, name, length + 1);
}

static void key_id(uint64_t number, char id[DIRECTORY_ID_MAX + 1])
{
    memcpy(id, "k:", 2);
    for (int i = 0; i < 16; i++) id[2 + i] = "0123456789abcdef"[number >> (60 - 4 * i) & 15];
    id[18] = '\0';
}

void directory_account_line(const struct directory_account *account, struct buf *line, char id[DIRECTORY_ID_MAX + 1])
{
    CHECK(account_name_ok(account->name, strlen(account->name)));
    CHECK(!account->tenant[0] || account_name_ok(account->tenant, strlen(account->tenant)));
    CHECK(account->limits.tpm <= KEY_TPM_MAX && account->created_ms >= 0);
    account_id(account->name, id);
    buf_append_format(line, "{\"id\":\"%s\",\"kind\":\"account\",\"name\":\"%s\",\"tenant\":\"%s\",\"state\":\"%s\"",
                      id, account->name, account->tenant[0] ? account->tenant : account->name,
                      account->open ? "open" : "closed");
    append_tail(&account->limits, account->created_ms, line);
}

void directory_key_line(const struct directory_key *key, struct buf *line, char id[DIRECTORY_ID_MAX + 1])
{
    CHECK(account_name_ok(key->account_name, strlen(key->account_name)));
    CHECK(key->limits.tpm <= KEY_TPM_MAX && key->created_ms >= 0);
    CHECK(key->budget.units <= BUDGET_UNITS_MAX && (key->budget.period != BUDGET_NONE) == (key->budget.units > 0));
    key_id(key_number(key->hash), id);
    buf_append_format(line, "{\"id\":\"%s\",\"kind\":\"key\",\"hash\":\"", id);
    for (int i = 0; i < KEY_HASH_BYTES; i++) buf_append_format(line, "%02x", key->hash[i]);
    buf_append_format(line, "\",\"account\":\"%s\",\"label\":", key->account_name);
    buf_append_json_string(line, key->label, strlen(key->label));
    buf_append_format(line, ",\"state\":\"%s\"", key->active ? "active" : "revoked");
    if (key->budget.units > 0)
        buf_append_format(line, ",\"budget\":%" PRIu64 ",\"budget_period\":\"%s\"", key->budget.units,
                          budget_period_name(key->budget.period));
    append_tail(&key->limits, key->created_ms, line);
}

/* What one line's reading needs: the object, and where to complain. */
struct line_reader {
    const struct json *root;
    const char *id;
    struct error *err;
};

static enum status refuse(const struct line_reader *reader, const char *what)
{
    return error_set(reader->err, ST_INVAL, "directory line %s: %s", reader->id, what);
}

/* A member that is text, of at most max bytes; "" if it may be left out and is. */
static enum status read_text(const struct line_reader *reader, const char *name, bool needed, char *out, size_t max)
{
    size_t length = 0;
    const struct json *member = json_member(reader->root, name);
    const char *text = json_to_text(member, &length);
    out[0] = '\0';
    if (json_kind(member) == JSON_KIND_NULL && !needed) return ST_OK;
    if (!text || length > max) {
        char what[96];
        (void)snprintf(what, sizeof what, "\"%s\" must be text of at most %zu bytes", name, max);
        return refuse(reader, what);
    }
    memcpy(out, text, length + 1);
    return ST_OK;
}

static enum status read_count(const struct line_reader *reader, const char *name, uint64_t max, uint64_t *out)
{
    const struct json *member = json_member(reader->root, name);
    int64_t value = json_to_int(member);
    *out = 0;
    if (json_kind(member) == JSON_KIND_NULL) return ST_OK;
    if (json_kind(member) != JSON_KIND_INT || value < 0 || (uint64_t)value > max) {
        char what[96];
        (void)snprintf(what, sizeof what, "\"%s\" must be an integer from 0 to %" PRIu64, name, max);
        return refuse(reader, what);
    }
    *out = (uint64_t)value;
    return ST_OK;
}

static enum status read_tail(const struct line_reader *reader, struct key_limits *own, int64_t *created_ms)
{
    uint64_t value;
    TRY(read_count(reader, "rpm", UINT32_MAX, &value));
    own->rpm = (uint32_t)value;
    TRY(read_count(reader, "concurrency", UINT32_MAX, &value));
    own->concurrency = (uint32_t)value;
    TRY(read_count(reader, "tpm", KEY_TPM_MAX, &own->tpm));
    TRY(read_count(reader, "created_ms", KEY_TPM_MAX, &value));
    *created_ms = (int64_t)value;
    return ST_OK;
}

static enum status read_account(const struct line_reader *reader, struct directory_account *account)
{
    char state[8], id[DIRECTORY_ID_MAX + 1];
    TRY(read_text(reader, "name", true, account->name, ACCOUNT_NAME_MAX));
    TRY(read_text(reader, "tenant", false, account->tenant, ACCOUNT_NAME_MAX));
    TRY(read_text(reader, "state", true, state, sizeof state - 1));
    if (!account_name_ok(account->name, strlen(account->name)))
        return refuse(reader, "\"name\" must have 1 to 64 letters, digits and -_.@");
    if (!account->tenant[0]) memcpy(account->tenant, account->name, sizeof account->tenant);
    if (!account_name_ok(account->tenant, strlen(account->tenant)))
        return refuse(reader, "\"tenant\" must have 1 to 64 letters, digits and -_.@");
    if (strcmp(state, "open") != 0 && strcmp(state, "closed") != 0)
        return refuse(reader, "\"state\" must be open or closed");
    account_id(account->name, id);
    if (strcmp(id, reader->id) != 0) return refuse(reader, "its name does not belong to its id");
    account->open = state[0] == 'o';
    account->number = account_number(account->name);
    return read_tail(reader, &account->limits, &account->created_ms);
}

static int hex_value(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static enum status read_budget(const struct line_reader *reader, struct key_budget *budget)
{
    char period[8];
    TRY(read_count(reader, "budget", BUDGET_UNITS_MAX, &budget->units));
    TRY(read_text(reader, "budget_period", budget->units > 0, period, sizeof period - 1));
    budget->period = BUDGET_NONE;
    if (budget->units > 0 && !budget_period_parse(period, &budget->period))
        return refuse(reader, "\"budget_period\" must be day, month or total");
    return ST_OK;
}

static enum status read_key(const struct line_reader *reader, struct directory_key *key)
{
    char hex[2 * KEY_HASH_BYTES + 1], state[8], id[DIRECTORY_ID_MAX + 1];
    TRY(read_text(reader, "hash", true, hex, sizeof hex - 1));
    TRY(read_text(reader, "account", true, key->account_name, ACCOUNT_NAME_MAX));
    TRY(read_text(reader, "label", false, key->label, KEY_LABEL_MAX));
    TRY(read_text(reader, "state", true, state, sizeof state - 1));
    for (int i = 0; i < KEY_HASH_BYTES; i++) {
        int high = hex_value(hex[2 * i]), low = high < 0 ? -1 : hex_value(hex[2 * i + 1]);
        if (low < 0) return refuse(reader, "\"hash\" must be 64 lower-case hex digits");
        key->hash[i] = (uint8_t)(high * 16 + low);
    }
    if (!account_name_ok(key->account_name, strlen(key->account_name)))
        return refuse(reader, "\"account\" must have 1 to 64 letters, digits and -_.@");
    if (strcmp(state, "active") != 0 && strcmp(state, "revoked") != 0)
        return refuse(reader, "\"state\" must be active or revoked");
    key->active = state[0] == 'a';
    key->number = key_number(key->hash);
    key_id(key->number, id);
    if (strcmp(id, reader->id) != 0) return refuse(reader, "its hash does not belong to its id");
    TRY(read_budget(reader, &key->budget));
    return read_tail(reader, &key->limits, &key->created_ms);
}

/* An id that may be repeated in a message: others are cut to nothing. */
static bool id_ok(const char *id, size_t length)
{
    return length > 2 && length <= DIRECTORY_ID_MAX && (id[0] == 'a' || id[0] == 'k') && id[1] == ':' &&
           account_name_ok(id + 2, length - 2);
}

enum status directory_line_read(const char *line, size_t length, struct directory_line *out, struct error *err)
{
    struct error reason = {""};
    struct json *root;
    size_t id_length = 0;
    if (length > DIRECTORY_LINE_MAX)
        return error_set(err, ST_INVAL, "a directory line is longer than %d bytes", DIRECTORY_LINE_MAX);
    enum status status = json_read(line, length, &root, &reason);
    if (status == ST_NOMEM) return error_set(err, ST_NOMEM, "out of memory");
    if (status != ST_OK) return error_set(err, ST_INVAL, "a directory line is not JSON");
    const char *id = json_to_text(json_member(root, "id"), &id_length);
    const char *kind = json_to_text(json_member(root, "kind"), NULL);
    memset(out, 0, sizeof *out);
    if (!id || !id_ok(id, id_length)) {
        status = error_set(err, ST_INVAL, "a directory line has no \"id\" of an account (a:NAME) or key (k:NUMBER)");
    } else {
        memcpy(out->id, id, id_length + 1);
        struct line_reader reader = {.root = root, .id = out->id, .err = err};
        out->is_key = id[0] == 'k';
        if (!kind || strcmp(kind, out->is_key ? "key" : "account") != 0)
            status = refuse(&reader, "\"kind\" must be account or key, as its id says");
        else
            status = out->is_key ? read_key(&reader, &out->key) : read_account(&reader, &out->account);
    }
    json_release(root);
    return status;
}

/* ---- the whole ---- */

enum status directory_create(struct directory **directory)
{
    *directory = mem_alloc(1, sizeof **directory);
    return *directory ? ST_OK : ST_NOMEM;
}

void directory_destroy(struct directory *directory)
{
    if (!directory) return;
    mem_free(directory->accounts);
    mem_free(directory->keys);
    mem_free(directory->account_index.places);
    mem_free(directory->key_index.places);
    mem_free(directory);
}

static uint64_t number_at(const struct directory *directory, bool keys, uint32_t position)
{
    return keys ? directory->keys[position].number : directory->accounts[position].number;
}

/* Where a number stands in the index, or the free place where it belongs. */
static uint32_t *place_of(const struct directory *directory, bool keys, uint64_t number)
{
    const struct index *index = keys ? &directory->key_index : &directory->account_index;
    for (uint32_t at = (uint32_t)number & index->mask;; at = (at + 1) & index->mask)
        if (!index->places[at] || number_at(directory, keys, index->places[at] - 1) == number)
            return &index->places[at];
}

/* Twice the room, and an index with twice as many places. */
static bool grow(struct directory *directory, bool keys)
{
    uint32_t count = keys ? directory->keys_count : directory->accounts_count;
    uint32_t *room = keys ? &directory->keys_room : &directory->accounts_room;
    struct index *index = keys ? &directory->key_index : &directory->account_index;
    if (count < *room) return true;
    uint32_t more = *room ? *room * 2 : ROOM_MIN;
    void *items = keys ? mem_resize(directory->keys, more, sizeof *directory->keys)
                       : mem_resize(directory->accounts, more, sizeof *directory->accounts);
    if (!items) return false;
    if (keys)
        directory->keys = items;
    else
        directory->accounts = items;
    uint32_t *places = mem_alloc((size_t)more * 2, sizeof *places);
    if (!places) return false;
    mem_free(index->places);
    index->places = places;
    index->mask = more * 2 - 1;
    *room = more;
    for (uint32_t i = 0; i < count; i++) *place_of(directory, keys, number_at(directory, keys, i)) = i + 1;
    return true;
}

enum status directory_add(struct directory *directory, const char *line, size_t length, struct error *err)
{
    struct directory_line read;
    CHECK(!directory->sealed);
    TRY(directory_line_read(line, length, &read, err));
    bool keys = read.is_key;
    if ((uint64_t)directory->keys_count + directory->accounts_count >= limits.directory_lines)
        return error_set(err, ST_LIMIT, "directory line %s: more than %" PRIu64 " lines (limit directory_lines)",
                         read.id, limits.directory_lines);
    if (!grow(directory, keys)) return error_set(err, ST_NOMEM, "out of memory");
    uint32_t *place = place_of(directory, keys, keys ? read.key.number : read.account.number);
    uint32_t position = *place ? *place - 1 : keys ? directory->keys_count : directory->accounts_count;
    if (*place && (keys ? memcmp(directory->keys[position].hash, read.key.hash, KEY_HASH_BYTES) != 0
                        : strcmp(directory->accounts[position].name, read.account.name) != 0))
        return error_set(err, ST_INVAL, "directory line %s: another one has the same number", read.id); /* D2 */
    if (keys) {
        directory->keys[position] = read.key;
        directory->keys_count += !*place;
    } else {
        directory->accounts[position] = read.account;
        directory->accounts_count += !*place;
    }
    *place = position + 1;
    return ST_OK;
}

enum status directory_seal(struct directory *directory, struct error *err)
{
    for (uint32_t i = 0; i < directory->keys_count; i++) {
        struct directory_key *key = &directory->keys[i];
        char id[DIRECTORY_ID_MAX + 1];
        key->account = directory_find_account(directory, account_number(key->account_name));
        if (key->account && strcmp(key->account->name, key->account_name) == 0) continue;
        key_id(key->number, id);
        return error_set(err, ST_INVAL, "directory line %s: there is no account \"%s\"", id, key->account_name);
    }
    directory->sealed = true;
    return ST_OK;
}

const struct directory_key *directory_find_key(const struct directory *directory, const char *text, size_t length)
{
    uint8_t hash[KEY_HASH_BYTES];
    CHECK(directory->sealed);
    if (!directory->keys_count) return NULL;
    key_hash(text, length, hash);
    uint32_t place = *place_of(directory, true, key_number(hash));
    if (!place || !equal_constant_time(hash, directory->keys[place - 1].hash, sizeof hash)) return NULL; /* D3 */
    return &directory->keys[place - 1];
}

const struct directory_account *directory_find_account(const struct directory *directory, uint64_t number)
{
    if (!directory->accounts_count) return NULL;
    uint32_t place = *place_of(directory, false, number);
    return place ? &directory->accounts[place - 1] : NULL;
}

const struct directory_key *directory_find_number(const struct directory *directory, uint64_t number)
{
    if (!directory->keys_count) return NULL;
    uint32_t place = *place_of(directory, true, number);
    return place ? &directory->keys[place - 1] : NULL;
}

uint32_t directory_accounts(const struct directory *directory)
{
    return directory->accounts_count;
}

uint32_t directory_keys(const struct directory *directory)
{
    return directory->keys_count;
}

const struct directory_account *directory_account_at(const struct directory *directory, uint32_t idx)
{
    CHECK(idx < directory->accounts_count);
    return &directory->accounts[idx];
}

const struct directory_key *directory_key_at(const struct directory *directory, uint32_t idx)
{
    CHECK(idx < directory->keys_count);
    return &directory->keys[idx];
}

struct key_limits directory_limits(const struct directory_key *key, const struct key_limits *server)
{
    const struct key_limits *own = &key->limits, *account = &key->account->limits;
    return (struct key_limits){
        .rpm = own->rpm       ? own->rpm
               : account->rpm ? account->rpm
                              : server->rpm,
        .tpm = own->tpm       ? own->tpm
               : account->tpm ? account->tpm
                              : server->tpm,
        .concurrency = own->concurrency       ? own->concurrency
                       : account->concurrency ? account->concurrency
                                              : server->concurrency,
    };
}
