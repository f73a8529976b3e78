/* What a model file or a folder holds, for people and for programs: `millrace inspect PATH`.
 *
 * One whose file, or whose weights, are sound but that cannot be served (another architecture, an unsupported feature)
 * is described too, with the reason: then the parts that need a spec are left out. Any thread; opens and closes the
 * file itself. */
#ifndef RUNTIME_MODEL_INSPECT_H
#define RUNTIME_MODEL_INSPECT_H

#include "runtime/base/buf.h"
#include "runtime/base/status.h"

/* Appends a description of some lines to out. Errors are those of model_open for what is not sound, and
 * ST_NOMEM or ST_LIMIT when out cannot hold the text. */
NODISCARD enum status model_inspect(const char *path, struct buf *out, struct error *err);
/* The same as one JSON object. Members "model", "vocabulary" and "memory" are null when "servable" is false. */
NODISCARD enum status model_inspect_json(const char *path, struct buf *out, struct error *err);

#endif
