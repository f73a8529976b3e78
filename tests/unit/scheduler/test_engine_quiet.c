/* Between two steps, and in them, the engine's thread allocates nothing, takes no lock and makes no system call but its
 * wake-ups: futex calls for the device's team and the write of 8 bytes that libuv's async handle is. Streams are
 * attached: a libuv loop takes the events of all requests at each wake-up, as the server does.
 *
 * A device in front of the real one looks on: in its first step it puts a seccomp filter on the engine's thread, which
 * turns every other system call into a signal that is counted; locks are counted by a pthread_mutex_lock of this
 * program's own; allocations by the seam of mem.h. Each step notes the counts so far, so what counts lies before the
 * last step: afterwards the engine may sleep. Over the null device always, over a real model where
 * MILLRACE_TEST_MODEL names one; also with a turn that other engines share which have no work. Sanitizers make calls of
 * their own: with them only allocations are counted, and over the null device alone. */
#include "tests/unit/unit.h"

#include "runtime/base/mem.h"
#include "scheduler/engine.h"
#include "server/load.h"
#include "tests/support/null_device.h"
#include "tests/support/plain_tokenizer.h"

#include <dlfcn.h>
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <uv.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#endif
#if defined(__x86_64__) && !defined(SANITIZED)
#define FILTERED 1
#else
#define FILTERED 0
#endif

enum { VOCAB = 64, END_ID = 63, STREAMS = 32, PROMPT = 100, OUTPUT = 40, CONTEXT = 256 };

struct counts {
    uint64_t allocations, locks, calls;
    int call_last;
};

/* ---- what is counted, on the watched thread ---- */

static _Thread_local bool watched;
static _Atomic uint64_t locks, calls;
static _Atomic int call_last;

#if FILTERED
__attribute__((visibility("default"))) int pthread_mutex_lock(pthread_mutex_t *mutex)
{
    static int (*_Atomic next)(pthread_mutex_t *);
    if (!next) next = (int (*)(pthread_mutex_t *))dlsym(RTLD_NEXT, "pthread_mutex_lock");
    if (watched) atomic_fetch_add(&locks, 1);
    return next(mutex);
}

static void on_trapped(int number, siginfo_t *info, void *context)
{
    (void)number;
    atomic_store(&call_last, info->si_syscall);
    atomic_fetch_add(&calls, 1);
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_RAX] = -ENOSYS;
}

/* For this thread alone, until it ends. exit and rt_sigreturn are how threads and handlers end; the clock is read
 * without a call wherever the machine allows. */
static void install_filter(void)
{
    enum { NUMBER = offsetof(struct seccomp_data, nr), WRITE_COUNT = offsetof(struct seccomp_data, args[2]) };
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, NUMBER),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_futex, 7, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit, 6, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_rt_sigreturn, 5, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clock_gettime, 4, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_write, 0, 2),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, WRITE_COUNT),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, sizeof(uint64_t), 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = sizeof code / sizeof *code, .filter = code};
    sigset_t trap;
    sigemptyset(&trap);
    sigaddset(&trap, SIGSYS);
    pthread_sigmask(SIG_UNBLOCK, &trap, NULL); /* a blocked one would end the process */
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
        watched = false;
}
#endif

/* ---- the device that looks on ---- */

struct watching_device {
    struct device device;
    struct device *inner;
    _Atomic bool submitted; /* the first step waits for it: with all requests there, the engine never runs dry */
    bool filtered;
    uint64_t steps, rows;
    struct counts first, last;
};

static struct counts counts_now(void)
{
    return (struct counts){mem_allocations_of_thread(), atomic_load(&locks), atomic_load(&calls),
                           atomic_load(&call_last)};
}

static void look_on(struct watching_device *w, const struct batch *batch)
{
    if (w->steps++ == 0) {
        while (!atomic_load(&w->submitted)) nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
#if FILTERED
        watched = true;
        install_filter();
#endif
        w->filtered = watched;
        w->first = counts_now();
    }
    w->last = counts_now();
    w->rows += batch->rows_count;
}

