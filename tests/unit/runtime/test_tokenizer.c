/* The tokenizer over a vocabulary made by hand. Includes the file under test for the count of its work. */
#include "tests/unit/unit.h"
#include "tests/unit/runtime/tiny_vocab.h"

#include "runtime/base/random.h"
#include "runtime/text/tokenizer.c"

#include <pthread.h>

static struct tokenizer *create(const char *pre)
{
    struct tiny_vocab *tiny = mem_alloc(1, sizeof *tiny);
    struct tokenizer *tokenizer = NULL;
    struct error err = {""};
    assert_non_null(tiny);
    tiny_init(tiny, pre);
    tiny_add_merges(tiny);
    assert_int_equal(tokenizer_create(&tiny->vocab, &tokenizer, &err), ST_OK);
    mem_free(tiny); /* the tokenizer has copied what it needs */
    return tokenizer;
}

/* The ids of text as a line: single bytes as themselves, other tokens as [bytes]. Spans as in tokenizer_encode. */
static const char *line_of(const struct tokenizer *t, const char *text, const struct text_span *spans, size_t count)
{
    static char line[4096];
    struct token_list list = {0};
    size_t n = 0;
    assert_int_equal(tokenizer_encode(t, text, strlen(text), spans, count, false, &list), ST_OK);
    for (size_t i = 0; i < list.count; i++) {
        uint32_t length;
        const char *bytes = tokenizer_bytes(t, list.ids[i], &length);
        const char *marks = length == 1 ? "" : list.ids[i] < TINY_PLAIN ? "{}" : "[]";
        n += (size_t)snprintf(line + n, sizeof line - n, "%.1s%.*s%s", marks, (int)length, bytes,
                              *marks ? marks + 1 : "");
    }
    line[n] = 0;
    token_list_free(&list);
    return line;
}

static void test_tokenizer_merges_by_rank(void **state)
{
    (void)state;
    struct tokenizer *t = create("gpt-2");
    assert_string_equal(line_of(t, "hello", NULL, 0), "[hello]");
    assert_string_equal(line_of(t, "say hello", NULL, 0), "say[ hello]");
    assert_string_equal(line_of(t, "zhello", NULL, 0), "[zhello]");
    assert_string_equal(line_of(t, "hellohel", NULL, 0), "[hello][he]l");
    assert_string_equal(line_of(t, "lll", NULL, 0), "[ll]l"); /* the leftmost of equals first */
    assert_string_equal(line_of(t, "cab", NULL, 0), "c[ab]"); /* a+b ranks before c+a: "cab" is never reached */
    assert_string_equal(line_of(t, "", NULL, 0), "");
    tokenizer_destroy(t);
}

/* "cab" is a token that its merges do not lead to: Llama 3's vocabularies take it as it is. */
static void test_tokenizer_whole_words(void **state)
{
    (void)state;
    struct tokenizer *t = create("llama-bpe");
    assert_string_equal(line_of(t, "cab", NULL, 0), "[cab]");
    assert_string_equal(line_of(t, "cabb", NULL, 0), "c[ab]b");
    tokenizer_destroy(t);
}

/* Names whose expressions have no lexer: "HelloWorld" is two words there, numbers are cut to three or one. */
static void test_tokenizer_expressions(void **state)
{
    (void)state;
    struct tokenizer *t = create("gpt-4o");
    assert_string_equal(line_of(t, "hello", NULL, 0), "[hello]");
    assert_string_equal(line_of(t, "aB ab", NULL, 0), "aB [ab]");
    assert_string_equal(line_of(t, "cab", NULL, 0), "c[ab]");
    tokenizer_destroy(t);
    t = create("tekken");
    assert_string_equal(line_of(t, "cab", NULL, 0), "[cab]"); /* whole words */
    assert_string_equal(line_of(t, "\xff\xe4\xb8\xad!!", NULL, 0), "\xff[\xe4\xb8\xad][!!]");
    tokenizer_destroy(t);
}

