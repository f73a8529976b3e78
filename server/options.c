/* The option table, and reading and writing of single values; see options.h. */
#include "server/options.h"

#include "runtime/base/mem.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define AT(member) offsetof(struct config, member)
#define SERVE      COMMAND_SERVE
#define GENERATE   COMMAND_GENERATE
#define INSPECT    COMMAND_INSPECT
#define U32_MAX    4294967295.0

const struct option option_table[] = {
    {"host", 0, OPTION_TEXT, SERVE, AT(host), "127.0.0.1", 0, 0, "ADDRESS",
     "Address to listen on; 0.0.0.0 or :: for all interfaces.", false},
    {"port", 0, OPTION_U32, SERVE, AT(port), "8000", 0, 65535, "N",
     "TCP port; 0 takes a free one and the log's \"ready\" line says which.", false},
    {"api-key", 0, OPTION_LIST, SERVE, AT(api_keys), NULL, 0, 0, "KEY",
     "A key that clients must send as \"Authorization: Bearer KEY\"; may be repeated. Prefer the environment or "
     "--api-key-file: "
     "arguments are visible to every user of the machine.",
     true},
    {"api-key-file", 0, OPTION_TEXT, SERVE, AT(api_key_file), NULL, 0, 0, "FILE",
     "Keys, one a line, as KEY or TENANT:KEY; read again on SIGHUP.", false},
    {"served-model-name", 0, OPTION_LIST, SERVE, AT(served_names), NULL, 0, 0, "NAME",
     "Names under which clients ask for the model; the first is shown. With several models: one for each, in their "
     "order, "
     "with more names of a model after commas. Default: the name of the file without .gguf, or of the folder.",
     false},
    {"admin-key", 0, OPTION_LIST, SERVE, AT(admin_keys), NULL, 0, 0, "KEY",
     "A key for the calls that load, unload, put to sleep and wake models; may be repeated. Without one they are "
     "refused.",
     true},
    {"admin-key-file", 0, OPTION_TEXT, SERVE, AT(admin_key_file), NULL, 0, 0, "FILE",
     "Admin keys, one a line, as KEY or NAME KEY; read again on SIGHUP.", false},
    {"audit-log", 0, OPTION_TEXT, SERVE, AT(audit_log), NULL, 0, 0, "FILE",
     "Append every admin call that changes something to this file before it begins, with who asked, and what it was "
     "answered: a JSON object a line. What cannot be written is refused. SIGHUP opens the file anew.",
     false},
    {"trusted", 0, OPTION_BOOL, SERVE, AT(trusted), "false", 0, 0, NULL,
     "Prompts and answers stay in the memory of this node: options that keep them on disk or hand them to others are "
     "refused, and the process leaves no core file.",
     false},
    {"admin-host", 0, OPTION_TEXT, SERVE, AT(admin_host), "127.0.0.1", 0, 0, "ADDRESS", "Address of the admin port.",
     false},
    {"admin-port", 0, OPTION_U32, SERVE, AT(admin_port), "0", 0, 65535, "N",
     "A port of its own for all admin calls, which the API's port then refuses; billing's admin calls exist only "
     "there. 0: none.",
     false},
    {"agent-host", 0, OPTION_TEXT, SERVE, AT(agent_host), "127.0.0.1", 0, 0, "ADDRESS",
     "Address of the agent port; it needs no key.", false},
    {"agent-port", 0, OPTION_U32, SERVE, AT(agent_port), "0", 0, 65535, "N",
     "A port that tells HAProxy's agent check this node's weight, or drain, maint or down. 0: none.", false},
    {"agent-deferrable-port", 0, OPTION_U32, SERVE, AT(agent_deferrable_port), "0", 0, 65535, "N",
     "The same for work that can wait: the weight is what green power would pay for beside what is drawn now. 0: none.",
     false},
    {"batch-dir", 0, OPTION_TEXT, SERVE, AT(batch_dir), NULL, 0, 0, "FOLDER",
     "Serve /v1/files and /v1/batches, and keep them in this folder; made if it is not there. It holds what customers "
     "upload and are answered, in clear.",
     false},
    {"batch-concurrency", 0, OPTION_U32, SERVE, AT(batch_concurrency), "64", 1, 4096, "N",
     "How many lines of batches are under way at a time.", false},
    {"pool", 0, OPTION_TEXT, SERVE, AT(pool), NULL, 0, 0, "URL",
     "A Redis, in the forms of --redis, where lines of batches wait for a server with green power to spare: those that "
     "wait for green here are offered there, and with green to spare those of others are run. It holds them in clear "
     "meanwhile.",
     false},
    {"pool-group", 0, OPTION_TEXT, SERVE, AT(pool_group), "default", 0, 0, "NAME",
     "Which servers share work there; only those that serve the same model under the same names do.", false},
    {"pool-concurrency", 0, OPTION_U32, SERVE, AT(pool_concurrency), "32", 0, 4096, "N",
     "How many lines of others run here at a time; 0: none, only own ones are offered.", false},
    {"pool-password", 0, OPTION_SECRET, SERVE, AT(pool_password), NULL, 0, 0, "PASSWORD",
     "The password of --pool; only as MILLRACE_POOL_PASSWORD or in the YAML file.", true},
    {"pool-password-file", 0, OPTION_TEXT, SERVE, AT(pool_password_file), NULL, 0, 0, "FILE",
     "A file whose first line is the password of --pool.", false},
    {"pool-ca-file", 0, OPTION_TEXT, SERVE, AT(pool_ca_file), NULL, 0, 0, "FILE",
     "Certificates that the certificate of --pool must lead to, PEM; without it the system's.", false},
    {"journal", 0, OPTION_TEXT, SERVE, AT(journal), NULL, 0, 0, "FOLDER",
     "Commit the token counts of every request to the billing journal in this folder before the tokens leave; made if "
     "it "
     "is not there. Without it nothing is billed.",
     false},
    {"journal-fallback", 0, OPTION_TEXT, SERVE, AT(journal_fallback), NULL, 0, 0, "FOLDER",
     "Where the journal goes on when its folder fails; on another disk.", false},
    {"journal-mode", 0, OPTION_TEXT, SERVE, AT(journal_mode), "step", 0, 0, "MODE",
     "step: each step is on disk before its tokens leave. group:MS (1..1000): written before they leave, on disk "
     "within "
     "MS; a power loss may take that much. write: written before they leave, on disk when the system likes.",
     false},
    {"journal-segment-bytes", 0, OPTION_SIZE, SERVE, AT(journal_segment_bytes), "64Mi", 65536, 1073741824.0, "SIZE",
     "Size of the journal's files.", false},
    {"journal-keep", 0, OPTION_SECONDS, SERVE, AT(journal_keep_ms), "604800", 0, 4294967, "SECONDS",
     "How long journal files stay after the ledger has confirmed all that is in them.", false},
    {"redis", 0, OPTION_TEXT, SERVE, AT(redis), NULL, 0, 0, "URL",
     "The ledger that nodes share: redis://[USER@]HOST:PORT, rediss:// (TLS), redis+unix:///PATH, "
     "redis-sentinel://HOST:PORT,HOST:PORT/MASTER or redis-cluster://HOST:PORT,HOST:PORT (with TLS: rediss-sentinel, "
     "rediss-cluster). Without it the ledger is in this process.",
     false},
    {"redis-password", 0, OPTION_SECRET, SERVE, AT(redis_password), NULL, 0, 0, "PASSWORD",
     "Its password; only as MILLRACE_REDIS_PASSWORD or in the YAML file.", true},
    {"redis-password-file", 0, OPTION_TEXT, SERVE, AT(redis_password_file), NULL, 0, 0, "FILE",
     "A file whose first line is the password.", false},
    {"redis-ca-file", 0, OPTION_TEXT, SERVE, AT(redis_ca_file), NULL, 0, 0, "FILE",
     "Certificates that Redis' own must lead to, PEM; without it the system's.", false},
    {"redis-cert-file", 0, OPTION_TEXT, SERVE, AT(redis_cert_file), NULL, 0, 0, "FILE",
     "Our certificate for Redis, PEM.", false},
    {"redis-key-file", 0, OPTION_TEXT, SERVE, AT(redis_key_file), NULL, 0, 0, "FILE", "Its private key, PEM.", false},
    {"enforce", 0, OPTION_TEXT, SERVE, AT(enforce), NULL, 0, 0, "MODE",
     "prepaid: requests are served only while their account's packages last. off: everything is counted and nothing "
     "refused (the default without --redis; with it the mode must be given).",
     false},
    {"on-outage", 0, OPTION_TEXT, SERVE, AT(on_outage), "reject", 0, 0, "POLICY",
     "While Redis does not answer and a lease is used up: reject (503), retry (wait up to 10 s, then 503) or continue "
     "(on "
     "credit, --outage-window).",
     false},
    {"outage-window", 0, OPTION_U64, SERVE, AT(outage_window_tokens), "0", 0, 9007199254.0, "TOKENS",
     "Most credit of an account on this node in an outage, in tokens of weight 1.", false},
    {"prices", 0, OPTION_TEXT, SERVE, AT(prices), NULL, 0, 0, "FILE",
     "Model classes and token weights, YAML (server/billing/README.md); without it every token weighs 1. Read again on "
     "SIGHUP.",
     false},
    {"unseen", 0, OPTION_TEXT, SERVE, AT(unseen), "charge", 0, 0, "MODE",
     "A client that left before the first byte of its answer: charge, or waive (behind balancers that retry).", false},
    {"bill-utc-offset", 0, OPTION_TEXT, SERVE, AT(bill_utc_offset), "+00:00", 0, 0, "+HH:MM",
     "Offset from UTC of billing months and days.", false},
    {"key-rpm", 0, OPTION_U32, SERVE, AT(key_rpm), "0", 0, U32_MAX, "N",
     "Requests a minute of a key that has no limit of its own; 0: any number.", false},
    {"key-tpm", 0, OPTION_U64, SERVE, AT(key_tpm), "0", 0, 1e15, "N",
     "Tokens a minute of a key that has no limit of its own, prompt and answer; 0: any number.", false},
    {"key-concurrency", 0, OPTION_U32, SERVE, AT(key_concurrency), "0", 0, U32_MAX, "N",
     "Requests at once of a key that has no limit of its own; 0: any number.", false},
    {"upstreams", 0, OPTION_TEXT, SERVE, AT(upstreams), NULL, 0, 0, "FILE",
     "Other servers with OpenAI's API whose models are served through this one, YAML (server/upstream/README.md).",
     false},
    {"model-dir", 0, OPTION_LIST, SERVE, AT(model_dirs), NULL, 0, 0, "FOLDER",
     "A folder that admin calls may load models from; may be repeated. Models given at the start may always be loaded "
     "again.",
     false},
    {"auto-wake", 0, OPTION_BOOL, SERVE, AT(auto_wake), "true", 0, 0, NULL,
     "A request for a sleeping model wakes it and waits; otherwise it is answered 503 with Retry-After.", false},
    {"memory-limit", 0, OPTION_SIZE, SERVE, AT(memory_limit_bytes), "0", 0, 17592186044416.0, "SIZE",
     "Memory that weights, KV blocks and scratch of all loaded models may take together; 0: nine tenths of what the "
     "machine or the cgroup gives. A model that does not fit is refused.",
     false},
    {"max-model-len", 0, OPTION_U32, SERVE | GENERATE, AT(max_model_len), "0", 0, 16777216, "N",
     "Most tokens of prompt and answer together; 0: what the model was trained for. With several models or an admin "
     "key: at most this.",
     false},
    {"max-num-seqs", 0, OPTION_U32, SERVE, AT(max_num_seqs), "256", 1, 16384, "N", "Most sequences in one step.",
     false},
    {"max-num-batched-tokens", 0, OPTION_U32, SERVE, AT(max_num_batched_tokens), "512", 16, 65536, "N",
     "Most tokens in one step, prefill and decode together.", false},
    {"max-num-queued-reqs", 0, OPTION_U32, SERVE, AT(max_num_queued_reqs), "1024", 1, 1048576, "N",
     "Requests that may wait; one more is answered 503 with Retry-After.", false},
    {"enable-prefix-caching", 0, OPTION_BOOL, SERVE, AT(enable_prefix_caching), "true", 0, 0, NULL,
     "Keep the KV blocks of finished prompts and use them again for equal beginnings of the same tenant.", false},
    {"kv-cache-memory-bytes", 0, OPTION_SIZE, SERVE | GENERATE, AT(kv_cache_memory_bytes), "0", 0, 17592186044416.0,
     "SIZE",
     "Memory for KV blocks, as 4G or 512Mi; 0: a quarter of --memory-limit, at most 4 GiB. Several models divide it "
     "in proportion to what a sequence of full context needs of each.",
     false},
    {"kv-cache-dtype", 0, OPTION_TEXT, SERVE | GENERATE, AT(kv_cache_dtype), "auto", 0, 0, "TYPE",
     "auto: BF16, on the CPU with exact numerics f32. Half the bytes of BF16, less exact: int8 (CPU), fp8 (CUDA).",
     false},
    {"device", 0, OPTION_TEXT, SERVE | GENERATE, AT(device), "auto", 0, 0, "DEVICE",
     "cpu, cuda, or auto: cuda where this binary has it and a GPU can be used, else cpu.", false},
    {"tensor-parallel-size", 0, OPTION_U32, SERVE | GENERATE, AT(tensor_parallel_size), "1", 1, 64, "N",
     "Divide each model over so many ranks: GPUs, or with the CPU device processes, which share the threads.", false},
    {"pipeline-parallel-size", 0, OPTION_U32, SERVE | GENERATE, AT(pipeline_parallel_size), "1", 1, 64, "N",
     "Divide the layers of each model over so many stages, each of --tensor-parallel-size ranks. One step is under way "
     "at a time: for models that need the memory of several GPUs; it adds no speed.",
     false},
    {"nnodes", 0, OPTION_U32, SERVE, AT(nnodes), "0", 0, RANK_PLACES_MAX, "N",
     "Processes that divide the model over their GPUs, one a node: as many of --tensor-parallel-size each. 0: as "
     "torchrun, LeaderWorkerSet, Open MPI or srun say in the environment, else 1; 1: alone, whatever they say.",
     false},
    {"node-rank", 0, OPTION_TEXT, SERVE, AT(node_rank), NULL, 0, 0, "N",
     "Which of them this one is, from 0; process 0 serves, the others run its steps.", false},
    {"master-addr", 0, OPTION_TEXT, SERVE, AT(master_addr), NULL, 0, 0, "HOST",
     "Where process 0 can be met: a name or an address of a private network.", false},
    {"master-port", 0, OPTION_U32, SERVE, AT(master_port), "0", 0, 65535, "N",
     "The port to meet at; 0: the launcher's, else 29500.", false},
    {"launch-secret", 0, OPTION_SECRET, SERVE, AT(launch_secret), NULL, 0, 0, "SECRET",
     "What the processes prove to each other, 16 bytes or more; only as MILLRACE_LAUNCH_SECRET or in the YAML file.",
     true},
    {"launch-secret-file", 0, OPTION_TEXT, SERVE, AT(launch_secret_file), NULL, 0, 0, "FILE",
     "A file whose first line is that secret.", false},
    {"join-timeout", 0, OPTION_SECONDS, SERVE, AT(join_timeout_ms), "120", 1, 86400, "SECONDS",
     "How long the processes wait until all are there.", false},
    {"dtype", 0, OPTION_TEXT, SERVE | GENERATE, AT(dtype), "auto", 0, 0, "TYPE",
     "Weights on a GPU. auto: as the file has them. bf16: unpacked. fp8: E4M3 with a scale a row, made at load.",
     false},
    {"gpu-memory-utilization", 0, OPTION_DOUBLE, SERVE | GENERATE, AT(gpu_memory_utilization), "0.92", 0.05, 1, "SHARE",
     "Share of each GPU's memory for weights, work space and KV blocks; KV takes what the others leave.", false},
    {"matmul-file", 0, OPTION_TEXT, SERVE | GENERATE, AT(matmul_file), "auto", 0, 0, "FILE",
     "Where the algorithms of cuBLASLt that were fastest on this GPU are kept. auto: a file of the GPU's name and the "
     "library's version in $XDG_CACHE_HOME/millrace, else ~/.cache/millrace. none: each start times them again.",
     false},
    {"enforce-eager", 0, OPTION_BOOL, SERVE | GENERATE, AT(enforce_eager), "false", 0, 0, NULL,
     "Launch each kernel of a decode step by itself instead of replaying a CUDA graph.", false},
    {"deterministic", 0, OPTION_BOOL, SERVE | GENERATE, AT(deterministic), "false", 0, 0, NULL,
     "On a GPU: an answer's bits depend on its request alone, not on its neighbours; slower prefill. (The CPU always "
     "does so.)",
     false},
    {"itl-target-ms", 0, OPTION_U32, SERVE, AT(itl_target_ms), "50", 0, 60000, "MS",
     "Gap between a stream's tokens that prefill of other requests should not pass; 0: no bound.", false},
    {"slo-itl-ms", 0, OPTION_U32, SERVE, AT(slo_itl_ms), "0", 0, 60000, "MS",
     "With a meter of watts: gap between tokens that 95 % of those of interactive requests keep; above it flex and "
     "batch "
     "give way, and prompts come in shorter steps under a limit. 0: no guard.",
     false},
    {"power-sensor", 0, OPTION_TEXT, SERVE, AT(power_sensor), "auto", 0, 0, "METER",
     "What reads the watts: nvml (all GPUs of the machine), rapl (its CPU packages), simulated (an estimate from the "
     "work done), none; auto: simulated if --power-full is given, else none.",
     false},
    {"power-cap", 0, OPTION_DOUBLE, SERVE, AT(power_cap_w), "0", 0, 1e9, "WATTS",
     "Hard limit of the power that the meter shows: steps are cut and paced to stay below it. 0: none. POST "
     "/admin/power and --power-signal can lower it.",
     false},
    {"power-target", 0, OPTION_DOUBLE, SERVE, AT(power_target_w), "0", 0, 1e9, "WATTS",
     "Power to keep to, but never below --power-floor. 0: none.", false},
    {"power-floor", 0, OPTION_DOUBLE, SERVE, AT(power_floor_w), "0", 0, 1e9, "WATTS",
     "What interactive requests may always have, whatever is shed; a hard cap goes below it. 0: a tenth of the way "
     "from idle to full power.",
     false},
    {"power-idle", 0, OPTION_DOUBLE, SERVE, AT(power_idle_w), "0", 0, 1e9, "WATTS",
     "What the device draws without work, where the meter does not tell.", false},
    {"power-full", 0, OPTION_DOUBLE, SERVE, AT(power_full_w), "0", 0, 1e9, "WATTS",
     "What the device draws at most, where the meter does not tell.", false},
    {"power-residual-co2", 0, OPTION_DOUBLE, SERVE, AT(power_residual_g), "0", 0, 10000, "GRAMS",
     "CO2 of a kWh that no green energy was matched with, for the account by market. 0: what sources tell of the "
     "grid's "
     "mean.",
     false},
    {"power-cost", 0, OPTION_TEXT, SERVE, AT(power_cost), NULL, 0, 0, "NAME=VALUE,..",
     "What running this node costs beside energy, for GET /admin/cost and mr_cost_per_million_tokens: capex, years, "
     "interest, site-kw-month, contract-kw, opex-hour, income-hour, price (of a kWh where no source tells it), "
     "tariff (the same by the time of day: 00:00-08:00=0.31/08:00-24:00=0.92), utc-hours, currency.",
     false},
    {"usage-extras", 0, OPTION_BOOL, SERVE, AT(usage_extras), "false", 0, 0, NULL,
     "usage of an answer also tells energy_joules, with a meter: provisional, as its last windows are not closed yet.",
     false},
    {"power-signal", 0, OPTION_LIST, SERVE, AT(power_signals), NULL, 0, 0, "KIND:PLACE",
     "A source of caps, targets, green power, prices and CO2; may be repeated, the first has the best rank. "
     "file:PATH (CSV, JSON or a trace; read again when it changes), redis:HUB, electricity-maps:URL, carbon-aware:URL, "
     "watttime:URL, openadr:URL, each with ,share=.. ,rank=.. ,period=.. ,name=.. behind it; "
     "fixed:price=..,gco2=..,pue=.. where no source tells them. See server/power/README.md.",
     false},
    {"power-default-cap", 0, OPTION_DOUBLE, SERVE, AT(power_default_cap_w), "0", 0, 1e9, "WATTS",
     "Cap while a source of caps has not been heard for 15 min; it only lowers what was held. 0: none.", false},
    {"threads", 0, OPTION_U32, SERVE | GENERATE, AT(threads), "0", 0, 1024, "N",
     "Threads of the CPU device; 0: one a physical core that this process may use.", false},
    {"cpu-path", 0, OPTION_TEXT, SERVE | GENERATE, AT(cpu_path), "auto", 0, 0, "PATH",
     "Instruction set of the kernels: auto, scalar, avx2, avxvnni, avx512 or avx512bf16.", false},
    {"numerics", 0, OPTION_TEXT, SERVE | GENERATE, AT(numerics), "fast", 0, 0, "MODE",
     "fast: 8-bit activations. exact: f32 throughout, the same bits on every CPU; slower.", false},
    {"chat-template", 0, OPTION_TEXT, SERVE | GENERATE, AT(chat_template), NULL, 0, 0, "FILE",
     "A Jinja chat template to use instead of the model's own.", false},
    {"trust-request-chat-template", 0, OPTION_BOOL, SERVE, AT(trust_request_chat_template), "false", 0, 0, NULL,
     "Let requests bring their own chat_template.", false},
    {"drain-delay", 0, OPTION_SECONDS, SERVE, AT(drain_delay_ms), "0", 0, 3600, "SECONDS",
     "After SIGTERM: /readyz fails at once, but new requests are still served this long; then they get 503. Set it to "
     "the time "
     "that balancers need to notice.",
     false},
    {"shutdown-timeout", 0, OPTION_SECONDS, SERVE, AT(shutdown_timeout_ms), "120", 0, 86400, "SECONDS",
     "After SIGTERM: running requests may go on this long.", false},
    {"log-level", 0, OPTION_TEXT, SERVE | GENERATE, AT(log_level), "info", 0, 0, "LEVEL", "error, warn, info or debug.",
     false},
    {"metrics-require-key", 0, OPTION_BOOL, SERVE, AT(metrics_need_key), "false", 0, 0, NULL,
     "Ask for an API key on /metrics too.", false},
    {"dry-run", 0, OPTION_BOOL, SERVE, AT(dry_run), "false", 0, 0, NULL,
     "Check everything, print the settings in force and the memory plan, and exit.", false},
    {"config", 0, OPTION_TEXT, SERVE | GENERATE, AT(config_file), NULL, 0, 0, "FILE",
     "A YAML file of options by these names; flags and environment win over it.", false},
    {"prompt", 'p', OPTION_TEXT, GENERATE, AT(prompt), NULL, 0, 0, "TEXT",
     "The text to continue, or with --chat to answer.", false},
    {"chat", 0, OPTION_BOOL, GENERATE, AT(chat), "false", 0, 0, NULL,
     "Take the prompt as a user's message, through the chat template.", false},
    {"max-tokens", 'n', OPTION_U32, GENERATE, AT(max_tokens), "128", 1, 16777216, "N", "Most tokens to generate.",
     false},
    {"temperature", 0, OPTION_DOUBLE, GENERATE, AT(temperature), "0", 0, 2, "T", "0 is greedy.", false},
    {"top-p", 0, OPTION_DOUBLE, GENERATE, AT(top_p), "1", 1e-6, 1, "P", "Nucleus sampling.", false},
    {"top-k", 0, OPTION_U32, GENERATE, AT(top_k), "0", 0, U32_MAX, "K", "Only the K most likely tokens; 0: all.",
     false},
    {"seed", 0, OPTION_U64, GENERATE, AT(seed), "0", 0, 9007199254740992.0, "N", "Seed of the sampler.", false},
    {"ignore-eos", 0, OPTION_BOOL, GENERATE, AT(ignore_eos), "false", 0, 0, NULL, "Go on after the model's end token.",
     false},
    {"json", 0, OPTION_BOOL, GENERATE | INSPECT, AT(json), "false", 0, 0, NULL, "Print one JSON document.", false},
};
const size_t option_count = sizeof option_table / sizeof *option_table;

