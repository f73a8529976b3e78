/* Paged attention against its meaning in double: shapes, odd lengths, mixtures of prefill and decode, windows, both
 * forms of the cache, cut groups; bits that do not depend on company; what no row sees is NaN here and must not matter.
 */
#include "tests/unit/cuda/device_memory.h"

#include "kernels/cuda_ops.h"
#include "runtime/device/cuda/attention_plan.h"
#include "tests/emulator/counters.h"

enum { SEQS_MAX = 24, LAYERS = 2, LAYER = 1 };

struct seq {
    uint32_t tokens, kv_len; /* of the step; with them */
};

struct form {
    uint32_t H, KH, D, window, grid;
    bool fp8;
    float scale;
    bool cancelling; /* V is 2^20 in the first chunk, -2^20 in the second, 1/8 from then on */
};

/* A cache, the queries of a step, and what the kernel made of them. */
struct scene {
    struct form f;
    struct seq seqs[SEQS_MAX];
    uint32_t seqs_count, tokens, blocks, entries, kv_max;
    uint32_t q_start[SEQS_MAX + 1], table_start[SEQS_MAX + 1], kv_len[SEQS_MAX];
    uint32_t *table;
    uint64_t keys[SEQS_MAX]; /* content of each sequence follows from its key alone */
    uint8_t *cache;
    size_t cache_bytes;
    uint16_t *qkv, *out;
    uint32_t items_count;
    struct attention_item *items;
    bool counted; /* accesses of the cache, by the emulator */
};

static double content(uint64_t key, uint64_t what, uint64_t position, uint64_t at)
{
    uint64_t seed = key * 0x100000001b3u ^ what << 60 ^ position << 24 ^ at;
    (void)random_bits(&seed);
    return random_within(&seed, -1, 1);
}

/* K (value 0) or V (1) of a position as the cache holds it: a BF16, or a code and a scale. */
static uint16_t bf16_at(const struct scene *s, uint32_t seq, uint32_t value, uint32_t position, uint32_t head,
                        uint32_t d)
{
    if (s->f.cancelling && value)
        return bf16_of(position < CUDA_ATTENTION_CHUNK       ? 0x1p20
                       : position < 2 * CUDA_ATTENTION_CHUNK ? -0x1p20
                                                             : 0.125);
    return bf16_of(content(s->keys[seq], value, position, (uint64_t)head * 1024 + d));
}
static uint8_t code_at(const struct scene *s, uint32_t seq, uint32_t value, uint32_t position, uint32_t head,
                       uint32_t d)
{
    double wanted = content(s->keys[seq], value, position, (uint64_t)head * 1024 + d);
    uint8_t code = (uint8_t)(fabs(wanted) * 120); /* any code but NaN */
    return (uint8_t)(code | (wanted < 0 ? 0x80 : 0));
}
static float scale_at(const struct scene *s, uint32_t seq, uint32_t value, uint32_t position, uint32_t head)
{
    return (float)(0.002 + 0.001 * content(s->keys[seq], value + 2, position, head));
}
static double kv_value(const struct scene *s, uint32_t seq, uint32_t value, uint32_t position, uint32_t head,
                       uint32_t d)
{
    if (!s->f.fp8) return bf16_value(bf16_at(s, seq, value, position, head, d));
    return e4m3_value(code_at(s, seq, value, position, head, d)) * (double)scale_at(s, seq, value, position, head);
}
static uint16_t query_at(const struct scene *s, uint32_t seq, uint32_t position, uint32_t head, uint32_t d)
{
    return bf16_of(2 * content(s->keys[seq], 5, position, (uint64_t)head * 1024 + d));
}

