/* A JSON document of a model's folder (config.json, model.safetensors.index.json ...), read whole. Any thread. */
#ifndef RUNTIME_MODEL_JSON_FILE_H
#define RUNTIME_MODEL_JSON_FILE_H

#include "runtime/base/json.h"
#include "runtime/base/status.h"

#include <stddef.h>

enum { FOLDER_PATH_BYTES = 4096 };

/* "folder/name", NUL-terminated. ST_LIMIT: it does not fit. */
NODISCARD enum status folder_path(const char *folder, const char *name, char path[FOLDER_PATH_BYTES],
                                  struct error *err);

/* Reads folder/name, which must be an object; release with json_release. ST_NOTFOUND: there is no such file; ST_LIMIT:
 * larger than model_json_bytes, or past a json_* limit; ST_INVAL: not JSON, or not an object; ST_IO; ST_NOMEM. err
 * begins with the name. */
NODISCARD enum status json_file_read(const char *folder, const char *name, struct json **root, struct error *err);

#endif
