/* Bottom-up merge sort: stable, no recursion, O(n log n) comparisons. See template_sort.h. */
#include "runtime/text/template_sort.h"

#include <string.h>

struct merge {
    const struct tmpl_value *keys;
    bool descending;
    const uint32_t *source;
    uint32_t *target;
};

/* Merges source[low, middle) and source[middle, high) into target. */
static enum status merge_runs(struct tmpl_heap *heap, const struct merge *m, uint32_t low, uint32_t middle,
                              uint32_t high)
{
    uint32_t left = low, right = middle;
    for (uint32_t i = low; i < high; i++) {
        bool take_right = left == middle;
        if (left < middle && right < high) {
            int order;
            TRY(tmpl_order(heap, &m->keys[m->source[right]], &m->keys[m->source[left]], &order));
            take_right = m->descending ? order == 1 : order == -1;
        }
        m->target[i] = take_right ? m->source[right++] : m->source[left++];
    }
    return ST_OK;
}

enum status tmpl_sort(struct tmpl_heap *heap, const struct tmpl_value *keys, uint32_t count, bool descending,
                      uint32_t **order)
{
    uint32_t *source, *target;
    TRY(tmpl_charge(heap, count));
    TRY(tmpl_alloc(heap, count, sizeof *source, &source));
    TRY(tmpl_alloc(heap, count, sizeof *target, &target));
    for (uint32_t i = 0; i < count; i++) source[i] = i;
    for (uint64_t width = 1; width < count; width *= 2) {
        struct merge m = {keys, descending, source, target};
        for (uint64_t low = 0; low < count; low += 2 * width) {
            uint64_t middle = low + width < count ? low + width : count;
            uint64_t high = low + 2 * width < count ? low + 2 * width : count;
            TRY(merge_runs(heap, &m, (uint32_t)low, (uint32_t)middle, (uint32_t)high));
        }
        uint32_t *swap = source;
        source = target;
        target = swap;
    }
    *order = source;
    return ST_OK;
}

enum status tmpl_sort_keys(struct tmpl_heap *heap, const struct tmpl_dict *dict, uint32_t **order)
{
    struct tmpl_value *keys;
    TRY(tmpl_alloc(heap, dict->count, sizeof *keys, &keys));
    for (uint32_t i = 0; i < dict->count; i++) keys[i] = dict->entries[i].key;
    return tmpl_sort(heap, keys, dict->count, false, order);
}