static void put_position(struct scene *s, uint32_t seq, uint32_t position)
{
    const struct form *f = &s->f;
    const uint32_t block = s->table[s->table_start[seq] + position / 16], slot = position % 16;
    uint8_t *layer = s->cache + LAYER * cuda_kv_layer_bytes(s->blocks, f->KH, f->D, f->fp8);
    for (uint32_t head = 0; head < f->KH; head++) {
        uint8_t *piece = layer + cuda_kv_piece_at(block, head, f->KH, f->D, f->fp8);
        for (uint32_t value = 0; value < 2; value++) {
            const size_t row = (value * 16 + slot) * (size_t)f->D;
            for (uint32_t d = 0; d < f->D; d++) {
                if (f->fp8) {
                    piece[row + d] = code_at(s, seq, value, position, head, d);
                } else {
                    const uint16_t bits = bf16_at(s, seq, value, position, head, d);
                    memcpy(piece + 2 * (row + d), &bits, 2);
                }
            }
            if (f->fp8) {
                const float scale = scale_at(s, seq, value, position, head);
                memcpy(piece + (size_t)32 * f->D + 4 * (value * 16 + slot), &scale, 4);
            }
        }
    }
}

/* Blocks of all sequences are shuffled; what no sequence covers is 0xff: NaN in BF16, E4M3 and f32. Keys follow from
 * `first_key` and the index. */
static void scene_make(struct scene *s, const struct form *f, const struct seq *seqs, uint32_t count,
                       const uint64_t *keys)
{
    memset(s, 0, sizeof *s);
    s->f = *f;
    s->seqs_count = count;
    for (uint32_t i = 0; i < count; i++) {
        s->seqs[i] = seqs[i];
        s->keys[i] = keys ? keys[i] : 1000 + i;
        s->kv_len[i] = seqs[i].kv_len;
        s->q_start[i + 1] = s->q_start[i] + seqs[i].tokens;
        s->table_start[i + 1] = s->table_start[i] + (seqs[i].kv_len + 15) / 16;
        if (seqs[i].kv_len > s->kv_max) s->kv_max = seqs[i].kv_len;
    }
    s->tokens = s->q_start[count];
    s->entries = s->table_start[count];
    s->blocks = s->entries + 3;
    s->table = calloc(s->entries + 1, sizeof *s->table);
    uint32_t *ids = calloc(s->blocks, sizeof *ids);
    uint64_t seed = 7;
    for (uint32_t i = 0; i < s->blocks; i++) ids[i] = i;
    for (uint32_t i = s->blocks - 1; i; i--) {
        const uint32_t j = (uint32_t)(random_bits(&seed) % (i + 1)), id = ids[i];
        ids[i] = ids[j], ids[j] = id;
    }
    memcpy(s->table, ids, s->entries * sizeof *ids);
    free(ids);
    s->cache_bytes = LAYERS * cuda_kv_layer_bytes(s->blocks, f->KH, f->D, f->fp8);
    s->cache = malloc(s->cache_bytes);
    memset(s->cache, 0xff, s->cache_bytes);
    const size_t stride = (size_t)(f->H + 2 * f->KH) * f->D;
    s->qkv = malloc(s->tokens * stride * 2 + 2);
    s->out = malloc(s->tokens * (size_t)f->H * f->D * 2 + 2);
    memset(s->qkv, 0xff, s->tokens * stride * 2);
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t base = seqs[i].kv_len - seqs[i].tokens;
        const uint32_t seen = f->window && base >= f->window ? base + 1 - f->window : 0; /* the rest stays NaN */
        for (uint32_t p = seen; p < seqs[i].kv_len; p++) put_position(s, i, p);
        for (uint32_t n = 0; n < seqs[i].tokens; n++) {
            for (uint32_t h = 0; h < f->H; h++) {
                for (uint32_t d = 0; d < f->D; d++)
                    s->qkv[(s->q_start[i] + n) * stride + h * f->D + d] = query_at(s, i, base + n, h, d);
            }
        }
    }
}

static void scene_free(struct scene *s)
{
    free(s->table), free(s->cache), free(s->qkv), free(s->out), free(s->items);
}

/* One scratch for all launches of the program: tickets and partials are what the launch before left, of another step.
 * Where the tickets end depends on grid and KV heads, which never change on a device: then they begin anew. */
static void *common_scratch(const struct form *f, size_t bytes)
{
    enum { SCRATCH_BYTES = 48 << 20 };
    static void *scratch;
    static uint32_t grid, KH;
    assert_true(bytes <= SCRATCH_BYTES);
    if (!scratch) scratch = device_take(SCRATCH_BYTES);
    if (grid != f->grid || KH != f->KH) device_fill(scratch, 0, cuda_attention_ticket_bytes(f->grid, f->KH));
    grid = f->grid, KH = f->KH;
    return scratch;
}

