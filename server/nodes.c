/* See nodes.h. */
#include "server/nodes.h"

#include "runtime/base/file.h"
#include "runtime/base/hash.h"
#include "runtime/base/limits.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"
#include "runtime/device/device_cuda.h"
#include "runtime/device/device_nodes.h"
#include "server/load.h"

#include <inttypes.h>
#include <string.h>

enum { SECRET_FILE_BYTES_MAX = 65536, NODE_RANK_DIGITS_MAX = 4 };

/* ---- options ---- */

static bool are_several(const struct config *config)
{
    return config->place.processes > 1;
}

enum status nodes_find_place(struct config *config, char *const *environment, struct error *err)
{
    struct rank_place_options options = {
        .nodes = config->nnodes, .address = config->master_addr, .port = config->master_port};
    const char *text = config->node_rank;
    if (text) {
        size_t digits = strspn(text, "0123456789");
        if (!digits || digits > NODE_RANK_DIGITS_MAX || text[digits])
            return error_set(err, ST_INVAL, "--node-rank: \"%.40s\" is no number of a node", text);
        options.has_node_rank = true;
        for (size_t i = 0; i < digits; i++) options.node_rank = options.node_rank * 10 + (uint32_t)(text[i] - '0');
    }
    return rank_place_find(&options, environment, &config->place, err);
}

static uint32_t at_least_1(uint32_t x)
{
    return x ? x : 1; /* tests leave it */
}

static uint32_t ranks_all(const struct config *config)
{
    return at_least_1(config->tensor_parallel_size) * at_least_1(config->pipeline_parallel_size);
}

uint32_t nodes_ranks(const struct config *config)
{
    return are_several(config) ? ranks_all(config) / config->place.processes : ranks_all(config);
}

/* The value itself, or the first line of its file; the caller's, to be wiped and freed. */
static enum status read_secret(const struct config *config, char **secret, size_t *length, struct error *err)
{
    struct error reason = {""};
    if (config->launch_secret && config->launch_secret_file)
        return error_set(err, ST_INVAL, "the launch secret is given twice: by --launch-secret-file and by its value");
    if (config->launch_secret_file) {
        enum status status =
            file_read(config->launch_secret_file, SECRET_FILE_BYTES_MAX, "a secret's file", secret, length, &reason);
        if (status != ST_OK)
            return error_set(err, status, "--launch-secret-file %s: %.200s", config->launch_secret_file,
                             reason.message);
        *length = strcspn(*secret, "\r\n");
    } else if (config->launch_secret) {
        *length = strlen(config->launch_secret);
        *secret = mem_strdup(config->launch_secret, *length);
        if (!*secret) return error_set(err, ST_NOMEM, "no memory for the launch secret");
    } else {
        return error_set(err, ST_INVAL,
                         "%" PRIu32 " processes (by %s) need a secret that all of them have: MILLRACE_LAUNCH_SECRET or "
                         "--launch-secret-file; --nnodes 1 serves alone",
                         config->place.processes, config->place.source);
    }
    if (*length >= RENDEZVOUS_SECRET_BYTES_MIN) return ST_OK;
    explicit_bzero(*secret, *length);
    mem_free(*secret);
    return error_set(err, ST_INVAL, "the launch secret must have at least %d bytes", RENDEZVOUS_SECRET_BYTES_MIN);
}

enum status nodes_check(const struct config *config, struct error *err)
{
    const struct rank_place *place = &config->place;
    char *secret = NULL;
    size_t length = 0;
    if (!are_several(config)) return ST_OK;
    if (!strcmp(config->device, "cpu"))
        return error_set(err, ST_INVAL,
                         "%" PRIu32 " processes (by %s), but --device cpu: its ranks share one machine's memory, and "
                         "only GPUs work together over several; --nnodes 1 serves alone",
                         place->processes, place->source);
    if (ranks_all(config) % place->processes)
        return error_set(err, ST_INVAL,
                         "%" PRIu32
                         " GPUs (--tensor-parallel-size times --pipeline-parallel-size) do not divide over %" PRIu32
                         " processes (by %s): each needs as many",
                         ranks_all(config), place->processes, place->source);
    if (config->deterministic && nodes_ranks(config) % at_least_1(config->tensor_parallel_size))
        return error_set(err, ST_INVAL,
                         "--deterministic sums over GPUs in one machine's memory; over several processes NCCL adds, in "
                         "an order of its own: leave one of them away");
    if (config->models.count > 1)
        return error_set(err, ST_INVAL, "several processes serve one model: start a group for each");
    TRY(read_secret(config, &secret, &length, err));
    explicit_bzero(secret, length);
    mem_free(secret);
    return ST_OK;
}

/* ---- what must be the same everywhere ---- */

static void hash_text(struct buf *text, uint8_t hash[32])
{
    sha256(text->data ? text->data : "", text->length, hash);
    buf_free(text);
}

/* Whatever the shapes of work space, steps and sums depend on. */
static enum status hash_settings(const struct nodes_work *work, uint8_t hash[32], struct error *err)
{
    const struct device_cuda_config *s = work->settings;
    struct buf text;
    buf_init(&text, 0);
    buf_append_format(&text, "ranks %u stages %u dtype %d kv_fp8 %d graphs %d tokens %u seqs %u rows %u context %u",
                      s->ranks, s->stages, (int)s->dtype, s->kv_fp8, s->graphs, s->tokens_max, s->seqs_max, s->rows_max,
                      s->context_max);
    buf_append_format(&text, " lists %" PRIu64 " %" PRIu64 " %" PRIu64, limits.api_allowed_token_ids,
                      limits.api_logit_bias, limits.api_stop_token_ids);
    if (!buf_ok(&text)) return error_set(err, ST_NOMEM, "no memory");
    hash_text(&text, hash);
    return ST_OK;
}

