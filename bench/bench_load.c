/* A closed-loop load on any server that speaks OpenAI's /v1/completions: N clients, each sending its next request when
 * the last answer has ended. Prompts are random token ids, different in every request, so that no prefix cache helps
 * (ids 100 .. id-high - 1, 40,000 unless told); answers are greedy, streamed, of a fixed length (ignore_eos). One epoll
 * thread; its own CPU time is printed, because it shares the machine with the server.
 *
 *   bench_load --port 8000 --clients 32 --requests 3 --prompt-tokens 128 --output-tokens 64 [--json] [--metrics]
 *
 * Tokens are counted from the `usage` that the server sends; times are the client's: TTFT from the send to the first
 * event, gaps between events with data (a server that joins tokens in one event shows larger gaps, so tokens per event
 * is printed too).
 *
 * --metrics reads Millrace's /metrics before and after: tokens and time of a step; how the engine's thread divided its
 * time into device, own work and sleep; CPU time of the io thread. "server" is what is neither device nor sleep: own
 * work of the engine and CPU time of the io thread, as a share of the time in which there was work. It is an upper
 * bound: where cores are free, the io thread's part costs nothing.
 *
 * With --long-prompts K one more client sends K prompts of --long-tokens, each --long-pause-ms after the answer (8
 * tokens) to the one before; it starts when all others stream, and the run ends with its last. Gaps are then those of
 * the streaming clients that overlap a time from the send of a long prompt to its first token: what a prefill costs the
 * others. Give the streaming clients outputs that last. With short ones (--long-tokens 16) they are probes: how long
 * one request waits for its first token while others stream. --key K is sent as the API key. */
#include "runtime/base/buf.h"
#include "runtime/base/clock.h"
#include "runtime/base/random.h"

#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { CLIENTS_MAX = 4096, TAIL_BYTES = 1024, LONG_OUTPUT_TOKENS = 8 };

struct options {
    const char *host, *model, *key;
    int port, clients, requests, prompt_tokens, output_tokens;
    int long_prompts, long_tokens, long_pause_ms;
    unsigned id_low, id_high;
    uint64_t seed;
    bool json, metrics;
};

enum { SERIES_COUNT = 9 };
static const char *const series_names[SERIES_COUNT] = {
    "mr_engine_steps_total",        "mr_engine_device_seconds_total",
    "mr_engine_own_seconds_total",  "mr_engine_idle_seconds_total",
    "mr_io_cpu_seconds_total",      "process_cpu_seconds_total",
    "vllm:generation_tokens_total", "vllm:prompt_tokens_by_source_total", /* the first of them: computed */
    "mr_io_switches_total"                                                /* the first of them: asleep */
};
enum { STEPS, DEVICE_S, OWN_S, IDLE_S, IO_CPU_S, PROCESS_CPU_S, GENERATED, COMPUTED, SWITCHES };

struct client {
    int fd, sent_requests;
    struct buf out; /* request being sent */
    size_t out_done;
    uint64_t start_ns, last_ns;
    bool first_seen, waiting;
    char tail[TAIL_BYTES]; /* the end of what was received: the usage event is found in it */
    size_t tail_length;
    char carry[8]; /* an event marker cut by a read */
    size_t carry_length;
};

struct series {
    double *values;
    size_t count, capacity;
};

struct run {
    struct options options;
    struct client *clients;
    int epoll, active, streaming;
    uint64_t random;
    uint64_t prompt_total, output_total, events_total, failures;
    struct series ttft_ms, gap_ms, e2e_ms, long_ttft_ms;
    struct client *prefiller;                    /* the client of the long prompts, or NULL */
    uint64_t prefill_next_ns;                    /* 0: not yet known */
    uint64_t prefill_since_ns, prefill_until_ns; /* the last prefill; until 0: it runs */
    double scraped[SERIES_COUNT];                /* what /metrics grew by */
};

