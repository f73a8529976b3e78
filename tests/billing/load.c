/* A closed loop of clients with bad manners on one or several servers, and what each of them knows of its bill.
 *
 *   load --ports 8001,8002 --keys FILE --models A,B --requests 50000 --clients 64 --seed 1 --out FILE
 *        [--run NAME] [--first N] [--tokens-max 200] [--cut 80] [--slow 5] [--bad 20] [--retry 20] [--text-only]
 *
 * A request is of random kind (load_request.h); its fate and all that the client could count of its answer
 * (load_answer.h) is one line of the file, written before the connection's next step, so a server that is killed takes
 * nothing from it. Servers may die and come back at any time: a client whose server is away tries again.
 *
 * Key file: lines "account:key". A line of the out file has 27 columns between tabs:
 *   number request_id port account model kind stream prompts choices max_tokens in_total fault bad retry again outcome
 *   status charge_id ids_seen ids usage_seen prompt cached completion running error hashes
 * outcome: whole (usage or [DONE] came), cut (the client left), lost (the server broke off), failed (an error inside
 * the stream), refused (an error status), unsent, stuck (nothing came for STUCK_S). ids: per choice, between commas;
 * hashes: of each prompt's ids, as its record must have it.
 *
 * Every 200 ms a line "progress <requests ended>" goes to stdout, at the end a JSON object of counts. One epoll thread.
 */
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/base/random.h"
#include "tests/billing/load_answer.h"
#include "tests/billing/load_request.h"

#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { PORTS_MAX = 64, CLIENTS_MAX = 4096, RETRIES_MAX = 4096, KEYS_MAX = 20000 };
enum { TICK_MS = 5, CONNECT_AGAIN_MS = 15, PROGRESS_MS = 200, STUCK_S = 60, SLOW_BYTES = 400, PAUSE_503_MS = 30 };

enum outcome { WHOLE, CUT, LOST, FAILED, REFUSED, UNSENT, STUCK, OUTCOMES };
static const char *const outcome_names[OUTCOMES] = {"whole", "cut", "lost", "failed", "refused", "unsent", "stuck"};
static const char *const fault_names[] = {"none", "reset", "close", "half", "send", "slow"};

enum client_state { AWAY, CONNECTING, SENDING, READING };

struct client {
    int fd;
    uint32_t port_idx;
    enum client_state state;
    uint64_t again_ns, sent_ns, moved_ns; /* connect again at; request sent at; last byte either way */
    struct load_request request;
    bool busy, half; /* a request is under way; our side is closed */
    struct buf out;
    size_t out_done, out_stop; /* out_stop: where a LOAD_CUT_SEND ends */
    struct load_answer answer;
};

struct load {
    struct load_mix mix;
    uint16_t ports[PORTS_MAX];
    uint32_t ports_count, clients_count;
    uint64_t requests, started, ended, counts[OUTCOMES];
    struct client *clients;
    struct {
        struct load_request request;
        uint32_t port_idx;
    } retries[RETRIES_MAX]; /* to be sent once more, to the same server */
    uint32_t retries_count;
    FILE *out;
    int epoll;
};

static volatile sig_atomic_t stopping;

static void on_signal(int number)
{
    (void)number;
    stopping = 1;
}

static void watch(struct load *load, struct client *client, int how, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.u32 = (uint32_t)(client - load->clients)};
    (void)epoll_ctl(load->epoll, how, client->fd, &event);
}

/* ---- connections ---- */

static void hang_up(struct client *client, bool reset)
{
    struct linger now = {1, 0};
    if (client->fd < 0) return;
    if (reset) (void)setsockopt(client->fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    (void)close(client->fd);
    client->fd = -1;
    client->state = AWAY;
}

static void dial(struct load *load, struct client *client, uint64_t now_ns)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(load->ports[client->port_idx])};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int on = 1;
    client->again_ns = now_ns + CONNECT_AGAIN_MS * NS_PER_MS;
    client->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (client->fd < 0) return;
    (void)setsockopt(client->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(client->fd, (struct sockaddr *)&to, sizeof to) != 0 && errno != EINPROGRESS) {
        hang_up(client, false);
        return;
    }
    client->state = CONNECTING;
    client->moved_ns = now_ns;
    watch(load, client, EPOLL_CTL_ADD, EPOLLOUT);
}

/* ---- the end of a request ---- */

