/* The commands of the binary. Each takes its settings and returns the process's exit code: 0 clean, 1 start-up failure,
 * 2 usage or configuration, 3 engine death. Main thread. */
#ifndef SERVER_CMD_H
#define SERVER_CMD_H

#include "server/config.h"

int cmd_serve(const struct config *config);
/* serve, as a process of several that is not the first: 0 also when process 0 has said goodbye. */
int cmd_follow(const struct config *config);
int cmd_generate(const struct config *config);
int cmd_inspect(const struct config *config);
/* A rank's process, started by the one of rank 0 with a socket as this fd: not for people. */
int cmd_rank_worker(const char *fd_text);
/* argv without program and "bill". Exit codes of its own: server/billing/bill_args.h's help. */
int cmd_bill(int argc, char **argv, char **environment);
/* argv without program and "health": asks a server's /readyz, for supervisors that run a command. 0: it is ready. */
int cmd_health(int argc, char **argv);
/* argv without program and "bench". Exit code 1: it could not be measured, or some requests failed. */
int cmd_bench(int argc, char **argv, char **environment);

#endif