static void series_add(struct series *series, double value)
{
    if (series->count == series->capacity) {
        series->capacity = series->capacity ? series->capacity * 2 : 4096;
        series->values = realloc(series->values, series->capacity * sizeof *series->values);
        if (!series->values) abort();
    }
    series->values[series->count++] = value;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double percentile(struct series *series, double p)
{
    if (!series->count) return 0;
    qsort(series->values, series->count, sizeof *series->values, by_value);
    return series->values[(size_t)(p * (double)(series->count - 1))];
}

static void make_request(struct run *run, struct client *client)
{
    const struct options *o = &run->options;
    bool prefiller = client == run->prefiller;
    int prompt_tokens = prefiller ? o->long_tokens : o->prompt_tokens;
    struct buf body;
    buf_init(&body, 0);
    buf_append_format(&body, "{\"model\":\"%s\",\"prompt\":[", o->model);
    for (int i = 0; i < prompt_tokens; i++)
        buf_append_format(&body, "%s%u", i ? "," : "",
                          (unsigned)(o->id_low + random_next(&run->random) % (o->id_high - o->id_low)));
    buf_append_format(&body,
                      "],\"max_tokens\":%d,\"temperature\":0,\"ignore_eos\":true,\"stream\":true,"
                      "\"cache_prompt\":false,\"stream_options\":{\"include_usage\":true}}",
                      prefiller ? LONG_OUTPUT_TOKENS : o->output_tokens);
    buf_clear(&client->out);
    buf_append_format(&client->out,
                      "POST /v1/completions HTTP/1.1\r\nHost: %s:%d\r\nContent-Type: application/json\r\n"
                      "%s%s%sContent-Length: %zu\r\n\r\n",
                      o->host, o->port, o->key ? "Authorization: Bearer " : "", o->key ? o->key : "",
                      o->key ? "\r\n" : "", body.length);
    buf_append(&client->out, body.data, body.length);
    buf_free(&body);
    client->out_done = client->tail_length = client->carry_length = 0;
    client->first_seen = false;
    client->waiting = true;
    client->sent_requests++;
    client->start_ns = clock_now_ns(clock_system());
    if (prefiller) {
        run->prefill_since_ns = client->start_ns;
        run->prefill_until_ns = 0;
    }
}

static void send_more(struct run *run, struct client *client)
{
    while (client->out_done < client->out.length) {
        ssize_t n =
            send(client->fd, client->out.data + client->out_done, client->out.length - client->out_done, MSG_NOSIGNAL);
        if (n < 0) break;
        client->out_done += (size_t)n;
    }
    struct epoll_event event = {.events = EPOLLIN | (client->out_done < client->out.length ? EPOLLOUT : 0u),
                                .data.ptr = client};
    epoll_ctl(run->epoll, EPOLL_CTL_MOD, client->fd, &event);
}

static long usage_field(const char *tail, const char *name)
{
    char key[64];
    snprintf(key, sizeof key, "\"%s\":", name);
    const char *last = NULL;
    for (const char *at = tail; (at = strstr(at, key)); at++) last = at;
    return last ? strtol(last + strlen(key), NULL, 10) : -1;
}

/* A connection for one request: some servers close after each stream, so all are treated alike. */
static int connect_client(struct run *run, struct client *client)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)run->options.port)};
    inet_pton(AF_INET, run->options.host, &address.sin_addr);
    client->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (client->fd < 0 || connect(client->fd, (struct sockaddr *)&address, sizeof address) != 0) return -1;
    int on = 1;
    setsockopt(client->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = client};
    epoll_ctl(run->epoll, EPOLL_CTL_ADD, client->fd, &event);
    make_request(run, client);
    send_more(run, client);
    return 0;
}

