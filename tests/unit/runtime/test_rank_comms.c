/* Rows and columns of comms over one memory: who is in which, and that who gives up in one ends all. */
#include "tests/unit/unit.h"

#include "runtime/base/mem.h"
#include "runtime/device/rank_comms.h"

#include <pthread.h>
#include <unistd.h>

enum { SLOT_BYTES = 256, RANKS_MAX = 12 };

struct grid {
    void *memory;
    size_t bytes;
    uint32_t ranks, stages;
    struct rank_comms comms[RANKS_MAX];
};

static void grid_open(struct grid *g, uint32_t ranks, uint32_t stages)
{
    *g = (struct grid){.ranks = ranks, .stages = stages, .bytes = rank_comms_bytes(ranks, stages, SLOT_BYTES)};
    g->memory = mem_map(g->bytes);
    assert_non_null(g->memory);
    rank_comms_prepare(g->memory, ranks, stages, SLOT_BYTES);
    for (uint32_t i = 0; i < ranks * stages; i++) {
        struct comm_local_config config = {i, ranks * stages, SLOT_BYTES, 60 * NS_PER_S, 0, clock_system()};
        assert_int_equal(rank_comms_join(g->memory, &config, stages, &g->comms[i]), ST_OK);
    }
}

static void grid_close(struct grid *g)
{
    for (uint32_t i = 0; i < g->ranks * g->stages; i++) rank_comms_leave(&g->comms[i]);
    mem_unmap(g->memory, g->bytes);
}

static void run(struct grid *g, void *(*main_of_rank)(void *))
{
    pthread_t threads[RANKS_MAX];
    uint32_t count = g->ranks * g->stages;
    for (uint32_t i = 0; i < count; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, main_of_rank, &g->comms[i]), 0);
    for (uint32_t i = 0; i < count; i++) {
        void *failed = NULL;
        pthread_join(threads[i], &failed);
        if (failed) fail_msg("rank %u of %ux%u: %s", i, g->stages, g->ranks, (const char *)failed);
    }
}

static bool gathers(struct comm *comm, uint32_t own, uint32_t first, uint32_t step)
{
    uint32_t all[RANKS_MAX] = {0};
    if (comm_gather(comm, &own, sizeof own, all, COMM_ALL, NULL) != ST_OK) return false;
    for (uint32_t i = 0; i < comm->ranks; i++)
        if (all[i] != first + i * step) return false;
    return true;
}

/* Many rounds, so that a comm that lay over another's memory would show. */
static void *gathers_numbers(void *state)
{
    struct rank_comms *c = state;
    uint32_t number = c->all->rank, rank = number % c->ranks, stage = number / c->ranks;
    if (!c->peers != (c->ranks == 1) || !c->line != (c->stages == 1)) return "a comm is or is not there";
    for (int round = 0; round < 50; round++) {
        if (!gathers(c->all, number, 0, 1)) return "not all numbers in order";
        if (c->peers && !gathers(c->peers, number, stage * c->ranks, 1)) return "not the ranks of the stage";
        if (c->line && !gathers(c->line, number, rank, c->ranks)) return "not the stages of the rank";
    }
    return NULL;
}

static void test_rank_comms_rows_and_columns(void **state)
{
    (void)state;
    for (uint32_t ranks = 1; ranks <= 4; ranks++)
        for (uint32_t stages = ranks == 1 ? 2 : 1; stages <= 3; stages++) {
            struct grid g;
            grid_open(&g, ranks, stages);
            run(&g, gathers_numbers);
            grid_close(&g);
        }
}

/* One rank aborts; the others wait in one of the three, each in another. */
static void *waits_somewhere(void *state)
{
    struct rank_comms *c = state;
    uint32_t number = c->all->rank;
    if (number == 5) {
        usleep(20000);
        rank_comms_abort(c);
        return NULL;
    }
    if (number == 0) return comm_barrier(c->all) == ST_CANCELED ? NULL : "all still works";
    struct comm *comm = number % 2 ? c->peers : c->line;
    float x[2] = {1, 2};
    enum status status = comm_all_reduce(comm, x, 2, COMM_F32, NULL);
    if (status != ST_OK && status != ST_CANCELED) return "neither a sum nor an end";
    while (status == ST_OK) status = comm_barrier(comm); /* with whoever waits in the same */
    return status == ST_CANCELED ? NULL : "not canceled";
}

static void test_rank_comms_abort(void **state)
{
    (void)state;
    struct grid g;
    grid_open(&g, 2, 3);
    run(&g, waits_somewhere);
    for (uint32_t i = 0; i < 6; i++) {
        assert_int_equal(comm_barrier(g.comms[i].all), ST_CANCELED);
        assert_int_equal(comm_barrier(g.comms[i].peers), ST_CANCELED);
        assert_int_equal(comm_barrier(g.comms[i].line), ST_CANCELED);
    }
    grid_close(&g);
}

static void test_rank_comms_unprepared(void **state)
{
    (void)state;
    size_t bytes = rank_comms_bytes(2, 3, SLOT_BYTES);
    void *memory = mem_map(bytes);
    struct rank_comms comms = {0};
    struct comm_local_config config = {3, 6, SLOT_BYTES, NS_PER_S, 0, clock_system()};
    assert_int_equal(rank_comms_join(memory, &config, 3, &comms), ST_INVAL);
    comm_local_prepare(memory, 6, SLOT_BYTES); /* only the first of them */
    assert_int_equal(rank_comms_join(memory, &config, 3, &comms), ST_INVAL);
    assert_null(comms.all);
    rank_comms_prepare(memory, 2, 3, SLOT_BYTES);
    assert_int_equal(rank_comms_join(memory, &config, 3, &comms), ST_OK);
    rank_comms_leave(&comms);
    mem_unmap(memory, bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rank_comms_rows_and_columns),
        cmocka_unit_test(test_rank_comms_abort),
        cmocka_unit_test(test_rank_comms_unprepared),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
