/* Processes that meet, threads here, over loopback: all come, some do not, some are others than they say, strangers
 * talk nonsense, and afterwards some end or fall silent. The .c is included to let one beat happen. */
#include "tests/unit/unit.h"

#include "runtime/base/clock.h"
#include "runtime/base/hash.h"
#include "runtime/base/random.h"
#include "runtime/device/rendezvous.c"
#include "runtime/device/rendezvous_wire.h"

#include <arpa/inet.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <unistd.h>

enum { PROCESSES = 4 };
static const char secret[] = "a launch secret of some length";

struct process {
    struct rendezvous_config config;
    uint8_t blob[RENDEZVOUS_BLOB_BYTES];
    struct rendezvous *rendezvous;
    enum status status;
    struct error err;
    pthread_t thread;
    atomic_int ends;
};

static void on_end(void *state, const char *why)
{
    struct process *p = state;
    assert_true(why[0] != '\0');
    atomic_fetch_add(&p->ends, 1);
}

/* Bound for the program's life, so that neither another program nor the near end of a connection gets the port. Who
 * sets SO_REUSEADDR may listen there all the same. */
static int port_socket(uint16_t port)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int yes = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes), 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&at, sizeof at), 0);
    return fd;
}

static uint16_t own_port(void)
{
    struct sockaddr_in at;
    socklen_t length = sizeof at;
    assert_int_equal(getsockname(port_socket(0), (struct sockaddr *)&at, &length), 0);
    return ntohs(at.sin_port);
}

static void make(struct process *processes, uint32_t count, uint64_t join_ms)
{
    uint16_t port = own_port();
    memset(processes, 0, count * sizeof *processes);
    for (uint32_t i = 0; i < count; i++)
        processes[i].config = (struct rendezvous_config){.process = i,
                                                         .processes = count,
                                                         .address = "127.0.0.1",
                                                         .port = port,
                                                         .secret = secret,
                                                         .secret_bytes = strlen(secret),
                                                         .version = "0.1.0",
                                                         .config_hash = {1},
                                                         .model_hash = {2},
                                                         .join_ns = join_ms * NS_PER_MS,
                                                         .beat_ms = 20,
                                                         .lost_ms = 60000,
                                                         .on_end = on_end,
                                                         .state = &processes[i]};
    for (uint32_t i = 0; i < RENDEZVOUS_BLOB_BYTES; i++) processes[0].blob[i] = (uint8_t)(i * 7 + 1);
}

static void *open_main(void *state)
{
    struct process *p = state;
    p->status = rendezvous_open(&p->config, p->blob, &p->rendezvous, &p->err);
    return NULL;
}

static void begin(struct process *p)
{
    assert_int_equal(pthread_create(&p->thread, NULL, open_main, p), 0);
}

static void finish(struct process *p)
{
    pthread_join(p->thread, NULL);
}

static void must_run(struct process *p)
{
    if (p->status != ST_OK) fail_msg("process %u: %s", p->config.process, p->err.message);
    assert_int_equal(rendezvous_state(p->rendezvous, NULL), RENDEZVOUS_RUNS);
}

static void await_state(struct process *p, enum rendezvous_state wanted, const char *word)
{
    struct error why = {""};
    for (int i = 0; i < 30000 && rendezvous_state(p->rendezvous, &why) == RENDEZVOUS_RUNS; i++) usleep(1000);
    if (rendezvous_state(p->rendezvous, &why) != wanted || !strstr(why.message, word))
        fail_msg("process %u: \"%s\", expected \"%s\"", p->config.process, why.message, word);
    while (atomic_load(&p->ends) == 0) usleep(1000);
    assert_int_equal(atomic_load(&p->ends), 1);
}

