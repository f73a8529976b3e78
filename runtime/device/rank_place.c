/* See rank_place.h. */
#include "runtime/device/rank_place.h"

#include <inttypes.h>
#include <string.h>

static const struct launcher {
    const char *name, *rank, *size, *local, *address, *port;
    const char *also;  /* must be there too */
    bool address_list; /* the first of a list of nodes */
} launchers[] = {
    {"torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", NULL, false},
    {"LeaderWorkerSet", "LWS_WORKER_INDEX", "LWS_GROUP_SIZE", NULL, "LWS_LEADER_ADDRESS", NULL, NULL, false},
    {"Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "MASTER_ADDR",
     "MASTER_PORT", NULL, false},
    {"Slurm", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_JOB_NODELIST", NULL, "SLURM_STEP_ID", true},
};

static const struct launcher by_options = {.name = "options", .address = "MASTER_ADDR", .port = "MASTER_PORT"};

/* Empty counts as absent. */
static const char *value_of(char *const *environment, const char *name)
{
    size_t length = name ? strlen(name) : 0;
    for (; name && environment && *environment; environment++)
        if (strncmp(*environment, name, length) == 0 && (*environment)[length] == '=')
            return (*environment)[length + 1] ? *environment + length + 1 : NULL;
    return NULL;
}

static enum status read_number(const char *text, const char *name, uint32_t most, uint32_t *number, struct error *err)
{
    uint32_t value = 0;
    size_t i = 0;
    for (; text[i] >= '0' && text[i] <= '9' && i < 9; i++) value = value * 10 + (uint32_t)(text[i] - '0');
    if (i == 0 || text[i] || value > most)
        return error_set(err, ST_INVAL, "%s is \"%.40s\": must be a number of at most %" PRIu32, name, text, most);
    *number = value;
    return ST_OK;
}

/* The first node of "rack[1-2]n[03,07-09],other": "rack1n03". False: brackets that do not close, or too long. */
static bool first_node(const char *list, char *node)
{
    size_t used = 0;
    for (size_t i = 0; list[i] && list[i] != ','; i++) {
        char c = list[i];
        if (c == '[') {
            size_t close = strcspn(list + i, "]"), first = strspn(list + i + 1, "0123456789");
            if (list[i + close] != ']' || first == 0 || used + first >= RANK_ADDRESS_MAX) return false;
            memcpy(node + used, list + i + 1, first);
            used += first;
            i += close;
            continue;
        }
        if (c == ']' || used + 1 >= RANK_ADDRESS_MAX) return false;
        node[used++] = c;
    }
    node[used] = '\0';
    return used > 0;
}

static bool is_address(const char *text)
{
    if (!*text || strlen(text) >= RANK_ADDRESS_MAX) return false;
    for (; *text; text++)
        if (*text <= ' ' || *text > '~') return false;
    return true;
}

static enum status find_address(const struct rank_place_options *options, char *const *environment,
                                const struct launcher *launcher, struct rank_place *place, struct error *err)
{
    const char *name = options->address ? "--master-addr" : launcher->address;
    const char *text = options->address ? options->address : value_of(environment, name);
    const char *port = options->port ? NULL : value_of(environment, launcher->port);
    uint32_t number = options->port ? options->port : RANK_PORT_DEFAULT;
    if (!text)
        return error_set(err, ST_INVAL,
                         "where is process 0? %s has given %" PRIu32 " processes, but neither --master-addr nor %s",
                         launcher->name, place->processes, name);
    bool sound;
    if (launcher->address_list && !options->address) {
        sound = first_node(text, place->address) && is_address(place->address);
    } else {
        sound = is_address(text);
        if (sound) memcpy(place->address, text, strlen(text) + 1);
    }
    if (!sound) return error_set(err, ST_INVAL, "%s is \"%.80s\": no address of a machine", name, text);
    if (port) TRY(read_number(port, launcher->port, UINT16_MAX, &number, err));
    if (number == 0 || number > UINT16_MAX)
        return error_set(err, ST_INVAL, "the port to meet at is %" PRIu32 ": must be 1 to 65535", number);
    place->port = (uint16_t)number;
    return ST_OK;
}

static enum status check_counts(const struct rank_place *place, struct error *err)
{
    if (place->processes == 0 || place->processes > RANK_PLACES_MAX || place->process >= place->processes)
        return error_set(err, ST_INVAL, "%s: process %" PRIu32 " of %" PRIu32 ": must be 0 to %" PRIu32 " of 1 to %d",
                         place->source, place->process, place->processes, place->processes ? place->processes - 1 : 0,
                         RANK_PLACES_MAX);
    return ST_OK;
}

static enum status from_options(const struct rank_place_options *options, struct rank_place *place, struct error *err)
{
    if (options->nodes > 1 && !options->has_node_rank)
        return error_set(err, ST_INVAL, "--nnodes %" PRIu32 " needs --node-rank, 0 to %" PRIu32, options->nodes,
                         options->nodes - 1);
    place->process = options->has_node_rank ? options->node_rank : 0;
    place->processes = options->nodes;
    return ST_OK;
}

static enum status from_launcher(const struct launcher *launcher, char *const *environment, struct rank_place *place,
                                 struct error *err)
{
    const char *local = value_of(environment, launcher->local);
    TRY(read_number(value_of(environment, launcher->rank), launcher->rank, RANK_PLACES_MAX, &place->process, err));
    TRY(read_number(value_of(environment, launcher->size), launcher->size, RANK_PLACES_MAX, &place->processes, err));
    if (local) TRY(read_number(local, launcher->local, RANK_PLACES_MAX, &place->local, err));
    return ST_OK;
}

static const struct launcher *find_launcher(char *const *environment)
{
    for (size_t i = 0; i < sizeof launchers / sizeof *launchers; i++) {
        const struct launcher *l = &launchers[i];
        if (value_of(environment, l->rank) && value_of(environment, l->size) &&
            (!l->also || value_of(environment, l->also)))
            return l;
    }
    return NULL;
}

enum status rank_place_find(const struct rank_place_options *options, char *const *environment,
                            struct rank_place *place, struct error *err)
{
    struct rank_place found = {.processes = 1, .source = "alone"};
    const struct launcher *launcher = options->nodes ? &by_options : find_launcher(environment);
    if (!launcher && options->has_node_rank && options->node_rank)
        return error_set(err, ST_INVAL, "--node-rank %" PRIu32 " needs --nnodes", options->node_rank);
    if (launcher) {
        found.source = launcher->name;
        TRY(options->nodes ? from_options(options, &found, err) : from_launcher(launcher, environment, &found, err));
        TRY(check_counts(&found, err));
        if (found.processes > 1) TRY(find_address(options, environment, launcher, &found, err));
    }
    *place = found;
    return ST_OK;
}
