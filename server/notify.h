/* What systemd is told of this process (Type=notify): when it is ready, loads, reads its keys again or ends, and, with
 * WatchdogSec=, that it is alive. The protocol is that of sd_notify(3), a datagram of lines to $NOTIFY_SOCKET; a
 * library for it would bring libsystemd into the image.
 *
 * N1  READY=1 once, when /readyz first says so; EXTEND_TIMEOUT_USEC every NOTIFY_EXTEND_S while it loads and while it
 *     drains: a start, or an end, that goes on is not one that hangs.
 * N2  WATCHDOG=1 at a third of $WATCHDOG_USEC (two beats may be lost), only while /livez would say 200: a step that does
 *     not end stops the beats, and systemd starts the process again.
 * N3  A datagram that the socket does not take now is made again at the next look. Nobody at the socket: no more is
 *     sent, with a line in the log; the server goes on.
 *
 * notify_look is pure; one thread. */
#ifndef SERVER_NOTIFY_H
#define SERVER_NOTIFY_H

#include "runtime/base/status.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/un.h>

enum { NOTIFY_TEXT_BYTES = 256, NOTIFY_EXTEND_S = 5, NOTIFY_EXTENDED_S = 30 };

enum notify_phase { NOTIFY_NOTHING, NOTIFY_LOADING, NOTIFY_READY, NOTIFY_STOPPING };

struct notify {
    int fd; /* -1: nobody is told */
    struct sockaddr_un address;
    socklen_t length;
    uint64_t beat_ns; /* between beats; 0: none are wanted */
    enum notify_phase told;
    uint64_t extended_ns, beaten_ns;
    bool reloading; /* said, and READY=1 is to follow */
};

struct notify_environment {
    const char *socket, *watchdog_us, *watchdog_pid; /* NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID; NULL: not set */
    int64_t pid;                                     /* this process's */
};

/* Without a socket in the environment: ST_OK, and nothing is ever sent. ST_INVAL: what is there cannot be used (err says
 * what); ST_IO: no socket. *notify can be used in all cases. */
NODISCARD enum status notify_open(const struct notify_environment *environment, struct notify *notify,
                                  struct error *err);
void notify_close(struct notify *notify);

/* What there is to say at now_ns (monotonic); false: nothing. `next` is the state once that has been sent. */
bool notify_look(const struct notify *notify, enum notify_phase phase, bool alive, uint64_t now_ns,
                 char text[NOTIFY_TEXT_BYTES], struct notify *next);

/* Looks, and sends what there is. */
void notify_turn(struct notify *notify, enum notify_phase phase, bool alive, uint64_t now_ns);
/* RELOADING=1; READY=1 follows with the next turn. */
void notify_reloading(struct notify *notify, uint64_t now_ns);

#endif
