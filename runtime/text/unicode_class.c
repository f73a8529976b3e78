/* Categories of all 0x110000 characters, asked once and folded into distinct blocks of 256 (about 200 of 4,352 differ).
 * A generated table in the source was rejected: 60 kB of numbers nobody can review, and libutf8proc is linked anyway.
 */
#include "runtime/text/unicode_class.h"

#include "runtime/base/mem.h"

#include <string.h>
#include <utf8proc.h>

/* Letters, marks and numbers of Unicode 16 that Unicode 15 did not have, and the numbers of Unicode 17. Found by asking
 * `tokenizers` 0.23 about every character and comparing with libutf8proc 2.8. Only used for what the library calls
 * unassigned, so a newer library makes them superfluous. In ascending order. */
static const struct {
    uint32_t first, last;
    enum unicode_class class;
} late[] = {
    {0x897, 0x897, UNICODE_MARK},           {0x1c89, 0x1c8a, UNICODE_LETTER},       {0xa7cb, 0xa7cd, UNICODE_LETTER},
    {0xa7da, 0xa7dc, UNICODE_LETTER},       {0x105c0, 0x105f3, UNICODE_LETTER},     {0x10d40, 0x10d49, UNICODE_NUMBER},
    {0x10d4a, 0x10d65, UNICODE_LETTER},     {0x10d69, 0x10d6d, UNICODE_MARK},       {0x10d6f, 0x10d85, UNICODE_LETTER},
    {0x10ec2, 0x10ec4, UNICODE_LETTER},     {0x10efc, 0x10efc, UNICODE_MARK},       {0x11380, 0x11389, UNICODE_LETTER},
    {0x1138b, 0x1138b, UNICODE_LETTER},     {0x1138e, 0x1138e, UNICODE_LETTER},     {0x11390, 0x113b5, UNICODE_LETTER},
    {0x113b7, 0x113b7, UNICODE_LETTER},     {0x113b8, 0x113c0, UNICODE_MARK},       {0x113c2, 0x113c2, UNICODE_MARK},
    {0x113c5, 0x113c5, UNICODE_MARK},       {0x113c7, 0x113ca, UNICODE_MARK},       {0x113cc, 0x113d0, UNICODE_MARK},
    {0x113d1, 0x113d1, UNICODE_LETTER},     {0x113d2, 0x113d2, UNICODE_MARK},       {0x113d3, 0x113d3, UNICODE_LETTER},
    {0x113e1, 0x113e2, UNICODE_MARK},       {0x116d0, 0x116e3, UNICODE_NUMBER},     {0x11bc0, 0x11be0, UNICODE_LETTER},
    {0x11bf0, 0x11bf9, UNICODE_NUMBER},     {0x11de0, 0x11de9, UNICODE_NUMBER_NEW}, {0x11f5a, 0x11f5a, UNICODE_MARK},
    {0x13460, 0x143fa, UNICODE_LETTER},     {0x16100, 0x1611d, UNICODE_LETTER},     {0x1611e, 0x1612f, UNICODE_MARK},
    {0x16130, 0x16139, UNICODE_NUMBER},     {0x16d40, 0x16d6c, UNICODE_LETTER},     {0x16d70, 0x16d79, UNICODE_NUMBER},
    {0x16ff4, 0x16ff6, UNICODE_NUMBER_NEW}, {0x18cff, 0x18cff, UNICODE_LETTER},     {0x1ccf0, 0x1ccf9, UNICODE_NUMBER},
    {0x1e5d0, 0x1e5ed, UNICODE_LETTER},     {0x1e5ee, 0x1e5ef, UNICODE_MARK},       {0x1e5f0, 0x1e5f0, UNICODE_LETTER},
    {0x1e5f1, 0x1e5fa, UNICODE_NUMBER},     {0x2ebf0, 0x2ee5d, UNICODE_LETTER},
};

bool unicode_is_space(uint32_t c)
{
    return (c >= 9 && c <= 13) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) ||
           c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

static enum unicode_class class_of(uint32_t c)
{
    if (c == '\n' || c == '\r') return UNICODE_NEWLINE;
    if (unicode_is_space(c)) return UNICODE_SPACE;
    switch (utf8proc_category((utf8proc_int32_t)c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO: return UNICODE_LETTER;
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME: return UNICODE_MARK;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO: return UNICODE_NUMBER;
    case UTF8PROC_CATEGORY_CN: break;
    default: return UNICODE_OTHER;
    }
    if (c > late[sizeof late / sizeof *late - 1].last) return UNICODE_OTHER;
    for (size_t i = 0; i < sizeof late / sizeof *late && c >= late[i].first; i++)
        if (c <= late[i].last) return late[i].class;
    return UNICODE_OTHER;
}

enum status unicode_classes_init(struct unicode_classes *classes)
{
    size_t count = 0, capacity = 0;
    uint8_t block[UNICODE_BLOCK];
    memset(classes, 0, sizeof *classes);
    for (uint32_t b = 0; b < UNICODE_BLOCKS; b++) {
        for (uint32_t i = 0; i < UNICODE_BLOCK; i++) block[i] = (uint8_t)class_of(b * UNICODE_BLOCK + i);
        size_t k = 0;
        while (k < count && memcmp(classes->blocks[k], block, sizeof block)) k++;
        if (k == capacity) {
            capacity = capacity ? 2 * capacity : 128;
            uint8_t(*grown)[UNICODE_BLOCK] = mem_resize(classes->blocks, capacity, sizeof block);
            if (!grown) {
                unicode_classes_free(classes);
                return ST_NOMEM;
            }
            classes->blocks = grown;
        }
        if (k == count) memcpy(classes->blocks[count++], block, sizeof block);
        classes->block_idx[b] = (uint16_t)k;
    }
    memcpy(classes->ascii, classes->blocks[classes->block_idx[0]], sizeof classes->ascii);
    return ST_OK;
}

void unicode_classes_free(struct unicode_classes *classes)
{
    mem_free(classes->blocks);
    classes->blocks = NULL;
}

bool unicode_is_word(const struct unicode_classes *classes, uint32_t codepoint)
{
    uint32_t c = codepoint;
    switch (unicode_class_of(classes, c)) {
    case UNICODE_LETTER:
    case UNICODE_MARK: return true;
    case UNICODE_NUMBER:
    case UNICODE_NUMBER_NEW: return utf8proc_category((utf8proc_int32_t)c) != UTF8PROC_CATEGORY_NO;
    case UNICODE_SPACE:
    case UNICODE_NEWLINE: return false;
    case UNICODE_OTHER: break;
    }
    return c == 0x200c || c == 0x200d || (c >= 0x24b6 && c <= 0x24e9) || (c >= 0x1f130 && c <= 0x1f149) ||
           (c >= 0x1f150 && c <= 0x1f169) || (c >= 0x1f170 && c <= 0x1f189) ||
           utf8proc_category((utf8proc_int32_t)c) == UTF8PROC_CATEGORY_PC;
}
