/* The provider of hashes in Redis, called as its thread does, over a Redis of a few lines. */
#include "tests/unit/unit.h"

#include "runtime/base/clock.h"
#include "server/power/signal_redis.c"

#define T INT64_C(1763892000000)

/* What the peer says: to HGETALL, and unasked to whom has subscribed. */
struct peer {
    const char *hash; /* RESP */
    bool down, deaf;  /* nobody answers; SUBSCRIBE is refused */
    uint32_t asked, subscribed, authenticated;
    bool says; /* a message waits */
    uint64_t now_ns;
};

struct connection {
    struct peer *peer;
    char out[4096];
    size_t length;
    bool subscribed;
};

static enum status peer_open(void *state, const struct redis_address *address, const struct redis_tls *tls,
                             uint32_t timeout_ms, void **connection, struct error *err)
{
    (void)address, (void)tls, (void)timeout_ms;
    struct peer *peer = state;
    if (peer->down) return error_set(err, ST_IO, "refused");
    struct connection *c = calloc(1, sizeof *c);
    c->peer = peer;
    *connection = c;
    return ST_OK;
}

static void answer(struct connection *c, const char *text)
{
    size_t length = strlen(text);
    assert_true(c->length + length <= sizeof c->out);
    memcpy(c->out + c->length, text, length);
    c->length += length;
}

static enum status peer_send(void *state, void *connection, const void *bytes, size_t length, uint32_t timeout_ms,
                             struct error *err)
{
    (void)timeout_ms;
    struct peer *peer = state;
    struct connection *c = connection;
    if (peer->down) return error_set(err, ST_IO, "reset");
    if (memmem(bytes, length, "AUTH", 4)) {
        peer->authenticated += memmem(bytes, length, "secret", 6) != NULL;
        answer(c, "+OK\r\n");
    } else if (memmem(bytes, length, "ROLE", 4)) {
        answer(c, "*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n");
    } else if (memmem(bytes, length, "SUBSCRIBE", 9)) {
        assert_non_null(memmem(bytes, length, "mr:power:north", 14));
        c->subscribed = !peer->deaf;
        peer->subscribed += !peer->deaf;
        answer(c, peer->deaf ? "-NOPERM no channel\r\n" : "*3\r\n$9\r\nsubscribe\r\n$14\r\nmr:power:north\r\n:1\r\n");
    } else {
        assert_non_null(memmem(bytes, length, "HGETALL\r\n$14\r\nmr:power:north\r\n", 30));
        peer->asked++;
        answer(c, peer->hash);
    }
    return ST_OK;
}

static enum status peer_receive(void *state, void *connection, void *out, size_t room, uint32_t timeout_ms,
                                size_t *length, struct error *err)
{
    struct peer *peer = state;
    struct connection *c = connection;
    if (peer->down) return error_set(err, ST_IO, "closed");
    if (c->length == 0 && c->subscribed && peer->says) {
        peer->says = false;
        answer(c, "*3\r\n$7\r\nmessage\r\n$14\r\nmr:power:north\r\n$1\r\nx\r\n");
    }
    if (c->length == 0) {
        peer->now_ns += timeout_ms * NS_PER_MS;
        return error_set(err, ST_TIMEOUT, "nothing");
    }
    *length = c->length < room ? c->length : room;
    memcpy(out, c->out, *length);
    c->length -= *length;
    memmove(c->out, c->out + *length, c->length);
    return ST_OK;
}

static void peer_close(void *state, void *connection)
{
    (void)state;
    free(connection);
}

static uint64_t peer_now(void *state)
{
    return ((struct peer *)state)->now_ns += 50 * NS_PER_MS; /* so that every wait comes to its end */
}

struct rig {
    struct peer peer;
    struct redis_wire wire;
    struct clock clock;
    struct redis_settings settings;
    struct signal_setup setup;
    struct signal_spec spec;
    struct signals *signals;
    struct signal_ear ear;
    _Atomic bool stop;
    void *feed;
};

static void rig_start(struct rig *rig, const char *hash)
{
    struct signal_config config = {.default_cap_w = 0};
    struct signal_source source = {"redis", 0, 10000, 0.5, true};
    struct error err = {""};
    *rig = (struct rig){.peer = {.hash = hash, .now_ns = NS_PER_S},
                        .settings = {.url = "redis://127.0.0.1:6379", .password = "secret"}};
    rig->wire = (struct redis_wire){&rig->peer, peer_open, peer_send, peer_receive, peer_close};
    rig->clock = (struct clock){.now_ns = peer_now, .state = &rig->peer};
    rig->setup.redis = &rig->settings;
    assert_int_equal(signal_spec_read("redis:north", 0, &rig->spec, &err), ST_OK);
    assert_int_equal(signal_create(&config, &rig->signals, &err), ST_OK);
    assert_int_equal(signal_register(rig->signals, &source, &rig->ear.source, &err), ST_OK);
    rig->ear.signals = rig->signals;
    rig->ear.spec = &rig->spec;
    rig->ear.setup = &rig->setup;
    rig->ear.stop = &rig->stop;
    assert_int_equal(redis_open(&rig->ear, &rig->feed, &err), ST_OK);
    ((struct signal_redis *)rig->feed)->target.wire = &rig->wire;
    ((struct signal_redis *)rig->feed)->target.clock = &rig->clock;
}

