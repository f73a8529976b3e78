/* A server of HTTP on the loopback for tests of clients: a thread that reads one request at a time and lets a function
 * of the test answer it, also wrongly, slowly or never. Each answer ends its connection. */
#ifndef TESTS_SUPPORT_HTTP_STUB_H
#define TESTS_SUPPORT_HTTP_STUB_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct http_stub_request {
    char method[8], path[512]; /* path with its query */
    char head[8192];           /* the header lines, NUL-terminated */
    char body[8192];
};

struct http_stub {
    char url[64]; /* "http://127.0.0.1:port" */
    atomic_bool stop;
    atomic_uint requests;
    void (*answer)(void *state, const struct http_stub_request *request, int fd);
    void *state;
    pthread_mutex_t lock; /* held while an answer is given */
    int listener;
    pthread_t thread;
};

bool http_stub_start(struct http_stub *stub,
                     void (*answer)(void *state, const struct http_stub_request *request, int fd), void *state);
void http_stub_stop(struct http_stub *stub);
/* What a test wrote before is seen by answers after, and the other way round. */
void http_stub_sync(struct http_stub *stub);

/* For the answering function. headers: whole lines with \r\n, or "". */
void http_stub_reply(int fd, int status, const char *headers, const char *body);
/* false: the client has gone. */
bool http_stub_write(int fd, const void *data, size_t length);
/* The value of a header of the request into value, "" without. name with its colon: "ETag:". */
void http_stub_header(const struct http_stub_request *request, const char *name, char *value, size_t value_bytes);

#endif
