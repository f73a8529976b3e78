/* tokenizer.json and its neighbours, mutated: every one gives a clean error (or a vocabulary that can be built), under
 * the sanitizers too. */
#include "tests/unit/unit.h"
#include "tests/unit/runtime/tiny_folder.h"

#include "runtime/base/json_pull.h"
#include "runtime/base/limits.h"
#include "runtime/base/mem.h"
#include "runtime/base/random.h"
#include "runtime/model/vocab_folder.h"
#include "runtime/model/vocab_json.h"
#include "runtime/model/vocab_read.h"
#include "runtime/text/detokenizer.h"
#include "runtime/text/tokenizer.h"

/* Reads text as a tokenizer.json and builds the tokenizer; the error's text stays in err. */
static enum status build(const char *text, size_t length, struct tokenizer **tokenizer, struct error *err)
{
    struct vocab vocab;
    char *copy = mem_strdup(text, length); /* of its own size, so that the sanitizer sees a step past it */
    assert_non_null(copy);
    *err = (struct error){""};
    enum status status = vocab_read_json(copy, length, &vocab, err);
    memset(copy, '?', length); /* nothing may point into it */
    mem_free(copy);
    if (status == ST_OK) {
        status = tokenizer_create(&vocab, tokenizer, err);
        vocab_free(&vocab);
    }
    return status;
}

static void refuse_text(const char *text, size_t length, const char *reason)
{
    struct tokenizer *tokenizer = NULL;
    struct error err;
    enum status status = build(text, length, &tokenizer, &err);
    tokenizer_destroy(tokenizer);
    if (status != ST_INVAL && status != ST_LIMIT) fail_msg("status %s: %.200s", status_name(status), text);
    if (!strstr(err.message, reason)) fail_msg("\"%s\" does not say \"%s\"", err.message, reason);
}

static void refuse(struct tiny_json parts, const char *reason)
{
    struct buf text;
    buf_init(&text, 0);
    tiny_json_write(&parts, &text);
    refuse_text(text.data, text.length, reason);
    buf_free(&text);
}

static void accept(struct tiny_json parts)
{
    struct buf text;
    struct error err;
    struct tokenizer *tokenizer = NULL;
    buf_init(&text, 0);
    tiny_json_write(&parts, &text);
    if (build(text.data, text.length, &tokenizer, &err) != ST_OK) fail_msg("%s", err.message);
    tokenizer_destroy(tokenizer);
    buf_free(&text);
}

static void test_vocab_json_accepts(void **state)
{
    (void)state;
    accept((struct tiny_json){0});
    accept((struct tiny_json){.merges = "[]"});
    accept((struct tiny_json){.added = "null"});
    accept((struct tiny_json){.added = "[]"});
    accept((struct tiny_json){.options =
                                  "\"dropout\":null,\"unk_token\":null,\"fuse_unk\":true,\"byte_fallback\":false,"});
    accept((struct tiny_json){.options = "\"dropout\":0.0,"});
    accept((struct tiny_json){.merges = "[\"h e\",\"h e\"]"}); /* of a merge that stands twice the later one counts */
    accept((struct tiny_json){.normalizer = "{\"type\":\"Sequence\",\"normalizers\":[]}"});
}

