/* How a provider over HTTP is asked (F1-F4), against a server on the loopback that answers rightly, wrongly, slowly and
 * not at all. Tokens age by a clock of the test; only time-outs take real time. */
#include "tests/unit/unit.h"

#include "server/power/feed.h"
#include "server/power/feed_client.h"
#include "tests/support/http_stub.h"

#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* What the server does, and what it has seen. */
static struct world {
    enum { SAY, DRIP, HANG, FLOOD, GARBAGE, CUT } how;
    int status;
    const char *headers, *body;
    const char *token_answer;
    int token_status, refuse_tokens_below; /* 401 unless the bearer is "token-N" with N at least this */
    int tokens, calls;
    char authorization[256], key[256], tag[128], form[8192], type[128], path[512];
} world;

static struct http_stub stub;
static struct feed_client client;
static struct error err;
static enum signal_why why;
static int http_status;
static uint64_t now_ns;
static _Atomic bool stop;

static uint64_t test_now_ns(void *state)
{
    (void)state;
    return now_ns;
}
static int64_t test_unix_us(void *state)
{
    (void)state;
    return 0;
}
static const struct clock test_clock = {test_now_ns, test_unix_us, NULL};

static void drip(int fd)
{
    const struct timespec pause = {.tv_nsec = 20000000};
    (void)http_stub_write(fd, "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", 43);
    while (!atomic_load(&stub.stop) && http_stub_write(fd, "[", 1)) nanosleep(&pause, NULL);
}

/* An answer after 4 s: who waits for it has no bound. */
static void hang(int fd)
{
    const struct timespec pause = {.tv_nsec = 20000000};
    char byte;
    for (int i = 0; i < 200 && !atomic_load(&stub.stop); i++) {
        if (recv(fd, &byte, 1, MSG_DONTWAIT) == 0) return;
        nanosleep(&pause, NULL);
    }
    http_stub_reply(fd, 200, "", "[]");
}

static void flood(int fd)
{
    static char zeros[65536];
    (void)http_stub_write(fd, "HTTP/1.1 200 OK\r\n\r\n", 19);
    while (!atomic_load(&stub.stop) && http_stub_write(fd, zeros, sizeof zeros)) continue;
}

static void answer_token(struct world *w, const struct http_stub_request *request, int fd)
{
    char text[256];
    w->tokens++;
    http_stub_header(request, "Content-Type:", w->type, sizeof w->type);
    http_stub_header(request, "Authorization:", w->authorization, sizeof w->authorization);
    (void)snprintf(w->form, sizeof w->form, "%s", request->body);
    (void)snprintf(text, sizeof text, "{\"access_token\":\"token-%d\",\"token_type\":\"Bearer\",\"expires_in\":100}",
                   w->tokens);
    http_stub_reply(fd, w->token_status ? w->token_status : 200, "", w->token_answer ? w->token_answer : text);
}

