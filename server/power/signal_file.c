/* The provider of --power-signal file:PATH: a file of signal_table.h, looked at ten times a second and read again when
 * it was written or another one was renamed to its path.
 *
 *   look: stat --another file, size or time--> read, parse --good--> the source's whole word, and heard
 *              --the same, good--> heard; each quarter of an hour its word again, as the store's window moves
 *         gone, not of the form, or refused: told once and once a period; nothing is heard, so what was told ages
 *
 * A trace (time_local, <x>_pu) begins when the process does, and again at its end. speed= times faster, its value at
 * the moment is the value of the whole quarter of an hour; ahead of it are means.
 *
 * Looking was preferred to inotify: it works on network file systems and through bind mounts, survives a rename without
 * watching the folder, and costs 10 calls of stat a second. */
#include "server/power/signal_providers.h"

#include "runtime/base/file.h"
#include "runtime/base/limits.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"
#include "server/power/signal_table.h"

#include <math.h>
#include <string.h>
#include <sys/stat.h>

enum {
    LOOK_MS = 100,
    JUST_WRITTEN_MS = 50, /* a later write could leave the same time of change */
    AGAIN_MS = 1000,      /* while not all rows have had room in the store */
    PIECES_MAX = 4096,
    HOLDS_S = 100 * 86400
};

struct file_identity {
    uint64_t device, inode, size;
    int64_t changed_ns;
};

struct signal_file {
    const struct signal_ear *ear;
    struct file_identity identity;
    struct signal_table table;
    bool good;              /* the last reading of it was taken */
    bool more;              /* not all rows had room */
    int64_t failed_told_ms; /* 0: nothing is wrong */
    int64_t offered_ms, trace_begin_ms, trace_row;
    struct power_slot pieces[PIECES_MAX];
};

static enum status file_open(const struct signal_ear *ear, void **feed, struct error *err)
{
    struct signal_file *file = mem_alloc(1, sizeof *file);
    if (!file) return error_set(err, ST_NOMEM, "no memory for a power signal");
    file->ear = ear;
    *feed = file;
    return ST_OK;
}

static void file_close(void *feed)
{
    struct signal_file *file = feed;
    signal_table_free(&file->table);
    mem_free(file);
}

/* ---- telling ---- */

/* Rows that lie in the store's window, and of those with times inside a quarter that bind, the next ones. */
static uint32_t choose_rows(struct signal_file *file, int64_t now_ms)
{
    const struct signal_table *table = &file->table;
    const int64_t first_ms = (now_ms / SIGNAL_SLOT_MS - SIGNAL_SLOTS_PAST) * SIGNAL_SLOT_MS;
    const int64_t last_ms = first_ms + (int64_t)SIGNAL_SLOTS * SIGNAL_SLOT_MS;
    uint32_t count = 0, events = 0;
    file->more = false;
    for (uint32_t i = 0; i < table->count && count < PIECES_MAX; i++) {
        struct power_slot slot = table->slots[i];
        int64_t end_ms = slot.t0_ms + (int64_t)slot.dur_s * 1000;
        if (end_ms <= first_ms || slot.t0_ms >= last_ms) continue;
        bool exact = slot.t0_ms % SIGNAL_SLOT_MS || end_ms % SIGNAL_SLOT_MS || end_ms > last_ms;
        if (exact && slot.have & (SLOT_CAP | SLOT_TARGET | SLOT_SHED)) {
            if (end_ms <= now_ms) continue;
            file->more |= events == SIGNAL_EVENTS_MAX;
            if (events++ >= SIGNAL_EVENTS_MAX) continue;
        }
        if (!table->has_quality && slot.t0_ms > now_ms) slot.quality = SLOT_FORECAST;
        file->pieces[count++] = slot;
    }
    return count;
}

