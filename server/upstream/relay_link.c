/* See relay_link.h.
 *
 *   uv_poll, timer -> curl_multi_socket_action -> on_bytes: into call->in -> deliver: bytes, ended -> who reads
 *
 * libcurl may not be called from inside its callbacks, so these only keep what came; it is told when libcurl is done.
 */
#include "server/upstream/relay_link.h"

#include "runtime/base/check.h"
#include "runtime/base/mem.h"

#include <curl/curl.h>
#include <string.h>

enum { CONNECT_MS_MAX = 10000, KEPT_CONNECTIONS = 64 };

struct relay_call {
    struct relay_link *link;
    struct relay_call *previous, *next;
    struct relay_wish wish;
    CURL *curl;
    struct curl_slist *headers;
    struct buf in; /* what came and was not told yet */
    bool paused, resumes, over;
    CURLcode code; /* over */
};

struct relay_link {
    CURLM *multi;
    uv_loop_t *loop;
    uv_timer_t timer;  /* libcurl's */
    uv_timer_t resume; /* calls that are to go on */
    struct relay_call *calls;
};

struct watched {
    uv_poll_t poll;
    struct relay_link *link;
    curl_socket_t socket;
};

static void call_free(struct relay_call *call)
{
    struct relay_link *link = call->link;
    if (call->previous)
        call->previous->next = call->next;
    else
        link->calls = call->next;
    if (call->next) call->next->previous = call->previous;
    if (call->curl) {
        (void)curl_multi_remove_handle(link->multi, call->curl);
        curl_easy_cleanup(call->curl);
    }
    for (struct curl_slist *line = call->headers; line; line = line->next) memset(line->data, 0, strlen(line->data));
    curl_slist_free_all(call->headers);
    buf_free(&call->in);
    mem_free(call);
}

static int status_of(const struct relay_call *call)
{
    long http_status = 0;
    (void)curl_easy_getinfo(call->curl, CURLINFO_RESPONSE_CODE, &http_status);
    return (int)http_status;
}

static void tell_end(struct relay_call *call)
{
    struct relay_wish wish = call->wish;
    int http_status = status_of(call);
    curl_off_t retry_after_s = 0;
    (void)curl_easy_getinfo(call->curl, CURLINFO_RETRY_AFTER, &retry_after_s);
    enum relay_end end = call->code == CURLE_OK                   ? RELAY_ENDED
                         : call->code == CURLE_OPERATION_TIMEDOUT ? RELAY_TIMEOUT
                         : http_status                            ? RELAY_BROKEN
                                                                  : RELAY_UNREACHABLE;
    call_free(call);
    wish.ended(wish.state, end, http_status, retry_after_s);
}

/* One call that has news; false: none. What is told may change the list, so it is walked anew each time. */
static bool deliver_one(struct relay_link *link)
{
    for (struct relay_call *call = link->calls; call; call = call->next) {
        if (call->in.length > 0) {
            struct buf in = call->in;
            buf_init(&call->in, 0);
            call->wish.bytes(call->wish.state, status_of(call), in.data, in.length);
            buf_free(&in);
            return true;
        }
        if (!call->over) continue;
        tell_end(call);
        return true;
    }
    return false;
}

static void deliver(struct relay_link *link)
{
    CURLMsg *message;
    int left;
    while ((message = curl_multi_info_read(link->multi, &left))) {
        struct relay_call *call = NULL;
        if (message->msg != CURLMSG_DONE) continue;
        (void)curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, (char **)&call);
        call->over = true;
        call->code = message->data.result;
    }
    while (deliver_one(link)) continue;
}

static size_t on_bytes(char *data, size_t size, size_t count, void *state)
{
    struct relay_call *call = state;
    if (call->paused) return CURL_WRITEFUNC_PAUSE;
    buf_append(&call->in, data, size * count);
    return buf_ok(&call->in) ? size * count : 0;
}

