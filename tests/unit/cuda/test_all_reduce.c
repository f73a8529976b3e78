/* The one-shot all-reduce over 2, 3, 4 and 8 ranks: the same bits on all of them, the sum in double within rounding,
 * many epochs without a pause between them, and waits that end when the host says so or a rank does not come. */
#include "tests/unit/cuda/device_memory.h"

#include "kernels/cuda_ops.h"

#include <pthread.h>

#ifdef __SANITIZE_THREAD__ /* each block of a launch costs it a millisecond or more */
enum { ROUNDS = 1, EPOCHS = 4, GROUPS = 2 };
#else
enum { ROUNDS = 4, EPOCHS = 6, GROUPS = 4 };
#endif
enum { TOKENS = 35 /* more than CUDA_ALL_REDUCE_BLOCKS: some blocks have two rows */ };

static const float eps = 1e-5f;

/* What one epoch does, the same on all ranks. */
struct epoch {
    uint32_t M, live, rows_count;
    uint32_t rows[TOKENS];
    bool gather, post, e4m3;
};

struct rank {
    cudaStream_t stream;
    struct cuda_all_reduce reduce;
    float *x, *weight, *post_weight, *scales, *gathered;
    uint16_t *y[EPOCHS];
    uint8_t *out[EPOCHS]; /* kept apart, so that no epoch is hidden by the next */
    uint32_t *bad, *live[EPOCHS], *rows[EPOCHS];
    uint16_t *host_y[EPOCHS];
};

struct group {
    uint32_t ranks, E;
    struct rank rank[CUDA_RANKS_MAX];
    struct epoch epochs[EPOCHS];
    float *x, *weight, *post_weight;
    uint32_t *stop;
};

static void group_make(struct group *g, uint32_t ranks, uint32_t E, uint64_t *seed)
{
    *g = (struct group){.ranks = ranks, .E = E};
    const size_t count = (size_t)TOKENS * E, slot = count;
    g->x = malloc(count * sizeof(float)), g->weight = malloc(E * sizeof(float));
    g->post_weight = malloc(E * sizeof(float));
    for (size_t i = 0; i < count; i++) g->x[i] = (float)random_within(seed, -4, 4);
    for (uint32_t e = 0; e < E; e++) {
        g->weight[e] = (float)random_within(seed, 0.2, 2), g->post_weight[e] = (float)random_within(seed, -2, 2);
    }
    cuda_ok(cudaHostAlloc((void **)&g->stop, sizeof *g->stop, cudaHostAllocMapped | cudaHostAllocPortable));
    *g->stop = 0;
    for (uint32_t r = 0; r < ranks; r++) {
        struct rank *k = &g->rank[r];
        cuda_ok(cudaSetDevice((int)r));
        cuda_ok(cudaStreamCreateWithFlags(&k->stream, cudaStreamNonBlocking));
        k->reduce = (struct cuda_all_reduce){.rank = r, .ranks = ranks, .slot_values = slot, .stop = g->stop};
        k->reduce.wait_ns_max = UINT64_C(60000000000);
        cuda_ok(cudaMalloc((void **)&k->reduce.buffers[r], 2 * ranks * slot * 2));
        cuda_ok(cudaMalloc((void **)&k->reduce.flags[r], CUDA_ALL_REDUCE_BLOCKS * CUDA_RANKS_MAX * 4));
        cuda_ok(cudaMalloc((void **)&k->reduce.epochs, CUDA_ALL_REDUCE_BLOCKS * 4));
        cuda_ok(cudaMemsetAsync(k->reduce.buffers[r], DEVICE_POISON, 2 * ranks * slot * 2, k->stream));
        cuda_ok(cudaMemsetAsync(k->reduce.flags[r], 0, CUDA_ALL_REDUCE_BLOCKS * CUDA_RANKS_MAX * 4, k->stream));
        cuda_ok(cudaMemsetAsync(k->reduce.epochs, 0, CUDA_ALL_REDUCE_BLOCKS * 4, k->stream));
        cuda_ok(cudaMalloc((void **)&k->x, count * sizeof(float)));
        cuda_ok(cudaMalloc((void **)&k->weight, E * sizeof(float)));
        cuda_ok(cudaMalloc((void **)&k->post_weight, E * sizeof(float)));
        cuda_ok(cudaMalloc((void **)&k->scales, TOKENS * sizeof(float)));
        cuda_ok(cudaMalloc((void **)&k->gathered, count * sizeof(float)));
        cuda_ok(cudaMalloc((void **)&k->bad, TOKENS * sizeof(uint32_t)));
        cuda_ok(cudaMemsetAsync(k->bad, 0, TOKENS * sizeof(uint32_t), k->stream));
        cuda_ok(cudaStreamSynchronize(k->stream));
        device_write(k->x, g->x, count * sizeof(float));
        device_write(k->weight, g->weight, E * sizeof(float));
        device_write(k->post_weight, g->post_weight, E * sizeof(float));
    }
    for (uint32_t r = 0; r < ranks; r++) {
        for (uint32_t p = 0; p < ranks; p++) {
            g->rank[r].reduce.buffers[p] = g->rank[p].reduce.buffers[p];
            g->rank[r].reduce.flags[p] = g->rank[p].reduce.flags[p];
        }
    }
}