const struct option *option_find(const char *name)
{
    for (size_t i = 0; i < option_count; i++)
        if (!strcmp(option_table[i].name, name)) return &option_table[i];
    return NULL;
}

/* Edit distance (Levenshtein), bounded: names of 64 characters and more count as far. */
static size_t distance(const char *a, const char *b)
{
    size_t n = strlen(a), m = strlen(b), row[64];
    if (n >= 64 || m >= 64) return SIZE_MAX;
    for (size_t j = 0; j <= m; j++) row[j] = j;
    for (size_t i = 1; i <= n; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= m; j++) {
            size_t best = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            if (row[j] + 1 < best) best = row[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            row[j] = best;
        }
    }
    return row[m];
}

const char *option_nearest(const char *name, enum config_command command)
{
    const char *best = NULL;
    size_t best_distance = strlen(name) / 3 + 2; /* first distance that is too far: a swapped pair counts two */
    for (size_t i = 0; i < option_count; i++) {
        size_t d = distance(name, option_table[i].name);
        if ((option_table[i].commands & command) && d < best_distance) {
            best_distance = d;
            best = option_table[i].name;
        }
    }
    return best;
}

static enum status set_text(char **member, const char *text)
{
    char *copy = mem_strdup(text, strlen(text));
    if (!copy) return ST_NOMEM;
    mem_free(*member);
    *member = copy;
    return ST_OK;
}

