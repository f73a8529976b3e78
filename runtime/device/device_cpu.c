/* The CPU device: its life, and a step from outside. See README.md for the parts and device_cpu_parts.h for D1-D3. */
#include "runtime/device/device_cpu_parts.h"

#include "runtime/base/mem.h"

#include <stdio.h>
#include <string.h>

static size_t aligned(size_t bytes)
{
    return (bytes + 63) & ~(size_t)63;
}

static struct kv_layout layout_of(const struct model_spec *spec, enum numerics numerics, bool kv_int8)
{
    return kv_layout_of(numerics == NUMERICS_EXACT ? KV_F32 : kv_int8 ? KV_I8 : KV_BF16, spec->head_size);
}

size_t device_cpu_kv_block_bytes(const struct model_spec *spec, enum numerics numerics, bool kv_int8)
{
    return (size_t)spec->layers * spec->kv_heads * layout_of(spec, numerics, kv_int8).head_bytes;
}

static void step_thread(void *state, uint32_t thread_idx)
{
    struct device_cpu *cpu = state;
    cpu->threads[thread_idx].lap_ticks = tick_count();
    device_cpu_run_layers(state, thread_idx);
    if (cpu->stages) device_cpu_pass_rows(state, thread_idx);
    if (cpu->has_head) device_cpu_run_rows(state, thread_idx);
}

/* The tokens that the last layer needs, and where each row finds its own. */
static void plan_rows(struct device_cpu *cpu, const struct batch *batch)
{
    uint32_t count = 0;
    for (uint32_t r = 0; r < batch->rows_count; r++) { /* their tokens rise */
        uint32_t token = batch->rows[r].token;
        if (count == 0 || cpu->last_tokens[count - 1] != token) cpu->last_tokens[count++] = token;
        cpu->last_of_row[r] = count - 1;
        cpu->row_tokens[r] = token;
    }
    cpu->all = (struct live_rows){batch->tokens_count, cpu->x, NULL};
    cpu->last = count < batch->tokens_count ? (struct live_rows){count, cpu->last_x, cpu->last_tokens} : cpu->all;
}

static enum status step(struct device *device, const struct batch *batch, struct batch_result *result)
{
    struct device_cpu *cpu = (struct device_cpu *)(void *)device;
    if (cpu->lost) return ST_DEVICE;
    TRY(device_cpu_check(cpu, batch));
    if (batch->tokens_count == 0) return ST_OK;
    plan_rows(cpu, batch);
    device_cpu_plan_tiles(cpu, batch);
    cpu->batch = batch;
    cpu->result = result;
    uint32_t counters = cpu->spec.layers + (batch->rows_count + LOGIT_ROWS - 1) / LOGIT_ROWS;
    for (uint32_t i = 0; i < counters; i++) atomic_store_explicit(&cpu->next_item[i], 0, memory_order_relaxed);
    team_run(cpu->team, step_thread, cpu);
    if (cpu->lost) return ST_DEVICE;
    for (uint32_t phase = 0; phase < PHASE_COUNT; phase++) {
        uint64_t ticks = 0;
        for (uint32_t t = 0; t < cpu->threads_count; t++) ticks += cpu->threads[t].phase_ticks[phase];
        device->phase_ticks[phase] = ticks;
    }
    return ST_OK;
}

static void destroy(struct device *device)
{
    struct device_cpu *cpu = (struct device_cpu *)(void *)device;
    team_destroy(cpu->team);
    mem_unmap(cpu->weights, cpu->weights_bytes);
    mem_unmap(cpu->kv, cpu->kv_bytes);
    mem_unmap(cpu->scratch, cpu->scratch_bytes);
    mem_free(cpu->threads);
    mem_free(cpu->experts);
    mem_free(cpu->layers);
    mem_free(cpu);
}

static void empty_kv(struct device *device)
{
    struct device_cpu *cpu = (struct device_cpu *)(void *)device;
    mem_map_empty(cpu->kv, cpu->kv_bytes);
}

