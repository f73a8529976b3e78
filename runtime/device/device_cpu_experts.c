/* The feed-forward of a layer with experts.
 *
 *   (norm, acts |) router | routes | items (, acts) | gate, up, GLU, acts of every expert's items | down, into y |
 *
 * Every thread has its panels of every expert. Items of an expert are rows of a product of their own, whose activations
 * begin at an offset that all threads compute alike. Down multiplies 16 items and a few panels at a time and adds them
 * to y by their weights, expert after expert: so a row's sum goes by rising expert, whoever else is in the step. */
#include "runtime/device/device_cpu_parts.h"

#include "kernels/rmsnorm.h"
#include "kernels/route.h"

#include <string.h>

size_t device_cpu_items_act_bytes(const struct device_cpu *cpu, enum act_kind kind, uint32_t tokens, uint32_t K)
{
    return matmul_act_bytes(kind, tokens * cpu->spec.experts_used, K) + (size_t)64 * cpu->spec.experts;
}

static uint32_t items_of(const struct device_cpu *cpu, uint32_t expert)
{
    return cpu->routes.begins[expert + 1] - cpu->routes.begins[expert];
}

static bool has_expert(const struct device_cpu *cpu, uint32_t expert)
{
    return expert >= cpu->experts_begin && expert < cpu->experts_end;
}

/* The live rows' experts, then their items. */
static void find_routes(struct device_cpu *cpu, uint32_t thread_idx, const struct cpu_layer *layer,
                        const struct live_rows *live)
{
    const struct model_spec *s = &cpu->spec;
    struct expert_routes *r = &cpu->routes;
    const struct cpu_thread *own = &cpu->threads[thread_idx];
    uint32_t M = live->count, U = s->experts_used, stride = layer->router.panels * MATMUL_PANEL_ROWS;
    const uint8_t *acts = device_cpu_prepare(cpu, thread_idx, &layer->router_acts, M, s->width,
                                             (struct act_source){live->x, NULL, live->tokens}, layer->ffn_norm);
    matmul(cpu->path, &layer->router, own->router.begin, own->router.end, acts, M, r->logits, stride);
    phase_meet(cpu, thread_idx, PHASE_GATED);
    struct span rows = span_of(M, thread_idx, cpu->threads_count);
    for (uint32_t m = rows.begin; m < rows.end; m++) {
        route(r->logits + (size_t)m * stride, s->experts, U, s->experts_normed, r->chosen + m * U, r->weights + m * U);
    }
    phase_meet(cpu, thread_idx, PHASE_GATED);
    if (thread_idx == 0) {
        memset(r->begins, 0, (s->experts + 1) * sizeof *r->begins);
        for (uint32_t i = 0; i < M * U; i++) r->begins[r->chosen[i] + 1]++;
        for (uint32_t x = 0; x < s->experts; x++) r->begins[x + 1] += r->begins[x];
        for (uint32_t i = 0; i < M * U; i++) {
            uint32_t item = r->begins[r->chosen[i]]++; /* for a moment the end so far */
            r->rows[item] = i / U;
            r->shares[item] = r->weights[i];
            r->tokens[item] = live->tokens ? live->tokens[i / U] : i / U;
        }
        memmove(r->begins + 1, r->begins, s->experts * sizeof *r->begins);
        r->begins[0] = 0;
    }
    phase_meet(cpu, thread_idx, PHASE_GATED);
}

/* Activations of all items, in every kind that an expert of the layer takes. */
static void prepare_items(struct device_cpu *cpu, uint32_t thread_idx, const struct cpu_layer *layer,
                          const struct live_rows *live)
{
    const struct model_spec *s = &cpu->spec;
    const struct expert_routes *r = &cpu->routes;
    const struct act_set *set = &layer->ff_acts;
    struct cpu_thread *own = &cpu->threads[thread_idx];
    struct span items = span_of(live->count * s->experts_used, thread_idx, cpu->threads_count);
    size_t offset[ACT_KINDS_MAX] = {0};
    for (uint32_t x = 0; x < s->experts && r->begins[x] < items.end; x++) {
        uint32_t M = items_of(cpu, x);
        for (uint32_t m = 0; m < M; m++) {
            uint32_t item = r->begins[x] + m;
            if (item < items.begin || item >= items.end || !has_expert(cpu, x)) continue;
            rmsnorm(cpu->path, own->row, live->x + (size_t)r->rows[item] * s->width, layer->ffn_norm, s->width,
                    s->norm_eps);
            for (uint32_t i = 0; i < set->count; i++) { /* one that is not finite was marked before the router */
                (void)matmul_prepare(cpu->path, set->kinds[i], own->row, 0, M, s->width, m, m + 1,
                                     cpu->acts + i * cpu->act_slot_bytes + offset[i]);
            }
        }
        for (uint32_t i = 0; i < set->count; i++) offset[i] += matmul_act_bytes(set->kinds[i], M, s->width);
    }
    phase_meet(cpu, thread_idx, PHASE_PREPARE);
}

