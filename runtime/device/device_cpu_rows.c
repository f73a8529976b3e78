/* What surrounds the layers of a step: the check of the batch before, and logits and sampling after.
 *
 * Logits are made for LOGIT_ROWS rows at a time, so that their buffer stays small whatever rows_max is; the head's
 * panels are read again for each group, which costs 2 % of a group's time and saves a buffer of rows_max vocabularies.
 * Whoever multiplies a few panels notes the highest logit of each unit (kernels/sample.h) while these are in L1; after
 * that few rows read their logits again. A group is sampled while the next one is multiplied, in the other buffer: a
 * thread that is through with its panels takes rows, and a group has one barrier.
 *
 * In fast numerics int8 activations cost the head more than any other matrix (a third of the KL divergence to exact
 * numerics on SmolLM2 Q4_1), and where it matters is known: so the few logits near the highest are computed again in
 * f32. Which these are follows from the row alone, so its bits still do. (Int8 twice, the other way, costs 20 %.)
 *
 * A bad token spoils what comes after it in its sequence, in this step and in later ones: its rows and those after it
 * are flagged, and its V becomes NaN, so that a later step cannot use the KV unnoticed. */
#include "runtime/device/device_cpu_parts.h"

#include "kernels/rmsnorm.h"

#include <math.h>
#include <string.h>

#define REFINE_MARGIN 3.0f
enum { REFINE_MAX = 32, HEAD_UNIT_PANELS = SAMPLE_UNIT / MATMUL_PANEL_ROWS, LOGITS_IN_CACHE = 4096 };

enum status device_cpu_check(const struct device_cpu *cpu, const struct batch *batch)
{
    const struct device_info *info = &cpu->device.info;
    struct batch_bounds bounds = {.tokens_max = info->tokens_max,
                                  .seqs_max = info->seqs_max,
                                  .rows_max = info->rows_max,
                                  .context_max = cpu->context_max,
                                  .vocab = cpu->vocab,
                                  .kv_blocks = info->kv_blocks};
    return batch_check(&bounds, batch, 0, NULL); /* it collects a step before the next: no token is a TOKEN_OF_ROW */
}

/* Other threads may mark a token that this one has marked itself. */
static void spread_bad(struct device_cpu *cpu)
{
    const struct batch *batch = cpu->batch;
    bool bad = false;
    for (uint32_t n = 0; n < batch->tokens_count; n++) {
        bad = (bad && n > batch->q_start[batch->seq_of_token[n]]) || __atomic_load_n(&cpu->bad[n], __ATOMIC_RELAXED);
        if (!bad) continue;
        __atomic_store_n(&cpu->bad[n], 1, __ATOMIC_RELAXED);
        uint32_t position = batch->positions[n], D = cpu->spec.head_size;
        block_id block = batch->block_table[batch->seq_of_token[n]][position / KV_TOKENS];
        float *nan = cpu->threads[0].row;
        for (uint32_t d = 0; d < D; d++) nan[d] = NAN;
        for (uint32_t h = 0; h < cpu->spec.kv_heads; h++) {
            uint8_t *head = cpu->kv + block * cpu->device.info.kv_block_bytes + h * cpu->kv_layout.head_bytes;
            kv_write(cpu->path, &cpu->kv_layout, head, position % KV_TOKENS, nan, nan);
        }
    }
}

/* The logits within REFINE_MARGIN of the highest, at most REFINE_MAX of them, again in f32. */
static void refine(struct device_cpu *cpu, struct cpu_thread *own, const struct logit_row *logits, uint32_t row_idx)
{
    const struct model_spec *s = &cpu->spec;
    uint64_t *keys = own->sampler.keys;
    bool rounded = cpu->head.act != ACT_F32;
    if (!rounded) return;
    struct logit_peak peak = sample_peak(cpu->path, logits);
    if (!peak.finite) return;
    uint32_t count = sample_gather(cpu->path, logits, peak.value - REFINE_MARGIN, INFINITY, keys);
    if (count > REFINE_MAX) {
        sample_sort(keys, own->sampler.spare, count);
        count = REFINE_MAX;
    }
    const float *x = cpu->last.x + (size_t)cpu->last_of_row[row_idx] * s->width;
    rmsnorm(cpu->path, own->row, x, cpu->final_norm, s->width, s->norm_eps);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t id = sample_key_id(keys[i]);
        matmul_unpack_row(&cpu->head, id, own->head_row);
        sample_set(cpu->path, logits, id, sample_dot(cpu->path, own->row, own->head_row, s->width));
    }
}