static enum status check_config(const struct model *model, const struct device_config *config, struct error *err)
{
    const struct comm *comm = config->comm;
    if (model->part.ranks > 1 ? !comm || comm->rank != model->part.rank || comm->ranks != model->part.ranks
                              : comm != NULL) {
        return error_set(err, ST_INVAL, "the model's part is rank %u of %u, its comm another", model->part.rank,
                         model->part.ranks);
    }
    const struct comm *stages = config->stages;
    if (model->part.stages > 1 ? !stages || stages->rank != model->part.stage || stages->ranks != model->part.stages
                               : stages != NULL) {
        return error_set(err, ST_INVAL, "the model's part is stage %u of %u, its comm another", model->part.stage,
                         model->part.stages);
    }
    if (!cpu_path_supported(config->path)) {
        return error_set(err, ST_INVAL, "this CPU cannot run the path %s", cpu_path_name(config->path));
    }
    if (config->threads == 0 || config->threads > TEAM_THREADS_MAX) {
        return error_set(err, ST_INVAL, "threads is %u, must be 1 to %d", config->threads, TEAM_THREADS_MAX);
    }
    if (!config->tokens_max || !config->seqs_max || !config->rows_max || !config->context_max) {
        return error_set(err, ST_INVAL, "tokens_max, seqs_max, rows_max and context_max must be at least 1");
    }
    if (config->kv_int8 && config->numerics == NUMERICS_EXACT) {
        return error_set(err, ST_INVAL, "int8 KV is of fast numerics: exact numerics keep KV in f32");
    }
    return model_spec_check(&model->spec, err);
}

static size_t down_acts_bytes(const struct device_cpu *cpu, uint32_t M)
{
    size_t most = 0;
    for (uint32_t l = 0; l < cpu->spec.layers; l++) {
        const struct cpu_layer *layer = &cpu->layers[l];
        size_t bytes = layer->experts ? 0 : matmul_act_bytes(layer->down.act, M, cpu->spec.ff_width);
        if (bytes > most) most = bytes;
        for (uint32_t x = cpu->experts_begin; layer->experts && x < cpu->experts_end; x++) {
            bytes = device_cpu_items_act_bytes(cpu, layer->experts[x].down.act, M, cpu->spec.expert_width);
            if (bytes > most) most = bytes;
        }
    }
    return aligned(most);
}

/* The largest of the other activations of the model for M rows, a slot each kind. */
static size_t act_bytes_max(const struct device_cpu *cpu, uint32_t M)
{
    size_t most = 0;
    for (uint32_t l = 0; l < cpu->spec.layers; l++) {
        const struct cpu_layer *layer = &cpu->layers[l];
        const struct act_set *sets[] = {&layer->qkv_acts, &layer->o_acts, &layer->ff_acts, &layer->router_acts,
                                        &cpu->head_acts};
        const uint32_t widths[] = {layer->q.K, layer->o.K, cpu->spec.width, cpu->spec.width, cpu->head.K};
        for (uint32_t i = 0; i < 5; i++) {
            for (uint32_t k = 0; k < sets[i]->count; k++) {
                size_t bytes = i == 2 && layer->experts
                                   ? device_cpu_items_act_bytes(cpu, sets[i]->kinds[k], M, widths[i])
                                   : matmul_act_bytes(sets[i]->kinds[k], M, widths[i]);
                if (bytes > most) most = bytes;
            }
        }
    }
    return aligned(most);
}