static void test_rendezvous_meets(void **state)
{
    (void)state;
    struct process processes[PROCESSES];
    for (int order = 0; order < 2; order++) {
        make(processes, PROCESSES, 60000);
        for (uint32_t i = 0; i < PROCESSES; i++) begin(&processes[order ? PROCESSES - 1 - i : i]);
        for (uint32_t i = 0; i < PROCESSES; i++) finish(&processes[i]);
        for (uint32_t i = 0; i < PROCESSES; i++) {
            must_run(&processes[i]);
            assert_memory_equal(processes[i].blob, processes[0].blob, RENDEZVOUS_BLOB_BYTES);
        }
        usleep(100000); /* some beats */
        for (uint32_t i = 0; i < PROCESSES; i++) must_run(&processes[i]);
        uint32_t first = order ? 0 : 2; /* who goes first */
        rendezvous_close(processes[first].rendezvous);
        for (uint32_t i = 0; i < PROCESSES; i++)
            if (i != first)
                await_state(&processes[i], RENDEZVOUS_OVER, order ? "process 0 has said" : "process 2 has said");
        for (uint32_t i = 0; i < PROCESSES; i++)
            if (i != first) rendezvous_close(processes[i].rendezvous);
    }
}

/* A second connection of each: what is written at one end comes out at the other, and only these two have its key. */
static void test_rendezvous_channels(void **state)
{
    (void)state;
    struct process processes[PROCESSES];
    uint8_t keys[PROCESSES][2][32];
    int fds[PROCESSES][2];
    make(processes, PROCESSES, 60000);
    for (uint32_t i = 0; i < PROCESSES; i++) processes[i].config.channels = true;
    for (uint32_t i = 0; i < PROCESSES; i++) begin(&processes[i]);
    for (uint32_t i = 0; i < PROCESSES; i++) finish(&processes[i]);
    for (uint32_t i = 0; i < PROCESSES; i++) must_run(&processes[i]);
    for (uint32_t i = 1; i < PROCESSES; i++) {
        char text[8] = "";
        struct pollfd at;
        rendezvous_take_channel(processes[0].rendezvous, i - 1, &fds[i][0], keys[i][0]);
        rendezvous_take_channel(processes[i].rendezvous, 0, &fds[i][1], keys[i][1]);
        assert_memory_equal(keys[i][0], keys[i][1], 32);
        for (uint32_t k = 1; k < i; k++) assert_memory_not_equal(keys[i][0], keys[k][0], 32);
        assert_int_equal(send(fds[i][0], &i, sizeof i, 0), sizeof i);
        at = (struct pollfd){fds[i][1], POLLIN, 0};
        assert_int_equal(poll(&at, 1, 60000), 1);
        assert_int_equal(recv(fds[i][1], text, sizeof text, 0), sizeof i);
        assert_memory_equal(text, &i, sizeof i);
    }
    rendezvous_abandon(processes[2].rendezvous); /* without a word */
    await_state(&processes[0], RENDEZVOUS_LOST, "process 2 has ended");
    await_state(&processes[3], RENDEZVOUS_LOST, "process 2 is lost");
    for (uint32_t i = 0; i < PROCESSES; i++)
        if (i != 2) rendezvous_close(processes[i].rendezvous);
    for (uint32_t i = 1; i < PROCESSES; i++) close(fds[i][0]), close(fds[i][1]);
}

/* A process that has the secret comes for its channel before all have met: that is no place yet. */
static void test_rendezvous_keeps_channels_for_later(void **state)
{
    (void)state;
    struct process first;
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct connection c = {.fd = -1};
    struct frame frame = {0};
    uint8_t join[JOIN_PLAIN_BYTES + PROOF_BYTES] = {0}, text[8 + NONCE_BYTES + JOIN_PLAIN_BYTES] = "join-v1";
    make(&first, 1, 3000);
    first.config.processes = 2;
    first.config.channels = true;
    begin(&first);
    at.sin_port = htons(first.config.port);
    for (int i = 0; i < 3000 && c.fd < 0; i++) {
        c.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (connect(c.fd, (struct sockaddr *)&at, sizeof at) == 0) break;
        connection_close(&c);
        usleep(1000);
    }
    while (connection_read(&c, &frame) == ST_AGAIN) usleep(1000);
    assert_int_equal(frame.kind, FRAME_HELLO);
    put_u32(join, UINT32_C(0x80000001));
    put_u32(join + 4, 2);
    memcpy(join + 8, first.config.version, strlen(first.config.version));
    memcpy(join + 8 + VERSION_BYTES, first.config.config_hash, 32);
    memcpy(join + 40 + VERSION_BYTES, first.config.model_hash, 32);
    memcpy(text + 8, frame.payload, NONCE_BYTES);
    memcpy(text + 8 + NONCE_BYTES, join, JOIN_PLAIN_BYTES);
    hmac_sha256(secret, strlen(secret), text, sizeof text, join + JOIN_PLAIN_BYTES);
    assert_int_equal(connection_write(&c, FRAME_JOIN, join), ST_OK);
    while (connection_read(&c, &frame) == ST_AGAIN) usleep(1000);
    assert_int_equal(frame.kind, FRAME_REFUSED);
    assert_int_equal(get_u32(frame.payload), REFUSED_TAKEN);
    connection_close(&c);
    finish(&first);
    assert_int_equal(first.status, ST_TIMEOUT);
}