/* Inputs of an epoch on each rank. */
static void group_fill(struct group *g, uint32_t e, uint64_t *seed)
{
    const size_t count = (size_t)TOKENS * g->E;
    const struct epoch *epoch = &g->epochs[e];
    for (uint32_t r = 0; r < g->ranks; r++) {
        struct rank *k = &g->rank[r];
        cuda_ok(cudaSetDevice((int)r));
        k->host_y[e] = malloc(count * 2);
        for (size_t i = 0; i < count; i++) { /* of many magnitudes, so that the order of a sum shows in its bits */
            const double magnitude = ldexp(1, -(int)(random_bits(seed) % 24));
            k->host_y[e][i] = bf16_of(random_within(seed, -1, 1) * magnitude);
        }
        cuda_ok(cudaMalloc((void **)&k->y[e], count * 2));
        cuda_ok(cudaMalloc((void **)&k->out[e], count * 2));
        cuda_ok(cudaMalloc((void **)&k->live[e], 4));
        cuda_ok(cudaMalloc((void **)&k->rows[e], sizeof epoch->rows));
        cuda_ok(cudaMemsetAsync(k->out[e], DEVICE_POISON, count * 2, k->stream));
        cuda_ok(cudaStreamSynchronize(k->stream));
        device_write(k->y[e], k->host_y[e], count * 2);
        device_write(k->live[e], &epoch->live, 4);
        device_write(k->rows[e], epoch->rows, sizeof epoch->rows);
    }
}

static cudaError_t rank_launch(struct group *g, uint32_t r, uint32_t e)
{
    struct rank *k = &g->rank[r];
    const struct epoch *epoch = &g->epochs[e];
    const struct cuda_norm norm = {.x = k->x,
                                   .post_weight = epoch->post ? k->post_weight : NULL,
                                   .residual_scale = 0.5f,
                                   .weight = k->weight,
                                   .out = k->out[e],
                                   .out_scales = epoch->e4m3 ? k->scales : NULL,
                                   .rows = epoch->gather ? k->rows[e] : NULL,
                                   .gathered = epoch->gather ? k->gathered : NULL,
                                   .bad = k->bad,
                                   .E = g->E,
                                   .eps = eps};
    const cudaError_t error = cudaSetDevice((int)r);
    if (error != cudaSuccess) return error;
    return cuda_all_reduce_rmsnorm(&k->reduce, k->y[e], &norm, k->live[e], epoch->M, k->stream);
}

/* A thread a rank, for the whole life of the program: the emulator's stacks belong to the thread that drives it. They
 * launch the epochs of `group` between two barriers. */
static struct {
    pthread_barrier_t begin, end;
    struct group *group;
    cudaError_t errors[CUDA_RANKS_MAX];
} drivers;

