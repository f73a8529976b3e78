/* What a device does that has some of the layers (model_stage.h): stage 0 has embedding and head, the others take the
 * residual stream from the stage before.
 *
 *   stage 0        embed | layers | pass ........................................ | rows with logits
 *   stage 1                  pass | layers | pass .............................. |
 *   last stage                        pass | layers | pass (tokens with logits) to stage 0
 *
 * Every stage takes part in every pass, in the order of the ring. Behind the rows travel the marks of tokens that are
 * not finite, one byte each: a stage adds its own, and stage 0 has all of them when it makes logits and spoils their V.
 * One step is under way at a time, so stages wait for each other: they add memory, not speed. */
#include "runtime/device/device_cpu_parts.h"

#include <string.h>

/* The pass from stage `from` to the next one. rows: what this rank sends or receives, or NULL. */
static enum status pass(struct device_cpu *cpu, uint32_t from, const struct live_rows *rows)
{
    uint32_t last = cpu->stages->ranks - 1;
    const struct live_rows *sent = from == last ? &cpu->last : &cpu->all;
    size_t row_bytes = (size_t)sent->count * cpu->spec.width * sizeof(float);
    return comm_pass(cpu->stages, rows ? rows->x : NULL, row_bytes + cpu->batch->tokens_count, from,
                     from == last ? 0 : from + 1, NULL);
}

static uint8_t *marks_of(const struct device_cpu *cpu, const struct live_rows *rows)
{
    return (uint8_t *)(rows->x + (size_t)rows->count * cpu->spec.width);
}

void device_cpu_take_rows(struct device_cpu *cpu)
{
    uint32_t stage = cpu->stages->rank;
    for (uint32_t from = 0; from < stage && !cpu->lost; from++)
        cpu->lost = pass(cpu, from, from + 1 == stage ? &cpu->all : NULL) != ST_OK;
    if (!cpu->lost) memcpy(cpu->bad, marks_of(cpu, &cpu->all), cpu->batch->tokens_count);
}

static void pass_ring(struct device_cpu *cpu)
{
    uint32_t stage = cpu->stages->rank, count = cpu->stages->ranks;
    const struct live_rows *own = stage + 1 == count ? &cpu->last : &cpu->all;
    memcpy(marks_of(cpu, own), cpu->bad, cpu->batch->tokens_count);
    for (uint32_t from = stage; from < count && !cpu->lost; from++) {
        const struct live_rows *rows = from == stage ? own : stage == 0 && from + 1 == count ? &cpu->last : NULL;
        cpu->lost = pass(cpu, from, rows) != ST_OK;
    }
    if (stage == 0 && !cpu->lost) memcpy(cpu->bad, marks_of(cpu, &cpu->last), cpu->batch->tokens_count);
}

void device_cpu_pass_rows(struct device_cpu *cpu, uint32_t thread_idx)
{
    phase_meet(cpu, thread_idx, PHASE_RANKS); /* all have looked at `lost`: it may change again */
    if (thread_idx == 0) pass_ring(cpu);
    phase_end(cpu, thread_idx, PHASE_RANKS);
    phase_meet(cpu, thread_idx, PHASE_RANKS);
}
