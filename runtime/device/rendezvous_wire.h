/* The frames of a rendezvous, and a connection that reads and writes them: rendezvous.c's own.
 *
 *   "MLRV", u8 kind, u8 version, u16 length, payload      little-endian
 *
 * Lengths are fixed for each kind, so nothing is allocated for what a stranger claims. Sockets do not block. */
#ifndef RUNTIME_DEVICE_RENDEZVOUS_WIRE_H
#define RUNTIME_DEVICE_RENDEZVOUS_WIRE_H

#include "runtime/device/rendezvous.h"

enum frame_kind { FRAME_HELLO = 1, FRAME_JOIN, FRAME_REFUSED, FRAME_START, FRAME_BEAT, FRAME_BYE, FRAME_LOST };

enum {
    FRAME_HEADER_BYTES = 8,
    NONCE_BYTES = 32,
    PROOF_BYTES = 32,
    VERSION_BYTES = 32,
    JOIN_PLAIN_BYTES = 4 + 4 + VERSION_BYTES + 32 + 32 + NONCE_BYTES,
    SIGNAL_PLAIN_BYTES = 8 + 4, /* number, process */
    FRAME_BYTES_MAX = FRAME_HEADER_BYTES + RENDEZVOUS_BLOB_BYTES + PROOF_BYTES + 64
};

enum refusal {
    REFUSED_SECRET = 1,
    REFUSED_VERSION,
    REFUSED_CONFIG,
    REFUSED_MODEL,
    REFUSED_COUNT,
    REFUSED_TAKEN,
    REFUSED_TIME
};

struct frame {
    enum frame_kind kind;
    size_t length;
    const uint8_t *payload; /* in the connection; valid until the next read */
};

struct connection {
    int fd; /* -1: none */
    uint32_t process;
    uint8_t in[FRAME_BYTES_MAX];
    size_t in_bytes, taken_bytes;
    uint8_t nonce[NONCE_BYTES], key[32]; /* ours for it; of the session */
    uint64_t number_in, number_out;      /* of signals */
    uint64_t since_ns, heard_ns;
};

size_t rendezvous_frame_length(uint32_t kind); /* of the payload; SIZE_MAX: no such kind */

/* ST_AGAIN: not whole yet. ST_IO: the other end is gone. ST_PROTO: no frame. */
NODISCARD enum status connection_read(struct connection *connection, struct frame *frame);
/* ST_IO: gone, or it takes nothing. */
NODISCARD enum status connection_write(struct connection *connection, enum frame_kind kind, const uint8_t *payload);
void connection_close(struct connection *connection);

/* The key of a session, from the secret and both nonces. */
void session_key(const void *secret, size_t secret_bytes, const uint8_t nonce_0[NONCE_BYTES],
                 const uint8_t nonce_p[NONCE_BYTES], uint8_t key[32]);
/* Proof of a frame's payload by the key of the session; from_0: which way it goes. */
void session_proof(const struct connection *connection, bool from_0, enum frame_kind kind, const uint8_t *plain,
                   size_t plain_bytes, uint8_t proof[PROOF_BYTES]);

/* BEAT, BYE, LOST: numbered and proven. */
NODISCARD enum status signal_write(struct connection *connection, bool from_0, enum frame_kind kind, uint32_t process);
/* ST_PROTO: not proven, or said before. */
NODISCARD enum status signal_check(struct connection *connection, bool from_0, const struct frame *frame,
                                   uint32_t *process);

void put_u32(uint8_t *to, uint32_t x);
uint32_t get_u32(const uint8_t *from);

#endif
