/* Every weight format against gguf-py's values (tests/golden/make_dequantize.py), and the half conversions exhaustively
 * against arithmetic in double. */
#include "tests/unit/unit.h"

#include "kernels/dequantize.h"

#include <math.h>

static uint32_t bits(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static uint8_t *read_golden(size_t *size)
{
    FILE *file = fopen(TESTS_DIR "/golden/dequantize.bin", "rb");
    assert_non_null(file);
    assert_int_equal(fseek(file, 0, SEEK_END), 0);
    *size = (size_t)ftell(file);
    rewind(file);
    uint8_t *data = test_malloc(*size);
    assert_int_equal(fread(data, 1, *size, file), *size);
    fclose(file);
    return data;
}

static void compare_format(uint32_t type, const uint8_t *source, size_t source_bytes, const uint8_t *wanted,
                           uint32_t count)
{
    const struct tensor_type_info *info = tensor_type_info(type);
    assert_non_null(info);
    assert_int_equal(tensor_row_bytes(info, count), source_bytes);
    float *got = test_malloc(count * sizeof *got);
    uint8_t *odd = test_malloc(source_bytes + 1); /* blocks have no alignment of their own */
    memcpy(odd + 1, source, source_bytes);
    dequantize_row((enum tensor_type)type, odd + 1, got, count);
    for (uint32_t i = 0; i < count; i++) {
        float value;
        memcpy(&value, wanted + 4 * (size_t)i, 4);
        if (isnan(value) && isnan(got[i]))
            continue; /* the sign and payload of an invalid operation's NaN are the machine's */
        if (bits(value) != bits(got[i])) {
            print_message("%s value %u: got %a, gguf-py has %a\n", info->name, i, (double)got[i], (double)value);
            fail();
        }
    }
    test_free(odd);
    test_free(got);
}

static void test_dequantize_equals_gguf(void **state)
{
    (void)state;
    size_t size, at = 8;
    uint8_t *data = read_golden(&size);
    uint32_t formats, seen = 0, head[3];
    assert_memory_equal(data, "DEQG", 4);
    memcpy(&formats, data + 4, 4);
    for (uint32_t f = 0; f < formats; f++, seen++) {
        memcpy(head, data + at, sizeof head);
        at += sizeof head;
        assert_in_range(at + head[2] + 4 * (size_t)head[1], at, size);
        compare_format(head[0], data + at, head[2], data + at + head[2], head[1]);
        at += head[2] + 4 * (size_t)head[1];
    }
    assert_int_equal(at, size);
#define X(name, id, block_items, block_bytes) formats -= id < TENSOR_OWN;
    TENSOR_TYPE_MAP(X)
#undef X
    assert_int_equal(formats, 0); /* every format of GGUF stands in the file */
    test_free(data);
}

/* Every code of E4M3 by its definition, and a block of them with a scale. */
static void test_dequantize_f8(void **state)
{
    (void)state;
    uint8_t block[132];
    float x[128], scale = 0.3f;
    memcpy(block, &scale, 4);
    for (uint32_t code = 0; code < 256; code++) {
        uint32_t exponent = code >> 3 & 15, fraction = code & 7;
        double magnitude = exponent ? ldexp(8 + fraction, (int)exponent - 10) : ldexp(fraction, -9);
        float value = f8_to_f32((uint8_t)code);
        assert_int_equal(bits(value) >> 31, code >> 7);
        if ((code & 0x7f) == 0x7f) {
            assert_true(isnan(value));
            continue;
        }
        assert_true((double)value == (code >> 7 ? -magnitude : magnitude));
        memset(block + 4, (int)code, 128);
        dequantize_row(TENSOR_F8, block, x, 128);
        for (int i = 0; i < 128; i++) assert_int_equal(bits(x[i]), bits(value * scale));
    }
}

/* The value of a half by its definition. */
static double half_value(uint16_t h)
{
    int exponent = h >> 10 & 31, fraction = h & 0x3ff;
    double magnitude = exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
    return h >> 15 ? -magnitude : magnitude;
}

static void test_dequantize_f16_to_f32(void **state)
{
    (void)state;
    for (uint32_t h = 0; h <= 0xffff; h++) {
        float x = f16_to_f32((uint16_t)h);
        assert_int_equal(bits(x) >> 31, h >> 15);
        if ((h & 0x7fff) > 0x7c00) {
            assert_true(isnan(x));
            assert_int_equal(f32_to_f16(x), h | 0x200); /* the same NaN, quiet */
            continue;
        }
        if ((h & 0x7fff) == 0x7c00)
            assert_true(isinf(x));
        else
            assert_true((double)x == half_value((uint16_t)h));
        assert_int_equal(f32_to_f16(x), h);
    }
}

/* Between every two neighbouring halves: the midpoint goes to the even one, a hair to either side to the nearer one. */
static void test_dequantize_f32_to_f16_rounds(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x7c00; h++) {
        double low = half_value((uint16_t)h), high = h == 0x7bff ? 65536.0 : half_value((uint16_t)(h + 1));
        float middle = (float)((low + high) / 2); /* 12 bits: exact */
        uint32_t even = h & 1 ? h + 1 : h;
        for (uint32_t sign = 0; sign <= 0x8000; sign += 0x8000) {
            float s = sign ? -1.0f : 1.0f;
            assert_int_equal(f32_to_f16(s * middle), even | sign);
            assert_int_equal(f32_to_f16(s * nextafterf(middle, 0.0f)), h | sign);
            assert_int_equal(f32_to_f16(s * nextafterf(middle, INFINITY)), (h + 1) | sign);
        }
    }
    assert_int_equal(f32_to_f16(0x1p-149f), 0);
    assert_int_equal(f32_to_f16(3.4e38f), 0x7c00);
    assert_int_equal(f32_to_f16(-INFINITY), 0xfc00);
}

static void test_dequantize_bf16(void **state)
{
    (void)state;
    for (uint32_t h = 0; h <= 0xffff; h++) {
        float x = bf16_to_f32((uint16_t)h);
        assert_int_equal(bits(x), h << 16);
        bool nan = (h & 0x7fff) > 0x7f80;
        assert_int_equal(f32_to_bf16(x), nan ? h | 0x40 : h);
        if ((h & 0x7fff) >= 0x7f80) continue;
        uint32_t patterns[3] = {h << 16 | 0x7fff, h << 16 | 0x8000, h << 16 | 0x8001};
        uint32_t wanted[3] = {h, h & 1 ? h + 1 : h, h + 1};
        for (int i = 0; i < 3; i++) {
            memcpy(&x, &patterns[i], sizeof x);
            assert_int_equal(f32_to_bf16(x), wanted[i]);
        }
    }
    uint32_t quiet_lost = 0x7f800001; /* a NaN whose payload lies only in the bits that go */
    float x;
    memcpy(&x, &quiet_lost, sizeof x);
    assert_int_equal(f32_to_bf16(x), 0x7fc0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dequantize_equals_gguf), cmocka_unit_test(test_dequantize_f8),
        cmocka_unit_test(test_dequantize_f16_to_f32),  cmocka_unit_test(test_dequantize_f32_to_f16_rounds),
        cmocka_unit_test(test_dequantize_bf16),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