/* Decimal digits only: no sign, no space, no hexadecimal. */
static bool read_u64(const char *text, uint64_t *value, const char **end)
{
    if (*text < '0' || *text > '9') return false;
    errno = 0;
    char *stop;
    unsigned long long v = strtoull(text, &stop, 10);
    *value = v;
    *end = stop;
    return errno == 0;
}

static bool read_size(const char *text, uint64_t *value)
{
    static const struct {
        const char *suffix;
        uint64_t factor;
    } units[] = {{"", 1},
                 {"K", 1000},
                 {"M", 1000000},
                 {"G", 1000000000},
                 {"T", 1000000000000},
                 {"Ki", UINT64_C(1) << 10},
                 {"Mi", UINT64_C(1) << 20},
                 {"Gi", UINT64_C(1) << 30},
                 {"Ti", UINT64_C(1) << 40}};
    const char *end;
    uint64_t number;
    if (!read_u64(text, &number, &end)) return false;
    size_t length = strlen(end);
    if (length && end[length - 1] == 'B') length--;
    for (size_t i = 0; i < sizeof units / sizeof *units; i++)
        if (strlen(units[i].suffix) == length && !strncmp(units[i].suffix, end, length))
            return !__builtin_mul_overflow(number, units[i].factor, value);
    return false;
}

