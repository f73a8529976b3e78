/* See idempotency.h. A hash table, one list of all entries by age: the oldest stand first, and are the first to lose
 * their place; and one of those that have an answer, in the order in which they ended: the first loses its answer
 * first. Recalled entries are put where their age belongs, from the old end. */
#include "server/idempotency.h"

#include "runtime/base/check.h"
#include "runtime/base/clock.h"
#include "runtime/base/hash.h"
#include "runtime/base/limits.h"
#include "runtime/base/mem.h"

#include <stdio.h>
#include <string.h>

enum { PLACES = 8192, BUF_BYTES_MIN = 256 };

struct idempotency_entry {
    struct idempotency_entry *next; /* of the place */
    struct idempotency_entry *older, *younger;
    struct idempotency_entry *answer_older, *answer_younger; /* of those that are whole */
    uint8_t digest[IDEMPOTENCY_DIGEST_BYTES], print[IDEMPOTENCY_PRINT_BYTES];
    char call_id[CALL_ID_MAX + 1];
    int64_t begun_ns; /* may be before the clock's begin: recalled */
    bool runs, stream, whole, print_known;
    bool too_large; /* K3: the bytes are not kept */
    struct buf body;
};

struct idempotency {
    struct idempotency_entry *places[PLACES];
    struct idempotency_entry *oldest, *youngest;
    struct idempotency_entry *answer_oldest, *answer_youngest;
    uint32_t count;
    uint64_t bytes; /* of all bodies: what they have taken */
};

bool idempotency_key_ok(const char *key)
{
    size_t length = strlen(key);
    if (length == 0 || length > IDEMPOTENCY_KEY_MAX) return false;
    for (size_t i = 0; i < length; i++)
        if (key[i] < 0x20 || key[i] > 0x7e) return false;
    return true;
}

void idempotency_digest(uint64_t account, const char *key, uint8_t digest[IDEMPOTENCY_DIGEST_BYTES])
{
    uint8_t text[8 + IDEMPOTENCY_KEY_MAX], whole[32];
    size_t length = strlen(key);
    CHECK(length <= IDEMPOTENCY_KEY_MAX);
    for (int i = 0; i < 8; i++) text[i] = (uint8_t)(account >> (8 * i));
    memcpy(text + 8, key, length);
    sha256(text, 8 + length, whole);
    memcpy(digest, whole, IDEMPOTENCY_DIGEST_BYTES);
}

/* Each part is hashed first, so that none can reach into the next. */
void idempotency_print(const char *method, const char *path, const void *body, size_t length,
                       uint8_t print[IDEMPOTENCY_PRINT_BYTES])
{
    uint8_t parts[3][32];
    sha256(method, strlen(method), parts[0]);
    sha256(path, strlen(path), parts[1]);
    sha256(length ? body : "", length, parts[2]);
    sha256(parts, sizeof parts, print);
}

enum status idempotency_create(struct idempotency **table)
{
    *table = mem_alloc(1, sizeof **table);
    return *table ? ST_OK : ST_NOMEM;
}

void idempotency_destroy(struct idempotency *table)
{
    if (!table) return;
    for (struct idempotency_entry *entry = table->oldest, *younger; entry; entry = younger) {
        younger = entry->younger;
        buf_free(&entry->body);
        mem_free(entry);
    }
    mem_free(table);
}

static struct idempotency_entry **place_of(struct idempotency *table, const uint8_t *digest)
{
    uint32_t at = (uint32_t)digest[0] | (uint32_t)digest[1] << 8;
    return &table->places[at % PLACES];
}

static struct idempotency_entry *find(struct idempotency *table, const uint8_t *digest)
{
    struct idempotency_entry *entry = *place_of(table, digest);
    while (entry && memcmp(entry->digest, digest, IDEMPOTENCY_DIGEST_BYTES) != 0) entry = entry->next;
    return entry;
}

static void link_answer(struct idempotency *table, struct idempotency_entry *entry)
{
    entry->answer_older = table->answer_youngest;
    if (entry->answer_older)
        entry->answer_older->answer_younger = entry;
    else
        table->answer_oldest = entry;
    table->answer_youngest = entry;
}

static void unlink_answer(struct idempotency *table, struct idempotency_entry *entry)
{
    if (entry->answer_older)
        entry->answer_older->answer_younger = entry->answer_younger;
    else
        table->answer_oldest = entry->answer_younger;
    if (entry->answer_younger)
        entry->answer_younger->answer_older = entry->answer_older;
    else
        table->answer_youngest = entry->answer_older;
    entry->answer_older = entry->answer_younger = NULL;
}

static void drop_body(struct idempotency *table, struct idempotency_entry *entry)
{
    if (entry->whole) unlink_answer(table, entry);
    table->bytes -= entry->body.capacity;
    buf_free(&entry->body);
    entry->whole = false;
}

static void drop(struct idempotency *table, struct idempotency_entry *entry)
{
    struct idempotency_entry **link = place_of(table, entry->digest);
    while (*link != entry) link = &(*link)->next;
    *link = entry->next;
    if (entry->older)
        entry->older->younger = entry->younger;
    else
        table->oldest = entry->younger;
    if (entry->younger)
        entry->younger->older = entry->older;
    else
        table->youngest = entry->older;
    drop_body(table, entry);
    table->count--;
    mem_free(entry);
}

/* K4: whether there is room for one more, made if need be. */
static bool make_room(struct idempotency *table)
{
    struct idempotency_entry *entry = table->oldest;
    if (table->count < limits.idempotency_entries) return true;
    while (entry && entry->runs) entry = entry->younger;
    if (entry) drop(table, entry);
    return entry != NULL;
}

