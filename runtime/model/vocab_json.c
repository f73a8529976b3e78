/* See vocab_json.h. The file's bulk (vocabulary, merges) is walked by a cursor, its small parts become trees:
 *
 *   1. one pass over the top level and over "model" notes where each member stands (they come in any order);
 *   2. vocabulary and added tokens give ids; their texts are unescaped in place and then copied into one block;
 *   3. merges are looked up right away and kept as ids: 12 bytes each, in place of two texts;
 *   4. normaliser, pre-tokeniser, decoder, post-processor: vocab_json_steps.h.
 *
 * Held against `tokenizers`: a token stands for one id and an id for one token, where the library lets the last one
 * win. Of a merge that stands twice the later one counts, as there. */
#include "runtime/model/vocab_json.h"

#include "runtime/base/arena.h"
#include "runtime/base/hash.h"
#include "runtime/base/json.h"
#include "runtime/base/json_pull.h"
#include "runtime/base/limits.h"
#include "runtime/base/mem.h"
#include "runtime/base/random.h"
#include "runtime/base/utf8.h"
#include "runtime/model/vocab_json_steps.h"
#include "runtime/model/vocab_read.h"

#include <inttypes.h>
#include <string.h>

enum { HOLES_MAX = 65536 }; /* ids without a token: bounds memory by the file's size (M4) */

enum part { /* members of the file, then of "model" */
            PART_ADDED,
            PART_NORMALIZER,
            PART_PRE_TOKENIZER,
            PART_POST_PROCESSOR,
            PART_DECODER,
            PART_MODEL,
            PART_VERSION,
            PART_TRUNCATION,
            PART_PADDING,
            FILE_PARTS,
            MODEL_TYPE = FILE_PARTS,
            MODEL_DROPOUT,
            MODEL_UNK_TOKEN,
            MODEL_UNK_ID,
            MODEL_CONTINUING_PREFIX,
            MODEL_WORD_SUFFIX,
            MODEL_FUSE_UNK,
            MODEL_BYTE_FALLBACK,
            MODEL_IGNORE_MERGES,
            MODEL_WORD_CHARS,
            MODEL_VOCAB,
            MODEL_MERGES,
            PARTS
};

static const char *const part_names[PARTS] = {
    [PART_ADDED] = "added_tokens",
    [PART_NORMALIZER] = "normalizer",
    [PART_PRE_TOKENIZER] = "pre_tokenizer",
    [PART_POST_PROCESSOR] = "post_processor",
    [PART_DECODER] = "decoder",
    [PART_MODEL] = "model",
    [PART_VERSION] = "version",
    [PART_TRUNCATION] = "truncation", /* these two shape batches of embeddings; a server's limits are its own */
    [PART_PADDING] = "padding",
    [MODEL_TYPE] = "type",
    [MODEL_DROPOUT] = "dropout",
    [MODEL_UNK_TOKEN] = "unk_token",
    [MODEL_UNK_ID] = "unk_id",
    [MODEL_CONTINUING_PREFIX] = "continuing_subword_prefix",
    [MODEL_WORD_SUFFIX] = "end_of_word_suffix",
    [MODEL_FUSE_UNK] = "fuse_unk",
    [MODEL_BYTE_FALLBACK] = "byte_fallback",
    [MODEL_IGNORE_MERGES] = "ignore_merges",
    [MODEL_WORD_CHARS] = "max_input_chars_per_word",
    [MODEL_VOCAB] = "vocab",
    [MODEL_MERGES] = "merges",
};

struct entry { /* a token while its text lies in the file */
    const char *text;
    uint32_t length;
    bool used;
};

struct reader {
    struct json_slice parts[PARTS]; /* text NULL: absent */
    struct vocab *vocab;
    struct vocab_pipeline *pipeline;
    struct entry *entries; /* (entries_capacity) by id */
    size_t entries_capacity;
    uint32_t named;  /* entries in use */
    uint32_t *index; /* open addressing: text -> id, VOCAB_NO_ID where free */
    uint32_t index_mask;
    uint64_t seed; /* of its hash, so that no file is made for long runs of slots */
    struct error *err;
};

/* --- pass 1: where the parts stand --- */

