/* The CPU device's weights: planned, divided, packed by the threads that will read them.
 *
 * One anonymous mapping holds all panels and, in f32, all vectors (norms, biases). Pages are touched first by the
 * thread that owns them. Rejected: keeping the file mapped and multiplying from it: rows of a file are the wrong shape
 * for dot products, a truncated file would kill the process by SIGBUS, and both copies would stay in memory. */
#include "runtime/device/device_cpu_parts.h"

#include "kernels/dequantize.h"
#include "runtime/base/check.h"
#include "runtime/base/mem.h"

static size_t aligned(size_t bytes)
{
    return (bytes + 63) & ~(size_t)63;
}

/* Hands out the mapping in the order of layout; with base NULL it only measures. */
struct space {
    uint8_t *base;
    size_t used_bytes;
};

static void *space_take(struct space *space, size_t bytes)
{
    uint8_t *at = space->base ? space->base + space->used_bytes : NULL;
    space->used_bytes += aligned(bytes);
    return at;
}

static enum status plan_matrix(const struct device_cpu *cpu, const struct tensor_view *view, uint32_t N, uint32_t K,
                               struct matrix *matrix, struct error *err)
{
    TRY(tensor_view_check(view, N, K, err));
    if (matmul_plan(view->type, cpu->numerics, cpu->path, N, K, matrix) != ST_OK) {
        const struct tensor_type_info *info = tensor_type_info(view->type);
        return error_set(err, ST_INVAL, "tensor %s: no matmul for type %s with %u inputs", view->name,
                         info ? info->name : "?", K);
    }
    return ST_OK;
}

/* False: more kinds than a set holds, which experts of many types can bring about. */
static bool act_set_add(struct act_set *set, enum act_kind kind)
{
    for (uint32_t i = 0; i < set->count; i++) {
        if (set->kinds[i] == kind) return true;
    }
    if (set->count == ACT_KINDS_MAX) return false;
    set->kinds[set->count++] = kind;
    return true;
}

static enum status plan_experts(const struct device_cpu *cpu, const struct layer_weights *from, struct cpu_layer *layer,
                                struct error *err)
{
    const struct model_spec *s = &cpu->spec;
    TRY(plan_matrix(cpu, &from->router, s->experts, s->width, &layer->router, err));
    (void)act_set_add(&layer->router_acts, layer->router.act);
    for (uint32_t x = cpu->experts_begin; x < cpu->experts_end; x++) {
        struct cpu_expert *expert = &layer->experts[x];
        TRY(plan_matrix(cpu, &from->experts[x].gate, s->expert_width, s->width, &expert->gate, err));
        TRY(plan_matrix(cpu, &from->experts[x].up, s->expert_width, s->width, &expert->up, err));
        TRY(plan_matrix(cpu, &from->experts[x].down, s->width, s->expert_width, &expert->down, err));
        if (!act_set_add(&layer->ff_acts, expert->gate.act) || !act_set_add(&layer->ff_acts, expert->up.act))
            return error_set(err, ST_INVAL, "tensor %s: the layer's experts are of too many types",
                             from->experts[x].gate.name);
    }
    return ST_OK;
}

