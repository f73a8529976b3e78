/* See pool_plan.h. */
#include "server/pool/pool_plan.h"

static int64_t last_ms(const struct pool_offer *offer)
{
    return offer->deadline_ms - offer->span_ms - POOL_TAKE_BACK_MS;
}

bool pool_may_offer(const struct pool_offer *offer)
{
    if (!offer->waits_green || offer->now_ms >= last_ms(offer) - POOL_TAKE_BACK_MS) return false;
    return !offer->expected_ms || offer->expected_ms - offer->now_ms >= POOL_WAIT_MS_MIN;
}

bool pool_takes_back(const struct pool_offer *offer, bool let_go, bool taken)
{
    if (offer->now_ms >= last_ms(offer)) return true;
    return let_go && !taken;
}

/* With nothing known of jobs yet one is pulled, to learn from. */
uint32_t pool_pulls(const struct pool_room *room)
{
    if (!(room->surplus_s > 0) || room->queued > 0 || room->running >= room->running_max) return 0;
    uint32_t most = room->running_max - room->running;
    if (!(room->job_s > 0)) return room->running == 0;
    double by_green = room->surplus_s / room->job_s;
    if (by_green < 1) return 0;
    if (by_green < most) most = (uint32_t)by_green;
    if (room->job_tokens > 0 && room->kv_tokens / room->job_tokens < most) most = room->kv_tokens / room->job_tokens;
    return most;
}
