/* See rendezvous.h, V1-V4. Process 0 waits for the others in one loop over all sockets; afterwards a thread on each
 * side sends and hears beats. Channels are met for by the same loop, once the beats go. */
#include "runtime/device/rendezvous.h"

#include "runtime/base/check.h"
#include "runtime/base/clock.h"
#include "runtime/base/hash.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"
#include "runtime/base/random.h"
#include "runtime/base/thread.h"
#include "runtime/device/rendezvous_wire.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

enum { TURN_MS = 50, RETRY_MS = 200, LATE_MS = 1000, LISTENERS = 2, PROCESSES_MAX = 1024 };

#define CHANNEL UINT32_C(0x80000000) /* with the process in a JOIN: it comes for its channel */

struct rendezvous {
    struct rendezvous_config config;
    uint32_t members_count;      /* connections: process 0 has processes - 1, others one */
    struct connection *members;  /* of process 0: member i is process i + 1 */
    struct connection *channels; /* as many, or NULL */
    int bell;
    pthread_t thread;
    bool threaded;
    atomic_bool closing, mute;     /* mute: it goes without goodbye */
    uint64_t looked_ns, beaten_ns; /* the thread's */

    pthread_mutex_t mutex; /* guards what follows */
    enum rendezvous_state state;
    struct error why;
};

static uint64_t now_ns(void)
{
    return clock_now_ns(clock_system());
}

static bool is_first(const struct rendezvous *r)
{
    return r->config.process == 0;
}

/* While channels are met for, the beats may tell that somebody is gone. */
static bool has_ended(struct rendezvous *r, struct error *why)
{
    pthread_mutex_lock(&r->mutex);
    bool ended = r->state != RENDEZVOUS_RUNS;
    if (ended && why) *why = r->why;
    pthread_mutex_unlock(&r->mutex);
    return ended;
}

/* Where process 0 waits. */
struct hall {
    struct rendezvous *r;
    uint32_t what;             /* 0, or CHANNEL */
    struct connection *places; /* to fill: members, or channels */
    int listeners[LISTENERS];
    struct connection strangers[RENDEZVOUS_STRANGERS_MAX];
    uint32_t joined;
    uint32_t refusals_told;
    uint32_t last_refusal, last_process; /* for the message at the end */
};

/* ---- what JOIN says ---- */

static void write_join(const struct rendezvous_config *c, uint32_t what, const uint8_t nonce[NONCE_BYTES], uint8_t *to)
{
    memset(to, 0, JOIN_PLAIN_BYTES);
    put_u32(to, c->process | what);
    put_u32(to + 4, c->processes);
    memcpy(to + 8, c->version, strlen(c->version));
    memcpy(to + 8 + VERSION_BYTES, c->config_hash, 32);
    memcpy(to + 40 + VERSION_BYTES, c->model_hash, 32);
    memcpy(to + 72 + VERSION_BYTES, nonce, NONCE_BYTES);
}

static void join_proof(const struct rendezvous_config *c, const uint8_t nonce_0[NONCE_BYTES], const uint8_t *join,
                       uint8_t proof[PROOF_BYTES])
{
    static const char label[8] = "join-v1";
    uint8_t text[sizeof label + NONCE_BYTES + JOIN_PLAIN_BYTES];
    memcpy(text, label, sizeof label);
    memcpy(text + sizeof label, nonce_0, NONCE_BYTES);
    memcpy(text + sizeof label + NONCE_BYTES, join, JOIN_PLAIN_BYTES);
    hmac_sha256(c->secret, c->secret_bytes, text, sizeof text, proof);
}

static const char *refusal_text(uint32_t refusal)
{
    switch (refusal) {
    case REFUSED_SECRET: return "the launch secrets differ";
    case REFUSED_VERSION: return "the versions of the program differ";
    case REFUSED_CONFIG: return "the settings differ: give every process the same";
    case REFUSED_MODEL: return "the models differ: give every process the same files";
    case REFUSED_COUNT: return "they disagree about how many processes there are";
    case REFUSED_TIME: return "others did not come in time";
    case REFUSED_TAKEN: return "another process has that place already";
    default: return "no reason that this version knows";
    }
}

