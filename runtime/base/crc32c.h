/* CRC-32C (Castagnoli): what ends a journal frame's life when one of its bits has turned. Reflected polynomial
 * 0x82F63B78, start and end inverted, as RFC 3720, appendix B.4 computes it. Pure, any thread.
 *
 * crc32c(bytes ab) = crc32c_extend(crc32c(a), b). */
#ifndef RUNTIME_BASE_CRC32C_H
#define RUNTIME_BASE_CRC32C_H

#include <stddef.h>
#include <stdint.h>

uint32_t crc32c_extend(uint32_t crc, const void *data, size_t length);
static inline uint32_t crc32c(const void *data, size_t length)
{
    return crc32c_extend(0, data, length);
}

/* The same without the processor's instruction: the meaning, and what other machines use. */
uint32_t crc32c_extend_table(uint32_t crc, const void *data, size_t length);

#endif
