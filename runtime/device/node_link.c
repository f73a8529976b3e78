/* See node_link.h. */
#include "runtime/device/node_link.h"

#include "runtime/base/check.h"
#include "runtime/base/clock.h"
#include "runtime/base/hash.h"
#include "runtime/base/mem.h"
#include "runtime/base/thread.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
    WIRE_VERSION = 1,
    TURN_MS = 50,
    LAST_MS = 500 /* for what is not written when the link is closed */,
    HEAD_BYTES = NODE_LINK_HEADER_BYTES + NODE_LINK_PROOF_BYTES,
    DIGEST_BYTES = 32
};

static const uint8_t magic[4] = {'M', 'L', 'N', 'F'};

struct peer {
    struct node_link_peer end;
    uint64_t number_out, number_in;
    uint8_t head[HEAD_BYTES];
    size_t in_bytes; /* of the frame in hand: head, then payload */
    uint8_t *payload;
    uint64_t begun_ns; /* when its first byte came */
};

struct slot {
    uint8_t kind;
    size_t length;
    uint8_t *payload;
};

struct node_link {
    struct node_link_config config;
    struct peer *peers;
    struct slot slots[NODE_LINK_FRAMES]; /* others than process 0: none */
    pthread_t thread;
    bool threaded;

    pthread_mutex_t mutex; /* guards what follows */
    pthread_cond_t changed;
    uint64_t posted, written;
    bool closing, lost;
    struct error why;
};

static uint64_t now_ns(void)
{
    return clock_now_ns(clock_system());
}

/* The first reason stays. */
static enum status lose(struct node_link *l, const struct peer *peer, const char *format, ...) PRINTF_LIKE(3, 4);
static enum status lose(struct node_link *l, const struct peer *peer, const char *format, ...)
{
    char text[120];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    pthread_mutex_lock(&l->mutex);
    if (!l->lost) (void)error_set(&l->why, ST_DEVICE, "process %" PRIu32 " %s", peer->end.process, text);
    l->lost = true;
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->mutex);
    return ST_DEVICE;
}

bool node_link_is_lost(struct node_link *l, struct error *why)
{
    pthread_mutex_lock(&l->mutex);
    bool lost = l->lost;
    if (lost && why) *why = l->why;
    pthread_mutex_unlock(&l->mutex);
    return lost;
}

/* ---- frames ---- */

static void put(uint8_t *to, uint64_t x, int bytes)
{
    for (int i = 0; i < bytes; i++) to[i] = (uint8_t)(x >> 8 * i);
}

static uint64_t get(const uint8_t *from, int bytes)
{
    uint64_t x = 0;
    for (int i = 0; i < bytes; i++) x |= (uint64_t)from[i] << 8 * i;
    return x;
}

static void prove(const struct peer *peer, bool from_first, const uint8_t header[NODE_LINK_HEADER_BYTES],
                  const uint8_t digest[DIGEST_BYTES], uint8_t proof[NODE_LINK_PROOF_BYTES])
{
    uint8_t text[1 + NODE_LINK_HEADER_BYTES + DIGEST_BYTES];
    text[0] = from_first;
    memcpy(text + 1, header, NODE_LINK_HEADER_BYTES);
    memcpy(text + 1 + NODE_LINK_HEADER_BYTES, digest, DIGEST_BYTES);
    hmac_sha256(peer->end.key, sizeof peer->end.key, text, sizeof text, proof);
}

/* ---- writing ---- */

static uint32_t patience_ms(struct node_link *l)
{
    pthread_mutex_lock(&l->mutex);
    uint32_t ms = l->closing && l->config.take_ms > LAST_MS ? LAST_MS : l->config.take_ms;
    pthread_mutex_unlock(&l->mutex);
    return ms;
}

/* All bytes of head and payload, within the time. */
static enum status write_all(struct node_link *l, struct peer *peer, uint8_t *head, const uint8_t *payload,
                             size_t length)
{
    size_t sent = 0, all = HEAD_BYTES + length;
    uint64_t begin_ns = now_ns();
    while (sent < all) {
        size_t of_payload = sent > HEAD_BYTES ? sent - HEAD_BYTES : 0;
        struct iovec parts[2] = {
            {head + (sent < HEAD_BYTES ? sent : HEAD_BYTES), sent < HEAD_BYTES ? HEAD_BYTES - sent : 0},
            {(void *)(uintptr_t)(payload + of_payload), length - of_payload}};
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
        ssize_t n = sendmsg(peer->end.fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n > 0) {
            sent += (size_t)n;
            continue;
        }
        if (n < 0 && errno != EINTR && errno != EAGAIN && errno != EWOULDBLOCK) return lose(l, peer, "has ended");
        uint32_t take_ms = patience_ms(l);
        uint64_t passed_ms = (now_ns() - begin_ns) / NS_PER_MS;
        if (passed_ms >= take_ms) return lose(l, peer, "has not taken a frame within %" PRIu32 " ms", take_ms);
        struct pollfd at = {peer->end.fd, POLLOUT, 0};
        (void)poll(&at, 1, (int)(take_ms - passed_ms < TURN_MS ? take_ms - passed_ms : TURN_MS));
    }
    return ST_OK;
}