static void request_done(struct run *run, struct client *client)
{
    long prompt = usage_field(client->tail, "prompt_tokens"), output = usage_field(client->tail, "completion_tokens");
    const struct options *o = &run->options;
    bool prefiller = client == run->prefiller;
    if (output != (prefiller ? LONG_OUTPUT_TOKENS : o->output_tokens) ||
        prompt < (prefiller ? o->long_tokens : o->prompt_tokens))
        run->failures++;
    if (prompt > 0) run->prompt_total += (uint64_t)prompt;
    if (output > 0) run->output_total += (uint64_t)output;
    client->waiting = false;
    close(client->fd);
    if (prefiller) {
        run->prefill_next_ns = client->last_ns + (uint64_t)o->long_pause_ms * NS_PER_MS;
        return;
    }
    series_add(&run->e2e_ms, (double)(client->last_ns - client->start_ns) / 1e6);
    if (!run->prefiller && client->sent_requests == o->requests) {
        run->active--;
    } else if (connect_client(run, client) != 0) {
        run->failures++;
        run->active--;
    }
}

/* The times of an event with data. */
static void note_event(struct run *run, struct client *client, uint64_t now_ns)
{
    bool first = !client->first_seen;
    double wait_ms = (double)(now_ns - (first ? client->start_ns : client->last_ns)) / 1e6;
    if (client == run->prefiller) {
        if (first) {
            series_add(&run->long_ttft_ms, wait_ms);
            run->prefill_until_ns = now_ns;
        }
    } else if (first) {
        series_add(&run->ttft_ms, wait_ms);
        if (client->sent_requests == 1) run->streaming++;
    } else if (!run->prefiller || (run->prefill_since_ns && now_ns >= run->prefill_since_ns &&
                                   (!run->prefill_until_ns || client->last_ns <= run->prefill_until_ns))) {
        series_add(&run->gap_ms, wait_ms);
    }
    client->first_seen = true;
    client->last_ns = now_ns;
}

/* Counts "data: {" events in a piece of the stream and keeps its end. */
static void take(struct run *run, struct client *client, const char *data, size_t length)
{
    uint64_t now_ns = clock_now_ns(clock_system());
    char joined[16 + 65536];
    size_t carried = client->carry_length;
    memcpy(joined, client->carry, carried);
    memcpy(joined + carried, data, length);
    size_t total = carried + length;
    bool any = false;
    for (size_t i = 0; i + 7 <= total; i++)
        if (!memcmp(joined + i, "data: {", 7)) {
            run->events_total++;
            any = true;
        }
    client->carry_length = total < 6 ? total : 6;
    memcpy(client->carry, joined + total - client->carry_length, client->carry_length);
    size_t keep = client->tail_length + length;
    if (keep >= TAIL_BYTES) {
        size_t drop = keep - (TAIL_BYTES - 1);
        if (drop >= client->tail_length) {
            data += drop - client->tail_length;
            length -= drop - client->tail_length;
            client->tail_length = 0;
        } else {
            memmove(client->tail, client->tail + drop, client->tail_length - drop);
            client->tail_length -= drop;
        }
    }
    memcpy(client->tail + client->tail_length, data, length);
    client->tail_length += length;
    client->tail[client->tail_length] = 0;
    if (any) note_event(run, client, now_ns);
}

static void receive(struct run *run, struct client *client)
{
    char piece[65536];
    ssize_t n = recv(client->fd, piece, sizeof piece, 0);
    if (n <= 0) {
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
        fprintf(stderr, "bench_load: connection ended: %.*s\n", (int)client->tail_length, client->tail);
        run->failures++;
        close(client->fd);
        run->active--;
        return;
    }
    take(run, client, piece, (size_t)n);
    /* the end of a chunked body, after the stream's own end */
    if (client->waiting && client->tail_length >= 5 &&
        !memcmp(client->tail + client->tail_length - 5, "0\r\n\r\n", 5) && strstr(client->tail, "[DONE]"))
        request_done(run, client);
}

/* ---- /metrics ---- */

/* The first sample of a name: 0 when it is not there. */
static double sample_of(const char *page, const char *name)
{
    size_t length = strlen(name);
    for (const char *at = page; (at = strstr(at, name)); at += length)
        if (at > page && at[-1] == '\n' && at[length] == '{') {
            const char *value = strstr(at, "} ");
            return value ? strtod(value + 2, NULL) : 0;
        }
    return 0;
}

