/* Collective operations among threads, and among processes over a memfd: what comes out, and that nobody ever waits for
 * a rank that does not come. */
#include "tests/unit/unit.h"

#include "runtime/base/mem.h"
#include "runtime/base/random.h"
#include "runtime/device/comm_local.h"

#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

enum { RANKS = 5, SLOT_BYTES = 256, ROUNDS = 300, VALUES_MAX = 500 };

struct ranks {
    void *memory;
    size_t bytes;
    struct comm *comms[8];
    uint32_t count;
};

static void ranks_open(struct ranks *r, uint32_t count, size_t slot_bytes, uint64_t deadline_ns, uint64_t spin_ns)
{
    r->count = count;
    r->bytes = comm_local_bytes(count, slot_bytes);
    r->memory = mem_map(r->bytes);
    assert_non_null(r->memory);
    comm_local_prepare(r->memory, count, slot_bytes);
    for (uint32_t i = 0; i < count; i++) {
        struct comm_local_config config = {i, count, slot_bytes, deadline_ns, spin_ns, clock_system()};
        assert_int_equal(comm_local_join(r->memory, &config, &r->comms[i]), ST_OK);
    }
}

static void ranks_close(struct ranks *r)
{
    for (uint32_t i = 0; i < r->count; i++) comm_destroy(r->comms[i]);
    mem_unmap(r->memory, r->bytes);
}

static void run_ranks(struct ranks *r, void *(*main_of_rank)(void *))
{
    pthread_t threads[8];
    for (uint32_t i = 0; i < r->count; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, main_of_rank, r->comms[i]), 0);
    for (uint32_t i = 0; i < r->count; i++) {
        void *failed = NULL;
        pthread_join(threads[i], &failed);
        if (failed) fail_msg("rank %u: %s", i, (const char *)failed);
    }
}

/* What rank `rank` brings in a round, which all ranks can work out. */
static void values_of(uint64_t round, uint32_t rank, float *values, size_t count)
{
    uint64_t seed = round * 1000 + rank + 1;
    for (size_t i = 0; i < count; i++) values[i] = (float)((double)(int64_t)random_next(&seed) * 0x1p-40);
}

static void *random_rank(void *state)
{
    struct comm *comm = state;
    uint64_t seed = 7;
    float own[VALUES_MAX], other[VALUES_MAX], expected[VALUES_MAX];
    static _Thread_local float all[RANKS * VALUES_MAX];
    for (uint64_t round = 0; round < ROUNDS; round++) {
        uint64_t what = random_next(&seed) % 5;
        size_t count = (size_t)(random_next(&seed) % VALUES_MAX);
        uint32_t root = (uint32_t)(random_next(&seed) % (RANKS + 1));
        values_of(round, comm->rank, own, count);
        if (what == 0) {
            values_of(round, 0, expected, count);
            for (uint32_t rank = 1; rank < comm->ranks; rank++) {
                values_of(round, rank, other, count);
                for (size_t i = 0; i < count; i++) expected[i] = expected[i] + other[i];
            }
            if (comm_all_reduce(comm, own, count, COMM_F32, NULL) != ST_OK) return "all_reduce failed";
            if (memcmp(own, expected, count * sizeof *own) != 0) return "a sum is not that in rank order";
        } else if (what == 1) {
            if (root == RANKS) root = COMM_ALL;
            memset(all, 0, sizeof all);
            if (comm_gather(comm, own, count * sizeof *own, all, root, NULL) != ST_OK) return "gather failed";
            for (uint32_t rank = 0; rank < comm->ranks; rank++) {
                values_of(round, rank, expected, count);
                if (root != COMM_ALL && root != comm->rank) memset(expected, 0, sizeof expected);
                if (memcmp(all + rank * count, expected, count * sizeof *all) != 0) return "gathered otherwise";
            }
        } else if (what == 2) {
            root %= RANKS;
            values_of(round, root, expected, count);
            if (comm_broadcast(comm, own, count * sizeof *own, root, NULL) != ST_OK) return "broadcast failed";
            if (memcmp(own, expected, count * sizeof *own) != 0) return "broadcast gave something else";
        } else if (what == 3) { /* also to itself */
            uint32_t to = (uint32_t)(random_next(&seed) % RANKS);
            root %= RANKS;
            bool involved = comm->rank == root || comm->rank == to;
            values_of(round, comm->rank == to ? root : comm->rank, expected, count);
            if (comm_pass(comm, involved ? own : NULL, count * sizeof *own, root, to, NULL) != ST_OK)
                return "pass failed";
            if (memcmp(own, expected, count * sizeof *own) != 0) return "passed something else";
        } else if (comm_barrier(comm) != ST_OK) {
            return "barrier failed";
        }
    }
    return NULL;
}