static void test_tokenizer_special_tokens_need_trust(void **state)
{
    (void)state;
    struct tokenizer *t = create("gpt-2");
    const char *text = "x<|a|>y";
    struct text_span span = {7, true};
    assert_string_equal(line_of(t, text, NULL, 0), "x[<|]a[|>]y");
    assert_string_equal(line_of(t, text, &span, 1), "x{<|a|>}y");
    span.trusted = false;
    assert_string_equal(line_of(t, text, &span, 1), "x[<|]a[|>]y");
    assert_string_equal(line_of(t, text, (struct text_span[]){{6, true}, {7, false}}, 2), "x{<|a|>}y");
    assert_string_equal(line_of(t, text, (struct text_span[]){{5, true}, {7, false}}, 2), "x[<|]a[|>]y");
    assert_string_equal(line_of(t, text, (struct text_span[]){{2, false}, {7, true}}, 2), "x[<|]a[|>]y");
    assert_string_equal(line_of(t, text, (struct text_span[]){{3, true}, {7, true}}, 2), "x{<|a|>}y");
    assert_string_equal(line_of(t, text, (struct text_span[]){{3, true}, {3, false}, {7, true}}, 3), "x{<|a|>}y");
    assert_string_equal(line_of(t, text, (struct text_span[]){{0, false}, {1, false}, {7, true}}, 3), "x{<|a|>}y");
    assert_string_equal(line_of(t, text, (struct text_span[]){{3, true}, {4, false}, {7, true}}, 3), "x[<|]a[|>]y");
    tokenizer_destroy(t);
}

static void test_tokenizer_longest_special_first(void **state)
{
    (void)state;
    struct tokenizer *t = create("gpt-2");
    struct text_span all = {9, true};
    assert_string_equal(line_of(t, "<|a|><|bx", &all, 1), "{<|a|><|b}x");
    assert_string_equal(line_of(t, "<|a|><|xx", &all, 1), "{<|a|>}[<|]xx");
    assert_string_equal(line_of(t, "<|a|><|bx", (struct text_span[]){{7, true}, {9, false}}, 2), "{<|a|>}[<|]bx");
    all.end = 5;
    assert_string_equal(line_of(t, "<unk>", &all, 1), "{<unk>}");
    assert_string_equal(line_of(t, "<unk>", NULL, 0), "<unk>");
    tokenizer_destroy(t);
}

static void test_tokenizer_user_defined_anywhere(void **state)
{
    (void)state;
    struct tokenizer *t = create("gpt-2");
    struct text_span span = {11, false};
    assert_string_equal(line_of(t, "he<think>he", NULL, 0), "[he]{<think>}[he]");
    assert_string_equal(line_of(t, "he<think>he", &span, 1), "[he]{<think>}[he]");
    assert_string_equal(line_of(t, "<thin<think", NULL, 0), "<thin<think");
    tokenizer_destroy(t);
}

/* A template with harmless content gives the ids of the rendered string. */
static void test_tokenizer_merges_across_spans(void **state)
{
    (void)state;
    struct tokenizer *t = create("gpt-2");
    const char *text = "say hello<|a|>hello";
    assert_string_equal(line_of(t, text, (struct text_span[]){{6, true}, {8, false}, {19, true}}, 3),
                        "say[ hello]{<|a|>}[hello]");
    tokenizer_destroy(t);
}

static void test_tokenizer_bos_and_eos(void **state)
{
    (void)state;
    struct tiny_vocab tiny;
    struct tokenizer *t;
    struct error err;
    struct token_list list = {0};
    tiny_init(&tiny, "gpt-2");
    tiny.vocab.add_bos = tiny.vocab.add_eos = true;
    assert_int_equal(tokenizer_create(&tiny.vocab, &t, &err), ST_OK);
    assert_int_equal(tokenizer_encode(t, "x", 1, NULL, 0, true, &list), ST_OK);
    assert_int_equal(tokenizer_encode(t, "y", 1, NULL, 0, false, &list), ST_OK); /* appends */
    assert_int_equal(list.count, 4);
    assert_memory_equal(list.ids, ((uint32_t[]){TINY_BOS, 'x', TINY_EOS, 'y'}), 16);
    assert_true(tokenizer_adds_bos(t));
    token_list_free(&list);
    tokenizer_destroy(t);
    tiny.vocab.bos_id = VOCAB_NO_ID;
    assert_int_equal(tokenizer_create(&tiny.vocab, &t, &err), ST_OK);
    assert_false(tokenizer_adds_bos(t));
    tokenizer_destroy(t);
}