/* Adds sign * each series to run->scraped. False: no such page. */
static bool scrape(struct run *run, double sign)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)run->options.port)};
    inet_pton(AF_INET, run->options.host, &address.sin_addr);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    static const char request[] = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) != 0 ||
        send(fd, request, sizeof request - 1, MSG_NOSIGNAL) < 0)
        return false;
    struct buf page;
    char piece[65536];
    buf_init(&page, 0);
    for (ssize_t n; (n = recv(fd, piece, sizeof piece, 0)) > 0;) buf_append(&page, piece, (size_t)n);
    close(fd);
    buf_append_char(&page, '\0');
    bool found = buf_ok(&page) && strstr(page.data, series_names[IO_CPU_S]);
    for (int i = 0; found && i < SERIES_COUNT; i++) run->scraped[i] += sign * sample_of(page.data, series_names[i]);
    buf_free(&page);
    return found;
}

static void report_metrics(const struct run *run, double seconds, double client_cpu_s)
{
    const double *m = run->scraped;
    double steps = m[STEPS] > 0 ? m[STEPS] : 1, tokens = m[GENERATED] > 0 ? m[GENERATED] : 1;
    double engine = m[DEVICE_S] + m[OWN_S] + m[IDLE_S], busy = m[DEVICE_S] + m[OWN_S];
    double server = (m[OWN_S] + m[IO_CPU_S]) / busy;
    printf(run->options.json
               ? "{\"clients\":%d,\"steps\":%.0f,\"tokens_per_step\":%.2f,\"step_ms\":%.3f,\"device_share\":%.5f,"
                 "\"own_share\":%.5f,\"idle_share\":%.5f,\"own_us_per_step\":%.2f,\"io_cpu_us_per_token\":%.3f,"
                 "\"io_cpu_share\":%.5f,\"io_sleeps_per_step\":%.2f,\"client_cpu_us_per_token\":%.3f,"
                 "\"process_cores\":%.4f,\"server_share\":%.5f}\n"
               : "  engine with %d clients: %.0f steps of %.1f tokens and %.2f ms; device %.4f, own %.4f, asleep %.4f "
                 "of its "
                 "time; own %.1f us a step\n  io thread %.2f us of CPU a token (%.4f of a core), asleep %.2f times a "
                 "step; "
                 "client %.2f us a token; process %.3f cores\n  server's share of a step %.4f\n",
           run->options.clients, m[STEPS], (m[COMPUTED] + m[GENERATED]) / steps, busy / steps * 1e3,
           m[DEVICE_S] / engine, m[OWN_S] / engine, m[IDLE_S] / engine, m[OWN_S] / steps * 1e6,
           m[IO_CPU_S] / tokens * 1e6, m[IO_CPU_S] / seconds, m[SWITCHES] / steps, client_cpu_s / tokens * 1e6,
           m[PROCESS_CPU_S] / seconds, server);
}

static void report_prefills(struct run *run, double seconds)
{
    const struct options *o = &run->options;
    struct series *gaps = &run->gap_ms, *ttft = &run->long_ttft_ms;
    printf(o->json ? "{\"clients\":%d,\"prompt_tokens\":%d,\"long_prompts\":%d,\"long_tokens\":%d,\"failures\":%" PRIu64
                     ",\"seconds\":%.3f,\"gaps\":%zu,\"gap_ms_p50\":%.2f,\"gap_ms_p99\":%.2f,\"gap_ms_max\":%.2f,"
                     "\"long_ttft_ms_p50\":%.2f,\"long_ttft_ms_max\":%.2f,\"long_ttft_ms\":["
                   : "%d clients stream (%d in) beside %d prompts of %d  failures %" PRIu64
                     "\n  %.3f s   %zu gaps beside a prefill: p50 %.2f ms, p99 %.2f ms, longest %.2f ms\n"
                     "  TTFT of the long prompts p50 %.1f ms, longest %.1f ms\n",
           o->clients, o->prompt_tokens, o->long_prompts, o->long_tokens, run->failures, seconds, gaps->count,
           percentile(gaps, 0.5), percentile(gaps, 0.99), percentile(gaps, 1), percentile(ttft, 0.5),
           percentile(ttft, 1));
    if (!o->json) return;
    for (size_t i = 0; i < ttft->count; i++) printf("%s%.2f", i ? "," : "", ttft->values[i]);
    printf("]}\n");
}

