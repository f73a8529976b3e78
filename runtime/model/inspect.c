/* The report on a model, as text and as JSON, from one gathered struct; see inspect.h. */
#include "runtime/model/inspect.h"

#include "runtime/base/check.h"
#include "runtime/base/utf8.h"
#include "runtime/model/gguf.h"
#include "runtime/model/model.h"
#include "runtime/model/safetensors.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

enum { KV_VALUE_BYTES = 2, TOTALS_MAX = 64, DIMENSIONS_MAX = 8 }; /* KV at BF16 */

/* All types that a matrix may have, in the order of the table. */
static const enum tensor_type types[] = {
#define X(name, id, block_items, block_bytes) TENSOR_##name,
    TENSOR_TYPE_MAP(X)
#undef X
};
enum { TYPES_COUNT = sizeof types / sizeof *types };

/* Of all tensors of a format. */
struct total {
    const char *format;
    uint64_t tensors, values, bytes;
};

struct report {
    const char *path;
    struct gguf *own_file;   /* closed at the end when there is no model, as is own_shards */
    const struct gguf *file; /* the model's, or own_file; NULL for a folder */
    struct safetensors *own_shards;
    const struct safetensors *shards; /* NULL for a file */
    struct model *model;              /* NULL when it cannot be served */
    struct error reason;              /* why not */
    struct total totals[TOTALS_MAX];
    size_t totals_count;
    uint64_t bytes_all;
};

/* A tensor of either kind, its row's length first. */
struct entry {
    const char *name, *format, *shard;
    uint32_t dims_count;
    uint64_t dims[DIMENSIONS_MAX], values;
    size_t bytes, offset;
};

_Static_assert((int)DIMENSIONS_MAX >= (int)SAFETENSORS_DIMENSIONS_MAX, "every shape has room");
_Static_assert((int)DIMENSIONS_MAX >= (int)GGUF_DIMENSIONS_MAX, "every shape has room");

static size_t entries(const struct report *r)
{
    return r->file ? gguf_tensors(r->file) : safetensors_tensors(r->shards);
}

static struct entry entry_at(const struct report *r, size_t idx)
{
    struct entry entry = {.values = 1};
    if (r->file) {
        const struct gguf_tensor *tensor = gguf_tensor_at(r->file, idx);
        entry.name = tensor->name;
        entry.format = tensor_type_info(tensor->type)->name;
        entry.dims_count = tensor->dims_count;
        memcpy(entry.dims, tensor->dims, tensor->dims_count * sizeof *entry.dims);
        entry.bytes = tensor->bytes;
        entry.offset = tensor->offset;
    } else {
        const struct safetensors_tensor *tensor = safetensors_tensor_at(r->shards, idx);
        entry.name = tensor->name;
        entry.format = safetensors_dtype_name(tensor->dtype);
        entry.shard = safetensors_shard_name(r->shards, tensor->shard);
        entry.dims_count = tensor->dims_count;
        for (uint32_t d = 0; d < tensor->dims_count; d++) entry.dims[d] = tensor->dims[tensor->dims_count - 1 - d];
        entry.bytes = tensor->bytes;
        entry.offset = tensor->offset;
    }
    for (uint32_t d = 0; d < entry.dims_count; d++) entry.values *= entry.dims[d]; /* fits: the readers checked */
    return entry;
}

static void add_total(struct report *r, const struct entry *entry)
{
    size_t i = 0;
    while (i < r->totals_count && strcmp(r->totals[i].format, entry->format) != 0) i++;
    if (i == r->totals_count) {
        CHECK(i < TOTALS_MAX);
        r->totals[r->totals_count++].format = entry->format;
    }
    r->totals[i].tensors++;
    r->totals[i].values += entry->values;
    r->totals[i].bytes += entry->bytes;
    r->bytes_all += entry->bytes;
}

/* What cannot be served but is sound in itself. */
static enum status open_unserved(struct report *report, enum status reason, struct error *err)
{
    struct stat info;
    bool folder = stat(report->path, &info) == 0 && S_ISDIR(info.st_mode);
    enum status status = folder ? safetensors_open_folder(report->path, &report->own_shards, err)
                                : gguf_open(report->path, &report->own_file, err);
    if (status != ST_OK) return error_set(err, reason, "%s", report->reason.message);
    report->file = report->own_file;
    report->shards = report->own_shards;
    return ST_OK;
}

