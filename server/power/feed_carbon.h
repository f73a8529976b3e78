/* Readers of documents about the carbon of electricity, by who writes them. Pure; any thread.
 *
 * Electricity Maps v3 and v4: {"carbonIntensity": g/kWh, "datetime", "isEstimated", ..}, bare (latest), or several of
 *   them in "data", "history" or "forecast". All but datetime is optional: an entry without an intensity tells nothing.
 *   The mean of the grid. "temporalGranularity" is the length, else the distance to the next entry, else an hour.
 * Carbon Aware SDK: [{"forecastData": [{"timestamp", "duration" in minutes, "value"}]}] of /emissions/forecasts/current
 *   and [{"time", "rating", "duration"}] of /emissions/bylocation; g/kWh.
 * WattTime v3: {"meta": {"signal_type", "units", "data_point_period_seconds"}, "data": [{"point_time", "value"}]};
 *   lb/MWh, of co2_moer (marginal) or co2_aoer (mean). 1 lb/MWh = 0.45359237 g/kWh.
 *
 * Quality: forecast when it lies ahead or was told as one, else estimated when it was told so, else measured. Measured
 * entries come late: the newest, if it ended within FEED_HOLD_MS, is held until a quarter of an hour from now and
 * called estimated. */
#ifndef SERVER_POWER_FEED_CARBON_H
#define SERVER_POWER_FEED_CARBON_H

#include "server/power/feed.h"

enum { FEED_HOLD_MS = 3 * 3600 * 1000 };

enum feed_kind { FEED_ELECTRICITY_MAPS, FEED_CARBON_AWARE, FEED_WATTTIME };

/* *feed is cleared and filled. marginal: what the provider does not say itself (WattTime does). ST_INVAL: no JSON or
 * not of this form (err says where); ST_LIMIT: too long, too deep; ST_NOMEM. */
NODISCARD enum status feed_read_carbon(enum feed_kind kind, const char *text, size_t length, bool marginal,
                                       int64_t now_ms, struct feed *feed, struct error *err);

#endif
