/* Frames of any length between process 0 and the other processes of a device over several machines, on the channels of
 * a rendezvous (rendezvous.h, V4).
 *
 *   "MLNF", u8 version, u8 kind, u16 0, u32 length, u64 number, proof, payload            little-endian
 *   proof = HMAC(key of the channel, way, all before it, SHA-256 of the payload)
 *
 *   process 0       post -> ring -> a thread that writes each frame to every other process
 *   any             receive: what has come whole; the others send by themselves
 *
 * N1. A frame is taken only whole, proven, of the length allowed here and with the next number; anything else ends the
 *     link, for good. Nothing is taken from memory for what the other end claims.
 * N2. Whoever posts waits only when NODE_LINK_FRAMES frames are not yet written; whoever writes or reads gives the
 * other end take_ms for a frame. After that it is lost. N3. The payload is hashed once for all; what differs for each
 * process is an HMAC over some 60 bytes.
 *
 * Process 0: post and receive by one thread at a time, the writing thread is the link's own. Others: one thread. */
#ifndef RUNTIME_DEVICE_NODE_LINK_H
#define RUNTIME_DEVICE_NODE_LINK_H

#include "runtime/base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { NODE_LINK_FRAMES = 4, NODE_LINK_TAKE_MS = 5000, NODE_LINK_HEADER_BYTES = 20, NODE_LINK_PROOF_BYTES = 32 };

struct node_link_peer {
    int fd; /* a stream socket; the link's from create on, also when that fails */
    uint8_t key[32];
    uint32_t process; /* for messages */
};

struct node_link_config {
    bool first; /* this is process 0 */
    struct node_link_peer *peers;
    uint32_t peers_count;
    size_t out_bytes_max, in_bytes_max; /* of a payload */
    uint32_t take_ms;                   /* 0: NODE_LINK_TAKE_MS */
};

struct node_frame {
    uint8_t kind;
    size_t length;
    const uint8_t *payload; /* until the next receive from the same peer */
};

struct node_link;

/* ST_NOMEM, ST_LIMIT: no thread. */
NODISCARD enum status node_link_create(const struct node_link_config *config, struct node_link **link);
/* Process 0: frames that are posted and not written get half a second more. NULL is fine. */
void node_link_destroy(struct node_link *link);

/* Process 0: where the next frame's payload is to be written, out_bytes_max bytes; and that it is there, for all peers.
 * ST_DEVICE: the link is lost. */
NODISCARD enum status node_link_reserve(struct node_link *link, uint8_t **payload);
void node_link_post(struct node_link *link, uint8_t kind, size_t length);

/* Not process 0: writes a frame of at most out_bytes_max and returns when it is on its way. ST_DEVICE: lost. */
NODISCARD enum status node_link_send(struct node_link *link, uint8_t kind, const void *payload, size_t length);

/* The next frame of a peer (elsewhere than in process 0: of peer 0), waited for up to wait_ms. ST_AGAIN: none yet.
 * ST_DEVICE: lost. */
NODISCARD enum status node_link_receive(struct node_link *link, uint32_t peer, uint32_t wait_ms,
                                        struct node_frame *frame);

/* Is it lost, and why? Any thread. */
bool node_link_is_lost(struct node_link *link, struct error *why);

#endif
