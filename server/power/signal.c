/* The store of what sources tell; see signal.h.
 *
 * A slot that is told is cut into pieces at quarters of an hour. The fields of a quarter are kept each with the serial
 * number of the offer that told it: within one offer pieces are averaged (of caps and targets the lowest is kept, of
 * shed levels the highest), a later offer begins anew. */
#include "server/power/signal.h"

#include "runtime/base/mem.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

enum { FIELDS = 6, SHED_FIELD = 6, PERIODS_FRESH = 3, NAMEPLATE_TIMES = 10, LAG_SLOTS = 4, NAME_LEAST = 1 };
enum {
    BINDING = SLOT_CAP | SLOT_TARGET | SLOT_SHED,
    KNOWN = 127,
    TOLD_OF = SLOT_GREEN | SLOT_PRICE | SLOT_CO2 | SLOT_PUE
};
enum { PERIOD_MS_MAX = 12 * 3600 * 1000 };
static const double GCO2_MAX = 10000, PUE_MAX = 10, PRICE_MAX = 1e6, WATTS_MAX = 1e9;
static const int64_t TIME_MS_MAX = INT64_C(253402300800000); /* year 10000 */

struct cell {
    int64_t number;               /* of the quarter since 1970; 0: empty */
    struct power_slot slot;       /* received_ms: the newest of its fields */
    uint32_t serials[FIELDS + 1]; /* of the offer that told the field */
    int64_t weights_ms[FIELDS];   /* time that the mean is over */
};

struct event {
    int64_t begin_ms, end_ms;
    struct power_slot slot; /* BINDING fields */
};

struct source {
    char name[SIGNAL_NAME_BYTES];
    uint32_t rank, period_ms;
    double share;
    bool limits;    /* tells caps or targets, as far as known */
    uint32_t tells; /* fields ever told */
    uint32_t serial;
    int64_t heard_ms, replaced_ms, newest_ms; /* the last: told of what is held */
    struct cell cells[SIGNAL_SLOTS];
    struct event events[SIGNAL_EVENTS_MAX];
    uint32_t events_count;
    uint64_t taken, rejected[SIGNAL_WHYS];
    char message[256];
};

struct signals {
    struct signal_config config;
    void (*changed)(void *state);
    void *changed_state;
    uint32_t count;
    uint16_t order[SIGNAL_SOURCES_MAX]; /* by rank, then as registered */
    pthread_mutex_t mutex;              /* guards what follows, and what sources have told */
    double watts_max;
    struct source *sources[SIGNAL_SOURCES_MAX];
};

const char *signal_why_text(enum signal_why why)
{
    static const char *const texts[] = {
#define X(name, text) text,
        SIGNAL_WHY_MAP(X)
#undef X
    };
    return texts[why];
}

const char *signal_age_text(enum signal_age age)
{
    static const char *const texts[] = {"fresh", "stale", "gone"};
    return texts[age];
}

/* ---- fields ---- */

static const char *const field_names[] = {"cap_w", "target_w", "green_w", "price_kwh", "gco2_kwh", "pue", "shed_level"};

static double *field(struct power_slot *slot, int i)
{
    double *const fields[] = {&slot->cap_w,     &slot->target_w, &slot->green_w,
                              &slot->price_kwh, &slot->gco2_kwh, &slot->pue};
    return fields[i];
}

static double value_of(const struct power_slot *slot, int i)
{
    const double values[] = {slot->cap_w, slot->target_w, slot->green_w, slot->price_kwh, slot->gco2_kwh, slot->pue};
    return values[i];
}

/* Copies one field and what belongs to it. */
static void copy_field(struct power_slot *to, const struct power_slot *from, int i)
{
    to->have |= 1u << i;
    *field(to, i) = value_of(from, i);
    if (1u << i == SLOT_CAP) to->cap_hard = from->cap_hard;
    if (1u << i == SLOT_CO2) to->co2_marginal = from->co2_marginal;
}

