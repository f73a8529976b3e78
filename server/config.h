/* All settings of the process, filled from one option table (options.c): flags, MILLRACE_* environment, YAML keys,
 * --help. Order of precedence: flag, environment, YAML file, default. Flag names are vLLM's where the meaning is the
 * same. Strings are owned by the config. Written before threads start, then read-only. */
#ifndef SERVER_CONFIG_H
#define SERVER_CONFIG_H

#include "runtime/base/buf.h"
#include "runtime/base/status.h"
#include "runtime/device/rank_place.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { CONFIG_LIST_MAX = 64, MODELS_MAX = 16 };

struct config_list {
    char *items[CONFIG_LIST_MAX];
    uint32_t count;
};

struct config {
    struct config_list models; /* positional: paths of model files or folders; serve takes several */
    const char *model;         /* the first of them */

    char *host;                      /* --host, 127.0.0.1 */
    uint32_t port;                   /* --port, 8000; 0: any free port, told in the "ready" line */
    struct config_list api_keys;     /* --api-key (repeatable); also MILLRACE_API_KEY, and --api-key-file */
    char *api_key_file;              /* --api-key-file: lines "key" or "tenant:key" */
    struct config_list served_names; /* --served-model-name A B; see model_names.h */
    struct config_list admin_keys;   /* --admin-key (repeatable); also MILLRACE_ADMIN_KEY, and --admin-key-file */
    char *admin_key_file;            /* --admin-key-file: lines "key" or "name key" */
    char *audit_log;                 /* --audit-log FILE; NULL: none */
    bool trusted;                    /* --trusted: seal.h */
    char *admin_host;                /* --admin-host, 127.0.0.1 */
    uint32_t admin_port;             /* --admin-port; 0: admin calls on the API's port, none of billing's */
    uint32_t agent_deferrable_port;  /* --agent-deferrable-port: the same for flex and batch; 0: none */
    char *agent_host;                /* --agent-host, 127.0.0.1 */
    uint32_t agent_port;             /* --agent-port: HAProxy's agent check; 0: none */
    struct config_list model_dirs;   /* --model-dir (repeatable): folders that admin calls may load from */
    /* billing; server/billing/README.md */
    char *journal;                                          /* --journal FOLDER; NULL: nothing is billed */
    char *journal_fallback;                                 /* --journal-fallback FOLDER */
    char *journal_mode;                                     /* --journal-mode step|group:MS|write */
    uint64_t journal_segment_bytes;                         /* --journal-segment-bytes */
    uint32_t journal_keep_ms;                               /* --journal-keep (seconds) */
    char *redis;                                            /* --redis URL; NULL: the ledger is in the process */
    char *redis_password;                                   /* MILLRACE_REDIS_PASSWORD or YAML, never an argument */
    char *redis_password_file;                              /* --redis-password-file */
    char *redis_ca_file, *redis_cert_file, *redis_key_file; /* --redis-ca-file .. */
    char *enforce;                     /* --enforce off|prepaid; NULL: off, with --redis an error */
    char *on_outage;                   /* --on-outage reject|retry|continue */
    uint64_t outage_window_tokens;     /* --outage-window */
    char *prices;                      /* --prices FILE */
    char *unseen;                      /* --unseen charge|waive */
    char *bill_utc_offset;             /* --bill-utc-offset +HH:MM */
    uint32_t key_rpm, key_concurrency; /* --key-rpm, --key-concurrency; 0: no limit */
    uint64_t key_tpm;                  /* --key-tpm */