static enum status plan_layer(const struct device_cpu *cpu, const struct layer_weights *from, struct cpu_layer *layer,
                              struct error *err)
{
    const struct model_spec *s = &cpu->spec;
    uint32_t q_rows = s->heads * s->head_size, kv_rows = s->kv_heads * s->head_size;
    TRY(plan_matrix(cpu, &from->q, q_rows, s->width, &layer->q, err));
    TRY(plan_matrix(cpu, &from->k, kv_rows, s->width, &layer->k, err));
    TRY(plan_matrix(cpu, &from->v, kv_rows, s->width, &layer->v, err));
    TRY(plan_matrix(cpu, &from->o, s->width, q_rows, &layer->o, err));
    if (layer->experts) {
        TRY(plan_experts(cpu, from, layer, err));
    } else {
        TRY(plan_matrix(cpu, &from->gate, s->ff_width, s->width, &layer->gate, err));
        TRY(plan_matrix(cpu, &from->up, s->ff_width, s->width, &layer->up, err));
        TRY(plan_matrix(cpu, &from->down, s->width, s->ff_width, &layer->down, err));
        (void)act_set_add(&layer->ff_acts, layer->gate.act);
        (void)act_set_add(&layer->ff_acts, layer->up.act);
    }
    TRY(tensor_view_check(&from->attn_norm, 1, s->width, err));
    TRY(tensor_view_check(&from->ffn_norm, 1, s->width, err));
    if (s->has_post_norms) {
        TRY(tensor_view_check(&from->attn_post_norm, 1, s->width, err));
        TRY(tensor_view_check(&from->ffn_post_norm, 1, s->width, err));
    }
    if (s->has_qkv_bias) {
        TRY(tensor_view_check(&from->q_bias, 1, q_rows, err));
        TRY(tensor_view_check(&from->k_bias, 1, kv_rows, err));
        TRY(tensor_view_check(&from->v_bias, 1, kv_rows, err));
    }
    if (s->has_qk_norm) {
        TRY(tensor_view_check(&from->q_norm, 1, s->head_size, err));
        TRY(tensor_view_check(&from->k_norm, 1, s->head_size, err));
    }
    (void)act_set_add(&layer->qkv_acts, layer->q.act);
    (void)act_set_add(&layer->qkv_acts, layer->k.act);
    (void)act_set_add(&layer->qkv_acts, layer->v.act);
    (void)act_set_add(&layer->o_acts, layer->o.act);
    return ST_OK;
}

static enum status plan(struct device_cpu *cpu, const struct model_weights *from, struct error *err)
{
    const struct model_spec *s = &cpu->spec;
    const struct tensor_view *head = s->tied_head ? &from->embed : &from->head;
    if (cpu->has_head) {
        TRY(plan_matrix(cpu, &from->embed, s->vocab, s->width, &cpu->embed, err));
        TRY(plan_matrix(cpu, head, s->vocab, s->width, &cpu->head, err));
        TRY(tensor_view_check(&from->final_norm, 1, s->width, err));
        (void)act_set_add(&cpu->head_acts, cpu->head.act);
    }
    if (from->rope_factors.data) TRY(tensor_view_check(&from->rope_factors, 1, s->rope_size / 2, err));
    if (from->rope_factors_long.data) TRY(tensor_view_check(&from->rope_factors_long, 1, s->rope_size / 2, err));
    for (uint32_t l = 0; l < s->layers; l++) TRY(plan_layer(cpu, &from->layers[l], &cpu->layers[l], err));
    return ST_OK;
}

static void place_matrix(struct space *space, struct matrix *matrix)
{
    matrix->data = space_take(space, matrix->panels * matrix->panel_bytes);
}

/* Gives every matrix and vector its place; run twice, first to measure. */
static void place(struct device_cpu *cpu, struct space *space)
{
    const struct model_spec *s = &cpu->spec;
    uint32_t q_rows = s->heads * s->head_size, kv_rows = s->kv_heads * s->head_size;
    place_matrix(space, &cpu->head);
    if (s->tied_head) {
        cpu->embed.data = cpu->head.data;
    } else {
        place_matrix(space, &cpu->embed);
    }
    cpu->final_norm = cpu->has_head ? space_take(space, s->width * sizeof(float)) : NULL;
    for (uint32_t i = 0; i < cpu->ropes; i++)
        cpu->frequencies[i] = space_take(space, s->rope_size / 2 * sizeof(double));
    for (uint32_t l = 0; l < s->layers; l++) {
        struct cpu_layer *layer = &cpu->layers[l];
        struct matrix *matrices[] = {&layer->q,    &layer->k,  &layer->v,    &layer->o,
                                     &layer->gate, &layer->up, &layer->down, &layer->router};
        for (uint32_t i = 0; i < 8; i++) place_matrix(space, matrices[i]); /* those that are not there take nothing */
        for (uint32_t x = cpu->experts_begin; layer->experts && x < cpu->experts_end; x++) {
            place_matrix(space, &layer->experts[x].gate);
            place_matrix(space, &layer->experts[x].up);
            place_matrix(space, &layer->experts[x].down);
        }
        layer->attn_norm = space_take(space, s->width * sizeof(float));
        layer->ffn_norm = space_take(space, s->width * sizeof(float));
        if (s->has_post_norms) {
            layer->attn_post_norm = space_take(space, s->width * sizeof(float));
            layer->ffn_post_norm = space_take(space, s->width * sizeof(float));
        }
        if (s->has_qkv_bias) {
            layer->q_bias = space_take(space, q_rows * sizeof(float));
            layer->k_bias = space_take(space, kv_rows * sizeof(float));
            layer->v_bias = space_take(space, kv_rows * sizeof(float));
        }
        if (s->has_qk_norm) {
            layer->q_norm = space_take(space, s->head_size * sizeof(float));
            layer->k_norm = space_take(space, s->head_size * sizeof(float));
        }
    }
}