/* One of three differs: it and process 0 say so; the third waits in vain. */
enum { DIFFERENCES = 6, TAKEN = DIFFERENCES - 1 };

static void differ(struct process *processes, uint32_t what)
{
    struct rendezvous_config *c = &processes[2].config;
    make(processes, 3, 3000);
    if (what != TAKEN) processes[1].config.join_ns = 60 * NS_PER_S; /* process 0 is the first to give up */
    switch (what) {
    case 0: c->secret = "another secret of some length"; break;
    case 1: c->version = "0.1.1"; break;
    case 2: c->config_hash[31] = 1; break;
    case 3: c->model_hash[0] = 1; break;
    case 4: c->processes = 4; break;
    default: c->process = 1; break;
    }
}

static void check_difference(const struct process *processes, uint32_t what)
{
    static const char *const words[] = {"launch secrets", "versions", "settings", "models", "how many", "that place"};
    for (uint32_t i = 0; i < 3; i++) assert_true(processes[i].status != ST_OK && !processes[i].rendezvous);
    assert_int_equal(processes[0].status, ST_TIMEOUT);
    if (!strstr(processes[0].err.message, words[what]) || !strstr(processes[0].err.message, "2 of 3") ||
        !strstr(processes[0].err.message, "missing: 2"))
        fail_msg("process 0: %s", processes[0].err.message);
    if (what != TAKEN) {
        assert_int_equal(processes[2].status, ST_INVAL);
        if (!strstr(processes[2].err.message, words[what])) fail_msg("process 2: %s", processes[2].err.message);
        assert_int_equal(processes[1].status, ST_TIMEOUT);
        if (!strstr(processes[1].err.message, "did not come in time")) fail_msg("%s", processes[1].err.message);
    } else if (!strstr(processes[1].err.message, words[what]) && !strstr(processes[2].err.message, words[what])) {
        fail_msg("neither knows that its place is taken: %s", processes[1].err.message);
    }
}

static void test_rendezvous_refuses(void **state)
{
    (void)state;
    static struct process processes[DIFFERENCES][3]; /* all at once: each waits out its time */
    for (uint32_t what = 0; what < DIFFERENCES; what++) differ(processes[what], what);
    for (uint32_t what = 0; what < DIFFERENCES; what++)
        for (uint32_t i = 0; i < 3; i++) begin(&processes[what][i]);
    for (uint32_t what = 0; what < DIFFERENCES; what++)
        for (uint32_t i = 0; i < 3; i++) finish(&processes[what][i]);
    for (uint32_t what = 0; what < DIFFERENCES; what++) check_difference(processes[what], what);
}

static void test_rendezvous_too_few(void **state)
{
    (void)state;
    struct process processes[PROCESSES];
    make(processes, PROCESSES, 300);
    begin(&processes[0]);
    begin(&processes[2]);
    finish(&processes[0]);
    finish(&processes[2]);
    assert_int_equal(processes[0].status, ST_TIMEOUT);
    if (!strstr(processes[0].err.message, "missing: 1, ")) fail_msg("%s", processes[0].err.message);
    assert_int_equal(processes[2].status, ST_TIMEOUT);
    make(processes, PROCESSES, 300);
    begin(&processes[1]); /* nobody is there at all */
    finish(&processes[1]);
    assert_int_equal(processes[1].status, ST_TIMEOUT);
    if (!strstr(processes[1].err.message, "did not answer")) fail_msg("%s", processes[1].err.message);
}

