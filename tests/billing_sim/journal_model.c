/* Reading a journal and holding it against what was appended (journal_model.h). */
#include "tests/billing_sim/journal_model.h"

#include "runtime/base/check.h"
#include "runtime/base/mem.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void model_init(struct model *model)
{
    *model = (struct model){.items = mem_alloc(MODEL_ITEMS_MAX, sizeof *model->items),
                            .charges = mem_alloc(MODEL_CHARGES_MAX, sizeof *model->charges)};
    CHECK(model->items != NULL && model->charges != NULL);
}

void model_free(struct model *model)
{
    mem_free(model->items);
    mem_free(model->charges);
}

struct model_item *model_append(struct model *model, enum frame_type type)
{
    CHECK(model->appended + 1 < MODEL_ITEMS_MAX);
    struct model_item *item = &model->items[++model->appended];
    *item = (struct model_item){.type = type};
    return item;
}

void model_charge_id(uint32_t number, uint8_t id[CHARGE_ID_BYTES])
{
    memset(id, 0xA5, CHARGE_ID_BYTES);
    memcpy(id, &number, sizeof number);
}

struct reading {
    struct model *model;
    const struct frame *frame;
    struct model_item item; /* the frame just read */
    bool started, in_tail, step_fits;
    uint64_t prefix, last_lsn, pseq[PARTITIONS], epoch;
    uint8_t chain[PARTITIONS][CHAIN_BYTES];
    struct record record;
};

static bool complain(struct model *model, const char *format, ...) PRINTF_LIKE(2, 3);
static bool complain(struct model *model, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(model->complaint, sizeof model->complaint, format, arguments);
    va_end(arguments);
    return false;
}

static uint32_t charge_number(const struct charge *charge)
{
    uint32_t number;
    uint8_t id[CHARGE_ID_BYTES];
    memcpy(&number, charge->charge_id, sizeof number);
    model_charge_id(number, id);
    return memcmp(id, charge->charge_id, sizeof id) == 0 && number < MODEL_CHARGES_MAX ? number : UINT32_MAX;
}

static void read_step(void *context, struct step_count count)
{
    struct model_item *item = context;
    if (item->steps_count < MODEL_STEPS_MAX) item->steps[item->steps_count] = count;
    item->steps_count++;
}

static bool read_record(struct reading *reading)
{
    const struct frame *frame = reading->frame;
    struct record *record = &reading->record;
    struct error err = {""};
    if (record_decode(frame->payload, frame->length, record, &err) != ST_OK) {
        return complain(reading->model, "frame %" PRIu64 ": %s", frame->lsn, err.message);
    }
    uint16_t partition = record->partition;
    if (record->pseq != reading->pseq[partition] + 1) {
        return complain(reading->model, "frame %" PRIu64 ": pseq %" PRIu64 " after %" PRIu64, frame->lsn, record->pseq,
                        reading->pseq[partition]);
    }
    if (!record_sealed(frame->payload, frame->length, reading->chain[partition])) {
        return complain(reading->model, "frame %" PRIu64 ": the chain is broken", frame->lsn);
    }
    reading->pseq[partition] = record->pseq;
    memcpy(reading->chain[partition], record->chain, CHAIN_BYTES);
    reading->item.b = record->pseq;
    reading->item.a = frame->type == FRAME_FINAL    ? record->out
                      : frame->type == FRAME_ENERGY ? record_energy_uj(&record->energy)
                                                    : record->account;
    if (frame->type == FRAME_FINAL || frame->type == FRAME_ENERGY)
        reading->item.charge = charge_number(&record->charge);
    return true;
}

/* The frame in the model's words. */
static bool read_item(struct reading *reading)
{
    const struct frame *frame = reading->frame;
    struct model_item *item = &reading->item;
    struct open_frame open;
    struct order order;
    uint16_t partition;
    uint64_t account;
    bool is_open;
    char text[ORDER_ID_MAX + 1];
    enum status status = ST_OK;
    *item = (struct model_item){.type = frame->type};
    switch (frame->type) {
    case FRAME_OPEN:
        status = frame_read_open(frame, &open);
        item->charge = charge_number(&open.charge);
        item->a = open.handle;
        break;
    case FRAME_STEP: status = frame_read_step(frame, read_step, item); break;
    case FRAME_FINAL:
    case FRAME_GRANT:
    case FRAME_RELEASE:
    case FRAME_ENERGY: return read_record(reading);
    case FRAME_ORDER:
        status = frame_read_order(frame, &order);
        item->a = order.units;
        break;
    case FRAME_ACCOUNT:
        status = frame_read_account(frame, &account, text, &is_open);
        item->a = account;
        break;
    case FRAME_ACK:
        status = frame_read_ack(frame, &partition, &item->b, text);
        item->a = partition;
        break;
    case FRAME_RECOVER: break;
    case FRAME_CHECKPOINT: break;
    }
    if (status != ST_OK) return complain(reading->model, "frame %" PRIu64 " cannot be read", frame->lsn);
    return true;
}

static bool same_item(const struct model_item *a, const struct model_item *b)
{
    if (a->type != b->type || a->charge != b->charge || a->a != b->a || a->b != b->b ||
        a->steps_count != b->steps_count) {
        return false;
    }
    for (uint32_t i = 0; i < a->steps_count; i++) {
        if (a->steps[i].handle != b->steps[i].handle || a->steps[i].ids != b->steps[i].ids) return false;
    }
    return true;
}

