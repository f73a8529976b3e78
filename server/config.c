/* Reading the settings of a command in order of strength: defaults, YAML file, environment, arguments. See config.h.
 *
 * Each source sets members through option_set. A list that a stronger source gives replaces the weaker one's. Limits
 * (--limit-NAME) are not rows of the option table but of the limits table, under the same rules. */
#include "server/config.h"

#include "runtime/base/check.h"
#include "runtime/base/limits.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"
#include "server/config_yaml.h"
#include "server/model_names.h"
#include "server/nodes.h"
#include "server/options.h"
#include "server/seal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAME_MAX_CHARS = 96, OPTIONS_MAX = 128 };

/* One source while it is read: which lists it has already replaced. */
struct source {
    struct config *config;
    enum config_command command;
    bool replaced[OPTIONS_MAX]; /* option i's list was cleared by this source */
    uint32_t names_uses;        /* of --served-model-name, as a flag */
    bool names_several;         /* one of them had several values */
};

static void list_clear(struct config_list *list)
{
    for (uint32_t i = 0; i < list->count; i++) mem_free(list->items[i]);
    list->count = 0;
}

static enum status source_set(struct source *source, const struct option *option, const char *origin, const char *text,
                              struct error *err)
{
    size_t idx = (size_t)(option - option_table);
    CHECK(idx < OPTIONS_MAX);
    if (option->kind == OPTION_LIST && !source->replaced[idx]) {
        list_clear((struct config_list *)((char *)source->config + option->offset));
        source->replaced[idx] = true;
    }
    return option_set(source->config, option, origin, text, err);
}

/* "limit-json-depth" sets limits.json_depth. ST_NOTFOUND: no such name. */
static enum status set_limit(const char *name, const char *origin, const char *text, struct error *err)
{
    char key[NAME_MAX_CHARS];
    size_t length = strlen(name);
    if (strncmp(name, "limit-", 6) != 0 || length - 6 >= sizeof key) return ST_NOTFOUND;
    for (size_t i = 6; i <= length; i++) key[i - 6] = name[i] == '-' ? '_' : name[i];
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno || *end || *text < '0' || *text > '9')
        return error_set(err, ST_INVAL, "%s: \"%.64s\" is not a whole number", origin, text);
    struct error reason = {{0}};
    enum status status = limits_set(key, value, &reason);
    if (status == ST_NOTFOUND) return ST_NOTFOUND;
    return status == ST_OK ? ST_OK : error_set(err, status, "%s: %.400s", origin, reason.message);
}

static enum status unknown(const char *origin, const char *name, enum config_command command, struct error *err)
{
    const char *nearest = option_nearest(name, command);
    return error_set(err, ST_INVAL, "%s: no such option%s%s; --help lists them", origin,
                     nearest ? ", did you mean --" : "", nearest ? nearest : "");
}

static enum status set_named(struct source *source, const char *name, const char *origin, const char *text,
                             struct error *err)
{
    const struct option *option = option_find(name);
    if (option && (option->commands & source->command)) return source_set(source, option, origin, text, err);
    enum status status = option ? ST_NOTFOUND : set_limit(name, origin, text, err);
    return status == ST_NOTFOUND ? unknown(origin, name, source->command, err) : status;
}

static enum status add_model(struct source *source, const char *path, struct error *err)
{
    struct config_list *models = &source->config->models;
    uint32_t most = source->command == COMMAND_SERVE ? MODELS_MAX : 1;
    if (models->count == most)
        return error_set(err, ST_INVAL, "%.80s: %s, %.200s was given before", path,
                         most == 1 ? "one model at a time" : "too many models", models->items[models->count - 1]);
    char *copy = mem_strdup(path, strlen(path));
    if (!copy) return error_set(err, ST_NOMEM, "%s", status_text(ST_NOMEM));
    models->items[models->count++] = copy;
    return ST_OK;
}

static enum status set_from_yaml(void *state, const char *key, const char *value, struct error *err)
{
    struct source *source = state;
    char origin[NAME_MAX_CHARS + 64], name[NAME_MAX_CHARS];
    snprintf(origin, sizeof origin, "%.60s: %.80s", source->config->config_file, key);
    size_t length = strlen(key);
    if (length >= sizeof name) return error_set(err, ST_INVAL, "%s: the name is too long", origin);
    for (size_t i = 0; i <= length; i++) name[i] = key[i] == '_' ? '-' : key[i];
    if (!strcmp(name, "model")) return add_model(source, value, err);
    if (!strcmp(name, "config"))
        return error_set(err, ST_INVAL, "%s: a configuration file cannot name another", origin);
    return set_named(source, name, origin, value, err);
}