static enum status write_frame(struct node_link *l, struct peer *peer, uint8_t kind, const uint8_t *payload,
                               size_t length, const uint8_t digest[DIGEST_BYTES])
{
    uint8_t head[HEAD_BYTES] = {0};
    memcpy(head, magic, sizeof magic);
    head[4] = WIRE_VERSION;
    head[5] = kind;
    put(head + 8, length, 4);
    put(head + 12, ++peer->number_out, 8);
    prove(peer, l->config.first, head, digest, head + NODE_LINK_HEADER_BYTES);
    return write_all(l, peer, head, payload, length);
}

static void *write_main(void *state)
{
    struct node_link *l = state;
    pthread_mutex_lock(&l->mutex);
    for (;;) {
        while (!l->lost && !l->closing && l->written == l->posted) pthread_cond_wait(&l->changed, &l->mutex);
        if (l->lost || l->written == l->posted) break;
        struct slot *slot = &l->slots[l->written % NODE_LINK_FRAMES];
        pthread_mutex_unlock(&l->mutex);
        uint8_t digest[DIGEST_BYTES];
        enum status status = ST_OK;
        sha256(slot->payload, slot->length, digest);
        for (uint32_t i = 0; i < l->config.peers_count && status == ST_OK; i++)
            status = write_frame(l, &l->peers[i], slot->kind, slot->payload, slot->length, digest);
        pthread_mutex_lock(&l->mutex);
        l->written++;
        pthread_cond_broadcast(&l->changed);
    }
    pthread_mutex_unlock(&l->mutex);
    return NULL;
}

enum status node_link_reserve(struct node_link *l, uint8_t **payload)
{
    CHECK(l->config.first);
    pthread_mutex_lock(&l->mutex);
    while (!l->lost && l->posted - l->written == NODE_LINK_FRAMES) pthread_cond_wait(&l->changed, &l->mutex); /* N2 */
    bool lost = l->lost;
    *payload = l->slots[l->posted % NODE_LINK_FRAMES].payload;
    pthread_mutex_unlock(&l->mutex);
    return lost ? ST_DEVICE : ST_OK;
}

void node_link_post(struct node_link *l, uint8_t kind, size_t length)
{
    CHECK(l->config.first && length <= l->config.out_bytes_max);
    pthread_mutex_lock(&l->mutex);
    CHECK(l->posted - l->written < NODE_LINK_FRAMES);
    struct slot *slot = &l->slots[l->posted++ % NODE_LINK_FRAMES];
    slot->kind = kind;
    slot->length = length;
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->mutex);
}

enum status node_link_send(struct node_link *l, uint8_t kind, const void *payload, size_t length)
{
    CHECK(!l->config.first && length <= l->config.out_bytes_max);
    uint8_t digest[DIGEST_BYTES];
    if (node_link_is_lost(l, NULL)) return ST_DEVICE;
    sha256(payload, length, digest);
    return write_frame(l, &l->peers[0], kind, payload, length, digest);
}

/* ---- reading ---- */

/* Up to `wanted` bytes of the frame in hand, those from `base` on into `to`. */
static enum status fill(struct node_link *l, struct peer *peer, size_t base, uint8_t *to, size_t wanted)
{
    while (peer->in_bytes < base + wanted) {
        size_t at = peer->in_bytes - base;
        ssize_t got = recv(peer->end.fd, to + at, wanted - at, MSG_DONTWAIT);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return ST_AGAIN;
        if (got <= 0) return lose(l, peer, "has ended");
        if (peer->in_bytes == 0) peer->begun_ns = now_ns();
        peer->in_bytes += (size_t)got;
    }
    return ST_OK;
}