/* 0: it may join. Only the secret is judged before the secret is proven. */
static uint32_t judge(const struct hall *h, const struct connection *stranger, const uint8_t *join)
{
    const struct rendezvous_config *c = &h->r->config;
    uint8_t proof[PROOF_BYTES], version[VERSION_BYTES] = {0};
    uint32_t process = get_u32(join) & ~CHANNEL, what = get_u32(join) & CHANNEL, processes = get_u32(join + 4);
    join_proof(c, stranger->nonce, join, proof);
    if (!equal_constant_time(proof, join + JOIN_PLAIN_BYTES, PROOF_BYTES)) return REFUSED_SECRET;
    memcpy(version, c->version, strlen(c->version));
    if (memcmp(join + 8, version, VERSION_BYTES) != 0) return REFUSED_VERSION;
    if (processes != c->processes || process == 0 || process >= c->processes) return REFUSED_COUNT;
    if (memcmp(join + 8 + VERSION_BYTES, c->config_hash, 32) != 0) return REFUSED_CONFIG;
    if (memcmp(join + 40 + VERSION_BYTES, c->model_hash, 32) != 0) return REFUSED_MODEL;
    if (what != h->what || h->places[process - 1].fd >= 0) return REFUSED_TAKEN;
    return 0;
}

/* ---- sockets ---- */

static void set_options(int fd)
{
    int yes = 1;
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    (void)fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

static bool is_loopback(const struct sockaddr *address)
{
    if (address->sa_family == AF_INET) {
        struct sockaddr_in in;
        memcpy(&in, address, sizeof in);
        return ntohl(in.sin_addr.s_addr) >> 24 == 127;
    }
    struct sockaddr_in6 in6;
    memcpy(&in6, address, sizeof in6);
    return address->sa_family == AF_INET6 && IN6_IS_ADDR_LOOPBACK(&in6.sin6_addr);
}

static struct addrinfo *look_up(const char *address, uint16_t port, int flags)
{
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = flags}, *found = NULL;
    char service[8];
    snprintf(service, sizeof service, "%u", port);
    return getaddrinfo(address, service, &hints, &found) == 0 ? found : NULL;
}

static int listen_at(const struct addrinfo *at)
{
    int yes = 1, fd = socket(at->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return -1;
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (at->ai_family == AF_INET6) (void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &yes, sizeof yes);
    if (bind(fd, at->ai_addr, at->ai_addrlen) == 0 && listen(fd, 64) == 0) return fd;
    close(fd);
    return -1;
}

/* Loopback where the address is that, else every address of the machine: in its own name's eyes a machine may be
 * 127.0.1.1. */
static enum status listen_all(const struct rendezvous_config *c, int listeners[LISTENERS], struct error *err)
{
    struct addrinfo *named = look_up(c->address, c->port, 0);
    bool loopback = named && is_loopback(named->ai_addr) &&
                    (c->address[0] == ':' || strncmp(c->address, "127.", 4) == 0 || !strcmp(c->address, "localhost"));
    struct addrinfo *all = loopback ? named : look_up(NULL, c->port, AI_PASSIVE);
    uint32_t count = 0;
    for (struct addrinfo *at = all; at && count < LISTENERS; at = at->ai_next) {
        int fd = listen_at(at);
        if (fd >= 0) listeners[count++] = fd;
    }
    int error = errno;
    if (named) freeaddrinfo(named);
    if (all && all != named) freeaddrinfo(all);
    if (count) return ST_OK;
    return error_set(err, ST_IO, "cannot listen at port %u for the other processes: %s", c->port, strerror(error));
}

/* ---- process 0: all come ---- */

static void greet(struct hall *h, int listener)
{
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) return;
    set_options(fd);
    struct connection *place = &h->strangers[0];
    for (uint32_t i = 0; i < RENDEZVOUS_STRANGERS_MAX; i++) { /* a free one, else the oldest (V1) */
        struct connection *c = &h->strangers[i];
        if (place->fd >= 0 && (c->fd < 0 || c->since_ns < place->since_ns)) place = c;
    }
    connection_close(place);
    *place = (struct connection){.fd = fd, .since_ns = now_ns()};
    random_fill(place->nonce, sizeof place->nonce);
    if (connection_write(place, FRAME_HELLO, place->nonce) != ST_OK) connection_close(place);
}

