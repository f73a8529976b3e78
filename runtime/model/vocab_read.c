/* tokenizer.ggml.* of a GGUF file as plain data; see vocab_read.h.
 *
 * Tokens and merges are copied with one memcpy each: the bytes of the file's array as they stand, lengths and all, and
 * views into the copy. Defaults for keys that are absent are those with which files of that tokenizer were written:
 * SentencePiece ("llama") has bos 1, eos 2, unknown 0, adds bos and a leading space; byte-level BPE ("gpt2") has none,
 * and adds bos only for the pre-tokenisers of Llama 3 and Mistral Nemo. */
#include "runtime/model/vocab_read.h"

#include "runtime/base/arena.h"
#include "runtime/base/limits.h"
#include "runtime/base/mem.h"
#include "runtime/base/utf8.h"
#include "runtime/model/gguf.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

/* Control tokens that end a turn in the families that have them. A file's eos is often the end of a document instead,
 * and not every file has eot_token_id. Source: the chat templates of Qwen, Llama 3, Gemma, Phi 3, GPT-OSS and their
 * kin. */
static const char *const end_names[] = {
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>",      "<|end|>",         "<|end_of_turn|>",
    "<|eot|>",    "<|eom|>",    "<|return|>", "<end_of_utterance>", "<|message_end|>",
};

static bool equals(struct vocab_string a, const char *b)
{
    return strlen(b) == a.length && memcmp(a.text, b, a.length) == 0;
}

/* An optional key: ST_OK with *found false when it is absent. */
static enum status optional(enum status status, bool *found)
{
    *found = status == ST_OK;
    return status == ST_NOTFOUND ? ST_OK : status;
}

static enum status read_short_text(const struct gguf *file, const char *key, bool needed, char *field, size_t capacity,
                                   struct error *err)
{
    struct vocab_string text;
    bool found;
    enum status status = gguf_get_text(file, key, &text, err);
    if (needed && status == ST_NOTFOUND) return ST_INVAL;
    TRY(optional(status, &found));
    field[0] = 0;
    if (!found) return ST_OK;
    if (!text.length || text.length >= capacity || memchr(text.text, 0, text.length))
        return error_set(err, ST_INVAL, "key %s holds a name of %" PRIu32 " bytes that cannot be one", key,
                         text.length);
    memcpy(field, text.text, text.length);
    field[text.length] = 0;
    return ST_OK;
}

/* Copies an array of texts. The views come first in the block, the bytes after them, so that one mem_free releases
 * both. */
static enum status copy_texts(const struct gguf_key *array, struct vocab_string **texts, struct error *err)
{
    size_t views_bytes, bytes;
    struct vocab_string *views = NULL;
    if (checked_mul(array->count, sizeof *views, &views_bytes) && checked_add(views_bytes, array->value_bytes, &bytes))
        views = mem_alloc(bytes, 1);
    if (!views)
        return error_set(err, ST_NOMEM, "no memory for the %" PRIu64 " texts of key %.*s", array->count,
                         (int)array->name_length, array->name);
    char *copy = (char *)(views + array->count);
    memcpy(copy, array->value, array->value_bytes);
    gguf_array_texts(array, views);
    for (uint64_t i = 0; i < array->count; i++) views[i].text = copy + (views[i].text - (const char *)array->value);
    *texts = views;
    return ST_OK;
}

static enum status read_tokens(const struct gguf *file, struct vocab *vocab, struct error *err)
{
    const struct gguf_key *array = NULL;
    if (gguf_get_array(file, "tokenizer.ggml.tokens", GGUF_TEXT, &array, err) != ST_OK) return ST_INVAL;
    if (!array->count || array->count > limits.model_vocab)
        return error_set(err, array->count ? ST_LIMIT : ST_INVAL,
                         "key tokenizer.ggml.tokens holds %" PRIu64 " tokens, possible are 1 to %" PRIu64
                         " (model_vocab)",
                         array->count, limits.model_vocab);
    TRY(copy_texts(array, &vocab->tokens, err));
    vocab->count = (uint32_t)array->count;
    return ST_OK;
}

static enum status check_length(const struct gguf_key *array, const struct vocab *vocab, struct error *err)
{
    if (array->count == vocab->count) return ST_OK;
    return error_set(err, ST_INVAL, "key %.*s has %" PRIu64 " items for %" PRIu32 " tokens", (int)array->name_length,
                     array->name, array->count, vocab->count);
}

