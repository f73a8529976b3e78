/* See vocab_folder.h. tokenizer.json says how text becomes ids; the three configuration files say what some ids mean.
 * They overlap, and this order settles it:
 *   BOS, EOS, padding   tokenizer_config.json's names, else the ids of generation_config.json, else of config.json
 *   added to a text     tokenizer.json's post-processor; tokenizer_config.json's add_bos_token and add_eos_token change
 *                       that where they are given, as transformers does
 *   end of generation   generation_config.json's eos_token_id, else config.json's; EOS and known turn ends besides */
#include "runtime/model/vocab_folder.h"

#include "runtime/base/arena.h"
#include "runtime/base/file.h"
#include "runtime/base/json.h"
#include "runtime/base/json_pull.h"
#include "runtime/base/limits.h"
#include "runtime/base/mem.h"
#include "runtime/base/utf8.h"
#include "runtime/model/json_file.h"
#include "runtime/model/vocab_json.h"
#include "runtime/model/vocab_read.h"

#include <inttypes.h>
#include <string.h>

static enum status read_text_file(const char *folder, const char *name, uint64_t bytes_max, const char *limit_name,
                                  char **text, size_t *length, struct error *err)
{
    char path[FOLDER_PATH_BYTES];
    struct error reason = {""};
    TRY(folder_path(folder, name, path, err));
    enum status status = file_read(path, bytes_max, limit_name, text, length, &reason);
    return status == ST_OK ? ST_OK : error_set(err, status, "%s %.400s", name, reason.message);
}

/* The members that are wanted of any of the three files. The rest is passed over and not judged but for its grammar:
 * numbers in it need not fit (model_max_length is often 10^30). */
enum key {
    KEY_BOS_TOKEN,
    KEY_EOS_TOKEN,
    KEY_PAD_TOKEN,
    KEY_ADD_BOS,
    KEY_ADD_EOS,
    KEY_TEMPLATE,
    KEY_BOS_ID,
    KEY_EOS_ID,
    KEY_PAD_ID,
    KEY_TEXT_CONFIG,
    KEYS
};

static const char *const key_names[KEYS] = {
    "bos_token",     "eos_token",    "pad_token",    "add_bos_token", "add_eos_token",
    "chat_template", "bos_token_id", "eos_token_id", "pad_token_id",  "text_config",
};

struct config_file {
    const char *name;
    struct json *values[KEYS]; /* NULL: absent */
};

static void config_release(struct config_file *config)
{
    for (int key = 0; key < KEYS; key++) json_release(config->values[key]);
}

static enum status take_member(struct json_pull *pull, struct json_slice name, struct config_file *config,
                               struct error *err)
{
    int key = 0;
    struct json_slice text;
    while (key < KEYS && (strlen(key_names[key]) != name.length || memcmp(key_names[key], name.text, name.length)))
        key++;
    json_pull_skip(pull, &text);
    if (key == KEYS || !json_pull_ok(pull)) return pull->status;
    if (config->values[key]) return error_set(err, ST_INVAL, "\"%s\" stands twice", key_names[key]);
    struct error reason = {""};
    enum status status = json_read(text.text, text.length, &config->values[key], &reason);
    return status == ST_OK ? ST_OK : error_set(err, status, "\"%s\": %.300s", key_names[key], reason.message);
}

static enum status read_members(char *text, size_t length, struct config_file *config, struct error *err)
{
    struct json_pull pull;
    struct json_slice name;
    size_t bad;
    if (!utf8_valid(text, length, &bad)) return error_set(err, ST_INVAL, "invalid UTF-8 at byte %zu", bad);
    json_pull_init(&pull, text, length, err);
    json_pull_object(&pull);
    while (json_pull_member(&pull, &name)) TRY(take_member(&pull, name, config, err));
    json_pull_end(&pull);
    return pull.status;
}

/* Reads config->name; all values stay NULL when there is no such file. The caller releases config in any case. */
static enum status read_config(const char *folder, struct config_file *config, struct error *err)
{
    char *text;
    size_t length;
    struct error reason = {""};
    enum status status = read_text_file(folder, config->name, limits.tokenizer_config_bytes, "tokenizer_config_bytes",
                                        &text, &length, err);
    if (status == ST_NOTFOUND) return ST_OK;
    TRY(status);
    status = read_members(text, length, config, &reason);
    mem_free(text);
    return status == ST_OK ? ST_OK : error_set(err, status, "%s: %.400s", config->name, reason.message);
}

struct configs {
    struct config_file tokenizer, generation, model;
};

/* --- single ids --- */

/* A token named by tokenizer_config.json: "text", or {"content": "text"}, or null. Padding is often named and never
 * meant: it need not be a token. */
