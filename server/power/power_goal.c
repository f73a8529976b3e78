/* See power_goal.h. */
#include "server/power/power_goal.h"

#include <math.h>

struct power_goal power_goal_merge(const struct power_goal *options, const struct power_slot *told,
                                   const struct power_goal *hand, double floor_w)
{
    struct power_goal goal = *options;
    if (told->have & SLOT_CAP) goal.cap_w = fmin(goal.cap_w, told->cap_hard ? told->cap_w : fmax(told->cap_w, floor_w));
    if (told->have & SLOT_TARGET) goal.target_w = told->target_w;
    if (told->have & SLOT_SHED && told->shed_level > goal.shed_level) goal.shed_level = told->shed_level;
    if (!hand) return goal;
    goal.cap_w = fmin(goal.cap_w, hand->cap_w);
    if (isfinite(hand->target_w)) goal.target_w = hand->target_w;
    if (hand->shed_level > goal.shed_level) goal.shed_level = hand->shed_level;
    return goal;
}
