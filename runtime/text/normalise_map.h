/* The map of SentencePiece's normaliser ("precompiled_charsmap"): a double-array trie from characters to what stands
 * for them. Immutable after creation; any thread. */
#ifndef RUNTIME_TEXT_NORMALISE_MAP_H
#define RUNTIME_TEXT_NORMALISE_MAP_H

#include "runtime/base/status.h"

#include <stddef.h>
#include <stdint.h>

struct normalise_map {
    uint8_t *data;   /* the map, decoded */
    uint32_t units;  /* of the trie, 4 bytes each, behind their number */
    size_t text_at;  /* where the replacements begin in data: NUL-terminated, one after another */
    size_t data_end; /* the end of data, where a NUL stands */
};

/* From Base64. ST_INVAL: not such a map; ST_NOMEM. On failure the map needs no free. */
NODISCARD enum status normalise_map_init(struct normalise_map *map, const char *base64, size_t length,
                                         struct error *err);
void normalise_map_free(struct normalise_map *map); /* fine on zeroed memory */

/* Cuts text into pieces, in order: each with what stands for it, or NULL where it stays. */
typedef void (*normalise_map_fn)(void *state, size_t from, size_t to, const char *replacement, size_t length);
void normalise_map_run(const struct normalise_map *map, const char *text, size_t length, normalise_map_fn piece,
                       void *state);

#endif