/* Row i of the buffer of the group that begins with row `first`. */
static struct logit_row logits_of(const struct device_cpu *cpu, uint32_t first, uint32_t i)
{
    size_t at = first / LOGIT_ROWS % LOGIT_BUFFERS * LOGIT_ROWS + i;
    return (struct logit_row){cpu->spec.vocab, cpu->logits + at * cpu->logits_stride,
                              cpu->highest + at * cpu->highest_stride};
}

/* The thread's panels of the head against a group of rows, a few at a time. */
static void multiply_group(struct device_cpu *cpu, uint32_t thread_idx, uint32_t first, uint32_t count,
                           const uint8_t *act)
{
    const struct span own = cpu->threads[thread_idx].head;
    uint32_t units = LOGITS_IN_CACHE / SAMPLE_UNIT / count;
    uint32_t panels = HEAD_UNIT_PANELS * (units ? units : 1);
    act += matmul_act_bytes(cpu->head.act, first, cpu->head.K); /* whole tiles, as LOGIT_ROWS is one */
    for (uint32_t p = own.begin; p < own.end; p += panels) {
        uint32_t p_end = own.end - p < panels ? own.end : p + panels, id = p * MATMUL_PANEL_ROWS;
        uint32_t id_end = p_end * MATMUL_PANEL_ROWS < cpu->spec.vocab ? p_end * MATMUL_PANEL_ROWS : cpu->spec.vocab;
        matmul(cpu->path, &cpu->head, p, p_end, act, count, logits_of(cpu, first, 0).logits, cpu->logits_stride);
        for (uint32_t i = 0; i < count; i++) {
            struct logit_row row = logits_of(cpu, first, i);
            sample_scan(cpu->path, row.logits + id, id_end - id, row.highest + id / SAMPLE_UNIT);
        }
    }
}

static void sample_row(struct device_cpu *cpu, struct cpu_thread *own, uint32_t row_idx, const struct logit_row *logits)
{
    const struct batch_row *row = &cpu->batch->rows[row_idx];
    struct row_result *result = &cpu->result->rows[row_idx];
    if (cpu->bad[row->token]) {
        result->flags = ROW_NOT_FINITE;
        result->id = result->rank = result->top_count = 0;
        result->logprob = 0;
    } else {
        sampler_row(&own->sampler, logits, row, result);
    }
}

static void sample_group(struct device_cpu *cpu, uint32_t thread_idx, uint32_t first, uint32_t count)
{
    struct cpu_thread *own = &cpu->threads[thread_idx];
    _Atomic uint32_t *next = &cpu->next_item[cpu->spec.layers + first / LOGIT_ROWS];
    for (;;) {
        uint32_t i = atomic_fetch_add_explicit(next, 1, memory_order_relaxed);
        if (i >= count) break;
        struct logit_row logits = logits_of(cpu, first, i);
        if (!cpu->bad[cpu->batch->rows[first + i].token]) refine(cpu, own, &logits, first + i);
        sample_row(cpu, own, first + i, &logits);
    }
}

static uint32_t group_size(uint32_t rows, uint32_t first)
{
    return rows - first < LOGIT_ROWS ? rows - first : LOGIT_ROWS;
}

/* A token that one rank has marked is bad on all. */
static void gather_bad(struct device_cpu *cpu)
{
    uint32_t N = cpu->batch->tokens_count, ranks = cpu->comm->ranks;
    uint8_t *own = cpu->ranks_bad, *all = own + N;
    for (uint32_t n = 0; n < N; n++) own[n] = __atomic_load_n(&cpu->bad[n], __ATOMIC_RELAXED);
    cpu->lost = comm_gather(cpu->comm, own, N, all, COMM_ALL, NULL) != ST_OK;
    for (uint32_t i = 0; !cpu->lost && i < ranks * N; i++)
        if (all[i]) device_cpu_mark_bad(cpu, i % N);
}