static void write_line(struct load *load, const struct client *client, enum outcome outcome,
                       const struct load_counts *counts)
{
    const struct load_request *r = &client->request;
    char ids[ANSWER_CHOICES_MAX * 8], hashes[LOAD_PROMPTS_MAX * 33 + 1] = "";
    int at = 0;
    for (uint32_t i = 0; i < r->prompts && counts->ids_seen; i++) {
        char *to = hashes + (i ? i * 33 : 0);
        if (i) to[-1] = ',';
        if (!load_answer_hash(counts, i * r->choices, r->choices, to)) hashes[0] = '\0';
    }
    for (uint32_t i = 0; i < r->prompts * r->choices && i < ANSWER_CHOICES_MAX; i++)
        at += snprintf(ids + at, sizeof ids - (size_t)at, "%s%" PRIu32, i ? "," : "", counts->ids[i]);
    fprintf(load->out,
            "%" PRIu64 "\t%s\t%u\t%s\t%s\t%s\t%d\t%" PRIu32 "\t%" PRIu32 "\t%" PRIu32 "\t%" PRIu32
            "\t%s\t%d\t%s\t%d\t%s\t%u\t%s\t%d\t%s\t%d\t%" PRIu64 "\t%" PRIu64 "\t%" PRIu64 "\t%" PRIu64 "\t%s\t%s\n",
            r->number, r->id, load->ports[client->port_idx], load->mix.accounts[r->key], load->mix.models[r->model],
            r->chat ? "chat" : "text", r->stream, r->prompts, r->choices, r->max_tokens, r->in_total,
            fault_names[r->fault], r->bad, r->retry, r->repeated, outcome_names[outcome], client->answer.status,
            counts->id, counts->ids_seen, ids, counts->usage_seen, counts->prompt_tokens, counts->cached_tokens,
            counts->completion_tokens, counts->running_tokens, counts->error, hashes);
}

static void push_retry(struct load *load, const struct client *client)
{
    if (load->retries_count == RETRIES_MAX) return;
    load->retries[load->retries_count].request = client->request;
    load->retries[load->retries_count++].port_idx = client->port_idx;
}

/* Odd numbers are sent again while the first is under way, even ones after its end. */
static bool sent_twice_at_once(const struct load_request *request)
{
    return request->number % 2;
}

static void end_request(struct load *load, struct client *client, enum outcome outcome)
{
    static struct load_counts counts;
    load_answer_count(&client->answer, &counts);
    if (outcome == WHOLE && client->answer.status != 200) outcome = REFUSED;
    if (outcome == WHOLE && counts.failed) outcome = FAILED;
    if (outcome == WHOLE && !counts.done) outcome = LOST;
    if (counts.done && outcome != WHOLE && !counts.failed) outcome = WHOLE; /* cut behind its end */
    write_line(load, client, outcome, &counts);
    load->counts[outcome]++;
    load->ended++;
    client->busy = false;
    if (client->request.retry[0] && !client->request.repeated && !sent_twice_at_once(&client->request))
        push_retry(load, client);
    bool keep = client->answer.complete && !client->answer.closes && client->request.fault == LOAD_NO_FAULT;
    if (keep && client->answer.status != 503) {
        client->state = READING;
        return;
    }
    hang_up(client, client->request.fault == LOAD_CUT_RESET);
    if (client->answer.status == 503) client->again_ns = clock_now_ns(clock_system()) + PAUSE_503_MS * NS_PER_MS;
}

/* ---- the next request ---- */

static bool take_request(struct load *load, struct client *client)
{
    for (uint32_t i = 0; i < load->retries_count; i++) {
        if (load->retries[i].port_idx != client->port_idx) continue;
        load_request_again(&load->mix, load->started++, &load->retries[i].request, &client->request);
        load->retries[i] = load->retries[--load->retries_count];
        return true;
    }
    if (stopping || load->started >= load->requests) return false;
    load_request_make(&load->mix, load->started++, &client->request);
    return true;
}

static void send_more(struct load *load, struct client *client, uint64_t now_ns);