static bool read_double(const char *text, double *value)
{
    if ((*text < '0' || *text > '9') && *text != '.') return false; /* no sign, no inf, no nan */
    char *end;
    errno = 0;
    *value = strtod(text, &end);
    return errno == 0 && !*end && isfinite(*value) && strcspn(text, "xX") == strlen(text);
}

static enum status out_of_range(const struct option *option, const char *origin, const char *text, struct error *err)
{
    return error_set(err, ST_INVAL, "%s: %s is outside %.15g..%.15g", origin, text, option->floor, option->ceiling);
}

static enum status set_number(void *member, const struct option *option, const char *origin, const char *text,
                              struct error *err)
{
    uint64_t whole = 0;
    double real = 0;
    const char *end;
    bool good;
    switch (option->kind) {
    case OPTION_SIZE: good = read_size(text, &whole); break;
    case OPTION_U32:
    case OPTION_U64: good = read_u64(text, &whole, &end) && !*end; break;
    default: good = read_double(text, &real); break;
    }
    if (!good)
        return error_set(err, ST_INVAL, "%s: \"%.64s\" is not %s", origin, text,
                         option->kind == OPTION_SIZE                                       ? "a size like 512Mi or 4G"
                         : option->kind == OPTION_DOUBLE || option->kind == OPTION_SECONDS ? "a number like 0.5"
                                                                                           : "a whole number");
    double value = option->kind == OPTION_DOUBLE || option->kind == OPTION_SECONDS ? real : (double)whole;
    if (value < option->floor || value > option->ceiling) return out_of_range(option, origin, text, err);
    switch (option->kind) {
    case OPTION_U32: *(uint32_t *)member = (uint32_t)whole; break;
    case OPTION_U64:
    case OPTION_SIZE: *(uint64_t *)member = whole; break;
    case OPTION_SECONDS: *(uint32_t *)member = (uint32_t)lround(real * 1000); break;
    default: *(double *)member = real; break;
    }
    return ST_OK;
}

