/* Upstreams of the process: their file, the link to them, the meter's port for what they answer; see serve_parts.h. */
#include "server/serve_parts.h"

#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "server/upstream/relay_link.h"
#include "server/upstream/upstreams.h"

enum status upstream_start(struct server *server, struct error *err)
{
    struct exchanges *set = &server->exchanges;
    if (!server->config->upstreams) return ST_OK;
    TRY(upstreams_read(server->config->upstreams, clock_unix_us(clock_system()) / 1000000, &set->upstreams, err));
    for (uint32_t i = 0; i < set->upstreams->models_count; i++)
        if (models_find(&server->models, set->upstreams->models[i].name))
            return error_set(err, ST_INVAL, "%s: \"%s\" is a model of this server, too", server->config->upstreams,
                             set->upstreams->models[i].name);
    if (relay_link_create(&server->loop, &set->relay_link) != ST_OK ||
        (server->billing && meter_port_open_told(server->billing->meter, &set->relay_port) != ST_OK))
        return error_set(err, ST_NOMEM, "no memory for upstreams");
    log_line(LOG_INFO, "upstream", "upstreams=%u models=%u", set->upstreams->count, set->upstreams->models_count);
    return ST_OK;
}

void upstream_close(struct server *server)
{
    relay_link_close(server->exchanges.relay_link);
}

void upstream_free(struct server *server)
{
    struct exchanges *set = &server->exchanges;
    meter_port_close(set->relay_port);
    relay_link_destroy(set->relay_link);
    upstreams_destroy(set->upstreams);
}