static void refuse(struct hall *h, struct connection *stranger, uint32_t refusal, uint32_t process)
{
    enum { TOLD_MAX = 20 };
    uint8_t payload[4];
    put_u32(payload, refusal);
    (void)!connection_write(stranger, FRAME_REFUSED, payload);
    connection_close(stranger);
    h->last_refusal = refusal;
    h->last_process = process;
    if (h->refusals_told++ < TOLD_MAX) { /* strangers do not fill the log */
        if (refusal == REFUSED_SECRET)
            log_line(LOG_WARN, "rendezvous", "refused reason=\"%s\"", refusal_text(refusal));
        else
            log_line(LOG_WARN, "rendezvous", "refused process=%" PRIu32 " reason=\"%s\"", process,
                     refusal_text(refusal));
    }
}

static void hear_stranger(struct hall *h, struct connection *stranger)
{
    struct rendezvous *r = h->r;
    struct frame frame;
    enum status status = connection_read(stranger, &frame);
    if (status == ST_AGAIN) return;
    if (status != ST_OK || frame.kind != FRAME_JOIN) {
        connection_close(stranger);
        return;
    }
    uint32_t process = get_u32(frame.payload) & ~CHANNEL, refusal = judge(h, stranger, frame.payload);
    if (refusal) {
        refuse(h, stranger, refusal, process);
        return;
    }
    struct connection *member = &h->places[process - 1];
    *member = *stranger;
    member->process = process;
    member->in_bytes = member->taken_bytes = 0;
    session_key(r->config.secret, r->config.secret_bytes, stranger->nonce, frame.payload + 72 + VERSION_BYTES,
                member->key);
    stranger->fd = -1;
    h->joined++;
}

/* Somebody who is here already can only go: before the start nothing else is said. */
static void hear_waiting(struct hall *h, struct connection *member)
{
    struct frame frame;
    if (connection_read(member, &frame) == ST_AGAIN) return;
    connection_close(member);
    h->joined--;
}

static void hall_turn(struct hall *h, struct pollfd *fds)
{
    struct rendezvous *r = h->r;
    nfds_t count = 0;
    for (uint32_t i = 0; i < LISTENERS; i++) fds[count++] = (struct pollfd){h->listeners[i], POLLIN, 0};
    for (uint32_t i = 0; i < RENDEZVOUS_STRANGERS_MAX; i++)
        fds[count++] = (struct pollfd){h->strangers[i].fd, POLLIN, 0};
    for (uint32_t i = 0; i < r->members_count; i++) fds[count++] = (struct pollfd){h->places[i].fd, POLLIN, 0};
    if (poll(fds, count, TURN_MS) < 0) return;
    uint64_t now = now_ns();
    const struct pollfd *at = fds + LISTENERS;
    for (uint32_t i = 0; i < RENDEZVOUS_STRANGERS_MAX; i++, at++) {
        struct connection *c = &h->strangers[i];
        if (at->fd >= 0 && at->revents) hear_stranger(h, c);
        if (c->fd >= 0 && now - c->since_ns > RENDEZVOUS_JOIN_MS * NS_PER_MS) connection_close(c);
    }
    for (uint32_t i = 0; i < r->members_count; i++, at++)
        if (at->fd >= 0 && at->revents) hear_waiting(h, &h->places[i]);
    for (uint32_t i = 0; i < LISTENERS; i++)
        if (fds[i].fd >= 0 && fds[i].revents) greet(h, fds[i].fd);
}

static enum status start_all(struct hall *h, const uint8_t *blob, struct error *err)
{
    for (uint32_t i = 0; i < h->r->members_count; i++) {
        struct connection *member = &h->places[i];
        uint8_t payload[RENDEZVOUS_BLOB_BYTES + PROOF_BYTES];
        memcpy(payload, blob, RENDEZVOUS_BLOB_BYTES);
        session_proof(member, true, FRAME_START, blob, RENDEZVOUS_BLOB_BYTES, payload + RENDEZVOUS_BLOB_BYTES);
        if (connection_write(member, FRAME_START, payload) != ST_OK)
            return error_set(err, ST_IO, "process %" PRIu32 " went away as all were there", member->process);
    }
    return ST_OK;
}

static enum status give_up(struct hall *h, struct error *err)
{
    struct rendezvous *r = h->r;
    uint8_t in_time[4];
    char missing[120] = "", last[160] = "";
    size_t used = 0;
    put_u32(in_time, REFUSED_TIME);
    for (uint32_t i = 0; i < r->members_count; i++)
        if (h->places[i].fd >= 0)
            (void)!connection_write(&h->places[i], FRAME_REFUSED, in_time);
        else if (used < sizeof missing - 16)
            used += (size_t)snprintf(missing + used, sizeof missing - used, "%s%" PRIu32, used ? ", " : "", i + 1);
    if (h->last_refusal) snprintf(last, sizeof last, "; one was refused: %s", refusal_text(h->last_refusal));
    return error_set(err, ST_TIMEOUT,
                     "%" PRIu32 " of %" PRIu32 " processes were there after %" PRIu64 " s; missing: %s%s",
                     h->joined + 1, r->config.processes, r->config.join_ns / NS_PER_S, missing, last);
}

