/* Places of processes from options and from what launchers set: a table of both, and what is refused. */
#include "tests/unit/unit.h"

#include "runtime/device/rank_place.h"

#define SRUN "SLURM_STEP_ID=0"

static const struct row {
    const char *environment[9];
    struct rank_place_options options;
    uint32_t process, processes, local, port; /* processes 0: refused, */
    const char *address;                      /* and this is in the message */
    const char *source;
} rows[] = {
    {{NULL}, {0}, 0, 1, 0, 0, "", "alone"},
    {{"RANK=", "WORLD_SIZE=4"}, {0}, 0, 1, 0, 0, "", "alone"},
    /* options */
    {{NULL}, {2, true, 1, "10.0.0.1", 0}, 1, 2, 0, 29500, "10.0.0.1", "options"},
    {{NULL}, {2, true, 0, "::1", 1234}, 0, 2, 0, 1234, "::1", "options"},
    {{"MASTER_ADDR=m", "MASTER_PORT=7"}, {3, true, 2, NULL, 0}, 2, 3, 0, 7, "m", "options"},
    {{"MASTER_ADDR=m", "MASTER_PORT=7"}, {3, true, 2, "n", 8}, 2, 3, 0, 8, "n", "options"},
    {{"RANK=1", "WORLD_SIZE=2", "MASTER_ADDR=m"}, {1, false, 0, NULL, 0}, 0, 1, 0, 0, "", "options"},
    {{NULL}, {2, false, 0, "a", 0}, 0, 0, 0, 0, "--nnodes 2 needs --node-rank", NULL},
    {{NULL}, {2, true, 2, "a", 0}, 0, 0, 0, 0, "process 2 of 2", NULL},
    {{NULL}, {2000, true, 2, "a", 0}, 0, 0, 0, 0, "of 2000", NULL},
    {{NULL}, {0, true, 1, "a", 0}, 0, 0, 0, 0, "needs --nnodes", NULL},
    {{NULL}, {2, true, 1, NULL, 0}, 0, 0, 0, 0, "--master-addr", NULL},
    {{NULL}, {2, true, 1, "", 0}, 0, 0, 0, 0, "no address", NULL},
    {{NULL}, {2, true, 1, "a b", 0}, 0, 0, 0, 0, "no address", NULL},
    {{NULL}, {2, true, 1, "a", 70000}, 0, 0, 0, 0, "70000", NULL},
    {{"MASTER_PORT=0"}, {2, true, 1, "a", 0}, 0, 0, 0, 0, "1 to 65535", NULL},
    /* torchrun */
    {{"RANK=5", "WORLD_SIZE=8", "LOCAL_RANK=1", "MASTER_ADDR=node0", "MASTER_PORT=29511"},
     {0},
     5,
     8,
     1,
     29511,
     "node0",
     "torchrun"},
    {{"RANK=0", "WORLD_SIZE=1"}, {0}, 0, 1, 0, 0, "", "torchrun"},
    {{"RANK=0", "WORLD_SIZE=2"}, {0}, 0, 0, 0, 0, "MASTER_ADDR", NULL},
    {{"RANK=0", "WORLD_SIZE=2", "MASTER_PORT=1"}, {0, false, 0, "h", 9}, 0, 2, 0, 9, "h", "torchrun"},
    {{"RANK=2", "WORLD_SIZE=2", "MASTER_ADDR=a"}, {0}, 0, 0, 0, 0, "process 2 of 2", NULL},
    {{"RANK=-1", "WORLD_SIZE=2", "MASTER_ADDR=a"}, {0}, 0, 0, 0, 0, "RANK is \"-1\"", NULL},
    {{"RANK=0x1", "WORLD_SIZE=2", "MASTER_ADDR=a"}, {0}, 0, 0, 0, 0, "RANK is \"0x1\"", NULL},
    {{"RANK=1", "WORLD_SIZE=99999999999", "MASTER_ADDR=a"}, {0}, 0, 0, 0, 0, "WORLD_SIZE is", NULL},
    {{"RANK=1", "WORLD_SIZE=0", "MASTER_ADDR=a"}, {0}, 0, 0, 0, 0, "process 1 of 0", NULL},
    {{"RANK=1", "WORLD_SIZE=2", "LOCAL_RANK=x", "MASTER_ADDR=a"}, {0}, 0, 0, 0, 0, "LOCAL_RANK is", NULL},
    {{"RANK=1", "WORLD_SIZE=2", "MASTER_ADDR=a", "MASTER_PORT=65536"}, {0}, 0, 0, 0, 0, "MASTER_PORT is", NULL},
    /* LeaderWorkerSet */
    {{"LWS_LEADER_ADDRESS=vllm-0.vllm.default", "LWS_GROUP_SIZE=2", "LWS_WORKER_INDEX=1"},
     {0},
     1,
     2,
     0,
     29500,
     "vllm-0.vllm.default",
     "LeaderWorkerSet"},
    {{"LWS_GROUP_SIZE=2", "LWS_WORKER_INDEX=1"}, {0}, 0, 0, 0, 0, "LWS_LEADER_ADDRESS", NULL},
    /* Open MPI, under Slurm too */
    {{"OMPI_COMM_WORLD_RANK=3", "OMPI_COMM_WORLD_SIZE=4", "OMPI_COMM_WORLD_LOCAL_RANK=1", "MASTER_ADDR=x", SRUN,
      "SLURM_PROCID=0", "SLURM_NTASKS=2", "SLURM_JOB_NODELIST=a"},
     {0},
     3,
     4,
     1,
     29500,
     "x",
     "Open MPI"},
    {{"OMPI_COMM_WORLD_RANK=3", "OMPI_COMM_WORLD_SIZE=4"}, {0}, 0, 0, 0, 0, "MASTER_ADDR", NULL},
    /* Slurm: lists of nodes, and a batch script that is no step */
    {{SRUN, "SLURM_PROCID=1", "SLURM_NTASKS=4", "SLURM_LOCALID=1", "SLURM_JOB_NODELIST=gnode[10,20,25,37]"},
     {0},
     1,
     4,
     1,
     29500,
     "gnode10",
     "Slurm"},
    {{SRUN, "SLURM_PROCID=1", "SLURM_NTASKS=4", "SLURM_JOB_NODELIST=n[001-004,7],m5"},
     {0},
     1,
     4,
     0,
     29500,
     "n001",
     "Slurm"},
    {{SRUN, "SLURM_PROCID=1", "SLURM_NTASKS=4", "SLURM_JOB_NODELIST=rack[1-2]n[03-04]-ib,z"},
     {0},
     1,
     4,
     0,
     29500,
     "rack1n03-ib",
     "Slurm"},
    {{SRUN, "SLURM_PROCID=1", "SLURM_NTASKS=2", "SLURM_JOB_NODELIST=a,b"}, {0}, 1, 2, 0, 29500, "a", "Slurm"},
    {{SRUN, "SLURM_PROCID=1", "SLURM_NTASKS=2", "SLURM_JOB_NODELIST=a[1-"}, {0}, 0, 0, 0, 0, "no address", NULL},
    {{SRUN, "SLURM_PROCID=1", "SLURM_NTASKS=2", "SLURM_JOB_NODELIST=a[x]"}, {0}, 0, 0, 0, 0, "no address", NULL},
    {{SRUN, "SLURM_PROCID=1", "SLURM_NTASKS=2", "SLURM_JOB_NODELIST=a]"}, {0}, 0, 0, 0, 0, "no address", NULL},
    {{SRUN, "SLURM_PROCID=1", "SLURM_NTASKS=2", "SLURM_JOB_NODELIST=,a"}, {0}, 0, 0, 0, 0, "no address", NULL},
    {{SRUN, "SLURM_PROCID=1", "SLURM_NTASKS=2", "SLURM_JOB_NODELIST=[[1]]"}, {0}, 0, 0, 0, 0, "no address", NULL},
    {{"SLURM_PROCID=0", "SLURM_NTASKS=4", "SLURM_JOB_NODELIST=a[1-4]"}, {0}, 0, 1, 0, 0, "", "alone"},
};