static void *drive(void *argument)
{
    const uint32_t r = (uint32_t)(uintptr_t)argument;
    for (;;) {
        pthread_barrier_wait(&drivers.begin);
        struct group *g = drivers.group;
        if (r < g->ranks) {
            cudaError_t error = cudaSuccess;
            for (uint32_t e = 0; e < EPOCHS && error == cudaSuccess; e++) error = rank_launch(g, r, e);
            drivers.errors[r] = error ? error : cudaStreamSynchronize(g->rank[r].stream);
        }
        pthread_barrier_wait(&drivers.end);
    }
    return NULL;
}

/* Each rank launches its epochs without a pause. */
static void group_run(struct group *g)
{
    drivers.group = g;
    pthread_barrier_wait(&drivers.begin);
    pthread_barrier_wait(&drivers.end);
    for (uint32_t r = 0; r < g->ranks; r++) cuda_ok(drivers.errors[r]);
}

static int setup(void **state)
{
    (void)state;
    for (int d = 0; d < CUDA_RANKS_MAX; d++) { /* every device sees the memory of every other */
        cuda_ok(cudaSetDevice(d));
        for (int peer = 0; peer < CUDA_RANKS_MAX; peer++)
            if (peer != d) cuda_ok(cudaDeviceEnablePeerAccess(peer, 0));
    }
    pthread_barrier_init(&drivers.begin, NULL, CUDA_RANKS_MAX + 1);
    pthread_barrier_init(&drivers.end, NULL, CUDA_RANKS_MAX + 1);
    for (uintptr_t r = 0; r < CUDA_RANKS_MAX; r++) {
        pthread_t thread;
        assert_int_equal(pthread_create(&thread, NULL, drive, (void *)r), 0);
        pthread_detach(thread);
    }
    return 0;
}

static void group_free(struct group *g, uint32_t epochs)
{
    for (uint32_t r = 0; r < g->ranks; r++) {
        struct rank *k = &g->rank[r];
        cuda_ok(cudaSetDevice((int)r));
        void *all[] = {k->reduce.buffers[r], k->reduce.flags[r], k->reduce.epochs, k->x,  k->weight,
                       k->post_weight,       k->scales,          k->gathered,      k->bad};
        for (size_t i = 0; i < sizeof all / sizeof *all; i++) cuda_ok(cudaFree(all[i]));
        for (uint32_t e = 0; e < epochs; e++) {
            cudaFree(k->y[e]), cudaFree(k->out[e]), cudaFree(k->live[e]), cudaFree(k->rows[e]), free(k->host_y[e]);
        }
        cuda_ok(cudaStreamDestroy(k->stream));
    }
    cuda_ok(cudaFreeHost(g->stop));
    free(g->x), free(g->weight), free(g->post_weight);
}

/* x after the epoch, in double: x holds it before. Rows of out are judged on the way, by those of rank 0. */
static void expect_epoch(const struct group *g, uint32_t e, double *x, const uint8_t *out)
{
    const struct epoch *epoch = &g->epochs[e];
    const uint32_t E = g->E;
    double *row = malloc(E * sizeof *row);
    for (uint32_t m = 0; m < epoch->live; m++) {
        const size_t at = (size_t)(epoch->gather ? epoch->rows[m] : m) * E;
        double squares = 0, sum_squares = 0;
        for (uint32_t i = 0; i < E; i++) {
            row[i] = 0;
            for (uint32_t r = 0; r < g->ranks; r++) row[i] += bf16_value(g->rank[r].host_y[e][at + i]);
            sum_squares += row[i] * row[i];
        }
        const double post = 1 / sqrt(sum_squares / E + (double)eps);
        for (uint32_t i = 0; i < E; i++) {
            row[i] = x[at + i] + 0.5 * row[i] * (epoch->post ? post * (double)g->post_weight[i] : 1);
            squares += row[i] * row[i];
            if (!epoch->gather) x[at + i] = row[i];
        }
        const double k = 1 / sqrt(squares / E + (double)eps);
        for (uint32_t i = 0; i < E && !epoch->e4m3; i++) {
            uint16_t bits;
            memcpy(&bits, out + ((size_t)m * E + i) * 2, 2);
            expect_bf16(bits, row[i] * k * (double)g->weight[i], 2e-5 * k, "out", m, i);
        }
    }
    free(row);
    const size_t item = epoch->e4m3 ? 1 : 2, written = (size_t)epoch->live * E * item;
    expect_poison(out + written, (size_t)TOKENS * E * 2 - written, "rows that do not live");
}