/* Heads of QKV to threads: units are query heads, then KV heads (K and V together), as few heads a unit as make whole
 * panels; a thread's units reach up to its share of the bytes. */
static void divide_heads(struct device_cpu *cpu)
{
    const struct model_spec *s = &cpu->spec;
    const struct cpu_layer *layer = &cpu->layers[0];
    uint32_t heads = 1;
    while (heads * s->head_size % MATMUL_PANEL_ROWS) heads++;
    uint32_t q_units = (s->heads + heads - 1) / heads, kv_units = (s->kv_heads + heads - 1) / heads;
    uint64_t kv_bytes = layer->k.panel_bytes + layer->v.panel_bytes, q_bytes = layer->q.panel_bytes;
    uint64_t all_bytes = q_units * q_bytes + kv_units * kv_bytes, done_bytes = 0;
    uint32_t unit = 0, units = q_units + kv_units;
    for (uint32_t t = 0; t < cpu->threads_count; t++) {
        uint32_t first = unit;
        for (; unit < units; unit++) { /* the unit goes to the thread whose share holds its middle */
            uint64_t bytes = unit < q_units ? q_bytes : kv_bytes;
            if ((done_bytes + bytes / 2) * cpu->threads_count >= all_bytes * (t + 1)) break;
            done_bytes += bytes;
        }
        uint32_t q_end = (unit < q_units ? unit : q_units) * heads,
                 q_begin = (first < q_units ? first : q_units) * heads;
        uint32_t kv_begin = (first > q_units ? first - q_units : 0) * heads;
        uint32_t kv_end = (unit > q_units ? unit - q_units : 0) * heads;
        struct cpu_thread *thread = &cpu->threads[t];
        thread->q_heads = (struct span){q_begin < s->heads ? q_begin : s->heads, q_end < s->heads ? q_end : s->heads};
        thread->kv_heads =
            (struct span){kv_begin < s->kv_heads ? kv_begin : s->kv_heads, kv_end < s->kv_heads ? kv_end : s->kv_heads};
    }
    CHECK_EQ(unit, units);
}

/* The share of thread i in panels that come in units of so many. */
static struct span units_of(uint32_t panels, uint32_t unit, uint32_t thread_idx, uint32_t threads)
{
    struct span span = span_of((panels + unit - 1) / unit, thread_idx, threads);
    span.begin = span.begin * unit;
    span.end = span.end * unit;
    return (struct span){span.begin < panels ? span.begin : panels, span.end < panels ? span.end : panels};
}

static uint32_t panels_of(uint32_t rows)
{
    return (rows + MATMUL_PANEL_ROWS - 1) / MATMUL_PANEL_ROWS;
}