/* The lower of caps and targets, the higher shed level. */
static void bind(struct power_slot *to, const struct power_slot *from)
{
    if (from->have & SLOT_CAP) {
        bool lower = !(to->have & SLOT_CAP) || from->cap_w < to->cap_w;
        bool hard = !lower && from->cap_w == to->cap_w && (from->cap_hard || to->cap_hard);
        if (lower) copy_field(to, from, 0);
        if (hard) to->cap_hard = true;
    }
    if (from->have & SLOT_TARGET && (!(to->have & SLOT_TARGET) || from->target_w < to->target_w))
        copy_field(to, from, 1);
    if (from->have & SLOT_SHED && (!(to->have & SLOT_SHED) || from->shed_level > to->shed_level))
        to->shed_level = from->shed_level;
    to->have |= from->have & SLOT_SHED;
}

static void worsen(struct power_slot *slot, uint8_t quality)
{
    if (quality > slot->quality) slot->quality = quality;
}

/* ---- the start ---- */

static bool field_fits(int i, double value, double watts_max, enum signal_why *why)
{
    bool watts = i < 3;
    if (isnan(value))
        *why = SIGNAL_NAN;
    else if (isinf(value))
        *why = SIGNAL_INFINITE;
    else if (value < 0 && 1u << i != SLOT_PRICE)
        *why = SIGNAL_NEGATIVE;
    else if (watts && value > watts_max)
        *why = SIGNAL_NAMEPLATE;
    else if ((1u << i == SLOT_PRICE && fabs(value) > PRICE_MAX) || (1u << i == SLOT_CO2 && value > GCO2_MAX) ||
             (1u << i == SLOT_PUE && (value < 1 || value > PUE_MAX)))
        *why = SIGNAL_IMPOSSIBLE;
    else
        return true;
    return false;
}

enum status signal_create(const struct signal_config *config, struct signals **out, struct error *err)
{
    enum signal_why why;
    for (int i = 0; i < FIELDS; i++)
        if (config->constants.have & 1u << i && !field_fits(i, value_of(&config->constants, i), WATTS_MAX, &why))
            return error_set(err, ST_INVAL, "the constant %s cannot be: %s", field_names[i], signal_why_text(why));
    if (!(config->default_cap_w >= 0 && config->default_cap_w <= WATTS_MAX))
        return error_set(err, ST_INVAL, "the cap without a signal must be 0 to %g watts", WATTS_MAX);
    struct signals *signals = mem_alloc(1, sizeof *signals);
    if (!signals) return error_set(err, ST_NOMEM, "no memory for the store of power signals");
    signals->config = *config;
    signals->watts_max = WATTS_MAX;
    pthread_mutex_init(&signals->mutex, NULL);
    *out = signals;
    return ST_OK;
}

void signal_destroy(struct signals *signals)
{
    if (!signals) return;
    for (uint32_t i = 0; i < signals->count; i++) mem_free(signals->sources[i]);
    pthread_mutex_destroy(&signals->mutex);
    mem_free(signals);
}

enum status signal_register(struct signals *signals, const struct signal_source *source, uint16_t *index,
                            struct error *err)
{
    size_t length = strlen(source->name);
    if (signals->count == SIGNAL_SOURCES_MAX)
        return error_set(err, ST_LIMIT, "more than %d sources of power signals", SIGNAL_SOURCES_MAX);
    if (length < NAME_LEAST || length >= SIGNAL_NAME_BYTES)
        return error_set(err, ST_INVAL, "a power signal's name must have 1 to %d bytes", SIGNAL_NAME_BYTES - 1);
    if (source->period_ms < 1 || source->period_ms > PERIOD_MS_MAX)
        return error_set(err, ST_INVAL, "power signal %s: its period must be at most 12 hours", source->name);
    if (!(source->share > 0 && source->share <= 1))
        return error_set(err, ST_INVAL, "power signal %s: its share must be above 0 and at most 1", source->name);
    for (uint32_t i = 0; i < signals->count; i++)
        if (strcmp(signals->sources[i]->name, source->name) == 0)
            return error_set(err, ST_INVAL, "two power signals are named %s: give one name=", source->name);
    struct source *s = mem_alloc(1, sizeof *s);
    if (!s) return error_set(err, ST_NOMEM, "no memory for a power signal");
    memcpy(s->name, source->name, length);
    s->rank = source->rank;
    s->period_ms = source->period_ms;
    s->share = source->share;
    s->limits = source->limits;
    uint32_t at = signals->count;
    for (; at > 0 && signals->sources[signals->order[at - 1]]->rank > s->rank; at--)
        signals->order[at] = signals->order[at - 1];
    signals->order[at] = (uint16_t)signals->count;
    *index = (uint16_t)signals->count;
    signals->sources[signals->count++] = s;
    return ST_OK;
}