/* MILLRACE_MAX_NUM_SEQS=64. Unknown names are told and skipped, not refused: Kubernetes puts a MILLRACE_PORT=tcp://...
 * and others into the environment of every pod beside a service named "millrace". */
static enum status read_environment(struct source *source, char **environment, struct error *err)
{
    for (char **entry = environment; entry && *entry; entry++) {
        const char *equals = strchr(*entry, '=');
        if (strncmp(*entry, "MILLRACE_", 9) != 0 || !equals || !strncmp(*entry, "MILLRACE_TEST_", 14)) continue;
        char origin[NAME_MAX_CHARS], name[NAME_MAX_CHARS];
        size_t length = (size_t)(equals - *entry);
        if (length >= sizeof origin) continue;
        memcpy(origin, *entry, length);
        origin[length] = 0;
        for (size_t i = 9; i <= length; i++)
            name[i - 9] = origin[i] == '_'                       ? '-'
                          : origin[i] >= 'A' && origin[i] <= 'Z' ? (char)(origin[i] + 32)
                                                                 : origin[i];
        if (!strcmp(name, "port") && !strncmp(equals + 1, "tcp://", 6)) continue;
        const struct option *option = option_find(name);
        enum status status = ST_NOTFOUND;
        if (option && !(option->commands & source->command)) continue;
        if (option)
            status = source_set(source, option, origin, equals + 1, err);
        else
            status = set_limit(name, origin, equals + 1, err);
        if (status == ST_NOTFOUND)
            log_line(LOG_WARN, "config", "message=\"unknown environment variable\" name=%s", origin);
        else if (status != ST_OK)
            return status;
    }
    return ST_OK;
}

static const struct option *find_letter(char letter, enum config_command command)
{
    for (size_t i = 0; i < option_count; i++)
        if (option_table[i].letter == letter && (option_table[i].commands & command)) return &option_table[i];
    return NULL;
}

/* As vLLM: --served-model-name A B. Alone among the lists: its values are told from models only by where they stand. So
 * beside another use, where a model may stand between the two, several values are refused. */
static enum status read_more_names(struct source *source, int argc, char **argv, int *at, bool joined,
                                   struct error *err)
{
    const struct option *option = option_find("served-model-name");
    for (; !joined && *at + 1 < argc && argv[*at + 1][0] != '-' && source->config->models.count > 0; ++*at) {
        TRY(source_set(source, option, "--served-model-name", argv[*at + 1], err));
        source->names_several = true;
    }
    source->names_uses++;
    if (source->names_several && source->names_uses > 1)
        return error_set(
            err, ST_INVAL,
            "--served-model-name: give it once with all names, or once for each name; models stand before it");
    return ST_OK;
}

static enum status read_flag(struct source *source, int argc, char **argv, int *at, struct error *err)
{
    const char *argument = argv[*at];
    const char *text = argument + 2;
    const char *equals = strchr(text, '=');
    char name[NAME_MAX_CHARS], origin[NAME_MAX_CHARS + 2];
    size_t length = equals ? (size_t)(equals - text) : strlen(text);
    if (length >= sizeof name) return error_set(err, ST_INVAL, "%.80s...: no such option", argument);
    memcpy(name, text, length);
    name[length] = 0;
    for (size_t i = 0; i < length; i++)
        if (name[i] == '_') name[i] = '-'; /* as vLLM: --max_num_seqs too */
    snprintf(origin, sizeof origin, "--%s", name);
    const struct option *option = option_find(name);
    if (option && option->kind == OPTION_BOOL && !equals) return set_named(source, name, origin, "true", err);
    if (!option && !strncmp(name, "no-", 3) && (option = option_find(name + 3)) && option->kind == OPTION_BOOL &&
        !equals)
        return set_named(source, name + 3, origin, "false", err);
    if (!option && strncmp(name, "limit-", 6) != 0) return unknown(origin, name, source->command, err);
    if (option && option->kind == OPTION_SECRET)
        return error_set(err, ST_INVAL, "%s: never as an argument, which every user of the machine can read; %s",
                         origin, option->help);
    if (!equals && *at + 1 >= argc) return error_set(err, ST_INVAL, "%s: a value is missing", origin);
    const char *value = equals ? equals + 1 : argv[++*at];
    TRY(set_named(source, name, origin, value, err));
    return option && !strcmp(option->name, "served-model-name") ? read_more_names(source, argc, argv, at, equals, err)
                                                                : ST_OK;
}

