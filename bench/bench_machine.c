/* What this machine can do at most, so that every other figure is also a fraction of a peak: clock, multiply rates of
 * the instructions that the kernels use, read bandwidth, and the prices of a barrier and of a `send`. Prints a table,
 * then one line of JSON.
 *
 *   bench_machine [--threads N] [--seconds S]
 *
 * Each figure is the median and the best of 5 runs of S = 0.2 seconds, with one thread and with N (all processors that
 * this process may use), each pinned to its own. `cpu` is the share of the time that the threads really had a
 * processor, `steal` what the host took from the whole machine meanwhile (/proc/stat): below 95 % and above 1 % a
 * figure says more about the neighbours than about the machine. `peak` is the best 50 us or so, which neighbours spoil
 * less; threads' peaks are added, except for reads, which share what they read from. int8 and BF16 count a multiply
 * with its add as two operations.
 *
 * Loops are 16 instructions on as many registers (8 with AVX2), which hides any latency of today; operands stay in
 * registers. Bandwidth is the sum over threads that each read a slice of their own, in order, in huge pages where the
 * system gives them: 8 MB tells the shared cache where it holds the slices of all threads, 96 and 1024 MB the memory.
 * Loops for an instruction set that this CPU lacks are named and left out. */
#include "kernels/cpu_path.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/device/thread_team.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { RUNS = 5, THREADS_MAX = TEAM_THREADS_MAX, READ_BYTES = 1024, SEND_BYTES = 250, SENDS = 32 };

struct slot; /* one thread of a run */
typedef void (*loop_fn)(struct slot *slot, uint64_t rounds);

struct bench {
    const char *name, *unit;
    enum cpu_path path; /* what the loop needs */
    loop_fn loop;
    double per_round;        /* of the unit, in billions: operations, bytes or cycles */
    uint64_t rounds_a_check; /* rounds between two looks at the clock: about 50 us */
    size_t slice_bytes;      /* memory of each thread */
};

struct slot {
    const struct bench *bench;
    pthread_barrier_t *start;
    pthread_t thread;
    int cpu;
    double limit_s, seconds, cpu_seconds, peak; /* peak: rounds a second between two looks at the clock */
    uint64_t rounds;
    uint8_t *memory;
    size_t offset;
    bool touched;
};

struct figure {
    double median, best, peak, cpu, steal; /* peak 0: not told */
};

static int cpus[THREADS_MAX]; /* the processors that this process may use */
static uint32_t cpus_count;
static char json[16384];
static size_t json_used;

static double thread_cpu_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static double now_s(void)
{
    return (double)clock_now_ns(clock_system()) / 1e9;
}

/* ---- loops ---- */

typedef float vec16 __attribute__((vector_size(64)));
typedef float vec8 __attribute__((vector_size(32)));

#define EIGHT(op, f, at, b, c)                                                                                         \
    __asm__ volatile(op " %9, %8, %0\n\t" op " %9, %8, %1\n\t" op " %9, %8, %2\n\t" op " %9, %8, %3\n\t" op            \
                        " %9, %8, %4\n\t" op " %9, %8, %5\n\t" op " %9, %8, %6\n\t" op " %9, %8, %7"                   \
                     : "+v"((f)[at]), "+v"((f)[(at) + 1]), "+v"((f)[(at) + 2]), "+v"((f)[(at) + 3]),                   \
                       "+v"((f)[(at) + 4]), "+v"((f)[(at) + 5]), "+v"((f)[(at) + 6]), "+v"((f)[(at) + 7])              \
                     : "v"(b), "v"(c))

/* Sixteen of one instruction a round, on 8 or 16 accumulators. 1.0f is also a pair (0, 1) of BF16 and four bytes. */
#define LOOP(function, isa, vector, accumulators, op)                                                                  \
    __attribute__((target(isa), noinline)) static void function(struct slot *slot, uint64_t rounds)                    \
    {                                                                                                                  \
        vector f[accumulators] = {{0}}, b = {0}, c = {0};                                                              \
        (void)slot;                                                                                                    \
        b += 1;                                                                                                        \
        c += 1;                                                                                                        \
        for (uint64_t i = 0; i < rounds; i++) {                                                                        \
            EIGHT(op, f, 0, b, c);                                                                                     \
            EIGHT(op, f, (accumulators)-8, b, c);                                                                      \
        }                                                                                                              \
    }

