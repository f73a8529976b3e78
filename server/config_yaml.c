/* Settings from libyaml's event stream; see config_yaml.h. */
#include "server/config_yaml.h"

#include "runtime/base/limits.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <yaml.h>

enum { KEY_BYTES_MAX = 128, VALUE_BYTES_MAX = 4096 };

struct reader {
    const char *path;
    config_yaml_fn set;
    void *state;
    bool in_mapping, in_list, have_key, documents;
    char key[KEY_BYTES_MAX];
};

static enum status refuse(const struct reader *reader, const yaml_event_t *event, const char *what, struct error *err)
{
    return error_set(err, ST_INVAL, "%s, line %zu: %s", reader->path, event->start_mark.line + 1, what);
}

static enum status take_scalar(struct reader *reader, const yaml_event_t *event, struct error *err)
{
    const char *text = (const char *)event->data.scalar.value;
    size_t length = event->data.scalar.length;
    if (!reader->in_mapping) return refuse(reader, event, "expected \"name: value\" lines", err);
    if (event->data.scalar.anchor) return refuse(reader, event, "anchors are not supported", err);
    if (memchr(text, 0, length)) return refuse(reader, event, "a NUL byte", err);
    if (reader->have_key) {
        if (length >= VALUE_BYTES_MAX) return refuse(reader, event, "the value is too long", err);
        if (!reader->in_list) reader->have_key = false;
        return reader->set(reader->state, reader->key, text, err);
    }
    if (!length || length >= sizeof reader->key) return refuse(reader, event, "the name is empty or too long", err);
    memcpy(reader->key, text, length + 1);
    reader->have_key = true;
    return ST_OK;
}

static enum status take(struct reader *reader, const yaml_event_t *event, struct error *err)
{
    switch (event->type) {
    case YAML_SCALAR_EVENT: return take_scalar(reader, event, err);
    case YAML_MAPPING_START_EVENT:
        if (reader->in_mapping || reader->documents)
            return refuse(reader, event, "nested settings are not known here", err);
        reader->in_mapping = true;
        return ST_OK;
    case YAML_MAPPING_END_EVENT:
        reader->in_mapping = false;
        reader->documents = true;
        return ST_OK;
    case YAML_SEQUENCE_START_EVENT:
        if (!reader->have_key || reader->in_list) return refuse(reader, event, "a list belongs after a name", err);
        reader->in_list = true;
        return ST_OK;
    case YAML_SEQUENCE_END_EVENT:
        reader->in_list = false;
        reader->have_key = false;
        return ST_OK;
    case YAML_ALIAS_EVENT: return refuse(reader, event, "aliases are not supported", err);
    case YAML_DOCUMENT_START_EVENT:
        if (reader->documents) return refuse(reader, event, "more than one document", err);
        return ST_OK;
    default: return ST_OK;
    }
}

enum status config_yaml_read(const char *path, config_yaml_fn set, void *state, struct error *err)
{
    FILE *file = fopen(path, "rb");
    struct stat info;
    if (!file) return error_set(err, errno == ENOENT ? ST_NOTFOUND : ST_IO, "%s: %s", path, strerror(errno));
    if (fstat(fileno(file), &info) != 0 || !S_ISREG(info.st_mode) || (uint64_t)info.st_size > limits.config_bytes) {
        fclose(file);
        return error_set(err, ST_LIMIT, "%s: not a regular file of at most %" PRIu64 " bytes", path,
                         limits.config_bytes);
    }
    yaml_parser_t parser;
    if (!yaml_parser_initialize(&parser)) {
        fclose(file);
        return error_set(err, ST_NOMEM, "%s: %s", path, status_text(ST_NOMEM));
    }
    yaml_parser_set_input_file(&parser, file);
    struct reader reader = {.path = path, .set = set, .state = state};
    enum status status = ST_OK;
    for (bool end = false; status == ST_OK && !end;) {
        yaml_event_t event;
        if (!yaml_parser_parse(&parser, &event)) {
            status = error_set(err, ST_INVAL, "%s, line %zu: %s", path, parser.problem_mark.line + 1,
                               parser.problem ? parser.problem : "not YAML");
            break;
        }
        end = event.type == YAML_STREAM_END_EVENT;
        status = take(&reader, &event, err);
        yaml_event_delete(&event);
    }
    yaml_parser_delete(&parser);
    fclose(file);
    return status;
}
