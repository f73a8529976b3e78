/* The tables of filters, tests, methods and global functions, and how they are called.
 *
 * A builtin lists its parameters' names; its caller puts positional and keyword arguments into slots of that order, so
 * no builtin parses arguments itself. Those with `parameters` NULL take any arguments and read the call. The tables are
 * the whole of what a template can reach: no attribute of the host exists that is not in them. */
#ifndef RUNTIME_TEXT_TEMPLATE_BUILTIN_H
#define RUNTIME_TEXT_TEMPLATE_BUILTIN_H

#include "runtime/text/template_run.h"

enum { TMPL_SLOTS = 5 };

struct tmpl_arguments {
    const struct tmpl_value *values;
    const char *const *names; /* NULL, or NULL entries for positional arguments */
    uint32_t count;
    const struct tmpl_value *keys; /* NULL, or the names as values: those of **arguments keep their origin */
};

struct tmpl_call {
    struct tmpl_run *run;
    struct tmpl_heap *heap;             /* of run */
    const struct tmpl_value *self;      /* the filtered or tested value, the object of a method; NULL for functions */
    struct tmpl_value args[TMPL_SLOTS]; /* TMPL_ABSENT where not given */
    const struct tmpl_arguments *all;
    struct tmpl_value *result;
};

typedef enum status (*tmpl_builtin_fn)(struct tmpl_call *call);

struct tmpl_builtin {
    const char *name;
    tmpl_builtin_fn run;
    const char *parameters; /* "old new count", "" for none; NULL: the function reads call->all */
    uint32_t required;      /* how many of them must be given */
};

/* NULL: there is none of that name. */
const struct tmpl_builtin *tmpl_find_filter(const char *name, size_t length);
const struct tmpl_builtin *tmpl_find_test(const char *name, size_t length);
const struct tmpl_builtin *tmpl_find_method(const struct tmpl_value *object, struct tmpl_text name);
const struct tmpl_builtin *tmpl_find_global(const char *name);

/* Binds the arguments and calls. ST_INVAL: too many, too few, or not known by that name. */
NODISCARD enum status tmpl_call_builtin(struct tmpl_run *run, const struct tmpl_builtin *builtin,
                                        const struct tmpl_value *self, const struct tmpl_arguments *arguments,
                                        struct tmpl_value *result);

/* Reads one table. */
const struct tmpl_builtin *tmpl_find_in(const struct tmpl_builtin *table, const char *name, size_t length);

/* The parts of the filter table, which stand in two files. */
extern const struct tmpl_builtin tmpl_text_filters[];
extern const struct tmpl_builtin tmpl_list_filters[];

static inline bool tmpl_given(const struct tmpl_value *argument)
{
    return argument->kind != TMPL_ABSENT;
}
/* An integer argument, or the fallback when it is absent. ST_INVAL: another type. */
NODISCARD enum status tmpl_int_argument(struct tmpl_call *call, uint32_t slot, int64_t fallback, int64_t *value);
/* A string argument. ST_INVAL: another type or absent. */
NODISCARD enum status tmpl_text_argument(struct tmpl_call *call, uint32_t slot, struct tmpl_text *text);
/* Its truth, or the fallback when it is absent. */
bool tmpl_flag_argument(const struct tmpl_call *call, uint32_t slot, bool fallback);

/* String functions that methods and filters share. */
enum tmpl_case { TMPL_CASE_UPPER, TMPL_CASE_LOWER, TMPL_CASE_TITLE_METHOD, TMPL_CASE_TITLE_FILTER, TMPL_CASE_CAPITAL };
NODISCARD enum status tmpl_change_case(struct tmpl_heap *heap, struct tmpl_text text, enum tmpl_case to,
                                       struct tmpl_text *out);
NODISCARD enum status tmpl_replace(struct tmpl_heap *heap, struct tmpl_text text, struct tmpl_text old,
                                   struct tmpl_text new_text, int64_t count, struct tmpl_text *out);
/* The text with the five characters of HTML as entities; each keeps its origin. */
NODISCARD enum status tmpl_escape(struct tmpl_heap *heap, struct tmpl_text text, struct tmpl_text *out);
/* format % values, in template_format.c. ST_INVAL: too few or too many values, a wrong type, or not supported. */
NODISCARD enum status tmpl_format(struct tmpl_heap *heap, const struct tmpl_value *format,
                                  const struct tmpl_value *values, struct tmpl_value *result);
/* separator.join(items); each item as str() if any_type, else ST_INVAL for what is no string. */
NODISCARD enum status tmpl_join(struct tmpl_heap *heap, struct tmpl_text separator, const struct tmpl_list *items,
                                bool any_type, struct tmpl_text *out);

#endif