static enum status read_arguments(struct source *source, int argc, char **argv, struct error *err)
{
    bool only_positional = false;
    for (int i = 0; i < argc; i++) {
        const char *argument = argv[i];
        if (!only_positional && !strcmp(argument, "--")) {
            only_positional = true;
        } else if (!only_positional && (!strcmp(argument, "--help") || !strcmp(argument, "-h"))) {
            return ST_CANCELED;
        } else if (!only_positional && !strncmp(argument, "--", 2)) {
            TRY(read_flag(source, argc, argv, &i, err));
        } else if (!only_positional && argument[0] == '-' && argument[1]) {
            const struct option *option = argument[2] ? NULL : find_letter(argument[1], source->command);
            if (!option) return error_set(err, ST_INVAL, "%.80s: no such option; --help lists them", argument);
            if (i + 1 >= argc) return error_set(err, ST_INVAL, "%s: a value is missing", argument);
            TRY(source_set(source, option, argument, argv[++i], err));
        } else {
            TRY(add_model(source, argument, err));
        }
    }
    return ST_OK;
}

/* The file's name must be known before the file is read, which is before flags are applied. */
static const char *find_config_file(int argc, char **argv, char **environment)
{
    const char *file = NULL;
    for (char **entry = environment; entry && *entry; entry++)
        if (!strncmp(*entry, "MILLRACE_CONFIG=", 16)) file = *entry + 16;
    for (int i = 0; i < argc && strcmp(argv[i], "--") != 0; i++) {
        if (!strncmp(argv[i], "--config=", 9)) file = argv[i] + 9;
        if (!strcmp(argv[i], "--config") && i + 1 < argc) file = argv[i + 1];
    }
    return file;
}

static enum status check_words(const struct config *config, struct error *err)
{
    static const struct {
        const char *option, *words[8];
        size_t offset;
    } rules[] = {
        {"cpu-path",
         {"auto", "scalar", "avx2", "avxvnni", "avx512", "avx512bf16", NULL},
         offsetof(struct config, cpu_path)},
        {"kv-cache-dtype", {"auto", "bf16", "int8", "fp8", NULL}, offsetof(struct config, kv_cache_dtype)},
        {"device", {"auto", "cpu", "cuda", NULL}, offsetof(struct config, device)},
        {"dtype", {"auto", "bf16", "fp8", NULL}, offsetof(struct config, dtype)},
        {"numerics", {"fast", "exact", NULL}, offsetof(struct config, numerics)},
        {"log-level", {"error", "warn", "info", "debug", NULL}, offsetof(struct config, log_level)},
        {"enforce", {"off", "prepaid", NULL}, offsetof(struct config, enforce)},
        {"on-outage", {"reject", "retry", "continue", NULL}, offsetof(struct config, on_outage)},
        {"unseen", {"charge", "waive", NULL}, offsetof(struct config, unseen)},
    };
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++) {
        const char *value = *(char *const *)((const char *)config + rules[i].offset);
        bool known = false;
        char list[64] = "";
        size_t used = 0;
        for (const char *const *word = rules[i].words; *word; word++) {
            if (value && !strcmp(*word, value)) known = true;
            used += (size_t)snprintf(list + used, sizeof list - used, "%s%s", used ? ", " : "", *word);
        }
        if (value && !known)
            return error_set(err, ST_INVAL, "--%s: \"%.40s\" is none of %s", rules[i].option, value, list);
    }
    return ST_OK;
}

enum status config_read(struct config *config, enum config_command command, int argc, char **argv, char **environment,
                        struct error *err)
{
    memset(config, 0, sizeof *config);
    struct source source = {.config = config, .command = command};
    for (size_t i = 0; i < option_count; i++)
        if (option_table[i].value_default)
            TRY(option_set(config, &option_table[i], option_table[i].name, option_table[i].value_default, err));
    const char *file = command == COMMAND_INSPECT ? NULL : find_config_file(argc, argv, environment);
    if (file) {
        TRY(option_set(config, option_find("config"), "--config", file, err));
        TRY(config_yaml_read(file, set_from_yaml, &source, err));
    }
    memset(source.replaced, 0, sizeof source.replaced);
    TRY(read_environment(&source, environment, err));
    memset(source.replaced, 0, sizeof source.replaced);
    struct config_list models_of_file = config->models;
    config->models.count = 0;
    enum status status = read_arguments(&source, argc, argv, err);
    if (config->models.count == 0)
        config->models = models_of_file;
    else
        list_clear(&models_of_file);
    TRY(status);
    TRY(check_words(config, err));
    if (config->models.count == 0)
        return error_set(err, ST_INVAL, "no model was given: name a model's file or folder; --help tells more");
    config->model = config->models.items[0];
    if (command != COMMAND_SERVE) return ST_OK;
    TRY(nodes_find_place(config, environment, err));
    TRY(seal_check(config, err));
    return model_names_check(config, err);
}