/* A row of the whole vocabulary, from what the ranks brought for `count` rows. */
static struct logit_row join_row(struct device_cpu *cpu, uint32_t count, uint32_t i)
{
    uint32_t ranks = cpu->comm->ranks, stride = cpu->vocab_stride;
    struct logit_row row = {cpu->vocab, cpu->whole + i * cpu->whole_stride,
                            cpu->whole_highest + i * cpu->whole_highest_stride};
    for (uint32_t rank = 0; rank < ranks; rank++) {
        uint32_t begin = rank * stride, V = cpu->vocab - begin < stride ? cpu->vocab - begin : stride;
        const float *part = cpu->ranks_logits + ((size_t)rank * count + i) * cpu->logits_stride;
        memcpy(row.logits + begin, part, V * sizeof *part);
    }
    sample_scan(cpu->path, row.logits, cpu->vocab, row.highest);
    return row;
}

/* Every rank multiplies its rows of the head and refines its highest logits; rank 0 gathers and chooses. */
static void run_rows_of_ranks(struct device_cpu *cpu, uint32_t thread_idx, const uint8_t *act)
{
    struct cpu_thread *own = &cpu->threads[thread_idx];
    uint32_t rows = cpu->batch->rows_count, threads = cpu->threads_count;
    for (uint32_t first = 0; first < rows; first += LOGIT_ROWS) {
        uint32_t count = group_size(rows, first);
        multiply_group(cpu, thread_idx, first, count, act);
        phase_meet(cpu, thread_idx, PHASE_HEAD);
        for (uint32_t i = thread_idx; i < count; i += threads) {
            struct logit_row logits = logits_of(cpu, first, i);
            refine(cpu, own, &logits, first + i);
        }
        phase_meet(cpu, thread_idx, PHASE_SAMPLE);
        if (thread_idx == 0 && !cpu->lost)
            cpu->lost = comm_gather(cpu->comm, logits_of(cpu, first, 0).logits,
                                    count * cpu->logits_stride * sizeof(float), cpu->ranks_logits, 0, NULL) != ST_OK;
        phase_end(cpu, thread_idx, PHASE_RANKS);
        phase_meet(cpu, thread_idx, PHASE_RANKS);
        if (cpu->lost) return;
        for (uint32_t i = thread_idx; cpu->comm->rank == 0 && i < count; i += threads) {
            struct logit_row logits = join_row(cpu, count, i);
            sample_row(cpu, own, first + i, &logits);
        }
        phase_end(cpu, thread_idx, PHASE_SAMPLE);
    }
}

void device_cpu_run_rows(struct device_cpu *cpu, uint32_t thread_idx)
{
    uint32_t rows = cpu->batch->rows_count;
    if (cpu->lost) return;
    if (cpu->comm) phase_meet(cpu, thread_idx, PHASE_RANKS); /* all have looked at `lost`: it may change again */
    const uint8_t *acts =
        device_cpu_prepare(cpu, thread_idx, &cpu->head_acts, rows, cpu->spec.width,
                           (struct act_source){cpu->last.x, cpu->last_of_row, cpu->row_tokens}, cpu->final_norm);
    const uint8_t *act = act_of(cpu, acts, &cpu->head_acts, cpu->head.act, rows);
    if (thread_idx == 0 && cpu->comm) gather_bad(cpu);
    if (thread_idx == 0) spread_bad(cpu);
    if (cpu->comm) {
        run_rows_of_ranks(cpu, thread_idx, act);
        return;
    }
    for (uint32_t first = 0; first < rows; first += LOGIT_ROWS) {
        multiply_group(cpu, thread_idx, first, group_size(rows, first), act);
        phase_end(cpu, thread_idx, PHASE_HEAD);
        if (first > 0) sample_group(cpu, thread_idx, first - LOGIT_ROWS, LOGIT_ROWS);
        phase_meet(cpu, thread_idx, PHASE_SAMPLE);
    }
    uint32_t last = rows > 0 ? (rows - 1) / LOGIT_ROWS * LOGIT_ROWS : 0;
    sample_group(cpu, thread_idx, last, rows - last);
    phase_end(cpu, thread_idx, PHASE_SAMPLE);
}