static void report(struct run *run, double seconds, double cpu_seconds)
{
    const struct options *o = &run->options;
    double output_rate = (double)run->output_total / seconds, prompt_rate = (double)run->prompt_total / seconds;
    double per_event = run->events_total ? (double)run->output_total / (double)run->events_total : 0;
    printf(
        o->json
            ? "{\"clients\":%d,\"requests\":%d,\"prompt_tokens\":%d,\"output_tokens\":%d,\"failures\":%" PRIu64
              ",\"seconds\":%.3f,\"output_tok_s\":%.2f,\"prompt_tok_s\":%.2f,\"ttft_ms_p50\":%.2f,\"ttft_ms_p99\":%.2f,"
              "\"gap_ms_p50\":%.2f,\"gap_ms_p99\":%.2f,\"e2e_ms_p50\":%.2f,\"tokens_per_event\":%.3f,\"client_cpu_"
              "share\":%.4f}\n"
            : "clients %d  requests %d  in %d  out %d  failures %" PRIu64
              "\n  %.3f s   output %.1f tok/s   prompt %.1f tok/s\n  TTFT p50 %.1f ms, p99 %.1f ms   gap p50 %.2f ms, "
              "p99 %.2f ms   request p50 %.1f ms\n  %.2f tokens an event   client CPU %.4f of a core\n",
        o->clients, o->clients * o->requests, o->prompt_tokens, o->output_tokens, run->failures, seconds, output_rate,
        prompt_rate, percentile(&run->ttft_ms, 0.5), percentile(&run->ttft_ms, 0.99), percentile(&run->gap_ms, 0.5),
        percentile(&run->gap_ms, 0.99), percentile(&run->e2e_ms, 0.5), per_event, cpu_seconds / seconds);
}

static bool read_options(struct options *o, int argc, char **argv)
{
    *o = (struct options){.host = "127.0.0.1",
                          .model = "SmolLM2-135M-Instruct",
                          .port = 8000,
                          .clients = 8,
                          .requests = 3,
                          .prompt_tokens = 128,
                          .output_tokens = 64,
                          .long_tokens = 2000,
                          .long_pause_ms = 500,
                          .id_low = 100,
                          .id_high = 40000,
                          .seed = 1};
    const struct {
        const char *name;
        int *value;
    } numbers[] = {{"--port", &o->port},
                   {"--clients", &o->clients},
                   {"--requests", &o->requests},
                   {"--prompt-tokens", &o->prompt_tokens},
                   {"--output-tokens", &o->output_tokens},
                   {"--long-prompts", &o->long_prompts},
                   {"--long-tokens", &o->long_tokens},
                   {"--long-pause-ms", &o->long_pause_ms}};
    for (int i = 1; i < argc; i++) {
        const char *name = argv[i];
        if (!strcmp(name, "--json")) {
            o->json = true;
            continue;
        }
        if (!strcmp(name, "--metrics")) {
            o->metrics = true;
            continue;
        }
        if (++i >= argc) return false;
        bool known = true;
        if (!strcmp(name, "--host"))
            o->host = argv[i];
        else if (!strcmp(name, "--model"))
            o->model = argv[i];
        else if (!strcmp(name, "--key"))
            o->key = argv[i];
        else if (!strcmp(name, "--id-high"))
            o->id_high = (unsigned)strtoul(argv[i], NULL, 10);
        else if (!strcmp(name, "--seed"))
            o->seed = strtoull(argv[i], NULL, 10);
        else
            known = false;
        for (size_t k = 0; !known && k < sizeof numbers / sizeof numbers[0]; k++) {
            known = !strcmp(name, numbers[k].name);
            if (known) *numbers[k].value = (int)strtol(argv[i], NULL, 10);
        }
        if (!known) return false;
    }
    return o->clients > 0 && o->clients <= CLIENTS_MAX && o->requests > 0 && o->prompt_tokens > 0 &&
           o->output_tokens > 0 && o->long_prompts >= 0 && o->long_tokens > 0 && o->long_pause_ms >= 0 &&
           o->id_high > o->id_low;
}