static enum status note_parts(struct reader *r, struct json_slice object, enum part first, enum part end,
                              const char *what)
{
    struct json_pull pull;
    struct json_slice name;
    json_pull_init(&pull, object.text, object.length, r->err);
    json_pull_object(&pull);
    while (json_pull_member(&pull, &name)) {
        enum part part = first;
        while (part < end &&
               (strlen(part_names[part]) != name.length || memcmp(part_names[part], name.text, name.length)))
            part++;
        if (part == end)
            return error_set(r->err, ST_INVAL, "the member \"%.*s\" of %s is not known",
                             (int)(name.length < 64 ? name.length : 64), name.text, what);
        if (r->parts[part].text) return error_set(r->err, ST_INVAL, "\"%s\" stands twice", part_names[part]);
        json_pull_skip(&pull, &r->parts[part]);
    }
    json_pull_end(&pull);
    return pull.status;
}

/* A small part as a tree; NULL where it is absent. */
static enum status read_tree(struct reader *r, enum part part, struct json **tree)
{
    struct error reason = {""};
    *tree = NULL;
    if (!r->parts[part].text) return ST_OK;
    enum status status = json_read(r->parts[part].text, r->parts[part].length, tree, &reason);
    return status == ST_OK ? ST_OK : error_set(r->err, status, "%s: %.400s", part_names[part], reason.message);
}

static enum status wrong(struct reader *r, enum part part, const char *wanted)
{
    return error_set(r->err, ST_INVAL, "model.%s is not %s", part_names[part], wanted);
}

/* A member of "model" that may be absent or null. */
static enum status read_bool(struct reader *r, enum part part, bool *value)
{
    struct json *tree;
    TRY(read_tree(r, part, &tree));
    enum json_kind kind = json_kind(tree);
    if (kind == JSON_KIND_BOOL) *value = json_to_bool(tree);
    json_release(tree);
    return kind == JSON_KIND_BOOL || kind == JSON_KIND_NULL ? ST_OK : wrong(r, part, "true or false");
}

static enum status read_text(struct reader *r, enum part part, struct vocab_string *text)
{
    struct json *tree;
    TRY(read_tree(r, part, &tree));
    enum json_kind kind = json_kind(tree);
    enum status status = ST_OK;
    if (kind == JSON_KIND_TEXT) {
        size_t length;
        const char *bytes = json_to_text(tree, &length);
        char *copy = arena_strdup(r->pipeline->arena, bytes, length);
        *text = (struct vocab_string){copy, (uint32_t)length};
        if (!copy) status = error_set(r->err, ST_NOMEM, "no memory for model.%s", part_names[part]);
    }
    json_release(tree);
    return status != ST_OK || kind == JSON_KIND_TEXT || kind == JSON_KIND_NULL ? status : wrong(r, part, "a text");
}

static enum status read_count(struct reader *r, enum part part, uint32_t *value, bool *found)
{
    struct json *tree;
    TRY(read_tree(r, part, &tree));
    enum json_kind kind = json_kind(tree);
    int64_t number = json_to_int(tree);
    json_release(tree);
    *found = kind == JSON_KIND_INT;
    if (kind == JSON_KIND_NULL) return ST_OK;
    if (kind != JSON_KIND_INT || number < 0 || number >= UINT32_MAX)
        return wrong(r, part, "a number that can be meant");
    *value = (uint32_t)number;
    return ST_OK;
}

/* --- tokens --- */

static uint32_t index_slot(const struct reader *r, const char *text, size_t length)
{
    uint32_t slot = (uint32_t)hash_bytes(text, length, r->seed) & r->index_mask;
    for (; r->index[slot] != VOCAB_NO_ID; slot = (slot + 1) & r->index_mask) {
        const struct entry *entry = &r->entries[r->index[slot]];
        if (entry->length == length && !memcmp(entry->text, text, length)) break;
    }
    return slot;
}

static uint32_t find_id(const struct reader *r, const char *text, size_t length)
{
    return r->index[index_slot(r, text, length)];
}

