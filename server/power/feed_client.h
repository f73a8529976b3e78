/* How a provider over HTTP is asked: one at a time, within a time, with a token where it wants one, and ever less often
 * while it fails.
 *
 *   begin --> run (token? fetch it) --401--> fetch another, run again once --> end: how long to wait
 *
 * F1. A look takes at most FEED_LOOK_MS, whatever the server does (http_call.h: no redirects, verified TLS, a limit on
 *     the answer), and ends within about a second of *stop.
 * F2. Waits: the period; after n failures a random half to whole of period x 2^n, at most FEED_BACKOFF_MS_MAX or the
 *     period; never less than Retry-After, up to FEED_RETRY_AFTER_S_MAX.
 * F3. A secret comes from the environment or a file, is sent to the server named and is part of no message. It is read
 *     again after the server has refused it.
 * F4. A token is fetched again before it ends (a tenth of its life, at most a minute) and after a 401, once a look.
 *
 * One thread. The clock is given, randomness is random_fill. */
#ifndef SERVER_POWER_FEED_CLIENT_H
#define SERVER_POWER_FEED_CLIENT_H

#include "runtime/base/clock.h"
#include "server/http_call.h"
#include "server/power/signal.h"

enum {
    FEED_LOOK_MS = 5000,
    FEED_BACKOFF_MS_MAX = 300000,
    FEED_RETRY_AFTER_S_MAX = 3600,
    FEED_SECRET_CHARS_MAX = 4096,
    FEED_TOKEN_S = 1800 /* a token whose life is not told: WattTime's is half an hour */
};

enum feed_auth {
    FEED_AUTH_NONE,
    FEED_AUTH_HEADER, /* auth-token: SECRET */
    FEED_AUTH_BEARER, /* Authorization: Bearer SECRET */
    FEED_AUTH_LOGIN,  /* GET token_url as user and SECRET gives {"token"}, sent as bearer */
    FEED_AUTH_OAUTH   /* POST token_url, client credentials (RFC 6749, 4.4), gives {"access_token"} */
};

struct feed_client_config {
    enum feed_auth auth;
    const char *secret_env, *secret_file; /* a variable's name, or a path; "" or NULL: not given */
    const char *url;                      /* of the server; only to warn of a secret that would travel in the clear */
    const char *user, *token_url, *scope;
    const char *ca_file; /* "" or NULL: the system's */
    uint32_t period_ms;
    uint32_t look_ms; /* 0: FEED_LOOK_MS */
    const struct clock *clock;
    const _Atomic bool *stop;
};

struct feed_client {
    struct feed_client_config config; /* strings borrowed */
    struct http_call call;
    struct buf answer, form;
    char secret[FEED_SECRET_CHARS_MAX + 1], token[FEED_SECRET_CHARS_MAX + 1];
    uint64_t token_until_ns, deadline_ns;
    uint64_t random;
    uint32_t failures, tokens; /* failures one after another; tokens fetched */
    int64_t retry_after_s;
};

/* ST_INVAL: what is configured does not fit together, or the secret is not there; ST_NOMEM. */
NODISCARD enum status feed_client_open(struct feed_client *client, const struct feed_client_config *config,
                                       struct error *err);
void feed_client_close(struct feed_client *client);

void feed_client_begin(struct feed_client *client);
/* GET, or POST of body. Into client->answer; *http_status 200 .. 299, or 304 where an ETag was sent. Else *why says
 * what it counts as: ST_CANCELED, ST_TIMEOUT, ST_LIMIT, ST_IO, ST_INVAL (err, one line without secrets). */
NODISCARD enum status feed_client_run(struct feed_client *client, const char *base, const char *path, const char *body,
                                      int *http_status, enum signal_why *why, struct error *err);
/* How many milliseconds to wait now (F2). */
uint32_t feed_client_end(struct feed_client *client, bool good);

/* Pure. uniform: [0, 1). */
uint32_t feed_wait_ms(uint32_t period_ms, uint32_t failures, int64_t retry_after_s, double uniform);
/* A token's document: token gets up to FEED_SECRET_CHARS_MAX characters. ST_INVAL: it is none (err, without it);
 * ST_LIMIT; ST_NOMEM. */
NODISCARD enum status feed_read_token(const char *text, size_t length, char token[FEED_SECRET_CHARS_MAX + 1],
                                      uint32_t *life_s, struct error *err);
/* "http[s]://host[:port]" and the rest of it. ST_INVAL: another scheme, or a name and password in it. */
NODISCARD enum status feed_split_url(const char *url, char *base, size_t base_bytes, const char **path,
                                     struct error *err);

#endif
