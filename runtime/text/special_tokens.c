/* See special_tokens.h. Rejected: an Aho-Corasick automaton, which is linear without the factor of the name's length,
 * but is built from tables larger than all names, for texts in which a name's first byte is rare. */
#include "runtime/text/special_tokens.h"

#include "runtime/base/mem.h"

#include <stdlib.h>
#include <string.h>

static int compare(const void *a, const void *b)
{
    const struct special_name *x = a, *y = b;
    int order = memcmp(x->bytes, y->bytes, x->length < y->length ? x->length : y->length);
    if (order) return order;
    return x->length < y->length ? -1 : x->length > y->length;
}

enum { NAMES_FIRST = 64, TEXT_FIRST = 4096 };

/* Until the names are sorted only `at` tells where a name stands: text moves while it grows. */
enum status special_tokens_add(struct special_tokens *special, const char *bytes, size_t length,
                               struct special_name name)
{
    if (!length || length > UINT32_MAX / 2 - special->text_bytes) return ST_INVAL;
    if (special->count == special->capacity) {
        uint32_t capacity = special->capacity ? 2 * special->capacity : NAMES_FIRST;
        struct special_name *names = mem_resize(special->names, capacity, sizeof *names);
        if (!names) return ST_NOMEM;
        special->names = names;
        special->capacity = capacity;
    }
    if (special->text_bytes + length > special->text_capacity) {
        size_t capacity = 2 * (size_t)special->text_capacity + length + TEXT_FIRST;
        char *text = mem_resize(special->text, capacity, 1);
        if (!text) return ST_NOMEM;
        special->text = text;
        special->text_capacity = (uint32_t)capacity;
    }
    memcpy(special->text + special->text_bytes, bytes, length);
    name.bytes = NULL;
    name.at = special->text_bytes;
    name.length = (uint32_t)length;
    special->text_bytes += (uint32_t)length;
    special->names[special->count++] = name;
    return ST_OK;
}

enum status special_tokens_sort(struct special_tokens *special, struct error *err)
{
    for (uint32_t i = 0; i < special->count; i++) {
        struct special_name *name = &special->names[i];
        name->bytes = special->text + name->at;
        special->any_anywhere |= name->anywhere;
        special->any_control |= !name->anywhere;
        if (name->length > special->length_max) special->length_max = name->length;
        special->firsts[(unsigned char)name->bytes[0] + 1]++;
    }
    for (int b = 0; b < 256; b++) special->firsts[b + 1] += special->firsts[b];
    if (special->count) qsort(special->names, special->count, sizeof *special->names, compare);
    for (uint32_t i = 1; i < special->count; i++)
        if (!compare(&special->names[i - 1], &special->names[i]))
            return error_set(err, ST_INVAL, "vocabulary: special tokens %u and %u are the same",
                             special->names[i - 1].id, special->names[i].id);
    return ST_OK;
}

void special_tokens_free(struct special_tokens *special)
{
    mem_free(special->names);
    mem_free(special->text);
    memset(special, 0, sizeof *special);
}

/* The first of names[low .. high) whose byte at depth is at least `byte`. All are longer than depth. */
static uint32_t lower_bound(const struct special_name *names, uint32_t low, uint32_t high, size_t depth, unsigned byte)
{
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if ((unsigned char)names[middle].bytes[depth] < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

const struct special_name *special_tokens_match(const struct special_tokens *special, const char *text, size_t length,
                                                size_t trusted, uint64_t *work)
{
    const struct special_name *names = special->names, *best = NULL;
    if (!length) return NULL;
    uint32_t low = special->firsts[(unsigned char)text[0]], high = special->firsts[(unsigned char)text[0] + 1];
    for (size_t depth = 1; low < high; depth++) {
        ++*work;
        /* names[low .. high) begin with the first depth bytes of text: the one that ends here sorts first */
        if (names[low].length == depth) {
            if (names[low].anywhere || depth <= trusted) best = &names[low];
            low++;
        }
        if (depth == length) break;
        unsigned byte = (unsigned char)text[depth];
        low = lower_bound(names, low, high, depth, byte);
        high = lower_bound(names, low, high, depth, byte + 1);
    }
    return best;
}