static bool offer_rows(struct signal_file *file, int64_t now_ms)
{
    const struct signal_ear *ear = file->ear;
    if (file->table.holds) {
        struct power_slot slot = file->table.slots[0];
        slot.t0_ms = now_ms - now_ms % SIGNAL_SLOT_MS;
        slot.dur_s = HOLDS_S;
        return signal_replace(ear->signals, ear->source, &slot, 1, now_ms);
    }
    uint32_t count = choose_rows(file, now_ms);
    return signal_replace(ear->signals, ear->source, file->pieces, count, now_ms);
}

/* The row of a moment, and of the trace's time how far into the row it is. */
static uint32_t trace_row_at(const struct signal_file *file, int64_t unix_ms, double *into_ms)
{
    const struct signal_table *table = &file->table;
    const struct power_slot *first = &table->slots[0], *last = &table->slots[table->count - 1];
    double length_ms = (double)(last->t0_ms - first->t0_ms) + last->dur_s * 1000.0;
    double at_ms = fmod((double)(unix_ms - file->trace_begin_ms) * file->ear->spec->speed, length_ms);
    if (at_ms < 0) at_ms += length_ms;
    uint32_t low = 0, high = table->count - 1;
    while (low < high) {
        uint32_t middle = (low + high + 1) / 2;
        if ((double)(table->slots[middle].t0_ms - first->t0_ms) <= at_ms)
            low = middle;
        else
            high = middle - 1;
    }
    *into_ms = at_ms - (double)(table->slots[low].t0_ms - first->t0_ms);
    return low;
}

static struct power_slot trace_piece(const struct signal_file *file, uint32_t row, int64_t t0_ms, int32_t dur_s)
{
    return (struct power_slot){.t0_ms = t0_ms,
                               .dur_s = dur_s,
                               .have = SLOT_GREEN,
                               .green_w = file->table.slots[row].green_w * file->ear->spec->scale_w,
                               .quality = SLOT_FORECAST};
}

/* All that is ahead, then the quarter of an hour under way by what is now. */
static bool offer_trace(struct signal_file *file, int64_t now_ms)
{
    const struct signal_ear *ear = file->ear;
    int64_t at_ms = now_ms - now_ms % SIGNAL_SLOT_MS, quarter_ms = at_ms;
    int64_t end_ms = at_ms + (int64_t)(SIGNAL_SLOTS - SIGNAL_SLOTS_PAST) * SIGNAL_SLOT_MS;
    uint32_t count = 0;
    double into_ms;
    while (at_ms < end_ms && count < PIECES_MAX) {
        uint32_t row = trace_row_at(file, at_ms, &into_ms);
        double left_s = (file->table.slots[row].dur_s * 1000.0 - into_ms) / ear->spec->speed / 1000;
        int32_t dur_s = left_s > 1 ? (int32_t)fmin(ceil(left_s), 900) : 1;
        file->pieces[count++] = trace_piece(file, row, at_ms, dur_s);
        at_ms += (int64_t)dur_s * 1000;
    }
    uint32_t now_row = trace_row_at(file, now_ms, &into_ms);
    struct power_slot now = trace_piece(file, now_row, quarter_ms, SIGNAL_QUARTER_S);
    now.quality = SLOT_MEASURED;
    file->trace_row = now_row;
    return signal_replace(ear->signals, ear->source, file->pieces, count, now_ms) &&
           signal_offer(ear->signals, ear->source, &now, 1, now_ms) == 1;
}

static bool offer(struct signal_file *file, int64_t now_ms)
{
    file->offered_ms = now_ms;
    return file->table.is_trace ? offer_trace(file, now_ms) : offer_rows(file, now_ms);
}

/* Whether the store should be told again, of the same content. */
static bool is_due(const struct signal_file *file, int64_t now_ms)
{
    double into_ms;
    if (now_ms / SIGNAL_SLOT_MS != file->offered_ms / SIGNAL_SLOT_MS || now_ms < file->offered_ms) return true;
    if (file->more) return now_ms - file->offered_ms >= AGAIN_MS;
    return file->table.is_trace && trace_row_at(file, now_ms, &into_ms) != file->trace_row;
}