static void begin_request(struct load *load, struct client *client, uint64_t now_ns)
{
    if (!take_request(load, client)) {
        hang_up(client, false);
        client->again_ns = UINT64_MAX;
        return;
    }
    struct load_request *request = &client->request;
    buf_clear(&client->out);
    load_request_write(&load->mix, request, &client->out);
    load_answer_begin(&client->answer);
    client->busy = true;
    client->half = false;
    client->out_done = 0;
    client->out_stop = client->out.length;
    if (request->fault == LOAD_CUT_SEND) client->out_stop = request->shape_seed % client->out.length;
    client->state = SENDING;
    client->moved_ns = client->sent_ns = now_ns;
    if (request->fault == LOAD_SLOW) {
        int small = 4096;
        (void)setsockopt(client->fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    }
    send_more(load, client, now_ns);
}

static void cut(struct load *load, struct client *client)
{
    if (client->request.fault == LOAD_CUT_HALF) {
        if (!client->half) (void)shutdown(client->fd, SHUT_WR);
        client->half = true;
    } else {
        end_request(load, client, CUT);
    }
}

static void send_more(struct load *load, struct client *client, uint64_t now_ns)
{
    while (client->out_done < client->out_stop) {
        ssize_t sent =
            send(client->fd, client->out.data + client->out_done, client->out_stop - client->out_done, MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN) return;
        if (sent < 0) {
            end_request(load, client, LOST);
            return;
        }
        client->out_done += (size_t)sent;
        client->moved_ns = now_ns;
    }
    if (client->request.fault == LOAD_CUT_SEND) {
        end_request(load, client, UNSENT);
        return;
    }
    client->state = READING;
    client->sent_ns = now_ns;
    watch(load, client, EPOLL_CTL_MOD, client->request.fault == LOAD_SLOW ? 0 : EPOLLIN);
    if (client->request.retry[0] && !client->request.repeated && sent_twice_at_once(&client->request))
        push_retry(load, client);
    if (client->request.fault >= LOAD_CUT_RESET && client->request.fault <= LOAD_CUT_HALF &&
        client->request.cut_bytes == 0 && client->request.cut_ms == 0)
        cut(load, client);
}

/* ---- answers ---- */

static void read_more(struct load *load, struct client *client, uint64_t now_ns)
{
    static char bytes[65536];
    size_t room = client->request.fault == LOAD_SLOW ? SLOW_BYTES : sizeof bytes;
    ssize_t got = recv(client->fd, bytes, room, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (!client->busy) { /* closed while idle: the server is gone */
        if (got <= 0) hang_up(client, false);
        return;
    }
    if (got <= 0) {
        end_request(load, client, client->half ? CUT : LOST);
        return;
    }
    client->moved_ns = now_ns;
    if (!load_answer_feed(&client->answer, bytes, (size_t)got)) {
        end_request(load, client, LOST);
        return;
    }
    const struct load_request *request = &client->request;
    if (client->answer.complete) {
        end_request(load, client, WHOLE);
        if (client->fd >= 0) begin_request(load, client, now_ns);
    } else if (request->fault >= LOAD_CUT_RESET && request->fault <= LOAD_CUT_HALF && request->cut_bytes &&
               client->answer.raw.length >= request->cut_bytes) {
        cut(load, client);
    }
}

static void handle(struct load *load, struct client *client, uint32_t events, uint64_t now_ns)
{
    if (client->fd < 0) return;
    if (client->state == CONNECTING) {
        int error = 0;
        socklen_t length = sizeof error;
        (void)getsockopt(client->fd, SOL_SOCKET, SO_ERROR, &error, &length);
        if (error || events & (EPOLLERR | EPOLLHUP)) {
            hang_up(client, false);
            return;
        }
        begin_request(load, client, now_ns);
    } else if (client->state == SENDING && !(events & (EPOLLERR | EPOLLHUP))) {
        send_more(load, client, now_ns);
    } else {
        read_more(load, client, now_ns);
    }
}

/* ---- time ---- */

static void tick(struct load *load, uint64_t now_ns)
{
    for (uint32_t i = 0; i < load->clients_count; i++) {
        struct client *client = &load->clients[i];
        if (client->state == AWAY) {
            bool work = load->retries_count || (!stopping && load->started < load->requests);
            if (work && (client->again_ns <= now_ns || client->again_ns == UINT64_MAX)) dial(load, client, now_ns);
            continue;
        }
        if (!client->busy || client->state != READING) {
            if (client->busy && now_ns - client->moved_ns > STUCK_S * NS_PER_S) end_request(load, client, STUCK);
            continue;
        }
        const struct load_request *request = &client->request;
        if (now_ns - client->moved_ns > STUCK_S * NS_PER_S)
            end_request(load, client, STUCK);
        else if (request->fault == LOAD_SLOW)
            read_more(load, client, now_ns);
        else if (request->fault >= LOAD_CUT_RESET && request->fault <= LOAD_CUT_HALF && request->cut_ms &&
                 now_ns - client->sent_ns > request->cut_ms * NS_PER_MS)
            cut(load, client);
    }
}

static bool work_left(const struct load *load)
{
    if (load->retries_count || (!stopping && load->started < load->requests)) return true;
    for (uint32_t i = 0; i < load->clients_count; i++)
        if (load->clients[i].busy) return true;
    return false;
}

static void run(struct load *load)
{
    uint64_t began_ns = clock_now_ns(clock_system()), told_ns = began_ns, ticked_ns = 0;
    while (work_left(load)) {
        struct epoll_event events[256];
        int count = epoll_wait(load->epoll, events, 256, TICK_MS);
        uint64_t now_ns = clock_now_ns(clock_system());
        for (int i = 0; i < count; i++) handle(load, &load->clients[events[i].data.u32], events[i].events, now_ns);
        if (now_ns - ticked_ns >= TICK_MS * NS_PER_MS) tick(load, ticked_ns = now_ns);
        (void)fflush(load->out);
        if (now_ns - told_ns < PROGRESS_MS * NS_PER_MS) continue;
        told_ns = now_ns;
        printf("progress %" PRIu64 "\n", load->ended);
        (void)fflush(stdout);
    }
    printf("{\"requests\":%" PRIu64 ",\"seconds\":%.3f", load->ended,
           (double)(clock_now_ns(clock_system()) - began_ns) / 1e9);
    for (int i = 0; i < OUTCOMES; i++) printf(",\"%s\":%" PRIu64, outcome_names[i], load->counts[i]);
    printf("}\n");
}

/* ---- settings ---- */

static bool read_keys(struct load_mix *mix, const char *path)
{
    char line[512];
    FILE *file = fopen(path, "r");
    mix->keys = mem_alloc(KEYS_MAX, sizeof *mix->keys);
    mix->accounts = mem_alloc(KEYS_MAX, sizeof *mix->accounts);
    if (!file || !mix->keys || !mix->accounts) return false;
    while (mix->keys_count < KEYS_MAX && fgets(line, sizeof line, file)) {
        char *colon = strchr(line, ':'), *end = strchr(line, '\n');
        if (!colon || !end) continue;
        *colon = *end = '\0';
        char *account = mem_alloc((size_t)(end - line) + 1, 1);
        if (!account) break;
        memcpy(account, line, (size_t)(end - line) + 1);
        mix->accounts[mix->keys_count] = account;
        mix->keys[mix->keys_count++] = account + (colon + 1 - line);
    }
    (void)fclose(file);
    return mix->keys_count > 0;
}

static void read_models(struct load_mix *mix, char *text)
{
    for (char *name = text; name && mix->models_count < LOAD_MODELS_MAX;) {
        char *comma = strchr(name, ',');
        if (comma) *comma++ = '\0';
        mix->models[mix->models_count++] = name;
        name = comma;
    }
}

static bool read_option(struct load *load, const char *name, char *value)
{
    struct load_mix *mix = &load->mix;
    const struct {
        const char *name;
        uint32_t *out;
    } numbers[] = {{"--clients", &load->clients_count}, {"--tokens-max", &mix->tokens_max},
                   {"--cut", &mix->cut_permille},       {"--slow", &mix->slow_permille},
                   {"--bad", &mix->bad_permille},       {"--retry", &mix->retry_permille}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        if (strcmp(name, numbers[i].name) != 0) continue;
        *numbers[i].out = (uint32_t)strtoul(value, NULL, 10);
        return true;
    }
    if (strcmp(name, "--ports") == 0) {
        for (char *at = value; *at && load->ports_count < PORTS_MAX; at += *at == ',')
            load->ports[load->ports_count++] = (uint16_t)strtoul(at, &at, 10);
    } else if (strcmp(name, "--keys") == 0) {
        return read_keys(mix, value);
    } else if (strcmp(name, "--models") == 0) {
        read_models(mix, value);
    } else if (strcmp(name, "--requests") == 0) {
        load->requests = strtoull(value, NULL, 10);
    } else if (strcmp(name, "--first") == 0) {
        mix->first_number = strtoull(value, NULL, 10);
    } else if (strcmp(name, "--seed") == 0) {
        mix->seed = strtoull(value, NULL, 10);
    } else if (strcmp(name, "--run") == 0) {
        mix->run = value;
    } else if (strcmp(name, "--out") == 0) {
        load->out = fopen(value, "a");
        return load->out != NULL;
    } else {
        return false;
    }
    return true;
}

int main(int argc, char **argv)
{
    static struct load load = {.requests = 1000, .clients_count = 32};
    load.mix =
        (struct load_mix){.run = "load", .tokens_max = 200, .cut_permille = 80, .slow_permille = 5, .bad_permille = 20};
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--text-only") == 0) {
            load.mix.text_only = true;
        } else if (i + 1 >= argc || !read_option(&load, argv[i], argv[i + 1])) {
            fprintf(stderr, "load: %s?\n", argv[i]);
            return 2;
        } else {
            i++;
        }
    }
    load.epoll = epoll_create1(EPOLL_CLOEXEC);
    load.clients = mem_alloc(load.clients_count, sizeof *load.clients);
    if (!load.ports_count || !load.mix.keys_count || !load.mix.models_count || !load.out || load.epoll < 0 ||
        load.clients_count > CLIENTS_MAX || !load.clients || !load.mix.tokens_max) {
        fprintf(stderr, "load: --ports, --keys, --models and --out are needed\n");
        return 2;
    }
    for (uint32_t i = 0; i < load.clients_count; i++)
        load.clients[i] = (struct client){.fd = -1, .port_idx = i % load.ports_count};
    struct sigaction action = {.sa_handler = on_signal};
    (void)sigaction(SIGTERM, &action, NULL);
    run(&load);
    return fclose(load.out) == 0 ? 0 : 1;
}
