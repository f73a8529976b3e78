/* Assertions for our own mistakes, never for input. CHECK is always on; DCHECK only in debug and sanitizer builds, for
 * loops that run once a token. Both print file, line and expression (CHECK_EQ the two values), then abort. Any thread.
 */
#ifndef RUNTIME_BASE_CHECK_H
#define RUNTIME_BASE_CHECK_H

_Noreturn void check_failed(const char *file, int line, const char *expression);
_Noreturn void check_failed_values(const char *file, int line, const char *expression, long long a, long long b);

#define CHECK(x)                                                                                                       \
    do {                                                                                                               \
        if (!(x)) check_failed(__FILE__, __LINE__, #x);                                                                \
    } while (0)

#define CHECK_EQ(a, b)                                                                                                 \
    do {                                                                                                               \
        long long check_a_ = (long long)(a), check_b_ = (long long)(b);                                                \
        if (check_a_ != check_b_) check_failed_values(__FILE__, __LINE__, #a " == " #b, check_a_, check_b_);           \
    } while (0)

#ifdef MILLRACE_DEBUG
#define DCHECK(x) CHECK(x)
#else
#define DCHECK(x) ((void)sizeof(!(x)))
#endif

#endif
