/* millrace serve MODEL..: the server. --dry-run prints the settings in force and what the models need, and ends. */
#include "server/cmd.h"
#include "server/nodes.h"
#include "server/seal.h"
#include "server/serve.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { EXIT_UNSEALED = 1, EXIT_CONFIG = 2 };

/* The shares and the sum as models.c will take them. */
static enum status print_plan(const struct config *config, struct loaded *loaded, struct buf *text, struct error *err)
{
    uint32_t count = config->models.count;
    uint64_t least[MODELS_MAX], shares[MODELS_MAX], weights_bytes = 0, least_bytes = 0;
    uint64_t limit_bytes = load_memory_limit(config);
    struct memory_row rows[MODELS_MAX];
    for (uint32_t i = 0; i < count; i++) {
        struct load_need need;
        TRY(load_open(config, config->models.items[i], &loaded[i], &need, err));
        least[i] = need.kv_least_bytes;
        weights_bytes += need.weights_bytes;
        least_bytes += least[i];
        rows[i] = (struct memory_row){config->models.items[i], need.weights_bytes, 0, least[i]};
    }
    TRY(memory_check(limit_bytes, rows, count - 1, &rows[count - 1], err));
    uint64_t kv_bytes = memory_kv_total(config->kv_cache_memory_bytes, limit_bytes, weights_bytes, least_bytes);
    TRY(memory_divide(kv_bytes, least, count, shares, err));
    for (uint32_t i = 0; i < count; i++) {
        rows[i].kv_bytes = shares[i];
        buf_append_format(text,
                          "# memory of %s: model file %" PRIu64 " bytes; KV %" PRIu64 " bytes; one sequence of %" PRIu32
                          " tokens needs %" PRIu64 " bytes\n",
                          config->models.items[i], rows[i].weights_bytes, shares[i], loaded[i].context_max, least[i]);
    }
    TRY(memory_check(limit_bytes, rows, count - 1, &rows[count - 1], err));
    buf_append_format(text, "# memory: %" PRIu64 " bytes of files and %" PRIu64 " of KV, limit %" PRIu64 "\n",
                      weights_bytes, kv_bytes, limit_bytes);
    return ST_OK;
}

static int dry_run(const struct config *config)
{
    struct buf text;
    struct error err = {""};
    struct loaded loaded[MODELS_MAX];
    memset(loaded, 0, sizeof loaded);
    buf_init(&text, 0);
    config_print(config, COMMAND_SERVE, &text);
    enum status status = print_plan(config, loaded, &text, &err);
    for (uint32_t i = 0; i < config->models.count; i++) load_free(&loaded[i]);
    if (status == ST_OK && buf_ok(&text))
        fwrite(text.data, 1, text.length, stdout);
    else
        fprintf(stderr, "millrace serve: %s\n", status == ST_OK ? "out of memory" : err.message);
    buf_free(&text);
    return status == ST_OK ? 0 : 1;
}

int cmd_serve(const struct config *config)
{
    struct error err = {""};
    if (nodes_check(config, &err) != ST_OK) {
        fprintf(stderr, "millrace serve: %s\n", err.message);
        return EXIT_CONFIG;
    }
    if (config->dry_run) return dry_run(config);
    if (config->trusted && seal_process(&err) != ST_OK) {
        fprintf(stderr, "millrace serve: %s\n", err.message);
        return EXIT_UNSEALED;
    }
    if (config->place.process > 0) return cmd_follow(config);
    struct serve_setup setup = {.config = config, .hooks = {load_open, load_build, load_free}};
    return serve_run(&setup);
}