static void divide(struct device_cpu *cpu)
{
    const struct model_spec *s = &cpu->spec;
    divide_heads(cpu);
    for (uint32_t t = 0; t < cpu->threads_count; t++) {
        struct cpu_thread *thread = &cpu->threads[t];
        thread->o = thread->down = span_of(panels_of(s->width), t, cpu->threads_count);
        thread->ff = units_of(panels_of(s->ff_width), UNIT_PANELS, t, cpu->threads_count);
        thread->router = span_of(panels_of(s->experts), t, cpu->threads_count);
        thread->expert_ff = units_of(panels_of(s->expert_width), UNIT_PANELS, t, cpu->threads_count);
        thread->head = units_of(cpu->head.panels, SAMPLE_UNIT / MATMUL_PANEL_ROWS, t, cpu->threads_count);
    }
}

struct pack_job {
    struct device_cpu *cpu;
    const struct model *model;
    const struct model_weights *from;
    device_progress_fn progress;
    void *progress_state;
    _Atomic size_t done_bytes;
    uint8_t *rows; /* room for a panel's rows of any matrix, in any type, for each thread */
    size_t rows_bytes;
};

/* Packs from the file's rows, or a panel at a time from rows made in `rows`. */
static void pack(struct pack_job *job, uint32_t thread_idx, const struct matrix *matrix, const struct tensor_view *view,
                 uint32_t panel_begin, uint32_t panel_end)
{
    uint32_t step = view->recipe ? 1 : panel_end - panel_begin;
    for (uint32_t p = panel_begin; p < panel_end; p += step) {
        uint32_t row_begin = p * MATMUL_PANEL_ROWS, row_end = (p + step) * MATMUL_PANEL_ROWS;
        if (row_end > view->rows) row_end = view->rows;
        matmul_pack(matrix, tensor_rows(view, row_begin, row_end, job->rows + thread_idx * job->rows_bytes), p,
                    p + step);
        model_forget_rows(job->model, view, row_begin, row_end);
    }
    size_t bytes = (panel_end - panel_begin) * matrix->panel_bytes;
    size_t done_bytes = atomic_fetch_add(&job->done_bytes, bytes) + bytes;
    if (thread_idx == 0 && job->progress) job->progress(job->progress_state, done_bytes, job->cpu->weights_bytes);
}

static uint32_t panel_of(const struct device_cpu *cpu, uint32_t head)
{
    return (head * cpu->spec.head_size + MATMUL_PANEL_ROWS - 1) / MATMUL_PANEL_ROWS;
}

static void pack_thread(void *state, uint32_t t)
{
    struct pack_job *job = state;
    struct device_cpu *cpu = job->cpu;
    const struct cpu_thread *own = &cpu->threads[t];
    const struct tensor_view *head = cpu->spec.tied_head ? &job->from->embed : &job->from->head;
    if (cpu->has_head) pack(job, t, &cpu->head, head, own->head.begin, own->head.end);
    if (cpu->has_head && !cpu->spec.tied_head)
        pack(job, t, &cpu->embed, &job->from->embed, own->head.begin, own->head.end);
    for (uint32_t l = 0; l < cpu->spec.layers; l++) {
        const struct cpu_layer *layer = &cpu->layers[l];
        const struct layer_weights *from = &job->from->layers[l];
        pack(job, t, &layer->q, &from->q, panel_of(cpu, own->q_heads.begin), panel_of(cpu, own->q_heads.end));
        pack(job, t, &layer->k, &from->k, panel_of(cpu, own->kv_heads.begin), panel_of(cpu, own->kv_heads.end));
        pack(job, t, &layer->v, &from->v, panel_of(cpu, own->kv_heads.begin), panel_of(cpu, own->kv_heads.end));
        pack(job, t, &layer->o, &from->o, own->o.begin, own->o.end);
        if (!layer->experts) {
            pack(job, t, &layer->gate, &from->gate, own->ff.begin, own->ff.end);
            pack(job, t, &layer->up, &from->up, own->ff.begin, own->ff.end);
            pack(job, t, &layer->down, &from->down, own->down.begin, own->down.end);
            continue;
        }
        pack(job, t, &layer->router, &from->router, own->router.begin, own->router.end);
        for (uint32_t x = cpu->experts_begin; x < cpu->experts_end; x++) {
            const struct cpu_expert *expert = &layer->experts[x];
            pack(job, t, &expert->gate, &from->experts[x].gate, own->expert_ff.begin, own->expert_ff.end);
            pack(job, t, &expert->up, &from->experts[x].up, own->expert_ff.begin, own->expert_ff.end);
            pack(job, t, &expert->down, &from->experts[x].down, own->down.begin, own->down.end);
        }
    }
}

