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

static bool has_name(const struct token_table *table, uint32_t id)
{
    uint8_t kind = table->kinds[id];
    return (kind == VOCAB_CONTROL || kind == VOCAB_UNKNOWN || kind == VOCAB_USER_DEFINED) &&
           table->starts[id + 1] > table->starts[id];
}

enum status special_tokens_init(struct special_tokens *special, const struct token_table *table, struct error *err)
{
    uint32_t count = 0;
    memset(special, 0, sizeof *special);
    for (uint32_t id = 0; id < table->count; id++) count += has_name(table, id);
    special->names = mem_alloc(count, sizeof *special->names);
    if (!special->names) return ST_NOMEM;
    for (uint32_t id = 0; id < table->count; id++) {
        if (!has_name(table, id)) continue;
        struct special_name *name = &special->names[special->count++];
        name->bytes = token_table_get(table, id, &name->length);
        name->id = id;
        name->anywhere = table->kinds[id] == VOCAB_USER_DEFINED;
        special->any_anywhere |= name->anywhere;
        special->firsts[(unsigned char)name->bytes[0] + 1]++;
    }
    for (int b = 0; b < 256; b++) special->firsts[b + 1] += special->firsts[b];
    if (count) qsort(special->names, count, sizeof *special->names, compare);
    for (uint32_t i = 1; i < count; i++) {
        if (compare(&special->names[i - 1], &special->names[i])) continue;
        enum status st = error_set(err, ST_INVAL, "vocabulary: special tokens %u and %u are the same",
                                   special->names[i - 1].id, special->names[i].id);
        special_tokens_free(special);
        return st;
    }
    return ST_OK;
}

void special_tokens_free(struct special_tokens *special)
{
    mem_free(special->names);
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