/* Twice, with outputs poisoned. */
static void scene_run(struct scene *s)
{
    const struct form *f = &s->f;
    const struct attention_plan_config config = {s->tokens ? s->tokens : 1,
                                                 s->seqs_count ? s->seqs_count : 1,
                                                 s->kv_max ? s->kv_max : 1,
                                                 f->H,
                                                 f->KH,
                                                 f->D,
                                                 f->grid};
    struct attention_plan *plan = NULL;
    assert_int_equal(attention_plan_create(&config, &plan), ST_OK);
    const uint32_t items_max = attention_plan_items_max(&config, s->tokens, s->seqs_count), which = f->window ? 1 : 0;
    s->items = calloc(items_max, sizeof *s->items);
    struct cuda_step_header header = {.tokens = s->tokens, .seqs = s->seqs_count};
    s->items_count = attention_plan_make(plan, s->seqs_count, s->q_start, s->kv_len, f->window, s->items);
    assert_true(s->items_count <= items_max);
    header.items[which] = s->items_count;
    header.items[!which] = 12345678;
    attention_plan_destroy(plan);

    const size_t scratch_bytes =
        cuda_attention_scratch_bytes(config.tokens_max, config.context_max, f->H, f->KH, f->D, f->grid);
    const size_t out_bytes = s->tokens * (size_t)f->H * f->D * 2;
    void *cache = device_copy(s->cache, s->cache_bytes), *scratch = common_scratch(f, scratch_bytes);
    void *out = device_take(out_bytes);
    const struct cuda_step_header *device_header = device_copy(&header, sizeof header);
    struct cuda_step step = {.header = device_header,
                             .q_start = device_copy(s->q_start, sizeof s->q_start),
                             .kv_len = device_copy(s->kv_len, sizeof s->kv_len),
                             .table_start = device_copy(s->table_start, sizeof s->table_start),
                             .table = device_copy(s->table, s->entries * sizeof *s->table)};
    step.items[which] = device_copy(s->items, s->items_count * sizeof *s->items);
    const size_t stride = (size_t)(f->H + 2 * f->KH) * f->D;
    void *qkv = device_copy(s->qkv, s->tokens * stride * 2);
    const struct cuda_attention attention = {
        .out = out,
        .qkv = qkv,
        .kv = {cache, LAYERS, s->blocks, f->KH, f->D, f->fp8},
        .H = f->H,
        .KH = f->KH,
        .D = f->D,
        .layer = LAYER,
        .scale = f->scale,
        .window = f->window,
        .scratch = scratch,
        .partials = cuda_attention_partials(config.tokens_max, config.context_max, f->H, f->KH, f->D)};
    if (s->counted) {
        counters_start();
        counters_watch("cache", cache, s->cache_bytes);
    }
    for (int launch = 0; launch < 2; launch++) {
        device_poison(out, out_bytes);
        cuda_ok(cuda_attention(&attention, &step, f->grid, device_stream()));
        device_wait();
    }
    if (s->counted) counters_stop();
    device_read(s->out, out, out_bytes);
    uint32_t *tickets = malloc(cuda_attention_ticket_bytes(f->grid, f->KH));
    device_read(tickets, scratch, cuda_attention_ticket_bytes(f->grid, f->KH));
    for (size_t i = 0; i < cuda_attention_ticket_bytes(f->grid, f->KH) / 4; i++) assert_int_equal(tickets[i], 0);
    free(tickets);
    const void *all[] = {
        cache, out, step.header, step.q_start, step.kv_len, step.table_start, step.table, step.items[which], qkv};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) cuda_ok(cudaFree((void *)(uintptr_t)all[i]));
}