static void answer(void *state, const struct http_stub_request *request, int fd)
{
    struct world *w = state;
    if (strcmp(request->path, "/auth/token") == 0) {
        answer_token(w, request, fd);
        return;
    }
    int token = -1;
    w->calls++;
    http_stub_header(request, "Authorization:", w->authorization, sizeof w->authorization);
    http_stub_header(request, "auth-token:", w->key, sizeof w->key);
    http_stub_header(request, "If-None-Match:", w->tag, sizeof w->tag);
    (void)snprintf(w->path, sizeof w->path, "%s", request->path);
    (void)sscanf(w->authorization, "Bearer token-%d", &token);
    if (w->refuse_tokens_below && token < w->refuse_tokens_below) {
        http_stub_reply(fd, 401, "", "{}");
        return;
    }
    switch (w->how) {
    case DRIP: drip(fd); break;
    case HANG: hang(fd); break;
    case FLOOD: flood(fd); break;
    case GARBAGE: (void)http_stub_write(fd, "\x16\x03\x01 what?\r\n\r\n", 13); break;
    case CUT: (void)http_stub_write(fd, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", 43); break;
    default: http_stub_reply(fd, w->status, w->headers, w->body); break;
    }
}

static void open_client(enum feed_auth auth, const char *user, uint32_t look_ms)
{
    static char token_url[128];
    (void)snprintf(token_url, sizeof token_url, "%s/auth/token", stub.url);
    const struct feed_client_config config = {.auth = auth,
                                              .secret_env = "TEST_FEED_SECRET",
                                              .user = user,
                                              .token_url = token_url,
                                              .scope = "read_all",
                                              .period_ms = 1000,
                                              .look_ms = look_ms,
                                              .clock = &test_clock,
                                              .stop = &stop};
    setenv("TEST_FEED_SECRET", "s3cret&=% +", 1);
    if (auth == FEED_AUTH_HEADER || auth == FEED_AUTH_BEARER) setenv("TEST_FEED_SECRET", "s3cret", 1);
    if (feed_client_open(&client, &config, &err) != ST_OK) fail_msg("%s", err.message);
}

static enum status run(void)
{
    err.message[0] = '\0';
    http_stub_sync(&stub);
    feed_client_begin(&client);
    enum status status = feed_client_run(&client, stub.url, "/events?skip=0", NULL, &http_status, &why, &err);
    http_stub_sync(&stub);
    return status;
}

static int set_up(void **state)
{
    (void)state;
    memset(&world, 0, sizeof world);
    world.status = 200;
    world.headers = "";
    world.body = "[]";
    now_ns = 1000 * NS_PER_S;
    atomic_store(&stop, false);
    return http_stub_start(&stub, answer, &world) ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    feed_client_close(&client);
    http_stub_stop(&stub);
    return 0;
}

static void test_feed_client_sends_the_secret_as_it_is_wanted(void **state)
{
    (void)state;
    open_client(FEED_AUTH_HEADER, NULL, 0);
    assert_int_equal(run(), ST_OK);
    assert_string_equal(world.key, "s3cret");
    assert_string_equal(world.authorization, "");
    assert_string_equal(world.path, "/events?skip=0");
    assert_int_equal(client.answer.length, 2);
    feed_client_close(&client);
    open_client(FEED_AUTH_BEARER, NULL, 0);
    assert_int_equal(run(), ST_OK);
    assert_string_equal(world.authorization, "Bearer s3cret");
    assert_string_equal(world.key, "");
    feed_client_close(&client);
    open_client(FEED_AUTH_NONE, NULL, 0);
    assert_int_equal(run(), ST_OK);
    assert_string_equal(world.authorization, "");
    feed_client_close(&client);
    world.token_answer = "{\"token\":\"of-login\"}"; /* WattTime */
    open_client(FEED_AUTH_LOGIN, "me", 0);
    assert_int_equal(run(), ST_OK);
    assert_string_equal(world.form, "");
    assert_string_equal(world.authorization, "Bearer of-login");
    assert_int_equal(client.tokens, 1);
}

static void test_feed_client_takes_a_token_and_refreshes_it_in_time(void **state)
{
    (void)state;
    open_client(FEED_AUTH_OAUTH, "ven&1", 0);
    assert_int_equal(run(), ST_OK);
    assert_string_equal(world.type, "application/x-www-form-urlencoded");
    assert_string_equal(world.form, "grant_type=client_credentials&client_id=ven%261&"
                                    "client_secret=s3cret%26%3D%25%20%2B&scope=read_all");
    assert_string_equal(world.authorization, "Bearer token-1");
    now_ns += 89 * NS_PER_S; /* it lives for 100 s, of which the last tenth is not used */
    assert_int_equal(run(), ST_OK);
    assert_int_equal(world.tokens, 1);
    now_ns += 1 * NS_PER_S;
    assert_int_equal(run(), ST_OK);
    assert_int_equal(world.tokens, 2);
    assert_string_equal(world.authorization, "Bearer token-2");
}

static void test_feed_client_fetches_another_token_after_a_401_once(void **state)
{
    (void)state;
    open_client(FEED_AUTH_OAUTH, "ven", 0);
    assert_int_equal(run(), ST_OK);
    world.refuse_tokens_below = 2; /* the server has forgotten token-1 */
    assert_int_equal(run(), ST_OK);
    assert_int_equal(world.tokens, 2);
    assert_int_equal(world.calls, 3);
    world.refuse_tokens_below = 100; /* it takes none at all */
    assert_int_equal(run(), ST_IO);
    assert_int_equal(why, SIGNAL_DENIED);
    assert_int_equal(world.tokens, 3);
    assert_int_equal(world.calls, 5); /* not for ever */
    assert_null(strstr(err.message, "token-"));
    assert_int_equal(run(), ST_IO);
    assert_int_equal(world.tokens, 4);
    assert_int_equal(world.calls, 6);
}

static void test_feed_client_is_not_let_in(void **state)
{
    static const struct {
        int status;
        const char *answer;
        enum signal_why why;
    } cases[] = {{400, "{\"error\":\"invalid_client\"}", SIGNAL_DENIED},
                 {401, "{}", SIGNAL_DENIED},
                 {500, "{}", SIGNAL_UNREACHABLE},
                 {200, "<html>", SIGNAL_UNREADABLE},
                 {200, "{}", SIGNAL_UNREADABLE},
                 {200, "{\"access_token\":\"\"}", SIGNAL_UNREADABLE},
                 {200, "{\"access_token\":\"t\",\"token_type\":\"MAC\"}", SIGNAL_UNREADABLE},
                 {200, "{\"access_token\":\"t\",\"expires_in\":0}", SIGNAL_UNREADABLE},
                 {200, "{\"access_token\":\"t\",\"expires_in\":1e12}", SIGNAL_UNREADABLE}};
    (void)state;
    open_client(FEED_AUTH_OAUTH, "ven", 0);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        world.token_status = cases[i].status;
        world.token_answer = cases[i].answer;
        assert_int_not_equal(run(), ST_OK);
        if (why != cases[i].why) fail_msg("%s: %s", cases[i].answer, err.message);
        assert_null(strstr(err.message, "s3cret"));
    }
    assert_int_equal(world.calls, 0);
    world.token_answer = "{\"access_token\":\"with space\"}"; /* would end a header */
    world.token_status = 200;
    assert_int_equal(run(), ST_INVAL);
    assert_int_equal(world.calls, 0);
}

