/* A flat YAML file of settings: one mapping of names to scalars, or to lists of scalars (each item is a call of its
 * own). Aliases, anchors, tags, nested mappings and a second document are refused; the file's size is bounded by
 * config_bytes. */
#ifndef SERVER_CONFIG_YAML_H
#define SERVER_CONFIG_YAML_H

#include "runtime/base/status.h"

typedef enum status (*config_yaml_fn)(void *state, const char *key, const char *value, struct error *err);

/* Calls `set` for every value in order; stops at its first failure. ST_IO, ST_NOTFOUND: the file; ST_INVAL: not such a
 * file (err names file and line); ST_LIMIT: too large. */
NODISCARD enum status config_yaml_read(const char *path, config_yaml_fn set, void *state, struct error *err);

#endif