/* One row in double. The error that p in BF16 brings shrinks with the number of positions that count. */
static void expect_row(const struct scene *s, uint32_t seq, uint32_t token, uint32_t head)
{
    const struct form *f = &s->f;
    const uint32_t position = s->kv_len[seq] - s->seqs[seq].tokens + token, kv_head = head / (f->H / f->KH);
    const uint32_t first = f->window && position >= f->window ? position + 1 - f->window : 0;
    const uint32_t n = position + 1 - first;
    double *p = malloc(n * sizeof *p), peak = -INFINITY, sum = 0, squares = 0;
    for (uint32_t i = 0; i < n; i++) {
        double dot = 0;
        for (uint32_t d = 0; d < f->D; d++)
            dot += bf16_value(query_at(s, seq, position, head, d)) * kv_value(s, seq, 0, first + i, kv_head, d);
        p[i] = dot * (double)f->scale;
        peak = fmax(peak, p[i]);
    }
    for (uint32_t i = 0; i < n; i++) {
        p[i] = exp(p[i] - peak);
        sum += p[i];
        squares += p[i] * p[i];
    }
    const double slack = 0x1p-7 * sqrt(squares) / sum + 1e-5;
    for (uint32_t d = 0; d < f->D; d++) {
        double wanted = 0, most = 0;
        for (uint32_t i = 0; i < n; i++) {
            const double v = kv_value(s, seq, 1, first + i, kv_head, d);
            wanted += p[i] / sum * v;
            most = fmax(most, fabs(v));
        }
        expect_bf16(s->out[((s->q_start[seq] + token) * (size_t)f->H + head) * f->D + d], wanted, slack * most,
                    "attention", seq * 1000000 + token * 1000 + head, d);
    }
    free(p);
}

/* Every row of short steps, and of long ones the first, the last and some between. */
static void expect_scene(const struct scene *s, uint32_t rows_max)
{
    for (uint32_t seq = 0; seq < s->seqs_count; seq++) {
        const uint32_t rows = s->seqs[seq].tokens * s->f.H, step = rows <= rows_max ? 1 : rows / rows_max | 1;
        for (uint32_t r = 0; r < rows; r += step) expect_row(s, seq, r / s->f.H, r % s->f.H);
        if (rows) expect_row(s, seq, (rows - 1) / s->f.H, (rows - 1) % s->f.H);
    }
}

static void check(const struct form *f, const struct seq *seqs, uint32_t count, uint32_t rows_max)
{
    struct scene s;
    scene_make(&s, f, seqs, count, NULL);
    scene_run(&s);
    expect_scene(&s, rows_max);
    scene_free(&s);
}

static void test_shapes(void **state)
{
    (void)state;
    static const struct seq seqs[] = {{1, 1}, {1, 37}, {5, 21}, {23, 23}, {1, 64}, {1, 65}};
    static const struct form forms[] = {
        {.H = 9, .KH = 3, .D = 64},  {.H = 4, .KH = 1, .D = 128}, {.H = 6, .KH = 6, .D = 96},
        {.H = 4, .KH = 2, .D = 256}, {.H = 40, .KH = 2, .D = 64}, {.H = 71, .KH = 1, .D = 64},
    };
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        for (int fp8 = 0; fp8 < 2; fp8++) {
            struct form f = forms[i];
            f.fp8 = fp8;
            f.grid = 7;
            f.scale = 1 / sqrtf((float)f.D);
            check(&f, seqs, sizeof seqs / sizeof *seqs, 40);
        }
    }
}

/* Rows of a step cut in many ways: few and many workers, contexts that end around tiles and chunks. */
static void test_chunks(void **state)
{
    (void)state;
    static const struct seq seqs[] = {{1, 511}, {1, 512}, {1, 513}, {7, 1030}, {30, 540}, {1, 1}, {0, 20}, {2, 1537}};
    for (uint32_t grid = 2; grid <= 40; grid += 19) {
        for (int fp8 = 0; fp8 < 2; fp8++) {
            if (fewer_cases() && grid != (fp8 ? 2 : 21)) continue;
            const struct form f = {.H = 6, .KH = 2, .D = 64, .grid = grid, .fp8 = fp8, .scale = 0.125f};
            check(&f, seqs, sizeof seqs / sizeof *seqs, 12);
        }
    }
    const struct form wide = {.H = 4, .KH = 1, .D = 128, .grid = 3, .scale = 0.09f};
    check(&wide, seqs, sizeof seqs / sizeof *seqs, 6);
    const struct form widest = {.H = 2, .KH = 1, .D = 256, .grid = 2, .scale = 0.06f};
    check(&widest, seqs, sizeof seqs / sizeof *seqs, 4);
}