static void test_feed_client_judges_answers(void **state)
{
    static const struct {
        int status;
        enum signal_why why;
    } cases[] = {{500, SIGNAL_UNREACHABLE}, {503, SIGNAL_UNREACHABLE}, {429, SIGNAL_UNREACHABLE},
                 {404, SIGNAL_UNREACHABLE}, {403, SIGNAL_DENIED},      {302, SIGNAL_UNREADABLE},
                 {304, SIGNAL_UNREADABLE}}; /* 304 without a question for it */
    (void)state;
    open_client(FEED_AUTH_BEARER, NULL, 0);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        world.status = cases[i].status;
        world.headers = "Location: /elsewhere\r\n";
        uint32_t before = atomic_load(&stub.requests);
        assert_int_equal(run(), ST_IO);
        assert_int_equal(why, cases[i].why);
        assert_int_equal(atomic_load(&stub.requests) - before, 1); /* no redirect is followed, nothing tried again */
    }
    world.status = 304;
    client.call.etag = "\"v1\"";
    assert_int_equal(run(), ST_OK);
    assert_int_equal(http_status, 304);
    assert_string_equal(world.tag, "\"v1\"");
    client.call.etag = NULL;
    world.status = 200;
    world.headers = "ETag: \"v2\"\r\n";
    assert_int_equal(run(), ST_OK);
    assert_string_equal(client.call.answer_etag, "\"v2\"");
}

