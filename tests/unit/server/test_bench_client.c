/* The load's client against a server that answers well, badly, in pieces of a byte, or not at all. */
#include "tests/unit/unit.h"

#include "server/bench/bench_client.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>

#define HEAD "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
#define USAGE(in, out)                                                                                                 \
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":" #in ",\"completion_tokens\":" #out "}}\n\ndata: [DONE]\n\n"
static const char good[] =
    HEAD "data: {\"choices\":[{\"text\":\"a\"}]}\n\ndata: {\"choices\":[{\"text\":\"b\"}]}\n\n" //
    USAGE(7, 2);

struct fake { /* answers so many connections, one after another, in turn with these texts */
    int fd;
    uint32_t connections, texts_count;
    const char *const *texts;
    size_t piece; /* bytes a send; 0: all at once */
    pthread_t thread;
    char port[8], request[65536]; /* the last one */
};

static void answer(struct fake *fake, int fd, const char *text)
{
    size_t got = 0;
    for (;;) { /* the head and the body that it tells */
        ssize_t n = recv(fd, fake->request + got, sizeof fake->request - 1 - got, 0);
        if (n <= 0) break;
        got += (size_t)n;
        fake->request[got] = 0;
        const char *body = strstr(fake->request, "\r\n\r\n"), *length = strstr(fake->request, "Content-Length: ");
        if (body && length && got >= (size_t)(body + 4 - fake->request) + strtoul(length + 16, NULL, 10)) break;
    }
    size_t length = strlen(text), step = fake->piece ? fake->piece : length;
    for (size_t at = 0; at < length; at += step)
        if (send(fd, text + at, length - at < step ? length - at : step, MSG_NOSIGNAL) < 0) break;
}

static void *serve(void *state)
{
    struct fake *fake = state;
    for (uint32_t i = 0; i < fake->connections; i++) {
        int fd = accept(fake->fd, NULL, NULL);
        if (fd < 0) break;
        answer(fake, fd, fake->texts[i % fake->texts_count]);
        close(fd);
    }
    return NULL;
}

static void fake_start(struct fake *fake, const char *const *texts, uint32_t texts_count, uint32_t connections,
                       size_t piece)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    *fake = (struct fake){.connections = connections, .texts = texts, .texts_count = texts_count, .piece = piece};
    fake->fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(fake->fd, (struct sockaddr *)&address, length), 0);
    assert_int_equal(listen(fake->fd, 64), 0);
    assert_int_equal(getsockname(fake->fd, (struct sockaddr *)&address, &length), 0);
    snprintf(fake->port, sizeof fake->port, "%u", (unsigned)ntohs(address.sin_port));
    if (connections > 0) assert_int_equal(pthread_create(&fake->thread, NULL, serve, fake), 0);
}

static void fake_stop(struct fake *fake)
{
    if (fake->connections > 0) pthread_join(fake->thread, NULL);
    close(fake->fd);
}

static enum status load(struct fake *fake, uint32_t requests, double per_second, struct bench_result *result,
                        struct error *err)
{
    struct bench_target target = {.host = "127.0.0.1", .model = "m\"x", .key = "sk-7", .id_low = 100, .id_high = 102};
    struct bench_work work;
    memcpy(target.port, fake->port, sizeof target.port);
    assert_int_equal(bench_work_make(&work, requests, 3, 2, per_second, 1, err), ST_OK);
    enum status status = bench_client_run(&target, &work, 4, result, err);
    bench_work_free(&work);
    return status;
}

static void test_bench_client_counts(void **state)
{
    (void)state;
    static const char *const texts[] = {good};
    for (size_t piece = 0; piece <= 5; piece += 5) { /* whole, and cut inside the marks of events */
        struct fake fake;
        struct bench_result r;
        struct error err = {""};
        fake_start(&fake, texts, 1, 9, piece);
        assert_int_equal(load(&fake, 9, 0, &r, &err), ST_OK);
        fake_stop(&fake);
        assert_int_equal(r.answered, 9);
        assert_int_equal(r.failed, 0);
        assert_int_equal(r.prompt_tokens, 63);
        assert_int_equal(r.output_tokens, 18);
        assert_int_equal(r.first_ms.count, 9);
        assert_int_equal(r.whole_ms.count, 9);
        assert_true(r.gap_ms.count <= 18); /* how many depends on what arrives together */
        for (size_t i = 1; i < r.whole_ms.count; i++) assert_true(r.whole_ms.values[i] >= r.whole_ms.values[i - 1]);
        assert_non_null(strstr(fake.request, "POST /v1/completions HTTP/1.1\r\n"));
        assert_non_null(strstr(fake.request, "Authorization: Bearer sk-7\r\n"));
        assert_non_null(strstr(fake.request, "{\"model\":\"m\\\"x\",\"prompt\":[10"));
        assert_non_null(strstr(fake.request, "\"max_tokens\":2,"));
        bench_result_free(&r);
    }
}

