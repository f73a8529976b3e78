/* millrace serve MODEL: the server. --dry-run prints the settings in force and what the model needs, and ends. */
#include "server/cmd.h"
#include "server/serve.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static int dry_run(const struct config *config)
{
    struct buf text;
    struct error err = {""};
    struct model *model;
    buf_init(&text, 0);
    config_print(config, COMMAND_SERVE, &text);
    enum status status = model_open(config->model, &model, &err);
    if (status == ST_OK) {
        enum numerics numerics = strcmp(config->numerics, "exact") == 0 ? NUMERICS_EXACT : NUMERICS_FAST;
        uint32_t context = config->max_model_len ? config->max_model_len : model->spec.context_max;
        bool kv_int8 = strcmp(config->kv_cache_dtype, "int8") == 0;
        uint64_t block_bytes = device_cpu_kv_block_bytes(&model->spec, numerics, kv_int8);
        uint64_t blocks = ((uint64_t)context + KV_BLOCK_TOKENS - 1) / KV_BLOCK_TOKENS;
        buf_append_format(&text,
                          "# memory: model file %zu bytes; %" PRIu64
                          " bytes of KV a block of %d tokens; one sequence of %" PRIu32 " tokens needs %" PRIu64
                          " bytes\n",
                          model->file_bytes, block_bytes, KV_BLOCK_TOKENS, context, blocks * block_bytes);
        model_close(model);
    }
    if (status == ST_OK && buf_ok(&text))
        fwrite(text.data, 1, text.length, stdout);
    else
        fprintf(stderr, "millrace serve: %s\n", status == ST_OK ? "out of memory" : err.message);
    buf_free(&text);
    return status == ST_OK ? 0 : 1;
}

int cmd_serve(const struct config *config)
{
    if (config->dry_run) return dry_run(config);
    struct serve_setup setup = {.config = config, .load = load_model, .unload = load_free};
    return serve_run(&setup);
}
