/* SentencePiece vocabularies, merged by score, against plain loops; and how text gets its "▁". */
#include "tests/unit/unit.h"

#include "runtime/base/mem.h"
#include "runtime/base/random.h"
#include "runtime/text/detokenizer.h"
#include "runtime/text/tokenizer.h"

enum { TOKENS_MAX = 400 };
#define MARK "\xe2\x96\x81"

static struct {
    struct vocab vocab;
    struct vocab_string tokens[TOKENS_MAX];
    uint8_t kinds[TOKENS_MAX];
    float scores[TOKENS_MAX];
    char bytes[256][8];
} made;

static uint32_t add(const char *text, uint8_t kind, float score)
{
    uint32_t id = made.vocab.count++;
    made.tokens[id] = (struct vocab_string){text, (uint32_t)strlen(text)};
    made.kinds[id] = kind;
    made.scores[id] = score;
    return id;
}

/* <unk> <s> </s>, 256 bytes, then words over "a", "b", "c" and the mark. No character is left without a token. */
static void make(bool space_prefix)
{
    static const char *const words[] = {MARK,     "a",      "b",       "c",        "ab",       "aa",  "aaa",
                                        MARK "a", "bc",     "abc",     MARK "abc", "cc",       "cca", "aab",
                                        "bca",    MARK "b", MARK "ab", MARK MARK,  ("c" MARK), "aaaa"};
    static const float scores[] = {-99, -99, -99, -99, -3, -2, -2, -5,  -4,  -1,
                                   -9,  -6,  -7,  -8,  -8, -5, -2, -10, -11, -12};
    memset(&made, 0, sizeof made);
    made.vocab.tokens = made.tokens;
    made.vocab.kinds = made.kinds;
    made.vocab.scores = made.scores;
    snprintf(made.vocab.model, sizeof made.vocab.model, "llama");
    add("<unk>", VOCAB_UNKNOWN, 0);
    add("<s>", VOCAB_CONTROL, 0);
    add("</s>", VOCAB_CONTROL, 0);
    for (int b = 0; b < 256; b++) {
        snprintf(made.bytes[b], sizeof made.bytes[b], "<0x%02X>", (unsigned)b);
        add(made.bytes[b], VOCAB_BYTE, 0);
    }
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) add(words[i], VOCAB_NORMAL, scores[i]);
    made.vocab.unknown_id = 0;
    made.vocab.bos_id = 1;
    made.vocab.eos_id = 2;
    made.vocab.padding_id = VOCAB_NO_ID;
    made.vocab.add_bos = true;
    made.vocab.add_space_prefix = space_prefix;
}

static struct tokenizer *create(bool space_prefix)
{
    struct tokenizer *tokenizer = NULL;
    struct error err = {""};
    make(space_prefix);
    if (tokenizer_create(&made.vocab, &tokenizer, &err) != ST_OK) fail_msg("%s", err.message);
    return tokenizer;
}

/* --- the meaning, in plain loops --- */

struct symbol {
    const char *text;
    size_t length;
};

static int find(const char *text, size_t length)
{
    for (uint32_t id = 259; id < made.vocab.count; id++)
        if (made.tokens[id].length == length && !memcmp(made.tokens[id].text, text, length)) return (int)id;
    return -1;
}

static size_t reference(const char *text, size_t length, uint32_t *ids)
{
    static struct symbol symbols[4096];
    size_t n = 0, count = 0;
    for (size_t i = 0, k; i < length; i += k) {
        k = (text[i] & 0x80) ? 3 : 1; /* ASCII and the mark */
        symbols[n++] = (struct symbol){text + i, k};
    }
    for (;;) {
        size_t best = n;
        float best_score = 0;
        for (size_t i = 0; i + 1 < n; i++) {
            int id = find(symbols[i].text, symbols[i].length + symbols[i + 1].length);
            if (id >= 0 && (best == n || made.scores[id] > best_score)) {
                best = i;
                best_score = made.scores[id];
            }
        }
        if (best == n) break;
        symbols[best].length += symbols[best + 1].length;
        memmove(&symbols[best + 1], &symbols[best + 2], (n - best - 2) * sizeof *symbols);
        n--;
    }
    for (size_t i = 0; i < n; i++) {
        int id = find(symbols[i].text, symbols[i].length);
        for (size_t k = 0; id < 0 && k < symbols[i].length; k++) ids[count++] = 3 + (unsigned char)symbols[i].text[k];
        if (id >= 0) ids[count++] = (uint32_t)id;
    }
    return count;
}

