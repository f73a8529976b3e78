/* A file's bytes, mapped read-only: pages come when they are read, and may leave again when they have been used.
 *
 * If another process cuts the file while it is mapped, reading past its new end raises SIGBUS; see model.h.
 * Owner: the caller. Immutable while open; any thread. */
#ifndef RUNTIME_MODEL_MAPPED_FILE_H
#define RUNTIME_MODEL_MAPPED_FILE_H

#include "runtime/base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct mapped_file {
    const uint8_t *data; /* page-aligned when mapped */
    size_t bytes;
    bool mapped; /* false: somebody else's memory */
};

/* Maps a whole file; `kind` ("a GGUF file") says in messages what was wanted. ST_NOTFOUND: no such path; ST_IO: it
 * cannot be opened, is no regular file, or cannot be mapped; ST_INVAL: it is empty. */
NODISCARD enum status mapped_file_open(const char *path, const char *kind, struct mapped_file *file, struct error *err);
/* The same view of memory that stays the caller's and outlives it. */
struct mapped_file mapped_file_of_memory(const void *data, size_t size_bytes);
void mapped_file_close(struct mapped_file *file); /* a zeroed one is fine; leaves it zeroed */

/* Says that [data, data + bytes) has been used: the whole pages inside leave this process's memory (and come back from
 * the page cache if they are read again). Nothing happens to memory that is not mapped, or not of this file. */
void mapped_file_forget(const struct mapped_file *file, const void *data, size_t bytes);

#endif