static void test_comm_local_operations(void **state)
{
    (void)state;
    struct ranks r;
    for (int spins = 0; spins < 2; spins++) {
        ranks_open(&r, RANKS, SLOT_BYTES, 60 * NS_PER_S, spins ? 20000 : 0);
        run_ranks(&r, random_rank);
        ranks_close(&r);
    }
}

static void test_comm_local_alone(void **state)
{
    (void)state;
    struct ranks r;
    float x[3] = {1, 2, 3}, all[3] = {0};
    ranks_open(&r, 1, SLOT_BYTES, NS_PER_S, 0);
    assert_int_equal(comm_all_reduce(r.comms[0], x, 3, COMM_F32, NULL), ST_OK);
    assert_int_equal(comm_gather(r.comms[0], x, sizeof x, all, 0, NULL), ST_OK);
    assert_true(all[0] == 1 && all[2] == 3);
    assert_int_equal(comm_all_reduce(r.comms[0], x, 3, COMM_BF16, NULL), ST_INVAL);
    assert_int_equal(comm_barrier(r.comms[0]), ST_OK);
    ranks_close(&r);
}

/* A rank that never comes: the others give up, and stay so. */
static void *waits_in_vain(void *state)
{
    struct comm *comm = state;
    float x = 1;
    if (comm->rank == 2) return NULL;
    enum status status = comm_all_reduce(comm, &x, 1, COMM_F32, NULL);
    if (status != ST_TIMEOUT && status != ST_CANCELED) return "the operation ended without rank 2";
    if (comm_barrier(comm) != ST_CANCELED) return "the comm still works";
    return NULL;
}

static void test_comm_local_deadline(void **state)
{
    (void)state;
    struct ranks r;
    ranks_open(&r, 3, SLOT_BYTES, 20 * NS_PER_MS, 0);
    run_ranks(&r, waits_in_vain);
    float x = 1;
    assert_int_equal(comm_all_reduce(r.comms[2], &x, 1, COMM_F32, NULL), ST_CANCELED);
    ranks_close(&r);
}

/* The last rank aborts instead of coming: no deadline is waited for. */
static void *is_aborted_by_the_last(void *state)
{
    struct comm *comm = state;
    float x = 1;
    if (comm->rank == 2) {
        usleep(20000);
        comm_abort(comm);
        return NULL;
    }
    if (comm_all_reduce(comm, &x, 1, COMM_F32, NULL) != ST_CANCELED) return "the operation was not canceled";
    return NULL;
}

static void test_comm_local_abort(void **state)
{
    (void)state;
    struct ranks r;
    for (int spins = 0; spins < 2; spins++) {
        ranks_open(&r, 3, SLOT_BYTES, 3600 * NS_PER_S, spins ? 3600 * NS_PER_S : 0);
        run_ranks(&r, is_aborted_by_the_last);
        ranks_close(&r);
    }
}

/* Ranks that are not about the same thing: nobody gets a result. */
static void *disagrees(void *state)
{
    struct comm *comm = state;
    float x[64] = {0}, all[3 * 64];
    enum status status = comm->rank == 1 ? comm_gather(comm, x, sizeof x, all, COMM_ALL, NULL)
                                         : comm_all_reduce(comm, x, 64, COMM_F32, NULL);
    if (status != ST_PROTO && status != ST_CANCELED) return "ranks did different things and did not notice";
    return NULL;
}

static void *disagrees_in_size(void *state)
{
    struct comm *comm = state;
    float x[64] = {0};
    enum status status = comm_all_reduce(comm, x, comm->rank == 1 ? 63 : 64, COMM_F32, NULL);
    if (status != ST_PROTO && status != ST_CANCELED) return "ranks added different sizes and did not notice";
    return NULL;
}

static void *disagrees_in_target(void *state)
{
    struct comm *comm = state;
    float x[64] = {0};
    enum status status = comm_pass(comm, x, sizeof x, 0, comm->rank == 1 ? 1 : 2, NULL);
    if (status != ST_PROTO && status != ST_CANCELED) return "two ranks took what one was to have";
    return NULL;
}

static void test_comm_local_disagreement(void **state)
{
    (void)state;
    struct ranks r;
    ranks_open(&r, 3, SLOT_BYTES, 60 * NS_PER_S, 0);
    run_ranks(&r, disagrees);
    ranks_close(&r);
    ranks_open(&r, 3, SLOT_BYTES, 60 * NS_PER_S, 0);
    run_ranks(&r, disagrees_in_size);
    ranks_close(&r);
    ranks_open(&r, 3, SLOT_BYTES, 60 * NS_PER_S, 0);
    run_ranks(&r, disagrees_in_target);
    ranks_close(&r);
}