static enum status index_grow(struct reader *r)
{
    size_t slots = r->index ? 2 * ((size_t)r->index_mask + 1) : 1024;
    uint32_t *old = r->index, old_slots = old ? r->index_mask + 1 : 0;
    uint32_t *index = mem_resize(NULL, slots, sizeof *index);
    if (!index) return error_set(r->err, ST_NOMEM, "no memory for the tokens");
    memset(index, 0xff, slots * sizeof *index);
    r->index = index;
    r->index_mask = (uint32_t)(slots - 1);
    for (uint32_t i = 0; i < old_slots; i++)
        if (old[i] != VOCAB_NO_ID) index[index_slot(r, r->entries[old[i]].text, r->entries[old[i]].length)] = old[i];
    mem_free(old);
    return ST_OK;
}

static enum status entries_grow(struct reader *r, uint64_t id)
{
    size_t capacity = r->entries_capacity ? r->entries_capacity : 1024;
    if (id >= limits.model_vocab)
        return error_set(r->err, ST_LIMIT, "the token id %" PRIu64 " is past %" PRIu64 " (model_vocab)", id,
                         limits.model_vocab);
    if (id >= (uint64_t)r->named + HOLES_MAX)
        return error_set(r->err, ST_INVAL, "the token id %" PRIu64 " leaves more than %d ids without a token", id,
                         (int)HOLES_MAX);
    while (capacity <= id) capacity *= 2;
    if (capacity == r->entries_capacity) return ST_OK;
    struct entry *entries = mem_resize(r->entries, capacity, sizeof *entries);
    if (!entries) return error_set(r->err, ST_NOMEM, "no memory for the tokens");
    memset(entries + r->entries_capacity, 0, (capacity - r->entries_capacity) * sizeof *entries);
    r->entries = entries;
    r->entries_capacity = capacity;
    return ST_OK;
}

/* The token of an id. again: the pair may stand already (an added token that is in the vocabulary too). */
static enum status add_token(struct reader *r, const char *text, size_t length, uint64_t id, bool again)
{
    if (length >= UINT32_MAX / 2) return error_set(r->err, ST_LIMIT, "a token of %zu bytes", length);
    if (r->named >= r->index_mask / 2) TRY(index_grow(r));
    if (id >= r->entries_capacity) TRY(entries_grow(r, id));
    uint32_t slot = index_slot(r, text, length);
    if (again && r->index[slot] == id) return ST_OK;
    if (r->index[slot] != VOCAB_NO_ID)
        return error_set(r->err, ST_INVAL, "the token \"%.*s\" has two ids, %" PRIu32 " and %" PRIu64,
                         (int)(length < 64 ? length : 64), text, r->index[slot], id);
    if (r->entries[id].used)
        return error_set(r->err, ST_INVAL, "the id %" PRIu64 " has two tokens, \"%.*s\" and \"%.*s\"", id,
                         (int)(r->entries[id].length < 64 ? r->entries[id].length : 64), r->entries[id].text,
                         (int)(length < 64 ? length : 64), text);
    r->entries[id] = (struct entry){text, (uint32_t)length, true};
    r->index[slot] = (uint32_t)id;
    r->named++;
    if (id >= r->vocab->count) r->vocab->count = (uint32_t)id + 1;
    return ST_OK;
}

/* {"text": id, ...} */
static enum status read_map(struct reader *r)
{
    struct json_pull pull;
    struct json_slice name;
    uint64_t id;
    json_pull_init(&pull, r->parts[MODEL_VOCAB].text, r->parts[MODEL_VOCAB].length, r->err);
    json_pull_object(&pull);
    while (json_pull_member(&pull, &name) && json_pull_uint(&pull, &id))
        TRY(add_token(r, name.text, name.length, id, false));
    return pull.status;
}

/* [["text", score], ...]: the ids are the places. */
static enum status read_scored(struct reader *r)
{
    struct json_pull pull;
    size_t capacity = 0;
    json_pull_init(&pull, r->parts[MODEL_VOCAB].text, r->parts[MODEL_VOCAB].length, r->err);
    json_pull_list(&pull);
    for (uint64_t id = 0; json_pull_item(&pull); id++) {
        struct json_slice text = {NULL, 0};
        double score = 0;
        json_pull_list(&pull);
        bool good = json_pull_item(&pull) && json_pull_text(&pull, &text) && json_pull_item(&pull) &&
                    json_pull_number(&pull, &score) && !json_pull_item(&pull);
        if (!good) json_pull_fail(&pull, ST_INVAL, "model.vocab: [text, score] is missing");
        if (!json_pull_ok(&pull)) break;
        if (id >= capacity) {
            capacity = capacity ? 2 * capacity : 1024;
            double *scores = mem_resize(r->pipeline->scores, capacity, sizeof *scores);
            if (!scores) return error_set(r->err, ST_NOMEM, "no memory for the scores of tokens");
            r->pipeline->scores = scores;
        }
        r->pipeline->scores[id] = score;
        TRY(add_token(r, text.text, text.length, id, false));
    }
    return pull.status;
}

