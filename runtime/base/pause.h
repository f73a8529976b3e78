/* What a thread that spins does between two looks at memory: it lets the core's other thread run and saves power. Any
 * thread. */
#ifndef RUNTIME_BASE_PAUSE_H
#define RUNTIME_BASE_PAUSE_H

#include <stdatomic.h>

static inline void pause_cpu(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#else
    atomic_signal_fence(memory_order_seq_cst);
#endif
}

#endif
