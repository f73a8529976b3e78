/* What the fiber engine gives the fake libraries. */
#ifndef TESTS_EMULATOR_ENGINE_H
#define TESTS_EMULATOR_ENGINE_H
#include "tests/emulator/cusim.h"
namespace cs
{
void run_grid(const void *fn, const KernelDesc *d, void *const *args, dim3 grid, dim3 block, size_t smem, bool coop);
const KernelDesc *find_kernel(const void *fn);
const char *kernel_name(const void *fn);
// sanitizer glue: no-ops unless the matching runtime is linked in
void acc_read(const void *p, size_t n);
void acc_write(void *p, size_t n);
void poison(const void *p, size_t n);
void unpoison(const void *p, size_t n);
void mark_uninit(void *p, size_t n);
void hb_release(void *p);
void hb_acquire(void *p);
void *tsan_new();
void *tsan_cur();
void tsan_to(void *f);
void tsan_del(void *f);
bool have_tsan();
void run_alone(void (*fn)(void *), void *arg);
} // namespace cs
#endif