static enum status read_kinds(const struct gguf *file, struct vocab *vocab, struct error *err)
{
    const struct gguf_key *array = NULL;
    bool found;
    TRY(optional(gguf_get_array(file, "tokenizer.ggml.token_type", GGUF_I32, &array, err), &found));
    if (!(vocab->kinds = mem_alloc(vocab->count, 1)))
        return error_set(err, ST_NOMEM, "no memory for the kinds of tokens");
    memset(vocab->kinds, VOCAB_NORMAL, vocab->count);
    if (!found) return ST_OK;
    TRY(check_length(array, vocab, err));
    for (uint32_t i = 0; i < vocab->count; i++) {
        int32_t kind;
        memcpy(&kind, array->value + 4 * (size_t)i, 4);
        if (kind < 0 || kind > VOCAB_BYTE)
            return error_set(err, ST_INVAL,
                             "key tokenizer.ggml.token_type: token %" PRIu32 " is of kind %" PRId32 ", known are 1..6",
                             i, kind);
        if (kind) vocab->kinds[i] = (uint8_t)kind; /* 0: the converter did not know */
    }
    return ST_OK;
}

static enum status read_scores(const struct gguf *file, struct vocab *vocab, struct error *err)
{
    const struct gguf_key *array = NULL;
    bool found;
    TRY(optional(gguf_get_array(file, "tokenizer.ggml.scores", GGUF_F32, &array, err), &found));
    if (!found) return ST_OK;
    TRY(check_length(array, vocab, err));
    if (!(vocab->scores = mem_alloc(vocab->count, sizeof *vocab->scores)))
        return error_set(err, ST_NOMEM, "no memory for the scores of tokens");
    memcpy(vocab->scores, array->value, vocab->count * sizeof *vocab->scores);
    for (uint32_t i = 0; i < vocab->count; i++)
        if (!isfinite(vocab->scores[i]))
            return error_set(err, ST_INVAL, "key tokenizer.ggml.scores: the score of token %" PRIu32 " is not finite",
                             i);
    return ST_OK;
}

static enum status read_merges(const struct gguf *file, struct vocab *vocab, struct error *err)
{
    const struct gguf_key *array = NULL;
    bool found;
    TRY(optional(gguf_get_array(file, "tokenizer.ggml.merges", GGUF_TEXT, &array, err), &found));
    if (!found) return ST_OK;
    TRY(copy_texts(array, &vocab->merges, err));
    vocab->merges_count = (uint32_t)array->count; /* gguf_array_items is far below 2^32 */
    for (uint32_t i = 0; i < vocab->merges_count; i++) {
        struct vocab_string merge = vocab->merges[i];
        if (merge.length < 3 || !memchr(merge.text + 1, ' ', merge.length - 2))
            return error_set(err, ST_INVAL,
                             "key tokenizer.ggml.merges: merge %" PRIu32 " is not two parts with a space between", i);
    }
    return ST_OK;
}

static enum status read_id(const struct gguf *file, const struct vocab *vocab, const char *key, uint32_t fallback,
                           uint32_t *id, struct error *err)
{
    bool found;
    *id = fallback < vocab->count ? fallback : VOCAB_NO_ID;
    TRY(optional(gguf_get_u32(file, key, id, err), &found));
    if (found && *id >= vocab->count)
        return error_set(err, ST_INVAL, "key %s is %" PRIu32 ", but there are only %" PRIu32 " tokens", key, *id,
                         vocab->count);
    return ST_OK;
}

static enum status read_flag(const struct gguf *file, const char *key, bool fallback, bool *flag, struct error *err)
{
    bool found;
    *flag = fallback;
    return optional(gguf_get_bool(file, key, flag, err), &found);
}

bool vocab_add_end(struct vocab *vocab, uint32_t id)
{
    if (id == VOCAB_NO_ID) return true;
    for (uint32_t i = 0; i < vocab->end_ids_count; i++)
        if (vocab->end_ids[i] == id) return true;
    if (vocab->end_ids_count == VOCAB_END_IDS_MAX) return false;
    vocab->end_ids[vocab->end_ids_count++] = id;
    return true;
}

_Static_assert(3 + sizeof end_names / sizeof *end_names <= VOCAB_END_IDS_MAX, "every end has room");

void vocab_add_turn_ends(struct vocab *vocab)
{
    for (uint32_t i = 0; i < vocab->count; i++)
        for (size_t n = 0; vocab->kinds[i] == VOCAB_CONTROL && n < sizeof end_names / sizeof *end_names; n++)
            if (equals(vocab->tokens[i], end_names[n])) vocab_add_end(vocab, i);
}

