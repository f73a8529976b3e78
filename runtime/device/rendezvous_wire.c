/* See rendezvous_wire.h. */
#include "runtime/device/rendezvous_wire.h"

#include "runtime/base/check.h"
#include "runtime/base/hash.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { WIRE_VERSION = 1 };

static const uint8_t magic[4] = {'M', 'L', 'R', 'V'};

void put_u32(uint8_t *to, uint32_t x)
{
    for (int i = 0; i < 4; i++) to[i] = (uint8_t)(x >> 8 * i);
}

uint32_t get_u32(const uint8_t *from)
{
    return (uint32_t)from[0] | (uint32_t)from[1] << 8 | (uint32_t)from[2] << 16 | (uint32_t)from[3] << 24;
}

size_t rendezvous_frame_length(uint32_t kind)
{
    switch (kind) {
    case FRAME_HELLO: return NONCE_BYTES;
    case FRAME_JOIN: return JOIN_PLAIN_BYTES + PROOF_BYTES;
    case FRAME_REFUSED: return 4;
    case FRAME_START: return RENDEZVOUS_BLOB_BYTES + PROOF_BYTES;
    case FRAME_BEAT:
    case FRAME_BYE:
    case FRAME_LOST: return SIGNAL_PLAIN_BYTES + PROOF_BYTES;
    default: return SIZE_MAX;
    }
}

_Static_assert(FRAME_BYTES_MAX >= FRAME_HEADER_BYTES + JOIN_PLAIN_BYTES + PROOF_BYTES, "every frame fits");
_Static_assert(FRAME_BYTES_MAX >= FRAME_HEADER_BYTES + RENDEZVOUS_BLOB_BYTES + PROOF_BYTES, "every frame fits");

/* Reads up to `wanted` bytes of the frame in hand. ST_OK: they are there. */
static enum status fill(struct connection *c, size_t wanted)
{
    while (c->in_bytes < wanted) {
        ssize_t got = recv(c->fd, c->in + c->in_bytes, wanted - c->in_bytes, MSG_DONTWAIT);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return ST_AGAIN;
        if (got <= 0) return ST_IO;
        c->in_bytes += (size_t)got;
    }
    return ST_OK;
}

enum status connection_read(struct connection *c, struct frame *frame)
{
    if (c->fd < 0) return ST_IO;
    if (c->taken_bytes && c->taken_bytes == c->in_bytes)
        c->in_bytes = c->taken_bytes = 0; /* the last one is done with */
    TRY(fill(c, FRAME_HEADER_BYTES));
    uint32_t length = (uint32_t)c->in[6] | (uint32_t)c->in[7] << 8;
    if (memcmp(c->in, magic, sizeof magic) != 0 || c->in[5] != WIRE_VERSION ||
        length != rendezvous_frame_length(c->in[4]))
        return ST_PROTO;
    TRY(fill(c, FRAME_HEADER_BYTES + length));
    c->taken_bytes = c->in_bytes;
    *frame = (struct frame){(enum frame_kind)c->in[4], length, c->in + FRAME_HEADER_BYTES};
    return ST_OK;
}

/* A frame always fits into a socket's buffer, unless nobody has read for long. */
enum status connection_write(struct connection *c, enum frame_kind kind, const uint8_t *payload)
{
    uint8_t out[FRAME_BYTES_MAX];
    size_t length = rendezvous_frame_length(kind), sent = 0, all = FRAME_HEADER_BYTES + length;
    CHECK(all <= sizeof out && length < all);
    if (c->fd < 0) return ST_IO;
    memcpy(out, magic, sizeof magic);
    out[4] = (uint8_t)kind;
    out[5] = WIRE_VERSION;
    out[6] = (uint8_t)length;
    out[7] = (uint8_t)(length >> 8);
    memcpy(out + FRAME_HEADER_BYTES, payload, length);
    while (sent < all) {
        ssize_t n = send(c->fd, out + sent, all - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return ST_IO;
        sent += (size_t)n;
    }
    return ST_OK;
}

void connection_close(struct connection *c)
{
    if (c->fd >= 0) close(c->fd);
    c->fd = -1;
}

void session_key(const void *secret, size_t secret_bytes, const uint8_t nonce_0[NONCE_BYTES],
                 const uint8_t nonce_p[NONCE_BYTES], uint8_t key[32])
{
    static const char label[8] = "session";
    uint8_t text[sizeof label + 2 * NONCE_BYTES];
    memcpy(text, label, sizeof label);
    memcpy(text + sizeof label, nonce_0, NONCE_BYTES);
    memcpy(text + sizeof label + NONCE_BYTES, nonce_p, NONCE_BYTES);
    hmac_sha256(secret, secret_bytes, text, sizeof text, key);
}

void session_proof(const struct connection *c, bool from_0, enum frame_kind kind, const uint8_t *plain,
                   size_t plain_bytes, uint8_t proof[PROOF_BYTES])
{
    uint8_t text[2 + FRAME_BYTES_MAX];
    text[0] = from_0;
    text[1] = (uint8_t)kind;
    memcpy(text + 2, plain, plain_bytes);
    hmac_sha256(c->key, sizeof c->key, text, 2 + plain_bytes, proof);
}

enum status signal_write(struct connection *c, bool from_0, enum frame_kind kind, uint32_t process)
{
    uint8_t payload[SIGNAL_PLAIN_BYTES + PROOF_BYTES];
    c->number_out++;
    put_u32(payload, (uint32_t)c->number_out);
    put_u32(payload + 4, (uint32_t)(c->number_out >> 32));
    put_u32(payload + 8, process);
    session_proof(c, from_0, kind, payload, SIGNAL_PLAIN_BYTES, payload + SIGNAL_PLAIN_BYTES);
    return connection_write(c, kind, payload);
}

enum status signal_check(struct connection *c, bool from_0, const struct frame *frame, uint32_t *process)
{
    uint8_t proof[PROOF_BYTES];
    if (frame->kind < FRAME_BEAT) return ST_PROTO;
    session_proof(c, from_0, frame->kind, frame->payload, SIGNAL_PLAIN_BYTES, proof);
    if (!equal_constant_time(proof, frame->payload + SIGNAL_PLAIN_BYTES, PROOF_BYTES)) return ST_PROTO;
    uint64_t number = get_u32(frame->payload) | (uint64_t)get_u32(frame->payload + 4) << 32;
    if (number <= c->number_in) return ST_PROTO;
    c->number_in = number;
    *process = get_u32(frame->payload + 8);
    return ST_OK;
}