static void test_windows(void **state)
{
    (void)state;
    static const struct seq seqs[] = {{1, 700}, {1, 30}, {40, 620}, {9, 530}, {3, 3}, {1, 1100}};
    static const uint32_t windows[] = {1, 2, 15, 16, 17, 64, 100, 512, 513, 600, 5000};
    const size_t stride = fewer_cases() ? 4 : 1;
    for (size_t i = 0; i < sizeof windows / sizeof *windows; i += stride) {
        const struct form f = {
            .H = 3, .KH = 1, .D = 64, .window = windows[i], .grid = 5, .fp8 = i % 2, .scale = 0.125f};
        check(&f, seqs, sizeof seqs / sizeof *seqs, 20);
    }
}

static void test_nothing(void **state)
{
    (void)state;
    const struct form f = {.H = 3, .KH = 1, .D = 64, .grid = 2, .scale = 1};
    check(&f, NULL, 0, 1);
    const struct seq idle[] = {{0, 5}, {0, 0}};
    check(&f, idle, 2, 1);
}

static void test_shapes_without_a_kernel_are_refused(void **state)
{
    (void)state;
    struct cuda_step step = {0};
    struct cuda_attention a = {.H = 4, .KH = 2, .D = 80};
    assert_int_equal(cuda_attention(&a, &step, 4, device_stream()), cudaErrorInvalidValue);
    a.D = 64, a.H = 5;
    assert_int_equal(cuda_attention(&a, &step, 4, device_stream()), cudaErrorInvalidValue);
    a.H = 4;
    assert_int_equal(cuda_attention(&a, &step, 1, device_stream()), cudaErrorInvalidValue);
}

/* The outputs of the last `tokens` tokens of sequence `seq`. */
static void take_rows(const struct scene *s, uint32_t seq, uint32_t tokens, uint16_t *rows)
{
    const size_t row = (size_t)s->f.H * s->f.D;
    memcpy(rows, s->out + (s->q_start[seq + 1] - tokens) * row, tokens * row * 2);
}

/* The last tokens of one sequence alone, as a prompt, in pieces, in company, by other grids: the same bits. */
static void bits_of(struct form f, uint32_t kv_len)
{
    enum { LAST = 3 };
    const size_t bytes = (size_t)LAST * f.H * f.D * 2;
    static const uint64_t keys[] = {77, 5, 6, 7, 8};
    const struct seq ways[][5] = {
        {{LAST, kv_len}},
        {{kv_len, kv_len}},
        {{37, kv_len}, {1, 900}, {64, 64}},
        {{17, kv_len}, {1, 1}, {1, 2000}, {2, 700}, {33, 50}},
        {{kv_len / 2, kv_len}, {1, 3}},
    };
    uint16_t *first = malloc(bytes), *rows = malloc(bytes), *one = malloc(bytes);
    for (size_t way = 0; way < sizeof ways / sizeof *ways; way++) {
        uint32_t count = 0;
        while (count < 5 && ways[way][count].kv_len) count++;
        f.grid = way % 2 ? f.KH * 11 : f.KH;
        struct scene s;
        scene_make(&s, &f, ways[way], count, keys);
        scene_run(&s);
        take_rows(&s, 0, LAST, way ? rows : first);
        scene_free(&s);
        if (way && memcmp(rows, first, bytes) != 0) fail_msg("kv_len %u, way %zu: other bits", kv_len, way);
    }
    for (uint32_t t = 0; t < LAST; t++) { /* token by token */
        const struct seq seq = {1, kv_len - LAST + 1 + t};
        struct scene s;
        f.grid = f.KH * 4;
        scene_make(&s, &f, &seq, 1, keys);
        scene_run(&s);
        take_rows(&s, 0, 1, one);
        scene_free(&s);
        assert_memory_equal(one, first + (size_t)t * f.H * f.D, bytes / LAST);
    }
    free(first), free(rows), free(one);
}

