/* See json_file.h. */
#include "runtime/model/json_file.h"

#include "runtime/base/file.h"
#include "runtime/base/limits.h"
#include "runtime/base/mem.h"

#include <stdio.h>

enum status folder_path(const char *folder, const char *name, char path[FOLDER_PATH_BYTES], struct error *err)
{
    int length = snprintf(path, FOLDER_PATH_BYTES, "%s/%s", folder, name);
    if (length < 0 || length >= FOLDER_PATH_BYTES)
        return error_set(err, ST_LIMIT, "%.80s: the path of the file is longer than %d bytes", name,
                         FOLDER_PATH_BYTES - 1);
    return ST_OK;
}

static enum status read_object(const char *text, size_t length, struct json **root, struct error *err)
{
    struct json *read = NULL;
    TRY(json_read(text, length, &read, err));
    if (json_kind(read) != JSON_KIND_OBJECT) {
        enum json_kind kind = json_kind(read);
        json_release(read);
        return error_set(err, ST_INVAL, "the file holds JSON of kind %s, it must be an object", json_kind_name(kind));
    }
    *root = read;
    return ST_OK;
}

enum status json_file_read(const char *folder, const char *name, struct json **root, struct error *err)
{
    char path[FOLDER_PATH_BYTES], *text = NULL;
    size_t length = 0;
    struct error inner = {""};
    TRY(folder_path(folder, name, path, err));
    enum status status = file_read(path, limits.model_json_bytes, "model_json_bytes", &text, &length, &inner);
    if (status == ST_NOTFOUND) return error_set(err, status, "%s is missing from the folder", name);
    if (status == ST_OK) status = read_object(text, length, root, &inner);
    mem_free(text);
    return status == ST_OK ? ST_OK : error_set(err, status, "%s: %s", name, inner.message);
}