static void test_rendezvous_settings(void **state)
{
    (void)state;
    struct process p;
    make(&p, 1, 100);
    begin(&p); /* one process has nobody to meet */
    finish(&p);
    assert_int_equal(p.status, ST_INVAL);
    p.config.processes = 2;
    p.config.secret_bytes = 15;
    begin(&p);
    finish(&p);
    assert_int_equal(p.status, ST_INVAL);
    assert_non_null(strstr(p.err.message, "at least 16"));
    p.config.secret_bytes = strlen(secret);
    p.config.version = "a version of more than thirty-one bytes";
    begin(&p);
    finish(&p);
    assert_int_equal(p.status, ST_INVAL);
    p.config.version = "1";
    int fd = port_socket(p.config.port);
    assert_int_equal(listen(fd, 1), 0);
    begin(&p);
    finish(&p);
    assert_int_equal(p.status, ST_IO);
    assert_non_null(strstr(p.err.message, "cannot listen"));
    close(fd);
}

/* ---- by hand ---- */

static int connect_to(uint16_t port)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    for (;;) {
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (connect(fd, (struct sockaddr *)&at, sizeof at) == 0) return fd;
        close(fd);
        usleep(2000);
    }
}

static void must_read(struct connection *c, struct frame *frame)
{
    enum status status;
    while ((status = connection_read(c, frame)) == ST_AGAIN) usleep(500);
    assert_int_equal(status, ST_OK);
}

static void hmac_join(const uint8_t *nonce_0, uint8_t *join)
{
    uint8_t text[8 + NONCE_BYTES + JOIN_PLAIN_BYTES] = "join-v1";
    memcpy(text + 8, nonce_0, NONCE_BYTES);
    memcpy(text + 8 + NONCE_BYTES, join, JOIN_PLAIN_BYTES);
    hmac_sha256(secret, strlen(secret), text, sizeof text, join + JOIN_PLAIN_BYTES);
}

/* Joins as a process would, byte by byte; written from rendezvous.h. */
static void join_by_hand(struct connection *c, const struct rendezvous_config *config)
{
    struct frame frame;
    uint8_t join[JOIN_PLAIN_BYTES + PROOF_BYTES] = {0}, nonce_0[NONCE_BYTES], *nonce = join + 72 + VERSION_BYTES;
    *c = (struct connection){.fd = connect_to(config->port)};
    must_read(c, &frame);
    assert_int_equal(frame.kind, FRAME_HELLO);
    memcpy(nonce_0, frame.payload, NONCE_BYTES);
    put_u32(join, config->process);
    put_u32(join + 4, config->processes);
    memcpy(join + 8, config->version, strlen(config->version));
    memcpy(join + 8 + VERSION_BYTES, config->config_hash, 32);
    memcpy(join + 40 + VERSION_BYTES, config->model_hash, 32);
    memset(nonce, 0x42, NONCE_BYTES);
    hmac_join(nonce_0, join);
    session_key(secret, strlen(secret), nonce_0, nonce, c->key);
    assert_int_equal(connection_write(c, FRAME_JOIN, join), ST_OK);
    must_read(c, &frame);
    assert_int_equal(frame.kind, FRAME_START);
}

enum harm { HARM_END, HARM_SILENCE, HARM_JUNK, HARM_FORGED, HARM_AGAIN, HARM_START_AGAIN, HARMS };

