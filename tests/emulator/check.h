/* Checks of the emulator's own programs: they print what differs and count; main returns checks_failed(). */
#ifndef TESTS_EMULATOR_CHECK_H
#define TESTS_EMULATOR_CHECK_H

#include <stdio.h>
#include <stdlib.h>

static int checks_bad, checks_good;

#define CHECK_EQUAL(a, b)                                                                                              \
    do {                                                                                                               \
        const long long check_a = (long long)(a), check_b = (long long)(b);                                            \
        if (check_a == check_b) {                                                                                      \
            __atomic_fetch_add(&checks_good, 1, __ATOMIC_RELAXED);                                                     \
        } else {                                                                                                       \
            __atomic_fetch_add(&checks_bad, 1, __ATOMIC_RELAXED);                                                      \
            printf("FAIL %s:%d %s = %lld, %s = %lld\n", __FILE__, __LINE__, #a, check_a, #b, check_b);                 \
        }                                                                                                              \
    } while (0)
#define CHECK_TRUE(a) CHECK_EQUAL(!!(a), 1)
/* For what the rest of a program needs. */
#define NEED(call)                                                                                                     \
    do {                                                                                                               \
        const int need_result = (int)(call);                                                                           \
        if (need_result) {                                                                                             \
            printf("FAIL %s:%d %s = %d\n", __FILE__, __LINE__, #call, need_result);                                    \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

static inline int checks_failed(void)
{
    printf("%d passed, %d failed\n", checks_good, checks_bad);
    return checks_bad != 0;
}
#endif