LOOP(loop_int8_avx512, "avx512f,avx512vnni", vec16, 16, "vpdpbusd")
LOOP(loop_bf16_avx512, "avx512f,avx512bf16", vec16, 16, "vdpbf16ps")
LOOP(loop_f32_avx512, "avx512f", vec16, 16, "vfmadd231ps")
LOOP(loop_int8_avxvnni, "avx2,avxvnni", vec8, 8, "%{vex%} vpdpbusd")
LOOP(loop_int8_avx2, "avx2", vec8, 8, "vpmaddubsw")
LOOP(loop_f32_avx2, "avx2,fma", vec8, 8, "vfmadd231ps")

/* A chain of additions, each waiting for the one before: a cycle each. */
static void loop_adds(struct slot *slot, uint64_t rounds)
{
    uint64_t sum = 0, one = 1;
    (void)slot;
    for (uint64_t i = 0; i < rounds; i++) __asm__ volatile(".rept 24\n\tadd %1, %0\n\t.endr" : "+r"(sum) : "r"(one));
}

/* The same with 16 wide dots for 24 cycles. */
__attribute__((target("avx512f,avx512vnni"), noinline)) static void loop_adds_avx512(struct slot *slot, uint64_t rounds)
{
    vec16 f[16] = {{0}}, b = {0}, c = {0};
    uint64_t sum = 0, one = 1;
    (void)slot;
    for (uint64_t i = 0; i < rounds; i++) {
        __asm__ volatile(".rept 12\n\tadd %1, %0\n\t.endr" : "+r"(sum) : "r"(one));
        EIGHT("vpdpbusd", f, 0, b, c);
        __asm__ volatile(".rept 12\n\tadd %1, %0\n\t.endr" : "+r"(sum) : "r"(one));
        EIGHT("vpdpbusd", f, 8, b, c);
    }
}

/* READ_BYTES a round; a slice is a whole number of the pieces between two looks at the clock. */
#define READ_LOOP(function, isa, clobber, load)                                                                        \
    __attribute__((target(isa), noinline)) static void function(struct slot *slot, uint64_t rounds)                    \
    {                                                                                                                  \
        const uint8_t *at = slot->memory + slot->offset, *end = at + rounds * READ_BYTES;                              \
        for (; at < end; at += READ_BYTES) __asm__ volatile(load : : "r"(at) : clobber, "memory");                     \
        slot->offset = (slot->offset + rounds * READ_BYTES) % slot->bench->slice_bytes;                                \
    }

READ_LOOP(loop_read_avx512, "avx512f", "xmm0",
          ".set at, 0\n\t.rept 16\n\tvmovdqa64 at(%0), %%zmm0\n\t.set at, at+64\n\t.endr")
READ_LOOP(loop_read_avx2, "avx2", "xmm0", ".set at, 0\n\t.rept 32\n\tvmovdqa at(%0), %%ymm0\n\t.set at, at+32\n\t.endr")
READ_LOOP(loop_read_scalar, "sse2", "xmm0",
          ".set at, 0\n\t.rept 64\n\tmovdqa at(%0), %%xmm0\n\t.set at, at+16\n\t.endr")

static const struct bench benches[] = {
    {"clock", "GHz", CPU_PATH_SCALAR, loop_adds, 24e-9, 8192, 0},
    {"clock beside AVX-512", "GHz", CPU_PATH_AVX512, loop_adds_avx512, 24e-9, 8192, 0},
    {"int8 dots, AVX-512 VNNI", "GOPS", CPU_PATH_AVX512, loop_int8_avx512, 16 * 128e-9, 8192, 0},
    {"BF16 dots, AVX-512", "GFLOPS", CPU_PATH_AVX512BF16, loop_bf16_avx512, 16 * 64e-9, 8192, 0},
    {"f32 FMA, AVX-512", "GFLOPS", CPU_PATH_AVX512, loop_f32_avx512, 16 * 32e-9, 8192, 0},
    {"int8 dots, AVX-VNNI", "GOPS", CPU_PATH_AVXVNNI, loop_int8_avxvnni, 16 * 64e-9, 8192, 0},
    {"int8 vpmaddubsw, AVX2", "GOPS", CPU_PATH_AVX2, loop_int8_avx2, 16 * 64e-9, 8192, 0},
    {"f32 FMA, AVX2", "GFLOPS", CPU_PATH_AVX2, loop_f32_avx2, 16 * 16e-9, 8192, 0},
};