static enum status watching_step(struct device *device, const struct batch *batch, struct batch_result *result)
{
    struct watching_device *w = (struct watching_device *)device;
    look_on(w, batch);
    return device_step(w->inner, batch, result);
}

static enum status watching_launch(struct device *device, const struct batch *batch)
{
    struct watching_device *w = (struct watching_device *)device;
    look_on(w, batch);
    return device_launch(w->inner, batch);
}

static enum status watching_collect(struct device *device, struct batch_result *result)
{
    return device_collect(((struct watching_device *)device)->inner, result);
}

/* ---- streams ---- */

struct stream {
    struct request request;
    struct choice choice;
    uint32_t tokens[PROMPT + OUTPUT];
};

struct attached {
    uv_loop_t loop;
    uv_async_t async;
    struct engine *engine;
    uint32_t told, done;
};

static void on_wake(void *state)
{
    struct attached *attached = state;
    uv_async_send(&attached->async);
}

static void on_async(uv_async_t *async)
{
    struct attached *attached = async->data;
    struct event event;
    while (engine_poll(attached->engine, &event)) {
        attached->told += event.kind == CHOICE_TOKENS;
        attached->done += event.kind == REQUEST_DONE;
    }
    if (attached->done == STREAMS) uv_close((uv_handle_t *)async, NULL);
}

static void submit(struct attached *attached, struct stream *stream, uint64_t id, uint32_t vocab)
{
    for (uint32_t i = 0; i < PROMPT; i++) stream->tokens[i] = (uint32_t)(id * 7 + i * i) % vocab;
    stream->choice = (struct choice){.tokens = stream->tokens, .seed = id};
    stream->request = (struct request){.id = id,
                                       .owner = stream,
                                       .service_class = CLASS_DEFAULT,
                                       .prompt = stream->tokens,
                                       .prompt_count = PROMPT,
                                       .choices = &stream->choice,
                                       .choices_count = 1,
                                       .params = {.top_p = 1, .repetition_penalty = 1, .logprobs = -1},
                                       .max_tokens = OUTPUT,
                                       .ignore_eos = true};
    assert_int_equal(engine_submit(attached->engine, &stream->request), ST_OK);
}

/* turn: NULL, or one that others share who have no work */
static void run(struct device *device, const struct tokenizer *tokenizer, uint32_t step_tokens, struct turn *turn)
{
    struct watching_device *w = mem_alloc(1, sizeof *w);
    struct stream *streams = mem_alloc(STREAMS, sizeof *streams);
    struct attached attached = {.told = 0};
    static const struct device_ops one_by_one = {.step = watching_step},
                                   ahead = {.launch = watching_launch, .collect = watching_collect};
#if FILTERED /* here: cmocka has put a handler of its own on it */
    struct sigaction action = {.sa_sigaction = on_trapped, .sa_flags = SA_SIGINFO};
    sigaction(SIGSYS, &action, NULL);
#endif
    w->device = (struct device){.ops = device_runs_ahead(device) ? &ahead : &one_by_one, .info = device->info};
    w->inner = device;
    assert_int_equal(uv_loop_init(&attached.loop), 0);
    assert_int_equal(uv_async_init(&attached.loop, &attached.async, on_async), 0);
    attached.async.data = &attached;
    struct engine_config config = {.context_max = CONTEXT,
                                   .running_max = STREAMS,
                                   .step_tokens_max = step_tokens,
                                   .queue_requests_max = 64,
                                   .queue_tokens_max = 100000,
                                   .tenants_max = 1,
                                   .tenant_share_percent = 100,
                                   .itl_target_ns = 50 * NS_PER_MS,
                                   .prefix_cache = true,
                                   .think_start_id = VOCAB_NO_ID,
                                   .think_end_id = VOCAB_NO_ID,
                                   .turn = turn,
                                   .clock = clock_system(),
                                   .wake = on_wake,
                                   .wake_state = &attached};
    struct error err = {""};
    struct power_port port;
    assert_int_equal(power_port_init(&port), ST_OK);
    power_port_order(&port, &(struct power_order){.allowance_w = 1e9, .model.joules = {1, 0.01, 0, 0.01, 0}});
    config.power = &port; /* a budget that is never used up: planning and paying for it are part of the loop */
    if (engine_create(&config, &w->device, tokenizer, &attached.engine, &err) != ST_OK) fail_msg("%s", err.message);
    for (uint64_t id = 1; id <= STREAMS; id++) submit(&attached, &streams[id - 1], id, END_ID);
    atomic_store(&w->submitted, true);
    assert_int_equal(uv_run(&attached.loop, UV_RUN_DEFAULT), 0);
    engine_destroy(attached.engine);
    assert_int_equal(uv_loop_close(&attached.loop), 0);
    power_port_free(&port);
    assert_int_equal(attached.told, STREAMS * OUTPUT);
    assert_true(w->rows >= STREAMS * OUTPUT && w->steps > OUTPUT);
    assert_int_equal(w->last.allocations - w->first.allocations, 0);
    if (w->last.calls != w->first.calls) fail_msg("system call %d in the loop", w->last.call_last);
    assert_int_equal(w->last.locks - w->first.locks, 0);
    print_message("%u steps, %u rows; system calls and locks %s\n", (unsigned)w->steps, (unsigned)w->rows,
                  w->filtered ? "watched" : "not watched: no seccomp here");
    mem_free(streams);
    mem_free(w);
}

