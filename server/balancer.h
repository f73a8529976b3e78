/* What this node tells those who spread requests over several: the line of HAProxy's agent check, and the ORCA header
 * that Envoy and others read. Pure; the node's own state comes from admin_balancer.c, sockets are agent_port.c's.
 *
 * A node that serves says "ready" before its weight: HAProxy holds drain and maint until that word comes, also over a
 * restart of the node. It says at least 1 %: at 0 % of all nodes a balancer refuses what their queues have room for.
 *
 * Sources: HAProxy 2.6 configuration manual, agent-check; xds.data.orca.v3.OrcaLoadReport and Envoy's
 * endpoint-load-metrics headers. */
#ifndef SERVER_BALANCER_H
#define SERVER_BALANCER_H

#include "runtime/base/buf.h"

#include <stdbool.h>
#include <stddef.h>

enum balancer_word {
    BALANCER_UP,    /* takes new requests */
    BALANCER_DRAIN, /* ends what it has */
    BALANCER_MAINT, /* taken out by its operator */
    BALANCER_DOWN   /* loads, or its engine does not answer */
};

struct balancer_view {
    enum balancer_word word;
    double weight;  /* 0..100, of power/weight.h */
    double kv_used; /* share of the KV blocks, of the fullest model */
    double waiting; /* requests */
    /* NAN: not known */
    double watts, allowance_share, price_kwh, green_share;
};

enum { BALANCER_LINE_BYTES = 32 };

const char *balancer_word_text(enum balancer_word word);             /* "up", .. */
bool balancer_word_read(const char *text, enum balancer_word *word); /* false: it is none */
/* "ready up 73%\n", "drain\n", "maint\n", "down\n", NUL-terminated. Returns the length without it. */
size_t balancer_agent_line(const struct balancer_view *view, char line[BALANCER_LINE_BYTES]);
/* A header line with its CRLF in the format asked for, by the request's endpoint-load-metrics-format: JSON or TEXT, in
 * any case; nothing for another. */
void balancer_load_header(const struct balancer_view *view, const char *format, struct buf *out);

#endif
