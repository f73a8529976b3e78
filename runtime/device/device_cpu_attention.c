/* Attention in a step: who takes which rows, KV head and chunks of the context.
 *
 * A tile is up to attention_rows rows of one sequence; with a KV head it makes an item, and threads take items from a
 * counter. Where few items hold most of the work, the chunks of a tile are divided into parts, each an item of its own:
 * their results stay apart in `partials`, and who finishes the last part of a (tile, KV head) merges them in rising
 * order. So bits do not depend on the division, and one long sequence keeps all threads busy.
 *
 * A tile is divided when its work exceeds 1 / PARTS_PER_THREAD of a thread's share; so fewer than PARTS_PER_THREAD *
 * threads (tile, KV head) are, and the parts beyond the first are no more. What finds no room in the partials stays
 * whole. */
#include "runtime/device/device_cpu_parts.h"

enum {
    PARTS_PER_THREAD = 6,
    PART_CHUNKS_MIN = 2, /* shorter parts cost more to keep apart and merge than they spread */
    TILE_WORK = 8        /* reading a line of KV, in products with a vector: an estimate, moves no bits */
};

uint32_t device_cpu_tiles_max(const struct device_cpu *cpu)
{
    return cpu->device.info.tokens_max + PARTS_PER_THREAD * cpu->threads_count;
}

uint32_t device_cpu_divided_max(const struct device_cpu *cpu)
{
    return PARTS_PER_THREAD * cpu->threads_count + cpu->spec.kv_heads;
}

/* One row of the longest context for every KV head, and for two more (tile, KV head) a thread. */
size_t device_cpu_partials_floats(const struct device_cpu *cpu)
{
    uint32_t G = cpu->spec.heads / cpu->spec.kv_heads;
    size_t chunk = attention_partial_floats(G, cpu->spec.head_size);
    if (cpu->threads_count == 1) return 0;
    return (cpu->spec.kv_heads + 2 * cpu->threads_count) * chunk * attention_chunks(cpu->context_max);
}

static uint64_t work_of(const struct device_cpu *cpu, const struct attention_tile *tile)
{
    uint32_t vectors = tile->rows * (cpu->spec.heads / cpu->spec.kv_heads);
    return (uint64_t)tile->chunks * (vectors + TILE_WORK);
}

/* In how many parts to attend to a tile, when the partials have `floats_left`. */
static uint32_t parts_of(const struct device_cpu *cpu, const struct attention_tile *tile, uint64_t most,
                         size_t floats_left)
{
    uint64_t parts = (work_of(cpu, tile) + most - 1) / most;
    size_t chunk = attention_partial_floats(tile->rows * (cpu->spec.heads / cpu->spec.kv_heads), cpu->spec.head_size);
    if (parts > tile->chunks / PART_CHUNKS_MIN) parts = tile->chunks / PART_CHUNKS_MIN;
    return parts > 1 && cpu->spec.kv_heads * tile->chunks * chunk <= floats_left ? (uint32_t)parts : 1;
}

/* Divides the tiles whose work exceeds `most`; from the last, so that each moves to its place once. */
static void divide_tiles(struct device_cpu *cpu, struct attention_plan *plan, uint64_t most)
{
    const struct model_spec *s = &cpu->spec;
    size_t floats_left = device_cpu_partials_floats(cpu);
    uint32_t extra = 0, divided = 0;
    for (uint32_t i = 0; i < plan->tiles_count; i++) {
        struct attention_tile *tile = &plan->tiles[i];
        uint32_t parts = parts_of(cpu, tile, most, floats_left);
        if (plan->tiles_count + extra + parts - 1 > device_cpu_tiles_max(cpu) ||
            divided + s->kv_heads > device_cpu_divided_max(cpu)) {
            parts = 1;
        }
        tile->parts = parts;
        if (parts == 1) continue;
        size_t chunk = attention_partial_floats(tile->rows * (s->heads / s->kv_heads), s->head_size);
        tile->partials = cpu->partials + (device_cpu_partials_floats(cpu) - floats_left);
        tile->head_floats = tile->chunks * chunk;
        tile->pending = plan->pending + divided;
        floats_left -= s->kv_heads * tile->head_floats;
        for (uint32_t h = 0; h < s->kv_heads; h++) {
            atomic_store_explicit(&tile->pending[h], parts, memory_order_relaxed);
        }
        divided += s->kv_heads;
        extra += parts - 1;
    }
    for (uint32_t i = plan->tiles_count, to = plan->tiles_count + extra; i-- > 0;) {
        struct attention_tile tile = plan->tiles[i];
        for (tile.part = tile.parts; tile.part-- > 0;) plan->tiles[--to] = tile;
    }
    plan->tiles_count += extra;
}