static struct tokenizer *tokenizer_make(void)
{
    struct tokenizer *tokenizer = NULL;
    struct error err = {""};
    if (plain_tokenizer_create(VOCAB, &tokenizer, &err) != ST_OK) fail_msg("tokenizer: %s", err.message);
    return tokenizer;
}

static void run_null(bool ahead)
{
    struct null_device_config config = {
        .vocab = VOCAB, .kv_blocks = 512, .tokens_max = 256, .seqs_max = STREAMS, .rows_max = 64, .ahead = ahead};
    struct device *device;
    struct tokenizer *tokenizer = tokenizer_make();
    assert_int_equal(null_device_create(&config, &device), ST_OK);
    run(device, tokenizer, 256, NULL);
    struct turn *turn = NULL;
    uint32_t idle = 0;
    assert_int_equal(turn_create(&turn), ST_OK);
    assert_int_equal(turn_join(turn, &idle), ST_OK);
    run(device, tokenizer, 256, turn);
    turn_leave(turn, idle);
    turn_destroy(turn);
    device_destroy(device);
    tokenizer_destroy(tokenizer);
}

static void test_engine_quiet_null_device(void **state)
{
    (void)state;
    run_null(false);
}

static void test_engine_quiet_null_device_ahead(void **state)
{
    (void)state;
    run_null(true);
}

#ifndef SANITIZED /* minutes, and allocations alone are counted: those of the runs above */
static void test_engine_quiet_real_model(void **state)
{
    (void)state;
    const char *path = getenv("MILLRACE_TEST_MODEL");
    if (!path) {
        print_message("no model file (MILLRACE_TEST_MODEL)\n");
        skip();
    }
    struct config config;
    struct loaded loaded;
    struct error err = {""};
    char *argv[] = {strdup(path), strdup("--threads"), strdup("2")};
    char *environment[] = {NULL};
    if (config_read(&config, COMMAND_SERVE, 3, argv, environment, &err) != ST_OK) fail_msg("%s", err.message);
    if (load_model(&config, &loaded, &err) != ST_OK) fail_msg("%s", err.message);
    run(loaded.device, loaded.tokenizer, 256, NULL);
    load_free(&loaded);
    config_free(&config);
    for (int i = 0; i < 3; i++) free(argv[i]);
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_engine_quiet_null_device),
        cmocka_unit_test(test_engine_quiet_null_device_ahead),
#ifndef SANITIZED
        cmocka_unit_test(test_engine_quiet_real_model),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