static void test_feed_client_bounds_time_and_size(void **state)
{
    static const struct {
        int how;
        enum status status;
        enum signal_why why;
    } cases[] = {{DRIP, ST_TIMEOUT, SIGNAL_UNREACHABLE},
                 {HANG, ST_TIMEOUT, SIGNAL_UNREACHABLE},
                 {FLOOD, ST_LIMIT, SIGNAL_UNREADABLE},
                 {GARBAGE, ST_INVAL, SIGNAL_UNREACHABLE},
                 {CUT, ST_IO, SIGNAL_UNREACHABLE}};
    (void)state;
    open_client(FEED_AUTH_NONE, NULL, 300);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        world.how = (int)cases[i].how;
        client.config.look_ms = cases[i].how == FLOOD ? 20000 : 300;
        enum status status = run();
        if (status != cases[i].status || why != cases[i].why)
            fail_msg("%d: %s, %s", cases[i].how, status_name(status), err.message);
        assert_true(client.answer.capacity <= FEED_BYTES_MAX);
    }
    /* what a look has used is not given a second time */
    world.how = SAY;
    feed_client_begin(&client);
    now_ns += 300 * NS_PER_MS;
    assert_int_equal(feed_client_run(&client, stub.url, "/x", NULL, &http_status, &why, &err), ST_TIMEOUT);
}

static void *set_stop(void *state)
{
    const struct timespec pause = {.tv_nsec = 100000000};
    nanosleep(&pause, NULL);
    atomic_store(&stop, true);
    return state;
}

static void test_feed_client_ends_when_it_is_told_to(void **state)
{
    pthread_t thread;
    (void)state;
    open_client(FEED_AUTH_NONE, NULL, 60000);
    world.how = HANG;
    assert_int_equal(pthread_create(&thread, NULL, set_stop, NULL), 0);
    assert_int_equal(run(), ST_CANCELED);
    pthread_join(thread, NULL);
}

static void test_feed_client_nobody_there(void **state)
{
    (void)state;
    open_client(FEED_AUTH_NONE, NULL, 0);
    feed_client_begin(&client);
    assert_int_equal(feed_client_run(&client, "http://127.0.0.1:1", "/", NULL, &http_status, &why, &err), ST_IO);
    assert_int_equal(why, SIGNAL_UNREACHABLE);
}

static void test_feed_client_honours_retry_after(void **state)
{
    (void)state;
    open_client(FEED_AUTH_NONE, NULL, 0);
    world.status = 503;
    world.headers = "Retry-After: 77\r\n";
    assert_int_equal(run(), ST_IO);
    assert_int_equal(feed_client_end(&client, false), 77000);
    world.headers = "Retry-After: 999999\r\n";
    assert_int_equal(run(), ST_IO);
    assert_int_equal(feed_client_end(&client, false), FEED_RETRY_AFTER_S_MAX * 1000);
    world.status = 200;
    world.headers = "";
    assert_int_equal(run(), ST_OK);
    assert_int_equal(feed_client_end(&client, true), 1000);
}

static void test_feed_client_waits_longer_while_it_fails(void **state)
{
    (void)state;
    assert_int_equal(feed_wait_ms(1000, 0, 0, 0.5), 1000);
    assert_int_equal(feed_wait_ms(1000, 1, 0, 0), 1000);
    assert_int_equal(feed_wait_ms(1000, 3, 0, 0), 4000);
    assert_int_equal(feed_wait_ms(1000, 3, 0, 0.5), 6000);
    assert_int_equal(feed_wait_ms(1000, 4000000000, 0, 0.999999), FEED_BACKOFF_MS_MAX - 1);
    assert_int_equal(feed_wait_ms(43200000, 9, 0, 0), 21600000); /* a long period is long enough */
    assert_int_equal(feed_wait_ms(1000, 1, 10, 0), 10000);
    assert_int_equal(feed_wait_ms(1000, 0, 10, 0), 1000); /* an answer has no reason to wait */
    uint32_t least = UINT32_MAX, most = 0;
    open_client(FEED_AUTH_NONE, NULL, 0);
    for (int i = 0; i < 200; i++) { /* nodes that failed together do not come back together */
        client.failures = 4;
        uint32_t wait_ms = feed_client_end(&client, false);
        least = wait_ms < least ? wait_ms : least;
        most = wait_ms > most ? wait_ms : most;
    }
    assert_in_range(least, 16000, 20000);
    assert_in_range(most, 28000, 32000);
}