static void test_rank_place_table(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const struct row *row = &rows[i];
        char *environment[10] = {NULL};
        struct rank_place place = {.processes = 77};
        struct error err = {""};
        for (size_t k = 0; row->environment[k]; k++) environment[k] = (char *)(uintptr_t)row->environment[k];
        enum status status = rank_place_find(&row->options, environment, &place, &err);
        if (row->processes == 0) {
            if (status != ST_INVAL || !strstr(err.message, row->address) || place.processes != 77)
                fail_msg("row %zu: %s \"%s\"", i, status_name(status), err.message);
            continue;
        }
        if (status != ST_OK) fail_msg("row %zu: %s", i, err.message);
        if (place.process != row->process || place.processes != row->processes || place.local != row->local ||
            place.port != row->port || strcmp(place.address, row->address) != 0 ||
            strcmp(place.source, row->source) != 0)
            fail_msg("row %zu: %u of %u, local %u, %s:%u by %s", i, place.process, place.processes, place.local,
                     place.address, place.port, place.source);
    }
}

/* Names that only begin like ours, long values, no environment at all. */
static void test_rank_place_edges(void **state)
{
    (void)state;
    struct rank_place_options none = {0};
    struct rank_place place;
    struct error err = {""};
    char name[400] = "SLURM_JOB_NODELIST=";
    memset(name + strlen(name), 'n', 300);
    char *similar[] = {"RANKS=1", "RANK", "WORLD_SIZE=2", "XRANK=1", NULL};
    char *long_list[] = {"SLURM_PROCID=0", "SLURM_NTASKS=2", SRUN, name, NULL};
    assert_int_equal(rank_place_find(&none, NULL, &place, &err), ST_OK);
    assert_int_equal(place.processes, 1);
    assert_int_equal(rank_place_find(&none, similar, &place, &err), ST_OK);
    assert_int_equal(place.processes, 1);
    assert_int_equal(rank_place_find(&none, long_list, &place, &err), ST_INVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rank_place_table),
        cmocka_unit_test(test_rank_place_edges),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