/* An open loop sends by the clock, not after answers: all connections are there before the server takes the first. */
static void test_bench_client_open_loop(void **state)
{
    (void)state;
    static const char *const texts[] = {good};
    struct fake fake;
    struct bench_result r;
    struct error err = {""};
    fake_start(&fake, texts, 1, 30, 0);
    assert_int_equal(load(&fake, 30, 300, &r, &err), ST_OK);
    fake_stop(&fake);
    assert_int_equal(r.answered, 30);
    bench_result_free(&r);
}

static void test_bench_client_failures(void **state)
{
    (void)state;
    static const char refused[] = "HTTP/1.1 503 Busy\r\n\r\n{\"error\":{\"message\":\"busy\"}}";
    static const char broken[] = HEAD "data: {\"choices\":[{\"text\":\"a\"}]}\n\n";
    static const char longer[] = HEAD "data: {\"choices\":[{\"text\":\"a\"}]}\n\n" USAGE(7, 3);
    static const char uncounted[] = HEAD "data: {\"choices\":[{\"text\":\"a\"}]}\n\ndata: [DONE]\n\n";
    static const char unended[] = HEAD "data: {\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2}}\n\n";
    static const char *const texts[] = {refused, broken, longer, uncounted, unended, "", good};
    struct fake fake;
    struct bench_result r;
    struct error err = {""};
    fake_start(&fake, texts, 7, 7, 0);
    struct bench_target target = {.host = "127.0.0.1", .model = "m", .id_low = 1, .id_high = 2};
    struct bench_work work;
    memcpy(target.port, fake.port, sizeof target.port);
    assert_int_equal(bench_work_make(&work, 7, 3, 2, 0, 1, &err), ST_OK);
    assert_int_equal(bench_client_run(&target, &work, 1, &r, &err), ST_OK);
    fake_stop(&fake);
    assert_int_equal(r.failed, 6);
    assert_int_equal(r.answered, 2); /* one of them with another length */
    assert_int_equal(r.output_tokens, 5);
    assert_non_null(strstr(r.failure, "not 200: {\"error\""));
    assert_null(strstr(fake.request, "Authorization"));
    bench_result_free(&r);
    bench_work_free(&work);
}

/* Nobody there: it ends after a hundred tries. */
static void test_bench_client_nobody(void **state)
{
    (void)state;
    struct fake fake;
    struct bench_result r;
    struct error err = {""};
    fake_start(&fake, NULL, 0, 0, 0);
    close(fake.fd);
    assert_int_equal(load(&fake, 100000, 0, &r, &err), ST_IO);
    assert_non_null(strstr(err.message, "100 requests have failed"));
}

static void test_bench_target_read(void **state)
{
    (void)state;
    struct bench_target t;
    struct error err;
    assert_int_equal(bench_target_read("http://h.x:81/", &t, &err), ST_OK);
    assert_string_equal(t.host, "h.x");
    assert_string_equal(t.port, "81");
    assert_int_equal(bench_target_read("http://[::1]:8000", &t, &err), ST_OK);
    assert_string_equal(t.host, "::1");
    assert_int_equal(bench_target_read("http://h", &t, &err), ST_OK);
    assert_string_equal(t.port, "80");
    static const char *const bad[] = {"h:1",         "https://h:1",     "http://",       "http://:1",
                                      "http://h:",   "http://h:123456", "http://h:1/v1", "http://h:1x",
                                      "http://[::1", "http://[]:1",     "http://h//"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (bench_target_read(bad[i], &t, &err) != ST_INVAL) fail_msg("%s is taken", bad[i]);
    char endless[600] = "http://";
    memset(endless + 7, 'h', 400);
    assert_int_equal(bench_target_read(endless, &t, &err), ST_INVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bench_client_counts),   cmocka_unit_test(test_bench_client_open_loop),
        cmocka_unit_test(test_bench_client_failures), cmocka_unit_test(test_bench_client_nobody),
        cmocka_unit_test(test_bench_target_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