static void test_tokenizer_queries(void **state)
{
    (void)state;
    struct tokenizer *t = create("gpt-2");
    uint32_t length, count;
    assert_memory_equal(tokenizer_bytes(t, ' ', &length), " ", 1);
    assert_int_equal(length, 1);
    assert_memory_equal(tokenizer_bytes(t, TINY_USER, &length), "<think>", 7);
    assert_non_null(tokenizer_bytes(t, tokenizer_count(t), &length));
    assert_int_equal(length, 0);
    assert_non_null(tokenizer_bytes(t, UINT32_MAX, &length));
    assert_int_equal(length, 0);
    assert_true(tokenizer_is_special(t, TINY_CONTROL) && tokenizer_is_special(t, TINY_UNKNOWN));
    assert_false(tokenizer_is_special(t, TINY_USER) || tokenizer_is_special(t, 'a'));
    assert_false(tokenizer_is_special(t, UINT32_MAX));
    assert_int_equal(tokenizer_special_id(t, "<think>"), TINY_USER);
    assert_int_equal(tokenizer_special_id(t, "<|a|>"), TINY_CONTROL);
    assert_int_equal(tokenizer_special_id(t, "<|a|>x"), VOCAB_NO_ID);
    assert_int_equal(tokenizer_special_id(t, "<|a"), VOCAB_NO_ID);
    assert_int_equal(tokenizer_special_id(t, ""), VOCAB_NO_ID);
    assert_int_equal(tokenizer_special_id(t, "hello"), VOCAB_NO_ID);
    assert_int_equal(tokenizer_bos(t), TINY_BOS);
    assert_int_equal(tokenizer_eos(t), TINY_EOS);
    assert_int_equal(*tokenizer_end_ids(t, &count), TINY_EOS);
    assert_int_equal(count, 1);
    char name[8];
    tokenizer_copy_name(t, TINY_CONTROL, name, sizeof name);
    assert_string_equal(name, "<|a|>");
    tokenizer_copy_name(t, TINY_CONTROL, name, 6); /* just fits */
    assert_string_equal(name, "<|a|>");
    tokenizer_copy_name(t, TINY_CONTROL, name, 5);
    assert_string_equal(name, "");
    tokenizer_copy_name(t, VOCAB_NO_ID, name, sizeof name);
    assert_string_equal(name, "");
    tokenizer_destroy(t);
}

static void test_tokenizer_limit(void **state)
{
    (void)state;
    struct tokenizer *t = create("gpt-2");
    struct token_list list = {.limit = 4};
    char run[1000];
    assert_int_equal(tokenizer_encode(t, "xy", 2, NULL, 0, false, &list), ST_OK);
    assert_int_equal(list.count, 1);
    assert_int_equal(tokenizer_encode(t, "pqr", 3, NULL, 0, false, &list), ST_OK);
    assert_int_equal(list.count, 4);
    assert_int_equal(tokenizer_encode(t, "q", 1, NULL, 0, false, &list), ST_LIMIT);
    assert_int_equal(tokenizer_encode(t, "", 0, NULL, 0, false, &list), ST_OK);
    memset(run, 'q', sizeof run);
    list.count = 1;
    assert_int_equal(tokenizer_encode(t, "pqrs pq", 7, NULL, 0, false, &list), ST_LIMIT);
    assert_int_equal(tokenizer_encode(t, run, sizeof run, NULL, 0, false, &list), ST_LIMIT);
    assert_int_equal(list.count, 1); /* a failed call leaves the list as it was */
    list.limit = 1001;
    assert_int_equal(tokenizer_encode(t, run, sizeof run, NULL, 0, false, &list), ST_OK);
    token_list_free(&list);
    tokenizer_destroy(t);
}

