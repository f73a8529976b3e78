/* This node for balancers: what it tells them now, and the admin call that takes it out; see serve_parts.h, balancer.h.
 *
 *   GET  /admin/balancer   the word and weight that balancers are told, and what the word was set to by hand
 *   POST /admin/balancer   {"state": "up"|"drain"|"maint"}
 *
 * By hand is only what balancers are told: the node serves whoever asks it, and forgets it when it ends. */
#include "server/serve_parts.h"

#include "runtime/base/clock.h"
#include "runtime/base/json.h"
#include "server/power/weight.h"

#include <math.h>
#include <string.h>

enum { BODY_BYTES_MAX = 4096 };

static enum balancer_word word_now(const struct server *server)
{
    enum refusal refusal;
    uint32_t retry_after_ms;
    if (server->phase >= DRAINING) return BALANCER_DRAIN;
    if (server->phase == LOADING || engine_refusal(server, &refusal, &retry_after_ms) || engine_stuck(server))
        return BALANCER_DOWN;
    return server->balancer_hand;
}

/* Of the minute that is under way. */
static double green_share(const struct history *history)
{
    uint32_t held = history_held(history->minutes_count, HISTORY_MINUTES);
    if (held == 0) return NAN;
    const struct history_entry *minute = history_minute(history, held - 1);
    return minute->span.door_kwh > 0 ? (double)minute->green_uj * 1e-6 / (minute->span.door_kwh * 3.6e6) : NAN;
}

static struct balancer_view view_now(const struct server *server)
{
    struct power_state power;
    struct balancer_view view = {.word = word_now(server),
                                 .weight = server->weight,
                                 .kv_used = server->history.last.kv_share,
                                 .waiting = server->history.last.waiting,
                                 .watts = NAN,
                                 .allowance_share = NAN,
                                 .price_kwh = NAN,
                                 .green_share = green_share(&server->history)};
    if (!server->models.power) return view;
    power_read_state(server->models.power, &power);
    double work_w = power.full_w - power.idle_w;
    view.watts = power.watts;
    view.price_kwh = server->power_usage.price_kwh;
    if (work_w > 0) view.allowance_share = isfinite(power.allowance_w) ? fmin(power.allowance_w / work_w, 1) : 1;
    return view;
}

static size_t agent_line(void *state, char *line)
{
    _Static_assert((int)BALANCER_LINE_BYTES <= (int)AGENT_LINE_BYTES_MAX, "a line fits");
    struct balancer_view view = view_now(state);
    return balancer_agent_line(&view, line);
}

/* For work that can wait; nothing is said of drain and maint that the other port does not say. */
static size_t deferrable_line(void *state, char *line)
{
    struct server *server = state;
    struct balancer_view view = view_now(server);
    struct power_slot told = {.have = 0};
    struct power_state power;
    if (server->models.power && server->models.signals) {
        int64_t now_ms = clock_unix_ms(clock_system());
        signal_at(server->models.signals, now_ms, now_ms, &told);
        power_read_state(server->models.power, &power);
        view.weight = weight_deferrable(view.weight, told.have & SLOT_GREEN ? told.green_w : NAN, power.watts,
                                        power.full_w - power.idle_w);
    }
    view.weight = server->weight_deferrable = weight_tell(server->weight_deferrable, view.weight);
    return balancer_agent_line(&view, line);
}

void balancer_append_load(void *state, const char *format, struct buf *out)
{
    struct balancer_view view = view_now(state);
    balancer_load_header(&view, format, out);
}

enum status balancer_open(struct server *server, void (*closed)(void *state), struct error *err)
{
    const struct config *config = server->config;
    const uint32_t ports[] = {config->agent_port, config->agent_deferrable_port};
    for (int i = 0; i < 2; i++) {
        const struct agent_handler handler = {
            .state = server, .line = i == 0 ? agent_line : deferrable_line, .closed = closed};
        if (!ports[i]) continue;
        enum status status =
            agent_port_create(&server->loop, config->agent_host, ports[i], &handler, &server->agents[i], err);
        server->http_open += server->agents[i] != NULL;
        TRY(status);
    }
    return ST_OK;
}

void balancer_tick(struct server *server)
{
    for (int i = 0; i < 2; i++)
        if (server->agents[i]) agent_port_tick(server->agents[i], http_server_now_ns(server->http));
}

void balancer_close(struct server *server)
{
    for (int i = 0; i < 2; i++)
        if (server->agents[i]) agent_port_close(server->agents[i]);
}

void balancer_destroy(struct server *server)
{
    for (int i = 0; i < 2; i++) agent_port_destroy(server->agents[i]);
}

static void refuse(struct http_conn *conn, const char *param, const char *message)
{
    struct api_error error;
    api_error_set(&error, 400, "invalid_request_error", NULL, param, "%s", message);
    reply_error(conn, &error, NULL, false);
}

static void reply_state(const struct server *server, struct http_conn *conn)
{
    struct balancer_view view = view_now(server);
    struct buf body;
    buf_init(&body, 0);
    buf_append_format(&body, "{\"object\":\"balancer\",\"state\":\"%s\",\"hand\":\"%s\",\"weight\":%.4g}",
                      balancer_word_text(view.word), balancer_word_text(server->balancer_hand), view.weight);
    http_conn_reply(conn, &(struct http_reply){.status = 200, .body = &body});
    buf_free(&body);
}

/* False: why not is told. */
static bool read_state(const struct http_request *request, enum balancer_word *word, const char **why)
{
    struct error err;
    struct json *root = NULL;
    const char *key;
    const struct json *value;
    bool named = false,
         good = request->has_body && request->body.length <= BODY_BYTES_MAX &&
                json_read(request->body.data ? request->body.data : "", request->body.length, &root, &err) == ST_OK &&
                json_kind(root) == JSON_KIND_OBJECT;
    *why = "The body must be a JSON object with state: up, drain or maint.";
    for (void *iterator = NULL; good && json_iterate(root, &iterator, &key, &value);) {
        size_t length;
        const char *text = json_to_text(value, &length);
        good = strcmp(key, "state") == 0 && text && balancer_word_read(text, word) && *word != BALANCER_DOWN;
        named = true;
    }
    json_release(root);
    return good && named;
}

void admin_balancer_request(struct server *server, struct http_conn *conn, const struct http_request *request)
{
    const char *why;
    enum balancer_word word;
    if (strcmp(request->method, "POST") == 0) {
        if (!read_state(request, &word, &why)) {
            refuse(conn, "state", why);
            return;
        }
        server->balancer_hand = word;
    }
    reply_state(server, conn);
}
