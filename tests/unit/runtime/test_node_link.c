/* Frames between process 0 and others, over socket pairs: what is sent arrives, in order and once; what is cut,
 * changed, repeated, too long, from somebody else or never finished ends the link. */
#include "tests/unit/unit.h"

#include "runtime/base/clock.h"
#include "runtime/base/random.h"
#include "runtime/device/node_link.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>

enum { PEERS = 3, BYTES = 200000, HEAD = NODE_LINK_HEADER_BYTES + NODE_LINK_PROOF_BYTES };

struct ends {
    struct node_link *first, *others[PEERS];
};

static void pair(int fds[2])
{
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds), 0);
}

static struct node_link *make(bool first, struct node_link_peer *peers, uint32_t count, uint32_t take_ms)
{
    struct node_link *link = NULL;
    struct node_link_config config = {.first = first,
                                      .peers = peers,
                                      .peers_count = count,
                                      .out_bytes_max = first ? BYTES : 100,
                                      .in_bytes_max = first ? 100 : BYTES,
                                      .take_ms = take_ms};
    assert_int_equal(node_link_create(&config, &link), ST_OK);
    return link;
}

static void ends_make(struct ends *e, uint32_t take_ms)
{
    struct node_link_peer peers[PEERS];
    for (uint32_t i = 0; i < PEERS; i++) {
        int fds[2];
        pair(fds);
        peers[i] = (struct node_link_peer){.fd = fds[0], .key = {(uint8_t)(i + 1)}, .process = i + 1};
        struct node_link_peer other = {.fd = fds[1], .key = {(uint8_t)(i + 1)}};
        e->others[i] = make(false, &other, 1, take_ms);
    }
    e->first = make(true, peers, PEERS, take_ms);
}

static void ends_free(struct ends *e)
{
    node_link_destroy(e->first);
    for (uint32_t i = 0; i < PEERS; i++) node_link_destroy(e->others[i]);
}

static void post(struct node_link *link, uint8_t kind, uint8_t value, size_t length)
{
    uint8_t *payload;
    assert_int_equal(node_link_reserve(link, &payload), ST_OK);
    memset(payload, value, length);
    node_link_post(link, kind, length);
}

static void must_get(struct node_link *link, uint32_t peer, uint8_t kind, uint8_t value, size_t length)
{
    struct node_frame frame;
    enum status status = node_link_receive(link, peer, 60000, &frame);
    struct error why = {""};
    (void)node_link_is_lost(link, &why);
    if (status != ST_OK) fail_msg("%s: %s", status_name(status), why.message);
    assert_int_equal(frame.kind, kind);
    assert_int_equal(frame.length, length);
    for (size_t i = 0; i < length; i++) assert_int_equal(frame.payload[i], value);
}

static void must_lose(struct node_link *link, uint32_t peer, const char *word)
{
    struct node_frame frame;
    struct error why = {""};
    enum status status = ST_AGAIN;
    for (int i = 0; i < 3000 && status == ST_AGAIN; i++) status = node_link_receive(link, peer, 20, &frame);
    if (status != ST_DEVICE || !node_link_is_lost(link, &why) || !strstr(why.message, word))
        fail_msg("%s: \"%s\", expected \"%s\"", status_name(status), why.message, word);
    assert_int_equal(node_link_receive(link, peer, 0, &frame), ST_DEVICE);
}