/* Two processes run; the third is by hand, and harms. All learn of it. */
static void test_rendezvous_losses(void **state)
{
    (void)state;
    static const char *const words[HARMS] = {"process 2 has ended",      "silent",
                                             "process 2 talks nonsense", "process 2 talks nonsense",
                                             "process 2 talks nonsense", "process 2 talks nonsense"};
    for (int harm = 0; harm < HARMS; harm++) {
        struct process processes[3];
        struct connection c;
        uint8_t junk[400];
        make(processes, 3, 60000);
        if (harm == HARM_SILENCE) processes[0].config.lost_ms = 700;
        begin(&processes[0]);
        begin(&processes[1]);
        join_by_hand(&c, &processes[2].config);
        finish(&processes[0]);
        finish(&processes[1]);
        assert_int_equal(processes[1].status, ST_OK);
        for (int i = 0; i < 5 && harm != HARM_SILENCE; i++)
            assert_int_equal(signal_write(&c, false, FRAME_BEAT, 0), ST_OK);
        memset(junk, 'x', sizeof junk);
        switch (harm) {
        case HARM_END: connection_close(&c); break;
        case HARM_JUNK: assert_true(send(c.fd, junk, sizeof junk, MSG_NOSIGNAL) > 0); break;
        case HARM_FORGED:
            c.key[3] ^= 1;
            assert_int_equal(signal_write(&c, false, FRAME_BEAT, 0), ST_OK);
            break;
        case HARM_AGAIN:
            c.number_out = 2;
            assert_int_equal(signal_write(&c, false, FRAME_BEAT, 0), ST_OK);
            break;
        case HARM_START_AGAIN: assert_int_equal(connection_write(&c, FRAME_START, junk), ST_OK); break;
        default: break;
        }
        await_state(&processes[0], RENDEZVOUS_LOST, words[harm]);
        await_state(&processes[1], RENDEZVOUS_LOST, harm == HARM_SILENCE ? "process" : "process 2 is lost");
        connection_close(&c);
        rendezvous_close(processes[0].rendezvous);
        rendezvous_close(processes[1].rendezvous);
    }
}

/* A goodbye is heard also where a beat fails first: who closes with something unread resets the connection. */
static void test_rendezvous_goodbye_before_a_reset(void **state)
{
    (void)state;
    int pair[2];
    struct process told = {.ends = 0};
    struct connection member = {.process = 1}, other = {.process = 1};
    struct rendezvous r = {.config = {.processes = 2, .beat_ms = 1, .on_end = on_end, .state = &told},
                           .members_count = 1,
                           .members = &member,
                           .mutex = PTHREAD_MUTEX_INITIALIZER};
    struct error why = {""};
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    member.fd = pair[0];
    other.fd = pair[1];
    beat_all(&r, NS_PER_S); /* never read */
    assert_int_equal(rendezvous_state(&r, &why), RENDEZVOUS_RUNS);
    assert_int_equal(signal_write(&other, false, FRAME_BYE, 1), ST_OK);
    connection_close(&other);
    beat_all(&r, 2 * NS_PER_S);
    assert_int_equal(rendezvous_state(&r, &why), RENDEZVOUS_OVER);
    assert_non_null(strstr(why.message, "process 1 has said goodbye"));
    assert_int_equal(atomic_load(&told.ends), 1);
    assert_int_equal(member.fd, -1);
}

/* ---- strangers ---- */

struct strangers {
    uint16_t port;
    atomic_bool over;
    _Atomic uint32_t came;
};

