/* Every bound on what comes from outside, in one table. No bound stands elsewhere.
 *
 *   LIMIT(name, default, floor, ceiling, unit, status, http_code)
 *
 * `default` holds unless configuration sets another value within [floor, ceiling]; `http_code` is what a client gets
 * when its request passes the limit (0: not a request's limit). A bound is checked before memory is taken. Tests are
 * made from this table: at the limit, one below, one above, ten times above. Source of the values: design "robustness",
 * section 3. Written once at start, then read by any thread. */
#ifndef RUNTIME_BASE_LIMITS_H
#define RUNTIME_BASE_LIMITS_H

#include "runtime/base/status.h"

#include <stdint.h>

#define LIMITS_MAP(LIMIT)                                                                                              \
    LIMIT(http_request_line_bytes, 8192, 64, 65536, "bytes", ST_LIMIT, 414)                                            \
    LIMIT(http_header_bytes, 8192, 64, 65536, "bytes", ST_LIMIT, 431)                                                  \
    LIMIT(http_headers_bytes, 32768, 256, 1048576, "bytes", ST_LIMIT, 431)                                             \
    LIMIT(http_headers, 100, 4, 1000, "headers", ST_LIMIT, 431)                                                        \
    LIMIT(http_body_bytes, 16777216, 1024, 268435456, "bytes", ST_LIMIT, 413)                                          \
    LIMIT(http_bodies_bytes, 1073741824, 1024, 1099511627776, "bytes", ST_LIMIT, 503)                                  \
    LIMIT(http_chunk_extension_bytes, 256, 0, 4096, "bytes", ST_PROTO, 400)                                            \
    LIMIT(http_pipelined, 16, 1, 1024, "requests", ST_LIMIT, 0)                                                        \
    LIMIT(http_head_timeout_ms, 10000, 100, 600000, "ms", ST_TIMEOUT, 408)                                             \
    LIMIT(http_body_grace_ms, 5000, 100, 600000, "ms", ST_TIMEOUT, 408)                                                \
    LIMIT(http_body_rate_min, 1024, 0, 1048576, "bytes/s", ST_TIMEOUT, 408)                                            \
    LIMIT(http_idle_timeout_ms, 75000, 100, 3600000, "ms", ST_TIMEOUT, 0)                                              \
    LIMIT(connections, 4096, 1, 1048576, "connections", ST_LIMIT, 0)                                                   \
    LIMIT(connections_per_address, 4096, 1, 1048576, "connections", ST_LIMIT, 0)                                       \
    LIMIT(json_depth, 64, 4, 512, "levels", ST_LIMIT, 400)                                                             \
    LIMIT(json_values, 1000000, 100, 10000000, "values", ST_LIMIT, 400)                                                \
    LIMIT(json_number_chars, 64, 20, 1024, "characters", ST_LIMIT, 400)                                                \
    LIMIT(api_choices, 16, 1, 128, "choices", ST_LIMIT, 400)                                                           \
    LIMIT(api_prompts, 256, 1, 4096, "prompts", ST_LIMIT, 400)                                                         \
    LIMIT(api_stop_strings, 16, 1, 64, "strings", ST_LIMIT, 400)                                                       \
    LIMIT(api_stop_string_bytes, 256, 1, 4096, "bytes", ST_LIMIT, 400)                                                 \
    LIMIT(api_stop_token_ids, 128, 1, 1024, "ids", ST_LIMIT, 400)                                                      \
    LIMIT(api_top_logprobs, 20, 0, 100, "tokens", ST_LIMIT, 400)                                                       \
    LIMIT(api_logit_bias, 1024, 0, 65536, "entries", ST_LIMIT, 400)                                                    \
    LIMIT(api_allowed_token_ids, 65536, 0, 1048576, "ids", ST_LIMIT, 400)                                              \
    LIMIT(api_bad_words, 256, 0, 4096, "words", ST_LIMIT, 400)                                                         \
    LIMIT(api_messages, 4096, 1, 65536, "messages", ST_LIMIT, 400)                                                     \
    LIMIT(api_tools, 128, 0, 1024, "tools", ST_LIMIT, 400)                                                             \
    LIMIT(api_request_memory_bytes, 67108864, 65536, 1073741824, "bytes", ST_LIMIT, 400)                               \
    LIMIT(template_steps, 1000000, 1000, 100000000, "steps", ST_LIMIT, 400)                                            \
    LIMIT(template_output_bytes, 8388608, 1024, 67108864, "bytes", ST_LIMIT, 400)                                      \
    LIMIT(template_depth, 64, 8, 256, "levels", ST_LIMIT, 400)                                                         \
    LIMIT(template_memory_bytes, 33554432, 65536, 1073741824, "bytes", ST_LIMIT, 400)                                  \
    LIMIT(queue_requests, 1024, 1, 1048576, "requests", ST_LIMIT, 503)                                                 \
    LIMIT(queue_prompt_tokens, 4194304, 1, 1073741824, "tokens", ST_LIMIT, 503)                                        \
    LIMIT(queue_tenant_share_percent, 25, 1, 100, "percent", ST_LIMIT, 429)                                            \
    LIMIT(stream_unsent_bytes, 65536, 4096, 16777216, "bytes", ST_LIMIT, 0)                                            \
    LIMIT(stream_stall_ms, 30000, 100, 3600000, "ms", ST_TIMEOUT, 0)                                                   \
    LIMIT(request_deadline_ms, 600000, 1000, 86400000, "ms", ST_TIMEOUT, 504)                                          \
    LIMIT(gguf_keys, 65536, 1, 1048576, "keys", ST_LIMIT, 0)                                                           \
    LIMIT(gguf_tensors, 65536, 1, 1048576, "tensors", ST_LIMIT, 0)                                                     \
    LIMIT(gguf_string_bytes, 16777216, 64, 268435456, "bytes", ST_LIMIT, 0)                                            \
    LIMIT(gguf_array_items, 4194304, 16, 67108864, "items", ST_LIMIT, 0)                                               \
    LIMIT(safetensors_shards, 1024, 1, 65536, "files", ST_LIMIT, 0)                                                    \
    LIMIT(safetensors_header_bytes, 100000000, 64, 1000000000, "bytes", ST_LIMIT, 0)                                   \
    LIMIT(safetensors_tensors, 262144, 1, 4194304, "tensors", ST_LIMIT, 0)                                             \
    LIMIT(model_json_bytes, 33554432, 64, 1073741824, "bytes", ST_LIMIT, 0)                                            \
    LIMIT(model_layers, 512, 1, 1024, "layers", ST_LIMIT, 0)                                                           \
    LIMIT(model_experts, 1024, 1, 65536, "experts", ST_LIMIT, 0)                                                       \
    LIMIT(model_heads, 1024, 1, 16384, "heads", ST_LIMIT, 0)                                                           \
    LIMIT(model_width, 131072, 64, 1048576, "values", ST_LIMIT, 0)                                                     \
    LIMIT(model_vocab, 2097152, 16, 16777216, "tokens", ST_LIMIT, 0)                                                   \
    LIMIT(tokenizer_json_bytes, 134217728, 1024, 1073741824, "bytes", ST_LIMIT, 0)                                     \
    LIMIT(tokenizer_config_bytes, 16777216, 1024, 134217728, "bytes", ST_LIMIT, 0)                                     \
    LIMIT(tokenizer_merges, 8388608, 16, 67108864, "merges", ST_LIMIT, 0)                                              \
    LIMIT(tokenizer_steps, 64, 4, 1024, "steps", ST_LIMIT, 0)                                                          \
    LIMIT(signal_file_bytes, 4194304, 64, 67108864, "bytes", ST_LIMIT, 0)                                              \
    LIMIT(config_bytes, 1048576, 64, 16777216, "bytes", ST_LIMIT, 0)                                                   \
    LIMIT(directory_lines, 2000000, 16, 16777216, "lines", ST_LIMIT, 0)                                                \
    LIMIT(idempotency_entries, 65536, 1, 16777216, "keys", ST_LIMIT, 0)                                                \
    LIMIT(idempotency_bytes, 268435456, 65536, 17179869184, "bytes", ST_LIMIT, 0)                                      \
    LIMIT(idempotency_keep_ms, 86400000, 1000, 604800000, "ms", ST_TIMEOUT, 0)                                         \
    LIMIT(batch_file_bytes, 209715200, 1024, 17179869184, "bytes", ST_LIMIT, 413)                                      \
    LIMIT(batch_lines, 50000, 1, 1000000, "requests", ST_LIMIT, 400)                                                   \
    LIMIT(batch_files, 1000, 1, 100000, "files of an account", ST_LIMIT, 429)                                          \
    LIMIT(batch_unfinished, 100, 1, 10000, "batches of an account", ST_LIMIT, 429)                                     \
    LIMIT(batch_folder_bytes, 53687091200, 1048576, 1099511627776, "bytes", ST_LIMIT, 503)                             \
    LIMIT(pool_entry_bytes, 65536, 1024, 262144, "bytes of a request", ST_LIMIT, 0)                                    \
    LIMIT(pool_result_bytes, 262144, 1024, 1048576, "bytes of an answer", ST_LIMIT, 0)                                 \
    LIMIT(pool_entries, 10000, 1, 1000000, "requests of a model", ST_LIMIT, 0)                                         \
    LIMIT(pool_offers, 256, 1, 65536, "requests of a server", ST_LIMIT, 0)                                             \
    LIMIT(pool_reclaim_ms, 30000, 2000, 600000, "ms", ST_TIMEOUT, 0)                                                   \
    LIMIT(upstream_answer_bytes, 8388608, 1024, 268435456, "bytes of an answer", ST_LIMIT, 0)                          \
    LIMIT(upstream_event_bytes, 1048576, 256, 16777216, "bytes of an event", ST_LIMIT, 0)                              \
    LIMIT(upstream_ahead_bytes, 262144, 4096, 16777216, "bytes", ST_LIMIT, 0)                                          \
    LIMIT(redis_reply_bytes, 1048576, 16384, 67108864, "bytes", ST_PROTO, 0)                                           \
    LIMIT(redis_reply_values, 65536, 1024, 1048576, "values", ST_PROTO, 0)                                             \
    LIMIT(redis_reply_depth, 7, 4, 7, "levels", ST_PROTO, 0)

/* The limits in force, one member a line of the table. */
struct limits {
#define LIMIT(name, default_value, floor, ceiling, unit, status, http_code) uint64_t name;
    LIMITS_MAP(LIMIT)
#undef LIMIT
};
extern struct limits limits;

struct limit_row {
    const char *name, *unit;
    uint64_t value_default, floor, ceiling;
    enum status status;
    int http_code;
    uint64_t *value; /* the member of `limits` */
};

/* The table as data, for configuration, help and tests. */
extern const struct limit_row limits_table[];
extern const size_t limits_count;

/* Sets one limit by name. ST_NOTFOUND: no such limit; ST_INVAL: outside [floor, ceiling], err says which. */
NODISCARD enum status limits_set(const char *name, uint64_t value, struct error *err);

#endif