static bool flag_of(const struct json *object, const char *name, bool fallback, bool *good)
{
    const struct json *value = json_member(object, name);
    if (!value) return fallback;
    if (json_kind(value) != JSON_KIND_BOOL) *good = false;
    return json_to_bool(value);
}

/* The text of an added token lies in a tree that is released: it moves to the arena. */
static enum status read_added_token(struct reader *r, const struct json *object, struct vocab_added *added,
                                    bool *special)
{
    const struct json *id = json_member(object, "id");
    size_t length;
    const char *text = json_to_text(json_member(object, "content"), &length);
    bool good = text && length && json_kind(id) == JSON_KIND_INT && json_to_int(id) >= 0;
    *special = flag_of(object, "special", false, &good);
    added->normalized = flag_of(object, "normalized", !*special, &good);
    added->lstrip = flag_of(object, "lstrip", false, &good);
    added->rstrip = flag_of(object, "rstrip", false, &good);
    added->single_word = flag_of(object, "single_word", false, &good);
    if (!good) return error_set(r->err, ST_INVAL, "added_tokens: an entry is malformed");
    const char *copy = arena_strdup(r->pipeline->arena, text, length);
    if (!copy) return error_set(r->err, ST_NOMEM, "no memory for added_tokens");
    TRY(add_token(r, copy, length, (uint64_t)json_to_int(id), true));
    added->id = (uint32_t)json_to_int(id);
    return ST_OK;
}

static enum status read_added_list(struct reader *r, const struct json *list, bool *specials)
{
    struct vocab_pipeline *pipeline = r->pipeline;
    for (size_t i = 0; i < json_length(list); i++) {
        TRY(read_added_token(r, json_at(list, i), &pipeline->added[i], &specials[i]));
        pipeline->added_count++;
    }
    return ST_OK;
}

/* Reads added_tokens and settles the kind of every id. */
static enum status read_added(struct reader *r)
{
    struct json *list;
    TRY(read_tree(r, PART_ADDED, &list));
    size_t count = json_length(list);
    bool *specials = mem_alloc(count ? count : 1, sizeof *specials);
    r->pipeline->added = arena_alloc(r->pipeline->arena, count, sizeof *r->pipeline->added);
    enum status status = ST_OK;
    if (!specials || !r->pipeline->added) status = error_set(r->err, ST_NOMEM, "no memory for added_tokens");
    if (status == ST_OK && json_kind(list) != JSON_KIND_LIST && json_kind(list) != JSON_KIND_NULL)
        status = error_set(r->err, ST_INVAL, "added_tokens is not a list");
    if (status == ST_OK) status = read_added_list(r, list, specials);
    if (status == ST_OK && !r->vocab->count) status = error_set(r->err, ST_INVAL, "model.vocab has no tokens");
    if (status == ST_OK && !(r->vocab->kinds = mem_alloc(r->vocab->count, 1)))
        status = error_set(r->err, ST_NOMEM, "no memory for the kinds of tokens");
    if (status == ST_OK) {
        for (uint32_t id = 0; id < r->vocab->count; id++)
            r->vocab->kinds[id] = r->entries[id].used ? VOCAB_NORMAL : VOCAB_UNUSED;
        for (uint32_t i = 0; i < r->pipeline->added_count; i++)
            r->vocab->kinds[r->pipeline->added[i].id] = specials[i] ? VOCAB_CONTROL : VOCAB_USER_DEFINED;
    }
    mem_free(specials);
    json_release(list);
    return status;
}