/* Sends the next long prompt when its time has come. Milliseconds until there is something to do, -1 when all have been
 * answered. */
static int prefiller_turn(struct run *run)
{
    enum { IDLE_MS = 120000 };
    struct client *client = run->prefiller;
    if (!client || client->waiting) return IDLE_MS;
    if (client->sent_requests == run->options.long_prompts) return -1;
    if (!run->prefill_next_ns && run->streaming < run->options.clients) return IDLE_MS;
    uint64_t now_ns = clock_now_ns(clock_system());
    if (!run->prefill_next_ns) run->prefill_next_ns = now_ns + (uint64_t)run->options.long_pause_ms * NS_PER_MS;
    if (now_ns < run->prefill_next_ns) return (int)((run->prefill_next_ns - now_ns) / NS_PER_MS) + 1;
    if (connect_client(run, client) != 0) {
        run->failures++;
        return -1;
    }
    return IDLE_MS;
}

int main(int argc, char **argv)
{
    static struct run run;
    if (!read_options(&run.options, argc, argv)) {
        fprintf(stderr,
                "usage: bench_load [--host H] [--port P] [--model NAME] [--key K] [--clients N] [--requests EACH]\n"
                "                  [--prompt-tokens N] [--output-tokens N] [--seed N] [--id-high N] [--json]\n"
                "                  [--metrics] [--long-prompts K] [--long-tokens N] [--long-pause-ms MS]\n");
        return 2;
    }
    run.random = run.options.seed;
    run.clients = calloc((size_t)run.options.clients + 1, sizeof *run.clients);
    if (run.options.long_prompts) run.prefiller = &run.clients[run.options.clients];
    run.epoll = epoll_create1(0);
    if (run.options.metrics) run.options.metrics = scrape(&run, -1);
    uint64_t start_ns = clock_now_ns(clock_system());
    for (int i = 0; i < run.options.clients; i++) {
        if (connect_client(&run, &run.clients[i]) != 0) {
            fprintf(stderr, "bench_load: cannot connect to %s:%d: %s\n", run.options.host, run.options.port,
                    strerror(errno));
            return 1;
        }
        run.active++;
    }
    while (run.active > 0) {
        struct epoll_event events[64];
        int wait_ms = prefiller_turn(&run);
        if (wait_ms < 0) break;
        int n = epoll_wait(run.epoll, events, 64, wait_ms);
        if (n == 0 && run.prefiller && !run.prefiller->waiting) continue;
        if (n <= 0) {
            fprintf(stderr, "bench_load: nothing came for 120 s\n");
            return 1;
        }
        for (int i = 0; i < n; i++) {
            if (events[i].events & EPOLLOUT) send_more(&run, events[i].data.ptr);
            if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) receive(&run, events[i].data.ptr);
        }
    }
    double seconds = (double)(clock_now_ns(clock_system()) - start_ns) / 1e9;
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    double cpu_seconds = (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
                         (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
    if (run.prefiller)
        report_prefills(&run, seconds);
    else
        report(&run, seconds, cpu_seconds);
    if (run.options.metrics && scrape(&run, 1)) report_metrics(&run, seconds, cpu_seconds);
    return run.failures ? 1 : 0;
}