static enum status open_report(struct report *report, const char *path, struct error *err)
{
    *report = (struct report){.path = path};
    enum status status = model_open(path, &report->model, &report->reason);
    if (status == ST_OK) {
        report->file = report->model->file;
        report->shards = report->model->shards;
    } else {
        TRY(open_unserved(report, status, err));
    }
    for (size_t i = 0; i < entries(report); i++) {
        struct entry entry = entry_at(report, i);
        add_total(report, &entry);
    }
    return ST_OK;
}

static enum status close_report(struct report *report, const struct buf *out, struct error *err)
{
    model_close(report->model);
    gguf_close(report->own_file);
    safetensors_close(report->own_shards);
    return buf_ok(out) ? ST_OK : error_set(err, ST_NOMEM, "no memory for the description of the file");
}

static uint64_t kv_bytes_per_token(const struct model_spec *spec)
{
    return (uint64_t)spec->layers * spec->kv_heads * spec->head_size * 2 * KV_VALUE_BYTES;
}

/* --- text --- */

/* Digits in groups of three. */
static void append_number(struct buf *out, uint64_t value)
{
    char digits[32];
    int at = sizeof digits, count = 0;
    do {
        if (count && count % 3 == 0) digits[--at] = ',';
        digits[--at] = (char)('0' + value % 10);
        count++;
    } while (value /= 10);
    buf_append(out, digits + at, sizeof digits - (size_t)at);
}

static void append_size(struct buf *out, uint64_t bytes)
{
    static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
    int unit = 0;
    double value = (double)bytes;
    for (; value >= 1024 && unit < 4; unit++) value /= 1024;
    buf_append_format(out, unit ? "%.1f %s" : "%.0f %s", value, units[unit]);
}

/* Bytes of a file on a terminal: control characters and broken UTF-8 become '?'; cut after max bytes. */
static void append_clean(struct buf *out, const char *text, size_t length, size_t max)
{
    bool cut = length > max;
    for (size_t i = 0, n; i < length && i < max; i += n) {
        n = utf8_length(text + i, length - i);
        unsigned char c = (unsigned char)text[i];
        bool control = c < 0x20 || c == 0x7f || (c == 0xc2 && n == 2 && (unsigned char)text[i + 1] < 0xa0);
        if (n && !control)
            buf_append(out, text + i, n);
        else
            buf_append_char(out, '?');
        if (!n) n = 1;
    }
    if (cut) buf_append_text(out, "...");
}

static void text_gguf(const struct report *r, struct buf *out)
{
    struct error ignored;
    struct vocab_string arch = {"?", 1}, name = {"", 0};
    enum status status = gguf_get_text(r->file, "general.architecture", &arch, &ignored);
    if (status == ST_OK && gguf_get_text(r->file, "general.name", &name, &ignored) != ST_OK) name.length = 0;
    buf_append_format(out, "\n  format        GGUF version %" PRIu32 ", ", gguf_version(r->file));
    append_number(out, gguf_bytes(r->file));
    buf_append_format(out, " bytes, %zu keys, %zu tensors, alignment %" PRIu32 "\n  architecture  ", gguf_keys(r->file),
                      gguf_tensors(r->file), gguf_alignment(r->file));
    append_clean(out, arch.text, arch.length, 60);
    if (name.length) {
        buf_append_text(out, "\n  name          ");
        append_clean(out, name.text, name.length, 127);
    }
    buf_append_char(out, '\n');
}

static void text_folder(const struct report *r, struct buf *out)
{
    size_t shards = safetensors_shards(r->shards);
    buf_append_format(out, "\n  format        Hugging Face folder, %zu safetensors file%s, ", shards,
                      shards == 1 ? "" : "s");
    append_number(out, safetensors_bytes(r->shards));
    buf_append_format(out, " bytes, %zu tensors\n", safetensors_tensors(r->shards));
    if (r->model) buf_append_format(out, "  architecture  %s\n", r->model->spec.arch);
}

static void text_head(const struct report *r, struct buf *out)
{
    append_clean(out, r->path, strlen(r->path), 4096);
    if (r->file)
        text_gguf(r, out);
    else
        text_folder(r, out);
}