static enum status read_ids(const struct gguf *file, struct vocab *vocab, struct error *err)
{
    bool spm = strcmp(vocab->model, "llama") == 0;
    uint32_t eot, eom;
    TRY(read_id(file, vocab, "tokenizer.ggml.bos_token_id", spm ? 1 : VOCAB_NO_ID, &vocab->bos_id, err));
    TRY(read_id(file, vocab, "tokenizer.ggml.eos_token_id", spm ? 2 : VOCAB_NO_ID, &vocab->eos_id, err));
    TRY(read_id(file, vocab, "tokenizer.ggml.unknown_token_id", spm ? 0 : VOCAB_NO_ID, &vocab->unknown_id, err));
    TRY(read_id(file, vocab, "tokenizer.ggml.padding_token_id", VOCAB_NO_ID, &vocab->padding_id, err));
    TRY(read_id(file, vocab, "tokenizer.ggml.eot_token_id", VOCAB_NO_ID, &eot, err));
    TRY(read_id(file, vocab, "tokenizer.ggml.eom_token_id", VOCAB_NO_ID, &eom, err));
    vocab_add_end(vocab, vocab->eos_id);
    vocab_add_end(vocab, eot);
    vocab_add_end(vocab, eom);
    vocab_add_turn_ends(vocab);
    return ST_OK;
}

static enum status read_flags(const struct gguf *file, struct vocab *vocab, struct error *err)
{
    bool spm = strcmp(vocab->model, "llama") == 0;
    bool adds = strcmp(vocab->pre, "llama-bpe") == 0 || strcmp(vocab->pre, "tekken") == 0 ||
                strcmp(vocab->pre, "llama3") == 0 || strcmp(vocab->pre, "llama-v3") == 0;
    TRY(read_flag(file, "tokenizer.ggml.add_bos_token", (spm || adds) && vocab->bos_id != VOCAB_NO_ID, &vocab->add_bos,
                  err));
    TRY(read_flag(file, "tokenizer.ggml.add_eos_token", false, &vocab->add_eos, err));
    TRY(read_flag(file, "tokenizer.ggml.add_space_prefix", spm, &vocab->add_space_prefix, err));
    if (vocab->add_bos && vocab->bos_id == VOCAB_NO_ID)
        return error_set(err, ST_INVAL,
                         "key tokenizer.ggml.add_bos_token is true, but tokenizer.ggml.bos_token_id is missing");
    if (vocab->add_eos && vocab->eos_id == VOCAB_NO_ID)
        return error_set(err, ST_INVAL,
                         "key tokenizer.ggml.add_eos_token is true, but tokenizer.ggml.eos_token_id is missing");
    return ST_OK;
}

static enum status read_all(const struct gguf *file, struct vocab *vocab, struct error *err)
{
    TRY(read_short_text(file, "tokenizer.ggml.model", true, vocab->model, sizeof vocab->model, err));
    TRY(read_short_text(file, "tokenizer.ggml.pre", false, vocab->pre, sizeof vocab->pre, err));
    TRY(read_tokens(file, vocab, err));
    TRY(read_kinds(file, vocab, err));
    TRY(read_scores(file, vocab, err));
    TRY(read_merges(file, vocab, err));
    TRY(read_ids(file, vocab, err));
    return read_flags(file, vocab, err);
}

enum status vocab_read(const struct gguf *file, struct vocab *vocab, struct error *err)
{
    *vocab = (struct vocab){0};
    enum status status = read_all(file, vocab, err);
    if (status != ST_OK) vocab_free(vocab);
    return status;
}

void vocab_free(struct vocab *vocab)
{
    mem_free(vocab->tokens);
    mem_free(vocab->kinds);
    mem_free(vocab->scores);
    mem_free(vocab->merges);
    if (vocab->pipeline) {
        mem_free(vocab->pipeline->merges);
        mem_free(vocab->pipeline->scores);
        if (vocab->pipeline->arena) arena_free(vocab->pipeline->arena);
        mem_free(vocab->pipeline->arena);
        mem_free(vocab->pipeline);
    }
    *vocab = (struct vocab){0};
}

enum status vocab_read_template(const struct gguf *file, const char **text, size_t *length, struct error *err)
{
    struct vocab_string found_text;
    bool found;
    size_t bad;
    TRY(optional(gguf_get_text(file, "tokenizer.chat_template", &found_text, err), &found));
    *text = NULL;
    *length = 0;
    if (!found || !found_text.length) return ST_OK;
    if (memchr(found_text.text, 0, found_text.length) || !utf8_valid(found_text.text, found_text.length, &bad))
        return error_set(err, ST_INVAL, "key tokenizer.chat_template is not valid UTF-8 text without NUL bytes");
    char *copy = mem_strdup(found_text.text, found_text.length);
    if (!copy) return error_set(err, ST_NOMEM, "no memory for the chat template");
    *text = copy;
    *length = found_text.length;
    return ST_OK;
}
