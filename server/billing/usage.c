/* See usage.h. Sums saturate instead of wrapping: a record must never look smaller than what was computed. */
#include "server/billing/usage.h"

static void add(uint32_t *sum, uint32_t value)
{
    *sum = *sum > UINT32_MAX - value ? UINT32_MAX : *sum + value;
}

void usage_record_add(struct usage_record *record, const struct usage *usage)
{
    struct usage *sum = &record->sum;
    /* enum cause is in rising order of gravity */
    if (record->requests == 0 || usage->cause > sum->cause) sum->cause = usage->cause;
    record->requests++;
    sum->mismatch = sum->mismatch || usage->mismatch;
    add(&sum->in_total, usage->in_total);
    add(&sum->in_hit, usage->in_hit);
    add(&sum->out, usage->out);
    add(&sum->out_reasoning, usage->out_reasoning);
    add(&sum->out_trimmed, usage->out_trimmed);
    add(&sum->choices, usage->choices);
    add(&sum->recomputed, usage->recomputed);
    add(&sum->preemptions, usage->preemptions);
}

const char *usage_cause_name(enum cause cause)
{
    switch (cause) {
    case CAUSE_STOP: return "stop";
    case CAUSE_LENGTH: return "length";
    case CAUSE_QUOTA_END: return "quota_end";
    case CAUSE_ACCOUNT_STOP: return "account_stop";
    case CAUSE_CLIENT_GONE: return "client_gone";
    case CAUSE_PLATFORM_CANCEL: return "platform_cancel";
    case CAUSE_PLATFORM_ERROR: return "platform_error";
    case CAUSE_NODE_CRASH: return "node_crash";
    }
    return "unknown";
}

void usage_record_print(const struct usage_record *record, struct buf *out)
{
    const struct usage *sum = &record->sum;
    buf_append_format(out,
                      "request=%s client_request=%s tenant=%s model=\"%s\" cause=%s in_total=%u in_hit=%u out=%u "
                      "out_reasoning=%u out_trimmed=%u choices=%u recomputed=%u mismatch=%d unseen=%d",
                      record->call_id, record->request_id, record->tenant, record->model, usage_cause_name(sum->cause),
                      sum->in_total, sum->in_hit, sum->out, sum->out_reasoning, sum->out_trimmed, sum->choices,
                      sum->recomputed, sum->mismatch, record->unseen);
}