static void test_tokenizer_bytes_come_back(void **state)
{
    (void)state;
    static const char *const pres[] = {"gpt-2", "smollm", "llama-bpe", "qwen2", "qwen35"};
    uint64_t seed = 20240607;
    print_message("seed %llu\n", (unsigned long long)seed);
    for (size_t p = 0; p < 5; p++) {
        struct tokenizer *t = create(pres[p]);
        for (int round = 0; round < 3000; round++) {
            char text[200], back[4096];
            size_t length = random_next(&seed) % sizeof text, n = 0;
            int kind = (int)(random_next(&seed) % 3);
            for (size_t i = 0; i < length; i++)
                text[i] = kind == 0   ? (char)random_next(&seed)
                          : kind == 1 ? "ab!c <|>\n"[random_next(&seed) % 9]
                                      : "a\xe4\xb8\xad\xcc\x81'1"[random_next(&seed) % 8];
            size_t cut = length ? random_next(&seed) % length : 0;
            struct text_span spans[] = {{cut, random_next(&seed) % 2}, {length, random_next(&seed) % 2}};
            struct token_list list = {0};
            assert_int_equal(tokenizer_encode(t, text, length, spans, 2, false, &list), ST_OK);
            for (size_t i = 0; i < list.count; i++) {
                uint32_t bytes;
                const char *part = tokenizer_bytes(t, list.ids[i], &bytes);
                memcpy(back + n, part, bytes);
                n += bytes;
            }
            assert_int_equal(n, length);
            assert_memory_equal(back, text, length);
            token_list_free(&list);
        }
        tokenizer_destroy(t);
    }
}

/* The algorithm as it is told, on strings: find the first merge in the list that fits anywhere, apply it at the
 * leftmost place, start again. ends[i] is where part i ends; returns how many parts are left. Letters only. */
static size_t merge_plainly(const struct tiny_vocab *tiny, const char *text, size_t *ends, size_t n)
{
    for (uint32_t rank = 0; rank < tiny->vocab.merges_count;) {
        const char *merge = tiny->merge_text[rank], *space = strchr(merge, ' ');
        size_t left = (size_t)(space - merge), right = strlen(space + 1), i = 0;
        for (; i + 1 < n; i++) {
            size_t start = i ? ends[i - 1] : 0;
            if (ends[i] - start == left && ends[i + 1] - ends[i] == right && !memcmp(text + start, merge, left) &&
                !memcmp(text + ends[i], space + 1, right))
                break;
        }
        if (i + 1 >= n) {
            rank++;
            continue;
        }
        memmove(ends + i, ends + i + 1, (--n - i) * sizeof *ends);
        rank = 0;
    }
    return n;
}

/* Short pieces go through a scan, long ones through a heap: both must be the algorithm. */
static void test_tokenizer_merges_as_told(void **state)
{
    (void)state;
    static struct tiny_vocab tiny;
    struct error err;
    struct tokenizer *t;
    uint64_t seed = 20240608;
    print_message("seed %llu\n", (unsigned long long)seed);
    tiny_init(&tiny, "gpt-2");
    tiny_add_merges(&tiny);
    assert_int_equal(tokenizer_create(&tiny.vocab, &t, &err), ST_OK);
    for (int round = 0; round < 3000; round++) {
        char text[300];
        size_t ends[300], length = 1 + random_next(&seed) % (round % 2 ? 60 : sizeof text), letters = 1 + round % 4;
        for (size_t i = 0; i < length; i++) {
            text[i] = "abclheo"[random_next(&seed) % (letters == 4 ? 7 : letters)];
            ends[i] = i + 1;
        }
        size_t n = merge_plainly(&tiny, text, ends, length);
        struct token_list list = {0};
        assert_int_equal(tokenizer_encode(t, text, length, NULL, 0, false, &list), ST_OK);
        assert_int_equal(list.count, n);
        for (size_t i = 0, at = 0; i < n; i++) {
            uint32_t bytes;
            assert_memory_equal(tokenizer_bytes(t, list.ids[i], &bytes), text + at, ends[i] - at);
            assert_int_equal(bytes, ends[i] - at);
            at = ends[i];
        }
        token_list_free(&list);
    }
    tokenizer_destroy(t);
}