static void test_bits_do_not_depend_on_company(void **state)
{
    (void)state;
    static const struct form forms[] = {
        {.H = 6, .KH = 2, .D = 64, .scale = 0.125f}, {.H = 3, .KH = 1, .D = 64, .scale = 0.125f},
        {.H = 2, .KH = 1, .D = 128, .scale = 0.09f}, {.H = 2, .KH = 1, .D = 96, .scale = 0.1f},
        {.H = 2, .KH = 1, .D = 256, .scale = 0.06f}, {.H = 3, .KH = 1, .D = 64, .window = 530, .scale = 0.125f},
    };
    static const uint32_t lengths[] = {70, 1100, 530, 90, 90, 1100};
    for (uint32_t fp8 = 0; fp8 < 2; fp8++) {
        for (uint32_t i = 0; i < sizeof forms / sizeof *forms; i++) {
            if (fewer_cases() && i != 2 * fp8) continue;
            struct form f = forms[i];
            f.fp8 = fp8;
            bits_of(f, lengths[i]);
        }
    }
}

/* With equal weights the first two chunks cancel exactly; in any other order of merging the third is lost beside one of
 * them. Few and many rows; whole groups, cut ones. */
static void test_chunks_merge_in_rising_order(void **state)
{
    (void)state;
    const struct seq seq = {1, 2 * CUDA_ATTENTION_CHUNK + 76};
    const uint16_t wanted = bf16_of(76 * 0.125 / (2 * CUDA_ATTENTION_CHUNK + 76));
    for (uint32_t H = 3; H <= 20; H += 17) {
        for (uint32_t grid = 1; grid <= 4; grid += 3) {
            const struct form f = {.H = H, .KH = 1, .D = 64, .grid = grid, .cancelling = true};
            struct scene s;
            scene_make(&s, &f, &seq, 1, NULL);
            scene_run(&s);
            assert_int_equal(s.items_count, grid == 1 ? 1 : 3);
            for (uint32_t i = 0; i < H * f.D; i++) assert_int_equal(s.out[i], wanted);
            scene_free(&s);
        }
    }
}

/* Sectors of the cache that attention reads against those that hold what rows see. */
static void traffic_of(const struct form *f, const struct seq *seqs, uint32_t count, const char *name)
{
    struct scene s;
    struct range_counts range = {0};
    struct kernel_counts kernel = {0};
    scene_make(&s, f, seqs, count, NULL);
    s.counted = true;
    scene_run(&s);
    assert_true(counters_range("cache", &range) && counters_kernel("attention_kernel", &kernel));
    size_t ideal = 0;
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t G = f->H / f->KH, rows = seqs[i].tokens * G, base = seqs[i].kv_len - seqs[i].tokens;
        for (uint32_t row = 0; row < rows; row += CUDA_ATTENTION_ROWS) {
            const uint32_t left = rows - row, last = row + (left < 64 ? left : 64) - 1, position = base + row / G;
            const uint32_t first = f->window && position >= f->window ? position + 1 - f->window : 0;
            ideal += (size_t)(base + last / G + 1 - first) * f->KH * 2 * f->D * (f->fp8 ? 1 : 2);
            if (f->fp8) ideal += (size_t)(base + last / G + 1 - first) * f->KH * 8;
        }
    }
    const double ratio = (double)range.read_sectors * 32 / (double)(2 * ideal); /* two launches */
    print_message("%-28s KV %8zu bytes, ratio %.3f; shared memory %llu wavefronts, %llu by conflicts\n", name, ideal,
                  ratio, (unsigned long long)kernel.shared_wavefronts, (unsigned long long)kernel.shared_conflicts);
    assert_true(ratio >= 0.999 && ratio <= 1.05);
    assert_true(kernel.shared_conflicts * 50 <= kernel.shared_wavefronts);
    scene_free(&s);
}