/* ---- looking ---- */

static void fail(struct signal_file *file, enum signal_why why, const char *reason, bool is_new, int64_t now_ms)
{
    const struct signal_ear *ear = file->ear;
    bool again = now_ms - file->failed_told_ms >= ear->spec->period_ms || now_ms < file->failed_told_ms;
    file->good = false;
    if (!is_new && !again) return;
    signal_failed(ear->signals, ear->source, why, reason);
    if (is_new)
        log_line(LOG_WARN, "signal", "source=\"%s\" kept=\"what was told before, ageing\" reason=\"%s\"",
                 ear->spec->name, reason);
    file->failed_told_ms = now_ms;
}

static void read_again(struct signal_file *file, int64_t now_ms)
{
    const struct signal_ear *ear = file->ear;
    struct signal_table table;
    struct error err = {""};
    struct signal_state state;
    char *text = NULL;
    size_t length;
    enum status status =
        file_read(ear->spec->place, limits.signal_file_bytes, "signal_file_bytes", &text, &length, &err);
    if (status == ST_OK) status = signal_table_read(text, length, &table, &err);
    mem_free(text);
    if (status == ST_OK && table.is_trace && !(ear->spec->scale_w > 0)) {
        status = error_set(&err, ST_INVAL, "a trace needs scale=, the watts of 1.0");
        signal_table_free(&table);
    }
    if (status != ST_OK) {
        fail(file, status == ST_NOTFOUND ? SIGNAL_UNREACHABLE : SIGNAL_UNREADABLE, err.message, true, now_ms);
        return;
    }
    signal_table_free(&file->table);
    file->table = table;
    if (file->trace_begin_ms == 0) file->trace_begin_ms = now_ms - now_ms % SIGNAL_SLOT_MS;
    file->good = offer(file, now_ms);
    file->failed_told_ms = 0;
    signal_read_state(ear->signals, ear->source, now_ms, &state);
    log_line(file->good ? LOG_INFO : LOG_WARN, "signal", "source=\"%s\" rows=%u%s%s%s", ear->spec->name, table.count,
             file->good ? "" : " kept=\"what was told before, ageing\" reason=\"", file->good ? "" : state.message,
             file->good ? "" : "\"");
}

static uint32_t file_look(void *feed, int64_t now_ms)
{
    struct signal_file *file = feed;
    struct stat found;
    if (stat(file->ear->spec->place, &found) != 0) {
        fail(file, SIGNAL_UNREACHABLE, "there is no such file, or no right to see it",
             file->identity.inode != 0 || file->failed_told_ms == 0, now_ms);
        file->identity = (struct file_identity){.device = 0};
        return LOOK_MS;
    }
    struct file_identity identity = {(uint64_t)found.st_dev, (uint64_t)found.st_ino, (uint64_t)found.st_size,
                                     (int64_t)found.st_mtim.tv_sec * 1000000000 + found.st_mtim.tv_nsec};
    if (memcmp(&identity, &file->identity, sizeof identity) != 0) {
        int64_t since_ms = now_ms - identity.changed_ns / 1000000;
        file->identity = identity;
        if (since_ms >= 0 && since_ms < JUST_WRITTEN_MS)
            file->identity.changed_ns = 0; /* once more, at the next look */
        read_again(file, now_ms);
    } else if (!file->good) {
        if (file->failed_told_ms) fail(file, SIGNAL_UNREADABLE, "the file is as bad as before", false, now_ms);
    } else if (is_due(file, now_ms)) {
        file->good = offer(file, now_ms);
    } else {
        signal_beat(file->ear->signals, file->ear->source, now_ms);
    }
    return LOOK_MS;
}

const struct signal_provider signal_file = {
    .limits = true, .at_once = true, .open = file_open, .look = file_look, .close = file_close};