static void group_expect(const struct group *g, uint32_t epochs)
{
    const size_t count = (size_t)TOKENS * g->E;
    double *x = malloc(count * sizeof *x);
    float *first = malloc(count * sizeof *first), *other = malloc(count * sizeof *other);
    uint8_t *out = malloc(count * 2), *other_out = malloc(count * 2);
    for (size_t i = 0; i < count; i++) x[i] = (double)g->x[i];
    for (uint32_t e = 0; e < epochs; e++) {
        for (uint32_t r = 0; r < g->ranks; r++) {
            cuda_ok(cudaSetDevice((int)r));
            device_read(r ? other_out : out, g->rank[r].out[e], count * 2);
            if (r) assert_memory_equal(out, other_out, count * 2);
        }
        expect_epoch(g, e, x, out);
    }
    for (uint32_t r = 0; r < g->ranks; r++) {
        cuda_ok(cudaSetDevice((int)r));
        device_read(r ? other : first, g->rank[r].x, count * sizeof(float));
        if (r) assert_memory_equal(first, other, count * sizeof(float));
    }
    for (size_t i = 0; i < count; i++)
        if (!(fabs((double)first[i] - x[i]) <= 2e-5)) fail_msg("x %zu: %g, wanted %g", i, (double)first[i], x[i]);
    assert_int_equal(*g->stop, 0);
    free(x), free(first), free(other), free(out), free(other_out);
}

/* Epochs of all sizes, without a pause: fast ranks run ahead of slow ones. */
static void run_epochs(uint32_t ranks, uint32_t E, uint64_t *seed)
{
    struct group g;
    group_make(&g, ranks, E, seed);
    for (uint32_t e = 0; e < EPOCHS; e++) {
        struct epoch *epoch = &g.epochs[e];
        static const uint32_t sizes[] = {1, 3, 8, TOKENS};
        epoch->M = sizes[random_bits(seed) % 4];
        epoch->live = (uint32_t)(random_bits(seed) % (epoch->M + 1));
        if (random_bits(seed) % 4 == 0) epoch->live = epoch->M;
        epoch->gather = random_bits(seed) % 3 == 0, epoch->post = random_bits(seed) % 2;
        epoch->e4m3 = random_bits(seed) % 4 == 0;
        if (e == 0) { /* some blocks have two rows, and no barrier but what must part them */
            epoch->M = epoch->live = TOKENS;
            epoch->post = epoch->e4m3 = false;
        }
        for (uint32_t m = 0; m < TOKENS; m++) epoch->rows[m] = (uint32_t)(random_bits(seed) % TOKENS);
        group_fill(&g, e, seed);
    }
    group_run(&g);
    group_expect(&g, EPOCHS);
    group_free(&g, EPOCHS);
}

static void test_ranks_agree_with_each_other_and_the_sum(void **state)
{
    (void)state;
    static const uint32_t ranks[] = {2, 4, 3, 8};
    for (uint32_t round = 0; round < ROUNDS; round++) {
        uint64_t seed = 61 + round;
        for (size_t i = 0; i < GROUPS; i++) run_epochs(ranks[i], i == 2 ? 576 : i == 0 ? 136 : 8 + 32 * round, &seed);
    }
}

/* One row on two ranks; the second never comes. */
static void group_alone(struct group *g, uint64_t seed)
{
    group_make(g, 2, 64, &seed);
    g->epochs[0] = (struct epoch){.M = 1, .live = 1};
    group_fill(g, 0, &seed);
}

