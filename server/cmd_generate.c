/* millrace generate MODEL -p TEXT: one sequence straight on the device, without scheduler or server. The text streams
 * to stdout, the figures go to stderr; --json prints one document instead. Also the smallest example of how a device is
 * driven. */
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/text/detokenizer.h"
#include "server/cmd.h"
#include "server/load.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

struct generation {
    const struct config *config;
    struct loaded loaded;
    struct batch *batch;
    struct batch_result *result;
    block_id *blocks;         /* the whole pool in order: there is one sequence */
    struct token_list tokens; /* prompt, then output */
    size_t prompt_count;
    struct sampling_params params;
    uint64_t start_ns, first_ns, end_ns;
};

/* The prompt as the model wants it: plain, or as a user's message through the template. */
static enum status encode_prompt(struct generation *g, struct error *err)
{
    const char *text = g->config->prompt;
    if (!g->config->chat) return tokenizer_encode(g->loaded.tokenizer, text, strlen(text), NULL, 0, true, &g->tokens);
    if (!g->loaded.chat_template)
        return error_set(err, ST_INVAL, "--chat: the model has no usable chat template; give --chat-template");
    struct buf json, rendered;
    struct span_list spans = {0};
    struct json *messages = NULL;
    buf_init(&json, 0);
    buf_init(&rendered, 0);
    buf_append_text(&json, "[{\"role\":\"user\",\"content\":");
    buf_append_json_string(&json, text, strlen(text));
    buf_append_text(&json, "}]");
    enum status status = buf_ok(&json) ? json_read(json.data, json.length, &messages, err) : ST_NOMEM;
    if (status == ST_OK) {
        char bos[128], eos[128];
        tokenizer_copy_name(g->loaded.tokenizer, tokenizer_bos(g->loaded.tokenizer), bos, sizeof bos);
        tokenizer_copy_name(g->loaded.tokenizer, tokenizer_eos(g->loaded.tokenizer), eos, sizeof eos);
        struct chat_input input = {.messages = messages,
                                   .bos_token = bos,
                                   .eos_token = eos,
                                   .add_generation_prompt = true,
                                   .now_unix_s = clock_unix_us(clock_system()) / 1000000};
        status = chat_template_render(g->loaded.chat_template, &input, &rendered, &spans, err);
    }
    if (status == ST_OK)
        status = tokenizer_encode(g->loaded.tokenizer, rendered.data ? rendered.data : "", rendered.length, spans.spans,
                                  spans.count, false, &g->tokens);
    json_release(messages);
    span_list_free(&spans);
    buf_free(&rendered);
    buf_free(&json);
    return status;
}

static enum status prepare(struct generation *g, struct error *err)
{
    TRY(encode_prompt(g, err));
    g->prompt_count = g->tokens.count;
    if (!g->prompt_count) return error_set(err, ST_INVAL, "the prompt is empty");
    if (g->prompt_count >= g->loaded.context_max)
        return error_set(err, ST_INVAL, "the prompt has %zu tokens, the context ends at %" PRIu32, g->prompt_count,
                         g->loaded.context_max);
    const struct device_info *info = &g->loaded.device->info;
    size_t room = g->loaded.context_max;
    uint32_t *ids = mem_resize(g->tokens.ids, room, sizeof *ids);
    if (!ids) return error_set(err, ST_NOMEM, "%s", status_text(ST_NOMEM));
    g->tokens.ids = ids;
    g->tokens.capacity = room;
    g->blocks = mem_alloc(info->kv_blocks, sizeof *g->blocks);
    if (!g->blocks) return error_set(err, ST_NOMEM, "%s", status_text(ST_NOMEM));
    for (uint32_t i = 0; i < info->kv_blocks; i++) g->blocks[i] = i;
    TRY(batch_create(info->tokens_max, 1, 1, &g->batch));
    TRY(batch_result_create(1, &g->result));
    g->params = (struct sampling_params){.temperature = (float)g->config->temperature,
                                         .top_p = (float)g->config->top_p,
                                         .top_k = g->config->top_k,
                                         .repetition_penalty = 1.0f,
                                         .logprobs = -1};
    return ST_OK;
}

/* One step over tokens[begin, end); wants a token when end is the sequence's end. */
static enum status step(struct generation *g, size_t begin, size_t end)
{
    struct batch *batch = g->batch;
    batch->tokens_count = (uint32_t)(end - begin);
    batch->seqs_count = 1;
    for (size_t i = begin; i < end; i++) {
        batch->tokens[i - begin] = g->tokens.ids[i];
        batch->positions[i - begin] = (uint32_t)i;
        batch->seq_of_token[i - begin] = 0;
    }
    batch->q_start[0] = 0;
    batch->q_start[1] = batch->tokens_count;
    batch->kv_len[0] = (uint32_t)end;
    batch->block_table[0] = g->blocks;
    batch->rows_count = end == g->tokens.count;
    if (batch->rows_count)
        batch->rows[0] = (struct batch_row){.token = batch->tokens_count - 1,
                                            .params = &g->params,
                                            .seed = g->config->seed,
                                            .position = (uint32_t)end,
                                            .seen = g->tokens.ids,
                                            .seen_prompt = (uint32_t)g->prompt_count,
                                            .seen_count = (uint32_t)g->tokens.count};
    return device_step(g->loaded.device, batch, g->result);
}

