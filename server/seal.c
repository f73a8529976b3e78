/* See seal.h. */
#include "server/seal.h"

#include <errno.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>

enum status seal_check(const struct config *config, struct error *err)
{
    const struct {
        bool given;
        const char *option, *why;
    } excluded[] = {
        {config->batch_dir != NULL, "--batch-dir", "it keeps prompts and answers on disk"},
        {config->upstreams != NULL, "--upstreams", "it sends prompts to other servers"},
        {config->pool != NULL, "--pool", "it hands prompts to Redis and other servers"},
        {config->place.processes > 1, "--nnodes", "it sends prompts' tokens to other machines, unencrypted"},
    };
    for (size_t i = 0; config->trusted && i < sizeof excluded / sizeof *excluded; i++)
        if (excluded[i].given)
            return error_set(err, ST_INVAL, "--trusted excludes %s: %s", excluded[i].option, excluded[i].why);
    return ST_OK;
}

/* A limit of 1 and not 0: cores that go to a pipe heed no limit but this one (Linux, fs/coredump.c), and it is
 * inherited, where "not dumpable" ends at the next exec. */
enum status seal_process(struct error *err)
{
    const struct rlimit core = {.rlim_cur = 1, .rlim_max = 1};
    if (setrlimit(RLIMIT_CORE, &core) != 0 && errno != EPERM) /* EPERM: it is 0 already */
        return error_set(err, ST_IO, "--trusted: no limit for core files: %s", strerror(errno));
    if (prctl(PR_SET_DUMPABLE, 0) != 0)
        return error_set(err, ST_IO, "--trusted: the process stays open to others: %s", strerror(errno));
    return ST_OK;
}