void signal_set_nameplate(struct signals *signals, double full_w)
{
    pthread_mutex_lock(&signals->mutex);
    if (full_w > 0 && isfinite(full_w)) signals->watts_max = fmin(WATTS_MAX, NAMEPLATE_TIMES * full_w);
    pthread_mutex_unlock(&signals->mutex);
}

void signal_on_change(struct signals *signals, void (*changed)(void *state), void *state)
{
    signals->changed = changed;
    signals->changed_state = state;
}

/* ---- what is told ---- */

/* The time that is kept: of quarters of an hour, with `end` the first that is not. */
static int64_t first_number(int64_t now_ms)
{
    return now_ms / SIGNAL_SLOT_MS - SIGNAL_SLOTS_PAST;
}
static int64_t end_number(int64_t now_ms)
{
    return first_number(now_ms) + SIGNAL_SLOTS;
}

static struct cell *cell_at(struct source *s, int64_t number)
{
    return &s->cells[number % SIGNAL_SLOTS];
}

/* NULL: nothing is told of it. */
static const struct cell *cell_of(const struct source *s, int64_t number)
{
    const struct cell *cell = number > 0 ? &s->cells[number % SIGNAL_SLOTS] : NULL;
    return cell && cell->number == number ? cell : NULL;
}

static bool is_event(const struct power_slot *slot, int64_t end_ms, int64_t now_ms)
{
    return slot->t0_ms % SIGNAL_SLOT_MS != 0 || end_ms % SIGNAL_SLOT_MS != 0 ||
           end_ms > end_number(now_ms) * SIGNAL_SLOT_MS;
}

static int64_t end_of(const struct power_slot *slot)
{
    return slot->t0_ms + (int64_t)slot->dur_s * 1000;
}

/* What was told in what is now the future was told before the clock was set back: it is no older word to keep to. */
static bool is_newer(int64_t held_ms, const struct power_slot *slot, int64_t now_ms)
{
    return held_ms > slot->received_ms && held_ms <= now_ms + SIGNAL_SLOT_MS;
}

static bool is_old(const struct source *s, const struct power_slot *slot, int64_t now_ms)
{
    int64_t first = slot->t0_ms / SIGNAL_SLOT_MS, last = (end_of(slot) - 1) / SIGNAL_SLOT_MS;
    if (first < first_number(now_ms)) first = first_number(now_ms);
    if (last >= end_number(now_ms)) last = end_number(now_ms) - 1;
    uint32_t have = is_event(slot, end_of(slot), now_ms) ? slot->have & ~(uint32_t)BINDING : slot->have;
    for (int64_t number = first; number <= last; number++) {
        const struct cell *cell = cell_of(s, number);
        if (cell && cell->slot.have & have && is_newer(cell->slot.received_ms, slot, now_ms)) return true;
    }
    for (uint32_t i = 0; i < s->events_count; i++)
        if (s->events[i].begin_ms == slot->t0_ms && is_newer(s->events[i].slot.received_ms, slot, now_ms)) return true;
    return is_newer(s->replaced_ms, slot, now_ms);
}

/* slot: the node's share already. what: the field, or what is wrong about the time. */
static bool fits(const struct signals *signals, const struct source *s, const struct power_slot *slot, int64_t now_ms,
                 enum signal_why *why, const char **what)
{
    for (int i = 0; i < FIELDS; i++) {
        *what = field_names[i];
        if (slot->have & 1u << i && !field_fits(i, value_of(slot, i), signals->watts_max, why)) return false;
    }
    *why = SIGNAL_IMPOSSIBLE;
    *what = field_names[SHED_FIELD];
    if (slot->have & SLOT_SHED && slot->shed_level > SIGNAL_SHED_MAX) return false;
    *what = "the slot";
    if (slot->have & ~(uint32_t)KNOWN || slot->quality > SLOT_FORECAST) return false;
    *what = "the time";
    if (slot->dur_s <= 0 || slot->t0_ms <= 0 || slot->t0_ms > TIME_MS_MAX) return false;
    *why = SIGNAL_CLOCK;
    if (slot->received_ms > now_ms + SIGNAL_SLOT_MS) return false;
    if (slot->quality == SLOT_MEASURED && slot->have & TOLD_OF && slot->t0_ms > now_ms + SIGNAL_SLOT_MS) return false;
    if (end_of(slot) <= first_number(now_ms) * SIGNAL_SLOT_MS) return false;
    *why = SIGNAL_OLD;
    return !is_old(s, slot, now_ms);
}

