/* Sockets under poll; see bench_client.h. An answer is not kept: events are counted as they pass, and its last
 * TAIL_BYTES hold the usage. */
#include "server/bench/bench_client.h"

#include "runtime/base/buf.h"
#include "runtime/base/check.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/base/random.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { TAIL_BYTES = 2048, PIECE_BYTES = 65536, HEAD_BYTES = 12 };
static const char EVENT[] = "data: {";
enum { EVENT_BYTES = sizeof EVENT - 1 };

struct exchange {
    int fd; /* -1: free */
    const struct bench_request *request;
    struct buf out;
    size_t sent;
    uint64_t start_ns, last_ns;
    uint32_t matched; /* bytes of EVENT seen */
    bool begun;
    char head[HEAD_BYTES + 1]; /* "HTTP/1.1 200" */
    size_t head_length;
    char tail[TAIL_BYTES + 1];
    size_t tail_length;
};

struct run {
    const struct bench_target *target;
    const struct bench_work *work;
    struct bench_result *result;
    struct addrinfo *address;
    struct exchange *exchanges;
    struct pollfd *polled;
    uint32_t places, busy, next;
    uint64_t rng, start_ns, heard_ns;
};

static enum status series_add(struct bench_series *series, double value)
{
    if (series->count == series->capacity) {
        size_t capacity = series->capacity ? series->capacity * 2 : 4096;
        double *values = mem_resize(series->values, capacity, sizeof *values);
        if (!values) return ST_NOMEM;
        series->values = values;
        series->capacity = capacity;
    }
    series->values[series->count++] = value;
    return ST_OK;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_percentile(const struct bench_series *series, double p)
{
    return series->count ? series->values[(size_t)(p * (double)(series->count - 1))] : 0;
}

void bench_result_free(struct bench_result *result)
{
    mem_free(result->first_ms.values);
    mem_free(result->gap_ms.values);
    mem_free(result->whole_ms.values);
    *result = (struct bench_result){0};
}

enum status bench_target_read(const char *url, struct bench_target *target, struct error *err)
{
    static const char scheme[] = "http://";
    const char *host = url + sizeof scheme - 1;
    if (strncmp(url, scheme, sizeof scheme - 1) != 0) return error_set(err, ST_INVAL, "the server is http://HOST:PORT");
    bool bracket = *host == '[';
    const char *end = bracket ? strchr(++host, ']') : host + strcspn(host, ":/");
    if (!end || end == host || (size_t)(end - host) >= sizeof target->host)
        return error_set(err, ST_INVAL, "the server is http://HOST:PORT");
    const char *port = end + bracket;
    size_t length = *port == ':' ? strspn(port + 1, "0123456789") : 0;
    const char *rest = *port == ':' ? port + 1 + length : port;
    if ((*port == ':' && (length == 0 || length > 5)) || strcmp(rest + (*rest == '/'), "") != 0)
        return error_set(err, ST_INVAL, "the server is http://HOST:PORT");
    memcpy(target->host, host, (size_t)(end - host));
    target->host[end - host] = 0;
    memcpy(target->port, length ? port + 1 : "80", length ? length : 2);
    target->port[length ? length : 2] = 0;
    return ST_OK;
}

static void fail(struct run *run, const char *why, const char *detail)
{
    struct error text = {""};
    if (run->result->failed++ > 0) return;
    (void)!error_set(&text, ST_IO, "%s%s%.120s", why, detail ? ": " : "", detail ? detail : "");
    size_t length = strlen(text.message);
    if (length >= sizeof run->result->failure) length = sizeof run->result->failure - 1;
    memcpy(run->result->failure, text.message, length);
    run->result->failure[length] = 0;
}

static bool write_request(struct run *run, struct exchange *x)
{
    const struct bench_target *t = run->target;
    struct buf body;
    buf_init(&body, 0);
    buf_append_text(&body, "{\"model\":");
    buf_append_json_string(&body, t->model, strlen(t->model));
    buf_append_text(&body, ",\"prompt\":[");
    for (uint32_t i = 0; i < x->request->prompt_tokens; i++)
        buf_append_format(&body, "%s%u", i ? "," : "",
                          (unsigned)(t->id_low + random_next(&run->rng) % (t->id_high - t->id_low)));
    buf_append_format(&body,
                      "],\"max_tokens\":%u,\"temperature\":0,\"ignore_eos\":true,\"stream\":true,"
                      "\"stream_options\":{\"include_usage\":true}}",
                      (unsigned)x->request->output_tokens);
    buf_clear(&x->out);
    buf_append_format(&x->out, "POST /v1/completions HTTP/1.1\r\nHost: %s:%s\r\nConnection: close\r\n", t->host,
                      t->port);
    if (t->key) buf_append_format(&x->out, "Authorization: Bearer %s\r\n", t->key);
    buf_append_format(&x->out, "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n", body.length);
    buf_append(&x->out, body.data, body.length);
    bool fine = buf_ok(&body) && buf_ok(&x->out);
    buf_free(&body);
    return fine;
}

/* Begins the next request in a free place. */
static enum status begin(struct run *run, uint64_t now_ns, struct error *err)
{
    uint32_t place = 0;
    while (run->exchanges[place].fd >= 0) place++;
    struct exchange *x = &run->exchanges[place];
    const struct bench_request *request = &run->work->requests[run->next++];
    struct buf out = x->out;
    *x = (struct exchange){.fd = -1, .request = request, .out = out, .start_ns = now_ns};
    if (!write_request(run, x)) return error_set(err, ST_NOMEM, "no memory for a request");
    int fd = socket(run->address->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    if (fd < 0) return error_set(err, ST_IO, "no socket: %s", strerror(errno));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(fd, run->address->ai_addr, run->address->ai_addrlen) != 0 && errno != EINPROGRESS) {
        int reason = errno;
        close(fd);
        return error_set(err, ST_IO, "%s:%s: %s", run->target->host, run->target->port, strerror(reason));
    }
    x->fd = fd;
    run->busy++;
    return ST_OK;
}

static void end(struct run *run, struct exchange *x)
{
    close(x->fd);
    x->fd = -1;
    run->busy--;
}

static long usage_field(const char *tail, const char *key)
{
    const char *last = NULL;
    for (const char *at = tail; (at = strstr(at, key)); at++) last = at + strlen(key);
    return last ? strtol(last, NULL, 10) : -1;
}

/* The server has closed. */
static enum status answered(struct run *run, struct exchange *x)
{
    struct bench_result *r = run->result;
    long prompt = usage_field(x->tail, "\"prompt_tokens\":"), output = usage_field(x->tail, "\"completion_tokens\":");
    enum status status = ST_OK;
    if (x->head_length < HEAD_BYTES || strcmp(x->head + 8, " 200") != 0) {
        const char *body = strstr(x->tail, "{");
        fail(run, x->head_length ? "an answer that is not 200" : "the connection was closed", body);
    } else if (!strstr(x->tail, "[DONE]") || prompt < 0 || output < 0) {
        fail(run, "an answer broke off", NULL);
    } else {
        r->prompt_tokens += (uint64_t)prompt;
        r->output_tokens += (uint64_t)output;
        r->answered++;
        if ((uint64_t)output != x->request->output_tokens) fail(run, "an answer of another length", NULL);
        status = series_add(&r->whole_ms, (double)(x->last_ns - x->start_ns) / 1e6);
    }
    end(run, x);
    return status;
}

/* A piece of the answer: its head, its events, its end. */
static enum status take(struct run *run, struct exchange *x, const char *data, size_t length, uint64_t now_ns)
{
    bool any = false;
    for (size_t i = 0; i < length && x->head_length < HEAD_BYTES; i++) x->head[x->head_length++] = data[i];
    for (size_t i = 0; i < length; i++) { /* EVENT's first letter is not inside it again but for "da": none restarts */
        x->matched = data[i] == EVENT[x->matched] ? x->matched + 1 : data[i] == EVENT[0];
        if (x->matched < EVENT_BYTES) continue;
        x->matched = 0;
        any = true;
    }
    size_t keep = length < TAIL_BYTES ? length : TAIL_BYTES, old = TAIL_BYTES - keep;
    if (x->tail_length > old) {
        memmove(x->tail, x->tail + (x->tail_length - old), old);
        x->tail_length = old;
    }
    memcpy(x->tail + x->tail_length, data + (length - keep), keep);
    x->tail_length += keep;
    x->tail[x->tail_length] = 0;
    if (!any) return ST_OK;
    double wait_ms = (double)(now_ns - (x->begun ? x->last_ns : x->start_ns)) / 1e6;
    enum status status = series_add(x->begun ? &run->result->gap_ms : &run->result->first_ms, wait_ms);
    x->begun = true;
    x->last_ns = now_ns;
    return status;
}

static enum status receive(struct run *run, struct exchange *x)
{
    static char piece[PIECE_BYTES];
    ssize_t n = recv(x->fd, piece, sizeof piece, 0);
    if (n > 0) {
        run->heard_ns = clock_now_ns(clock_system());
        return take(run, x, piece, (size_t)n, run->heard_ns);
    }
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return ST_OK;
    return answered(run, x);
}

static void send_more(struct run *run, struct exchange *x)
{
    ssize_t n = send(x->fd, x->out.data + x->sent, x->out.length - x->sent, MSG_NOSIGNAL);
    if (n >= 0) {
        x->sent += (size_t)n;
    } else if (errno != EAGAIN && errno != EINTR) {
        fail(run, "a request could not be sent", strerror(errno));
        end(run, x);
    }
}

/* Begins what is due. *wait_ms: until the next one is, or BENCH_SILENCE_MS. */
static enum status begin_due(struct run *run, int *wait_ms, struct error *err)
{
    uint64_t now_ns = clock_now_ns(clock_system());
    *wait_ms = BENCH_SILENCE_MS;
    while (run->next < run->work->count && run->busy < run->places) {
        uint64_t due_ns = run->start_ns + run->work->requests[run->next].at_ns;
        if (run->work->timed && now_ns < due_ns) {
            uint64_t left_ms = (due_ns - now_ns) / NS_PER_MS + 1;
            *wait_ms = left_ms < BENCH_SILENCE_MS ? (int)left_ms : BENCH_SILENCE_MS;
            return ST_OK;
        }
        if (run->work->timed && now_ns > due_ns + 100 * NS_PER_MS) run->result->late++;
        TRY(begin(run, now_ns, err));
    }
    return ST_OK;
}

static enum status turn(struct run *run, struct error *err)
{
    int wait_ms;
    TRY(begin_due(run, &wait_ms, err));
    if (run->target->tick) {
        run->target->tick(run->target->tick_state, clock_now_ns(clock_system()));
        if (wait_ms > BENCH_METER_MS) wait_ms = BENCH_METER_MS;
    }
    for (uint32_t i = 0; i < run->places; i++) {
        const struct exchange *x = &run->exchanges[i];
        short events = x->fd >= 0 && x->sent < x->out.length ? POLLIN | POLLOUT : POLLIN;
        run->polled[i] = (struct pollfd){.fd = x->fd, .events = events};
    }
    if (poll(run->polled, run->places, wait_ms) < 0 && errno != EINTR)
        return error_set(err, ST_IO, "poll: %s", strerror(errno));
    for (uint32_t i = 0; i < run->places; i++) {
        struct exchange *x = &run->exchanges[i];
        if (x->fd >= 0 && run->polled[i].revents & POLLOUT) send_more(run, x);
        if (x->fd >= 0 && run->polled[i].revents & (POLLIN | POLLHUP | POLLERR)) {
            enum status status = receive(run, x);
            if (status != ST_OK) return error_set(err, status, "no memory for times");
        }
    }
    uint64_t silent_ns = clock_now_ns(clock_system()) - run->heard_ns;
    if (run->busy > 0 && silent_ns > BENCH_SILENCE_MS * NS_PER_MS)
        return error_set(err, ST_IO, "%s:%s has been silent for %d s", run->target->host, run->target->port,
                         BENCH_SILENCE_MS / 1000);
    if (run->busy == 0) run->heard_ns = clock_now_ns(clock_system());
    if (run->result->failed >= 100 && run->result->answered == 0)
        return error_set(err, ST_IO, "100 requests have failed and none was answered: %s", run->result->failure);
    return ST_OK;
}

static enum status run_all(struct run *run, struct error *err)
{
    run->exchanges = mem_alloc(run->places, sizeof *run->exchanges);
    run->polled = mem_alloc(run->places, sizeof *run->polled);
    if (!run->exchanges || !run->polled) return error_set(err, ST_NOMEM, "no memory for %u clients", run->places);
    for (uint32_t i = 0; i < run->places; i++) run->exchanges[i].fd = -1;
    run->start_ns = run->heard_ns = clock_now_ns(clock_system());
    while (run->next < run->work->count || run->busy > 0) TRY(turn(run, err));
    run->result->seconds = (double)(clock_now_ns(clock_system()) - run->start_ns) / 1e9;
    return ST_OK;
}

enum status bench_client_run(const struct bench_target *target, const struct bench_work *work, uint32_t clients,
                             struct bench_result *result, struct error *err)
{
    struct run run = {.target = target, .work = work, .result = result, .rng = target->seed};
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    CHECK(clients >= 1 && clients <= BENCH_CONNECTIONS_MAX && target->id_high > target->id_low);
    *result = (struct bench_result){0};
    run.places = work->timed ? BENCH_CONNECTIONS_MAX : clients;
    int code = getaddrinfo(target->host, target->port, &hints, &run.address);
    if (code != 0) return error_set(err, ST_IO, "%s:%s: %s", target->host, target->port, gai_strerror(code));
    enum status status = run_all(&run, err);
    for (uint32_t i = 0; run.exchanges && i < run.places; i++) {
        if (run.exchanges[i].fd >= 0) close(run.exchanges[i].fd);
        buf_free(&run.exchanges[i].out);
    }
    mem_free(run.exchanges);
    mem_free(run.polled);
    freeaddrinfo(run.address);
    struct bench_series *const all[] = {&result->first_ms, &result->gap_ms, &result->whole_ms};
    for (uint32_t i = 0; i < 3; i++)
        if (all[i]->count) qsort(all[i]->values, all[i]->count, sizeof(double), by_value);
    if (status != ST_OK) bench_result_free(result);
    return status;
}