enum status option_set(struct config *config, const struct option *option, const char *origin, const char *text,
                       struct error *err)
{
    void *member = (char *)config + option->offset;
    enum status status = ST_OK;
    switch (option->kind) {
    case OPTION_TEXT:
    case OPTION_SECRET: status = set_text(member, text); break;
    case OPTION_BOOL:
        if (strcmp(text, "true") != 0 && strcmp(text, "false") != 0)
            return error_set(err, ST_INVAL, "%s: \"%.64s\" is neither true nor false", origin, text);
        *(bool *)member = text[0] == 't';
        break;
    case OPTION_LIST: {
        struct config_list *list = member;
        if (list->count == CONFIG_LIST_MAX)
            return error_set(err, ST_LIMIT, "%s: given more than %d times", origin, CONFIG_LIST_MAX);
        list->items[list->count] = NULL;
        status = set_text(&list->items[list->count], text);
        if (status == ST_OK) list->count++;
        break;
    }
    default: return set_number(member, option, origin, text, err);
    }
    return status == ST_OK ? ST_OK : error_set(err, status, "%s: %s", origin, status_text(status));
}

void option_write(const struct config *config, const struct option *option, struct buf *out)
{
    const void *member = (const char *)config + option->offset;
    if (option->secret) {
        buf_append_text(out, "(secret)");
        return;
    }
    switch (option->kind) {
    case OPTION_TEXT: buf_append_text(out, *(char *const *)member ? *(char *const *)member : ""); break;
    case OPTION_SECRET: break; /* only ever (secret) */
    case OPTION_BOOL: buf_append_text(out, *(const bool *)member ? "true" : "false"); break;
    case OPTION_U32: buf_append_format(out, "%" PRIu32, *(const uint32_t *)member); break;
    case OPTION_U64:
    case OPTION_SIZE: buf_append_format(out, "%" PRIu64, *(const uint64_t *)member); break;
    case OPTION_SECONDS: buf_append_format(out, "%.10g", *(const uint32_t *)member / 1000.0); break;
    case OPTION_DOUBLE: buf_append_format(out, "%.10g", *(const double *)member); break;
    case OPTION_LIST: {
        const struct config_list *list = member;
        for (uint32_t i = 0; i < list->count; i++) buf_append_format(out, "%s%s", i ? ", " : "", list->items[i]);
        break;
    }
    }
}
