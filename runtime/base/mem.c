/* Counted, hookable allocation over the C library's heap and mmap; see mem.h. */
#include "runtime/base/mem.h"

#include "runtime/base/check.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static mem_hook_fn hook_fn;
static void *hook_state;
static _Atomic uint64_t allocations;
static _Thread_local uint64_t allocations_of_thread;

static bool may_allocate(size_t size_bytes)
{
    atomic_fetch_add_explicit(&allocations, 1, memory_order_relaxed);
    allocations_of_thread++;
    return !hook_fn || hook_fn(hook_state, size_bytes);
}

void *mem_alloc(size_t count, size_t size_bytes)
{
    size_t bytes;
    if (!checked_mul(count, size_bytes, &bytes) || bytes > SIZE_MAX - 64 || !may_allocate(bytes)) return NULL;
    if (bytes < 64) return calloc(1, bytes ? bytes : 1);
    void *memory = aligned_alloc(64, (bytes + 63) & ~(size_t)63);
    if (memory) memset(memory, 0, bytes);
    return memory;
}

void *mem_resize(void *memory, size_t count, size_t size_bytes)
{
    size_t bytes;
    if (!checked_mul(count, size_bytes, &bytes) || !may_allocate(bytes)) return NULL;
    return realloc(memory, bytes ? bytes : 1);
}

char *mem_strdup(const char *text, size_t length)
{
    size_t bytes;
    if (!checked_add(length, 1, &bytes)) return NULL;
    char *copy = mem_alloc(bytes, 1);
    if (copy && length) memcpy(copy, text, length);
    return copy;
}

void mem_free(void *memory)
{
    free(memory);
}

void *mem_map(size_t size_bytes)
{
    if (!size_bytes || !may_allocate(size_bytes)) return NULL;
    void *memory = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return NULL;
    madvise(memory, size_bytes, MADV_HUGEPAGE); /* only advice: may fail where the kernel has none */
    return memory;
}

void mem_unmap(void *memory, size_t size_bytes)
{
    if (memory) munmap(memory, size_bytes);
}

void mem_map_empty(void *memory, size_t size_bytes)
{
    if (memory) CHECK(madvise(memory, size_bytes, MADV_DONTNEED) == 0);
}

void mem_hook_set(mem_hook_fn hook, void *state)
{
    hook_fn = hook;
    hook_state = state;
}

uint64_t mem_allocations(void)
{
    return atomic_load_explicit(&allocations, memory_order_relaxed);
}
uint64_t mem_allocations_of_thread(void)
{
    return allocations_of_thread;
}
