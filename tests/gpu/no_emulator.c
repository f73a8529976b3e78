/* Counters and faults of the emulator, on a GPU that has neither: a test that asks for one is skipped there. */
#include "tests/unit/unit.h"

#include "tests/emulator/counters.h"
#include "tests/emulator/faults.h"

void counters_start(void)
{
    skip();
}
void counters_stop(void) {}
void counters_watch(const char *name, const void *p, size_t bytes)
{
    (void)name, (void)p, (void)bytes;
}
bool counters_kernel(const char *prefix, struct kernel_counts *counts)
{
    (void)prefix, (void)counts;
    return false;
}
bool counters_range(const char *name, struct range_counts *counts)
{
    (void)name, (void)counts;
    return false;
}
void counters_print(void) {}

void faults_clear(void) {}
uint64_t faults_struck(void)
{
    return 0;
}
void fault_allocation(uint64_t k, int keep)
{
    (void)k, (void)keep;
    skip();
}
void fault_sticky(int error, uint64_t k)
{
    (void)error, (void)k;
    skip();
}
void fault_launch(int error, uint64_t k)
{
    (void)error, (void)k;
    skip();
}
void fault_hang_kernel(uint64_t k)
{
    (void)k;
    skip();
}
void fault_hang_collective(uint64_t k)
{
    (void)k;
    skip();
}
void fault_nccl_call(int result, uint64_t k)
{
    (void)result, (void)k;
    skip();
}
void fault_nccl_async(int result, uint64_t k)
{
    (void)result, (void)k;
    skip();
}
void fault_rank_absent(int rank)
{
    (void)rank;
    skip();
}
void fault_no_device(int error)
{
    (void)error;
    skip();
}