static void test_feed_client_secrets_from_files(void **state)
{
    char path[] = "/tmp/feed_secret_XXXXXX", text[5000];
    struct feed_client_config config = {
        .auth = FEED_AUTH_BEARER, .secret_file = path, .period_ms = 1000, .clock = &test_clock, .stop = &stop};
    int fd = mkstemp(path);
    (void)state;
    assert_true(fd >= 0);
    assert_int_equal(write(fd, "one\r\n", 5), 5);
    assert_int_equal(feed_client_open(&client, &config, &err), ST_OK);
    assert_int_equal(run(), ST_OK);
    assert_string_equal(world.authorization, "Bearer one");
    assert_int_equal(ftruncate(fd, 0), 0); /* the operator gives another one */
    assert_int_equal(pwrite(fd, "two\n", 4, 0), 4);
    world.status = 403;
    assert_int_equal(run(), ST_IO); /* refused: read again */
    world.status = 200;
    assert_int_equal(run(), ST_OK);
    assert_string_equal(world.authorization, "Bearer two");
    feed_client_close(&client);
    assert_int_equal(ftruncate(fd, 0), 0);
    assert_int_equal(feed_client_open(&client, &config, &err), ST_INVAL); /* empty */
    memset(text, 'x', sizeof text);
    assert_int_equal(pwrite(fd, text, sizeof text, 0), sizeof text);
    assert_int_equal(feed_client_open(&client, &config, &err), ST_INVAL); /* long */
    unlink(path);
    close(fd);
    assert_int_equal(feed_client_open(&client, &config, &err), ST_INVAL); /* not there */
    config.secret_file = NULL;
    config.secret_env = "TEST_FEED_NOTHING";
    assert_int_equal(feed_client_open(&client, &config, &err), ST_INVAL);
    assert_non_null(strstr(err.message, "TEST_FEED_NOTHING"));
}

static void test_feed_client_urls(void **state)
{
    char base[32];
    const char *path;
    (void)state;
    open_client(FEED_AUTH_NONE, NULL, 0);
    assert_int_equal(feed_split_url("https://vtn:8443/openadr3?x=1", base, sizeof base, &path, &err), ST_OK);
    assert_string_equal(base, "https://vtn:8443");
    assert_string_equal(path, "/openadr3?x=1");
    assert_int_equal(feed_split_url("http://vtn", base, sizeof base, &path, &err), ST_OK);
    assert_string_equal(path, "");
    assert_int_equal(feed_split_url("ftp://vtn/", base, sizeof base, &path, &err), ST_INVAL);
    assert_int_equal(feed_split_url("file:///etc/passwd", base, sizeof base, &path, &err), ST_INVAL);
    assert_int_equal(feed_split_url("http:///x", base, sizeof base, &path, &err), ST_INVAL);
    assert_int_equal(feed_split_url("http://me:pw@vtn/", base, sizeof base, &path, &err), ST_INVAL);
    assert_null(strstr(err.message, "pw"));
    assert_int_equal(feed_split_url("http://a-name-that-is-much-too-long.example/", base, sizeof base, &path, &err),
                     ST_INVAL);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_feed_client_sends_the_secret_as_it_is_wanted),
        TEST(test_feed_client_takes_a_token_and_refreshes_it_in_time),
        TEST(test_feed_client_fetches_another_token_after_a_401_once),
        TEST(test_feed_client_is_not_let_in),
        TEST(test_feed_client_judges_answers),
        TEST(test_feed_client_bounds_time_and_size),
        TEST(test_feed_client_ends_when_it_is_told_to),
        TEST(test_feed_client_nobody_there),
        TEST(test_feed_client_honours_retry_after),
        TEST(test_feed_client_waits_longer_while_it_fails),
        TEST(test_feed_client_secrets_from_files),
        TEST(test_feed_client_urls),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