static void rig_stop(struct rig *rig)
{
    redis_close(rig->feed);
    signal_destroy(rig->signals);
}

static struct power_slot look(struct rig *rig, int64_t now_ms)
{
    struct power_slot node;
    (void)redis_look(rig->feed, now_ms);
    rig->peer.now_ns += 3 * NS_PER_S; /* past any pause after a failure */
    signal_at(rig->signals, now_ms, now_ms, &node);
    return node;
}

static struct signal_state shown(struct rig *rig, int64_t now_ms)
{
    struct signal_state state;
    signal_read_state(rig->signals, rig->ear.source, now_ms, &state);
    return state;
}

#define CAP_160 "*4\r\n$5\r\ncap_w\r\n$3\r\n160\r\n$9\r\nprice_kwh\r\n$3\r\n0.2\r\n"
#define CAP_120 "*2\r\n$5\r\ncap_w\r\n$3\r\n120\r\n"

static void test_signal_redis_follows(void **state)
{
    (void)state;
    struct rig rig;
    rig_start(&rig, CAP_160);
    struct power_slot node = look(&rig, T);
    assert_true(node.have == (SLOT_CAP | SLOT_PRICE) && node.cap_w == 80 && node.price_kwh == 0.2);
    assert_true(rig.peer.asked == 1 && rig.peer.subscribed == 1 && rig.peer.authenticated == 2);
    rig.peer.hash = CAP_120;
    for (int i = 1; i < 5; i++) assert_true(look(&rig, T + i * 100).cap_w == 80); /* nobody has said anything */
    assert_int_equal(rig.peer.asked, 1);
    rig.peer.says = true;
    (void)look(&rig, T + 1000); /* hears it */
    assert_true(look(&rig, T + 1001).cap_w == 60);
    rig.peer.hash = CAP_160;
    assert_true(look(&rig, T + 11000).cap_w == 60); /* a lost hint costs a period */
    assert_true(look(&rig, T + 11002).cap_w == 80);
    /* A Redis that is away: the cap stays, the source ages; then it is subscribed again and asked at once. */
    rig.peer.down = true;
    for (int i = 0; i < 60; i++) assert_true(look(&rig, T + 12000 + i * 1000).cap_w == 80);
    struct signal_state told = shown(&rig, T + 72000);
    assert_true(told.age == SIGNAL_STALE && told.rejected[SIGNAL_UNREACHABLE] >= 5);
    rig.peer.down = false;
    rig.peer.hash = CAP_120;
    assert_true(look(&rig, T + 72001).cap_w == 60);
    assert_int_equal(rig.peer.subscribed, 2);
    assert_int_equal(shown(&rig, T + 72001).age, SIGNAL_FRESH);
    /* Away for less than a period: what was said meanwhile is asked for. */
    rig.peer.down = true;
    for (int i = 1; i < 4; i++) (void)look(&rig, T + 72001 + i * 1000);
    rig.peer.down = false;
    rig.peer.hash = CAP_160;
    assert_true(look(&rig, T + 76002).cap_w == 80);
    rig_stop(&rig);
}

/* Hashes that cannot be taken, each with its reason, and what held goes on. */
static void test_signal_redis_refuses(void **state)
{
    (void)state;
    static const struct {
        const char *hash;
        enum signal_why why;
    } cases[] = {
        {"*0\r\n", SIGNAL_UNREACHABLE},
        {"-NOPERM no\r\n", SIGNAL_DENIED},
        {"-WRONGTYPE Operation against a key\r\n", SIGNAL_UNREADABLE},
        {"$3\r\nabc\r\n", SIGNAL_UNREADABLE},
        {"*1\r\n$5\r\ncap_w\r\n", SIGNAL_UNREADABLE},
        {"*2\r\n$5\r\ncap_w\r\n:5\r\n", SIGNAL_UNREADABLE},
        {"*2\r\n$5\r\ncap_w\r\n$4\r\nmuch\r\n", SIGNAL_UNREADABLE},
        {"*2\r\n$5\r\nwatts\r\n$1\r\n5\r\n", SIGNAL_UNREADABLE},
        {"*2\r\n$5\r\ncap_w\r\n$3\r\nnan\r\n", SIGNAL_NAN},
        {"*2\r\n$5\r\ncap_w\r\n$2\r\n-1\r\n", SIGNAL_NEGATIVE},
        {"*2\r\n$5\r\ncap_w\r\n$3\r\n1e9\r\n", SIGNAL_NAMEPLATE},
        {"*2\r\n$10\r\nshed_level\r\n$1\r\n4\r\n", SIGNAL_IMPOSSIBLE},
    };
    struct rig rig;
    rig_start(&rig, CAP_160);
    signal_set_nameplate(rig.signals, 100);
    int64_t now = T;
    assert_true(look(&rig, now).cap_w == 80);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct signal_state before = shown(&rig, now), after;
        rig.peer.hash = cases[i].hash;
        now += 10001;
        for (int more = 0; more < 2; more++) assert_true(look(&rig, now + more).cap_w == 80);
        after = shown(&rig, now);
        if (after.rejected[cases[i].why] != before.rejected[cases[i].why] + 1)
            fail_msg("case %zu: no %s", i, signal_why_text(cases[i].why));
        assert_true(after.message[0] != '\0');
    }
    rig_stop(&rig);
}