static enum status gather_all(struct rendezvous *r, uint32_t what, const uint8_t *blob, struct error *err)
{
    struct hall *h = mem_alloc(1, sizeof *h);
    struct pollfd *fds = mem_alloc(LISTENERS + RENDEZVOUS_STRANGERS_MAX + r->members_count, sizeof *fds);
    enum status status = h && fds ? ST_OK : error_set(err, ST_NOMEM, "no memory to meet the other processes");
    if (status == ST_OK) {
        h->r = r;
        h->what = what;
        h->places = what ? r->channels : r->members;
        for (uint32_t i = 0; i < LISTENERS; i++) h->listeners[i] = -1;
        for (uint32_t i = 0; i < RENDEZVOUS_STRANGERS_MAX; i++) h->strangers[i].fd = -1;
        status = listen_all(&r->config, h->listeners, err);
        uint64_t begin_ns = now_ns();
        while (status == ST_OK && h->joined < r->members_count) {
            hall_turn(h, fds);
            if (has_ended(r, err))
                status = ST_DEVICE;
            else if (h->joined < r->members_count && now_ns() - begin_ns > r->config.join_ns)
                status = give_up(h, err);
        }
        for (uint32_t i = 0; i < LISTENERS; i++)
            if (h->listeners[i] >= 0) close(h->listeners[i]);
        for (uint32_t i = 0; i < RENDEZVOUS_STRANGERS_MAX; i++) connection_close(&h->strangers[i]);
        if (status == ST_OK) status = start_all(h, blob, err);
    }
    mem_free(fds);
    mem_free(h);
    return status;
}

/* ---- the others: go there ---- */

/* Somewhat longer than process 0 waits, which can say who is missing. */
static uint64_t left_ns(const struct rendezvous *r, uint64_t begin_ns)
{
    uint64_t passed = now_ns() - begin_ns, most = r->config.join_ns + r->config.join_ns / 8;
    return passed < most ? most - passed : 0;
}

/* Until the socket can do that, TURN_MS at most at a time; false: not within the time. */
static bool wait_for(struct rendezvous *r, int fd, short what, uint64_t begin_ns)
{
    while (left_ns(r, begin_ns) && !has_ended(r, NULL)) {
        struct pollfd at = {fd, what, 0};
        if (poll(&at, 1, TURN_MS) > 0) return true;
    }
    return false;
}

static int connect_once(struct rendezvous *r, uint64_t begin_ns)
{
    struct addrinfo *all = look_up(r->config.address, r->config.port, 0);
    int fd = -1;
    for (struct addrinfo *at = all; at && fd < 0; at = at->ai_next) {
        fd = socket(at->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd < 0) continue;
        int error = 0;
        socklen_t length = sizeof error;
        bool there = connect(fd, at->ai_addr, at->ai_addrlen) == 0;
        if (!there && errno == EINPROGRESS && wait_for(r, fd, POLLOUT, begin_ns))
            there = getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) == 0 && error == 0;
        if (there) continue;
        close(fd);
        fd = -1;
    }
    if (all) freeaddrinfo(all);
    if (fd >= 0) set_options(fd);
    return fd;
}

/* The next frame, waited for. */
static enum status await(struct rendezvous *r, struct connection *c, struct frame *frame, uint64_t begin_ns)
{
    for (;;) {
        enum status status = connection_read(c, frame);
        if (status != ST_AGAIN) return status;
        if (!wait_for(r, c->fd, POLLIN, begin_ns)) return ST_TIMEOUT;
    }
}