static void test_tokenizer_bpe_merges_by_score(void **state)
{
    (void)state;
    struct tokenizer *t = create(false);
    uint64_t random = 20240607;
    print_message("seed 20240607\n");
    for (int round = 0; round < 400; round++) {
        static const char letters[] = "aaabbcc  x";
        char text[1200], marked[3600];
        static uint32_t wanted[4096];
        size_t length = (size_t)(random_next(&random) % (round % 10 ? 60 : 1200)), n = 0;
        for (size_t i = 0; i < length; i++) {
            text[i] = letters[(size_t)(random_next(&random) % (10))];
            if (text[i] == ' ')
                memcpy(marked + n, MARK, 3), n += 3;
            else
                marked[n++] = text[i];
        }
        struct token_list list = {0};
        size_t count = reference(marked, n, wanted);
        assert_int_equal(tokenizer_encode(t, text, length, NULL, 0, false, &list), ST_OK);
        assert_int_equal(list.count, count);
        if (count) assert_memory_equal(list.ids, wanted, count * sizeof *wanted);
        token_list_free(&list);
    }
    tokenizer_destroy(t);
}

static void expect(const struct tokenizer *t, const char *text, size_t length, bool trusted, const char *wanted)
{
    char line[512] = "";
    size_t n = 0;
    struct token_list list = {0};
    struct text_span span = {length, trusted};
    assert_int_equal(tokenizer_encode(t, text, length, &span, 1, false, &list), ST_OK);
    for (size_t i = 0; i < list.count; i++)
        n += (size_t)snprintf(line + n, sizeof line - n, "%s%.*s", i ? "|" : "", (int)made.tokens[list.ids[i]].length,
                              made.tokens[list.ids[i]].text);
    assert_string_equal(line, wanted);
    token_list_free(&list);
}

static void test_tokenizer_bpe_writes_spaces(void **state)
{
    (void)state;
    struct tokenizer *t = create(true);
    expect(t, "abc", 3, false, MARK "abc");
    expect(t, " abc", 4, false, MARK "|" MARK "abc");
    expect(t, "", 0, false, "");
    expect(t, "a<s>b", 5, true, MARK "a|<s>|" MARK "b"); /* every part gets its own */
    expect(t, "b<s>", 4, false, MARK "b|<0x3C>|<0x73>|<0x3E>");
    tokenizer_destroy(t);
    t = create(false);
    expect(t, "abc", 3, false, "abc");
    expect(t, "a\xff\xe2\x96z", 5, false, "a|<0xFF>|<0xE2>|<0x96>|<0x7A>");
    tokenizer_destroy(t);
}

static void check_text(const struct tokenizer *t, bool whole, const uint32_t *ids, size_t count, const char *wanted)
{
    struct detokenizer d;
    struct buf text;
    buf_init(&text, 0);
    if (whole)
        detokenizer_init_whole(&d, t, true);
    else
        detokenizer_init(&d, t, true);
    for (size_t i = 0; i < count; i++) detokenizer_push(&d, ids[i], &text);
    detokenizer_finish(&d, &text);
    assert_int_equal(text.length, strlen(wanted));
    assert_memory_equal(text.data, wanted, text.length);
    buf_free(&text);
}

/* A whole text does not begin with the space that was put there; what follows a prompt keeps its own. */
static void test_tokenizer_bpe_reads_spaces(void **state)
{
    (void)state;
    struct tokenizer *t = create(true);
    uint32_t ids[] = {(uint32_t)find(MARK "abc", 6), 3 + 0xc3, 3 + 0xa9, (uint32_t)find(MARK "a", 4)};
    check_text(t, true, ids, 4, "abc\xc3\xa9 a");
    check_text(t, false, ids, 4, " abc\xc3\xa9 a");
    tokenizer_destroy(t);
}

/* A million equal letters: the heap's way. It ends; a quadratic way would not within the test's time. */
static void test_tokenizer_bpe_long_run(void **state)
{
    (void)state;
    enum { LENGTH = 1000000 };
    struct tokenizer *t = create(false);
    struct token_list list = {0};
    char *text = mem_alloc(LENGTH, 1);
    assert_non_null(text);
    memset(text, 'a', LENGTH);
    assert_int_equal(tokenizer_encode(t, text, LENGTH, NULL, 0, false, &list), ST_OK);
    assert_true(list.count >= LENGTH / 4 && list.count <= LENGTH / 2);
    mem_free(text);
    token_list_free(&list);
    tokenizer_destroy(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tokenizer_bpe_merges_by_score),
        cmocka_unit_test(test_tokenizer_bpe_writes_spaces),
        cmocka_unit_test(test_tokenizer_bpe_reads_spaces),
        cmocka_unit_test(test_tokenizer_bpe_long_run),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