/* Copies the texts out of the file: views first, then the bytes, in one block. */
static enum status keep_tokens(struct reader *r)
{
    struct vocab *vocab = r->vocab;
    size_t bytes = (size_t)vocab->count * sizeof *vocab->tokens;
    for (uint32_t id = 0; id < vocab->count; id++) bytes += r->entries[id].length;
    if (!(vocab->tokens = mem_resize(NULL, bytes, 1)))
        return error_set(r->err, ST_NOMEM, "no memory for the texts of tokens");
    char *at = (char *)(vocab->tokens + vocab->count);
    for (uint32_t id = 0; id < vocab->count; id++) {
        uint32_t length = r->entries[id].length;
        if (length) memcpy(at, r->entries[id].text, length);
        vocab->tokens[id] = (struct vocab_string){at, length};
        r->entries[id].text = at;
        at += length;
    }
    return ST_OK;
}

/* --- merges --- */

static enum status add_merge(struct reader *r, struct json_slice left, struct json_slice right, char *room,
                             size_t room_size, struct vocab_merge *merge)
{
    size_t prefix = r->pipeline->continuing_prefix.length;
    merge->left = find_id(r, left.text, left.length);
    merge->right = find_id(r, right.text, right.length);
    merge->product = VOCAB_NO_ID;
    if (right.length >= prefix && left.length + right.length - prefix <= room_size) {
        memcpy(room, left.text, left.length);
        memcpy(room + left.length, right.text + prefix, right.length - prefix);
        merge->product = find_id(r, room, left.length + right.length - prefix);
    }
    if (merge->left != VOCAB_NO_ID && merge->right != VOCAB_NO_ID && merge->product != VOCAB_NO_ID) return ST_OK;
    return error_set(r->err, ST_INVAL, "model.merges: merge %" PRIu32 " (\"%.*s\" and \"%.*s\") %s",
                     r->vocab->merges_count, (int)(left.length < 64 ? left.length : 64), left.text,
                     (int)(right.length < 64 ? right.length : 64), right.text,
                     merge->left == VOCAB_NO_ID || merge->right == VOCAB_NO_ID ? "is of pieces that are no tokens"
                                                                               : "gives no token");
}

/* One merge: "left right", or ["left", "right"]. */
static bool take_merge(struct json_pull *pull, struct json_slice *left, struct json_slice *right)
{
    if (json_pull_kind(pull) == JSON_KIND_TEXT) {
        if (!json_pull_text(pull, left)) return false;
        char *space = memchr(left->text, ' ', left->length);
        size_t end = space ? (size_t)(space - left->text) : left->length;
        *right = (struct json_slice){left->text + end + 1, left->length - end - (space != NULL)};
        left->length = end;
        if (!space || memchr(right->text, ' ', right->length))
            json_pull_fail(pull, ST_INVAL, "model.merges: a merge is not two parts with a space between");
        return json_pull_ok(pull);
    }
    json_pull_list(pull);
    if (!json_pull_item(pull) || !json_pull_text(pull, left) || !json_pull_item(pull) || !json_pull_text(pull, right) ||
        json_pull_item(pull))
        json_pull_fail(pull, ST_INVAL, "model.merges: a merge is not [left, right]");
    return json_pull_ok(pull);
}

static enum status read_merges_into(struct reader *r, struct json_pull *pull, char *room, size_t room_size)
{
    struct vocab_merge *merges = NULL;
    size_t capacity = 0;
    struct json_slice left = {NULL, 0}, right = {NULL, 0};
    while (json_pull_item(pull) && take_merge(pull, &left, &right)) {
        uint32_t count = r->vocab->merges_count;
        if (count == limits.tokenizer_merges)
            return error_set(r->err, ST_LIMIT, "model.merges has more than %" PRIu64 " merges (tokenizer_merges)",
                             limits.tokenizer_merges);
        if (count == capacity) {
            capacity = capacity ? 2 * capacity : 1024;
            merges = mem_resize(r->pipeline->merges, capacity, sizeof *merges);
            if (!merges) return error_set(r->err, ST_NOMEM, "no memory for the merges");
            r->pipeline->merges = merges;
        }
        TRY(add_merge(r, left, right, room, room_size, &r->pipeline->merges[count]));
        r->vocab->merges_count++;
    }
    return pull->status;
}

