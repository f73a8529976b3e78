/* Stable sorting of template values: the keys are compared, positions are moved. One render, one thread. */
#ifndef RUNTIME_TEXT_TEMPLATE_SORT_H
#define RUNTIME_TEXT_TEMPLATE_SORT_H

#include "runtime/text/template_value.h"

/* Positions of keys[count] in ascending order (descending: equal keys keep their order, as Python's reverse=True) into
 * *order. Costs a step a comparison. ST_INVAL: two keys have no order. */
NODISCARD enum status tmpl_sort(struct tmpl_heap *heap, const struct tmpl_value *keys, uint32_t count, bool descending,
                                uint32_t **order);

/* The same for the keys of a dictionary. */
NODISCARD enum status tmpl_sort_keys(struct tmpl_heap *heap, const struct tmpl_dict *dict, uint32_t **order);

#endif
