/* Whose step it is, where several devices share the same cores.
 *
 * Two thread teams that run at once on the cores of one fight for them: each barrier waits for a thread that the other
 * team has pushed aside. So a device's owner takes the turn before its steps and hands it on after a slice of them:
 *
 *   turn_take -> step -> turn_keep -> step -> turn_keep (slice used, another waits: handed on) -> turn_take ...
 *                             \-> no work left: turn_give
 *
 * A device that runs ahead has a step under way when another ends: its owner takes turn_keep in two parts, turn_charge
 * after each step, and turn_pass when nothing more runs.
 *
 * Shares are of time, not of steps: deficit round robin (Shreedhar and Varghese 1995, ACM SIGCOMM). Each round gives a
 * member TURN_SLICE_NS of credit, a step costs what it lasted, and who has overdrawn passes until rounds have paid for
 * it. So a model in long prefills and one in short decode steps get half of the cores each.
 *
 * T1. At most one member holds the turn; it is handed over directly, so nobody overtakes who waits.
 * T2. A member that is alone pays one compare-and-swap when it begins and one when it ends: no lock, no system call.
 * T3. Who waits sleeps in a futex until it holds the turn. Nothing is allocated after turn_create.
 * T4. While others wait a member holds the turn for at most its credit and one step more (two where steps run ahead),
 *     and for the time between two of its steps: whoever is to sleep gives it back first.
 *
 * Rejected: one thread team for all devices (their sizes differ, and a step would have to know of the others); letting
 * the kernel share (measured in README.md); alternating step by step (the longer steps take the machine). */
#ifndef RUNTIME_DEVICE_TURN_H
#define RUNTIME_DEVICE_TURN_H

#include "runtime/base/status.h"

#include <stdbool.h>
#include <stdint.h>

enum { TURN_MEMBERS_MAX = 32 };
#define TURN_SLICE_NS UINT64_C(10000000) /* 10 ms: some decode steps of a small model, a part of the ITL target */

struct turn;

NODISCARD enum status turn_create(struct turn **turn); /* ST_NOMEM */
void turn_destroy(struct turn *turn);                  /* after the last member has left; NULL is fine */

/* A place among the members. ST_LIMIT: there are TURN_MEMBERS_MAX. join and leave: any thread, several at once; a
 * member that leaves neither holds the turn nor waits for it. */
NODISCARD enum status turn_join(struct turn *turn, uint32_t *member);
void turn_leave(struct turn *turn, uint32_t member);

/* Waits for the turn. The member's thread, which must not hold it. */
void turn_take(struct turn *turn, uint32_t member);
/* After a step that lasted used_ns, by the holder: true: it still holds the turn; false: it was handed on. */
bool turn_keep(struct turn *turn, uint32_t member, uint64_t used_ns);
/* The first part of turn_keep: true: its slice is used up and others wait; it begins no step more before turn_pass. */
bool turn_charge(struct turn *turn, uint32_t member, uint64_t used_ns);
/* The second: true: it is the next one itself. Nothing of it runs. */
bool turn_pass(struct turn *turn, uint32_t member);
/* The holder has nothing to do. */
void turn_give(struct turn *turn, uint32_t member);

#endif
