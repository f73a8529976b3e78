/* Stop strings against plain search, over random texts cut into tokens at random. */
#include "tests/unit/unit.h"

#include "runtime/base/random.h"
#include "scheduler/stop_match.h"

enum { TEXT = 200, STOPS = 4, LENGTH = 6 };

static uint32_t below(uint64_t *rng, uint32_t n)
{
    return (uint32_t)(random_next(rng) % n);
}

/* The longest suffix of text that is a proper beginning of some string. */
static uint32_t held_plain(const struct stop_string *stops, uint32_t count, const char *text, uint32_t length)
{
    uint32_t held = 0;
    for (uint32_t i = 0; i < count; i++)
        for (uint32_t k = 1; k < stops[i].length && k <= length; k++)
            if (memcmp(text + length - k, stops[i].bytes, k) == 0 && k > held) held = k;
    return held;
}

static bool hit_plain(const struct stop_string *stops, uint32_t count, const char *text, uint32_t length,
                      struct stop_hit *hit)
{
    uint32_t longest = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t n = stops[i].length;
        if (n > length || n <= longest || memcmp(text + length - n, stops[i].bytes, n) != 0) continue;
        longest = n;
        *hit = (struct stop_hit){.index = i, .start = length - n, .end = length};
    }
    return longest > 0;
}

static void test_stop_match_random(void **state)
{
    (void)state;
    uint64_t rng = 7;
    uint32_t hits = 0;
    for (uint32_t round = 0; round < 20000; round++) {
        char bytes[STOPS][LENGTH], text[TEXT];
        struct stop_string stops[STOPS];
        uint16_t failure[STOPS * LENGTH], states[STOPS];
        uint32_t count = 1 + below(&rng, STOPS), letters = 1 + below(&rng, 3);
        for (uint32_t i = 0; i < count; i++) {
            stops[i] = (struct stop_string){.bytes = bytes[i], .length = 1 + below(&rng, LENGTH)};
            for (uint32_t k = 0; k < stops[i].length; k++) bytes[i][k] = (char)('a' + below(&rng, letters));
        }
        for (uint32_t k = 0; k < TEXT; k++) text[k] = (char)('a' + below(&rng, letters + 1));
        uint32_t armed_from = below(&rng, 3) ? 0 : below(&rng, 40);
        struct stop_match match;
        assert_true(stop_match_fits(stops, count, STOPS * LENGTH));
        stop_match_init(&match, stops, count, failure, states);
        for (uint32_t at = 0; at < TEXT;) {
            uint32_t length = below(&rng, 5);
            if (length > TEXT - at) length = TEXT - at;
            bool armed = at >= armed_from, expected = false;
            struct stop_hit hit, want;
            for (uint32_t e = at + 1; e <= at + length && armed && !expected; e++)
                expected = hit_plain(stops, count, text, e, &want);
            bool got = stop_match_push(&match, text + at, length, armed, &hit);
            assert_int_equal(got, expected);
            at += length;
            assert_int_equal(match.text_bytes, at);
            if (got) {
                assert_int_equal(hit.index, want.index);
                assert_int_equal(hit.start, want.start);
                assert_int_equal(hit.end, want.end);
                hits++;
                break;
            }
            assert_int_equal(stop_match_held(&match), held_plain(stops, count, text, at));
        }
    }
    assert_true(hits > 1000);
}

static void test_stop_match_fits(void **state)
{
    (void)state;
    struct stop_string stops[2] = {{.bytes = "abc", .length = 3}, {.bytes = "de", .length = 2}};
    assert_true(stop_match_fits(stops, 2, 5));
    assert_false(stop_match_fits(stops, 2, 4));
    stops[1].length = 0;
    assert_false(stop_match_fits(stops, 2, 5));
    stops[1].length = 65536;
    assert_false(stop_match_fits(stops, 2, UINT32_MAX));
    assert_true(stop_match_fits(NULL, 0, 0));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_stop_match_random),
                                       cmocka_unit_test(test_stop_match_fits)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