static uint32_t max_of(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

/* Floats from a row of logits to the next: 1 KB more than whole pages, so that what 16 rows hold of the same columns
 * does not fall on the same few lines of the caches. */
static size_t logits_stride(uint32_t vocab)
{
    return ((size_t)vocab + 1023) / 1024 * 1024 + 256;
}

/* Lays out the scratch mapping; run twice, first with base NULL to measure. Gives the bytes used. */
static size_t place_scratch(struct device_cpu *cpu, uint8_t *base)
{
    const struct model_spec *s = &cpu->spec;
    const struct device_info *info = &cpu->device.info;
    uint32_t most = max_of(info->tokens_max, info->rows_max);
    size_t N = info->tokens_max, used = 0, marks = cpu->stages ? N : 0;
    size_t row = max_of(max_of(s->width, s->heads * s->head_size), max_of(s->ff_width, s->head_size));
#define TAKE(pointer, bytes) ((pointer) = base ? (void *)(base + used) : NULL, used += aligned(bytes))
    cpu->act_slot_bytes = act_bytes_max(cpu, most);
    cpu->act_private_slot_bytes = act_bytes_max(cpu, PRIVATE_ROWS_MAX);
    TAKE(cpu->x, N * s->width * sizeof(float) + marks);
    TAKE(cpu->qkv, N * (s->heads + 2 * s->kv_heads) * s->head_size * sizeof(float));
    TAKE(cpu->attended, N * s->heads * s->head_size * sizeof(float));
    TAKE(cpu->down_acts, down_acts_bytes(cpu, info->tokens_max));
    TAKE(cpu->angles, N * cpu->ropes * 2 * s->rope_size * sizeof(float));
    TAKE(cpu->y, cpu->apart || s->experts ? N * s->width * sizeof(float) : 0);
    struct expert_routes *routes = &cpu->routes;
    size_t items = N * s->experts_used;
    TAKE(routes->logits, N * ((s->experts + 15) & ~15u) * sizeof(float));
    TAKE(routes->chosen, items * sizeof *routes->chosen);
    TAKE(routes->weights, items * sizeof *routes->weights);
    TAKE(routes->begins, (s->experts + 1) * sizeof *routes->begins);
    TAKE(routes->rows, items * sizeof *routes->rows);
    TAKE(routes->shares, items * sizeof *routes->shares);
    TAKE(routes->tokens, items * sizeof *routes->tokens);
    uint32_t logit_rows = !cpu->has_head ? 0 : LOGIT_ROWS * (info->rows_max > LOGIT_ROWS ? LOGIT_BUFFERS : 1);
    cpu->logits_stride = logits_stride(cpu->vocab_stride);
    cpu->highest_stride = (sample_units(s->vocab) + 15) & ~15u;
    TAKE(cpu->logits, logit_rows * cpu->logits_stride * sizeof(float));
    TAKE(cpu->highest, logit_rows * cpu->highest_stride * sizeof(float));
    TAKE(cpu->row_tokens, info->rows_max * sizeof *cpu->row_tokens);
    TAKE(cpu->acts, ACT_KINDS_MAX * cpu->act_slot_bytes);
    TAKE(cpu->bad, N);
    for (uint32_t i = 0; i < (s->window ? 2 : 1); i++) {
        struct attention_plan *plan = &cpu->plans[i];
        plan->window = i ? s->window : 0;
        TAKE(plan->tiles, device_cpu_tiles_max(cpu) * sizeof *plan->tiles);
        TAKE(plan->pending, device_cpu_divided_max(cpu) * sizeof *plan->pending);
    }
    TAKE(cpu->partials, device_cpu_partials_floats(cpu) * sizeof(float));
    TAKE(cpu->last_x, (size_t)info->rows_max * s->width * sizeof(float) + marks);
    TAKE(cpu->last_tokens, info->rows_max * sizeof *cpu->last_tokens);
    TAKE(cpu->last_of_row, info->rows_max * sizeof *cpu->last_of_row);
    TAKE(cpu->next_item, (s->layers + info->rows_max / LOGIT_ROWS + 1) * sizeof *cpu->next_item);
    if (cpu->comm) {
        size_t rows = cpu->has_head && cpu->comm->rank == 0 ? LOGIT_ROWS : 0;
        cpu->whole_stride = logits_stride(cpu->vocab);
        cpu->whole_highest_stride = (sample_units(cpu->vocab) + 15) & ~15u;
        TAKE(cpu->ranks_bad, N * (cpu->comm->ranks + 1));
        TAKE(cpu->ranks_logits, cpu->comm->ranks * rows * cpu->logits_stride * sizeof(float));
        TAKE(cpu->whole, rows * cpu->whole_stride * sizeof(float));
        TAKE(cpu->whole_highest, rows * cpu->whole_highest_stride * sizeof(float));
    }
    for (uint32_t t = 0; t < cpu->threads_count; t++) {
        struct cpu_thread *own = &cpu->threads[t];
        uint8_t *sampler;
        TAKE(own->row, row * sizeof(float));
        TAKE(own->head_row, s->width * sizeof(float));
        TAKE(own->attention,
             attention_scratch_floats(cpu->kv_layout.type, s->heads / s->kv_heads, s->head_size) * sizeof(float));
        TAKE(own->acts, ACT_KINDS_MAX * cpu->act_private_slot_bytes);
        TAKE(sampler, cpu->has_head ? sampler_bytes(cpu->vocab) : 0);
        if (base && cpu->has_head) sampler_init(&own->sampler, cpu->path, cpu->vocab, sampler);
    }
#undef TAKE
    return used;
}

static enum status take_memory(struct device_cpu *cpu, const struct device_config *config, struct error *err)
{
    struct device_info *info = &cpu->device.info;
    uint32_t sequence_blocks = kv_blocks_for(config->context_max);
    size_t blocks = config->kv_bytes / info->kv_block_bytes;
    if (blocks < sequence_blocks) blocks = sequence_blocks;
    if (blocks > UINT32_MAX - 1) blocks = UINT32_MAX - 1;
    info->kv_blocks = (uint32_t)blocks;
    if (!checked_mul(blocks, info->kv_block_bytes, &cpu->kv_bytes) || !(cpu->kv = mem_map(cpu->kv_bytes))) {
        return error_set(err, ST_NOMEM, "no memory for %zu KV blocks of %zu bytes", blocks, info->kv_block_bytes);
    }
    cpu->scratch_bytes = place_scratch(cpu, NULL);
    cpu->scratch = mem_map(cpu->scratch_bytes);
    if (!cpu->scratch) return error_set(err, ST_NOMEM, "no memory for %zu bytes of scratch", cpu->scratch_bytes);
    place_scratch(cpu, cpu->scratch);
    info->scratch_bytes = cpu->scratch_bytes;
    return ST_OK;
}

static void describe(struct device_cpu *cpu, const struct device_config *config)
{
    static const struct device_ops ops = {.step = step, .destroy = destroy, .empty_kv = empty_kv};
    struct device_info *info = &cpu->device.info;
    cpu->device.ops = &ops;
    snprintf(info->name, sizeof info->name, "cpu %s, %u thread%s", cpu_path_name(cpu->path), cpu->threads_count,
             cpu->threads_count == 1 ? "" : "s");
    info->vocab = cpu->vocab;
    info->kv_block_bytes = device_cpu_kv_block_bytes(&cpu->spec, cpu->numerics, config->kv_int8);
    info->tokens_max = config->tokens_max;
    info->seqs_max = config->seqs_max;
    info->rows_max = config->rows_max;
}

enum status device_cpu_create(const struct model *model, const struct device_config *config,
                              device_progress_fn progress, void *progress_state, struct device **device,
                              struct error *err)
{
    TRY(check_config(model, config, err));
    struct device_cpu *cpu = mem_alloc(1, sizeof *cpu);
    if (!cpu) return error_set(err, ST_NOMEM, "no memory for the device");
    cpu->spec = model->spec;
    cpu->path = config->path;
    cpu->numerics = config->numerics;
    cpu->threads_count = config->threads;
    cpu->context_max = config->context_max;
    cpu->ropes = cpu->spec.has_window_rope ? 2 : 1;
    cpu->comm = config->comm;
    cpu->stages = config->stages;
    cpu->has_head = !cpu->stages || cpu->stages->rank == 0;
    bool is_end = !cpu->stages || cpu->stages->rank + 1 == cpu->stages->ranks;
    cpu->last_layer = is_end ? cpu->spec.layers - 1 : UINT32_MAX;
    bool is_part = cpu->comm != NULL;
    cpu->vocab = is_part ? model->part.vocab : cpu->spec.vocab;
    cpu->vocab_begin = is_part ? model->part.vocab_begin : 0;
    cpu->vocab_stride = is_part ? model->part.vocab_stride : cpu->spec.vocab;
    cpu->experts_begin = is_part ? model->part.experts_begin : 0;
    cpu->experts_end = is_part ? model->part.experts_end : cpu->spec.experts;
    cpu->apart = is_part || cpu->spec.has_post_norms || cpu->spec.residual_scale != 1;
    cpu->kv_layout = layout_of(&cpu->spec, cpu->numerics, config->kv_int8);
    cpu->layer_bytes = cpu->spec.kv_heads * cpu->kv_layout.head_bytes;
    describe(cpu, config);
    cpu->threads = mem_alloc(cpu->threads_count, sizeof *cpu->threads);
    cpu->layers = mem_alloc(cpu->spec.layers, sizeof *cpu->layers);
    cpu->experts = mem_alloc((size_t)cpu->spec.layers * cpu->spec.experts, sizeof *cpu->experts);
    enum status status =
        cpu->threads && cpu->layers && cpu->experts ? ST_OK : error_set(err, ST_NOMEM, "no memory for the device");
    for (uint32_t l = 0; status == ST_OK && l < cpu->spec.layers; l++) {
        uint8_t flags = cpu->spec.layer_flags[l];
        cpu->layers[l].windowed = flags & LAYER_WINDOWED;
        if (flags & LAYER_EXPERTS) cpu->layers[l].experts = cpu->experts + (size_t)l * cpu->spec.experts;
    }
    if (status == ST_OK) {
        status = team_create(cpu->threads_count, &cpu->team);
        if (status != ST_OK) error_set(err, status, "cannot start %u threads", cpu->threads_count);
    }
    if (status == ST_OK) status = device_cpu_load(cpu, model, progress, progress_state, err);
    if (status == ST_OK) status = take_memory(cpu, config, err);
    if (status != ST_OK) {
        destroy(&cpu->device);
        return status;
    }
    cpu->device.info.weights_bytes = cpu->weights_bytes;
    *device = &cpu->device;
    return ST_OK;
}