/* A byte without a token gives none, and its neighbours meet, as in the `tokenizers` library. */
static void test_tokenizer_bytes_without_a_token(void **state)
{
    (void)state;
    static struct tiny_vocab tiny;
    struct error err;
    struct tokenizer *t;
    struct token_list list = {0};
    char run[1000];
    tiny_init(&tiny, "gpt-2");
    uint32_t bangs = tiny_merge(&tiny, "!", "!");
    tiny.kinds[4] = VOCAB_UNUSED;
    assert_int_equal(tokenizer_create(&tiny.vocab, &t, &err), ST_OK);
    assert_int_equal(tokenizer_encode(t, "\x04", 1, NULL, 0, false, &list), ST_OK);
    assert_int_equal(list.count, 0);
    assert_int_equal(tokenizer_encode(t, "!\x04!", 3, NULL, 0, false, &list), ST_OK);
    assert_int_equal(list.count, 1);
    assert_int_equal(list.ids[0], bangs);
    memset(run, 4, sizeof run);
    run[0] = run[999] = '!';
    assert_int_equal(tokenizer_encode(t, run, sizeof run, NULL, 0, false, &list), ST_OK);
    assert_int_equal(list.count, 2);
    assert_int_equal(list.ids[1], bangs);
    token_list_free(&list);
    tokenizer_destroy(t);
}

/* A token that is not written in the byte-level alphabet stands for its text, and no merge can lead to it. */
static void test_tokenizer_token_outside_the_alphabet(void **state)
{
    (void)state;
    static struct tiny_vocab tiny;
    struct error err;
    struct tokenizer *t;
    uint32_t length;
    tiny_init(&tiny, "gpt-2");
    uint32_t id = tiny_add(&tiny, "a b", 3, VOCAB_NORMAL);
    assert_int_equal(tokenizer_create(&tiny.vocab, &t, &err), ST_OK);
    assert_memory_equal(tokenizer_bytes(t, id, &length), "a b", 3);
    assert_int_equal(length, 3);
    tokenizer_destroy(t);
}

/* --- vocabularies that contradict themselves --- */

static void refuse(const struct tiny_vocab *tiny, const char *reason)
{
    struct tokenizer *t = NULL;
    struct error err = {""};
    assert_int_equal(tokenizer_create(&tiny->vocab, &t, &err), ST_INVAL);
    assert_null(t);
    if (!strstr(err.message, reason)) fail_msg("\"%s\" does not say \"%s\"", err.message, reason);
}

