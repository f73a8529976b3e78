/* Where the processes of one model on several machines meet: one TCP connection of each to process 0, on a port that is
 * open only until all are there.
 *
 *   process 0                                    process p
 *     HELLO nonce ------------------------------->
 *     <-------- JOIN p, of how many, version, hashes, nonce, proof         proof = HMAC(secret, nonce of 0, all that)
 *     REFUSED why ------------------------------->                         or, when all are there:
 *     START 128 bytes, proof -------------------->                         proof by a key made of secret and both
 * nonces
 *     <------- BEAT each second, both ways, numbered and proven ------->   until BYE, or LOST
 *
 * The secret itself never travels, nothing can be played back, and each side knows that the other has it. What is said
 * is not hidden: hashes and the id of a communicator are no secrets to who can see the network, but NCCL's own
 * connections, which follow, are not authenticated either; so all of it belongs on a private network.
 *
 * V1. Whoever has not proven the secret is given a few hundred bytes and RENDEZVOUS_JOIN_MS at most, and holds up
 *     nobody: there is room for RENDEZVOUS_STRANGERS_MAX, and the oldest gives way.
 * V2. A process that ends, or says nothing for lost_ms, is lost: on_lost is called once, everywhere, since process 0
 *     tells the others. A BYE is no loss but an end.
 * V3. Every wait has an end: join_ns for all to be there. Messages say who is missing, or what differs.
 * V4. With `channels` every process comes a second time in the same way, at the same port, and leaves a connection for
 *     whatever else is to be said (node_link.h); both ends have proven themselves as for the first. */
#ifndef RUNTIME_DEVICE_RENDEZVOUS_H
#define RUNTIME_DEVICE_RENDEZVOUS_H

#include "runtime/base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    RENDEZVOUS_BLOB_BYTES = 128, /* an ncclUniqueId */
    RENDEZVOUS_SECRET_BYTES_MIN = 16,
    RENDEZVOUS_STRANGERS_MAX = 32,
    RENDEZVOUS_JOIN_MS = 5000
};

struct rendezvous_config {
    uint32_t process, processes; /* 2 or more */
    const char *address;         /* of process 0; there: a loopback address is bound itself, for others all are */
    uint16_t port;
    const void *secret;
    size_t secret_bytes;
    const char *version;                          /* at most 31 bytes */
    uint8_t config_hash[32], model_hash[32];      /* must be the same everywhere */
    uint64_t join_ns;                             /* 0: 120 s */
    uint32_t beat_ms, lost_ms;                    /* 0: 1000, 5000 */
    void (*on_end)(void *state, const char *why); /* the beat thread, once: lost, or goodbye; NULL: none */
    void *state;
    bool channels; /* V4 */
};

enum rendezvous_state { RENDEZVOUS_RUNS, RENDEZVOUS_OVER /* somebody has said goodbye */, RENDEZVOUS_LOST };

struct rendezvous;

/* Waits for all. blob: process 0's is what the others get. ST_TIMEOUT: not all came, or nobody answered; ST_INVAL: what
 * differs, or the settings; ST_IO: the port, or the connection; ST_NOMEM. err is one line. */
NODISCARD enum status rendezvous_open(const struct rendezvous_config *config, uint8_t blob[RENDEZVOUS_BLOB_BYTES],
                                      struct rendezvous **rendezvous, struct error *err);
/* why: who and what, where it does not run. Any thread. */
enum rendezvous_state rendezvous_state(struct rendezvous *rendezvous, struct error *why);
/* V4, once for each: the socket, which becomes the caller's, and the key that both ends have for it alone. idx: of
 * process 0's, from process idx + 1; elsewhere 0. */
void rendezvous_take_channel(struct rendezvous *rendezvous, uint32_t idx, int *fd, uint8_t key[32]);
/* Says goodbye. NULL is fine. Not from on_end. */
void rendezvous_close(struct rendezvous *rendezvous);
/* The same without a word: the others lose this process. */
void rendezvous_abandon(struct rendezvous *rendezvous);

#endif
