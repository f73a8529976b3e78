/* See http_stub.h. */
#include "tests/support/http_stub.h"

#include <arpa/inet.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

bool http_stub_write(int fd, const void *data, size_t length)
{
    const char *at = data;
    while (length > 0) {
        ssize_t done = send(fd, at, length, MSG_NOSIGNAL);
        if (done <= 0) return false;
        at += done;
        length -= (size_t)done;
    }
    return true;
}

void http_stub_reply(int fd, int status, const char *headers, const char *body)
{
    char head[1024];
    int length = snprintf(head, sizeof head, "HTTP/1.1 %d Said\r\nContent-Length: %zu\r\nConnection: close\r\n%s\r\n",
                          status, strlen(body), headers);
    if (http_stub_write(fd, head, (size_t)length)) (void)http_stub_write(fd, body, strlen(body));
}

void http_stub_header(const struct http_stub_request *request, const char *name, char *value, size_t value_bytes)
{
    value[0] = '\0';
    for (const char *line = request->head; line; line = strstr(line, "\r\n")) {
        if (line != request->head) line += 2;
        if (strncasecmp(line, name, strlen(name)) != 0) continue;
        line += strlen(name);
        line += strspn(line, " ");
        (void)snprintf(value, value_bytes, "%.*s", (int)strcspn(line, "\r\n"), line);
        return;
    }
}

/* False: the client sent less than a request, or more than fits. */
static bool read_request(const struct http_stub *stub, int fd, struct http_stub_request *request)
{
    static const char end[] = "\r\n\r\n";
    char length_text[32];
    size_t have = 0, body_length = 0;
    char *head_end = NULL, *all = request->head;
    memset(request, 0, sizeof *request);
    while (!head_end || have < (size_t)(head_end - all) + 4 + body_length) {
        struct pollfd ready = {.fd = fd, .events = POLLIN};
        if (atomic_load(&stub->stop)) return false;
        if (poll(&ready, 1, 50) <= 0) continue;
        ssize_t got = recv(fd, all + have, sizeof request->head - 1 - have, 0);
        if (got <= 0) return false;
        have += (size_t)got;
        if (head_end) continue;
        head_end = strstr(all, end);
        http_stub_header(request, "Content-Length:", length_text, sizeof length_text);
        if (head_end) body_length = strtoul(length_text, NULL, 10);
    }
    memcpy(request->body, head_end + 4, body_length);
    head_end[2] = '\0';
    return sscanf(all, "%7s %511s", request->method, request->path) == 2;
}

static void *stub_thread(void *state)
{
    struct http_stub *stub = state;
    static _Thread_local struct http_stub_request request;
    while (!atomic_load(&stub->stop)) {
        struct pollfd ready = {.fd = stub->listener, .events = POLLIN};
        if (poll(&ready, 1, 20) <= 0) continue;
        int fd = accept(stub->listener, NULL, NULL);
        if (fd < 0) continue;
        if (read_request(stub, fd, &request)) {
            atomic_fetch_add(&stub->requests, 1);
            pthread_mutex_lock(&stub->lock);
            stub->answer(stub->state, &request, fd);
            pthread_mutex_unlock(&stub->lock);
        }
        close(fd);
    }
    return NULL;
}

bool http_stub_start(struct http_stub *stub,
                     void (*answer)(void *state, const struct http_stub_request *request, int fd), void *state)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof at;
    memset(stub, 0, sizeof *stub);
    (void)pthread_mutex_init(&stub->lock, NULL);
    stub->answer = answer;
    stub->state = state;
    stub->listener = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(stub->listener, (struct sockaddr *)&at, length) || listen(stub->listener, 16) ||
        getsockname(stub->listener, (struct sockaddr *)&at, &length))
        return false;
    (void)snprintf(stub->url, sizeof stub->url, "http://127.0.0.1:%u", ntohs(at.sin_port));
    return pthread_create(&stub->thread, NULL, stub_thread, stub) == 0;
}

void http_stub_stop(struct http_stub *stub)
{
    atomic_store(&stub->stop, true);
    pthread_join(stub->thread, NULL);
    close(stub->listener);
    pthread_mutex_destroy(&stub->lock);
}

void http_stub_sync(struct http_stub *stub)
{
    pthread_mutex_lock(&stub->lock);
    pthread_mutex_unlock(&stub->lock);
}