    char *upstreams;                  /* --upstreams FILE; NULL: none */
    char *batch_dir;                  /* --batch-dir FOLDER; NULL: no files, no batches */
    uint32_t batch_concurrency;       /* --batch-concurrency */
    char *pool;                       /* --pool URL; NULL: deferrable work stays here */
    char *pool_group;                 /* --pool-group NAME */
    char *pool_password;              /* MILLRACE_POOL_PASSWORD or YAML, never an argument */
    char *pool_password_file;         /* --pool-password-file */
    char *pool_ca_file;               /* --pool-ca-file */
    uint32_t pool_concurrency;        /* --pool-concurrency; 0: nothing is run for others */
    bool auto_wake;                   /* --auto-wake / --no-auto-wake, on */
    uint32_t max_model_len;           /* --max-model-len; 0: the model's own */
    uint32_t max_num_seqs;            /* --max-num-seqs */
    uint32_t max_num_batched_tokens;  /* --max-num-batched-tokens */
    uint32_t max_num_queued_reqs;     /* --max-num-queued-reqs */
    bool enable_prefix_caching;       /* --enable-prefix-caching / --no-enable-prefix-caching, on */
    uint64_t memory_limit_bytes;      /* --memory-limit: weights, KV and scratch of all models; 0: of the machine */
    uint64_t kv_cache_memory_bytes;   /* --kv-cache-memory-bytes (suffixes K M G, Ki Mi Gi), all models'; 0: chosen */
    char *kv_cache_dtype;             /* --kv-cache-dtype auto|bf16|int8|fp8 */
    char *device;                     /* --device auto|cpu|cuda */
    uint32_t tensor_parallel_size;    /* --tensor-parallel-size */
    uint32_t pipeline_parallel_size;  /* --pipeline-parallel-size */
    uint32_t nnodes;                  /* --nnodes; 0: as a launcher's environment says */
    char *node_rank;                  /* --node-rank; NULL: not given */
    char *master_addr;                /* --master-addr */
    uint32_t master_port;             /* --master-port; 0: not given */
    char *launch_secret;              /* MILLRACE_LAUNCH_SECRET or YAML, never an argument */
    char *launch_secret_file;         /* --launch-secret-file */
    uint32_t join_timeout_ms;         /* --join-timeout (seconds) */
    struct rank_place place;          /* serve: which of several processes, from these and the environment */
    char *dtype;                      /* --dtype auto|bf16|fp8 */
    double gpu_memory_utilization;    /* --gpu-memory-utilization */
    char *matmul_file;                /* --matmul-file auto|none|FILE */
    bool enforce_eager;               /* --enforce-eager */
    bool deterministic;               /* --deterministic */
    uint32_t itl_target_ms;           /* --itl-target-ms */
    uint32_t slo_itl_ms;              /* --slo-itl-ms; 0: none */
    char *power_sensor;               /* --power-sensor auto|nvml|rapl|simulated|none */
    double power_cap_w;               /* --power-cap; 0: none */
    double power_target_w;            /* --power-target; 0: none */
    double power_floor_w;             /* --power-floor; 0: chosen */
    double power_idle_w;              /* --power-idle; 0: as the meter tells */
    double power_full_w;              /* --power-full; 0: as the meter tells */
    double power_residual_g;          /* --power-residual-co2; 0: as the grid's mean */
    char *power_cost;                 /* --power-cost NAME=VALUE,..; server/power/cost_live.h */
    bool usage_extras;                /* --usage-extras */
    struct config_list power_signals; /* --power-signal KIND:PLACE (repeatable); server/power/signal_spec.h */
    double power_default_cap_w;       /* --power-default-cap; 0: none */
    uint32_t threads;                 /* --threads; 0: physical cores */
    char *cpu_path;                   /* --cpu-path auto|NAME of cpu_path.h */
    char *numerics;                   /* --numerics fast|exact */
    char *chat_template;              /* --chat-template FILE */
    bool trust_request_chat_template; /* --trust-request-chat-template */
    uint32_t drain_delay_ms;          /* --drain-delay (seconds, may be fractional) */
    uint32_t shutdown_timeout_ms;     /* --shutdown-timeout (seconds) */
    char *log_level;                  /* --log-level error|warn|info|debug */
    bool metrics_need_key;            /* --metrics-require-key */
    bool dry_run;                     /* --dry-run: print settings and memory plan, exit 0 */
    char *config_file;                /* --config FILE (YAML) */

    /* millrace generate */
    char *prompt;              /* -p, --prompt */
    bool chat;                 /* --chat: through the chat template */
    uint32_t max_tokens;       /* -n, --max-tokens */
    double temperature, top_p; /* --temperature, --top-p */
    uint32_t top_k;            /* --top-k */
    uint64_t seed;             /* --seed */
    bool ignore_eos;           /* --ignore-eos */
    bool json;                 /* --json: machine-readable output (inspect, generate) */
};

/* Every limit of runtime/base/limits.h is an option too: --limit-<name with dashes>, MILLRACE_LIMIT_<NAME>, YAML
 * limit-<name>; they set the global `limits`. */

enum config_command { COMMAND_SERVE = 1, COMMAND_GENERATE = 2, COMMAND_INSPECT = 4 };

/* Defaults, then YAML, environment and arguments (argv without program and command name). ST_INVAL: err says which
 * option and what is wrong, with the nearest known name for an unknown one. ST_CANCELED: --help was asked for (print
 * config_help). */
NODISCARD enum status config_read(struct config *config, enum config_command command, int argc, char **argv,
                                  char **environment, struct error *err);
void config_free(struct config *config);
/* Whether several models may be loaded at once: given at the start, or loaded later by an admin. */
bool config_takes_several(const struct config *config);

void config_help(enum config_command command, struct buf *out); /* made from the option table */
const char *config_head(enum config_command command);          /* its first lines: usage, and what the command does */
void config_print(const struct config *config, enum config_command command,
                  struct buf *out); /* settings in force; no secrets */

#endif