static void unpack_vector(float *target, const struct tensor_view *view)
{
    if (target) dequantize_row(view->type, view->data, target, view->cols);
}

static void unpack_vectors(struct device_cpu *cpu, const struct model_weights *from)
{
    const struct model_spec *s = &cpu->spec;
    unpack_vector(cpu->final_norm, &from->final_norm);
    for (uint32_t e = 0; cpu->has_head && s->logit_scale != 1 && e < s->width; e++)
        cpu->final_norm[e] *= s->logit_scale;
    for (uint32_t l = 0; l < s->layers; l++) {
        struct cpu_layer *layer = &cpu->layers[l];
        const struct layer_weights *view = &from->layers[l];
        unpack_vector(layer->attn_norm, &view->attn_norm);
        unpack_vector(layer->ffn_norm, &view->ffn_norm);
        unpack_vector(layer->attn_post_norm, &view->attn_post_norm);
        unpack_vector(layer->ffn_post_norm, &view->ffn_post_norm);
        unpack_vector(layer->q_bias, &view->q_bias);
        unpack_vector(layer->k_bias, &view->k_bias);
        unpack_vector(layer->v_bias, &view->v_bias);
        unpack_vector(layer->q_norm, &view->q_norm);
        unpack_vector(layer->k_norm, &view->k_norm);
    }
    bool beyond = s->rope_switch && cpu->context_max > s->rope_switch;
    const struct tensor_view *factors = beyond ? &from->rope_factors_long : &from->rope_factors; /* F32 */
    rope_frequencies(cpu->frequencies[0], s->rope_size, (double)s->rope_main.base, (double)s->rope_main.scale,
                     factors->data);
    if (s->has_window_rope)
        rope_frequencies(cpu->frequencies[1], s->rope_size, (double)s->rope_window.base, (double)s->rope_window.scale,
                         NULL);
}

enum status device_cpu_load(struct device_cpu *cpu, const struct model *model, device_progress_fn progress,
                            void *progress_state, struct error *err)
{
    TRY(plan(cpu, &model->weights, err));
    struct space space = {NULL, 0};
    place(cpu, &space);
    cpu->weights_bytes = space.used_bytes;
    cpu->weights = mem_map(cpu->weights_bytes);
    if (!cpu->weights) return error_set(err, ST_NOMEM, "no memory for %zu bytes of weights", cpu->weights_bytes);
    space = (struct space){cpu->weights, 0};
    place(cpu, &space);
    divide(cpu);
    unpack_vectors(cpu, &model->weights);
    const struct model_spec *s = &cpu->spec;
    size_t widest = s->ff_width > s->heads * s->head_size ? s->ff_width : s->heads * s->head_size;
    if (s->width > widest) widest = s->width;
    if (s->expert_width > widest) widest = s->expert_width;
    struct pack_job job = {.cpu = cpu,
                           .model = model,
                           .from = &model->weights,
                           .progress = progress,
                           .progress_state = progress_state,
                           .rows_bytes = aligned(MATMUL_PANEL_ROWS * widest * sizeof(float))};
    job.rows = mem_alloc(cpu->threads_count, job.rows_bytes);
    if (!job.rows) return error_set(err, ST_NOMEM, "no memory to pack weights");
    team_run(cpu->team, pack_thread, &job);
    mem_free(job.rows);
    if (progress) progress(progress_state, cpu->weights_bytes, cpu->weights_bytes);
    return ST_OK;
}
