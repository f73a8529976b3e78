/* See normalise_map.h. The layout is that of Darts (a double array): a unit of 32 bits holds its label (bits 0-7, and
 * bit 31 for a value), whether a value hangs below it (bit 8) and where its children are (bits 10-30, shifted by 8
 * where bit 9 is set). Source: S. Yata's darts-clone; SentencePiece, src/normalizer.cc.
 *
 * What is looked up follows the `tokenizers` library, which differs from SentencePiece: a grapheme of fewer than 6
 * bytes as a whole, and the *shortest* entry that it begins with stands for all of it; else its characters one by one.
 */
#include "runtime/text/normalise_map.h"

#include "runtime/base/mem.h"
#include "runtime/base/utf8.h"

#include <stdbool.h>
#include <string.h>
#include <utf8proc.h>

static int base64_value(char c)
{
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (c >= '0' && c <= '9') return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* Decoded bytes into out (room for 3 bytes for every 4 characters), or SIZE_MAX. */
static size_t base64_decode(const char *text, size_t length, uint8_t *out)
{
    size_t n = 0;
    if (length % 4) return SIZE_MAX;
    for (size_t i = 0; i < length; i += 4) {
        bool last = i + 4 == length;
        int pad = last && text[i + 3] == '=' ? (text[i + 2] == '=' ? 2 : 1) : 0;
        uint32_t bits = 0;
        for (int k = 0; k < 4; k++) {
            int value = k >= 4 - pad ? 0 : base64_value(text[i + (size_t)k]);
            if (value < 0) return SIZE_MAX;
            bits = bits << 6 | (uint32_t)value;
        }
        for (int k = 0; k < 3 - pad; k++) out[n++] = (uint8_t)(bits >> (16 - 8 * k));
    }
    return n;
}

enum status normalise_map_init(struct normalise_map *map, const char *base64, size_t length, struct error *err)
{
    memset(map, 0, sizeof *map);
    if (!length) return ST_OK; /* maps nothing */
    map->data = mem_alloc(length / 4 * 3 + 1, 1);
    if (!map->data) return ST_NOMEM;
    size_t n = base64_decode(base64, length, map->data);
    uint32_t trie_bytes = 0;
    if (n != SIZE_MAX && n >= 4)
        trie_bytes =
            map->data[0] | (uint32_t)map->data[1] << 8 | (uint32_t)map->data[2] << 16 | (uint32_t)map->data[3] << 24;
    if (n == SIZE_MAX || n < 8 || trie_bytes < 4 || trie_bytes % 4 || trie_bytes > n - 4) {
        normalise_map_free(map);
        return error_set(err, ST_INVAL, "normalizer Precompiled: the map is not one of SentencePiece's");
    }
    map->units = trie_bytes / 4;
    map->text_at = 4 + (size_t)trie_bytes;
    map->data_end = n;
    map->data[n] = 0;
    return ST_OK;
}

void normalise_map_free(struct normalise_map *map)
{
    mem_free(map->data);
    memset(map, 0, sizeof *map);
}

static uint32_t unit_at(const struct normalise_map *map, uint32_t at)
{
    const uint8_t *p = map->data + 4 + 4 * (size_t)at;
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static uint32_t children(uint32_t unit)
{
    return (unit >> 10) << ((unit & 1u << 9) >> 6);
}

/* What stands for the shortest entry at the start of text[length]; NULL: no entry. */
static const char *find(const struct normalise_map *map, const char *text, size_t length, size_t *found_length)
{
    if (!map->units) return NULL;
    uint32_t at = children(unit_at(map, 0));
    for (size_t i = 0; i < length && text[i]; i++) {
        at ^= (unsigned char)text[i];
        if (at >= map->units) return NULL;
        uint32_t unit = unit_at(map, at);
        if ((unit & (1u << 31 | 0xff)) != (unsigned char)text[i]) return NULL;
        at ^= children(unit);
        if (at >= map->units) return NULL;
        if (!(unit >> 8 & 1)) continue;
        size_t start = map->text_at + (unit_at(map, at) & ~(1u << 31));
        if (start > map->data_end) return NULL;
        const char *replacement = (const char *)map->data + start;
        *found_length = strlen(replacement); /* the NUL behind the data ends it at the latest */
        return replacement;
    }
    return NULL;
}

/* The bytes of the grapheme at the start of text; a byte that is no UTF-8 is one. */
static size_t grapheme(const char *text, size_t length)
{
    uint32_t c, before;
    utf8proc_int32_t state = 0;
    size_t at = utf8_decode(text, length, &before);
    if (!at) return 1;
    while (at < length) {
        size_t n = utf8_decode(text + at, length - at, &c);
        if (!n || utf8proc_grapheme_break_stateful((utf8proc_int32_t)before, (utf8proc_int32_t)c, &state)) break;
        before = c;
        at += n;
    }
    return at;
}

void normalise_map_run(const struct normalise_map *map, const char *text, size_t length, normalise_map_fn piece,
                       void *state)
{
    enum { WHOLE_BELOW = 6 };
    for (size_t at = 0, n; at < length; at += n) {
        size_t found_length = 0;
        n = grapheme(text + at, length - at);
        const char *found = n < WHOLE_BELOW ? find(map, text + at, n, &found_length) : NULL;
        if (found) {
            piece(state, at, at + n, found, found_length);
            continue;
        }
        for (size_t i = 0, k; i < n; i += k) {
            k = utf8_length(text + at + i, n - i);
            if (!k) k = 1;
            found = find(map, text + at + i, k, &found_length);
            piece(state, at + i, at + i + k, found, found_length);
        }
    }
}