/* One after the other: junk, halves of frames, frames of others' conversations, or nothing at all, kept open. */
static void *strangers_main(void *state)
{
    struct strangers *s = state;
    uint64_t seed = 20261123;
    int kept[40];
    uint32_t kept_count = 0;
    while (!atomic_load(&s->over)) {
        struct sockaddr_in at = {
            .sin_family = AF_INET, .sin_port = htons(s->port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        struct connection c = {.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};
        uint8_t bytes[600];
        for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (uint8_t)random_next(&seed);
        if (connect(c.fd, (struct sockaddr *)&at, sizeof at)) {
            close(c.fd);
            usleep(1000);
            continue;
        }
        s->came++;
        uint64_t what = random_next(&seed) % 6;
        enum frame_kind kind = (enum frame_kind)(1 + random_next(&seed) % 7);
        if (what == 0) (void)!send(c.fd, bytes, 1 + random_next(&seed) % sizeof bytes, MSG_NOSIGNAL);
        if (what == 1 || what == 2) (void)!connection_write(&c, kind, bytes);
        if (what == 3) {
            memcpy(bytes, "MLRV\2\1", 6);
            (void)!send(c.fd, bytes, random_next(&seed) % 40, MSG_NOSIGNAL);
        }
        if (what == 4) {
            put_u32(bytes, 1); /* the place of process 1, with everything but the secret */
            put_u32(bytes + 4, 3);
            (void)!connection_write(&c, FRAME_JOIN, bytes);
        }
        if (what == 5 && kept_count < 40)
            kept[kept_count++] = c.fd;
        else
            close(c.fd);
    }
    for (uint32_t i = 0; i < kept_count; i++) close(kept[i]);
    return NULL;
}

static void test_rendezvous_strangers(void **state)
{
    (void)state;
    struct process processes[3];
    struct strangers strangers = {0};
    pthread_t thread;
    make(processes, 3, 120000);
    strangers.port = processes[0].config.port;
    begin(&processes[0]);
    assert_int_equal(pthread_create(&thread, NULL, strangers_main, &strangers), 0);
    while (atomic_load(&strangers.came) < 100) usleep(1000); /* they come first */
    begin(&processes[1]);
    begin(&processes[2]);
    for (uint32_t i = 0; i < 3; i++) finish(&processes[i]);
    atomic_store(&strangers.over, true);
    pthread_join(thread, NULL);
    print_message("%u strangers\n", atomic_load(&strangers.came));
    for (uint32_t i = 0; i < 3; i++) must_run(&processes[i]);
    for (uint32_t i = 0; i < 3; i++) rendezvous_close(processes[i].rendezvous);
}

/* What a process meets that goes to the wrong port; and what it shows there: never the secret. */
struct impostor {
    int listener;
    int how;
    uint8_t heard[2000];
    size_t heard_bytes;
};

static void *impostor_main(void *state)
{
    struct impostor *s = state;
    struct connection c = {.fd = accept(s->listener, NULL, NULL)};
    uint8_t bytes[FRAME_BYTES_MAX] = {0};
    if (s->how == 0) (void)!send(c.fd, "HTTP/1.1 400 Bad Request\r\n\r\n", 28, MSG_NOSIGNAL);
    if (s->how == 1) (void)!connection_write(&c, FRAME_START, bytes);
    if (s->how >= 2) (void)!connection_write(&c, FRAME_HELLO, bytes);
    if (s->how >= 2)
        s->heard_bytes = (size_t)recv(c.fd, s->heard, FRAME_HEADER_BYTES + JOIN_PLAIN_BYTES + PROOF_BYTES, MSG_WAITALL);
    if (s->how == 2) (void)!connection_write(&c, FRAME_START, bytes); /* without the secret */
    if (s->how == 3) (void)!connection_write(&c, FRAME_BEAT, bytes);
    if (s->how == 4) (void)!connection_write(&c, FRAME_REFUSED, (const uint8_t *)"\377\377\377\377");
    while (recv(c.fd, bytes, sizeof bytes, 0) > 0) continue;
    close(c.fd);
    return NULL;
}

static void test_rendezvous_impostors(void **state)
{
    (void)state;
    static const char *const words[] = {"is not process 0", "is not process 0", "has not proven the launch secret",
                                        "has not proven", "no reason that this version knows"};
    for (int how = 0; how < 5; how++) {
        struct process processes[2];
        struct impostor impostor = {.how = how};
        pthread_t thread;
        make(processes, 2, 60000);
        impostor.listener = port_socket(processes[0].config.port);
        assert_int_equal(listen(impostor.listener, 1), 0);
        assert_int_equal(pthread_create(&thread, NULL, impostor_main, &impostor), 0);
        begin(&processes[1]);
        finish(&processes[1]);
        pthread_join(thread, NULL);
        close(impostor.listener);
        assert_int_equal(processes[1].status, ST_INVAL);
        if (!strstr(processes[1].err.message, words[how])) fail_msg("%d: %s", how, processes[1].err.message);
        if (how < 2) continue;
        assert_true(impostor.heard_bytes > 100);
        assert_null(memmem(impostor.heard, impostor.heard_bytes, secret, 8));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rendezvous_meets),
        cmocka_unit_test(test_rendezvous_channels),
        cmocka_unit_test(test_rendezvous_keeps_channels_for_later),
        cmocka_unit_test(test_rendezvous_refuses),
        cmocka_unit_test(test_rendezvous_too_few),
        cmocka_unit_test(test_rendezvous_settings),
        cmocka_unit_test(test_rendezvous_losses),
        cmocka_unit_test(test_rendezvous_strangers),
        cmocka_unit_test(test_rendezvous_impostors),
        cmocka_unit_test(test_rendezvous_goodbye_before_a_reset),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
