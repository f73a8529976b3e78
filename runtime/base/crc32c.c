/* Two ways to the same number: the crc32 instruction of SSE4.2, 8 bytes at a time (about 8 GB/s: its latency of 3
 * cycles bounds it, three interleaved streams would triple that and are not needed beside a disk), and eight tables of
 * 256 entries ("slicing by 8", Kounavis and Berry 2005; about 2 GB/s). Which one is asked of the processor once. */
#include "runtime/base/crc32c.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

enum { SLICES = 8 };

/* Of one byte: T[0][b]; T[k][b] is b followed by k zero bytes. Made at first use; two threads that make it at once
 * write the same values, and the flag's release order shows them whole. */
static _Atomic uint32_t slices[SLICES][256];
static atomic_bool slices_ready;

static void slices_make(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82F63B78u : 0);
        atomic_store_explicit(&slices[0][byte], crc, memory_order_relaxed);
        for (int k = 1; k < SLICES; k++) {
            uint32_t low = crc & 255, next;
            /* T[0] of a smaller index may not be there yet: computed again */
            next = low;
            for (int bit = 0; bit < 8; bit++) next = (next >> 1) ^ ((next & 1) != 0 ? 0x82F63B78u : 0);
            crc = (crc >> 8) ^ next;
            atomic_store_explicit(&slices[k][byte], crc, memory_order_relaxed);
        }
    }
    atomic_store_explicit(&slices_ready, true, memory_order_release);
}

static inline uint32_t slice(int k, uint32_t byte)
{
    return atomic_load_explicit(&slices[k][byte & 255], memory_order_relaxed);
}

uint32_t crc32c_extend_table(uint32_t crc, const void *data, size_t length)
{
    if (!atomic_load_explicit(&slices_ready, memory_order_acquire)) slices_make();
    const uint8_t *bytes = data;
    crc = ~crc;
    for (; length >= 8; bytes += 8, length -= 8) {
        uint32_t a =
            crc ^ ((uint32_t)bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24);
        crc = slice(7, a) ^ slice(6, a >> 8) ^ slice(5, a >> 16) ^ slice(4, a >> 24) ^ slice(3, bytes[4]) ^
              slice(2, bytes[5]) ^ slice(1, bytes[6]) ^ slice(0, bytes[7]);
    }
    for (; length > 0; bytes++, length--) crc = (crc >> 8) ^ slice(0, crc ^ *bytes);
    return ~crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) static uint32_t extend_sse42(uint32_t crc, const uint8_t *bytes, size_t length)
{
    uint64_t sum = ~crc & UINT64_C(0xFFFFFFFF);
    for (; length >= 8; bytes += 8, length -= 8) {
        uint64_t word;
        memcpy(&word, bytes, 8);
        sum = __builtin_ia32_crc32di(sum, word);
    }
    uint32_t rest = (uint32_t)sum;
    for (; length > 0; bytes++, length--) rest = __builtin_ia32_crc32qi(rest, *bytes);
    return ~rest;
}

uint32_t crc32c_extend(uint32_t crc, const void *data, size_t length)
{
    static atomic_int has; /* 0: not asked yet, 1: no, 2: yes */
    int known = atomic_load_explicit(&has, memory_order_relaxed);
    if (known == 0) {
        __builtin_cpu_init();
        known = __builtin_cpu_supports("sse4.2") ? 2 : 1;
        atomic_store_explicit(&has, known, memory_order_relaxed);
    }
    return known == 2 ? extend_sse42(crc, data, length) : crc32c_extend_table(crc, data, length);
}
#else
uint32_t crc32c_extend(uint32_t crc, const void *data, size_t length)
{
    return crc32c_extend_table(crc, data, length);
}
#endif