static void put_field(struct cell *cell, const struct power_slot *slot, int i, int64_t piece_ms, uint32_t serial)
{
    struct power_slot *held = &cell->slot;
    bool goes_on = held->have & 1u << i && cell->serials[i] == serial;
    cell->serials[i] = serial;
    if (!goes_on) {
        copy_field(held, slot, i);
        cell->weights_ms[i] = piece_ms;
    } else if (1u << i & BINDING) {
        struct power_slot one = *slot;
        one.have = 1u << i;
        bind(held, &one);
    } else {
        double before = (double)cell->weights_ms[i], more = (double)piece_ms;
        *field(held, i) = (value_of(held, i) * before + value_of(slot, i) * more) / (before + more);
        cell->weights_ms[i] += piece_ms;
        held->co2_marginal |= 1u << i == SLOT_CO2 && slot->co2_marginal;
    }
}

/* A piece of a slot, in one quarter of an hour. */
static void put_piece(struct source *s, int64_t number, const struct power_slot *slot, uint32_t have, int64_t piece_ms)
{
    struct cell *cell = cell_at(s, number);
    if (cell->number != number) *cell = (struct cell){.number = number};
    bool same = false;
    for (int i = 0; i < FIELDS; i++) same |= cell->slot.have & 1u << i & TOLD_OF && cell->serials[i] == s->serial;
    for (int i = 0; i < FIELDS; i++)
        if (have & 1u << i) put_field(cell, slot, i, piece_ms, s->serial);
    if (have & SLOT_SHED) {
        bool goes_on = cell->slot.have & SLOT_SHED && cell->serials[SHED_FIELD] == s->serial;
        if (!goes_on || slot->shed_level > cell->slot.shed_level) cell->slot.shed_level = slot->shed_level;
        cell->serials[SHED_FIELD] = s->serial;
        cell->slot.have |= SLOT_SHED;
    }
    if (have & TOLD_OF) {
        if (!same) cell->slot.quality = SLOT_MEASURED;
        worsen(&cell->slot, slot->quality);
    }
    if (slot->received_ms > cell->slot.received_ms) cell->slot.received_ms = slot->received_ms;
}

/* The place of an event with the slot's begin, or a free one; NULL: there is none. */
static struct event *event_for(struct source *s, const struct power_slot *slot, int64_t now_ms)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < s->events_count; i++)
        if (s->events[i].begin_ms == slot->t0_ms) return &s->events[i];
    for (uint32_t i = 0; i < s->events_count; i++)
        if (s->events[i].end_ms > now_ms) s->events[kept++] = s->events[i];
    s->events_count = kept;
    return kept < SIGNAL_EVENTS_MAX ? &s->events[s->events_count++] : NULL;
}

/* A slot that fits. False: no room for an event. */
static bool put(struct source *s, const struct power_slot *slot, int64_t now_ms)
{
    int64_t begin_ms = slot->t0_ms, end_ms = end_of(slot);
    bool event = slot->have & BINDING && is_event(slot, end_ms, now_ms);
    if (event) {
        struct event *place = event_for(s, slot, now_ms);
        if (!place) return false;
        *place = (struct event){begin_ms, end_ms, *slot};
        place->slot.have &= BINDING;
    }
    int64_t first_ms = first_number(now_ms) * SIGNAL_SLOT_MS, last_ms = end_number(now_ms) * SIGNAL_SLOT_MS;
    if (begin_ms < first_ms) begin_ms = first_ms;
    if (end_ms > last_ms) end_ms = last_ms;
    uint32_t have = event ? slot->have & ~(uint32_t)BINDING : slot->have;
    while (have && begin_ms < end_ms) {
        int64_t number = begin_ms / SIGNAL_SLOT_MS, border_ms = (number + 1) * SIGNAL_SLOT_MS;
        int64_t piece_end_ms = border_ms < end_ms ? border_ms : end_ms;
        put_piece(s, number, slot, have, piece_end_ms - begin_ms);
        begin_ms = piece_end_ms;
    }
    if (slot->received_ms > s->newest_ms || s->newest_ms > now_ms + SIGNAL_SLOT_MS) s->newest_ms = slot->received_ms;
    s->tells |= slot->have;
    s->taken++;
    return true;
}