static void plan_tiles(struct device_cpu *cpu, const struct batch *batch, struct attention_plan *plan)
{
    uint32_t rows = attention_rows(cpu->spec.heads / cpu->spec.kv_heads), row = 0;
    uint64_t work = 0;
    plan->tiles_count = 0;
    for (uint32_t seq = 0; seq < batch->seqs_count; seq++) {
        for (uint32_t token = batch->q_start[seq]; token < batch->q_start[seq + 1]; token += rows) {
            uint32_t left = batch->q_start[seq + 1] - token, count = left < rows ? left : rows;
            while (row < batch->rows_count && batch->rows[row].token < token) row++;
            struct attention_tile *tile = &plan->tiles[plan->tiles_count++];
            uint32_t position = batch->positions[token];
            uint32_t chunk_begin = attention_first(position, plan->window) / ATTENTION_CHUNK;
            *tile = (struct attention_tile){.seq = seq,
                                            .token = token,
                                            .rows = count,
                                            .chunk_begin = chunk_begin,
                                            .chunks = attention_chunks(position + count) - chunk_begin,
                                            .parts = 1};
            tile->wanted = row < batch->rows_count && batch->rows[row].token < token + count;
            work += cpu->spec.kv_heads * work_of(cpu, tile);
        }
    }
    uint64_t most = work / (PARTS_PER_THREAD * cpu->threads_count) + 1;
    if (cpu->threads_count > 1) divide_tiles(cpu, plan, most);
}

void device_cpu_plan_tiles(struct device_cpu *cpu, const struct batch *batch)
{
    plan_tiles(cpu, batch, &cpu->plans[0]);
    if (cpu->spec.window) plan_tiles(cpu, batch, &cpu->plans[1]);
}

static void attend(struct device_cpu *cpu, uint32_t thread_idx, uint32_t l, const struct attention_tile *tile,
                   uint32_t kv_head)
{
    const struct model_spec *s = &cpu->spec;
    uint32_t G = s->heads / s->kv_heads, D = s->head_size;
    size_t stride = (size_t)(s->heads + 2 * s->kv_heads) * D;
    struct attention_args args = {
        .layout = cpu->kv_layout,
        .kv = kv_head_of(cpu, l, kv_head, 0),
        .kv_block_bytes = cpu->device.info.kv_block_bytes,
        .blocks = cpu->batch->block_table[tile->seq],
        .q = cpu->qkv + tile->token * stride + (size_t)kv_head * G * D,
        .out = cpu->attended + (size_t)tile->token * s->heads * D + (size_t)kv_head * G * D,
        .q_stride = stride,
        .out_stride = (size_t)s->heads * D,
        .rows = tile->rows,
        .G = G,
        .position = cpu->batch->positions[tile->token],
        .window = cpu->plans[cpu->layers[l].windowed].window,
        .scale = s->attention_scale,
        .scratch = cpu->threads[thread_idx].attention,
    };
    if (tile->parts > 1) {
        struct span chunks = span_of(tile->chunks, tile->part, tile->parts);
        args.partials = tile->partials + kv_head * tile->head_floats;
        args.chunk_begin = tile->chunk_begin + chunks.begin;
        args.chunk_end = tile->chunk_begin + chunks.end;
    }
    attention(cpu->path, &args);
    if (tile->parts > 1 && atomic_fetch_sub_explicit(&tile->pending[kv_head], 1, memory_order_acq_rel) == 1) {
        attention_merge(cpu->path, &args);
        atomic_store_explicit(&tile->pending[kv_head], tile->parts, memory_order_relaxed); /* for the next layer */
    }
}

/* Items from the last: a prompt's last rows have most to read, and long items should not come at the end. */
void device_cpu_attend(struct device_cpu *cpu, uint32_t thread_idx, uint32_t l)
{
    const struct attention_plan *plan = &cpu->plans[cpu->layers[l].windowed];
    uint32_t heads = cpu->spec.kv_heads, items = plan->tiles_count * heads;
    bool last = l == cpu->last_layer;
    for (;;) {
        uint32_t item = atomic_fetch_add_explicit(&cpu->next_item[l], 1, memory_order_relaxed);
        if (item >= items) break;
        item = items - 1 - item;
        const struct attention_tile *tile = &plan->tiles[item / heads];
        if (!last || tile->wanted) attend(cpu, thread_idx, l, tile, item % heads);
    }
}