static uint32_t slot_of(const struct act_set *set, enum act_kind kind)
{
    uint32_t slot = 0;
    while (slot + 1 < set->count && set->kinds[slot] != kind) slot++;
    return slot;
}

static void gate_items(struct device_cpu *cpu, uint32_t thread_idx, const struct cpu_layer *layer)
{
    const struct model_spec *s = &cpu->spec;
    const struct act_set *set = &layer->ff_acts;
    size_t offset[ACT_KINDS_MAX] = {0}, down_offset = 0;
    for (uint32_t x = 0; x < s->experts; x++) {
        const struct cpu_expert *expert = &layer->experts[x];
        bool own = has_expert(cpu, x);
        uint32_t M = items_of(cpu, x), gate_slot = slot_of(set, expert->gate.act),
                 up_slot = slot_of(set, expert->up.act);
        struct gated gated = {.gate = &expert->gate,
                              .up = &expert->up,
                              .down = &expert->down,
                              .gate_act = cpu->acts + gate_slot * cpu->act_slot_bytes + offset[gate_slot],
                              .up_act = cpu->acts + up_slot * cpu->act_slot_bytes + offset[up_slot],
                              .down_acts = cpu->down_acts + down_offset,
                              .M = M,
                              .tokens = cpu->routes.tokens + cpu->routes.begins[x]};
        if (M && own) device_cpu_gated(cpu, &gated, cpu->threads[thread_idx].expert_ff);
        for (uint32_t i = 0; i < set->count; i++) offset[i] += matmul_act_bytes(set->kinds[i], M, s->width);
        if (own) down_offset += matmul_act_bytes(expert->down.act, M, s->expert_width);
    }
    phase_meet(cpu, thread_idx, PHASE_GATED);
}

/* Up to 16 items of an expert, their rows and shares from item `first` on, for panels [p, p_end). */
static void add_items(struct device_cpu *cpu, const struct matrix *down, const uint8_t *acts, uint32_t M, uint32_t item,
                      uint32_t first, uint32_t p, uint32_t p_end)
{
    enum { PANELS = 8 };
    _Alignas(64) float out[MATMUL_TILE_ROWS * PANELS * MATMUL_PANEL_ROWS];
    const struct expert_routes *r = &cpu->routes;
    uint32_t E = cpu->spec.width, rows = M - first < MATMUL_TILE_ROWS ? M - first : MATMUL_TILE_ROWS;
    for (; p < p_end; p += PANELS) {
        uint32_t end = p_end - p < PANELS ? p_end : p + PANELS, stride = (end - p) * MATMUL_PANEL_ROWS;
        uint32_t n_begin = p * MATMUL_PANEL_ROWS, n = E - n_begin < stride ? E - n_begin : stride;
        matmul_tile(cpu->path, down, p, end, acts, M, first, out, stride);
        for (uint32_t m = 0; m < rows; m++) {
            float *restrict y = cpu->y + (size_t)r->rows[item + first + m] * E + n_begin,
                            share = r->shares[item + first + m];
            for (uint32_t i = 0; i < n; i++) y[i] = y[i] + share * out[m * stride + i];
        }
    }
}

static void down_items(struct device_cpu *cpu, uint32_t thread_idx, const struct cpu_layer *layer,
                       const struct live_rows *live)
{
    const struct model_spec *s = &cpu->spec;
    const struct span own = cpu->threads[thread_idx].down;
    uint32_t begin = own.begin * MATMUL_PANEL_ROWS, end = own.end * MATMUL_PANEL_ROWS;
    size_t offset = 0;
    if (end > s->width) end = s->width;
    for (uint32_t m = 0; m < live->count && begin < end; m++) {
        memset(cpu->y + (size_t)m * s->width + begin, 0, (end - begin) * sizeof(float));
    }
    for (uint32_t x = cpu->experts_begin; x < cpu->experts_end; x++) {
        const struct matrix *down = &layer->experts[x].down;
        uint32_t M = items_of(cpu, x), item = cpu->routes.begins[x];
        for (uint32_t m = 0; m < M; m += MATMUL_TILE_ROWS) {
            add_items(cpu, down, cpu->down_acts + offset, M, item, m, own.begin, own.end);
        }
        offset += matmul_act_bytes(down->act, M, s->expert_width);
    }
    phase_meet(cpu, thread_idx, PHASE_DOWN);
}

void device_cpu_run_experts(struct device_cpu *cpu, uint32_t thread_idx, const struct cpu_layer *layer,
                            const struct live_rows *live)
{
    find_routes(cpu, thread_idx, layer, live);
    prepare_items(cpu, thread_idx, layer, live);
    gate_items(cpu, thread_idx, layer);
    down_items(cpu, thread_idx, layer, live);
}