static bool see_checkpoint(struct reading *reading)
{
    uint64_t pseq[PARTITIONS];
    uint8_t chain[PARTITIONS][CHAIN_BYTES];
    if (frame_read_checkpoint(reading->frame, pseq, chain) != ST_OK) {
        return complain(reading->model, "a checkpoint cannot be read");
    }
    if (reading->started) {
        if (reading->frame->lsn != reading->last_lsn || memcmp(pseq, reading->pseq, sizeof pseq) != 0 ||
            memcmp(chain, reading->chain, sizeof chain) != 0) {
            return complain(reading->model, "the checkpoint at %" PRIu64 " is not what stands before it",
                            reading->frame->lsn);
        }
        return true;
    }
    reading->started = true;
    reading->last_lsn = reading->prefix = reading->frame->lsn;
    memcpy(reading->pseq, pseq, sizeof pseq);
    memcpy(reading->chain, chain, sizeof chain);
    return true;
}

/* Counts of the model's first `prefix` items: what each request has by then. */
static void count_prefix(struct model *model, uint64_t prefix)
{
    for (uint32_t i = 0; i < model->charges_count; i++) {
        model->charges[i].ids = 0;
        model->charges[i].opens = model->charges[i].finals = 0;
    }
    for (uint64_t lsn = 1; lsn <= prefix; lsn++) {
        const struct model_item *item = &model->items[lsn];
        if (item->type == FRAME_OPEN) model->charges[item->charge].opens++;
        if (item->type == FRAME_FINAL) model->charges[item->charge].finals++;
        for (uint32_t i = 0; i < item->steps_count; i++) {
            model->charges[item->step_charges[i]].ids += item->steps[i].ids;
        }
    }
}

/* A frame behind the prefix: only what a start writes may stand there. */
static bool see_tail(struct reading *reading)
{
    struct model *model = reading->model;
    const struct record *record = &reading->record;
    uint64_t lsn = reading->frame->lsn;
    if (reading->frame->type == FRAME_RECOVER) return true;
    if (reading->frame->type != FRAME_FINAL || record->cause != CAUSE_NODE_CRASH || record->kind != RECORD_WAIVED ||
        (record->flags & RECORD_INCOMPLETE) == 0) {
        return complain(model, "frame %" PRIu64 " (type %d) was never appended", lsn, (int)reading->frame->type);
    }
    if (reading->item.charge >= model->charges_count) return complain(model, "frame %" PRIu64 ": whose final?", lsn);
    struct model_charge *charge = &model->charges[reading->item.charge];
    if (charge->opens != 1 || ++charge->finals != 1) {
        return complain(model, "request %u: %u OPEN, %u FINAL", reading->item.charge, charge->opens, charge->finals);
    }
    if (record->out != charge->ids) {
        return complain(model, "request %u: closed with %u ids, its STEPs have %" PRIu64, reading->item.charge,
                        record->out, charge->ids);
    }
    return true;
}

static bool see_frame(struct reading *reading, uint64_t safe)
{
    struct model *model = reading->model;
    uint64_t lsn = reading->frame->lsn;
    if (reading->frame->type == FRAME_CHECKPOINT) return see_checkpoint(reading);
    if (lsn != reading->last_lsn + 1)
        return complain(model, "frame %" PRIu64 " after %" PRIu64, lsn, reading->last_lsn);
    reading->last_lsn = lsn;
    if (!read_item(reading)) return false;
    if (!reading->in_tail) {
        bool same = lsn <= model->appended && same_item(&reading->item, &model->items[lsn]);
        if (same) {
            reading->prefix = lsn;
            return true;
        }
        if (lsn <= safe) {
            return complain(model,
                            "frame %" PRIu64 " (type %d) is not the one that was promised (type %d), safe %" PRIu64,
                            lsn, (int)reading->frame->type, (int)model->items[lsn].type, safe);
        }
        reading->in_tail = true;
        count_prefix(model, reading->prefix);
    }
    if (!see_tail(reading)) return false;
    CHECK(lsn < MODEL_ITEMS_MAX);
    model->items[lsn] = reading->item;
    return true;
}

static bool see_end(struct reading *reading, uint64_t safe, uint64_t lsn)
{
    struct model *model = reading->model;
    if (reading->prefix < safe) {
        return complain(model, "%" PRIu64 " was promised, %" PRIu64 " is there", safe, reading->prefix);
    }
    if (!reading->in_tail || reading->last_lsn != lsn) return complain(model, "no RECOVER at the end");
    for (uint32_t i = 0; i < model->charges_count; i++) {
        if (model->charges[i].opens != model->charges[i].finals || model->charges[i].opens > 1) {
            return complain(model, "request %u: %u OPEN, %u FINAL", i, model->charges[i].opens,
                            model->charges[i].finals);
        }
    }
    model->appended = reading->last_lsn;
    return true;
}

bool model_check(struct model *model, const struct journal_config *config, const struct journal_report *report,
                 uint64_t safe)
{
    struct journal_reader *reader;
    struct frame frame;
    struct error err = {""};
    struct reading reading = {.model = model, .frame = &frame};
    if (report->epoch <= model->epoch) return complain(model, "epoch %" PRIu64 " again", report->epoch);
    model->epoch = report->epoch;
    if (journal_reader_open(config->disk, config->folder, config->fallback, 0, &reader, &err) != ST_OK) {
        return complain(model, "%s", err.message);
    }
    enum status status;
    bool fine = true;
    while (fine && (status = journal_reader_next(reader, UINT64_MAX, &frame, &err)) == ST_OK) {
        fine = see_frame(&reading, safe);
    }
    if (fine && status != ST_AGAIN) fine = complain(model, "%s", err.message);
    if (fine && journal_reader_tail(reader) != 0) fine = complain(model, "torn bytes behind a journal just opened");
    journal_reader_close(reader);
    return fine && see_end(&reading, safe, reading.last_lsn);
}
