/* See openadr_report.h. Sources: schemas `report` of the OpenAPI documents 3.0.1 and 3.1.1. */
#include "server/power/openadr_report.h"

#include "server/billing/bill_text.h"

#include <inttypes.h>
#include <string.h>

static const struct {
    uint32_t report;
    const char *type;
    bool in_kw;
} known[] = {{OPENADR_DEMAND, "DEMAND", true},
             {OPENADR_OPERATING_STATE, "OPERATING_STATE", false},
             {OPENADR_DOWN_REGULATION, "DOWN_REGULATION_AVAILABLE", true}};
enum { KNOWN = sizeof known / sizeof *known };

static void append_name(struct buf *out, const char *member, const char *text)
{
    buf_append_format(out, "\"%s\":", member);
    buf_append_json_string(out, text, strlen(text));
    buf_append_char(out, ',');
}

static void append_descriptors(struct buf *out, uint32_t reports)
{
    bool any = false;
    buf_append_text(out, "\"payloadDescriptors\":[");
    for (size_t i = 0; i < KNOWN; i++) {
        if (!(reports & known[i].report)) continue;
        buf_append_format(out, "%s{\"objectType\":\"REPORT_PAYLOAD_DESCRIPTOR\",\"payloadType\":\"%s\"%s}",
                          any ? "," : "", known[i].type,
                          known[i].in_kw ? ",\"readingType\":\"DIRECT_READ\",\"units\":\"KW\"" : "");
        any = true;
    }
    buf_append_text(out, "],");
}

static void append_payloads(struct buf *out, uint32_t reports, const struct signal_demand *demand)
{
    bool any = false;
    for (size_t i = 0; i < KNOWN; i++) {
        if (!(reports & known[i].report)) continue;
        buf_append_format(out, "%s{\"type\":\"%s\",\"values\":[", any ? "," : "", known[i].type);
        if (known[i].in_kw)
            buf_append_format(out, "%.6g", (known[i].report == OPENADR_DEMAND ? demand->watts : demand->down_w) / 1000);
        else
            buf_append_text(out, demand->curtailed ? "\"RUNNING_CURTAILED\"" : "\"NORMAL\"");
        buf_append_text(out, "]}");
        any = true;
    }
}

void openadr_report(const struct openadr_config *config, const struct openadr_request *request,
                    const struct signal_demand *demand, int64_t now_ms, uint32_t dur_s, struct buf *out)
{
    buf_append_char(out, '{');
    if (config->version == OPENADR_3_0) {
        append_name(out, "objectType", "REPORT");
        append_name(out, "programID", request->program);
    }
    append_name(out, "eventID", request->event);
    append_name(out, "clientName", config->ven);
    buf_append_format(out, "\"reportName\":\"%s_%" PRId64 "\",", config->ven, now_ms);
    append_descriptors(out, request->reports);
    buf_append_text(out, "\"resources\":[{");
    append_name(out, "resourceName", config->ven);
    buf_append_text(out, "\"intervalPeriod\":{\"start\":\"");
    bill_append_time_ms(out, now_ms - dur_s * INT64_C(1000));
    buf_append_format(out, "\",\"duration\":\"PT%uS\"},\"intervals\":[{\"id\":0,\"payloads\":[", dur_s);
    append_payloads(out, request->reports, demand);
    buf_append_text(out, "]}]}]}");
    buf_append_char(out, '\0');
}