static void test_vocab_json_merges(void **state)
{
    (void)state;
    static const char *const bad[][2] = {
        {"[\"he\"]", "is not two parts"},
        {"[\"h e l\"]", "is not two parts"},
        {"[\"\"]", "is not two parts"},
        {"[\"h  e\"]", "is not two parts"},
        {"[\" \"]", "no tokens"},
        {"[\"h q\"]", "gives no token"},
        {"[\"zz e\"]", "no tokens"},
        {"[[\"h\"]]", "is not [left, right]"},
        {"[[\"h\",\"e\",\"l\"]]", "is not [left, right]"},
        {"[[\"h\",7]]", "a string is missing"},
        {"[7]", "an array is missing"},
        {"[null]", "an array is missing"},
        {"{}", "an array is missing"},
        {"7", "an array is missing"},
        {"[\"h e\",]", "a value is missing"},
        {"[\"h e\" \"he l\"]", "comma"},
        {"[\"h \\ud800\"]", "escape"},
        {"[\"h \\x41\"]", "escape"},
        {"[\"< s>\"]", "no tokens"},
        {"[[\"<s>\",\"h\"]]", "gives no token"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) refuse((struct tiny_json){.merges = bad[i][0]}, bad[i][1]);
    /* a merge that would make a control token of text */
    refuse((struct tiny_json){.more_tokens = ",\"<s\":300", .merges = "[\"< s\",[\"<s\",\">\"]]"}, "control token");
}

static void test_vocab_json_tokens(void **state)
{
    (void)state;
    static const char *const bad[][2] = {
        {",\"new\":-1", "without sign"},
        {",\"new\":1.5", "without sign"},
        {",\"new\":1e3", "without sign"},
        {",\"new\":01", "a number"},
        {",\"new\":\"300\"", "without sign"},
        {",\"new\":null", "without sign"},
        {",\"new\":[300]", "without sign"},
        {",\"new\":18446744073709551616", "without sign"},
        {",\"new\":18446744073709551615", "model_vocab"},
        {",\"new\":4294967296", "model_vocab"},
        {",\"new\":2000000", "leaves more than"},
        {",\"new\":256", "has two tokens"},
        {",\"he\":300", "has two ids"},
        {",\"a\\u0000b\" 300", "colon"},
        {",\"new\"", "colon"},
        {",", "a string is missing"},
        {",{}", "a string is missing"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        refuse((struct tiny_json){.more_tokens = bad[i][0]}, bad[i][1]);
}

static void test_vocab_json_added(void **state)
{
    (void)state;
    static const char *const bad[][2] = {
        {"{}", "not a list"},
        {"7", "not a list"},
        {"[7]", "malformed"},
        {"[{}]", "malformed"},
        {"[{\"id\":258}]", "malformed"},
        {"[{\"id\":258,\"content\":\"\"}]", "malformed"},
        {"[{\"id\":258,\"content\":7}]", "malformed"},
        {"[{\"id\":-1,\"content\":\"<s>\"}]", "malformed"},
        {"[{\"id\":2.5,\"content\":\"<s>\"}]", "malformed"},
        {"[{\"id\":258,\"content\":\"<s>\",\"special\":1}]", "malformed"},
        {"[{\"id\":258,\"content\":\"<s>\",\"lstrip\":\"yes\"}]", "malformed"},
        {"[{\"id\":1,\"content\":\"<s>\"}]", "has two tokens"},
        {"[{\"id\":258,\"content\":\"he\"}]", "has two ids"},
        {"[{\"id\":9000000000,\"content\":\"<s>\"}]", "model_vocab"},
        {"[{\"id\":258,\"content\":\"<s>\",\"content\":\"<t>\"}]", "duplicate"},
        {"[{\"id\":258,\"content\":\"<s>\"},{\"id\":258,\"content\":\"<s>\"}]", "same"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) refuse((struct tiny_json){.added = bad[i][0]}, bad[i][1]);
}

static void test_vocab_json_steps(void **state)
{
    (void)state;
    static const char *const normal[][2] = {
        {"7", "\"type\" is missing"},
        {"[]", "\"type\" is missing"},
        {"{\"type\":7}", "\"type\" is missing"},
        {"{\"type\":\"NFQ\"}", "normalizer \"NFQ\" is not known"},
        {"{\"type\":\"Digits\",\"individual_digits\":true}", "normalizer \"Digits\" is not known"},
        {"{\"type\":\"Sequence\"}", "no list"},
        {"{\"type\":\"Sequence\",\"normalizers\":[{}]}", "\"type\" is missing"},
        {"{\"type\":\"NFC\",\"form\":1}", "the field \"form\" is not known"},
        {"{\"type\":\"Prepend\"}", "has no \"prepend\""},
        {"{\"type\":\"Prepend\",\"prepend\":1}", "value of \"prepend\""},
        {"{\"type\":\"Replace\",\"pattern\":\"a\",\"content\":\"b\"}", "value of \"pattern\""},
        {"{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"(\"},\"content\":\"b\"}", "regular expression"},
        {"{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"[a&&b]\"},\"content\":\"b\"}", "&&"},
        {"{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"[a[b]]\"},\"content\":\"b\"}", "a class within a class"},
        {"{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"(?m:a.)\"},\"content\":\"b\"}", "options"},
        {"{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"\\\\h\"},\"content\":\"b\"}", "escape"},
        {"{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"\"},\"content\":\"b\"}", "empty"},
        {"{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"[\"},\"content\":\"b\"}", "regular expression"},
        {"{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"AAA\"}", "map is not one"},
        {"{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"////////\"}", "map is not one"},
        {"{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"A?==\"}", "map is not one"},
        {"{\"type\":\"Strip\",\"strip_left\":\"no\"}", "value of \"strip_left\""},
    };
    static const char *const pre[][2] = {
        {"{\"type\":\"Sequence\",\"normalizers\":[]}", "no list"},
        {"{\"type\":\"UnicodeScripts\"}", "\"UnicodeScripts\" is not known"},
        {"{\"type\":\"Split\",\"behavior\":\"Isolated\"}", "has no \"pattern\""},
        {"{\"type\":\"Split\",\"pattern\":{\"String\":\"\"},\"behavior\":\"Isolated\"}", "pattern is empty"},
        {"{\"type\":\"Split\",\"pattern\":{\"String\":\"a\"},\"behavior\":\"Kept\"}", "value of \"behavior\""},
        {"{\"type\":\"Split\",\"pattern\":{\"String\":\"a\",\"Regex\":\"a\"}}", "value of \"pattern\""},
        {"{\"type\":\"Metaspace\",\"replacement\":\"ab\"}", "is not one character"},
        {"{\"type\":\"Metaspace\",\"replacement\":\"\"}", "is not one character"},
        {"{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"last\"}", "value of \"prepend_scheme\""},
        {"{\"type\":\"Sequence\",\"pretokenizers\":[" TINY_BYTE_LEVEL "," TINY_BYTE_LEVEL "]}", "twice"},
    };
    static const char *const decoders[][2] = {
        {"{\"type\":\"CTC\"}", "decoder \"CTC\" is not known"},
        {"{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"a\"},\"content\":\"b\"}", "not supported"},
        {"{\"type\":\"Strip\",\"content\":\" \",\"start\":-1,\"stop\":0}", "value of \"start\""},
        {"{\"type\":\"Strip\",\"content\":\" \",\"start\":1e9,\"stop\":0}", "value of \"start\""},
        {"{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Fuse\"},{\"type\":\"ByteFallback\"}]}", "joins the tokens"},
    };
    static const char *const post[][2] = {
        {"{\"type\":\"Template\"}", "\"Template\" is not known"},
        {"{\"type\":\"TemplateProcessing\"}", "no list \"single\""},
        {"{\"type\":\"TemplateProcessing\",\"single\":[]}", "has no text"},
        {"{\"type\":\"TemplateProcessing\",\"single\":[{\"Sequence\":{\"id\":\"B\"}}]}", "text A once"},
        {"{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<s>\"}}],\"special_tokens\":{}}",
         "no ids"},
        {"{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<s>\"}}],\"special_tokens\":"
         "{\"<s>\":{\"ids\":[999]}}}",
         "no token"},
        {"{\"type\":\"BertProcessing\",\"cls\":[\"<s>\",258]}", "\"sep\""},
        {"{\"type\":\"RobertaProcessing\",\"cls\":[\"<s>\",-1],\"sep\":[\"</s>\",259]}", "\"cls\""},
    };
    for (size_t i = 0; i < sizeof normal / sizeof *normal; i++)
        refuse((struct tiny_json){.normalizer = normal[i][0]}, normal[i][1]);
    for (size_t i = 0; i < sizeof pre / sizeof *pre; i++)
        refuse((struct tiny_json){.pre_tokenizer = pre[i][0]}, pre[i][1]);
    for (size_t i = 0; i < sizeof decoders / sizeof *decoders; i++)
        refuse((struct tiny_json){.decoder = decoders[i][0]}, decoders[i][1]);
    for (size_t i = 0; i < sizeof post / sizeof *post; i++)
        refuse((struct tiny_json){.post_processor = post[i][0]}, post[i][1]);
}

static void test_vocab_json_model(void **state)
{
    (void)state;
    refuse((struct tiny_json){.options = "\"dropout\":0.1,"}, "dropout");
    refuse((struct tiny_json){.options = "\"fuse_unk\":7,"}, "fuse_unk");
    refuse((struct tiny_json){.options = "\"unk_token\":7,"}, "unk_token");
    refuse((struct tiny_json){.options = "\"unk_id\":9999,"}, "unk_id");
    refuse((struct tiny_json){.options = "\"cache\":7,"}, "the member \"cache\" of model is not known");
    refuse((struct tiny_json){.options = "\"vocab\":{},"}, "\"vocab\" stands twice");
    refuse((struct tiny_json){.options = "\"fuse_unk\":true,\"fuse_unk\":true,"}, "\"fuse_unk\" stands twice");
    static const char *const whole[][2] = {
        {"", "an object is missing"},
        {"{", "a string is missing"},
        {"{}", "\"model\" is missing"},
        {"[]", "an object is missing"},
        {"null", "an object is missing"},
        {"{\"model\":null}", "an object is missing"},
        {"{\"model\":{}}", "model.vocab is missing"},
        {"{\"model\":{\"vocab\":{}}}", "model.type"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{}}}", "no tokens"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":[]}}", "an object is missing"},
        {"{\"model\":{\"type\":\"GPT\",\"vocab\":{\"a\":0}}}", "model.type \"GPT\" is not known"},
        {"{\"model\":{\"type\":\"Unigram\",\"vocab\":{\"a\":0}}}", "an array is missing"},
        {"{\"model\":{\"type\":\"Unigram\",\"vocab\":[[\"a\"]]}}", "[text, score]"},
        {"{\"model\":{\"type\":\"Unigram\",\"vocab\":[[\"a\",1e999]]}}", "too large"},
        {"{\"model\":{\"type\":\"Unigram\",\"vocab\":[[\"a\",1],[\"a\",1]]}}", "has two ids"},
        {"{\"model\":{\"type\":\"Unigram\",\"vocab\":[[\"a\",-]]}}", "number"},
        {"{\"model\":{\"type\":\"WordPiece\",\"vocab\":{\"a\":0}}}", "unk_token"},
        {"{\"model\":{\"type\":\"WordLevel\",\"unk_token\":\"u\",\"vocab\":{\"a\":0}}}", "unk_token"},
        {"{\"version\":\"1.0\",\"modell\":{}}", "the member \"modell\""},
        {"{\"model\":{},\"model\":{}}", "\"model\" stands twice"},
        {"{\"model\":{}} x", "text after the end"},
        {"{\"model\":\"\xff\"}", "invalid UTF-8 at byte 10"},
        {"{\"model\":\"\x01\"}", "control character"},
        {"{\"model\":tru}", "a value is missing"},
        {"{\"model\":00}", "number"},
        {"{\"model\":1.}", "number"},
    };
    for (size_t i = 0; i < sizeof whole / sizeof *whole; i++)
        refuse_text(whole[i][0], strlen(whole[i][0]), whole[i][1]);
}

static void test_vocab_json_nesting(void **state)
{
    (void)state;
    enum { DEPTH = 100000 };
    char *text = mem_alloc(DEPTH + 9, 1);
    assert_non_null(text);
    memcpy(text, "{\"model\":", 9);
    memset(text + 9, '[', DEPTH);
    refuse_text(text, DEPTH + 9, "too deep");
    mem_free(text);
    refuse((struct tiny_json){.normalizer = "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[["},
           "too deep");
}

/* Every prefix of the file is refused; every change of one byte is refused or gives a tokenizer that works. */
static void test_vocab_json_cut_and_changed(void **state)
{
    (void)state;
    struct buf text;
    struct tokenizer *tokenizer;
    struct error err;
    uint64_t random = 20240607;
    buf_init(&text, 0);
    tiny_json_write(&(struct tiny_json){.normalizer = "{\"type\":\"NFC\"}"}, &text);
    for (size_t length = 0; length < text.length; length += 1 + length / 97) {
        enum status status = build(text.data, length, &tokenizer, &err);
        assert_true(status == ST_INVAL && *err.message);
    }
    print_message("seed %d\n", (int)random);
    for (int i = 0; i < 2000; i++) {
        static const char bytes[] = "\"{}[],:0-e\\u\0\xff\x80 aN";
        size_t at = (size_t)(random_next(&random) % text.length);
        char kept = text.data[at];
        text.data[at] = bytes[random_next(&random) % sizeof bytes];
        enum status status = build(text.data, text.length, &tokenizer, &err);
        text.data[at] = kept;
        if (status == ST_OK) {
            struct token_list list = {0};
            struct text_span span = {11, true};
            assert_int_equal(tokenizer_encode(tokenizer, "hello <s>\xff\xe2", 11, &span, 1, true, &list), ST_OK);
            token_list_free(&list);
            tokenizer_destroy(tokenizer);
        } else {
            assert_true((status == ST_INVAL || status == ST_LIMIT) && *err.message);
        }
    }
    buf_free(&text);
}

/* The k-th allocation fails, for all k: ST_NOMEM each time, and nothing is lost. */
static uint64_t allocations_left;

static bool fail_later(void *state, size_t size_bytes)
{
    (void)state;
    (void)size_bytes;
    return allocations_left && allocations_left--;
}

static void test_vocab_json_without_memory(void **state)
{
    (void)state;
    struct buf text;
    struct error err;
    struct tokenizer *tokenizer = NULL;
    buf_init(&text, 0);
    tiny_json_write(&(struct tiny_json){.normalizer = "{\"type\":\"NFC\"}", .decoder = "null"}, &text);
    for (uint64_t k = 1;; k++) {
        struct vocab vocab;
        char *copy = mem_strdup(text.data, text.length);
        allocations_left = k;
        mem_hook_set(fail_later, NULL);
        enum status status = vocab_read_json(copy, text.length, &vocab, &err);
        if (status == ST_OK) {
            status = tokenizer_create(&vocab, &tokenizer, &err);
            vocab_free(&vocab);
        }
        mem_hook_set(NULL, NULL);
        mem_free(copy);
        if (status == ST_OK) break;
        assert_int_equal(status, ST_NOMEM);
    }
    tokenizer_destroy(tokenizer);
    buf_free(&text);
}

/* T1 through a normaliser: a control token that is looked for in normalised text needs trust as any other, of all that
 * it was made from; one that is not special does not. */
static void test_vocab_json_trust_goes_through_the_normaliser(void **state)
{
    (void)state;
    static const struct {
        struct text_span spans[2];
        uint32_t ids[6];
        size_t count;
    } cases[] = {
        {{{7, true}, {7, true}}, {'a', 258, 'b', 260}, 4},
        {{{7, false}, {7, false}}, {'a', '<', 's', '>', 'b', 260}, 6},
        {{{3, true}, {7, false}}, {'a', '<', 's', '>', 'b', 260}, 6},
        {{{4, true}, {7, false}}, {'a', 258, 'b', 260}, 4},
    };
    struct buf text;
    struct error err;
    struct tokenizer *tokenizer = NULL;
    buf_init(&text, 0);
    tiny_json_write(&(struct tiny_json){.normalizer = "{\"type\":\"Lowercase\"}",
                                        .added =
                                            "[{\"id\":258,\"content\":\"<S>\",\"special\":true,\"normalized\":true},"
                                            "{\"id\":260,\"content\":\"TT\",\"normalized\":true}]"},
                    &text);
    if (build(text.data, text.length, &tokenizer, &err) != ST_OK) fail_msg("%s", err.message);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct token_list list = {0};
        assert_int_equal(tokenizer_encode(tokenizer, "A<S>BtT", 7, cases[i].spans, 2, false, &list), ST_OK);
        assert_int_equal(list.count, cases[i].count);
        assert_memory_equal(list.ids, cases[i].ids, list.count * sizeof *list.ids);
        token_list_free(&list);
    }
    tokenizer_destroy(tokenizer);
    buf_free(&text);
}

/* start, then a piece `count` times as a list that ends an object. */
static char *repeated(const char *start, const char *piece, size_t count)
{
    struct buf text;
    buf_init(&text, 0);
    buf_append_text(&text, start);
    for (size_t i = 0; i < count; i++) buf_append_format(&text, "%s%s", i ? "," : "", piece);
    buf_append_text(&text, "]}");
    buf_append_char(&text, '\0');
    return text.data;
}

static struct tokenizer *made(struct tiny_json parts)
{
    struct buf text;
    struct error err;
    struct tokenizer *tokenizer = NULL;
    buf_init(&text, 0);
    tiny_json_write(&parts, &text);
    if (build(text.data, text.length, &tokenizer, &err) != ST_OK) fail_msg("%s", err.message);
    buf_free(&text);
    return tokenizer;
}

/* Steps that double a text in turn end at a limit: 2^40 bytes would come of one. */
static void test_vocab_json_growth_ends(void **state)
{
    (void)state;
    static const char twice[] = "{\"type\":\"Replace\",\"pattern\":{\"String\":\"a\"},\"content\":\"aa\"}";
    struct token_list list = {0};
    char *steps = repeated("{\"type\":\"Sequence\",\"normalizers\":[", twice, 40);
    struct tokenizer *tokenizer = made((struct tiny_json){.normalizer = steps});
    assert_int_equal(tokenizer_encode(tokenizer, "bab", 3, NULL, 0, false, &list), ST_LIMIT);
    assert_int_equal(list.count, 0);
    assert_false(list.full);
    assert_int_equal(tokenizer_encode(tokenizer, "bbb", 3, NULL, 0, false, &list), ST_OK);
    assert_int_equal(list.count, 3);
    list.limit = 5;
    assert_int_equal(tokenizer_encode(tokenizer, "bbb", 3, NULL, 0, false, &list), ST_LIMIT);
    assert_true(list.full);
    token_list_free(&list);
    tokenizer_destroy(tokenizer);
    refuse((struct tiny_json){.normalizer = steps,
                              .added = "[{\"id\":258,\"content\":\"<a>\",\"special\":true,\"normalized\":true}]"},
           "token 258");
    mem_free(steps);
    steps = repeated("{\"type\":\"Sequence\",\"decoders\":[", twice, 40);
    refuse((struct tiny_json){.decoder = steps}, "decoder: more than 1048576 bytes");
    mem_free(steps);
}

/* What a normaliser puts beside trusted text is trusted, what it makes of content is not, and ASCII before a letter
 * that NFC composes keeps its own. */
static void test_vocab_json_trust_of_what_is_added(void **state)
{
    (void)state;
    static const char control[] = "[{\"id\":258,\"content\":\"<s>\",\"special\":true,\"normalized\":true}]";
    static const struct {
        const char *normalizer, *text;
        size_t trusted;          /* bytes at the start */
        bool rest_trusted, last; /* last: the control token is the last id */
        size_t count;
    } cases[] = {
        {"{\"type\":\"Prepend\",\"prepend\":\"_\"}", "<s>", 3, false, true, 1},
        {"{\"type\":\"Prepend\",\"prepend\":\"_\"}", "<s>", 0, false, false, 4},
        {"{\"type\":\"NFC\"}", "<s>\xc3\xa9", 3, false, false, 3},
        {"{\"type\":\"NFC\"}", "\xc3\xa9<s>", 2, false, false, 5},
        {"{\"type\":\"NFC\"}", "\xc3\xa9<s>", 0, true, true, 3},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct tokenizer *tokenizer = made((struct tiny_json){.normalizer = cases[i].normalizer, .added = control});
        struct token_list list = {0};
        size_t length = strlen(cases[i].text);
        const struct text_span spans[2] = {{cases[i].trusted, !cases[i].rest_trusted}, {length, cases[i].rest_trusted}};
        assert_int_equal(tokenizer_encode(tokenizer, cases[i].text, length, spans, 2, false, &list), ST_OK);
        assert_int_equal(list.count, cases[i].count);
        assert_int_equal(list.ids[list.count - 1] == 258, cases[i].last);
        assert_int_equal(tokenizer_special_id(tokenizer, "<s>"), 258);
        assert_int_equal(tokenizer_special_id(tokenizer, "_<s>"), VOCAB_NO_ID);
        token_list_free(&list);
        tokenizer_destroy(tokenizer);
    }
}

/* Trust over several parts of a text. */
static void test_vocab_json_trust_of_parts(void **state)
{
    (void)state;
    static const struct {
        struct text_span spans[3];
        uint32_t ids[5];
    } cases[] = {
        {{{3, true}, {7, true}, {10, false}}, {258, 259, '<', 's', '>'}},
        {{{3, false}, {7, true}, {10, true}}, {'<', 's', '>', 259, 258}},
    };
    struct tokenizer *tokenizer =
        made((struct tiny_json){.normalizer = "{\"type\":\"Lowercase\"}",
                                .added = "[{\"id\":258,\"content\":\"<S>\",\"special\":true,\"normalized\":true},"
                                         "{\"id\":259,\"content\":\"</s>\",\"special\":true}]"});
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct token_list list = {0};
        assert_int_equal(tokenizer_encode(tokenizer, "<S></s><S>", 10, cases[i].spans, 3, false, &list), ST_OK);
        assert_int_equal(list.count, 5);
        assert_memory_equal(list.ids, cases[i].ids, sizeof cases[i].ids);
        token_list_free(&list);
    }
    tokenizer_destroy(tokenizer);
}

/* Of a whole text that many spaces are taken away, wherever its tokens are cut. */
static void test_vocab_json_spaces_at_the_start(void **state)
{
    (void)state;
    struct detokenizer d;
    struct buf text;
    struct tokenizer *tokenizer = made(
        (struct tiny_json){.decoder = "{\"type\":\"Sequence\",\"decoders\":[" TINY_BYTE_LEVEL ",{\"type\":\"Fuse\"},"
                                      "{\"type\":\"Strip\",\"content\":\" \",\"start\":2,\"stop\":0}]}"});
    buf_init(&text, 0);
    detokenizer_init_whole(&d, tokenizer, false);
    for (int i = 0; i < 3; i++) detokenizer_push(&d, ' ', &text);
    detokenizer_push(&d, 'a', &text);
    detokenizer_push(&d, ' ', &text);
    detokenizer_finish(&d, &text);
    assert_int_equal(text.length, 3);
    assert_memory_equal(text.data, " a ", 3);
    buf_free(&text);
    tokenizer_destroy(tokenizer);
}

static size_t largest; /* request for memory */

static bool note_largest(void *state, size_t size)
{
    (void)state;
    if (size > largest) largest = size;
    return true;
}

/* A text far beyond the limit of ids is refused before memory is taken for it. */
static void test_vocab_json_limit_before_memory(void **state)
{
    (void)state;
    enum { LENGTH = 1 << 20 };
    struct tokenizer *tokenizer = NULL;
    struct token_list list = {.limit = 100};
    struct error err;
    struct buf unigram;
    char *text = mem_alloc(LENGTH, 1);
    assert_non_null(text);
    memset(text, 'a', LENGTH);
    buf_init(&unigram, 0);
    buf_append_text(&unigram, "{\"model\":{\"type\":\"Unigram\",\"unk_id\":0,\"byte_fallback\":true,\"vocab\":"
                              "[[\"u\",0],[\"aaaa\",-1]");
    for (int b = 0; b < 256; b++) buf_append_format(&unigram, ",[\"<0x%02X>\",-9]", b);
    buf_append_text(&unigram, "]}}");
    if (build(unigram.data, unigram.length, &tokenizer, &err) != ST_OK) fail_msg("%s", err.message);
    buf_free(&unigram);
    largest = 0;
    mem_hook_set(note_largest, NULL);
    enum status status = tokenizer_encode(tokenizer, text, LENGTH, NULL, 0, false, &list);
    mem_hook_set(NULL, NULL);
    assert_int_equal(status, ST_LIMIT);
    assert_true(list.full);
    assert_in_range(largest, 0, LENGTH);
    token_list_free(&list);
    tokenizer_destroy(tokenizer);
    mem_free(text);
}

static void test_vocab_json_word_pieces(void **state)
{
    (void)state;
    static const char start[] = "{\"model\":{\"type\":\"WordPiece\",\"unk_token\":\"u\",\"max_input_chars_per_word\":"
                                "%d,\"continuing_subword_prefix\":\"##\",\"vocab\":{\"u\":0,\"a\":1,\"ab\":2,"
                                "\"##cd\":3,\"##c\":4,\"##cdcdcdc\":5";
    static const uint32_t ids[] = {2, 3, 4};
    struct tokenizer *tokenizer = NULL;
    struct token_list list = {0};
    struct error err;
    struct buf text;
    buf_init(&text, 0);
    buf_append_format(&text, start, 100);
    buf_append_text(&text, ",\"");
    for (int i = 0; i < 600; i++) buf_append_char(&text, 'a'); /* no word has so many characters */
    buf_append_text(&text, "\":6}}}");
    if (build(text.data, text.length, &tokenizer, &err) != ST_OK) fail_msg("%s", err.message);
    assert_int_equal(tokenizer_encode(tokenizer, "abcdc", 5, NULL, 0, false, &list), ST_OK);
    assert_int_equal(list.count, 3);
    assert_memory_equal(list.ids, ids, sizeof ids);
    list.count = 0;
    assert_int_equal(tokenizer_encode(tokenizer, "abcdd", 5, NULL, 0, false, &list), ST_OK);
    assert_int_equal(list.count, 1);
    assert_int_equal(list.ids[0], 0);
    token_list_free(&list);
    tokenizer_destroy(tokenizer);
    buf_clear(&text);
    buf_append_format(&text, start, 1000);
    buf_append_text(&text, ",\"");
    for (int i = 0; i < 513; i++) buf_append_char(&text, 'x');
    buf_append_text(&text, "\":6}}}");
    refuse_text(text.data, text.length, "longer than 512 bytes");
    buf_free(&text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_vocab_json_accepts),
        cmocka_unit_test(test_vocab_json_merges),
        cmocka_unit_test(test_vocab_json_tokens),
        cmocka_unit_test(test_vocab_json_added),
        cmocka_unit_test(test_vocab_json_steps),
        cmocka_unit_test(test_vocab_json_model),
        cmocka_unit_test(test_vocab_json_nesting),
        cmocka_unit_test(test_vocab_json_cut_and_changed),
        cmocka_unit_test(test_vocab_json_without_memory),
        cmocka_unit_test(test_vocab_json_trust_goes_through_the_normaliser),
        cmocka_unit_test(test_vocab_json_growth_ends),
        cmocka_unit_test(test_vocab_json_trust_of_what_is_added),
        cmocka_unit_test(test_vocab_json_trust_of_parts),
        cmocka_unit_test(test_vocab_json_spaces_at_the_start),
        cmocka_unit_test(test_vocab_json_limit_before_memory),
        cmocka_unit_test(test_vocab_json_word_pieces),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