/* A new entry, in the list where its time belongs. */
static struct idempotency_entry *put(struct idempotency *table, const uint8_t *digest, const char *call_id,
                                     int64_t begun_ns)
{
    if (!make_room(table)) return NULL;
    struct idempotency_entry *entry = mem_alloc(1, sizeof *entry), *older = table->youngest;
    if (!entry) return NULL;
    memcpy(entry->digest, digest, IDEMPOTENCY_DIGEST_BYTES);
    (void)snprintf(entry->call_id, sizeof entry->call_id, "%s", call_id);
    entry->begun_ns = begun_ns;
    buf_init(&entry->body, 0);
    struct idempotency_entry **place = place_of(table, digest);
    entry->next = *place;
    *place = entry;
    while (older && older->begun_ns > begun_ns) older = older->older;
    entry->older = older;
    entry->younger = older ? older->younger : table->oldest;
    if (older)
        older->younger = entry;
    else
        table->oldest = entry;
    if (entry->younger)
        entry->younger->older = entry;
    else
        table->youngest = entry;
    table->count++;
    return entry;
}

static bool is_over(const struct idempotency_entry *entry, uint64_t now_ns)
{
    return !entry->runs && (int64_t)now_ns - entry->begun_ns >= (int64_t)(limits.idempotency_keep_ms * NS_PER_MS);
}

enum idempotency_verdict idempotency_begin(struct idempotency *table, const uint8_t digest[IDEMPOTENCY_DIGEST_BYTES],
                                           const uint8_t print[IDEMPOTENCY_PRINT_BYTES], const char *call_id,
                                           uint64_t now_ns, struct idempotency_entry **entry)
{
    struct idempotency_entry *found = find(table, digest);
    if (found && is_over(found, now_ns)) {
        drop(table, found);
        found = NULL;
    }
    if (found) {
        *entry = found;
        if (found->print_known && memcmp(found->print, print, IDEMPOTENCY_PRINT_BYTES) != 0) return IDEMPOTENCY_REUSED;
        if (found->runs) return IDEMPOTENCY_RUNS;
        return found->whole ? IDEMPOTENCY_DONE : IDEMPOTENCY_GONE;
    }
    found = put(table, digest, call_id, (int64_t)now_ns);
    if (!found) return IDEMPOTENCY_FULL;
    memcpy(found->print, print, IDEMPOTENCY_PRINT_BYTES);
    found->print_known = found->runs = true;
    *entry = found;
    return IDEMPOTENCY_NEW;
}

/* K3: takes answers away, oldest first, until `more` bytes fit. */
static bool make_bytes(struct idempotency *table, uint64_t more)
{
    while (table->answer_oldest && table->bytes + more > limits.idempotency_bytes)
        drop_body(table, table->answer_oldest);
    return table->bytes + more <= limits.idempotency_bytes;
}

void idempotency_keep(struct idempotency *table, struct idempotency_entry *entry, const void *bytes, size_t length)
{
    CHECK(entry->runs);
    if (entry->too_large || length == 0) return;
    size_t before = entry->body.capacity, needed;
    bool fits = checked_add(entry->body.length, length, &needed);
    /* a buffer has at least BUF_BYTES_MIN, and grows to at most twice what it must hold */
    if (fits && needed > before)
        fits = needed < SIZE_MAX / 4 &&
               make_bytes(table, (2 * needed > BUF_BYTES_MIN ? 2 * needed : BUF_BYTES_MIN) - before);
    if (fits) {
        buf_append(&entry->body, bytes, length);
        table->bytes += entry->body.capacity - before;
        fits = buf_ok(&entry->body);
    }
    if (fits) return;
    drop_body(table, entry);
    entry->too_large = true;
}

void idempotency_done(struct idempotency *table, struct idempotency_entry *entry, bool stream, bool whole)
{
    CHECK(entry->runs);
    entry->runs = false;
    entry->stream = stream;
    entry->whole = whole && !entry->too_large;
    if (entry->whole)
        link_answer(table, entry);
    else
        drop_body(table, entry);
}

void idempotency_forget(struct idempotency *table, struct idempotency_entry *entry)
{
    CHECK(entry->runs);
    drop(table, entry);
}

const struct buf *idempotency_answer(const struct idempotency_entry *entry, bool *stream)
{
    CHECK(entry->whole);
    *stream = entry->stream;
    return &entry->body;
}

const char *idempotency_id(const struct idempotency_entry *entry)
{
    return entry->call_id;
}

void idempotency_recall(struct idempotency *table, const uint8_t digest[IDEMPOTENCY_DIGEST_BYTES], const char *call_id,
                        uint64_t age_ns, uint64_t now_ns)
{
    int64_t begun_ns = (int64_t)now_ns - (int64_t)age_ns;
    if (age_ns >= limits.idempotency_keep_ms * NS_PER_MS || find(table, digest)) return;
    if (table->count >= limits.idempotency_entries && table->oldest && table->oldest->begun_ns >= begun_ns) return;
    (void)put(table, digest, call_id, begun_ns);
}

void idempotency_tick(struct idempotency *table, uint64_t now_ns)
{
    for (struct idempotency_entry *entry = table->oldest, *younger; entry; entry = younger) {
        younger = entry->younger;
        if (entry->runs) continue;
        if (!is_over(entry, now_ns)) return;
        drop(table, entry);
    }
}

uint64_t idempotency_bytes(const struct idempotency *table)
{
    return table->bytes;
}

uint32_t idempotency_entries(const struct idempotency *table)
{
    return table->count;
}