void config_free(struct config *config)
{
    list_clear(&config->models);
    for (size_t i = 0; i < option_count; i++) {
        void *member = (char *)config + option_table[i].offset;
        if (option_table[i].kind == OPTION_TEXT || option_table[i].kind == OPTION_SECRET) mem_free(*(char **)member);
        if (option_table[i].kind == OPTION_LIST) list_clear(member);
    }
    memset(config, 0, sizeof *config);
}

bool config_takes_several(const struct config *config)
{
    return config->models.count > 1 || config->admin_keys.count > 0 || config->admin_key_file;
}

/* Appends text in lines of at most 100 columns, indented. */
static void append_wrapped(struct buf *out, const char *text, size_t indent)
{
    size_t column = 0;
    while (*text) {
        size_t word = strcspn(text, " ");
        if (column && column + 1 + word > 100 - indent) {
            buf_append_char(out, '\n');
            column = 0;
        }
        if (!column)
            buf_append_format(out, "%*s", (int)indent, "");
        else
            buf_append_char(out, ' ');
        column += word + (column ? 1 : 0);
        buf_append(out, text, word);
        text += word;
        while (*text == ' ') text++;
    }
    buf_append_char(out, '\n');
}

const char *config_head(enum config_command command)
{
    switch (command) {
    case COMMAND_SERVE:
        return "usage: millrace serve MODEL [MODEL ..] [options]\n\n"
               "Serves models over the OpenAI API until SIGTERM, which drains it. A MODEL is a .gguf file or a "
               "folder.\n"
               "  millrace serve SmolLM2-135M-Instruct.Q4_1.gguf --port 8000\n"
               "  millrace serve small.gguf large.gguf --served-model-name small,fast large\n"
               "  curl http://127.0.0.1:8000/v1/models\n\n";
    case COMMAND_GENERATE:
        return "usage: millrace generate MODEL -p TEXT [options]\n\n"
               "Continues a text on this terminal and says how fast it went.\n\n";
    case COMMAND_INSPECT:
        return "usage: millrace inspect MODEL [--json]\n\nPrints what a .gguf file or a folder holds.\n\n";
    }
    return "";
}

void config_help(enum config_command command, struct buf *out)
{
    buf_append_text(out, config_head(command));
    buf_append_text(out, "Options:\n");
    for (size_t i = 0; i < option_count; i++) {
        const struct option *option = &option_table[i];
        if (!(option->commands & command) || option->kind == OPTION_SECRET) continue;
        buf_append_text(out, "  ");
        if (option->letter) buf_append_format(out, "-%c, ", option->letter);
        buf_append_format(out, "--%s%s%s", option->kind == OPTION_BOOL ? "[no-]" : "", option->name,
                          option->value_name ? " " : "");
        if (option->value_name) buf_append_text(out, option->value_name);
        if (option->value_default && strcmp(option->value_default, "false") != 0)
            buf_append_format(out, "   (default %s)", option->value_default);
        buf_append_char(out, '\n');
        append_wrapped(out, option->help, 8);
    }
    if (command != COMMAND_SERVE) return;
    buf_append_text(out, "\nLimits on what clients and files may bring, each as --limit-NAME VALUE:\n");
    for (size_t i = 0; i < limits_count; i++) {
        char name[NAME_MAX_CHARS];
        snprintf(name, sizeof name, "%s", limits_table[i].name);
        for (char *c = name; *c; c++)
            if (*c == '_') *c = '-';
        buf_append_format(out, "  %-32s %12" PRIu64 " %-12s (%" PRIu64 "..%" PRIu64 ")\n", name,
                          limits_table[i].value_default, limits_table[i].unit, limits_table[i].floor,
                          limits_table[i].ceiling);
    }
    buf_append_text(
        out, "\nEvery option can also be set as MILLRACE_NAME in the environment (dashes become underscores) or by\n"
             "its name in the YAML file of --config. A flag wins over the environment, that over the file.\n"
             "Exit codes: 0 clean, 1 failed to start, 2 wrong usage, 3 the engine died.\n");
}

void config_print(const struct config *config, enum config_command command, struct buf *out)
{
    for (uint32_t i = 0; i < config->models.count; i++) buf_append_format(out, "model: %s\n", config->models.items[i]);
    for (size_t i = 0; i < option_count; i++) {
        if (!(option_table[i].commands & command)) continue;
        buf_append_format(out, "%s: ", option_table[i].name);
        option_write(config, &option_table[i], out);
        buf_append_char(out, '\n');
    }
}
