/* The admin call about watts; see serve_parts.h.
 *
 *   GET  /admin/power     the meter, what it shows, what is held, and by whom: by hand, told by which sources
 *   POST /admin/power     {"cap_w": WATTS|null, "target_w": WATTS|null, "shed_level": 0..3, "until": UNIX SECONDS|null}
 *
 * A POST holds from the next step on, beside the options and the sources of signals: the lowest cap and the highest
 * shed level count, and its target before theirs (power/power_goal.h). What it does not name of what was given by hand
 * stays as it is, null lifts it. With "until" it ends then; without, with the process. A refused call changes nothing.
 */
#include "server/serve_parts.h"

#include "runtime/base/clock.h"
#include "runtime/base/json.h"
#include "server/power/signal_show.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

enum { BODY_BYTES_MAX = 4096 };

static void refuse(struct http_conn *conn, const char *param, const char *message)
{
    struct api_error error;
    api_error_set(&error, 400, "invalid_request_error", NULL, param, "%s", message);
    reply_error(conn, &error, NULL, false);
}

static void append_watts(struct buf *out, const char *name, double watts)
{
    if (isfinite(watts))
        buf_append_format(out, ",\"%s\":%.6g", name, watts);
    else
        buf_append_format(out, ",\"%s\":null", name);
}

static void reply_state(struct server *server, struct http_conn *conn)
{
    struct power *power = server->models.power;
    static const char *const alarms[] = {"fine", "silent", "lost"};
    struct power_state state;
    struct buf body;
    power_read_state(power, &state);
    buf_init(&body, 0);
    buf_append_text(&body, "{\"object\":\"power\",\"meter\":");
    buf_append_json_string(&body, state.sensor, strlen(state.sensor));
    buf_append_format(&body, ",\"estimated\":%s,\"meter_state\":\"%s\"", state.estimated ? "true" : "false",
                      alarms[state.alarm]);
    append_watts(&body, "watts", state.watts);
    buf_append_format(&body, ",\"meter_j\":%.9g,\"meter_s\":%.9g", state.meter_j, state.meter_s);
    append_watts(&body, "setpoint_w", state.setpoint_w);
    append_watts(&body, "work_w", state.allowance_w);
    append_watts(&body, "idle_w", state.idle_w);
    append_watts(&body, "full_w", state.full_w);
    append_watts(&body, "floor_w", state.floor_w);
    append_watts(&body, "cap_w", state.goal.cap_w);
    append_watts(&body, "target_w", state.goal.target_w);
    buf_append_format(&body, ",\"shed_level\":%" PRIu32 ",\"until\":", state.goal.shed_level);
    if (state.until_unix_ms)
        buf_append_format(&body, "%" PRIu64, state.until_unix_ms / 1000);
    else
        buf_append_text(&body, "null");
    append_watts(&body, "itl_p95_ms", state.itl_p95_s > 0 ? state.itl_p95_s * 1e3 : INFINITY);
    append_watts(&body, "deferrable_rows", state.rows_capped ? (double)state.rows_most : INFINITY);
    buf_append_format(&body, ",\"balancer_weight\":%.6g", server->weight);
    buf_append_text(&body, ",\"hand\":{\"shed_level\":");
    buf_append_format(&body, "%" PRIu32, state.hand.shed_level);
    append_watts(&body, "cap_w", state.hand.cap_w);
    append_watts(&body, "target_w", state.hand.target_w);
    buf_append_text(&body, "},");
    signal_print_json(server->models.signals, clock_unix_ms(clock_system()), &body);
    buf_append_char(&body, '}');
    http_conn_reply(conn, &(struct http_reply){.status = 200, .body = &body});
    buf_free(&body);
}

struct power_order_call {
    struct power_goal goal;
    uint64_t until_unix_ms;
};

/* One member of the body. False: why not is told. */
static bool read_member(const char *key, const struct json *value, struct power_order_call *call, const char **why)
{
    bool lifted = json_kind(value) == JSON_KIND_NULL;
    double *watts = strcmp(key, "cap_w") == 0      ? &call->goal.cap_w
                    : strcmp(key, "target_w") == 0 ? &call->goal.target_w
                                                   : NULL;
    if (watts) {
        *why = "This must be a number of watts, or null for none.";
        *watts = lifted ? INFINITY : json_to_number(value);
        return lifted || json_has_number(value);
    }
    if (strcmp(key, "shed_level") == 0) {
        *why = "shed_level must be a whole number from 0 to 3.";
        call->goal.shed_level = (uint32_t)json_to_int(value);
        return json_kind(value) == JSON_KIND_INT && json_to_int(value) >= 0 && json_to_int(value) <= POWER_SHED_MAX;
    }
    if (strcmp(key, "until") == 0) {
        *why = "until must be whole seconds since 1970, or null for no end.";
        int64_t second = json_to_int(value);
        call->until_unix_ms = lifted ? 0 : (uint64_t)second * 1000;
        return lifted || (json_kind(value) == JSON_KIND_INT && second > 0 && second < INT64_MAX / 1000);
    }
    *why = "The body has cap_w, target_w, shed_level and until, and nothing else.";
    return false;
}

static void set(struct server *server, struct http_conn *conn, const struct json *root)
{
    struct power *power = server->models.power;
    struct power_state state;
    struct error err;
    const char *key, *why;
    const struct json *value;
    power_read_state(power, &state);
    struct power_order_call call = {.goal = state.hand};
    for (void *iterator = NULL; json_iterate(root, &iterator, &key, &value);)
        if (!read_member(key, value, &call, &why)) {
            refuse(conn, key, why);
            return;
        }
    if (power_set_goal(power, &call.goal, call.until_unix_ms, &err) != ST_OK)
        refuse(conn, NULL, err.message);
    else
        reply_state(server, conn);
}

void admin_power_request(struct server *server, struct http_conn *conn, const struct http_request *request)
{
    struct api_error error;
    struct error err;
    struct json *root = NULL;
    struct power *power = server->models.power;
    if (!power) {
        api_error_set(&error, 409, "invalid_request_error", "no_power_meter", NULL,
                      "This server has no meter of watts: start it with --power-sensor, or with --power-idle and "
                      "--power-full for an estimate.");
        reply_error(conn, &error, NULL, false);
        return;
    }
    if (strcmp(request->method, "POST") != 0) {
        reply_state(server, conn);
        return;
    }
    if (!request->has_body || request->body.length > BODY_BYTES_MAX ||
        json_read(request->body.data ? request->body.data : "", request->body.length, &root, &err) != ST_OK ||
        json_kind(root) != JSON_KIND_OBJECT)
        refuse(conn, NULL, "The body must be a JSON object of at most 4096 bytes.");
    else
        set(server, conn, root);
    json_release(root);
}