static struct power_slot share_of(const struct source *s, uint16_t index, const struct power_slot *told, int64_t now_ms)
{
    struct power_slot slot = *told;
    slot.source = index;
    slot.cap_w *= s->share;
    slot.target_w *= s->share;
    slot.green_w *= s->share;
    if (slot.received_ms ==
        0) { /* told now: never older than what is held, also while a clock that was set back returns */
        bool back = s->newest_ms > now_ms && s->newest_ms <= now_ms + SIGNAL_SLOT_MS;
        slot.received_ms = back ? s->newest_ms : now_ms;
    }
    return slot;
}

static void hear(struct source *s, int64_t now_ms)
{
    s->heard_ms = now_ms;
    s->message[0] = '\0';
    s->limits = (s->tells & (SLOT_CAP | SLOT_TARGET)) != 0;
}

static void refuse(struct source *s, enum signal_why why, const char *what)
{
    s->rejected[why]++;
    (void)snprintf(s->message, sizeof s->message, "refused: %s is %s", what, signal_why_text(why));
}

static void tell_change(const struct signals *signals)
{
    if (signals->changed) signals->changed(signals->changed_state);
}

uint32_t signal_offer(struct signals *signals, uint16_t source, const struct power_slot *slots, uint32_t count,
                      int64_t now_ms)
{
    struct source *s = signals->sources[source];
    uint32_t taken = 0;
    enum signal_why refused = SIGNAL_WHYS, why;
    const char *what, *refused_what = "";
    pthread_mutex_lock(&signals->mutex);
    s->serial++;
    for (uint32_t i = 0; i < count; i++) {
        struct power_slot slot = share_of(s, source, &slots[i], now_ms);
        bool good = fits(signals, s, &slot, now_ms, &why, &what);
        if (good && !put(s, &slot, now_ms)) {
            good = false;
            why = SIGNAL_FULL;
            what = "the list of events";
        }
        taken += good;
        if (good) continue;
        refuse(s, refused = why, refused_what = what);
    }
    if (taken > 0) hear(s, now_ms);
    if (refused != SIGNAL_WHYS)
        (void)snprintf(s->message, sizeof s->message, "refused: %s is %s", refused_what, signal_why_text(refused));
    pthread_mutex_unlock(&signals->mutex);
    if (taken > 0) tell_change(signals);
    return taken;
}

static void forget(struct source *s, int64_t now_ms)
{
    for (uint32_t i = 0; i < SIGNAL_SLOTS; i++)
        if (s->cells[i].number >= now_ms / SIGNAL_SLOT_MS) s->cells[i] = (struct cell){.number = 0};
    s->events_count = 0;
}

bool signal_replace(struct signals *signals, uint16_t source, const struct power_slot *slots, uint32_t count,
                    int64_t now_ms)
{
    struct source *s = signals->sources[source];
    bool good = true;
    uint32_t events = 0;
    int64_t told_ms = 0;
    enum signal_why why;
    const char *what;
    pthread_mutex_lock(&signals->mutex);
    for (uint32_t i = 0; i < count; i++) {
        struct power_slot slot = share_of(s, source, &slots[i], now_ms);
        bool fit = fits(signals, s, &slot, now_ms, &why, &what);
        if (fit && slot.have & BINDING && is_event(&slot, end_of(&slot), now_ms)) events++;
        if (slot.received_ms > told_ms) told_ms = slot.received_ms;
        if (!fit) refuse(s, why, what);
        good &= fit;
    }
    if (good && events > SIGNAL_EVENTS_MAX) {
        refuse(s, SIGNAL_FULL, "the list of events");
        good = false;
    }
    if (good) {
        forget(s, now_ms);
        s->serial++;
        if (count > 0) s->replaced_ms = told_ms;
        for (uint32_t i = 0; i < count; i++) {
            struct power_slot slot = share_of(s, source, &slots[i], now_ms);
            (void)put(s, &slot, now_ms); /* there is room: counted above */
        }
        hear(s, now_ms);
    }
    pthread_mutex_unlock(&signals->mutex);
    if (good) tell_change(signals);
    return good;
}

