/* Faults that a test plants in the fake CUDA libraries. k counts from 1, from the moment of planting; each call
 * replaces the fault of its kind; faults_clear takes all back and lets everything go that hangs. Any thread.
 *
 *   fault_allocation(1);  cudaMalloc(...) == cudaErrorMemoryAllocation          the next allocation fails, one time
 *   fault_sticky(700, 3); the third kernel from now on breaks its device: every later call there returns 700 */
#ifndef TESTS_EMULATOR_FAULTS_H
#define TESTS_EMULATOR_FAULTS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

void faults_clear(void);
/* How many planted faults have struck since faults_clear. */
uint64_t faults_struck(void);

/* The k-th allocation (device or pinned memory) fails; with keep, all after it as well. */
void fault_allocation(uint64_t k, int keep);
/* The k-th kernel that runs leaves a sticky error (a cudaError_t: 700 illegal address, 214 ECC, 719 ...) on its device.
 */
void fault_sticky(int error, uint64_t k);
/* The k-th kernel launch is refused with this error, one time; the device lives on. */
void fault_launch(int error, uint64_t k);
/* The k-th kernel that runs never ends (until faults_clear, or the device's sticky error): a stream that hangs. */
void fault_hang_kernel(uint64_t k);
/* The k-th collective to be posted never completes, until its communicator is aborted. */
void fault_hang_collective(uint64_t k);
/* The k-th collective call of any rank returns this ncclResult_t (1 unhandled CUDA error, 2 system, 6 remote). */
void fault_nccl_call(int result, uint64_t k);
/* From the k-th collective on, ncclCommGetAsyncError of that communicator says result, and it never completes. */
void fault_nccl_async(int result, uint64_t k);
/* This rank's collectives are never posted from now on (a lost process): its peers wait. -1 takes it back. */
void fault_rank_absent(int rank);
/* cudaGetDeviceCount says this error (100 no device, 35 driver too old, 802 system not ready); 0 takes it back. */
void fault_no_device(int error);

#ifdef __cplusplus
}
#endif
#endif
