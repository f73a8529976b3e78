/* The providers of power signals, each in the file of its name; see signal_feed.h. */
#ifndef SERVER_POWER_SIGNAL_PROVIDERS_H
#define SERVER_POWER_SIGNAL_PROVIDERS_H

#include "server/power/signal_feed.h"

extern const struct signal_provider signal_file;
extern const struct signal_provider signal_redis;
extern const struct signal_provider signal_http;    /* electricity-maps, carbon-aware, watttime */
extern const struct signal_provider signal_openadr; /* openadr */

#endif
