/* The byte buffer: limits, sticky failure, JSON escaping of any bytes, shortest floats. */
#include "tests/unit/unit.h"

#include "runtime/base/buf.h"
#include "runtime/base/json.h"
#include "runtime/base/mem.h"
#include "runtime/base/random.h"

static void test_buf_limit_is_sticky(void **state)
{
    (void)state;
    struct buf buf;
    buf_init(&buf, 10);
    buf_append_text(&buf, "12345");
    buf_append_text(&buf, "67890");
    assert_true(buf_ok(&buf));
    buf_append_char(&buf, 'x');
    assert_false(buf_ok(&buf));
    assert_int_equal(buf.length, 10);
    buf_clear(&buf);
    assert_true(buf_ok(&buf));
    buf_append_format(&buf, "%020d", 1);
    assert_false(buf_ok(&buf));
    buf_free(&buf);
}

/* Escaped text is valid JSON for any bytes, and reads back as the text with bad bytes replaced. */
static void test_buf_json_of_random_bytes(void **state)
{
    (void)state;
    uint64_t seed = 7;
    for (int round = 0; round < 20000; round++) {
        char bytes[24];
        size_t length = random_next(&seed) % sizeof bytes;
        for (size_t i = 0; i < length; i++) {
            static const unsigned char pool[] = {0x22, 0x5c, 0x0a, 0x1f, 0x7f, 0xc3, 0xa9,
                                                 0xe2, 0x82, 0xac, 0xf0, 0x9f, 0xff};
            bytes[i] =
                (char)(random_next(&seed) % 2 ? pool[random_next(&seed) % sizeof pool] : 1 + random_next(&seed) % 255);
        }
        struct buf buf;
        buf_init(&buf, 0);
        buf_append_json_string(&buf, bytes, length);
        struct json *root = NULL;
        struct error err;
        if (json_read(buf.data, buf.length, &root, &err) != ST_OK) fail_msg("round %d: %s", round, err.message);
        size_t back_length;
        const char *back = json_to_text(root, &back_length);
        bool clean = !memmem(back, back_length, "\xef\xbf\xbd", 3);
        if (clean) {
            assert_int_equal(back_length, length);
            assert_memory_equal(back, bytes, length);
        }
        json_release(root);
        buf_free(&buf);
    }
}

static void test_buf_floats_read_back(void **state)
{
    (void)state;
    uint64_t seed = 3;
    for (int i = 0; i < 100000; i++) {
        uint32_t bits = (uint32_t)random_next(&seed);
        float value, back;
        memcpy(&value, &bits, 4);
        if (value != value || value - value != 0) continue;
        struct buf buf;
        buf_init(&buf, 0);
        buf_append_json_float(&buf, value);
        buf_append_char(&buf, 0);
        back = strtof(buf.data, NULL);
        assert_memory_equal(&back, &value, value == 0 ? 0 : 4);
        buf_free(&buf);
    }
    struct buf buf;
    buf_init(&buf, 0);
    buf_append_json_float(&buf, 0.1f);
    buf_append_char(&buf, ' ');
    buf_append_json_float(&buf, -2.0f);
    buf_append_char(&buf, ' ');
    buf_append_json_float(&buf, (float)(1e30 * 1e30));
    buf_append_char(&buf, 0);
    assert_string_equal(buf.data, "0.1 -2.0 null");
    buf_free(&buf);
}

static bool refuse(void *state, size_t size_bytes)
{
    (void)state;
    (void)size_bytes;
    return false;
}

static void test_buf_without_memory(void **state)
{
    (void)state;
    struct buf buf;
    buf_init(&buf, 0);
    mem_hook_set(refuse, NULL);
    buf_append_text(&buf, "x");
    buf_append_json_string(&buf, "y", 1);
    mem_hook_set(NULL, NULL);
    assert_false(buf_ok(&buf));
    assert_int_equal(buf.length, 0);
    buf_free(&buf);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_buf_limit_is_sticky),
        cmocka_unit_test(test_buf_json_of_random_bytes),
        cmocka_unit_test(test_buf_floats_read_back),
        cmocka_unit_test(test_buf_without_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
