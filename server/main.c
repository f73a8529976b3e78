/* The entry point: which command, its settings, its exit code. The only file that ends the process.
 *
 * A model file is mapped while it is read; one that is cut short by somebody meanwhile raises SIGBUS, which is answered
 * here with a line and exit code 1 instead of a crash. */
#include "runtime/base/log.h"
#include "runtime/device/device_cuda.h"
#include "server/cmd.h"
#include "server/load.h"
#include "server/man.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

extern char **environ;

static const struct {
    const char *name, *summary;
    enum config_command command;
    int (*run)(const struct config *config);
} commands[] = {
    {"serve", "serve a model over the OpenAI API", COMMAND_SERVE, cmd_serve},
    {"generate", "continue a text on this terminal", COMMAND_GENERATE, cmd_generate},
    {"inspect", "print what a model file holds", COMMAND_INSPECT, cmd_inspect},
};
enum { COMMANDS_COUNT = sizeof commands / sizeof *commands, EXIT_USAGE = 2 };

static void on_bus_error(int signal_number)
{
    (void)signal_number;
    static const char text[] =
        "millrace: a mapped model file became shorter while it was read; put it back whole and start again\n";
    ssize_t ignored = write(STDERR_FILENO, text, sizeof text - 1);
    (void)ignored;
    _exit(EXIT_FAILURE);
}

static void usage(FILE *out)
{
    fprintf(
        out,
        "Millrace %s, a serving runtime for large language models.\n\nusage: millrace COMMAND [MODEL] [options]\n\n",
        MILLRACE_VERSION);
    for (int i = 0; i < COMMANDS_COUNT; i++) fprintf(out, "  %-10s %s\n", commands[i].name, commands[i].summary);
    fprintf(out, "  %-10s %s\n", "bill", "accounts, packages and keys of a ledger; audits, exports");
    fprintf(out, "  %-10s %s\n", "bench", "cost: what a million tokens cost on a running server");
    fprintf(out, "  %-10s %s\n", "man", "print the manual page: millrace man | man -l -");
    fprintf(out, "  %-10s %s\n", "health", "ask a running server whether it is ready");
    fprintf(out, "  %-10s %s\n\n\"millrace COMMAND --help\" tells each command's options.\n", "version",
            "print the version");
}

static int run(int idx, int argc, char **argv)
{
    static struct config config; /* never freed: a loader that outlives its server reads it to the process's end */
    struct error err = {{0}};
    enum status status = config_read(&config, commands[idx].command, argc, argv, environ, &err);
    int code = EXIT_USAGE;
    if (status == ST_CANCELED) { /* --help */
        struct buf help;
        buf_init(&help, 0);
        config_help(commands[idx].command, &help);
        fwrite(help.data, 1, help.length, stdout);
        buf_free(&help);
        code = EXIT_SUCCESS;
    } else if (status != ST_OK) {
        fprintf(stderr, "millrace %s: %s\n", commands[idx].name, err.message);
    } else {
        if (config.log_level && commands[idx].command != COMMAND_INSPECT)
            log_level_set(!strcmp(config.log_level, "error")  ? LOG_ERROR
                          : !strcmp(config.log_level, "warn") ? LOG_WARN
                          : !strcmp(config.log_level, "info") ? LOG_INFO
                                                              : LOG_DEBUG);
        code = commands[idx].run(&config);
    }
    return code;
}

int main(int argc, char **argv)
{
    struct sigaction action = {.sa_handler = on_bus_error};
    sigaction(SIGBUS, &action, NULL);
#ifdef MILLRACE_HAS_CUDA
    static const struct load_cuda cuda = {device_cuda_probe, device_cuda_create, device_cuda_nccl_id};
    load_set_cuda(&cuda);
#endif
    if (argc >= 2 && (!strcmp(argv[1], "version") || !strcmp(argv[1], "--version"))) {
        printf("millrace %s\n", MILLRACE_VERSION);
        return EXIT_SUCCESS;
    }
    if (argc == 2 && !strcmp(argv[1], "man")) {
        struct buf page;
        buf_init(&page, 0);
        man_print(&page);
        fwrite(page.data, 1, page.length, stdout);
        buf_free(&page);
        return EXIT_SUCCESS;
    }
    if (argc >= 2 && (!strcmp(argv[1], "help") || !strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"))) {
        usage(stdout);
        return EXIT_SUCCESS;
    }
    if (argc == 3 && !strcmp(argv[1], "rank-worker")) return cmd_rank_worker(argv[2]); /* device_ranks.c starts it */
    if (argc >= 2 && !strcmp(argv[1], "bill")) return cmd_bill(argc - 2, argv + 2, environ);
    if (argc >= 2 && !strcmp(argv[1], "health")) return cmd_health(argc - 2, argv + 2);
    if (argc >= 2 && !strcmp(argv[1], "bench")) return cmd_bench(argc - 2, argv + 2, environ);
    for (int i = 0; argc >= 2 && i < COMMANDS_COUNT; i++)
        if (!strcmp(argv[1], commands[i].name)) return run(i, argc - 2, argv + 2);
    if (argc >= 2) fprintf(stderr, "millrace: there is no command \"%s\"\n\n", argv[1]);
    usage(stderr);
    return EXIT_USAGE;
}