void signal_beat(struct signals *signals, uint16_t source, int64_t now_ms)
{
    pthread_mutex_lock(&signals->mutex);
    hear(signals->sources[source], now_ms);
    pthread_mutex_unlock(&signals->mutex);
}

void signal_failed(struct signals *signals, uint16_t source, enum signal_why why, const char *message)
{
    struct source *s = signals->sources[source];
    pthread_mutex_lock(&signals->mutex);
    s->rejected[why]++;
    (void)snprintf(s->message, sizeof s->message, "%s", message);
    pthread_mutex_unlock(&signals->mutex);
}

/* ---- what is asked ---- */

static int64_t fresh_until(const struct source *s)
{
    return s->heard_ms + PERIODS_FRESH * (int64_t)s->period_ms;
}

/* A source heard in what is now the future was heard before the clock was set back: how long ago is not known. */
static enum signal_age age_of(const struct source *s, int64_t now_ms)
{
    if (s->heard_ms == 0 || now_ms > fresh_until(s) + SIGNAL_GONE_MS) return SIGNAL_GONE;
    return now_ms > fresh_until(s) || s->heard_ms > now_ms + SIGNAL_SLOT_MS ? SIGNAL_STALE : SIGNAL_FRESH;
}

/* What was told for [from_ms, to_ms), which lies in one quarter of an hour. */
static struct power_slot as_told(const struct source *s, int64_t from_ms, int64_t to_ms)
{
    const struct cell *cell = cell_of(s, from_ms / SIGNAL_SLOT_MS);
    struct power_slot told = cell ? cell->slot : (struct power_slot){.have = 0};
    struct power_slot events = {.have = 0};
    for (uint32_t i = 0; i < s->events_count; i++)
        if (s->events[i].begin_ms < to_ms && s->events[i].end_ms > from_ms) bind(&events, &s->events[i].slot);
    if (events.have & SLOT_TARGET) told.have &= ~(uint32_t)SLOT_TARGET; /* an event's goes before the plan's */
    bind(&told, &events);
    return told;
}

/* Fills price, CO2 and PUE that are missing with the last ones told before `number`, of at most so many quarters. */
static void fill_last(const struct source *s, int64_t number, uint32_t quarters, struct power_slot *view)
{
    const uint32_t wanted = SLOT_PRICE | SLOT_CO2 | SLOT_PUE;
    for (uint32_t back = 0; back < quarters && (wanted & s->tells & ~view->have); back++) {
        const struct cell *cell = cell_of(s, number - back);
        for (int i = 0; cell && i < FIELDS; i++)
            if (wanted & ~view->have & cell->slot.have & 1u << i) {
                copy_field(view, &cell->slot, i);
                worsen(view, SLOT_ESTIMATED);
            }
    }
}

static struct power_slot silent_view(const struct signals *signals, const struct source *s, enum signal_age age,
                                     int64_t from_ms, int64_t to_ms, int64_t now_ms)
{
    const uint32_t prices = SLOT_PRICE | SLOT_CO2 | SLOT_PUE;
    int64_t end_ms = fresh_until(s) < now_ms ? fresh_until(s) : now_ms;
    struct power_slot told = as_told(s, from_ms, to_ms), view = told, last = {.have = 0};
    bool ahead = from_ms / SIGNAL_SLOT_MS > now_ms / SIGNAL_SLOT_MS;
    if (s->heard_ms) last = as_told(s, end_ms, end_ms + 1);
    last.have &= SLOT_CAP | SLOT_TARGET;
    bind(&view, &last);
    if (age == SIGNAL_GONE && s->limits && signals->config.default_cap_w > 0) {
        struct power_slot cap = {.have = SLOT_CAP, .cap_w = signals->config.default_cap_w, .cap_hard = true};
        bind(&view, &cap);
    }
    if (s->tells & SLOT_GREEN) {
        view.have |= SLOT_GREEN;
        view.green_w = 0;
    }
    if (age == SIGNAL_STALE) {
        if (!ahead) view.have &= ~prices; /* the last ones go before what was told for this time */
        fill_last(s, end_ms / SIGNAL_SLOT_MS, SIGNAL_SLOTS, &view);
        for (int i = 3; i < FIELDS; i++)
            if (told.have & ~view.have & 1u << i) copy_field(&view, &told, i);
    }
    worsen(&view, SLOT_ESTIMATED);
    return view;
}