/* One connection's talk. ST_AGAIN: it broke off before anything was decided: try again. */
static enum status talk(struct rendezvous *r, uint32_t what, uint8_t *blob, uint64_t begin_ns, struct error *err)
{
    struct connection *c = what ? r->channels : r->members;
    struct frame frame;
    uint8_t join[JOIN_PLAIN_BYTES + PROOF_BYTES], nonce[NONCE_BYTES], proof[PROOF_BYTES];
    enum status status = await(r, c, &frame, begin_ns);
    if (status == ST_IO) return ST_AGAIN;
    if (status == ST_OK && frame.kind != FRAME_HELLO) status = ST_PROTO;
    if (status == ST_PROTO)
        return error_set(err, ST_INVAL, "what listens at %s:%u is not process 0", r->config.address, r->config.port);
    if (status != ST_OK) return status;
    random_fill(nonce, sizeof nonce);
    write_join(&r->config, what, nonce, join);
    join_proof(&r->config, frame.payload, join, join + JOIN_PLAIN_BYTES);
    session_key(r->config.secret, r->config.secret_bytes, frame.payload, nonce, c->key);
    if (connection_write(c, FRAME_JOIN, join) != ST_OK) return ST_AGAIN;
    status = await(r, c, &frame, begin_ns);
    if (status == ST_IO) return ST_AGAIN;
    if (status == ST_OK && frame.kind == FRAME_REFUSED) {
        uint32_t refusal = get_u32(frame.payload);
        error_set(err, ST_INVAL, "process 0 has refused this one, process %" PRIu32 " of %" PRIu32 ": %s",
                  r->config.process, r->config.processes, refusal_text(refusal));
        if (refusal == REFUSED_TAKEN) return ST_AGAIN; /* by one that may have died: that is seen soon */
        return refusal == REFUSED_TIME ? ST_TIMEOUT : ST_INVAL;
    }
    if (status != ST_OK) return status == ST_PROTO ? error_set(err, ST_INVAL, "process 0 talks nonsense") : status;
    session_proof(c, true, FRAME_START, frame.payload, RENDEZVOUS_BLOB_BYTES, proof);
    if (frame.kind != FRAME_START || !equal_constant_time(proof, frame.payload + RENDEZVOUS_BLOB_BYTES, PROOF_BYTES))
        return error_set(err, ST_INVAL, "what listens at %s:%u has not proven the launch secret", r->config.address,
                         r->config.port);
    memcpy(blob, frame.payload, RENDEZVOUS_BLOB_BYTES);
    return ST_OK;
}

static enum status go_there(struct rendezvous *r, uint32_t what, uint8_t *blob, struct error *err)
{
    uint64_t begin_ns = now_ns();
    bool met = false;
    if (err) err->message[0] = '\0';
    while (left_ns(r, begin_ns)) {
        struct connection *c = what ? r->channels : r->members;
        if (has_ended(r, err)) return ST_DEVICE;
        *c = (struct connection){.fd = connect_once(r, begin_ns)};
        enum status status = ST_AGAIN;
        if (c->fd >= 0) {
            met = true;
            status = talk(r, what, blob, begin_ns, err);
        }
        if (status == ST_OK) return ST_OK;
        connection_close(c);
        if (status == ST_INVAL || (status == ST_TIMEOUT && err && err->message[0])) return status;
        poll(NULL, 0, RETRY_MS);
    }
    if (err && err->message[0]) return ST_TIMEOUT; /* it was refused until the end */
    return error_set(err, ST_TIMEOUT,
                     met ? "process 0 at %s:%u has not started within %" PRIu64 " s: are all there?"
                         : "process 0 did not answer at %s:%u within %" PRIu64 " s",
                     r->config.address, r->config.port, r->config.join_ns / NS_PER_S);
}

/* ---- afterwards: beats ---- */

/* The first end counts. */
static void end(struct rendezvous *r, enum rendezvous_state state, const char *format, ...) PRINTF_LIKE(3, 4);
static void end(struct rendezvous *r, enum rendezvous_state state, const char *format, ...)
{
    va_list args;
    char why[200];
    va_start(args, format);
    vsnprintf(why, sizeof why, format, args);
    va_end(args);
    pthread_mutex_lock(&r->mutex);
    bool first = r->state == RENDEZVOUS_RUNS && !atomic_load(&r->closing);
    if (first) {
        r->state = state;
        error_set(&r->why, ST_DEVICE, "%s", why);
    }
    pthread_mutex_unlock(&r->mutex);
    if (!first) return;
    if (state == RENDEZVOUS_LOST) log_line(LOG_ERROR, "rendezvous", "lost reason=\"%s\"", why);
    if (r->config.on_end) r->config.on_end(r->config.state, why);
}

static uint32_t process_of(const struct rendezvous *r, const struct connection *c)
{
    return is_first(r) ? c->process : 0;
}

