/* The report that an event of OpenADR 3 asks for, as JSON for POST /reports. Pure.
 *
 * DEMAND: what the node draws, kW. OPERATING_STATE: RUNNING_CURTAILED while a limit or a shed level is in force, else
 * NORMAL. DOWN_REGULATION_AVAILABLE: what shed level 3 would take off now, kW. One resource, our VEN's name; 3.0 wants
 * the program's id as well. */
#ifndef SERVER_POWER_OPENADR_REPORT_H
#define SERVER_POWER_OPENADR_REPORT_H

#include "runtime/base/buf.h"
#include "server/power/openadr.h"
#include "server/power/signal_feed.h"

/* Of the dur_s seconds before now_ms. NUL-terminated; buf_ok tells whether there was memory. */
void openadr_report(const struct openadr_config *config, const struct openadr_request *request,
                    const struct signal_demand *demand, int64_t now_ms, uint32_t dur_s, struct buf *out);

#endif
