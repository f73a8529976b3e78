/* See hf_folder.h. */
#include "runtime/model/hf_folder.h"

#include "runtime/model/hf_config.h"
#include "runtime/model/hf_weights.h"
#include "runtime/model/safetensors.h"
#include "runtime/model/sampling_defaults.h"
#include "runtime/model/vocab_folder.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* The folder's own name, for people. */
static void name_model(const char *folder, struct model_spec *spec)
{
    size_t end = strlen(folder), begin;
    while (end && folder[end - 1] == '/') end--;
    for (begin = end; begin && folder[begin - 1] != '/';) begin--;
    model_spec_set_name(spec, folder + begin, end - begin);
}

static enum status refuse_id(uint32_t id, const char *use, uint32_t rows, struct error *err)
{
    return error_set(err, ST_INVAL,
                     "tokenizer.json: token %" PRIu32 ", %s, has no row among the embedding's %" PRIu32
                     " (vocab_size of config.json): they do not belong together",
                     id, use, rows);
}

/* The parts of the tokeniser by which ids past `rows` could still come into a prompt. */
static enum status cut_pipeline(struct vocab *vocab, uint32_t rows, struct error *err)
{
    struct vocab_pipeline *pipeline = vocab->pipeline;
    uint32_t kept = 0;
    if (!pipeline) return ST_OK;
    for (uint32_t i = 0; i < pipeline->prefix_count; i++)
        if (pipeline->prefix_ids[i] >= rows) return refuse_id(pipeline->prefix_ids[i], "put before texts", rows, err);
    for (uint32_t i = 0; i < pipeline->suffix_count; i++)
        if (pipeline->suffix_ids[i] >= rows) return refuse_id(pipeline->suffix_ids[i], "put behind texts", rows, err);
    for (uint32_t i = 0; pipeline->merges && i < vocab->merges_count; i++) {
        const struct vocab_merge *merge = &pipeline->merges[i];
        uint32_t most = merge->left > merge->right ? merge->left : merge->right;
        if (merge->product > most) most = merge->product;
        if (most >= rows) return refuse_id(most, "part of a merge", rows, err);
    }
    for (uint32_t i = 0; i < pipeline->added_count; i++)
        if (pipeline->added[i].id < rows) pipeline->added[kept++] = pipeline->added[i];
    pipeline->added_count = kept;
    return ST_OK;
}

/* Tokens without a row in the embedding go: some tokenisers serve several models, and name at their end what only the
 * larger ones know (Gemma 3's 262,145th token stands for images). Their texts are then tokenised as any other. The
 * other way round, rows without a token need nothing here: an id without a text is legal (its text is empty), devices
 * know spec.vocab ids, and reference implementations may sample them too. */
static enum status fit_vocab(struct vocab *vocab, uint32_t rows, struct error *err)
{
    uint32_t *ids[] = {&vocab->bos_id, &vocab->eos_id, &vocab->unknown_id, &vocab->padding_id}, kept = 0;
    if (vocab->count <= rows) return ST_OK;
    if (vocab->add_bos && vocab->bos_id >= rows) return refuse_id(vocab->bos_id, "put before texts", rows, err);
    if (vocab->add_eos && vocab->eos_id >= rows) return refuse_id(vocab->eos_id, "put behind texts", rows, err);
    TRY(cut_pipeline(vocab, rows, err));
    for (size_t i = 0; i < sizeof ids / sizeof *ids; i++)
        if (*ids[i] >= rows) *ids[i] = VOCAB_NO_ID;
    for (uint32_t i = 0; i < vocab->end_ids_count; i++)
        if (vocab->end_ids[i] < rows) vocab->end_ids[kept++] = vocab->end_ids[i];
    vocab->end_ids_count = kept;
    vocab->count = rows;
    return ST_OK;
}

static enum status open_weights(const char *folder, const struct hf_config *config, struct model *model,
                                struct error *err)
{
    model->spec = config->spec;
    name_model(folder, &model->spec);
    TRY(safetensors_open_folder(folder, &model->shards, err));
    model->file_bytes = safetensors_bytes(model->shards);
    return hf_weights_place(model->shards, config, &model->arena, &model->spec, &model->weights, err);
}

enum status hf_folder_open(const char *folder, struct model *model, struct error *err)
{
    struct hf_config config;
    TRY(hf_config_read(folder, &model->arena, &config, err));
    enum status status = open_weights(folder, &config, model, err);
    hf_config_free(&config);
    TRY(status);
    TRY(vocab_read_folder(folder, &model->vocab, err));
    TRY(fit_vocab(&model->vocab, model->spec.vocab, err));
    TRY(sampling_defaults_read(folder, &model->defaults, err));
    return vocab_read_folder_template(folder, &model->chat_template, &model->chat_template_length, err);
}