/* ---- runs of the loops ---- */

static void *slot_main(void *argument)
{
    struct slot *slot = argument;
    const struct bench *bench = slot->bench;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(slot->cpu, &set);
    sched_setaffinity(0, sizeof set, &set);
    if (slot->memory && !slot->touched) memset(slot->memory, 1, bench->slice_bytes);
    slot->touched = true;
    bench->loop(slot, bench->rounds_a_check);
    pthread_barrier_wait(slot->start);
    double start_s = now_s(), cpu_start_s = thread_cpu_s();
    slot->rounds = 0;
    slot->seconds = slot->peak = 0;
    do {
        bench->loop(slot, bench->rounds_a_check);
        double seconds = now_s() - start_s, rate = (double)bench->rounds_a_check / (seconds - slot->seconds);
        if (rate > slot->peak) slot->peak = rate;
        slot->rounds += bench->rounds_a_check;
        slot->seconds = seconds;
    } while (slot->seconds < slot->limit_s);
    slot->cpu_seconds = thread_cpu_s() - cpu_start_s;
    return NULL;
}

/* Time of all processors since boot, and what of it the host took; zero where /proc tells nothing. */
struct jiffies {
    double total, steal;
};

static struct jiffies jiffies_now(void)
{
    double field[8] = {0};
    struct jiffies now = {0};
    FILE *file = fopen("/proc/stat", "r");
    if (!file) return now;
    int n = fscanf(file, "cpu %lf %lf %lf %lf %lf %lf %lf %lf", &field[0], &field[1], &field[2], &field[3], &field[4],
                   &field[5], &field[6], &field[7]);
    fclose(file);
    for (int i = 0; i < n; i++) now.total += field[i];
    now.steal = field[7];
    return now;
}