static void test_comm_local_refuses(void **state)
{
    (void)state;
    struct ranks r;
    struct comm *comm = NULL;
    void *other = NULL;
    int fd = -1;
    ranks_open(&r, 2, SLOT_BYTES, NS_PER_S, 0);
    struct comm_local_config config = {0, 2, SLOT_BYTES, NS_PER_S, 0, clock_system()}, wrong = config;
    wrong.ranks = 3;
    assert_int_equal(comm_local_join(r.memory, &wrong, &comm), ST_INVAL);
    wrong = config;
    wrong.rank = 2;
    assert_int_equal(comm_local_join(r.memory, &wrong, &comm), ST_INVAL);
    wrong = config;
    wrong.slot_bytes = 128;
    assert_int_equal(comm_local_join(r.memory, &wrong, &comm), ST_INVAL);
    memset(r.memory, 0, 64);
    assert_int_equal(comm_local_join(r.memory, &config, &comm), ST_INVAL);
    assert_null(comm);
    ranks_close(&r);
    assert_int_equal(comm_memory_create(4096, &fd, &other), ST_OK);
    comm_memory_unmap(other, 4096);
    assert_int_equal(comm_memory_map(fd, 8192, &other), ST_IO);
    close(fd);
    assert_int_equal(comm_memory_map(fd, 4096, &other), ST_IO);
}

/* Processes: one of them is killed in the middle, and whoever sees that aborts for the rest. */
static void test_comm_local_processes(void **state)
{
    (void)state;
    enum { COUNT = 3, KILLED = 1, BEFORE = 100 };
    size_t bytes = comm_local_bytes(COUNT, SLOT_BYTES);
    void *memory = NULL;
    int fd = -1;
    pid_t children[COUNT];
    assert_int_equal(comm_memory_create(bytes, &fd, &memory), ST_OK);
    comm_local_prepare(memory, COUNT, SLOT_BYTES);
    for (uint32_t rank = 1; rank < COUNT; rank++) {
        children[rank] = fork();
        assert_true(children[rank] >= 0);
        if (children[rank]) continue;
        void *mapped = NULL;
        struct comm *comm = NULL;
        struct comm_local_config config = {rank, COUNT, SLOT_BYTES, 3600 * NS_PER_S, 0, clock_system()};
        if (comm_memory_map(fd, bytes, &mapped) || comm_local_join(mapped, &config, &comm)) _exit(1);
        for (int i = 0;; i++) {
            float x[100];
            if (rank == KILLED && i == BEFORE) raise(SIGKILL);
            for (int k = 0; k < 100; k++) x[k] = (float)rank;
            enum status status = comm_all_reduce(comm, x, 100, COMM_F32, NULL);
            if (status != ST_OK) _exit(i >= BEFORE - 1 && status == ST_CANCELED ? 42 : 2);
            if (x[99] != 3) _exit(3);
        }
    }
    struct comm *comm = NULL;
    struct comm_local_config config = {0, COUNT, SLOT_BYTES, 3600 * NS_PER_S, 0, clock_system()};
    assert_int_equal(comm_local_join(memory, &config, &comm), ST_OK);
    for (int i = 0; i < BEFORE; i++) {
        float x[100] = {0};
        assert_int_equal(comm_all_reduce(comm, x, 100, COMM_F32, NULL), ST_OK);
        assert_true(x[0] == 3 && x[99] == 3);
    }
    int how = 0;
    assert_int_equal(waitpid(children[KILLED], &how, 0), children[KILLED]);
    assert_true(WIFSIGNALED(how) && WTERMSIG(how) == SIGKILL);
    comm_abort(comm);
    assert_int_equal(waitpid(children[2], &how, 0), children[2]);
    assert_true(WIFEXITED(how));
    assert_int_equal(WEXITSTATUS(how), 42);
    assert_int_equal(comm_barrier(comm), ST_CANCELED);
    comm_destroy(comm);
    comm_memory_unmap(memory, bytes);
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_comm_local_operations),   cmocka_unit_test(test_comm_local_alone),
        cmocka_unit_test(test_comm_local_deadline),     cmocka_unit_test(test_comm_local_abort),
        cmocka_unit_test(test_comm_local_disagreement), cmocka_unit_test(test_comm_local_refuses),
        cmocka_unit_test(test_comm_local_processes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
