/* What the node is to keep, from everybody who may say so: options, sources of signals, an operator by hand.
 *
 *   cap     the lowest of all; a source's soft one not below the floor, which interactive requests may always have
 *   shed    the highest of all
 *   target  of the first that has one: operator, sources, options
 *
 * So nobody's word can raise what another holds down, but for a target, which is a plan and not a limit. Pure. */
#ifndef SERVER_POWER_POWER_GOAL_H
#define SERVER_POWER_POWER_GOAL_H

#include "server/power/power_loop.h"
#include "server/power/slot.h"

/* hand: in force now; NULL: none. told: merged over the sources, at this moment. */
struct power_goal power_goal_merge(const struct power_goal *options, const struct power_slot *told,
                                   const struct power_goal *hand, double floor_w);

#endif