static uint32_t count_layers(const struct model_spec *s, enum layer_flag flag)
{
    uint32_t count = 0;
    for (uint32_t l = 0; l < s->layers; l++) count += (s->layer_flags[l] & flag) != 0;
    return count;
}

static void text_window(const struct model_spec *s, struct buf *out)
{
    buf_append_format(out, "\n  window        %" PRIu32 " positions in %" PRIu32 " of %" PRIu32 " layers", s->window,
                      count_layers(s, LAYER_WINDOWED), s->layers);
    if (s->has_window_rope) buf_append_format(out, ", RoPE base %g there", (double)s->rope_window.base);
}

/* Matrices of a model by the type that a device gets them in, which is not the file's where it is quantised in a way of
 * its own. */
struct type_counts {
    uint64_t matrices[TYPES_COUNT]; /* by place in types */
    uint64_t made;                  /* of all, those that come through a recipe */
};

static void count_type(struct type_counts *counts, const struct tensor_view *view)
{
    size_t i = 0;
    if (!view->data) return;
    while (types[i] != view->type) i++;
    counts->matrices[i]++;
    counts->made += view->recipe != NULL;
}

static void count_types(const struct model *model, struct type_counts *counts)
{
    for (uint32_t l = 0; l < model->spec.layers; l++) {
        const struct layer_weights *w = &model->weights.layers[l];
        const struct tensor_view *views[] = {&w->q, &w->k, &w->v, &w->o, &w->gate, &w->up, &w->down, &w->router};
        for (size_t i = 0; i < sizeof views / sizeof *views; i++) count_type(counts, views[i]);
        for (uint32_t x = 0; w->experts && x < model->spec.experts; x++) {
            count_type(counts, &w->experts[x].gate);
            count_type(counts, &w->experts[x].up);
            count_type(counts, &w->experts[x].down);
        }
    }
}

static void text_types(const struct report *r, struct buf *out)
{
    struct type_counts counts = {0};
    const char *comma = "";
    count_types(r->model, &counts);
    if (!counts.made) return;
    buf_append_text(out, "\n  repacked to   ");
    for (size_t i = 0; i < TYPES_COUNT; i++) {
        if (!counts.matrices[i]) continue;
        buf_append_format(out, "%s%s in %" PRIu64 " matrices", comma, tensor_type_info(types[i])->name,
                          counts.matrices[i]);
        comma = ", ";
    }
}

static void text_spec(const struct report *r, struct buf *out)
{
    const struct model_spec *s = &r->model->spec;
    buf_append_text(out, "\nModel\n  size          ");
    append_number(out, s->parameters);
    buf_append_format(out, " parameters, %" PRIu32 " layers of width %" PRIu32 ", context of %" PRIu32 " tokens\n",
                      s->layers, s->width, s->context_max);
    buf_append_format(out,
                      "  attention     %" PRIu32 " query heads over %" PRIu32 " KV heads of %" PRIu32
                      " values; scores times %g%s%s\n",
                      s->heads, s->kv_heads, s->head_size, (double)s->attention_scale,
                      s->has_qkv_bias ? "; Q, K, V with bias" : "", s->has_qk_norm ? "; Q and K normalised" : "");
    buf_append_format(out, "  positions     RoPE over %" PRIu32 " of %" PRIu32 " values, %s, base %g", s->rope_size,
                      s->head_size, s->rope == ROPE_HALVES ? "halves" : "interleaved pairs", (double)s->rope_main.base);
    if (s->rope_main.scale != 1.0f) buf_append_format(out, ", positions times %g", (double)s->rope_main.scale);
    if (r->model->weights.rope_factors.data) buf_append_text(out, ", frequencies divided by factors");
    if (s->rope_switch) buf_append_format(out, ", by others beyond %" PRIu32 " tokens", s->rope_switch);
    if (s->window) text_window(s, out);
    text_types(r, out);
    if (s->experts)
        buf_append_format(out, "\n  experts       %" PRIu32 " of %" PRIu32 " values, %" PRIu32 " used a token%s",
                          s->experts, s->expert_width, s->experts_used,
                          s->experts_normed ? ", their weights made to sum to 1" : "");
    buf_append_format(
        out, "\n  feed-forward  %" PRIu32 " values, gated %s\n  norm          RMS, epsilon %g\n  head          %s\n",
        s->ff_width, s->activation == ACTIVATION_SILU ? "SiLU" : "GELU (tanh)", (double)s->norm_eps,
        s->tied_head ? "the embedding matrix (tied)" : "a matrix of its own");
}