/* What is there now. ST_AGAIN: no whole frame. */
static enum status read_frame(struct node_link *l, struct peer *peer, struct node_frame *frame)
{
    uint8_t digest[DIGEST_BYTES], proof[NODE_LINK_PROOF_BYTES];
    TRY(fill(l, peer, 0, peer->head, HEAD_BYTES));
    const uint8_t *head = peer->head;
    size_t length = (size_t)get(head + 8, 4);
    if (memcmp(head, magic, sizeof magic) != 0 || head[4] != WIRE_VERSION || head[6] || head[7] ||
        length > l->config.in_bytes_max)
        return lose(l, peer, "talks nonsense");
    TRY(fill(l, peer, HEAD_BYTES, peer->payload, length));
    peer->in_bytes = 0;
    sha256(peer->payload, length, digest);
    prove(peer, !l->config.first, head, digest, proof);
    if (!equal_constant_time(proof, head + NODE_LINK_HEADER_BYTES, sizeof proof))
        return lose(l, peer, "has not proven a frame");
    if (get(head + 12, 8) != peer->number_in + 1) return lose(l, peer, "has repeated a frame, or left one out");
    peer->number_in++;
    *frame = (struct node_frame){head[5], length, peer->payload};
    return ST_OK;
}

enum status node_link_receive(struct node_link *l, uint32_t idx, uint32_t wait_ms, struct node_frame *frame)
{
    CHECK(idx < l->config.peers_count);
    struct peer *peer = &l->peers[idx];
    uint64_t begin_ns = now_ns();
    for (;;) {
        if (node_link_is_lost(l, NULL)) return ST_DEVICE;
        enum status status = read_frame(l, peer, frame);
        if (status != ST_AGAIN) return status;
        uint64_t now = now_ns(), passed_ms = (now - begin_ns) / NS_PER_MS;
        if (peer->in_bytes && now - peer->begun_ns > l->config.take_ms * NS_PER_MS)
            return lose(l, peer, "has not sent the rest of a frame within %" PRIu32 " ms", l->config.take_ms);
        if (passed_ms >= wait_ms) return ST_AGAIN;
        struct pollfd at = {peer->end.fd, POLLIN, 0};
        (void)poll(&at, 1, (int)(wait_ms - passed_ms < TURN_MS ? wait_ms - passed_ms : TURN_MS));
    }
}

/* ---- life ---- */

static enum status take_memory(struct node_link *l)
{
    const struct node_link_config *c = &l->config;
    l->peers = mem_alloc(c->peers_count, sizeof *l->peers);
    if (!l->peers) return ST_NOMEM;
    for (uint32_t i = 0; i < c->peers_count; i++) l->peers[i].end = c->peers[i];
    for (uint32_t i = 0; i < c->peers_count; i++)
        if (!(l->peers[i].payload = mem_map(c->in_bytes_max))) return ST_NOMEM;
    for (uint32_t i = 0; c->first && i < NODE_LINK_FRAMES; i++)
        if (!(l->slots[i].payload = mem_map(c->out_bytes_max))) return ST_NOMEM;
    return ST_OK;
}

static enum status start_thread(struct node_link *l)
{
    enum status status = thread_start(&l->thread, write_main, l);
    l->threaded = status == ST_OK;
    return status;
}

enum status node_link_create(const struct node_link_config *config, struct node_link **link)
{
    CHECK(config->peers_count && (config->first || config->peers_count == 1));
    CHECK(config->in_bytes_max && config->out_bytes_max && config->out_bytes_max <= UINT32_MAX);
    struct node_link *l = mem_alloc(1, sizeof *l);
    enum status status = ST_NOMEM;
    if (l) {
        l->config = *config;
        if (!l->config.take_ms) l->config.take_ms = NODE_LINK_TAKE_MS;
        pthread_mutex_init(&l->mutex, NULL);
        pthread_cond_init(&l->changed, NULL);
        status = take_memory(l);
        l->config.peers = NULL; /* the caller's */
        if (status == ST_OK && config->first) status = start_thread(l);
    }
    if (status == ST_OK) {
        *link = l;
        return ST_OK;
    }
    if (!l || !l->peers)
        for (uint32_t i = 0; i < config->peers_count; i++) close(config->peers[i].fd);
    node_link_destroy(l);
    return status;
}

void node_link_destroy(struct node_link *l)
{
    if (!l) return;
    pthread_mutex_lock(&l->mutex);
    l->closing = true;
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->mutex);
    if (l->threaded) pthread_join(l->thread, NULL);
    for (uint32_t i = 0; l->peers && i < l->config.peers_count; i++) {
        close(l->peers[i].end.fd);
        if (l->peers[i].payload) mem_unmap(l->peers[i].payload, l->config.in_bytes_max);
    }
    for (uint32_t i = 0; i < NODE_LINK_FRAMES; i++)
        if (l->slots[i].payload) mem_unmap(l->slots[i].payload, l->config.out_bytes_max);
    mem_free(l->peers);
    pthread_cond_destroy(&l->changed);
    pthread_mutex_destroy(&l->mutex);
    mem_free(l);
}
