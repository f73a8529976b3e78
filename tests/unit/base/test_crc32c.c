/* CRC-32C: the vectors of RFC 3720, and the two ways against each other and against the bit-by-bit meaning. */
#include "tests/unit/unit.h"

#include "runtime/base/crc32c.h"
#include "runtime/base/random.h"

static uint32_t by_bits(const uint8_t *bytes, size_t length)
{
    uint32_t crc = UINT32_MAX;
    for (size_t i = 0; i < length; i++) {
        crc ^= bytes[i];
        for (int bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82F63B78u : 0);
    }
    return ~crc;
}

static void test_crc32c_rfc3720(void **state)
{
    (void)state;
    uint8_t zeros[32] = {0}, ones[32], rising[32], falling[32];
    for (int i = 0; i < 32; i++) {
        ones[i] = 0xff;
        rising[i] = (uint8_t)i;
        falling[i] = (uint8_t)(31 - i);
    }
    static const uint8_t iscsi_read[48] = {0x01, 0xc0, 0, 0, 0, 0, 0, 0, 0,    0, 0, 0,    0, 0, 0, 0,
                                           0x14, 0,    0, 0, 0, 0, 4, 0, 0,    0, 0, 0x14, 0, 0, 0, 0x18,
                                           0x28, 0,    0, 0, 0, 0, 0, 0, 0x02, 0, 0, 0,    0, 0, 0, 0};
    assert_int_equal(crc32c(zeros, 32), 0x8A9136AAu);
    assert_int_equal(crc32c(ones, 32), 0x62A8AB43u);
    assert_int_equal(crc32c(rising, 32), 0x46DD794Eu);
    assert_int_equal(crc32c(falling, 32), 0x113FDB5Cu);
    assert_int_equal(crc32c(iscsi_read, 48), 0xD9963A56u);
    assert_int_equal(crc32c("123456789", 9), 0xE3069283u);
    assert_int_equal(crc32c_extend_table(0, iscsi_read, 48), 0xD9963A56u);
    assert_int_equal(crc32c(NULL, 0), 0);
}

static void test_crc32c_both_ways_at_every_length_and_cut(void **state)
{
    (void)state;
    uint8_t bytes[300];
    uint64_t random = 7;
    for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (uint8_t)(random = random * 6364136223846793005u + 1);
    for (size_t length = 0; length < 280; length++) {
        for (size_t start = 0; start < 9; start++) {
            uint32_t want = by_bits(bytes + start, length);
            assert_int_equal(crc32c(bytes + start, length), want);
            assert_int_equal(crc32c_extend_table(0, bytes + start, length), want);
            size_t cut = length * 2 / 3;
            assert_int_equal(crc32c_extend(crc32c(bytes + start, cut), bytes + start + cut, length - cut), want);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_crc32c_rfc3720),
        cmocka_unit_test(test_crc32c_both_ways_at_every_length_and_cut),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
