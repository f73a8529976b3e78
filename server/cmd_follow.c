/* millrace serve as one of several processes, but not the first: no HTTP, no bill; the steps of process 0 until it says
 * goodbye. A supervisor's first SIGTERM or SIGINT is left to process 0, which drains and then ends all; the second ends
 * this process, and with it the others' device. */
#include "runtime/base/log.h"
#include "server/cmd.h"
#include "server/load.h"

#include <inttypes.h>
#include <signal.h>
#include <stdatomic.h>

enum { EXIT_GOODBYE = 0, EXIT_START = 1, EXIT_LOST = 3 };

static atomic_uint signals;
static atomic_bool told;

static void on_signal(int number)
{
    (void)number;
    atomic_fetch_add(&signals, 1);
}

static bool told_to_stop(void)
{
    uint32_t count = atomic_load(&signals);
    if (count == 1 && !atomic_exchange(&told, true))
        log_line(LOG_INFO, "nodes", "event=signal effect=\"left to process 0; a second one ends this process\"");
    return count > 1;
}

int cmd_follow(const struct config *config)
{
    struct error err = {""};
    struct sigaction action = {.sa_handler = on_signal}, ignore = {.sa_handler = SIG_IGN};
    (void)sigaction(SIGPIPE, &ignore, NULL);
    struct loaded loaded;
    struct load_need need;
    enum status status = load_open(config, config->model, &loaded, &need, &err);
    if (status == ST_OK) {
        (void)sigaction(SIGTERM, &action, NULL);
        (void)sigaction(SIGINT, &action, NULL);
        status = load_follow(config, &loaded, told_to_stop, &err);
    }
    if (status == ST_OK) {
        log_line(LOG_INFO, "nodes", "event=goodbye process=%" PRIu32, config->place.process);
        return EXIT_GOODBYE;
    }
    log_line(LOG_ERROR, "nodes", "event=ends process=%" PRIu32 " reason=\"%s\"", config->place.process, err.message);
    return status == ST_DEVICE || status == ST_CANCELED ? EXIT_LOST : EXIT_START;
}