static enum status read_merges(struct reader *r)
{
    struct json_pull pull;
    size_t longest = 0;
    if (!r->parts[MODEL_MERGES].text) return ST_OK;
    for (uint32_t id = 0; id < r->vocab->count; id++)
        if (r->entries[id].length > longest) longest = r->entries[id].length;
    char *room = mem_alloc(longest + 1, 1); /* a longer product is no token */
    if (!room) return error_set(r->err, ST_NOMEM, "no memory for the merges");
    json_pull_init(&pull, r->parts[MODEL_MERGES].text, r->parts[MODEL_MERGES].length, r->err);
    json_pull_list(&pull);
    enum status status = read_merges_into(r, &pull, room, longest);
    mem_free(room);
    return status;
}

/* --- the model --- */

/* model.type; files of old releases leave it out. */
static enum status read_model_type(struct reader *r)
{
    static const char *const known[] = {"BPE", "Unigram", "WordPiece", "WordLevel"};
    struct vocab_string type = {NULL, 0};
    TRY(read_text(r, MODEL_TYPE, &type));
    const char *name = type.text;
    if (!name && r->parts[MODEL_MERGES].text) name = "BPE";
    if (!name && r->parts[MODEL_VOCAB].text && *r->parts[MODEL_VOCAB].text == '[') name = "Unigram";
    if (!name && r->parts[MODEL_CONTINUING_PREFIX].text) name = "WordPiece";
    for (size_t i = 0; name && i < sizeof known / sizeof *known; i++) {
        if (strcmp(name, known[i]) != 0) continue;
        memcpy(r->vocab->model, known[i], strlen(known[i]) + 1);
        return ST_OK;
    }
    return error_set(r->err, ST_INVAL, "model.type \"%.64s\" is not known; known: BPE, Unigram, WordPiece, WordLevel",
                     name ? name : "");
}

static enum status read_dropout(struct reader *r)
{
    struct json *tree;
    TRY(read_tree(r, MODEL_DROPOUT, &tree));
    bool none = json_kind(tree) == JSON_KIND_NULL || (json_has_number(tree) && !(json_to_number(tree) > 0));
    json_release(tree);
    return none ? ST_OK : error_set(r->err, ST_INVAL, "model.dropout: merges left out at random are for training only");
}

static enum status read_unknown(struct reader *r)
{
    struct vocab_string token = {NULL, 0};
    bool found;
    uint32_t id = VOCAB_NO_ID;
    r->vocab->unknown_id = VOCAB_NO_ID;
    TRY(read_text(r, MODEL_UNK_TOKEN, &token));
    TRY(read_count(r, MODEL_UNK_ID, &id, &found));
    if (found && id >= r->vocab->count) return error_set(r->err, ST_INVAL, "model.unk_id is %" PRIu32 ", no token", id);
    if (token.text) id = find_id(r, token.text, token.length);
    if (id == VOCAB_NO_ID && !strncmp(r->vocab->model, "Word", 4))
        return error_set(r->err, ST_INVAL, "model.unk_token \"%.64s\" is no token", token.text ? token.text : "");
    r->vocab->unknown_id = id;
    return ST_OK;
}

static enum status read_options(struct reader *r)
{
    struct vocab_pipeline *pipeline = r->pipeline;
    bool found;
    bool unigram = !strcmp(r->vocab->model, "Unigram"), wordpiece = !strcmp(r->vocab->model, "WordPiece");
    pipeline->fuse_unknown = unigram;
    pipeline->word_chars_max = 100;
    if (wordpiece) pipeline->continuing_prefix = (struct vocab_string){"##", 2};
    TRY(read_dropout(r));
    TRY(read_text(r, MODEL_CONTINUING_PREFIX, &pipeline->continuing_prefix));
    TRY(read_text(r, MODEL_WORD_SUFFIX, &pipeline->word_suffix));
    TRY(read_bool(r, MODEL_FUSE_UNK, &pipeline->fuse_unknown));
    TRY(read_bool(r, MODEL_BYTE_FALLBACK, &pipeline->byte_fallback));
    TRY(read_bool(r, MODEL_IGNORE_MERGES, &pipeline->ignore_merges));
    return read_count(r, MODEL_WORD_CHARS, &pipeline->word_chars_max, &found);
}