static void test_node_link_carries_frames(void **state)
{
    (void)state;
    struct ends e;
    struct node_frame frame;
    ends_make(&e, 0);
    assert_int_equal(node_link_receive(e.others[0], 0, 0, &frame), ST_AGAIN);
    for (uint32_t round = 0; round < 20; round++) {
        size_t length = round % 5 == 4 ? BYTES : round * 37;
        for (uint32_t k = 0; k < NODE_LINK_FRAMES; k++) {
            if (length == BYTES && k) break; /* no socket takes so many: see below */
            post(e.first, (uint8_t)(1 + k), (uint8_t)(round + k), length);
        }
        for (uint32_t i = 0; i < PEERS; i++)
            for (uint32_t k = 0; k < (length == BYTES ? 1 : NODE_LINK_FRAMES); k++)
                must_get(e.others[i], 0, (uint8_t)(1 + k), (uint8_t)(round + k), length);
        for (uint32_t i = 0; i < PEERS; i++) {
            uint8_t text[100];
            memset(text, (int)(i + round), sizeof text);
            assert_int_equal(node_link_send(e.others[i], 7, text, round), ST_OK);
        }
        for (uint32_t i = 0; i < PEERS; i++) must_get(e.first, i, 7, (uint8_t)(i + round), round);
    }
    assert_int_equal(node_link_receive(e.first, 1, 0, &frame), ST_AGAIN);
    assert_false(node_link_is_lost(e.first, NULL));
    post(e.first, 9, 9, 9); /* on its way when the link is closed */
    node_link_destroy(e.first);
    for (uint32_t i = 0; i < PEERS; i++) must_get(e.others[i], 0, 9, 9, 9);
    must_lose(e.others[1], 0, "process 0 has ended");
    e.first = NULL;
    ends_free(&e);
}

static void test_node_link_loses_who_takes_nothing(void **state)
{
    (void)state;
    struct ends e;
    uint8_t *payload;
    struct error why = {""};
    uint64_t begin_ns = clock_now_ns(clock_system());
    ends_make(&e, 200);
    for (uint32_t k = 0; k < NODE_LINK_FRAMES; k++) post(e.first, 1, 1, BYTES);
    enum status status = ST_OK;
    for (int i = 0; i < 10 && status == ST_OK; i++) { /* waits for a place, then is told */
        status = node_link_reserve(e.first, &payload);
        if (status == ST_OK) node_link_post(e.first, 1, BYTES);
    }
    assert_int_equal(status, ST_DEVICE);
    assert_true(node_link_is_lost(e.first, &why));
    assert_non_null(strstr(why.message, "process 1 has not taken a frame within 200 ms"));
    assert_true(clock_now_ns(clock_system()) - begin_ns >= 200 * NS_PER_MS);
    ends_free(&e);
}

/* A frame as its writer made it, to be changed: bytes of the first of two frames, and of the second. */
static size_t written(uint8_t *bytes, size_t *first_bytes)
{
    int fds[2];
    pair(fds);
    struct node_link_peer peer = {.fd = fds[0], .key = {5}, .process = 1};
    struct node_link *link = make(true, &peer, 1, 0);
    post(link, 3, 0x41, 10);
    post(link, 4, 0x42, 20);
    size_t length = 0, all = 2 * HEAD + 30;
    while (length < all) {
        ssize_t n = recv(fds[1], bytes + length, all - length, 0);
        if (n > 0) length += (size_t)n;
        if (n <= 0) usleep(1000);
    }
    node_link_destroy(link);
    close(fds[1]);
    *first_bytes = HEAD + 10;
    return length;
}

/* What a reader makes of bytes: how many frames, and why it ended. */
static uint32_t read_bytes(const uint8_t *bytes, size_t length, bool close_after, struct error *why)
{
    int fds[2];
    uint32_t frames = 0;
    struct node_frame frame;
    pair(fds);
    struct node_link_peer peer = {.fd = fds[1], .key = {5}};
    struct node_link *link = make(false, &peer, 1, 30);
    assert_int_equal(send(fds[0], bytes, length, MSG_NOSIGNAL), (ssize_t)length);
    if (close_after) close(fds[0]);
    enum status status = ST_OK;
    for (int i = 0; i < 3000 && status != ST_DEVICE; i++) {
        status = node_link_receive(link, 0, close_after ? 1000 : 20, &frame);
        if (status == ST_OK) frames++;
        if (status == ST_AGAIN && !close_after && i > 20) break;
    }
    if (!node_link_is_lost(link, why)) why->message[0] = '\0';
    node_link_destroy(link);
    if (!close_after) close(fds[0]);
    return frames;
}