/* With recv_ms a hash whose writer has died ages, though Redis answers; an older word is refused. */
static void test_signal_redis_dead_writer(void **state)
{
    (void)state;
    struct rig rig;
    char hash[128] = "";
    rig_start(&rig, hash);
    (void)snprintf(hash, sizeof hash, "*4\r\n$5\r\ncap_w\r\n$3\r\n160\r\n$7\r\nrecv_ms\r\n$13\r\n%lld\r\n",
                   (long long)T);
    assert_true(look(&rig, T + 500).cap_w == 80);
    for (int i = 1; i < 60; i++) assert_true(look(&rig, T + i * 1000).cap_w == 80);
    assert_int_equal(shown(&rig, T + 60000).age, SIGNAL_STALE);
    (void)snprintf(hash, sizeof hash, "*4\r\n$5\r\ncap_w\r\n$3\r\n180\r\n$7\r\nrecv_ms\r\n$13\r\n%lld\r\n",
                   (long long)T - 1);
    assert_true(look(&rig, T + 70001).cap_w == 80);
    assert_int_equal(shown(&rig, T + 70001).rejected[SIGNAL_OLD], 1);
    (void)snprintf(hash, sizeof hash, "*4\r\n$5\r\ncap_w\r\n$3\r\n120\r\n$7\r\nrecv_ms\r\n$13\r\n%lld\r\n",
                   (long long)T + 80000);
    (void)look(&rig, T + 81000);
    assert_true(look(&rig, T + 81001).cap_w == 60);
    assert_int_equal(shown(&rig, T + 81001).age, SIGNAL_FRESH);
    rig_stop(&rig);
}

/* Without the right to listen it lives by the period; without an address or with half a secret it does not start. */
static void test_signal_redis_settings(void **state)
{
    (void)state;
    struct rig rig;
    struct error err = {""};
    void *feed;
    rig_start(&rig, CAP_160);
    rig.peer.deaf = true;
    assert_true(look(&rig, T).cap_w == 80);
    rig.peer.hash = CAP_120;
    rig.peer.says = true;
    assert_true(look(&rig, T + 9000).cap_w == 80);
    assert_true(look(&rig, T + 10001).cap_w == 60);
    rig.settings = (struct redis_settings){.url = NULL};
    assert_int_equal(redis_open(&rig.ear, &feed, &err), ST_INVAL);
    assert_non_null(strstr(err.message, "it needs --redis, or url="));
    assert_int_equal(signal_spec_read("redis:north,url=redis://h,secret_env=NO_SUCH_NAME", 0, &rig.spec, &err), ST_OK);
    assert_int_equal(redis_open(&rig.ear, &feed, &err), ST_INVAL);
    assert_non_null(strstr(err.message, "NO_SUCH_NAME"));
    assert_int_equal(signal_spec_read("redis:north,secret_file=/x", 0, &rig.spec, &err), ST_OK);
    assert_int_equal(redis_open(&rig.ear, &feed, &err), ST_INVAL);
    /* url= is another server: the ledger's password is not for it. */
    rig.settings = (struct redis_settings){.url = "redis://127.0.0.1:6379", .password = "secret"};
    assert_int_equal(signal_spec_read("redis:north,url=redis://h", 0, &rig.spec, &err), ST_OK);
    assert_int_equal(redis_open(&rig.ear, &feed, &err), ST_OK);
    assert_string_equal(((struct signal_redis *)feed)->target.password, "");
    redis_close(feed);
    rig_stop(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_signal_redis_follows), cmocka_unit_test(test_signal_redis_refuses),
        cmocka_unit_test(test_signal_redis_dead_writer), cmocka_unit_test(test_signal_redis_settings)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