static void act(struct relay_link *link, curl_socket_t socket, int events)
{
    int running;
    (void)curl_multi_socket_action(link->multi, socket, events, &running);
    deliver(link);
}

/* ---- the loop ---- */

static void on_poll(uv_poll_t *poll, int status, int events)
{
    const struct watched *watched = poll->data;
    int told = status < 0 ? CURL_CSELECT_ERR : 0;
    if (events & UV_READABLE) told |= CURL_CSELECT_IN;
    if (events & UV_WRITABLE) told |= CURL_CSELECT_OUT;
    act(watched->link, watched->socket, told);
}

static void on_timer(uv_timer_t *timer)
{
    act(timer->data, CURL_SOCKET_TIMEOUT, 0);
}

static void on_resume(uv_timer_t *timer)
{
    struct relay_link *link = timer->data;
    for (struct relay_call *call = link->calls; call; call = call->next) {
        if (!call->resumes) continue;
        call->resumes = false;
        if (!call->paused && !call->over) (void)curl_easy_pause(call->curl, CURLPAUSE_CONT);
    }
    deliver(link);
}

static int set_timer(CURLM *multi, long timeout_ms, void *state)
{
    struct relay_link *link = state;
    (void)multi;
    if (timeout_ms < 0)
        (void)uv_timer_stop(&link->timer);
    else
        (void)uv_timer_start(&link->timer, on_timer, (uint64_t)timeout_ms, 0);
    return 0;
}

static void on_unwatched(uv_handle_t *handle)
{
    mem_free(handle->data);
}

static int set_socket(CURL *curl, curl_socket_t socket, int what, void *state, void *socket_state)
{
    struct relay_link *link = state;
    struct watched *watched = socket_state;
    (void)curl;
    if (what == CURL_POLL_REMOVE) {
        if (watched) uv_close((uv_handle_t *)&watched->poll, on_unwatched);
        (void)curl_multi_assign(link->multi, socket, NULL);
        return 0;
    }
    if (!watched) {
        watched = mem_alloc(1, sizeof *watched);
        if (!watched) return -1;
        if (uv_poll_init_socket(link->loop, &watched->poll, socket) != 0) {
            mem_free(watched);
            return -1;
        }
        watched->link = link;
        watched->socket = socket;
        watched->poll.data = watched;
        (void)curl_multi_assign(link->multi, socket, watched);
    }
    int events = (what & CURL_POLL_IN ? UV_READABLE : 0) | (what & CURL_POLL_OUT ? UV_WRITABLE : 0);
    return uv_poll_start(&watched->poll, events, on_poll) == 0 ? 0 : -1;
}

/* ---- life ---- */

enum status relay_link_create(uv_loop_t *loop, struct relay_link **out)
{
    struct relay_link *link = mem_alloc(1, sizeof *link);
    if (!link) return ST_NOMEM;
    link->multi = curl_multi_init();
    if (!link->multi) {
        mem_free(link);
        return ST_NOMEM;
    }
    link->loop = loop;
    CHECK(uv_timer_init(loop, &link->timer) == 0 && uv_timer_init(loop, &link->resume) == 0); /* never fails */
    link->timer.data = link->resume.data = link;
    (void)curl_multi_setopt(link->multi, CURLMOPT_SOCKETFUNCTION, set_socket);
    (void)curl_multi_setopt(link->multi, CURLMOPT_SOCKETDATA, link);
    (void)curl_multi_setopt(link->multi, CURLMOPT_TIMERFUNCTION, set_timer);
    (void)curl_multi_setopt(link->multi, CURLMOPT_TIMERDATA, link);
    (void)curl_multi_setopt(link->multi, CURLMOPT_MAXCONNECTS, (long)KEPT_CONNECTIONS);
    *out = link;
    return ST_OK;
}

