/* What the engine gives the fake libraries: grids to run, and threads of the simulated program to run operations in. */
#ifndef TESTS_EMULATOR_ENGINE_H
#define TESTS_EMULATOR_ENGINE_H

#include "tests/emulator/cusim.h"
#include "tests/emulator/sanitizers.h"

namespace cs
{
struct Grid;
/* A kernel's launch; args stay valid until the grid has finished. */
struct Launch {
    const void *kernel;
    const KernelDesc *desc;
    void *const *args;
    dim3 grid, block;
    size_t shared_bytes;
    bool cooperative;
};
/* What else can happen while a grid only spins. Called by the engine outside any fiber. */
struct Others {
    virtual ~Others() {}
    /* Runs or waits for something else; a grid that it returns runs beside the one that spins, until both are done. */
    virtual Grid *stalled(const Launch &spinning) = 0;
    /* A grid that stalled() had returned is done, or the one of grid_run; that one may be told again. */
    virtual void finished(Grid *grid) = 0;
};
Grid *grid_create(const Launch &launch);
void grid_destroy(Grid *grid);
/* Runs grid to its end, and whatever others add meanwhile. grid_begin and grid_end, within run_alone, order it. */
void grid_run(Grid *grid, Others *others);
void grid_begin(Grid *grid);
void grid_end(Grid *grid);

const KernelDesc *find_kernel(const void *kernel);
/* The symbol of a kernel without its parameters; for static functions too. Valid for ever. */
const char *kernel_name(const void *kernel);
const char *file_base(const char *path);
size_t kernel_static_shared(const void *kernel); /* largest seen so far */

/* Under TSan a stream's operation is a thread of its own, on a fresh stack, ordered by explicit acquire and release
 * only. */
void run_alone(void (*fn)(void *), void *arg);
int env_int(const char *name, int otherwise);
[[noreturn]] void die(const char *format, ...) __attribute__((format(printf, 1, 2)));
} // namespace cs
#endif