static void expect_untouched(const struct group *g)
{
    float x[64];
    uint8_t out[128];
    cuda_ok(cudaSetDevice(0));
    device_read(x, g->rank[0].x, sizeof x);
    device_read(out, g->rank[0].out[0], sizeof out);
    assert_memory_equal(x, g->x, sizeof x);
    expect_poison(out, sizeof out, "out of a sum that was given up");
}

static void test_a_rank_that_does_not_come_is_named(void **state)
{
    (void)state;
    struct group g;
    group_alone(&g, 71);
    g.rank[0].reduce.wait_ns_max = 2000000;
    cuda_ok(rank_launch(&g, 0, 0));
    cuda_ok(cudaStreamSynchronize(g.rank[0].stream));
    assert_int_equal(*(volatile uint32_t *)g.stop, 1 + 1);
    expect_untouched(&g);
    /* what is launched after it does not wait again */
    g.rank[0].reduce.wait_ns_max = UINT64_C(1) << 62;
    cuda_ok(rank_launch(&g, 0, 0));
    cuda_ok(cudaStreamSynchronize(g.rank[0].stream));
    expect_untouched(&g);
    group_free(&g, 1);
}

static void *abort_later(void *argument)
{
    struct timespec pause = {.tv_nsec = 20000000};
    nanosleep(&pause, NULL);
    __atomic_store_n((uint32_t *)argument, CUDA_ALL_REDUCE_ABORT, __ATOMIC_RELEASE);
    return NULL;
}

static void test_the_host_ends_a_wait(void **state)
{
    (void)state;
    struct group g;
    pthread_t thread;
    group_alone(&g, 72);
    g.rank[0].reduce.wait_ns_max = UINT64_C(1) << 62;
    assert_int_equal(pthread_create(&thread, NULL, abort_later, g.stop), 0);
    cuda_ok(rank_launch(&g, 0, 0));
    cuda_ok(cudaStreamSynchronize(g.rank[0].stream));
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_true(*(volatile uint32_t *)g.stop == CUDA_ALL_REDUCE_ABORT);
    expect_untouched(&g);
    group_free(&g, 1);
}

static void test_shapes_that_do_not_fit_are_refused(void **state)
{
    (void)state;
    struct cuda_norm norm = {.E = 64};
    struct cuda_all_reduce reduce = {.rank = 0, .ranks = 2, .slot_values = 128};
    const cudaError_t refused = cudaErrorInvalidValue;
    assert_int_equal(cuda_all_reduce_rmsnorm(&reduce, NULL, &norm, NULL, 0, NULL), cudaSuccess);
    assert_int_equal(cuda_all_reduce_rmsnorm(&reduce, NULL, &norm, NULL, 3, NULL), refused); /* over the slot */
    norm.E = 60;
    assert_int_equal(cuda_all_reduce_rmsnorm(&reduce, NULL, &norm, NULL, 0, NULL), refused);
    norm.E = 64, reduce.ranks = 9;
    assert_int_equal(cuda_all_reduce_rmsnorm(&reduce, NULL, &norm, NULL, 0, NULL), refused);
    reduce.ranks = 2, reduce.rank = 2;
    assert_int_equal(cuda_all_reduce_rmsnorm(&reduce, NULL, &norm, NULL, 0, NULL), refused);
    reduce.rank = 0, reduce.slot_values = 132;
    assert_int_equal(cuda_all_reduce_rmsnorm(&reduce, NULL, &norm, NULL, 0, NULL), refused);
}

int main(void)
{
    setenv("CUSIM_DEVICES", "8", 1);
    setenv("CUSIM_SMS", "16", 0);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ranks_agree_with_each_other_and_the_sum),
        cmocka_unit_test(test_a_rank_that_does_not_come_is_named),
        cmocka_unit_test(test_the_host_ends_a_wait),
        cmocka_unit_test(test_shapes_that_do_not_fit_are_refused),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
