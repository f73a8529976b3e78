/* See notify.h. */
#include "server/notify.h"

#include "runtime/base/clock.h"
#include "runtime/base/log.h"

#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool read_number(const char *text, uint64_t *value)
{
    char *end;
    if (*text < '0' || *text > '9') return false;
    errno = 0;
    unsigned long long number = strtoull(text, &end, 10);
    *value = number;
    return !*end && !errno;
}

/* A path, or "@" and a name that has no file. */
static enum status read_address(const char *text, struct notify *notify, struct error *err)
{
    size_t length = strlen(text);
    if (length < 2 || (*text != '/' && *text != '@'))
        return error_set(err, ST_INVAL, "NOTIFY_SOCKET \"%.60s\" is neither a path nor @NAME", text);
    if (length >= sizeof notify->address.sun_path)
        return error_set(err, ST_INVAL, "NOTIFY_SOCKET is longer than %zu bytes", sizeof notify->address.sun_path - 1);
    notify->address.sun_family = AF_UNIX;
    memcpy(notify->address.sun_path, text, length + 1);
    if (*text == '@') notify->address.sun_path[0] = '\0';
    notify->length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length + (*text == '/'));
    return ST_OK;
}

static enum status read_watchdog(const struct notify_environment *environment, struct notify *notify, struct error *err)
{
    uint64_t pid, us;
    if (!environment->watchdog_us) return ST_OK;
    if (environment->watchdog_pid) {
        if (!read_number(environment->watchdog_pid, &pid)) return error_set(err, ST_INVAL, "WATCHDOG_PID is no number");
        if (pid != (uint64_t)environment->pid) return ST_OK; /* meant for another */
    }
    if (!read_number(environment->watchdog_us, &us) || us == 0 || us > UINT64_MAX / 1000)
        return error_set(err, ST_INVAL, "WATCHDOG_USEC is no number of microseconds");
    notify->beat_ns = us * 1000 / 3;
    return ST_OK;
}

enum status notify_open(const struct notify_environment *environment, struct notify *notify, struct error *err)
{
    *notify = (struct notify){.fd = -1};
    if (!environment->socket) return ST_OK;
    TRY(read_address(environment->socket, notify, err));
    notify->fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (notify->fd < 0) return error_set(err, ST_IO, "NOTIFY_SOCKET: %s", strerror(errno));
    return read_watchdog(environment, notify, err);
}

void notify_close(struct notify *notify)
{
    if (notify->fd >= 0) (void)close(notify->fd);
    notify->fd = -1;
}

bool notify_look(const struct notify *notify, enum notify_phase phase, bool alive, uint64_t now_ns,
                 char text[NOTIFY_TEXT_BYTES], struct notify *next)
{
    static const char *const words[] = {[NOTIFY_NOTHING] = "",
                                        [NOTIFY_LOADING] = "STATUS=loading\n",
                                        [NOTIFY_READY] = "READY=1\nSTATUS=serving\n",
                                        [NOTIFY_STOPPING] = "STOPPING=1\nSTATUS=draining\n"};
    bool news = phase > notify->told || (notify->reloading && phase == NOTIFY_READY);
    bool extend = phase != NOTIFY_READY && (news || now_ns - notify->extended_ns >= NOTIFY_EXTEND_S * NS_PER_S);
    bool beat = notify->beat_ns && alive && now_ns - notify->beaten_ns >= notify->beat_ns;
    char extended[48] = "";
    *next = *notify;
    if (extend) {
        (void)snprintf(extended, sizeof extended, "EXTEND_TIMEOUT_USEC=%d000000\n", NOTIFY_EXTENDED_S);
        next->extended_ns = now_ns;
    }
    if (news) next->told = phase, next->reloading = false;
    if (beat) next->beaten_ns = now_ns;
    (void)snprintf(text, NOTIFY_TEXT_BYTES, "%s%s%s", news ? words[phase] : "", extended, beat ? "WATCHDOG=1\n" : "");
    return text[0] != '\0';
}

/* false: the socket takes nothing now. */
static bool say(struct notify *notify, const char *text)
{
    ssize_t count = sendto(notify->fd, text, strlen(text), MSG_NOSIGNAL, (const struct sockaddr *)&notify->address,
                           notify->length);
    if (count >= 0) return true;
    if (errno == EAGAIN || errno == EINTR || errno == ENOBUFS) return false;
    log_line(LOG_WARN, "notify", "nobody is told any more reason=\"NOTIFY_SOCKET: %s\"", strerror(errno));
    notify_close(notify);
    return false;
}

void notify_turn(struct notify *notify, enum notify_phase phase, bool alive, uint64_t now_ns)
{
    char text[NOTIFY_TEXT_BYTES];
    struct notify next;
    if (notify->fd < 0 || !notify_look(notify, phase, alive, now_ns, text, &next)) return;
    if (say(notify, text)) *notify = next;
}

void notify_reloading(struct notify *notify, uint64_t now_ns)
{
    char text[NOTIFY_TEXT_BYTES];
    if (notify->fd < 0 || notify->told != NOTIFY_READY) return;
    (void)snprintf(text, sizeof text, "RELOADING=1\nMONOTONIC_USEC=%" PRIu64 "\n", now_ns / 1000);
    if (say(notify, text)) notify->reloading = true;
}