static enum status read_named(const struct configs *configs, enum key key, const struct vocab *vocab, uint32_t *id,
                              struct error *err)
{
    const struct json *value = configs->tokenizer.values[key];
    if (json_kind(value) == JSON_KIND_OBJECT) value = json_member(value, "content");
    if (json_kind(value) == JSON_KIND_NULL) return ST_OK;
    size_t length;
    const char *text = json_to_text(value, &length);
    if (!text) return error_set(err, ST_INVAL, "tokenizer_config.json: \"%s\" is no text", key_names[key]);
    *id = vocab_find(vocab, text, length);
    if (*id == VOCAB_NO_ID && key != KEY_PAD_TOKEN)
        return error_set(err, ST_INVAL, "tokenizer_config.json: %s \"%.64s\" is no token of tokenizer.json",
                         key_names[key], text);
    return ST_OK;
}

/* An id of a configuration. One past the tokens (a padded embedding has such rows) names nothing. */
static enum status check_id(const struct json *value, const char *file, enum key key, const struct vocab *vocab,
                            uint32_t *id, struct error *err)
{
    int64_t number = json_to_int(value);
    if (json_kind(value) != JSON_KIND_INT || number < -1 || number > UINT32_MAX)
        return error_set(err, ST_INVAL, "%s: \"%s\" is no id", file, key_names[key]);
    *id = number >= 0 && number < vocab->count ? (uint32_t)number : VOCAB_NO_ID;
    return ST_OK;
}

/* The member of generation_config.json, else of config.json (of its text_config in models of several kinds of input).
 * NULL: nowhere. */
static const struct json *find_id(const struct configs *configs, enum key key, const char **file)
{
    *file = configs->generation.name;
    const struct json *value = configs->generation.values[key];
    if (json_kind(value) != JSON_KIND_NULL) return value;
    *file = configs->model.name;
    value = configs->model.values[key];
    if (json_kind(value) == JSON_KIND_NULL) value = json_member(configs->model.values[KEY_TEXT_CONFIG], key_names[key]);
    return json_kind(value) == JSON_KIND_NULL ? NULL : value;
}

static enum status read_id(const struct configs *configs, enum key name_key, enum key id_key, const struct vocab *vocab,
                           uint32_t *id, struct error *err)
{
    const char *file;
    *id = VOCAB_NO_ID;
    if (configs->tokenizer.values[name_key]) return read_named(configs, name_key, vocab, id, err);
    const struct json *value = find_id(configs, id_key, &file);
    if (json_kind(value) == JSON_KIND_LIST) value = json_at(value, 0);
    return value ? check_id(value, file, id_key, vocab, id, err) : ST_OK;
}

static enum status read_end_ids(const struct configs *configs, struct vocab *vocab, struct error *err)
{
    const char *file;
    uint32_t id;
    const struct json *value = find_id(configs, KEY_EOS_ID, &file);
    bool list = json_kind(value) == JSON_KIND_LIST, room = true;
    for (size_t i = 0; value && i < (list ? json_length(value) : 1); i++) {
        TRY(check_id(list ? json_at(value, i) : value, file, KEY_EOS_ID, vocab, &id, err));
        room &= vocab_add_end(vocab, id);
    }
    if (!room) return error_set(err, ST_LIMIT, "%s: eos_token_id has more than %d ids", file, (int)VOCAB_END_IDS_MAX);
    vocab_add_end(vocab, vocab->eos_id);
    vocab_add_turn_ends(vocab);
    return ST_OK;
}

/* --- what is added around a text --- */

/* add_bos_token and add_eos_token: *given false when the file does not say. */
static enum status read_flag(const struct configs *configs, enum key key, bool *flag, bool *given, struct error *err)
{
    const struct json *value = configs->tokenizer.values[key];
    *given = json_kind(value) == JSON_KIND_BOOL;
    *flag = json_to_bool(value);
    if (*given || json_kind(value) == JSON_KIND_NULL) return ST_OK;
    return error_set(err, ST_INVAL, "tokenizer_config.json: \"%s\" is neither true nor false", key_names[key]);
}

static enum status add_around(struct vocab *vocab, uint32_t **ids, uint32_t *count, uint32_t id, bool front,
                              struct error *err)
{
    uint32_t *more = arena_alloc(vocab->pipeline->arena, *count + (size_t)1, sizeof *more);
    if (!more) return error_set(err, ST_NOMEM, "no memory for the tokens around a text");
    if (*count) memcpy(more + front, *ids, *count * sizeof *more);
    more[front ? 0 : *count] = id;
    *ids = more;
    ++*count;
    return ST_OK;
}

static enum status read_around(const struct configs *configs, struct vocab *vocab, struct error *err)
{
    struct vocab_pipeline *p = vocab->pipeline;
    bool bos, bos_given, eos, eos_given;
    TRY(read_flag(configs, KEY_ADD_BOS, &bos, &bos_given, err));
    TRY(read_flag(configs, KEY_ADD_EOS, &eos, &eos_given, err));
    bool has_bos = p->prefix_count && vocab->bos_id != VOCAB_NO_ID && p->prefix_ids[0] == vocab->bos_id;
    bool has_eos =
        p->suffix_count && vocab->eos_id != VOCAB_NO_ID && p->suffix_ids[p->suffix_count - 1] == vocab->eos_id;
    if (bos_given && bos && !has_bos && vocab->bos_id != VOCAB_NO_ID)
        TRY(add_around(vocab, &p->prefix_ids, &p->prefix_count, vocab->bos_id, true, err));
    if (bos_given && !bos && has_bos) {
        p->prefix_ids++;
        p->prefix_count--;
    }
    if (eos_given && eos && !has_eos && vocab->eos_id != VOCAB_NO_ID)
        TRY(add_around(vocab, &p->suffix_ids, &p->suffix_count, vocab->eos_id, false, err));
    if (eos_given && !eos && has_eos) p->suffix_count--;
    vocab->add_bos = p->prefix_count && p->prefix_ids[0] == vocab->bos_id;
    vocab->add_eos = p->suffix_count && p->suffix_ids[p->suffix_count - 1] == vocab->eos_id;
    return ST_OK;
}

