/* A whole regular file into memory, under a bound. For small and medium files that are parsed once (configuration of a
 * model, templates, tokenisers); weights are mapped instead. Any thread. */
#ifndef RUNTIME_BASE_FILE_H
#define RUNTIME_BASE_FILE_H

#include "runtime/base/status.h"

#include <stddef.h>
#include <stdint.h>

/* Reads the file at path into *data, NUL-terminated (the NUL is not counted), released with mem_free. Errors, each
 * with a line in err that names the reason but not the path: ST_NOTFOUND: there is no such file; ST_LIMIT: longer than
 * bytes_max (limit_name is quoted); ST_IO: not a regular file, or reading failed; ST_NOMEM. */
NODISCARD enum status file_read(const char *path, uint64_t bytes_max, const char *limit_name, char **data,
                                size_t *length, struct error *err);

#endif