static void append_token(struct buf *out, const struct vocab *vocab, const char *label, uint32_t id)
{
    if (id == VOCAB_NO_ID) return;
    buf_append_format(out, "%s%" PRIu32 " ", label, id);
    append_clean(out, vocab->tokens[id].text, vocab->tokens[id].length, 60);
}

static void text_vocab(const struct report *r, struct buf *out)
{
    const struct vocab *v = &r->model->vocab;
    static const char *const kinds[] = {"", "normal", "unknown", "control", "user-defined", "unused", "byte"};
    uint32_t counts[VOCAB_BYTE + 1] = {0};
    for (uint32_t i = 0; i < v->count; i++) counts[v->kinds[i]]++;
    buf_append_format(out, "\nVocabulary\n  tokeniser     %s%s%s, ", v->model, v->pre[0] ? ", pre-tokeniser " : "",
                      v->pre);
    append_number(out, v->merges_count);
    buf_append_text(out, " merges\n  tokens        ");
    append_number(out, v->count);
    buf_append_text(out, " (");
    bool first = true;
    for (int kind = VOCAB_NORMAL; kind <= VOCAB_BYTE; kind++) {
        if (!counts[kind]) continue;
        if (!first) buf_append_text(out, ", ");
        first = false;
        append_number(out, counts[kind]);
        buf_append_format(out, " %s", kinds[kind]);
    }
    buf_append_text(out, ")\n  special      ");
    append_token(out, v, " bos ", v->bos_id);
    append_token(out, v, ", eos ", v->eos_id);
    append_token(out, v, ", unknown ", v->unknown_id);
    append_token(out, v, ", padding ", v->padding_id);
    buf_append_format(out, "; a prompt gets %s%s%s\n  ends at       ", v->add_bos ? "bos" : "no bos",
                      v->add_eos ? ", eos" : "", v->add_space_prefix ? ", a leading space" : "");
    for (uint32_t i = 0; i < v->end_ids_count; i++) append_token(out, v, i ? ", " : "", v->end_ids[i]);
    if (!v->end_ids_count) buf_append_text(out, "nothing: generation ends only by its limit");
    buf_append_text(out, "\n  template      ");
    size_t length = r->model->chat_template_length;
    const char *text = r->model->chat_template, *end = text ? memchr(text, '\n', length) : NULL;
    if (text) {
        append_clean(out, text, end ? (size_t)(end - text) : length, 200);
        buf_append_format(out, "%s (%zu bytes)\n", end ? " ..." : "", length);
    } else {
        buf_append_text(out, "none: chat needs one from outside\n");
    }
}

static void text_memory(const struct report *r, struct buf *out)
{
    uint64_t token_bytes = kv_bytes_per_token(&r->model->spec);
    buf_append_text(out, "\nMemory (estimate)\n  weights       ");
    append_size(out, r->bytes_all);
    buf_append_text(out, " as they stand in the file\n  KV at BF16    ");
    append_number(out, token_bytes);
    buf_append_text(out, " bytes a token, ");
    append_size(out, token_bytes * r->model->spec.context_max);
    buf_append_text(out, " for one sequence of full context\n");
}

static void text_tensors(const struct report *r, struct buf *out)
{
    buf_append_text(out, "\nTensors (row length first)\n");
    for (size_t i = 0; i < entries(r); i++) {
        struct entry entry = entry_at(r, i);
        char shape[DIMENSIONS_MAX * 24];
        int used = snprintf(shape, sizeof shape, "%s", entry.dims_count ? "" : "1");
        for (uint32_t d = 0; d < entry.dims_count; d++)
            used += snprintf(shape + used, sizeof shape - (size_t)used, "%s%" PRIu64, d ? " x " : "", entry.dims[d]);
        size_t start = out->length;
        buf_append_text(out, "  ");
        append_clean(out, entry.name, strlen(entry.name), r->file ? 64 : SAFETENSORS_NAME_MAX);
        while (buf_ok(out) && out->length - start < (r->file ? 34 : 52)) buf_append_char(out, ' ');
        buf_append_format(out, "  %-18s  %-5s %14zu\n", shape, entry.format, entry.bytes);
    }
    buf_append_text(out, "\nTotals\n");
    for (size_t i = 0; i < r->totals_count; i++) {
        const struct total *total = &r->totals[i];
        double bits = total->values ? 8.0 * (double)total->bytes / (double)total->values : 0;
        buf_append_format(out,
                          "  %-5s %5" PRIu64 " tensors, %14" PRIu64 " values, %14" PRIu64 " bytes, %.2f bits a value\n",
                          total->format, total->tensors, total->values, total->bytes, bits);
    }
}

