/* Arbitrary text, spans and pre-tokenisers over a small vocabulary: no error but ST_LIMIT, the ids' bytes are the text,
 * no control token outside trusted spans, and the detokenizer gives valid UTF-8. A second way in makes the vocabulary
 * from the input: the modules may refuse it, and must not do worse (they are called by themselves, since the table of
 * Unicode classes that comes with a whole tokenizer takes longer than all the rest). */
#include "runtime/base/check.h"
#include "runtime/base/mem.h"
#include "runtime/base/utf8.h"
#include "runtime/text/detokenizer.h"
#include "runtime/text/special_tokens.h"
#include "runtime/text/tokenizer.h"
#include "runtime/text/tokenizer_bpe.h"
#include "tests/unit/runtime/tiny_vocab.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const pres[] = {"gpt-2", "smollm", "llama-bpe", "qwen2", "qwen35"};
enum { PRES = sizeof pres / sizeof *pres };

static void check_back(const struct tokenizer *t, const struct token_list *list, const char *text, size_t length,
                       const struct text_span *spans)
{
    struct detokenizer d;
    struct buf out;
    size_t at = 0;
    buf_init(&out, 0);
    detokenizer_init(&d, t, false);
    for (size_t i = 0; i < list->count; i++) {
        uint32_t bytes;
        const char *part = tokenizer_bytes(t, list->ids[i], &bytes);
        CHECK(bytes <= length - at && !memcmp(part, text + at, bytes));
        for (size_t k = at; tokenizer_is_special(t, list->ids[i]) && k < at + bytes; k++)
            CHECK(spans[k < spans[0].end ? 0 : k < spans[1].end ? 1 : 2].trusted);
        at += bytes;
        detokenizer_push(&d, list->ids[i], &out);
    }
    CHECK_EQ(at, length);
    detokenizer_finish(&d, &out);
    CHECK(utf8_valid(out.data, out.length, NULL));
    buf_free(&out);
}

static void fuzz_text(const uint8_t *data, size_t size)
{
    static struct tokenizer *tokenizers[PRES];
    const char *text = (const char *)data + 4;
    size_t length = size - 4, a = data[1] % (length + 1), b = a + data[2] % (length - a + 1);
    struct text_span spans[] = {{a, data[3] & 1}, {b, data[3] & 2}, {length, data[3] & 4}};
    struct token_list list = {.limit = data[3] & 8 ? data[2] + 1u : 0};
    struct tokenizer **t = &tokenizers[data[0] / 2 % PRES];
    struct error err;
    if (!*t) {
        static struct tiny_vocab tiny;
        tiny_init(&tiny, pres[data[0] / 2 % PRES]);
        tiny_add_merges(&tiny);
        CHECK_EQ(tokenizer_create(&tiny.vocab, t, &err), ST_OK);
    }
    enum status st = tokenizer_encode(*t, text, length, spans, 3, false, &list);
    if (st == ST_OK)
        check_back(*t, &list, text, length, spans);
    else
        CHECK(st == ST_LIMIT && list.limit && !list.count);
    token_list_free(&list);
}

/* Records (kind, length, bytes): kind 0..7 a token of that kind, else a merge. */
static void fuzz_vocab(const uint8_t *data, size_t size)
{
    static struct tiny_vocab tiny;
    struct token_table table = {0};
    struct special_tokens special = {0};
    struct bpe bpe = {0};
    struct bpe_scratch scratch = {0};
    struct token_list list = {0};
    struct error err = {""};
    uint64_t work = 0;
    tiny_init(&tiny, pres[0]);
    if (data[1] & 128) tiny_add_merges(&tiny);
    for (size_t at = 4; at + 2 < size;) {
        uint8_t kind = data[at] % 16, length = data[at + 1] % TINY_TEXT_MAX;
        char merge[TINY_TEXT_MAX];
        at += 2;
        if (length > size - at) length = (uint8_t)(size - at);
        if (kind < 8 && tiny.vocab.count < TINY_TOKENS_MAX) {
            tiny_add(&tiny, (const char *)data + at, length, kind);
        } else if (kind >= 8 && tiny.vocab.merges_count < TINY_MERGES_MAX) {
            memcpy(merge, data + at, length);
            merge[length] = 0;
            tiny_add_merge_text(&tiny, merge);
        }
        at += length;
    }
    struct bpe_options options = {.whole_words = data[1] & 64, .unknown_id = VOCAB_NO_ID};
    enum status st = token_table_init(&table, &tiny.vocab, true, &err);
    for (uint32_t id = 0; id < table.count && st == ST_OK; id++) {
        uint32_t length;
        const char *bytes = token_table_get(&table, id, &length);
        if (table.kinds[id] == VOCAB_CONTROL && length)
            st = special_tokens_add(&special, bytes, length, (struct special_name){.id = id});
    }
    if (st == ST_OK) st = special_tokens_sort(&special, &err);
    if (st == ST_OK) st = bpe_init(&bpe, &table, &tiny.vocab, &options, &err);
    CHECK(st == ST_OK || (st == ST_INVAL && *err.message));
    if (st == ST_OK) {
        CHECK_EQ(bpe_encode(&bpe, (const char *)data, size, &scratch, &list), ST_OK);
        for (size_t i = 0; i < list.count; i++)
            CHECK(table.kinds[list.ids[i]] == VOCAB_NORMAL || table.kinds[list.ids[i]] == VOCAB_USER_DEFINED);
        for (size_t i = 0; i < size; i++)
            special_tokens_match(&special, (const char *)data + i, size - i, data[2], &work);
    }
    token_list_free(&list);
    bpe_scratch_free(&scratch);
    bpe_free(&bpe);
    special_tokens_free(&special);
    token_table_free(&table);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 4) return 0;
    if (data[0] & 1)
        fuzz_vocab(data, size);
    else
        fuzz_text(data, size);
    return 0;
}
