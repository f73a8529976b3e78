/* What the engine says to the sanitizers. Their entry points are weak symbols: a program that links none of them pays a
 * test of an address. The engine itself is not instrumented (but for MSan), so each access and each order of the
 * simulated program that it makes on a thread's behalf is told here. */
#ifndef TESTS_EMULATOR_SANITIZERS_H
#define TESTS_EMULATOR_SANITIZERS_H

#include <stddef.h>
#include <string.h>

extern "C" {
#define WEAK __attribute__((weak))
void __asan_poison_memory_region(void const volatile *, size_t) WEAK;
void __asan_unpoison_memory_region(void const volatile *, size_t) WEAK;
void __asan_loadN(const void *, size_t) WEAK;
void __asan_storeN(void *, size_t) WEAK;
void __sanitizer_start_switch_fiber(void **, const void *, size_t) WEAK;
void __sanitizer_finish_switch_fiber(void *, const void **, size_t *) WEAK;
void *__tsan_get_current_fiber(void) WEAK;
void *__tsan_create_fiber(unsigned) WEAK;
void __tsan_destroy_fiber(void *) WEAK;
void __tsan_switch_to_fiber(void *, unsigned) WEAK;
void __tsan_acquire(void *) WEAK;
void __tsan_release(void *) WEAK;
void __tsan_read_range(void *, unsigned long) WEAK;
void __tsan_write_range(void *, unsigned long) WEAK;
void __msan_poison(const volatile void *, size_t) WEAK;
void __msan_unpoison(const volatile void *, size_t) WEAK;
}

namespace cs
{
inline bool have_asan()
{
    return __asan_loadN != nullptr;
}
inline bool have_tsan()
{
    return __tsan_create_fiber != nullptr;
}
inline bool have_msan()
{
    return __msan_poison != nullptr;
}
/* An access of the simulated program: bounds (ASan) and races (TSan) are checked as if it were instrumented. */
inline void access_read(const void *p, size_t n)
{
    if (__asan_loadN) __asan_loadN(p, n);
    if (__tsan_read_range) __tsan_read_range((void *)p, n);
}
inline void access_write(void *p, size_t n)
{
    if (__asan_storeN) __asan_storeN(p, n);
    if (__tsan_write_range) __tsan_write_range(p, n);
}
inline void poison(const void *p, size_t n)
{
    if (__asan_poison_memory_region) __asan_poison_memory_region(p, n);
}
inline void unpoison(const void *p, size_t n)
{
    if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(p, n);
}
inline void mark_uninitialised(void *p, size_t n)
{
    if (__msan_poison) __msan_poison(p, n);
}
/* Happens-before: what a thread did before order_release(p) is visible to who does order_acquire(p) later. */
inline void order_release(void *p)
{
    if (__tsan_release) __tsan_release(p);
}
inline void order_acquire(void *p)
{
    if (__tsan_acquire) __tsan_acquire(p);
}
inline void *tsan_new()
{
    return __tsan_create_fiber ? __tsan_create_fiber(0) : nullptr;
}
inline void *tsan_current()
{
    return __tsan_get_current_fiber ? __tsan_get_current_fiber() : nullptr;
}
inline void tsan_enter(void *context) /* without an order between the two contexts */
{
    if (context && __tsan_switch_to_fiber) __tsan_switch_to_fiber(context, 1);
}
inline void tsan_delete(void *context)
{
    if (context && __tsan_destroy_fiber) __tsan_destroy_fiber(context);
}
/* Not libc's memset: the sanitizers intercept that one and would record an access of the simulated program. */
inline void fill(void *p, int c, size_t n)
{
#if defined(__has_feature)
#if __has_feature(memory_sanitizer)
    memset(p, c, n);
    return;
#endif
#endif
    asm volatile("rep stosb" : "+D"(p), "+c"(n) : "a"(c) : "memory");
}
} // namespace cs
#endif