/* "<0x41>" of the vocabulary is a byte where the model falls back to bytes. */
static void mark_bytes(struct vocab *vocab)
{
    for (uint32_t id = 0; id < vocab->count; id++) {
        const struct vocab_string *t = &vocab->tokens[id];
        if (vocab->kinds[id] == VOCAB_NORMAL && t->length == 6 && !memcmp(t->text, "<0x", 3) && t->text[5] == '>' &&
            memchr("0123456789ABCDEF", t->text[3], 16) && memchr("0123456789ABCDEF", t->text[4], 16))
            vocab->kinds[id] = VOCAB_BYTE;
    }
}

static enum status read_model(struct reader *r)
{
    if (!r->parts[PART_MODEL].text) return error_set(r->err, ST_INVAL, "\"model\" is missing");
    TRY(note_parts(r, r->parts[PART_MODEL], MODEL_TYPE, PARTS, "model"));
    if (!r->parts[MODEL_VOCAB].text) return error_set(r->err, ST_INVAL, "model.vocab is missing");
    TRY(read_model_type(r));
    TRY(read_options(r));
    TRY(index_grow(r));
    TRY(!strcmp(r->vocab->model, "Unigram") ? read_scored(r) : read_map(r));
    uint32_t scored = r->vocab->count;
    TRY(read_added(r));
    TRY(keep_tokens(r));
    TRY(read_unknown(r));
    if (r->pipeline->byte_fallback) mark_bytes(r->vocab);
    if (r->pipeline->scores && r->vocab->count > scored) {
        double *scores = mem_resize(r->pipeline->scores, r->vocab->count, sizeof *scores);
        if (!scores) return error_set(r->err, ST_NOMEM, "no memory for the scores of tokens");
        memset(scores + scored, 0, (r->vocab->count - scored) * sizeof *scores);
        r->pipeline->scores = scores;
    }
    return read_merges(r);
}

static enum status read_stage(struct reader *r, enum part part, enum vocab_stage stage)
{
    struct json *tree;
    TRY(read_tree(r, part, &tree));
    enum status status = stage == STAGE_COUNT ? vocab_json_post_processor(tree, r->vocab, r->pipeline, r->err)
                                              : vocab_json_steps(tree, stage, r->pipeline, r->err);
    json_release(tree);
    return status;
}

static enum status read_all(struct reader *r, char *text, size_t length)
{
    size_t bad;
    if (!utf8_valid(text, length, &bad)) return error_set(r->err, ST_INVAL, "invalid UTF-8 at byte %zu", bad);
    r->vocab->pipeline = r->pipeline = mem_alloc(1, sizeof *r->pipeline);
    if (!r->pipeline || !(r->pipeline->arena = mem_alloc(1, sizeof *r->pipeline->arena)))
        return error_set(r->err, ST_NOMEM, "no memory for the tokeniser's description");
    arena_init(r->pipeline->arena, 0);
    TRY(note_parts(r, (struct json_slice){text, length}, PART_ADDED, FILE_PARTS, "the file"));
    TRY(read_model(r));
    TRY(read_stage(r, PART_NORMALIZER, STAGE_NORMALIZER));
    TRY(read_stage(r, PART_PRE_TOKENIZER, STAGE_PRE_TOKENIZER));
    TRY(read_stage(r, PART_DECODER, STAGE_DECODER));
    return read_stage(r, PART_POST_PROCESSOR, STAGE_COUNT);
}

enum status vocab_read_json(char *text, size_t length, struct vocab *vocab, struct error *err)
{
    struct reader reader = {.vocab = vocab, .err = err};
    random_fill(&reader.seed, sizeof reader.seed);
    *vocab = (struct vocab){.bos_id = VOCAB_NO_ID, .eos_id = VOCAB_NO_ID, .padding_id = VOCAB_NO_ID};
    enum status status = read_all(&reader, text, length);
    mem_free(reader.entries);
    mem_free(reader.index);
    if (status != ST_OK) vocab_free(vocab);
    return status;
}

uint32_t vocab_find(const struct vocab *vocab, const char *text, size_t length)
{
    for (uint32_t id = 0; id < vocab->count; id++)
        if (vocab->tokens[id].length == length && length && !memcmp(vocab->tokens[id].text, text, length)) return id;
    return VOCAB_NO_ID;
}