static void test_tokenizer_refuses(void **state)
{
    (void)state;
    static const char *const merges[] = {"",    " ",    "a",    "a ",     " a",     "a b ",   "a b c", "a  b",
                                         "q w", "zz y", "a zz", "\xff a", "a \xff", "a\na b", "< s>"};
    static struct tiny_vocab tiny, good;
    tiny_init(&good, "gpt-2");
    tiny_add_merges(&good);
    for (size_t i = 0; i < sizeof merges / sizeof *merges; i++) {
        tiny_init(&tiny, "gpt-2");
        tiny_add_merge_text(&tiny, merges[i]);
        refuse(&tiny, "merge 0");
    }
    tiny_init(&tiny, "gpt-2"); /* a merge that would make a control token from text */
    tiny_merge(&tiny, "<", "s");
    tiny_add_merge_text(&tiny, "<s >");
    refuse(&tiny, "merge 1");
    tiny_init(&tiny, "gpt-2");
    tiny_merge(&tiny, "a", "b");
    tiny_add_merge_text(&tiny, "a b");
    refuse(&tiny, "twice");
    tiny_init(&tiny, "gpt-2");
    tiny_add(&tiny, "a", 1, VOCAB_NORMAL);
    refuse(&tiny, "tokens 97 and 262");
    tiny_init(&tiny, "gpt-2");
    tiny_add(&tiny, "<s>", 3, VOCAB_USER_DEFINED);
    refuse(&tiny, "the same");
    for (int kind = 0; kind < 2; kind++) {
        tiny_init(&tiny, "gpt-2");
        tiny.kinds[7] = kind ? 255 : 0;
        refuse(&tiny, "kind");
    }
    tiny_init(&tiny, "gpt-2");
    tiny.vocab.count = 0;
    refuse(&tiny, "0 tokens");
    tiny_init(&tiny, "gpt-2");
    tiny.vocab.bos_id = tiny.vocab.count;
    refuse(&tiny, "BOS");
    tiny_init(&tiny, "gpt-2");
    tiny.vocab.eos_id = UINT32_MAX - 1;
    refuse(&tiny, "EOS");
    tiny_init(&tiny, "gpt-2");
    tiny.vocab.end_ids[0] = 100000;
    refuse(&tiny, "end token");
    tiny_init(&tiny, "gpt-2");
    tiny.vocab.end_ids_count = VOCAB_END_IDS_MAX + 1;
    refuse(&tiny, "end tokens");
    tiny_init(&tiny, "gpt-2");
    snprintf(tiny.vocab.model, sizeof tiny.vocab.model, "llama");
    refuse(&tiny, "scores");
    snprintf(tiny.vocab.model, sizeof tiny.vocab.model, "rwkv");
    refuse(&tiny, "known: gpt2");
}

static void test_tokenizer_refuses_unknown_pre_tokenisers(void **state)
{
    (void)state;
    static const char *const names[] = {"", "default", "viking", "GPT-2", "qwen"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        static struct tiny_vocab tiny;
        tiny_init(&tiny, names[i]);
        refuse(&tiny, "smollm"); /* the known ones are told */
    }
}

/* --- memory, work, threads --- */

static bool fail_kth(void *state, size_t size_bytes)
{
    (void)size_bytes;
    return --*(int *)state != 0;
}

/* The k-th allocation fails, for every k until none does: ST_NOMEM, nothing leaks (asan), nothing is changed. */
static void test_tokenizer_survives_failed_allocations(void **state)
{
    (void)state;
    static struct tiny_vocab tiny;
    struct error err;
    struct tokenizer *t = NULL;
    char text[400];
    tiny_init(&tiny, "gpt-2");
    tiny_add_merges(&tiny);
    memset(text, 'a', sizeof text);
    memcpy(text, "x<|a|>y ", 8);
    struct text_span span = {sizeof text, true};
    int k, left;
    for (k = 1; !t; k++) {
        left = k;
        mem_hook_set(fail_kth, &left);
        enum status st = tokenizer_create(&tiny.vocab, &t, &err);
        mem_hook_set(NULL, NULL);
        assert_int_equal(st, t ? ST_OK : ST_NOMEM);
    }
    assert_true(k > 8);
    struct token_list list = {0};
    enum status st = ST_NOMEM;
    for (k = 1; st != ST_OK; k++) {
        left = k;
        mem_hook_set(fail_kth, &left);
        st = tokenizer_encode(t, text, sizeof text, &span, 1, false, &list);
        mem_hook_set(NULL, NULL);
        if (st != ST_OK) {
            assert_int_equal(st, ST_NOMEM);
            assert_int_equal(list.count, 0);
            token_list_free(&list);
        }
    }
    assert_true(k > 5);
    token_list_free(&list);
    tokenizer_destroy(t);
}