enum status model_inspect(const char *path, struct buf *out, struct error *err)
{
    struct report report;
    TRY(open_report(&report, path, err));
    text_head(&report, out);
    if (report.model) {
        text_spec(&report, out);
        text_vocab(&report, out);
        text_memory(&report, out);
    } else {
        buf_append_format(out, "  CANNOT BE SERVED: %s\n", report.reason.message);
    }
    text_tensors(&report, out);
    return close_report(&report, out, err);
}

/* --- JSON --- */

static void json_text(struct buf *out, const char *key, const char *text, size_t length)
{
    buf_append_format(out, ",\"%s\":", key);
    buf_append_json_string(out, text, length);
}

static void json_float(struct buf *out, const char *key, float value)
{
    buf_append_format(out, ",\"%s\":", key);
    buf_append_json_float(out, value);
}

static void json_id(struct buf *out, const char *key, uint32_t id)
{
    if (id == VOCAB_NO_ID)
        buf_append_format(out, ",\"%s\":null", key);
    else
        buf_append_format(out, ",\"%s\":%" PRIu32, key, id);
}

static const char *truth(bool value)
{
    return value ? "true" : "false";
}

static void json_model(const struct report *r, struct buf *out)
{
    const struct model_spec *s = &r->model->spec;
    buf_append_format(out,
                      ",\"model\":{\"parameters\":%" PRIu64 ",\"layers\":%" PRIu32 ",\"width\":%" PRIu32
                      ",\"heads\":%" PRIu32 ",\"kv_heads\":%" PRIu32 ",\"head_size\":%" PRIu32 ",\"ff_width\":%" PRIu32
                      ",\"vocab\":%" PRIu32 ",\"context_max\":%" PRIu32,
                      s->parameters, s->layers, s->width, s->heads, s->kv_heads, s->head_size, s->ff_width, s->vocab,
                      s->context_max);
    json_text(out, "name", s->name, strlen(s->name));
    json_float(out, "norm_eps", s->norm_eps);
    buf_append_format(out, ",\"rope\":\"%s\",\"rope_size\":%" PRIu32, s->rope == ROPE_HALVES ? "halves" : "interleaved",
                      s->rope_size);
    json_float(out, "rope_base", s->rope_main.base);
    json_float(out, "rope_scale", s->rope_main.scale);
    buf_append_format(out,
                      ",\"window\":%" PRIu32 ",\"windowed_layers\":%" PRIu32 ",\"experts\":%" PRIu32
                      ",\"experts_used\":%" PRIu32,
                      s->window, count_layers(s, LAYER_WINDOWED), s->experts, s->experts_used);
    buf_append_format(out, ",\"rope_factors\":%s", truth(r->model->weights.rope_factors.data));
    json_float(out, "attention_scale", s->attention_scale);
    buf_append_format(out, ",\"activation\":\"%s\",\"tied_head\":%s,\"qkv_bias\":%s,\"qk_norm\":%s}",
                      s->activation == ACTIVATION_SILU ? "silu" : "gelu_tanh", truth(s->tied_head),
                      truth(s->has_qkv_bias), truth(s->has_qk_norm));
}