static double steal_since(struct jiffies begin)
{
    struct jiffies now = jiffies_now();
    return now.total > begin.total ? (now.steal - begin.steal) / (now.total - begin.total) : 0;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void report(const char *name, uint32_t threads, const char *unit, const struct figure *figure)
{
    char peak[32] = "-";
    if (figure->peak > 0) snprintf(peak, sizeof peak, "%.2f", figure->peak);
    printf("%-26s %7u %10.2f %10.2f %10s %-7s %6.1f %7.1f\n", name, threads, figure->median, figure->best, peak, unit,
           figure->cpu * 100, figure->steal * 100);
    fflush(stdout);
    int n = snprintf(json + json_used, sizeof json - json_used,
                     "%s{\"name\":\"%s\",\"threads\":%u,\"unit\":\"%s\",\"median\":%.2f,\"best\":%.2f,\"peak\":%s,"
                     "\"cpu\":%.3f,\"steal\":%.3f}",
                     json_used ? "," : "", name, threads, unit, figure->median, figure->best,
                     figure->peak > 0 ? peak : "null", figure->cpu, figure->steal);
    if (n > 0 && (size_t)n < sizeof json - json_used) json_used += (size_t)n;
}

/* Median and best of `runs`, the best being the highest, or the lowest where a figure is a price. */
static void summarize(double *runs, bool price, struct figure *figure)
{
    qsort(runs, RUNS, sizeof runs[0], by_value);
    figure->median = runs[RUNS / 2];
    figure->best = price ? runs[0] : runs[RUNS - 1];
}

static void run_bench(const struct bench *bench, uint32_t threads, double seconds)
{
    static struct slot slots[THREADS_MAX];
    double runs[RUNS];
    struct figure figure = {0};
    pthread_barrier_t start;
    bool missing = false;
    pthread_barrier_init(&start, NULL, threads);
    for (uint32_t i = 0; i < threads; i++) {
        slots[i] = (struct slot){.bench = bench, .start = &start, .cpu = cpus[i], .limit_s = seconds};
        if (bench->slice_bytes && !(slots[i].memory = mem_map(bench->slice_bytes))) missing = true;
    }
    struct jiffies begin = jiffies_now();
    for (int run = 0; run < RUNS && !missing; run++) {
        for (uint32_t i = 0; i < threads; i++) {
            if (pthread_create(&slots[i].thread, NULL, slot_main, &slots[i])) {
                fprintf(stderr, "bench_machine: no thread\n");
                exit(1);
            }
        }
        double peak = runs[run] = 0;
        for (uint32_t i = 0; i < threads; i++) {
            pthread_join(slots[i].thread, NULL);
            peak += slots[i].peak * bench->per_round;
            runs[run] += (double)slots[i].rounds * bench->per_round / slots[i].seconds;
            figure.cpu += slots[i].cpu_seconds / slots[i].seconds / RUNS / threads;
        }
        if (peak > figure.peak && (threads == 1 || !bench->slice_bytes)) figure.peak = peak;
    }
    figure.steal = steal_since(begin);
    for (uint32_t i = 0; i < threads; i++)
        if (slots[i].memory) mem_unmap(slots[i].memory, bench->slice_bytes);
    pthread_barrier_destroy(&start);
    if (missing) {
        printf("%-26s %7u   not enough memory\n", bench->name, threads);
        return;
    }
    summarize(runs, false, &figure);
    /* the clock is that of a processor, not their sum */
    double share = strcmp(bench->unit, "GHz") == 0 ? threads : 1;
    figure.median /= share;
    figure.best /= share;
    figure.peak /= share;
    report(bench->name, threads, bench->unit, &figure);
}

static void run_reads(uint32_t threads, double seconds)
{
    static const size_t slices_mb[] = {8, 24, 96, 1024};
    for (size_t i = 0; i < sizeof slices_mb / sizeof slices_mb[0]; i++) {
        char name[32];
        snprintf(name, sizeof name, "read, %zu MB a thread", slices_mb[i]);
        struct bench bench = {
            name, "GB/s", CPU_PATH_SCALAR, loop_read_scalar, READ_BYTES * 1e-9, 1024, slices_mb[i] << 20};
        if (cpu_path_supported(CPU_PATH_AVX2)) bench.loop = loop_read_avx2;
        if (cpu_path_supported(CPU_PATH_AVX512)) bench.loop = loop_read_avx512;
        run_bench(&bench, 1, seconds);
        if (threads > 1) run_bench(&bench, threads, seconds);
    }
}

/* ---- prices ---- */

enum { BARRIERS = 200 };

struct price_run {
    struct thread_team *team;
    int fds[2];
    double seconds, best_s; /* all events timed, and the best event */
    uint64_t events;
};

static void took(struct price_run *run, double seconds, int events)
{
    run->seconds += seconds;
    run->events += (uint64_t)events;
    if (seconds / events < run->best_s) run->best_s = seconds / events;
}

static void barriers(void *state, uint32_t thread_idx)
{
    struct price_run *run = state;
    for (int i = 0; i < BARRIERS; i++) team_barrier(run->team, thread_idx);
}

static void nothing(void *state, uint32_t thread_idx)
{
    (void)state;
    (void)thread_idx;
}

static void time_barriers(struct price_run *run)
{
    double start_s = now_s();
    team_run(run->team, barriers, run);
    took(run, now_s() - start_s, BARRIERS);
}

static void time_jobs(struct price_run *run)
{
    double start_s = now_s();
    for (int i = 0; i < BARRIERS; i++) team_run(run->team, nothing, NULL);
    took(run, now_s() - start_s, BARRIERS);
}

/* SENDS messages, then what came is read, outside the time. */
static void time_sends(struct price_run *run)
{
    char message[SEND_BYTES] = {0}, piece[SEND_BYTES * SENDS];
    double start_s = now_s();
    for (int i = 0; i < SENDS; i++) {
        if (send(run->fds[0], message, sizeof message, MSG_NOSIGNAL) != sizeof message) return;
    }
    took(run, now_s() - start_s, SENDS);
    for (size_t taken = 0; taken < sizeof piece;) {
        ssize_t n = recv(run->fds[1], piece, sizeof piece - taken, 0);
        if (n <= 0) return;
        taken += (size_t)n;
    }
}

/* Microseconds an event: runs as above, `time_some` timing a few events a call. */
static void run_price(const char *name, uint32_t threads, void (*time_some)(struct price_run *run),
                      struct price_run *run, double seconds)
{
    double runs[RUNS], cpu_s = 0, wall_s = 0;
    struct figure figure = {0};
    struct jiffies begin = jiffies_now();
    run->best_s = 1;
    for (int i = 0; i < RUNS; i++) {
        double start_s = now_s(), cpu_start_s = thread_cpu_s();
        run->seconds = 0;
        run->events = 0;
        while (now_s() - start_s < seconds) time_some(run);
        runs[i] = run->events ? run->seconds / (double)run->events * 1e6 : 0;
        cpu_s += thread_cpu_s() - cpu_start_s;
        wall_s += now_s() - start_s;
    }
    figure.steal = steal_since(begin);
    figure.cpu = cpu_s / wall_s;
    figure.peak = run->best_s * 1e6;
    summarize(runs, true, &figure);
    report(name, threads, "us", &figure);
}

/* Two connected TCP sockets on the loopback. */
static bool tcp_pair(int fds[2])
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int on = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    fds[0] = socket(AF_INET, SOCK_STREAM, 0);
    fds[1] = -1;
    if (bind(listener, (struct sockaddr *)&address, sizeof address) == 0 && listen(listener, 1) == 0 &&
        getsockname(listener, (struct sockaddr *)&address, &length) == 0 &&
        connect(fds[0], (struct sockaddr *)&address, sizeof address) == 0) {
        fds[1] = accept(listener, NULL, NULL);
        setsockopt(fds[0], IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    }
    close(listener);
    return fds[1] >= 0;
}

static void run_prices(uint32_t threads, double seconds)
{
    struct price_run run = {0};
    if (threads > 1 && team_create(threads, &run.team) == ST_OK) {
        run_price("barrier of a team", threads, time_barriers, &run, seconds);
        run_price("job of a team, empty", threads, time_jobs, &run, seconds);
        team_destroy(run.team);
    }
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, run.fds) == 0) {
        run_price("send of 250 B, socketpair", 1, time_sends, &run, seconds);
        close(run.fds[0]);
        close(run.fds[1]);
    }
    if (tcp_pair(run.fds)) {
        run_price("send of 250 B, loopback", 1, time_sends, &run, seconds);
        close(run.fds[0]);
        close(run.fds[1]);
    }
}

