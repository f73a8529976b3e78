/* Bytes to text in pieces: what comes out, when, and that it never depends on where the pieces were cut. */
#include "tests/unit/unit.h"
#include "tests/unit/runtime/tiny_vocab.h"

#include "runtime/base/random.h"
#include "runtime/base/utf8.h"
#include "runtime/text/detokenizer.h"

#define FFFD "\xef\xbf\xbd"

static struct tokenizer *tokenizer;

static int setup(void **state)
{
    static struct tiny_vocab tiny;
    struct error err;
    (void)state;
    tiny_init(&tiny, "gpt-2");
    tiny_add_merges(&tiny);
    return tokenizer_create(&tiny.vocab, &tokenizer, &err) == ST_OK ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    tokenizer_destroy(tokenizer);
    return 0;
}

/* The text of bytes given `step` at a time. */
static void decode(const char *bytes, size_t length, size_t step, struct buf *out)
{
    struct detokenizer d;
    buf_clear(out);
    detokenizer_init(&d, tokenizer, false);
    for (size_t at = 0; at < length; at += step) {
        detokenizer_push_bytes(&d, bytes + at, length - at < step ? length - at : step, out);
        assert_in_range(d.held_count, 0, 3);
        assert_true(utf8_valid(out->data, out->length, NULL)); /* nothing broken is ever out */
    }
    detokenizer_finish(&d, out);
}

/* Answers by Python's bytes.decode(errors="replace"). */
static void test_detokenizer_bad_sequences(void **state)
{
    (void)state;
    static const struct {
        const char *bytes, *text;
    } cases[] = {
        {"", ""},
        {"a\xc3\xa9\xe4\xb8\xad\xf0\x9f\x98\x80z", "a\xc3\xa9\xe4\xb8\xad\xf0\x9f\x98\x80z"},
        {"\xff", FFFD},
        {"a\xe2\x82"
         "A",
         "a" FFFD "A"},
        {"\xf0\x90\x80"
         "A",
         FFFD "A"},
        {"\xf0\x90\x80\xf0\x9f\x98\x80", FFFD "\xf0\x9f\x98\x80"},
        {"\xed\xa0\x80", FFFD FFFD FFFD},
        {"\xc0\x80", FFFD FFFD},
        {"\xf5\x80\x80\x80", FFFD FFFD FFFD FFFD},
        {"\xf4\x90\x80\x80", FFFD FFFD FFFD FFFD},
        {"\xe0\x80\x80", FFFD FFFD FFFD},
        {"\xc3", FFFD},
        {"\xe4\xb8", FFFD},
        {"\xf0\x9f\x98", FFFD},
        {"\xe4\xb8\xc3\xa9", FFFD "\xc3\xa9"},
        {"\x80\xbf", FFFD FFFD},
    };
    struct buf out;
    buf_init(&out, 0);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (size_t step = 1; step <= 5; step++) {
            decode(cases[i].bytes, strlen(cases[i].bytes), step, &out);
            assert_int_equal(out.length, strlen(cases[i].text));
            if (out.length) assert_memory_equal(out.data, cases[i].text, out.length);
        }
    }
    buf_free(&out);
}

static void test_detokenizer_cuts_do_not_matter(void **state)
{
    (void)state;
    static const char bytes_likely[] = "a\x80\xbf\xc3\xa9\xe2\x82\xac\xed\xa0\xf0\x9f\x98\x80\xf4\x90\xff\xc0";
    uint64_t seed = 20240607;
    struct buf whole, parts;
    buf_init(&whole, 0);
    buf_init(&parts, 0);
    print_message("seed %llu\n", (unsigned long long)seed);
    for (int round = 0; round < 20000; round++) {
        char bytes[32];
        size_t length = random_next(&seed) % sizeof bytes;
        for (size_t i = 0; i < length; i++) bytes[i] = bytes_likely[random_next(&seed) % (sizeof bytes_likely - 1)];
        decode(bytes, length, sizeof bytes, &whole);
        decode(bytes, length, 1 + random_next(&seed) % 4, &parts);
        assert_int_equal(whole.length, parts.length);
        if (whole.length) assert_memory_equal(whole.data, parts.data, whole.length);
    }
    buf_free(&whole);
    buf_free(&parts);
}

static void test_detokenizer_holds_until_complete(void **state)
{
    (void)state;
    struct detokenizer d;
    struct buf out;
    buf_init(&out, 0);
    detokenizer_init(&d, tokenizer, false);
    detokenizer_push(&d, 0xf0, &out);
    detokenizer_push(&d, 0x9f, &out);
    detokenizer_push(&d, TINY_CONTROL, &out); /* gives no text, and does not part the character */
    detokenizer_push(&d, 0x98, &out);
    assert_int_equal(out.length, 0);
    assert_int_equal(d.held_count, 3);
    detokenizer_push(&d, 0x80, &out);
    assert_int_equal(out.length, 4);
    assert_memory_equal(out.data, "\xf0\x9f\x98\x80", 4);
    detokenizer_finish(&d, &out);
    assert_int_equal(out.length, 4);
    buf_free(&out);
}

static void test_detokenizer_special_tokens(void **state)
{
    (void)state;
    for (int keep = 0; keep < 2; keep++) {
        struct detokenizer d;
        struct buf out;
        const char *want = keep ? "a<|a|><think><unk>b" : "a<think>b";
        buf_init(&out, 0);
        detokenizer_init(&d, tokenizer, keep);
        const uint32_t ids[] = {'a', TINY_CONTROL, TINY_USER, TINY_UNKNOWN, UINT32_MAX, 100000, 'b'};
        for (size_t i = 0; i < sizeof ids / sizeof *ids; i++) detokenizer_push(&d, ids[i], &out);
        detokenizer_finish(&d, &out);
        assert_int_equal(out.length, strlen(want));
        assert_memory_equal(out.data, want, out.length);
        buf_free(&out);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_detokenizer_bad_sequences),
        cmocka_unit_test(test_detokenizer_cuts_do_not_matter),
        cmocka_unit_test(test_detokenizer_holds_until_complete),
        cmocka_unit_test(test_detokenizer_special_tokens),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
