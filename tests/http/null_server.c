/* The real server over the null device and a vocabulary of single bytes: everything but the arithmetic and the model
 * file. Takes the options of `millrace serve`; what only a test wants comes from the environment:
 *
 *   NULL_STEP_US        how long a step lasts            NULL_LOAD_MS         how long loading lasts
 *   NULL_KV_BLOCKS      size of the KV cache              NULL_LOAD_FAILS      loading fails
 *   NULL_FAIL_STEP      this step loses the device        NULL_HEAD_AFTER_MS, NULL_KEEP_ALIVE_MS   stream timing
 *   NULL_WEIGHTS_BYTES  what weights count for            NULL_LEAST_BYTES     KV of one sequence of full context
 *   NULL_FILE_BYTES     what they count for before they are packed (as much unless given)
 *   NULL_GATE           loading waits while a file of this name is there
 *   NULL_STEP_GATE      a step lasts 200 ms longer while a file of this name is there
 *   NULL_SYNC_FAILS     that sync of the journal and all after it fail
 *   NULL_SYNC_US        a sync of the journal takes so much longer; NULL_SYNC_PROTOCOL names a file (slow_disk.h)
 *
 * A path is not opened, but a model whose path has "broken" in it does not load, and one with "slow" in it takes
 * NULL_SLOW_MS longer. */
#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/base/utf8.h"
#include "server/config.h"
#include "server/serve.h"
#include "tests/support/null_device.h"
#include "tests/support/slow_disk.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

enum { BYTES = 256, START_ID = BYTES, END_ID, THINK_ID, THINK_END_ID, VOCAB };

static uint64_t setting(const char *name, uint64_t fallback)
{
    const char *text = getenv(name);
    return text ? strtoull(text, NULL, 10) : fallback;
}