static void expect(const uint8_t *bytes, size_t length, uint32_t frames, const char *word)
{
    struct error why = {""};
    uint32_t got = read_bytes(bytes, length, true, &why);
    if (got != frames || !strstr(why.message, word))
        fail_msg("%u frames, then \"%s\"; expected %u and \"%s\"", got, why.message, frames, word);
}

static void test_node_link_takes_only_proven_frames(void **state)
{
    (void)state;
    uint8_t whole[512], bytes[512];
    size_t one, all = written(whole, &one);
    struct error why = {""};
    expect(whole, all, 2, "has ended");
    for (size_t i = 0; i < all; i++) { /* any byte */
        memcpy(bytes, whole, all);
        bytes[i] ^= (uint8_t)(1 << i % 8);
        uint32_t got = read_bytes(bytes, all, true, &why);
        if (got != (i < one ? 0 : 1)) fail_msg("byte %zu: %u frames", i, got);
        assert_non_null(strstr(why.message, "process 0 "));
    }
    expect(whole + one, all - one, 0, "left one out");
    memcpy(bytes, whole, one);
    memcpy(bytes + one, whole, one);
    expect(bytes, 2 * one, 1, "repeated");
    for (size_t i = 1; i < one; i += 7) expect(whole, i, 0, "has ended");
    assert_int_equal(read_bytes(whole, one - 1, false, &why), 0);
    assert_non_null(strstr(why.message, "rest of a frame"));
    memcpy(bytes, whole, one);
    bytes[8] = bytes[9] = bytes[10] = 0xff; /* 16 million bytes, more than are allowed */
    expect(bytes, one, 0, "talks nonsense");
}

/* Anything: no crash, no frame. */
static void test_node_link_survives_any_bytes(void **state)
{
    (void)state;
    uint64_t seed = 77;
    print_message("seed %llu\n", (unsigned long long)seed);
    uint8_t whole[512], bytes[512];
    size_t one, all = written(whole, &one);
    struct error why = {""};
    for (int round = 0; round < 3000; round++) {
        size_t length = 1 + (size_t)(random_next(&seed) % (all - 1));
        memcpy(bytes, whole, all);
        for (uint64_t k = random_next(&seed) % 12; k; k--)
            bytes[random_next(&seed) % length] = (uint8_t)random_next(&seed);
        if (round % 3 == 0)
            for (size_t i = 6; i < length; i++) bytes[i] = (uint8_t)random_next(&seed);
        uint32_t frames = read_bytes(bytes, length, true, &why);
        assert_true(frames <= 2 && why.message[0]);
        if (frames) assert_memory_equal(bytes, whole, one);
    }
}

/* The other way round, and with another peer's key: a frame of process 0 is none of a follower. */
static void test_node_link_knows_who_speaks(void **state)
{
    (void)state;
    uint8_t whole[512];
    size_t one, all = written(whole, &one);
    for (int other_key = 0; other_key < 2; other_key++) {
        int fds[2];
        pair(fds);
        struct node_link_peer peer = {.fd = fds[1], .key = {(uint8_t)(other_key ? 6 : 5)}, .process = 1};
        struct node_link *link = make(!other_key, &peer, 1, 0);
        assert_int_equal(send(fds[0], whole, all, 0), (ssize_t)all);
        must_lose(link, 0, "not proven");
        node_link_destroy(link);
        close(fds[0]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_node_link_carries_frames),
        cmocka_unit_test(test_node_link_loses_who_takes_nothing),
        cmocka_unit_test(test_node_link_takes_only_proven_frames),
        cmocka_unit_test(test_node_link_survives_any_bytes),
        cmocka_unit_test(test_node_link_knows_who_speaks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