static struct power_slot view_of(const struct signals *signals, const struct source *s, int64_t from_ms, int64_t to_ms,
                                 int64_t now_ms, enum signal_age *age)
{
    *age = age_of(s, now_ms);
    bool was_fresh = s->heard_ms && from_ms <= fresh_until(s) && from_ms <= now_ms;
    if (*age != SIGNAL_FRESH && !was_fresh) return silent_view(signals, s, *age, from_ms, to_ms, now_ms);
    struct power_slot view = as_told(s, from_ms, to_ms);
    fill_last(s, from_ms / SIGNAL_SLOT_MS, LAG_SLOTS, &view);
    return view;
}

/* Fields that are taken of one source: of the best age, then of the best rank (views come by rank). */
static void merge_told(struct power_slot *node, enum signal_age ages[FIELDS], const struct power_slot *view,
                       enum signal_age age, uint8_t qualities[FIELDS])
{
    for (int i = 2; i < FIELDS; i++) {
        if (!(view->have & 1u << i) || (node->have & 1u << i && ages[i] <= age)) continue;
        copy_field(node, view, i);
        ages[i] = age;
        qualities[i] = view->quality;
    }
}

static void merge(struct signals *signals, int64_t from_ms, int64_t to_ms, int64_t now_ms, struct power_slot *node)
{
    enum signal_age ages[FIELDS] = {SIGNAL_FRESH};
    uint8_t qualities[FIELDS] = {0};
    *node = (struct power_slot){
        .t0_ms = from_ms - from_ms % SIGNAL_SLOT_MS, .dur_s = SIGNAL_SLOT_MS / 1000, .source = UINT16_MAX};
    pthread_mutex_lock(&signals->mutex);
    for (uint32_t i = 0; i < signals->count; i++) {
        uint16_t index = signals->order[i];
        enum signal_age age;
        struct power_slot view = view_of(signals, signals->sources[index], from_ms, to_ms, now_ms, &age);
        if (!view.have) continue;
        bool cap = view.have & SLOT_CAP && (!(node->have & SLOT_CAP) || view.cap_w < node->cap_w);
        if (node->source == UINT16_MAX || cap) {
            node->source = index;
            node->received_ms = signals->sources[index]->heard_ms;
        }
        merge_told(node, ages, &view, age, qualities);
        if (node->have & SLOT_TARGET) view.have &= ~(uint32_t)SLOT_TARGET; /* a better rank has told one */
        bind(node, &view);
    }
    pthread_mutex_unlock(&signals->mutex);
    for (int i = 2; i < FIELDS; i++) {
        bool constant = !(node->have & 1u << i) && signals->config.constants.have & 1u << i;
        if (constant) copy_field(node, &signals->config.constants, i);
        if (constant) qualities[i] = SLOT_ESTIMATED;
        if (node->have & 1u << i) worsen(node, qualities[i]);
    }
}

void signal_at(struct signals *signals, int64_t unix_ms, int64_t now_ms, struct power_slot *node)
{
    merge(signals, unix_ms, unix_ms + 1, now_ms, node);
}

void signal_over_slot(struct signals *signals, int64_t unix_ms, int64_t now_ms, struct power_slot *node)
{
    int64_t begin_ms = unix_ms - unix_ms % SIGNAL_SLOT_MS;
    merge(signals, begin_ms, begin_ms + SIGNAL_SLOT_MS, now_ms, node);
}

uint32_t signal_sources(struct signals *signals)
{
    return signals->count;
}

void signal_read_state(struct signals *signals, uint16_t source, int64_t now_ms, struct signal_state *state)
{
    const struct source *s = signals->sources[source];
    pthread_mutex_lock(&signals->mutex);
    *state = (struct signal_state){.rank = s->rank,
                                   .period_ms = s->period_ms,
                                   .share = s->share,
                                   .age = age_of(s, now_ms),
                                   .heard_ms = s->heard_ms,
                                   .taken = s->taken};
    memcpy(state->name, s->name, sizeof state->name);
    memcpy(state->rejected, s->rejected, sizeof state->rejected);
    memcpy(state->message, s->message, sizeof state->message);
    pthread_mutex_unlock(&signals->mutex);
}