void relay_link_close(struct relay_link *link)
{
    if (!link || !link->multi) return;
    CHECK(!link->calls);
    (void)curl_multi_cleanup(link->multi);
    link->multi = NULL;
    uv_close((uv_handle_t *)&link->timer, NULL);
    uv_close((uv_handle_t *)&link->resume, NULL);
}

void relay_link_destroy(struct relay_link *link)
{
    mem_free(link);
}

static bool add_header(struct relay_call *call, const char *name, const char *value)
{
    struct buf line;
    buf_init(&line, 0);
    buf_append_text(&line, name);
    buf_append_text(&line, value);
    buf_append_char(&line, '\0');
    struct curl_slist *more = buf_ok(&line) ? curl_slist_append(call->headers, line.data) : NULL;
    if (more) call->headers = more;
    if (line.data) memset(line.data, 0, line.capacity);
    buf_free(&line);
    return more;
}

static CURLcode set_up(struct relay_call *call, const char *url)
{
    const struct relay_wish *wish = &call->wish;
    CURL *curl = call->curl;
    uint64_t connect_ms = wish->timeout_ms < CONNECT_MS_MAX ? wish->timeout_ms : CONNECT_MS_MAX;
    CURLcode code = curl_easy_setopt(curl, CURLOPT_URL, url);
    code = code ? code : curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
    code = code ? code : curl_easy_setopt(curl, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    code = code ? code : curl_easy_setopt(curl, CURLOPT_HTTPHEADER, call->headers);
    code = code ? code : curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_bytes);
    code = code ? code : curl_easy_setopt(curl, CURLOPT_WRITEDATA, call);
    code = code ? code : curl_easy_setopt(curl, CURLOPT_PRIVATE, call);
    code = code ? code : curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, (long)wish->timeout_ms);
    code = code ? code : curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS, (long)connect_ms);
    code = code ? code : curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    code = code ? code : curl_easy_setopt(curl, CURLOPT_PROXY, ""); /* keys and prompts go to the server named */
    code = code ? code : curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, 0L);
    code = code ? code : curl_easy_setopt(curl, CURLOPT_SSL_VERIFYPEER, 1L);
    code = code ? code : curl_easy_setopt(curl, CURLOPT_SSL_VERIFYHOST, 2L);
    if (wish->ca_file) code = code ? code : curl_easy_setopt(curl, CURLOPT_CAINFO, wish->ca_file);
    code = code ? code : curl_easy_setopt(curl, CURLOPT_POSTFIELDS, wish->body->data);
    return code ? code : curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)wish->body->length);
}

struct relay_call *relay_call_start(struct relay_link *link, const struct relay_wish *wish)
{
    struct buf url;
    struct relay_call *call = mem_alloc(1, sizeof *call);
    if (!call) return NULL;
    call->link = link;
    call->wish = *wish;
    buf_init(&call->in, 0);
    call->next = link->calls;
    if (call->next) call->next->previous = call;
    link->calls = call;
    call->curl = curl_easy_init();
    buf_init(&url, 0);
    buf_append_text(&url, wish->url);
    buf_append_text(&url, wish->path);
    buf_append_char(&url, '\0');
    bool good = call->curl && buf_ok(&url) && add_header(call, "Content-Type: ", "application/json") &&
                add_header(call, "Expect:", "") && /* no waiting for 100 */
                (!wish->bearer || add_header(call, "Authorization: Bearer ", wish->bearer)) &&
                set_up(call, url.data) == CURLE_OK && curl_multi_add_handle(link->multi, call->curl) == CURLM_OK;
    buf_free(&url);
    if (good) return call;
    call_free(call);
    return NULL;
}

void relay_call_cancel(struct relay_call *call)
{
    call_free(call);
}

void relay_call_pause(struct relay_call *call, bool paused)
{
    if (call->paused == paused) return;
    call->paused = paused;
    if (paused) return;
    call->resumes = true; /* not from here: what libcurl has kept comes at once */
    (void)uv_timer_start(&call->link->resume, on_resume, 0, 0);
}
