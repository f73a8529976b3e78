/* Records of journal folders; see bill_scan.h. */
#include "server/billing/bill_scan.h"

#include "runtime/base/mem.h"
#include "server/billing/bill_json.h"

#include <inttypes.h>
#include <string.h>

struct chains {
    uint64_t producer;
    bool begun;
    uint64_t pseq[PARTITIONS];
    uint8_t chain[PARTITIONS][CHAIN_BYTES];
};

static enum status follow(struct chains *chains, const struct frame *frame, const struct segment_info *segment,
                          const struct record *record, struct error *err)
{
    uint16_t partition = record->partition;
    if (record->pseq == chains->pseq[partition] + 1 &&
        record_sealed(frame->payload, frame->length, chains->chain[partition])) {
        chains->pseq[partition] = record->pseq;
        memcpy(chains->chain[partition], record->chain, CHAIN_BYTES);
        return ST_OK;
    }
    return error_set(err, ST_INVAL,
                     "%.300s: LSN %" PRIu64
                     ": a record does not follow from the one before it; \"millrace bill audit\" "
                     "tells more",
                     segment->path, frame->lsn);
}

/* A first checkpoint, or one of another producer, says where sequences stand; in between they must be what was read. */
static enum status take_checkpoint(struct chains *chains, const struct frame *frame, const struct segment_info *segment)
{
    if (chains->begun && segment->producer == chains->producer) return ST_OK;
    chains->begun = true;
    chains->producer = segment->producer;
    return frame_read_checkpoint(frame, chains->pseq, chains->chain);
}

static enum status take(struct chains *chains, const struct frame *frame, const struct segment_info *segment,
                        bill_record_fn records, bill_frame_fn frames, void *state, struct error *err)
{
    struct record record;
    if (frame->type == FRAME_CHECKPOINT) TRY(take_checkpoint(chains, frame, segment));
    if (!frame_is_record(frame->type)) return frames ? frames(state, frame, segment, err) : ST_OK;
    TRY(record_decode(frame->payload, frame->length, &record, err));
    TRY(follow(chains, frame, segment, &record, err));
    return records(state, frame, segment, &record, err);
}

static enum status scan_folder(struct bill *bill, const char *folder, struct chains *chains, bill_record_fn records,
                               bill_frame_fn frames, void *state, struct error *err)
{
    struct journal_reader *reader;
    struct frame frame;
    const char *more = bill->options->archive ? bill->options->archive : bill->options->fallback;
    struct error reason = {""};
    enum status status = journal_reader_open(bill->disk, folder, more, 0, &reader, &reason);
    if (status != ST_OK) return error_set(err, status, "%.200s: %.280s", folder, reason.message);
    while (status == ST_OK) {
        status = journal_reader_next(reader, UINT64_MAX, &frame, &reason);
        if (status == ST_OK)
            status = take(chains, &frame, journal_reader_segment(reader), records, frames, state, &reason);
        else if (status == ST_AGAIN)
            break;
    }
    journal_reader_close(reader);
    return status == ST_AGAIN ? ST_OK : error_set(err, status, "%s", reason.message);
}

enum status bill_scan(struct bill *bill, bill_record_fn records, bill_frame_fn frames, void *state, int *exit_code,
                      struct error *err)
{
    const struct bill_options *options = bill->options;
    if ((options->archive || options->fallback) &&
        (options->names_count > 1 || (options->archive && options->fallback)))
        return error_set(err, ST_INVAL, "--archive or --fallback belongs to one folder: name one of each");
    TRY(bill_scan_prepare(options, err));
    struct chains *chains = mem_alloc(1, sizeof *chains);
    if (!chains) return error_set(err, ST_NOMEM, "%s", status_text(ST_NOMEM));
    enum status status = ST_OK;
    for (uint32_t i = 0; i < options->names_count && status == ST_OK; i++) {
        memset(chains, 0, sizeof *chains);
        status = scan_folder(bill, options->names[i], chains, records, frames, state, err);
    }
    mem_free(chains);
    if (status == ST_INVAL) *exit_code = BILL_DAMAGED;
    return status;
}

/* ---- which ones ---- */

/* The next name of a comma-separated list, or false. */
static bool next_name(const char **at, char *name, size_t size, bool *good)
{
    if (!**at) return false;
    size_t length = strcspn(*at, ",");
    *good = length > 0 && length < size;
    if (*good) memcpy(name, *at, length), name[length] = '\0';
    *at += length + ((*at)[length] == ',');
    return true;
}

enum status bill_scan_prepare(const struct bill_options *options, struct error *err)
{
    char name[ACCOUNT_NAME_MAX + 32];
    uint64_t account;
    bool good;
    const char *at = options->account ? options->account : "";
    while (next_name(&at, name, sizeof name, &good)) {
        if (!good) return error_set(err, ST_INVAL, "--account: names with commas between them, like ada,bob");
        TRY(bill_account(name, &account, err));
    }
    return ST_OK;
}

static bool account_wanted(const char *list, uint64_t account)
{
    char name[ACCOUNT_NAME_MAX + 32];
    uint64_t number = 0;
    bool good;
    while (next_name(&list, name, sizeof name, &good))
        if (good && bill_account(name, &number, NULL) == ST_OK && number == account) return true;
    return false;
}

bool bill_record_wanted(const struct bill_options *options, const struct record *record)
{
    int64_t ended_ms = record->kind == RECORD_ENERGY ? record->energy.slot_ms : record->ended_us / 1000;
    if (options->from_ms && ended_ms < options->from_ms) return false;
    if (options->to_ms && ended_ms >= options->to_ms) return false;
    if (options->month && record->month != options->month) return false;
    if (options->tenant && strcmp(options->tenant, record->charge.tenant) != 0) return false;
    if (options->model && strcmp(options->model, record->charge.model) != 0) return false;
    return !options->account || account_wanted(options->account, record->account);
}