/* Every byte as GPT-2's vocabularies write it: printable ones as themselves, the others from U+0100 on. */
static void make_vocab(struct vocab *vocab)
{
    static char text[BYTES][4];
    static struct vocab_string tokens[VOCAB];
    static uint8_t kinds[VOCAB];
    static bool made; /* once: tokenizers refer to it */
    uint32_t moved = 0;
    for (uint32_t byte = 0; byte < BYTES && !made; byte++) {
        bool plain = (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
        size_t length = utf8_encode(plain ? byte : 256 + moved++, text[byte]);
        tokens[byte] = (struct vocab_string){text[byte], (uint32_t)length};
        kinds[byte] = VOCAB_NORMAL;
    }
    static const char *const special[] = {"<|im_start|>", "<|im_end|>", "<think>", "</think>"};
    for (uint32_t i = 0; i < 4 && !made; i++) {
        tokens[BYTES + i] = (struct vocab_string){special[i], (uint32_t)strlen(special[i])};
        kinds[BYTES + i] = VOCAB_CONTROL;
    }
    made = true;
    *vocab = (struct vocab){.model = "gpt2",
                            .pre = "smollm",
                            .count = VOCAB,
                            .tokens = tokens,
                            .kinds = kinds,
                            .bos_id = START_ID,
                            .eos_id = END_ID,
                            .unknown_id = VOCAB_NO_ID,
                            .padding_id = VOCAB_NO_ID,
                            .end_ids = {END_ID},
                            .end_ids_count = 1};
}

static void null_unload(struct loaded *loaded)
{
    device_destroy(loaded->device);
    chat_template_destroy(loaded->chat_template);
    tokenizer_destroy(loaded->tokenizer);
    *loaded = (struct loaded){.model = NULL};
}

static void pause_ms(uint64_t ms)
{
    struct timespec pause = {(time_t)(ms / 1000), (long)(ms % 1000 * NS_PER_MS)};
    (void)nanosleep(&pause, NULL);
}

static void wait_for_gate(void)
{
    const char *gate = getenv("NULL_GATE");
    for (int i = 0; gate && i < 60000 && access(gate, F_OK) == 0; i++) pause_ms(2);
}

static enum status null_open(const struct config *config, const char *path, struct loaded *loaded,
                             struct load_need *need, struct error *err)
{
    static const char chat[] =
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    *loaded = (struct loaded){.context_max = config->max_model_len ? config->max_model_len : 8192};
    *need = (struct load_need){setting("NULL_FILE_BYTES", setting("NULL_WEIGHTS_BYTES", 0)),
                               setting("NULL_LEAST_BYTES", 0)};
    pause_ms(setting("NULL_LOAD_MS", 0));
    if (strstr(path, "slow")) pause_ms(setting("NULL_SLOW_MS", 0));
    wait_for_gate();
    if (setting("NULL_LOAD_FAILS", 0) || strstr(path, "broken"))
        return error_set(err, ST_INVAL, "this model does not load");
    struct vocab vocab;
    make_vocab(&vocab);
    enum status status = tokenizer_create(&vocab, &loaded->tokenizer, err);
    if (status == ST_OK) status = chat_template_compile(chat, sizeof chat - 1, &loaded->chat_template, err);
    if (status != ST_OK) null_unload(loaded);
    return status;
}

/* Work that is under way stays under way for as long as a test wants, whatever the machine does meanwhile. */
static void slow_step(void *gate, const struct batch *batch)
{
    (void)batch;
    if (access(gate, F_OK) == 0) pause_ms(200);
}

static enum status null_build(const struct config *config, uint64_t kv_bytes, struct loaded *loaded, struct error *err)
{
    uint32_t seqs = config->max_num_seqs ? config->max_num_seqs : 64;
    uint32_t tokens = config->max_num_batched_tokens ? config->max_num_batched_tokens : 2048;
    if (tokens < seqs) tokens = seqs;
    uint32_t blocks = (uint32_t)setting("NULL_KV_BLOCKS", 65536);
    struct null_device_config device = {
        .vocab = VOCAB,
        .kv_blocks = blocks,
        .kv_block_bytes = setting("NULL_LEAST_BYTES", 0) ? kv_bytes / blocks : 0,
        .weights_bytes = setting("NULL_WEIGHTS_BYTES", 0),
        .tokens_max = tokens,
        .seqs_max = seqs,
        .rows_max = tokens,
        .ahead = setting("NULL_AHEAD", 0) != 0,
        .step_ns = setting("NULL_STEP_US", 0) * 1000,
        .fail_step = setting("NULL_FAIL_STEP", 0),
        .before_step = getenv("NULL_STEP_GATE") ? slow_step : NULL,
        .before_step_state = getenv("NULL_STEP_GATE"),
    };
    enum status status = null_device_create(&device, &loaded->device);
    if (status == ST_OK) return ST_OK;
    null_unload(loaded);
    return error_set(err, status, "no memory for the null device");
}

int main(int argc, char **argv)
{
    static struct config config; /* as main.c: never freed */
    struct error err = {""};
    if (config_read(&config, COMMAND_SERVE, argc - 1, argv + 1, environ, &err) != ST_OK) {
        fprintf(stderr, "null_server: %s\n", err.message);
        return 2;
    }
    if (strcmp(config.log_level, "debug") == 0) log_level_set(LOG_DEBUG);
    struct serve_setup setup = {
        .config = &config,
        .hooks = {null_open, null_build, null_unload},
        .stream_head_after_ns = setting("NULL_HEAD_AFTER_MS", 0) * NS_PER_MS,
        .stream_keep_alive_ns = setting("NULL_KEEP_ALIVE_MS", 0) * NS_PER_MS,
    };
    slow_disk_fail_from(setting("NULL_SYNC_FAILS", 0));
    if (getenv("NULL_SYNC_US") || getenv("NULL_SYNC_PROTOCOL") || getenv("NULL_SYNC_FAILS"))
        disk_system_set(slow_disk(setting("NULL_SYNC_US", 0) * 1000, getenv("NULL_SYNC_PROTOCOL")));
    return serve_run(&setup);
}
