/* Little-endian numbers into and out of bytes, one at a time and never past an end: how records, frames and headers
 * are written and read on any machine.
 *
 * A writer that runs out of room, or a reader that runs out of bytes, becomes `bad` and stays so; a bad reader gives
 * zeros. So the check stands once, at the end. Pure. */
#ifndef SERVER_BILLING_BYTES_H
#define SERVER_BILLING_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct byte_writer {
    uint8_t *bytes;
    size_t length, capacity;
    bool bad;
};

static inline void put_bytes(struct byte_writer *to, const void *bytes, size_t length)
{
    if (to->bad || length > to->capacity - to->length) {
        to->bad = true;
        return;
    }
    if (length > 0) memcpy(to->bytes + to->length, bytes, length);
    to->length += length;
}
static inline void put_number(struct byte_writer *to, uint64_t value, size_t length)
{
    uint8_t bytes[8];
    for (size_t i = 0; i < length; i++) bytes[i] = (uint8_t)(value >> (8 * i));
    put_bytes(to, bytes, length);
}
static inline void put_u8(struct byte_writer *to, uint8_t value)
{
    put_number(to, value, 1);
}
static inline void put_u16(struct byte_writer *to, uint16_t value)
{
    put_number(to, value, 2);
}
static inline void put_u32(struct byte_writer *to, uint32_t value)
{
    put_number(to, value, 4);
}
static inline void put_u64(struct byte_writer *to, uint64_t value)
{
    put_number(to, value, 8);
}
static inline void put_i64(struct byte_writer *to, int64_t value)
{
    put_number(to, (uint64_t)value, 8);
}
/* A length byte, then the text without its NUL. */
static inline void put_text8(struct byte_writer *to, const char *text)
{
    size_t length = strlen(text);
    if (length > 255) to->bad = true;
    put_u8(to, (uint8_t)length);
    put_bytes(to, text, length);
}

struct byte_reader {
    const uint8_t *bytes;
    size_t offset, length;
    bool bad;
};

static inline const uint8_t *get_bytes(struct byte_reader *from, size_t length)
{
    if (from->bad || length > from->length - from->offset) {
        from->bad = true;
        return NULL;
    }
    const uint8_t *bytes = from->bytes + from->offset;
    from->offset += length;
    return bytes;
}
static inline uint64_t get_number(struct byte_reader *from, size_t length)
{
    const uint8_t *bytes = get_bytes(from, length);
    uint64_t value = 0;
    if (bytes != NULL) {
        for (size_t i = 0; i < length; i++) value |= (uint64_t)bytes[i] << (8 * i);
    }
    return value;
}
static inline uint8_t get_u8(struct byte_reader *from)
{
    return (uint8_t)get_number(from, 1);
}
static inline uint16_t get_u16(struct byte_reader *from)
{
    return (uint16_t)get_number(from, 2);
}
static inline uint32_t get_u32(struct byte_reader *from)
{
    return (uint32_t)get_number(from, 4);
}
static inline uint64_t get_u64(struct byte_reader *from)
{
    return get_number(from, 8);
}
static inline int64_t get_i64(struct byte_reader *from)
{
    return (int64_t)get_number(from, 8);
}
static inline void get_copy(struct byte_reader *from, void *out, size_t length)
{
    const uint8_t *bytes = get_bytes(from, length);
    if (bytes != NULL) {
        memcpy(out, bytes, length);
    } else {
        memset(out, 0, length);
    }
}
/* Into capacity bytes with a NUL; bad when it is longer, or holds a control character. */
static inline void get_text8(struct byte_reader *from, char *out, size_t capacity)
{
    size_t length = get_u8(from);
    const uint8_t *bytes = length < capacity ? get_bytes(from, length) : NULL;
    out[0] = 0;
    if (bytes == NULL) {
        from->bad = true;
        return;
    }
    for (size_t i = 0; i < length; i++) {
        if (bytes[i] < 0x20 || bytes[i] == 0x7f) from->bad = true;
    }
    memcpy(out, bytes, length);
    out[length] = 0;
}

#endif