static enum status read_meanings(const struct configs *configs, struct vocab *vocab, struct error *err)
{
    TRY(read_id(configs, KEY_BOS_TOKEN, KEY_BOS_ID, vocab, &vocab->bos_id, err));
    TRY(read_id(configs, KEY_EOS_TOKEN, KEY_EOS_ID, vocab, &vocab->eos_id, err));
    TRY(read_id(configs, KEY_PAD_TOKEN, KEY_PAD_ID, vocab, &vocab->padding_id, err));
    TRY(read_around(configs, vocab, err));
    return read_end_ids(configs, vocab, err);
}

static enum status read_tokenizer(const char *folder, struct vocab *vocab, struct error *err)
{
    char *text;
    size_t length;
    struct error reason = {""};
    enum status status = read_text_file(folder, "tokenizer.json", limits.tokenizer_json_bytes, "tokenizer_json_bytes",
                                        &text, &length, err);
    if (status == ST_NOTFOUND)
        return error_set(err, status,
                         "tokenizer.json is missing from the folder: fetch it (tokenizer.model and other forms are not "
                         "read, convert them)");
    TRY(status);
    status = vocab_read_json(text, length, vocab, &reason);
    mem_free(text);
    return status == ST_OK ? ST_OK : error_set(err, status, "tokenizer.json: %.400s", reason.message);
}

enum status vocab_read_folder(const char *folder, struct vocab *vocab, struct error *err)
{
    struct configs configs = {
        {.name = "tokenizer_config.json"}, {.name = "generation_config.json"}, {.name = "config.json"}};
    *vocab = (struct vocab){0};
    enum status status = read_tokenizer(folder, vocab, err);
    if (status == ST_OK) status = read_config(folder, &configs.tokenizer, err);
    if (status == ST_OK) status = read_config(folder, &configs.generation, err);
    if (status == ST_OK) status = read_config(folder, &configs.model, err);
    if (status == ST_OK) status = read_meanings(&configs, vocab, err);
    config_release(&configs.tokenizer);
    config_release(&configs.generation);
    config_release(&configs.model);
    if (status != ST_OK) vocab_free(vocab);
    return status;
}

/* --- the template --- */

/* chat_template of tokenizer_config.json: a text, or a list of named ones. NULL: none. */
static const struct json *find_template(const struct config_file *config)
{
    const struct json *value = config->values[KEY_TEMPLATE];
    if (json_kind(value) != JSON_KIND_LIST) return value;
    for (size_t i = 0; i < json_length(value); i++) {
        const char *name = json_to_text(json_member(json_at(value, i), "name"), NULL);
        if (name && !strcmp(name, "default")) return json_member(json_at(value, i), "template");
    }
    return NULL;
}

static enum status template_of_config(const char *folder, char **text, size_t *length, struct error *err)
{
    struct config_file config = {.name = "tokenizer_config.json"};
    enum status status = read_config(folder, &config, err);
    const struct json *value = status == ST_OK ? find_template(&config) : NULL;
    *text = NULL;
    if (json_kind(value) == JSON_KIND_TEXT) {
        const char *found = json_to_text(value, length);
        if (!(*text = mem_strdup(found, *length))) status = error_set(err, ST_NOMEM, "no memory for the chat template");
    } else if (json_kind(value) != JSON_KIND_NULL) {
        status = error_set(err, ST_INVAL, "tokenizer_config.json: \"chat_template\" is no text");
    }
    config_release(&config);
    return status;
}

enum status vocab_read_folder_template(const char *folder, const char **text, size_t *length, struct error *err)
{
    const char *file = "chat_template.jinja";
    char *found;
    size_t found_length = 0;
    enum status status = read_text_file(folder, file, limits.tokenizer_config_bytes, "tokenizer_config_bytes", &found,
                                        &found_length, err);
    if (status == ST_NOTFOUND) {
        file = "tokenizer_config.json";
        status = template_of_config(folder, &found, &found_length, err);
    }
    TRY(status);
    if (found && (memchr(found, 0, found_length) || !utf8_valid(found, found_length, NULL))) {
        mem_free(found);
        return error_set(err, ST_INVAL, "%s: the chat template is not valid UTF-8 text without NUL bytes", file);
    }
    if (found && !found_length) {
        mem_free(found);
        found = NULL;
    }
    *text = found;
    *length = found_length;
    return ST_OK;
}