static bool is_end(const struct generation *g, uint32_t id)
{
    uint32_t count;
    const uint32_t *ends = tokenizer_end_ids(g->loaded.tokenizer, &count);
    for (uint32_t i = 0; i < count; i++)
        if (ends[i] == id && !g->config->ignore_eos) return true;
    return false;
}

static void show(struct detokenizer *detokenizer, uint32_t id, bool now, struct buf *text)
{
    size_t shown = text->length;
    detokenizer_push(detokenizer, id, text);
    if (!now || text->length == shown) return;
    fwrite(text->data + shown, 1, text->length - shown, stdout);
    fflush(stdout);
}

static enum status generate(struct generation *g, struct buf *text, struct error *err)
{
    struct detokenizer detokenizer;
    detokenizer_init(&detokenizer, g->loaded.tokenizer, false);
    size_t done = 0, limit = g->prompt_count + g->config->max_tokens;
    if (limit > g->loaded.context_max) limit = g->loaded.context_max;
    g->start_ns = clock_now_ns(clock_system());
    while (g->tokens.count < limit) {
        size_t end = g->tokens.count - done > g->batch->tokens_max ? done + g->batch->tokens_max : g->tokens.count;
        bool last = end == g->tokens.count;
        enum status status = step(g, done, end);
        if (status != ST_OK) return error_set(err, status, "the device failed: %s", status_text(status));
        done = end;
        if (!last) continue;
        if (g->result->rows[0].flags)
            return error_set(err, ST_DEVICE, "the model's output is not finite: the file may be damaged");
        uint32_t id = g->result->rows[0].id;
        if (!g->first_ns) g->first_ns = clock_now_ns(clock_system());
        g->tokens.ids[g->tokens.count++] = id;
        if (is_end(g, id)) break;
        show(&detokenizer, id, !g->config->json, text);
    }
    g->end_ns = clock_now_ns(clock_system());
    size_t shown = text->length;
    detokenizer_finish(&detokenizer, text);
    if (!g->config->json) fwrite(text->data + shown, 1, text->length - shown, stdout);
    return buf_ok(text) ? ST_OK : ST_NOMEM;
}

static void report(const struct generation *g, const struct buf *text)
{
    size_t output = g->tokens.count - g->prompt_count;
    double prefill_s = (double)(g->first_ns - g->start_ns) / 1e9, decode_s = (double)(g->end_ns - g->first_ns) / 1e9;
    double prefill = prefill_s > 0 ? (double)g->prompt_count / prefill_s : 0;
    double decode = decode_s > 0 && output > 1 ? (double)(output - 1) / decode_s : 0;
    if (!g->config->json) {
        printf("\n");
        fflush(stdout);
        fprintf(stderr, "prompt %zu tokens, %.1f tok/s; output %zu tokens, %.1f tok/s\n", g->prompt_count, prefill,
                output, decode);
        return;
    }
    struct buf out;
    buf_init(&out, 0);
    buf_append_text(&out, "{\"text\":");
    buf_append_json_string(&out, text->data, text->length);
    buf_append_text(&out, ",\"prompt_ids\":[");
    for (size_t i = 0; i < g->tokens.count; i++)
        buf_append_format(&out, "%s%" PRIu32,
                          i == g->prompt_count ? "],\"output_ids\":["
                          : i                  ? ","
                                               : "",
                          g->tokens.ids[i]);
    buf_append_format(
        &out,
        "],\"prompt_tokens\":%zu,\"output_tokens\":%zu,\"prefill_tokens_per_s\":%.1f,\"decode_tokens_per_s\":%.1f}\n",
        g->prompt_count, output, prefill, decode);
    fwrite(out.data, 1, out.length, stdout);
    buf_free(&out);
}

int cmd_generate(const struct config *config)
{
    struct generation g = {.config = config};
    struct error err = {{0}};
    struct buf text;
    buf_init(&text, 0);
    enum status status = config->prompt ? ST_OK : error_set(&err, ST_INVAL, "-p TEXT is missing");
    int code = status == ST_OK ? 1 : 2;
    if (status == ST_OK) status = load_model(config, &g.loaded, &err);
    if (status == ST_OK) status = prepare(&g, &err);
    if (status == ST_OK) status = generate(&g, &text, &err);
    if (status == ST_OK) {
        report(&g, &text);
        code = 0;
    } else {
        fprintf(stderr, "millrace generate: %s\n", err.message[0] ? err.message : status_text(status));
    }
    buf_free(&text);
    batch_result_destroy(g.result);
    batch_destroy(g.batch);
    mem_free(g.blocks);
    token_list_free(&g.tokens);
    load_free(&g.loaded);
    return code;
}