static void add_view(struct buf *text, const struct tensor_view *view)
{
    enum { SAMPLE_BYTES = 64 };
    buf_append_format(text, " %d %u %u", (int)view->type, view->rows, view->cols);
    size_t vector_bytes = view->rows == 1 ? view->cols * sizeof(float) : SAMPLE_BYTES;
    if (view->data) buf_append(text, view->data, vector_bytes);
}

/* Dimensions, sizes, every norm and the first bytes of the largest matrices: another fine-tuning shows too. */
static enum status hash_model(const struct model *model, uint8_t hash[32], struct error *err)
{
    const struct model_spec *s = &model->spec;
    const struct model_weights *w = &model->weights;
    struct buf text;
    buf_init(&text, 0);
    buf_append_format(&text, "%s %u %u %u %u %u %u %u %u %u %u %" PRIu64 " %zu", s->arch, s->layers, s->width, s->heads,
                      s->kv_heads, s->head_size, s->ff_width, s->vocab, s->experts, s->experts_used, s->expert_width,
                      s->parameters, model->file_bytes);
    add_view(&text, &w->embed);
    add_view(&text, &w->final_norm);
    add_view(&text, &w->head);
    for (uint32_t l = 0; l < s->layers; l++) {
        add_view(&text, &w->layers[l].attn_norm);
        add_view(&text, &w->layers[l].ffn_norm);
        add_view(&text, &w->layers[l].q);
        add_view(&text, &w->layers[l].o);
    }
    if (!buf_ok(&text)) return error_set(err, ST_NOMEM, "no memory");
    hash_text(&text, hash);
    return ST_OK;
}

/* ---- the device ---- */

static enum status create_part(void *state, const struct device_share *share, struct device **device, struct error *err)
{
    const struct nodes_work *work = state;
    struct device_cuda_config settings = *work->settings;
    const struct rank_place *place = &work->config->place;
    uint32_t gpus = 0, first = place->local * settings.ranks;
    TRY(work->calls->probe(&gpus, err));
    if (gpus > settings.ranks) settings.first_gpu = first; /* else it is shown its own GPUs alone */
    settings.share = share;
    TRY(work->calls->create(work->model, &settings, work->progress, work->progress_state, device, err));
    if (place->process) model_release_file(work->model);
    return ST_OK;
}

static bool told_to_stop(void *state)
{
    const struct nodes_work *work = state;
    return work->stop && work->stop();
}

static void tell_ready(void *state, const struct device_info *info)
{
    const struct nodes_work *work = state;
    log_line(LOG_INFO, "nodes",
             "event=ready process=%" PRIu32 " processes=%" PRIu32 " device=\"%s\" kv_blocks=%" PRIu32,
             work->config->place.process, work->config->place.processes, info->name, info->kv_blocks);
}

/* The secret stays the caller's, in *secret. */
static enum status describe(const struct nodes_work *work, struct device_nodes_config *nodes, char **secret,
                            struct error *err)
{
    const struct config *config = work->config;
    const struct device_cuda_config *s = work->settings;
    *nodes = (struct device_nodes_config){.meeting = {.process = config->place.process,
                                                      .processes = config->place.processes,
                                                      .address = config->place.address,
                                                      .port = config->place.port,
                                                      .version = MILLRACE_VERSION,
                                                      .join_ns = config->join_timeout_ms * UINT64_C(1000000)},
                                          .ranks = s->ranks,
                                          .tokens_max = s->tokens_max,
                                          .seqs_max = s->seqs_max,
                                          .rows_max = s->rows_max,
                                          .context_max = s->context_max,
                                          .vocab = work->model->spec.vocab,
                                          .create = create_part,
                                          .state = (void *)(uintptr_t)work,
                                          .stop = told_to_stop};
    TRY(hash_settings(work, nodes->meeting.config_hash, err));
    TRY(hash_model(work->model, nodes->meeting.model_hash, err));
    TRY(read_secret(config, secret, &nodes->meeting.secret_bytes, err));
    nodes->meeting.secret = *secret;
    log_line(LOG_INFO, "nodes", "event=meeting process=%" PRIu32 " processes=%" PRIu32 " by=\"%s\" at=%s port=%u",
             config->place.process, config->place.processes, config->place.source, config->place.address,
             config->place.port);
    return ST_OK;
}

static void forget(char *secret, size_t length)
{
    if (secret) explicit_bzero(secret, length);
    mem_free(secret);
}

enum status nodes_lead(const struct nodes_work *work, struct device **device, struct error *err)
{
    struct device_nodes_config nodes;
    char *secret = NULL;
    TRY(describe(work, &nodes, &secret, err));
    enum status status = work->calls->id(NULL, nodes.id, err);
    if (status == ST_OK) status = device_nodes_lead(&nodes, device, err);
    forget(secret, nodes.meeting.secret_bytes);
    return status;
}

enum status nodes_follow(const struct nodes_work *work, struct error *err)
{
    struct device_nodes_config nodes;
    char *secret = NULL;
    TRY(describe(work, &nodes, &secret, err));
    enum status status = device_nodes_follow(&nodes, tell_ready, err);
    forget(secret, nodes.meeting.secret_bytes);
    return status;
}
