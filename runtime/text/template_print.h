/* Values as text: Python's str and repr, and json.dumps(ensure_ascii=False) as transformers calls it.
 *
 * Characters of strings keep their origin, also when escaped; quotes, brackets and commas that printing adds are
 * content. One render, one thread. */
#ifndef RUNTIME_TEXT_TEMPLATE_PRINT_H
#define RUNTIME_TEXT_TEMPLATE_PRINT_H

#include "runtime/text/template_value.h"

/* str(value). What is undefined gives no text. ST_LIMIT: nested too deep. */
NODISCARD enum status tmpl_str(struct tmpl_heap *heap, const struct tmpl_value *value, struct tmpl_text *text);

/* Appends repr(value). */
NODISCARD enum status tmpl_repr(struct tmpl_heap *heap, const struct tmpl_value *value, struct tmpl_text *out);

/* repr(double) into out, of at least 32 bytes; returns its length. */
size_t tmpl_float_repr(double number, char *out);

struct tmpl_json_style {
    bool multiline;          /* an indent was given */
    struct tmpl_text indent; /* of one level */
    struct tmpl_text item_separator, key_separator;
    bool sort_keys;
    bool ascii; /* what is not printable ASCII as \uXXXX */
};

/* Appends the JSON text of value. ST_INVAL: it has none (undefined, a generator, a method ...). */
NODISCARD enum status tmpl_json(struct tmpl_heap *heap, const struct tmpl_value *value,
                                const struct tmpl_json_style *style, struct tmpl_text *out);

#endif