/* Process 0 tells the others whose end it was. */
static void tell_others(struct rendezvous *r, enum frame_kind kind, uint32_t process)
{
    for (uint32_t i = 0; is_first(r) && i < r->members_count; i++)
        if (r->members[i].fd >= 0) (void)!signal_write(&r->members[i], true, kind, process);
}

static void lose(struct rendezvous *r, struct connection *c, const char *how)
{
    uint32_t process = process_of(r, c);
    connection_close(c);
    tell_others(r, FRAME_LOST, process);
    end(r, RENDEZVOUS_LOST, "process %" PRIu32 " %s", process, how);
}

static void hear(struct rendezvous *r, struct connection *c)
{
    struct frame frame;
    uint32_t process = 0;
    for (;;) {
        enum status status = connection_read(c, &frame);
        if (status == ST_AGAIN) return;
        if (status == ST_OK) status = signal_check(c, !is_first(r), &frame, &process);
        if (status != ST_OK) {
            lose(r, c, status == ST_IO ? "has ended" : "talks nonsense");
            return;
        }
        c->heard_ns = now_ns();
        if (frame.kind == FRAME_BYE) {
            connection_close(c);
            tell_others(r, FRAME_BYE, process);
            end(r, RENDEZVOUS_OVER, "process %" PRIu32 " has said goodbye", process);
            return;
        }
        if (frame.kind == FRAME_LOST) end(r, RENDEZVOUS_LOST, "process %" PRIu32 " is lost, says process 0", process);
    }
}

static void beat_all(struct rendezvous *r, uint64_t now)
{
    if (now - r->beaten_ns < r->config.beat_ms * NS_PER_MS) return;
    r->beaten_ns = now;
    for (uint32_t i = 0; i < r->members_count; i++) {
        struct connection *c = &r->members[i];
        if (c->fd < 0 || signal_write(c, is_first(r), FRAME_BEAT, 0) == ST_OK) continue;
        hear(r, c); /* it may have said goodbye before it went */
        if (c->fd >= 0) lose(r, c, "has ended");
    }
}

static void look_for_silence(struct rendezvous *r, uint64_t now)
{
    bool late = now - r->looked_ns > LATE_MS * NS_PER_MS; /* this process was stopped: hear the others first */
    r->looked_ns = now;
    for (uint32_t i = 0; i < r->members_count; i++) {
        struct connection *c = &r->members[i];
        char how[64];
        if (late) c->heard_ns = now;
        if (c->fd < 0 || now - c->heard_ns <= r->config.lost_ms * NS_PER_MS) continue;
        snprintf(how, sizeof how, "was silent for %" PRIu64 " ms", (now - c->heard_ns) / NS_PER_MS);
        lose(r, c, how);
    }
}

static void *beat_main(void *state)
{
    struct rendezvous *r = state;
    struct pollfd *fds = mem_alloc(r->members_count + 1, sizeof *fds);
    if (!fds) end(r, RENDEZVOUS_LOST, "no memory for the beats of process %" PRIu32, r->config.process);
    while (fds && !atomic_load(&r->closing)) {
        fds[0] = (struct pollfd){r->bell, POLLIN, 0};
        for (uint32_t i = 0; i < r->members_count; i++) fds[i + 1] = (struct pollfd){r->members[i].fd, POLLIN, 0};
        (void)poll(fds, r->members_count + 1, TURN_MS);
        for (uint32_t i = 0; i < r->members_count; i++)
            if (fds[i + 1].fd >= 0 && fds[i + 1].revents) hear(r, &r->members[i]);
        uint64_t now = now_ns();
        look_for_silence(r, now);
        beat_all(r, now);
    }
    for (uint32_t i = 0; i < r->members_count && !atomic_load(&r->mute); i++)
        if (r->members[i].fd >= 0) (void)!signal_write(&r->members[i], is_first(r), FRAME_BYE, r->config.process);
    mem_free(fds);
    return NULL;
}

static enum status beat_start(struct rendezvous *r, struct error *err)
{
    r->looked_ns = now_ns();
    for (uint32_t i = 0; i < r->members_count; i++) r->members[i].heard_ns = r->looked_ns;
    r->bell = eventfd(0, EFD_CLOEXEC);
    if (r->bell < 0) return error_set(err, ST_LIMIT, "no file descriptor for the beats");
    r->threaded = thread_start(&r->thread, beat_main, r) == ST_OK;
    return r->threaded ? ST_OK : error_set(err, ST_LIMIT, "no thread for the beats");
}

