/* The end of a process that found its own mistake; see check.h. */
#include "runtime/base/check.h"

#include <stdio.h>
#include <stdlib.h>

_Noreturn void check_failed(const char *file, int line, const char *expression)
{
    fprintf(stderr, "millrace: check failed at %s:%d: %s\n", file, line, expression);
    abort();
}

_Noreturn void check_failed_values(const char *file, int line, const char *expression, long long a, long long b)
{
    fprintf(stderr, "millrace: check failed at %s:%d: %s (%lld, %lld)\n", file, line, expression, a, b);
    abort();
}
