/* millrace rank-worker FD: a rank of --tensor-parallel-size on the CPU; runtime/device/rank_worker.h. */
#include "runtime/base/log.h"
#include "runtime/device/rank_worker.h"
#include "server/cmd.h"

#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { WORKER_FD = 3 };

int cmd_rank_worker(const char *fd_text)
{
    struct rank_worker_config config = {.own_process = true};
    struct error err = {""};
    int kind = 0;
    socklen_t length = sizeof kind;
    if (strcmp(fd_text, "3") != 0 || getsockopt(WORKER_FD, SOL_SOCKET, SO_TYPE, &kind, &length) ||
        kind != SOCK_SEQPACKET) {
        fprintf(stderr, "millrace rank-worker: started by \"serve\" and \"generate\" themselves\n");
        return 2;
    }
    (void)close_range(WORKER_FD + 1, ~0u, 0); /* of rank 0's: sockets of clients, the journal */
    enum status status = rank_worker_run(WORKER_FD, &config, &err);
    if (status == ST_OK) return 0;
    log_line(LOG_INFO, "rank-worker", "ends reason=\"%s\"", err.message);
    return status == ST_IO ? 0 : 3;
}