/* Ten times the text may cost at most 10^1.1 times the work, whatever it is made of. */
static void test_tokenizer_work_grows_linearly(void **state)
{
    (void)state;
    static const char *const units[] = {"a",      " ",     "\xe4\xb8\xad", "\xcc\x81", "\xff", "!",  "<", "<|a|><|",
                                        "<think", "hello", "\n",           "ab",       "1",    "'s", NULL};
    enum { LARGE = 1000000 };
    static const char *const pres[] = {"gpt-2", "smollm", "llama-bpe", "qwen2"};
    char *text = mem_alloc(LARGE, 1);
    assert_non_null(text);
    for (size_t p = 0; p < 4; p++) {
        size_t lengths[2] = {p ? 10000 : LARGE / 10, p ? 100000 : LARGE}; /* the patterns differ in small things only */
        struct tokenizer *t = create(pres[p]);
        for (size_t u = 0; u < sizeof units / sizeof *units; u++) {
            uint64_t seed = 11, work[2];
            for (size_t i = 0; i < LARGE; i++)
                text[i] = units[u] ? units[u][i % strlen(units[u])] : (char)random_next(&seed);
            for (int large = 0; large < 2; large++) {
                size_t length = lengths[large];
                struct text_span span = {length, true};
                struct token_list list = {0};
                assert_int_equal(encode_counted(t, text, length, &span, 1, false, &list, &work[large]), ST_OK);
                token_list_free(&list);
            }
            if (100 * work[1] > 1259 * work[0])
                fail_msg("%s, unit %zu: work %llu, then %llu", pres[p], u, (unsigned long long)work[0],
                         (unsigned long long)work[1]);
            assert_true(work[1] >= lengths[1] / 16);
            assert_true(work[1] <= 64 * lengths[1]);
        }
        tokenizer_destroy(t);
    }
    mem_free(text);
}

static void *encode_thread(void *argument)
{
    const struct tokenizer *t = argument;
    struct token_list list = {0};
    enum status st = ST_OK;
    for (int i = 0; i < 200 && st == ST_OK; i++)
        st = tokenizer_encode(t, "say hello<think>aaaa", 20, NULL, 0, false, &list);
    size_t count = list.count;
    token_list_free(&list);
    return st == ST_OK && count == 200 * 6 ? argument : NULL;
}

static void test_tokenizer_is_shared_by_threads(void **state)
{
    (void)state;
    struct tokenizer *t = create("gpt-2");
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) assert_int_equal(pthread_create(&threads[i], NULL, encode_thread, t), 0);
    for (int i = 0; i < 4; i++) {
        void *result;
        assert_int_equal(pthread_join(threads[i], &result), 0);
        assert_ptr_equal(result, t);
    }
    tokenizer_destroy(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tokenizer_merges_by_rank),
        cmocka_unit_test(test_tokenizer_whole_words),
        cmocka_unit_test(test_tokenizer_expressions),
        cmocka_unit_test(test_tokenizer_special_tokens_need_trust),
        cmocka_unit_test(test_tokenizer_longest_special_first),
        cmocka_unit_test(test_tokenizer_user_defined_anywhere),
        cmocka_unit_test(test_tokenizer_merges_across_spans),
        cmocka_unit_test(test_tokenizer_bos_and_eos),
        cmocka_unit_test(test_tokenizer_queries),
        cmocka_unit_test(test_tokenizer_limit),
        cmocka_unit_test(test_tokenizer_bytes_come_back),
        cmocka_unit_test(test_tokenizer_merges_as_told),
        cmocka_unit_test(test_tokenizer_bytes_without_a_token),
        cmocka_unit_test(test_tokenizer_token_outside_the_alphabet),
        cmocka_unit_test(test_tokenizer_refuses),
        cmocka_unit_test(test_tokenizer_refuses_unknown_pre_tokenisers),
        cmocka_unit_test(test_tokenizer_survives_failed_allocations),
        cmocka_unit_test(test_tokenizer_work_grows_linearly),
        cmocka_unit_test(test_tokenizer_is_shared_by_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
