/* UTF-8 against the table of well-formed sequences, and the tail that a stream holds back. */
#include "tests/unit/unit.h"

#include "runtime/base/utf8.h"

static void test_utf8_round_trip(void **state)
{
    (void)state;
    for (uint32_t c = 0; c <= 0x110000; c++) {
        char bytes[4];
        uint32_t back = 0;
        size_t n = utf8_encode(c, bytes);
        bool scalar = c <= 0x10ffff && (c < 0xd800 || c >= 0xe000);
        assert_int_equal(n != 0, scalar);
        if (!scalar) continue;
        assert_int_equal(utf8_decode(bytes, n, &back), n);
        assert_int_equal(back, c);
        for (size_t cut = 1; cut < n; cut++) {
            assert_int_equal(utf8_length(bytes, cut), 0);
            assert_int_equal(utf8_incomplete_tail(bytes, cut), cut);
        }
        assert_int_equal(utf8_incomplete_tail(bytes, n), 0);
    }
}

static void test_utf8_refuses(void **state)
{
    (void)state;
    static const char *const bad[] = {"\x80",
                                      "\xc0\x80",
                                      "\xc1\xbf",
                                      "\xe0\x80\x80",
                                      "\xed\xa0\x80",
                                      "\xf0\x80\x80\x80",
                                      "\xf4\x90\x80\x80",
                                      "\xf8\x88\x80\x80\x80",
                                      "\xff",
                                      "a\xc3("};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) assert_false(utf8_valid(bad[i], strlen(bad[i]), NULL));
    size_t offset = 99;
    assert_false(utf8_valid("ab\xff", 3, &offset));
    assert_int_equal(offset, 2);
    assert_int_equal(utf8_incomplete_tail("\xe0\x80", 2), 0); /* can become nothing valid */
    assert_int_equal(utf8_incomplete_tail("x\xf0\x9f\x98", 4), 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_utf8_round_trip),
        cmocka_unit_test(test_utf8_refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
