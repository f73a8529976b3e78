/* A model behind a device, for tests; see real_model.h. */
#include "tests/exact/real_model.h"

#include "runtime/base/mem.h"
#include "runtime/device/device_cpu_parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { CHUNK = 256 };

static void require(bool condition, const char *what, const struct error *err)
{
    if (condition) return;
    fprintf(stderr, "%s: %s\n", what, err ? err->message : "failed");
    exit(1);
}

static const char *path_of(const char *variable, const char *fallback)
{
    const char *path = getenv(variable);
    if (!path || !*path) path = fallback;
    if (access(path, R_OK) != 0) {
        printf("skipped: no model at %s (set %s, or let tests/run.sh fetch it)\n", path, variable);
        exit(77);
    }
    return path;
}

const char *real_model_path(void)
{
    return path_of("MILLRACE_TEST_MODEL", REPOSITORY_DIR "/models/SmolLM2-135M-Instruct.Q4_1.gguf");
}

const char *real_model_second_path(void)
{
    return path_of("MILLRACE_TEST_MODEL2", REPOSITORY_DIR "/models/gemma-3-270m-q4_k_m.gguf");
}

static void make_batch(struct real_model *real)
{
    require(batch_create(CHUNK, 1, CHUNK, &real->batch) == ST_OK, "batch_create", NULL);
    require(batch_result_create(CHUNK, &real->result) == ST_OK, "batch_result_create", NULL);
    real->table = mem_alloc(real->device->info.kv_blocks, sizeof *real->table);
    require(real->table != NULL, "memory", NULL);
    for (uint32_t i = 0; i < real->device->info.kv_blocks; i++) real->table[i] = real->device->info.kv_blocks - 1 - i;
}

static void open_on_cpu(struct real_model *real, const char *path, enum numerics numerics, enum cpu_path cpu_path,
                        bool kv_int8, uint32_t context_max, void (*change)(struct model *model))
{
    struct error err = {""};
    *real = (struct real_model){0};
    require(model_open(path, &real->model, &err) == ST_OK, "model_open", &err);
    if (change) change(real->model);
    struct device_config config = {.path = cpu_path,
                                   .numerics = numerics,
                                   .kv_int8 = kv_int8,
                                   .threads = 2,
                                   .tokens_max = CHUNK,
                                   .seqs_max = 1,
                                   .rows_max = CHUNK,
                                   .context_max = context_max};
    require(device_cpu_create(real->model, &config, NULL, NULL, &real->device, &err) == ST_OK, "device_cpu_create",
            &err);
    make_batch(real);
}

void real_model_open(struct real_model *real, const char *path, enum numerics numerics, enum cpu_path cpu_path,
                     bool kv_int8, uint32_t context_max)
{
    open_on_cpu(real, path, numerics, cpu_path, kv_int8, context_max, NULL);
}

void real_model_open_changed(struct real_model *real, const char *path, uint32_t context_max,
                             void (*change)(struct model *model))
{
    open_on_cpu(real, path, NUMERICS_EXACT, cpu_path_best(), false, context_max, change);
}

void real_model_open_ranks(struct real_model *real, const char *path, enum numerics numerics, uint32_t ranks,
                           uint32_t stages, uint32_t context_max)
{
    struct error err = {""};
    *real = (struct real_model){.ranks = mem_alloc(1, sizeof *real->ranks)};
    require(real->ranks != NULL, "memory", NULL);
    require(model_open(path, &real->model, &err) == ST_OK, "model_open", &err);
    struct device_ranks_config config = {.device = {.path = cpu_path_best(),
                                                    .numerics = numerics,
                                                    .threads = 1,
                                                    .tokens_max = CHUNK,
                                                    .seqs_max = 1,
                                                    .rows_max = CHUNK,
                                                    .context_max = context_max},
                                         .ranks = ranks,
                                         .stages = stages,
                                         .model_path = path,
                                         .start = rank_threads_start,
                                         .start_state = real->ranks,
                                         .silent_ms = 60000};
    require(device_ranks_create(real->model, &config, NULL, NULL, &real->device, &err) == ST_OK, "device_ranks_create",
            &err);
    make_batch(real);
}

void real_model_close(struct real_model *real)
{
    mem_free(real->table);
    batch_result_destroy(real->result);
    batch_destroy(real->batch);
    device_destroy(real->device);
    if (real->ranks) rank_threads_join(real->ranks);
    mem_free(real->ranks);
    model_close(real->model);
}

void real_model_run(struct real_model *real, const uint32_t *tokens, uint32_t count, uint32_t position,
                    uint32_t first_row, uint32_t rows_count, const struct sampling_params *params)
{
    struct batch *batch = real->batch;
    require(count <= CHUNK && first_row <= count && rows_count <= count - first_row, "test's own chunk", NULL);
    batch->tokens_count = count;
    batch->seqs_count = 1;
    batch->rows_count = rows_count;
    batch->q_start[0] = 0;
    batch->q_start[1] = count;
    batch->kv_len[0] = position + count;
    batch->block_table[0] = real->table;
    for (uint32_t i = 0; i < count; i++) {
        batch->tokens[i] = tokens[i];
        batch->positions[i] = position + i;
        batch->seq_of_token[i] = 0;
    }
    for (uint32_t r = 0; r < rows_count; r++) {
        uint32_t token = first_row + r;
        batch->rows[r] = (struct batch_row){.token = token, .params = params, .position = position + token + 1};
    }
    require(device_step(real->device, batch, real->result) == ST_OK, "device_step", NULL);
    for (uint32_t r = 0; r < rows_count; r++) require(real->result->rows[r].flags == 0, "row is flagged", NULL);
}

const float *real_model_logits(const struct real_model *real, uint32_t row_idx)
{
    const struct device_cpu *cpu = (const struct device_cpu *)(const void *)real->device;
    require(row_idx < LOGIT_ROWS && real->batch->rows_count <= LOGIT_ROWS, "test's own rows", NULL);
    return cpu->logits + row_idx * cpu->logits_stride;
}

char *real_file_read(const char *path, size_t *length)
{
    FILE *file = fopen(path, "rb");
    if (!file) return NULL;
    char *text = NULL;
    if (fseek(file, 0, SEEK_END) == 0) {
        long size_bytes = ftell(file);
        rewind(file);
        text = size_bytes < 0 ? NULL : mem_alloc((size_t)size_bytes + 1, 1);
        if (text && fread(text, 1, (size_t)size_bytes, file) != (size_t)size_bytes) {
            mem_free(text);
            text = NULL;
        }
        if (text) *length = (size_t)size_bytes;
    }
    fclose(file);
    return text;
}