/* ---- */

static void cpu_model(char *name, size_t size)
{
    char line[512];
    FILE *file = fopen("/proc/cpuinfo", "r");
    snprintf(name, size, "unknown");
    while (file && fgets(line, sizeof line, file)) {
        char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) || !colon) continue;
        line[strcspn(line, "\n")] = 0;
        snprintf(name, size, "%.100s", colon + 2);
        break;
    }
    if (file) fclose(file);
}

int main(int argc, char **argv)
{
    double seconds = 0.2;
    uint32_t threads = THREADS_MAX;
    char model[128];
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return 1;
    for (int cpu = 0; cpu < CPU_SETSIZE && cpus_count < THREADS_MAX; cpu++)
        if (CPU_ISSET(cpu, &allowed)) cpus[cpus_count++] = cpu;
    for (int i = 1; i < argc; i += 2) {
        if (i + 1 < argc && !strcmp(argv[i], "--threads")) {
            threads = (uint32_t)strtoul(argv[i + 1], NULL, 10);
        } else if (i + 1 < argc && !strcmp(argv[i], "--seconds")) {
            seconds = strtod(argv[i + 1], NULL);
        } else {
            fprintf(stderr, "usage: bench_machine [--threads N] [--seconds S]\n");
            return 2;
        }
    }
    if (threads > cpus_count) threads = cpus_count;
    if (threads < 1 || seconds <= 0) return 2;
    cpu_model(model, sizeof model);
    printf("%s, %u processors; median and best of %d runs of %.2f s\n", model, cpus_count, RUNS, seconds);
    printf("%-26s %7s %10s %10s %10s %-7s %6s %7s\n", "what", "threads", "median", "best", "peak", "unit", "cpu %",
           "steal %");
    for (size_t i = 0; i < sizeof benches / sizeof benches[0]; i++) {
        if (!cpu_path_supported(benches[i].path)) {
            printf("%-26s           not on this CPU (%s)\n", benches[i].name, cpu_path_name(benches[i].path));
            continue;
        }
        run_bench(&benches[i], 1, seconds);
        if (threads > 1) run_bench(&benches[i], threads, seconds);
    }
    run_reads(threads, seconds);
    run_prices(threads, seconds);
    printf("{\"machine\":\"%s\",\"processors\":%u,\"seconds\":%.2f,\"figures\":[%s]}\n", model, cpus_count, seconds,
           json);
    return 0;
}