static void test_each_byte_of_kv_is_read_once(void **state)
{
    (void)state;
    if (fewer_cases()) return; /* counts are the same */
    const struct seq decode[] = {{1, 700}, {1, 37}, {1, 1024}}, prefill[] = {{100, 400}};
    struct form f = {.H = 8, .KH = 2, .D = 128, .grid = 6, .scale = 0.09f};
    traffic_of(&f, decode, 3, "decode, BF16");
    traffic_of(&f, prefill, 1, "prefill, BF16");
    f.fp8 = true;
    traffic_of(&f, decode, 3, "decode, E4M3");
    traffic_of(&f, prefill, 1, "prefill, E4M3");
    f.D = 96, f.fp8 = false;
    traffic_of(&f, prefill, 1, "prefill, BF16, D 96");
    f.D = 64, f.window = 128;
    traffic_of(&f, decode, 2, "decode, BF16, window 128");
    f.D = 256, f.window = 0;
    traffic_of(&f, decode, 2, "decode, BF16, D 256");
}

/* Blocks whose bytes lie beyond 2^32 in the layer. */
static void test_far_blocks(void **state)
{
    (void)state;
    enum { H = 2, KH = 2, D = 128, FAR_BLOCKS = 280000, TOKENS = 20 };
    const size_t piece = cuda_kv_piece_bytes(D, false), layer = cuda_kv_layer_bytes(FAR_BLOCKS, KH, D, false);
    void *cache = NULL;
    assert_true((size_t)(FAR_BLOCKS - 2) * KH * piece > UINT32_MAX);
    cuda_ok(cudaMalloc(&cache, layer)); /* not touched but for two blocks */
    uint16_t *block = malloc(KH * piece);
    for (size_t i = 0; i < KH * piece / 2; i++) block[i] = bf16_of(i / (piece / 4) % 2 ? (i / (piece / 2) ? 3 : 5) : 0);
    const uint32_t ids[] = {FAR_BLOCKS - 1, FAR_BLOCKS - 2}, q_start[] = {0, 1}, kv_len[] = {TOKENS}, starts[] = {0, 2};
    for (int b = 0; b < 2; b++) device_write((uint8_t *)cache + ids[b] * KH * piece, block, KH * piece);
    const struct attention_item item = {.rows = 1, .pieces = 1, .chunk_end = 1, .group_end = 1};
    const struct cuda_step_header header = {.tokens = 1, .seqs = 1, .items = {1}};
    uint16_t qkv[(H + 2 * KH) * D], out[H * D];
    for (size_t i = 0; i < sizeof qkv / 2; i++) qkv[i] = bf16_of(1);
    const struct cuda_step step = {.header = device_copy(&header, sizeof header),
                                   .q_start = device_copy(q_start, sizeof q_start),
                                   .kv_len = device_copy(kv_len, sizeof kv_len),
                                   .table_start = device_copy(starts, sizeof starts),
                                   .table = device_copy(ids, sizeof ids),
                                   .items = {device_copy(&item, sizeof item)}};
    const struct cuda_attention attention = {.out = device_take(sizeof out),
                                             .qkv = device_copy(qkv, sizeof qkv),
                                             .kv = {cache, 1, FAR_BLOCKS, KH, D, false},
                                             .H = H,
                                             .KH = KH,
                                             .D = D,
                                             .scale = 1,
                                             .scratch = device_take(4096)};
    cuda_ok(cuda_attention(&attention, &step, KH, device_stream()));
    device_wait();
    device_read(out, attention.out, sizeof out);
    for (size_t i = 0; i < H * D; i++) assert_int_equal(out[i], bf16_of(i / D ? 3 : 5));
    free(block);
    cuda_ok(cudaFree(cache));
}

int main(void)
{
    setenv("CUSIM_DEVMEM_MB", "8192", 0); /* test_far_blocks; the pages are not touched */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_chunks),
        cmocka_unit_test(test_chunks_merge_in_rising_order),
        cmocka_unit_test(test_windows),
        cmocka_unit_test(test_nothing),
        cmocka_unit_test(test_shapes_without_a_kernel_are_refused),
        cmocka_unit_test(test_each_byte_of_kv_is_read_once),
        cmocka_unit_test(test_far_blocks),
        cmocka_unit_test(test_bits_do_not_depend_on_company),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