static void json_vocab(const struct report *r, struct buf *out)
{
    const struct vocab *v = &r->model->vocab;
    buf_append_format(out, ",\"vocabulary\":{\"tokens\":%" PRIu32 ",\"merges\":%" PRIu32, v->count, v->merges_count);
    json_text(out, "tokenizer", v->model, strlen(v->model));
    json_text(out, "pre_tokenizer", v->pre, strlen(v->pre));
    json_id(out, "bos_id", v->bos_id);
    json_id(out, "eos_id", v->eos_id);
    json_id(out, "unknown_id", v->unknown_id);
    json_id(out, "padding_id", v->padding_id);
    buf_append_format(out, ",\"add_bos\":%s,\"add_eos\":%s,\"add_space_prefix\":%s,\"end_ids\":[", truth(v->add_bos),
                      truth(v->add_eos), truth(v->add_space_prefix));
    for (uint32_t i = 0; i < v->end_ids_count; i++) buf_append_format(out, "%s%" PRIu32, i ? "," : "", v->end_ids[i]);
    buf_append_text(out, "],\"chat_template\":");
    if (r->model->chat_template)
        buf_append_json_string(out, r->model->chat_template, r->model->chat_template_length);
    else
        buf_append_text(out, "null");
    uint64_t token_bytes = kv_bytes_per_token(&r->model->spec);
    buf_append_format(out,
                      "},\"memory\":{\"weights_bytes\":%" PRIu64 ",\"kv_bytes_per_token\":%" PRIu64
                      ",\"kv_bytes_full_context\":%" PRIu64 "}",
                      r->bytes_all, token_bytes, token_bytes * r->model->spec.context_max);
}

static void json_tensors(const struct report *r, struct buf *out)
{
    buf_append_text(out, ",\"tensors\":[");
    for (size_t i = 0; i < entries(r); i++) {
        struct entry entry = entry_at(r, i);
        buf_append_text(out, i ? ",{\"name\":" : "{\"name\":");
        buf_append_json_string(out, entry.name, strlen(entry.name));
        buf_append_text(out, ",\"shape\":[");
        for (uint32_t d = 0; d < entry.dims_count; d++)
            buf_append_format(out, "%s%" PRIu64, d ? "," : "", entry.dims[d]);
        buf_append_format(out, "],\"type\":\"%s\",\"offset\":%zu,\"bytes\":%zu", entry.format, entry.offset,
                          entry.bytes);
        if (entry.shard) json_text(out, "file", entry.shard, strlen(entry.shard));
        buf_append_char(out, '}');
    }
    buf_append_text(out, "],\"totals\":{");
    for (size_t i = 0; i < r->totals_count; i++) {
        const struct total *total = &r->totals[i];
        buf_append_format(out, "%s\"%s\":{\"tensors\":%" PRIu64 ",\"values\":%" PRIu64 ",\"bytes\":%" PRIu64 "}",
                          i ? "," : "", total->format, total->tensors, total->values, total->bytes);
    }
    buf_append_text(out, "}");
}

static void json_head(const struct report *r, struct buf *out)
{
    struct error ignored;
    struct vocab_string arch = {NULL, 0};
    if (r->file) {
        buf_append_format(out,
                          "{\"format\":\"GGUF\",\"version\":%" PRIu32 ",\"alignment\":%" PRIu32
                          ",\"file_bytes\":%zu,\"keys\":%zu",
                          gguf_version(r->file), gguf_alignment(r->file), gguf_bytes(r->file), gguf_keys(r->file));
        if (gguf_get_text(r->file, "general.architecture", &arch, &ignored) != ST_OK) arch.text = NULL;
    } else {
        buf_append_format(out, "{\"format\":\"safetensors\",\"files\":%zu,\"file_bytes\":%zu",
                          safetensors_shards(r->shards), safetensors_bytes(r->shards));
        if (r->model) arch = (struct vocab_string){r->model->spec.arch, (uint32_t)strlen(r->model->spec.arch)};
    }
    if (arch.text)
        json_text(out, "architecture", arch.text, arch.length);
    else
        buf_append_text(out, ",\"architecture\":null");
}

enum status model_inspect_json(const char *path, struct buf *out, struct error *err)
{
    struct report report;
    TRY(open_report(&report, path, err));
    json_head(&report, out);
    buf_append_format(out, ",\"servable\":%s", truth(report.model));
    if (report.model) {
        json_model(&report, out);
        json_vocab(&report, out);
    } else {
        json_text(out, "reason", report.reason.message, strlen(report.reason.message));
        buf_append_text(out, ",\"model\":null,\"vocabulary\":null,\"memory\":null");
    }
    json_tensors(&report, out);
    buf_append_char(out, '}');
    return close_report(&report, out, err);
}