/* ---- life ---- */

static enum status check(const struct rendezvous_config *c, struct error *err)
{
    if (c->processes < 2 || c->processes > PROCESSES_MAX || c->process >= c->processes || !c->port || !c->address)
        return error_set(err, ST_INVAL, "process %" PRIu32 " of %" PRIu32 " cannot meet others", c->process,
                         c->processes);
    if (!c->secret || c->secret_bytes < RENDEZVOUS_SECRET_BYTES_MIN)
        return error_set(err, ST_INVAL, "the launch secret must have at least %d bytes", RENDEZVOUS_SECRET_BYTES_MIN);
    if (!c->version || strlen(c->version) >= VERSION_BYTES)
        return error_set(err, ST_INVAL, "the version has more than %d bytes", VERSION_BYTES - 1);
    return ST_OK;
}

static enum status meet(struct rendezvous *r, uint32_t what, uint8_t *blob, struct error *err)
{
    return is_first(r) ? gather_all(r, what, blob, err) : go_there(r, what, blob, err);
}

static struct connection *take_places(uint32_t count)
{
    struct connection *places = mem_alloc(count, sizeof *places);
    for (uint32_t i = 0; places && i < count; i++) places[i].fd = -1;
    return places;
}

enum status rendezvous_open(const struct rendezvous_config *config, uint8_t blob[RENDEZVOUS_BLOB_BYTES],
                            struct rendezvous **rendezvous, struct error *err)
{
    TRY(check(config, err));
    struct rendezvous *r = mem_alloc(1, sizeof *r);
    if (!r) return error_set(err, ST_NOMEM, "no memory to meet the other processes");
    r->config = *config;
    if (!r->config.join_ns) r->config.join_ns = 120 * NS_PER_S;
    if (!r->config.beat_ms) r->config.beat_ms = 1000;
    if (!r->config.lost_ms) r->config.lost_ms = 5000;
    r->bell = -1;
    pthread_mutex_init(&r->mutex, NULL);
    r->members_count = is_first(r) ? config->processes - 1 : 1;
    r->members = take_places(r->members_count);
    if (config->channels) r->channels = take_places(r->members_count);
    bool taken = r->members && (r->channels || !config->channels);
    enum status status = taken ? ST_OK : error_set(err, ST_NOMEM, "no memory to meet the other processes");
    if (status == ST_OK) status = meet(r, 0, blob, err);
    if (status == ST_OK) status = beat_start(r, err);
    if (status == ST_OK && r->channels) status = meet(r, CHANNEL, blob, err);
    r->config.secret = NULL; /* the caller's, and done with */
    if (status != ST_OK) {
        rendezvous_close(r);
        return status;
    }
    *rendezvous = r;
    return ST_OK;
}

enum rendezvous_state rendezvous_state(struct rendezvous *r, struct error *why)
{
    pthread_mutex_lock(&r->mutex);
    enum rendezvous_state state = r->state;
    if (why) *why = r->why;
    pthread_mutex_unlock(&r->mutex);
    return state;
}

void rendezvous_take_channel(struct rendezvous *r, uint32_t idx, int *fd, uint8_t key[32])
{
    CHECK(r->channels && idx < r->members_count && r->channels[idx].fd >= 0);
    *fd = r->channels[idx].fd;
    memcpy(key, r->channels[idx].key, 32);
    r->channels[idx].fd = -1;
}

void rendezvous_abandon(struct rendezvous *r)
{
    if (r) atomic_store(&r->mute, true);
    rendezvous_close(r);
}

void rendezvous_close(struct rendezvous *r)
{
    if (!r) return;
    atomic_store(&r->closing, true);
    if (r->threaded) {
        uint64_t one = 1;
        if (write(r->bell, &one, sizeof one) < 0) log_line(LOG_WARN, "rendezvous", "the beats end late");
        pthread_join(r->thread, NULL);
    }
    for (uint32_t i = 0; r->members && i < r->members_count; i++) connection_close(&r->members[i]);
    for (uint32_t i = 0; r->channels && i < r->members_count; i++) connection_close(&r->channels[i]);
    if (r->bell >= 0) close(r->bell);
    mem_free(r->channels);
    mem_free(r->members);
    pthread_mutex_destroy(&r->mutex);
    mem_free(r);
}
