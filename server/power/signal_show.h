/* What sources of power signals have told, for operators: a part of GET /admin/power, and metrics. Any thread. */
#ifndef SERVER_POWER_SIGNAL_SHOW_H
#define SERVER_POWER_SIGNAL_SHOW_H

#include "runtime/base/buf.h"
#include "server/power/signal.h"

/* "told":{the node's slot at now_ms, null where nobody tells},"sources":[{name, age, what was refused ..}] */
void signal_print_json(struct signals *signals, int64_t now_ms, struct buf *out);
/* mr_signal_*; nothing without a source or a constant. */
void signal_print_metrics(struct signals *signals, int64_t now_ms, struct buf *out);

#endif
