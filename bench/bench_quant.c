/* How fast rows of quantised matrices are made, one core.
 *
 *   bench_quant [--shapes 4096x4096,28672x8192] [--runs 10]
 *
 * Each format of a matrix (outputs x inputs) with random codes, made 16 rows at a time, as devices ask for them: the
 * best panel, and a whole pass as the sum of each panel's best of the runs, since other work on the machine only ever
 * takes away; in weights a second, with bytes written a second. Also the time that quant_view takes, which reads all
 * scales and zero points. */
#include "runtime/model/quant.h"

#include "kernels/dequantize.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/base/random.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 16, GROUP = 128 };

struct tensors {
    struct raw_tensor raw[4];
    const char *names[4];
    uint32_t count;
};

static const struct format {
    const char *name, *config;
    bool symmetric;
} formats[] = {
    {"awq", "\"quant_method\":\"awq\",\"bits\":4,\"group_size\":128", false},
    {"gptq", "\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":128", true},
    {"gptq-asym", "\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":128", false},
    {"gptq-order", "\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":128,\"desc_act\":true", true},
    {"gptq8", "\"quant_method\":\"gptq\",\"bits\":8,\"group_size\":128", true},
    {"packed",
     "\"quant_method\":\"compressed-tensors\",\"config_groups\":{\"g\":{\"targets\":[\"Linear\"],"
     "\"weights\":{\"num_bits\":4,\"group_size\":128}}}",
     true},
    {"int8",
     "\"quant_method\":\"compressed-tensors\",\"config_groups\":{\"g\":{\"targets\":[\"Linear\"],"
     "\"weights\":{\"num_bits\":8,\"group_size\":-1}}}",
     true},
    {"fp8", "\"quant_method\":\"fp8\",\"weight_block_size\":[128,128]", true},
};

static uint64_t now_ns(void)
{
    return clock_now_ns(clock_system());
}

static bool find(void *state, const char *name, struct raw_tensor *tensor)
{
    const struct tensors *tensors = state;
    for (uint32_t i = 0; i < tensors->count; i++)
        if (strcmp(name, tensors->names[i]) == 0) {
            *tensor = tensors->raw[i];
            return true;
        }
    return false;
}

static void *add(struct tensors *tensors, const char *name, const char *dtype, uint64_t d0, uint64_t d1, size_t item)
{
    size_t bytes = d0 * (d1 ? d1 : 1) * item;
    void *data = mem_alloc(bytes, 1);
    if (!data) exit(1);
    tensors->names[tensors->count] = name;
    tensors->raw[tensors->count++] = (struct raw_tensor){
        .dtype = dtype, .dims_count = d1 ? 2 : 1, .dims = {d0, d1}, .data = data, .size_bytes = bytes};
    return data;
}

static void fill(void *data, size_t bytes)
{
    uint64_t seed = 7;
    for (size_t i = 0; i + 8 <= bytes; i += 8) {
        uint64_t u = random_next(&seed) & 0x7777777777777777; /* no NaN in E4M3 */
        memcpy((char *)data + i, &u, 8);
    }
}

static void fill_scales(uint16_t *scales, size_t count, bool bf16)
{
    uint64_t seed = 9;
    for (size_t i = 0; i < count; i++) {
        float x = 0.001f + (float)(random_next(&seed) >> 40) * 0x1p-30f;
        scales[i] = bf16 ? f32_to_bf16(x) : f32_to_f16(x);
    }
}

static void make(const struct format *format, struct tensors *tensors, uint32_t N, uint32_t K)
{
    bool awq = strcmp(format->name, "awq") == 0, gptq8 = strcmp(format->name, "gptq8") == 0;
    uint32_t per_word = gptq8 ? 4 : 8, groups = K / GROUP;
    *tensors = (struct tensors){.count = 0};
    if (awq || strncmp(format->name, "gptq", 4) == 0) {
        fill(add(tensors, "m.qweight", "I32", awq ? K : K / per_word, awq ? N / 8 : N, 4),
             (size_t)N * K / per_word * 4);
        uint32_t *zeros = add(tensors, "m.qzeros", "I32", groups, N / per_word, 4);
        size_t words = (size_t)groups * N / per_word;
        fill(zeros, words * 4);
        for (size_t i = 0; format->symmetric && i < words; i++) zeros[i] = gptq8 ? 0x7f7f7f7f : 0x77777777;
        fill_scales(add(tensors, "m.scales", "F16", groups, N, 2), (size_t)groups * N, false);
        if (strcmp(format->name, "gptq-order") != 0) return;
        uint32_t *order = add(tensors, "m.g_idx", "I32", K, 0, 4);
        for (uint32_t k = 0; k < K; k++) order[k] = k * 7 % groups;
    } else if (strcmp(format->name, "packed") == 0) {
        fill(add(tensors, "m.weight_packed", "I32", N, K / 8, 4), (size_t)N * K / 2);
        fill_scales(add(tensors, "m.weight_scale", "BF16", N, groups, 2), (size_t)groups * N, true);
        int64_t *shape = add(tensors, "m.weight_shape", "I64", 2, 0, 8);
        shape[0] = N;
        shape[1] = K;
    } else if (strcmp(format->name, "int8") == 0) {
        fill(add(tensors, "m.weight", "I8", N, K, 1), (size_t)N * K);
        fill_scales(add(tensors, "m.weight_scale", "BF16", N, 1, 2), N, true);
    } else {
        fill(add(tensors, "m.weight", "F8_E4M3", N, K, 1), (size_t)N * K);
        fill_scales(add(tensors, "m.weight_scale_inv", "BF16", (N + 127) / 128, K / 128, 2), (N + 127) / 128 * K / 128,
                    true);
    }
}

static void run(const struct format *format, uint32_t N, uint32_t K, unsigned runs)
{
    struct tensors tensors;
    struct quant_scheme scheme;
    struct tensor_view view;
    struct arena arena;
    struct json *json = NULL;
    struct error err = {""};
    char text[512];
    int length = snprintf(text, sizeof text, "{\"quantization_config\":{%s}}", format->config);
    arena_init(&arena, 0);
    make(format, &tensors, N, K);
    if (json_read(text, (size_t)length, &json, &err) != ST_OK || quant_scheme_read(json, &scheme, &err) != ST_OK ||
        quant_view(&scheme, find, &tensors, &arena, "m", N, K, &view, &err) != ST_OK) {
        fprintf(stderr, "%s: %s\n", format->name, err.message);
        exit(1);
    }
    size_t row_bytes = tensor_row_bytes(tensor_type_info(view.type), K);
    void *rows = mem_alloc(ROWS, row_bytes);
    if (!rows) exit(1);
    uint64_t open_ns = UINT64_MAX, panel_ns = UINT64_MAX, pass_ns = 0,
             *panels_ns = mem_alloc(N / ROWS, sizeof *panels_ns);
    if (!panels_ns) exit(1);
    for (unsigned i = 0; i < runs; i++) {
        uint64_t begin = now_ns();
        if (quant_view(&scheme, find, &tensors, &arena, "m", N, K, &view, &err) != ST_OK) exit(1);
        uint64_t opened = now_ns() - begin;
        if (opened < open_ns) open_ns = opened;
        for (uint32_t row = 0; row < N; row += ROWS) {
            begin = now_ns();
            tensor_rows(&view, row, row + ROWS, rows);
            uint64_t panel = now_ns() - begin, *best = &panels_ns[row / ROWS];
            if (!*best || panel < *best) *best = panel;
        }
    }
    for (uint32_t p = 0; p < N / ROWS; p++) {
        if (panels_ns[p] < panel_ns) panel_ns = panels_ns[p];
        pass_ns += panels_ns[p];
    }
    double weights = (double)N * K, bytes = (double)N * (double)row_bytes;
    printf("%-11s %ux%u -> %-4s  best panel %5.0f Mweights/s %5.0f MB/s, whole pass %5.0f Mweights/s %5.0f MB/s, open "
           "%.1f ms\n",
           format->name, N, K, tensor_type_info(view.type)->name, (double)ROWS * K / (double)panel_ns * 1e3,
           (double)ROWS * (double)row_bytes / (double)panel_ns * 1e3, weights / (double)pass_ns * 1e3,
           bytes / (double)pass_ns * 1e3, (double)open_ns * 1e-6);
    for (uint32_t i = 0; i < tensors.count; i++) mem_free((void *)(uintptr_t)tensors.raw[i].data);
    mem_free(rows);
    mem_free(panels_ns);
    json_release(json);
    arena_free(&arena);
}

int main(int argc, char **argv)
{
    const char *shapes = "4096x4096,2048x28672";
    unsigned runs = 10;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--shapes") == 0) shapes = argv[i + 1];
        if (strcmp(argv[i], "--runs") == 0) runs = (unsigned)strtoul(argv[i + 1], NULL, 10);
    }
    while (shapes) {
        unsigned N, K;
        if (sscanf(shapes, "%ux%u", &N, &K) != 2 || N % ROWS || K % GROUP) return 2;
        for (size_t f = 0; f < sizeof formats / sizeof *formats; f++) run(&formats[f], N, K, runs);
        shapes = strchr(shapes, ',');
        if (shapes) shapes++;
    }
    return 0;
}
