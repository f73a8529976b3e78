/* getrandom behind a hook, and Philox4x32-10; see random.h. */
#include "runtime/base/random.h"

#include "runtime/base/check.h"

#include <errno.h>
#include <sys/random.h>
#include <sys/types.h>

static random_hook_fn hook_fn;
static void *hook_state;

void random_hook_set(random_hook_fn hook, void *state)
{
    hook_fn = hook;
    hook_state = state;
}

void random_fill(void *out, size_t length)
{
    if (hook_fn) {
        hook_fn(hook_state, out, length);
        return;
    }
    for (uint8_t *p = out; length;) {
        ssize_t n = getrandom(p, length, 0);
        if (n < 0 && errno == EINTR) continue;
        CHECK(n > 0);
        p += n;
        length -= (size_t)n;
    }
}

void random_uuid(char uuid[UUID_CHARS + 1])
{
    static const char digits[] = "0123456789abcdef";
    uint8_t bytes[16];
    char *at = uuid;
    random_fill(bytes, sizeof bytes);
    bytes[6] = (uint8_t)((bytes[6] & 0x0f) | 0x40);
    bytes[8] = (uint8_t)((bytes[8] & 0x3f) | 0x80);
    for (size_t i = 0; i < sizeof bytes; i++) {
        if (i == 4 || i == 6 || i == 8 || i == 10) *at++ = '-';
        *at++ = digits[bytes[i] >> 4];
        *at++ = digits[bytes[i] & 15];
    }
    *at = '\0';
}

void philox4x32(uint64_t key, uint64_t counter_low, uint64_t counter_high, uint32_t out[4])
{
    uint32_t c0 = (uint32_t)counter_low, c1 = (uint32_t)(counter_low >> 32);
    uint32_t c2 = (uint32_t)counter_high, c3 = (uint32_t)(counter_high >> 32);
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = UINT64_C(0xd2511f53) * c0, p1 = UINT64_C(0xcd9e8d57) * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = n0;
        c2 = n2;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

double random_uniform(uint64_t seed, uint64_t position)
{
    uint32_t block[4];
    philox4x32(seed, position, 0, block);
    uint64_t bits = (uint64_t)block[0] << 32 | block[1];
    return (double)(bits >> 11) * 0x1p-53;
}
