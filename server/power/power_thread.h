/* The thread that keeps the node's watts: it reads the meter every 20 ms, runs the loop of power_loop.h and tells the
 * engines what they may take.
 *
 *   io thread: options, goals, metrics --lock--> goal, state
 *   power thread: ports -> records -> loop <- meter; loop -> orders -> ports
 *   engine threads: their port alone, without a lock
 *
 * The goal is merged anew at every look, and at once when a source or an operator has news: power_goal.h. A goal of
 * POST /admin/power counts until its end. The lock guards the list of
 * ports, the goals and the state shown; it is not held while the meter is read. */
#ifndef SERVER_POWER_POWER_THREAD_H
#define SERVER_POWER_POWER_THREAD_H

#include "runtime/base/clock.h"
#include "runtime/power/cost.h"
#include "server/power/power_loop.h"
#include "server/power/request_energy.h"
#include "server/power/signal.h"

/* Models that have totals of their own; one more takes what others use. */
enum { POWER_MODELS_MAX = 16, POWER_MODEL_NAME_MAX = 255 };

struct power;

struct power_config {
    const char *sensor;          /* auto, nvml, rapl, simulated, none */
    double idle_w, full_w;       /* 0: as the meter tells */
    double floor_w;              /* 0: a tenth of the range above idle */
    double cap_w, target_w;      /* 0: none */
    struct signals *signals;     /* what sources tell, borrowed; NULL: there are none */
    const struct tariff *tariff; /* of a kWh while no source tells a price, borrowed; NULL: none */
    double itl_limit_s;          /* of token intervals of interactive requests; 0: there is none */
    double residual_g;           /* CO2 of a kWh by the market once green is matched; 0: as the grid's mean */
    /* The energy of a billed request that has ended, slot by slot. Power thread; may not wait. NULL: nobody asks. */
    void (*note)(void *state, const struct energy_note *note);
    void *note_state;
    const struct clock *clock;
};

/* What is shown. */
struct power_state {
    char sensor[64];
    bool estimated;     /* the meter is simulated */
    double watts;       /* of the last window */
    double setpoint_w;  /* what is held now; infinity: nothing is */
    double allowance_w; /* of work; infinity: no limit */
    double error_ratio; /* watts against the set point, less 1; 0 without */
    double idle_w, full_w, floor_w;
    double meter_j, meter_s; /* what the meter has counted since it was opened, and in how long */
    struct power_goal goal;  /* in force: merged */
    struct power_goal hand;  /* of it, by hand */
    struct power_slot told;  /* of it, by sources */
    uint64_t until_unix_ms;  /* end of a goal given by hand; 0: none */
    enum throttle_alarm alarm;
    uint64_t windows, read_failures, steps_lost;
    double itl_p95_s; /* of interactive requests in the last second; 0: none, or no limit */
    bool rows_capped; /* the guard of that limit holds flex and batch to rows_most rows a step */
    uint32_t rows_most;
    struct energy_books books; /* every joule of the meter since the start, once */
};

/* *power NULL and ST_OK: there is no meter, and no limit was asked for. ST_INVAL: the options contradict each other or
 * a limit has no meter (err names the option); ST_NOTFOUND: the meter asked for is not there; ST_NOMEM. */
NODISCARD enum status power_create(const struct power_config *config, struct power **power, struct error *err);
/* After all ports are closed. NULL is fine. */
void power_destroy(struct power *power);

/* An engine's port, from before it starts until after it has stopped; its steps are booked for the model (cut at
 * POWER_MODEL_NAME_MAX). ST_NOMEM. Any thread. close: what the engine has told is still booked. */
NODISCARD enum status power_open_port(struct power *power, const char *model, struct power_port **port);
void power_close_port(struct power *power, struct power_port *port); /* NULL is fine */

/* By hand; holds at the next step, beside options and sources. until_unix_ms 0: until another is given. io thread.
 * ST_INVAL (err): a value that cannot be; the goal before it holds on. */
NODISCARD enum status power_set_goal(struct power *power, const struct power_goal *goal, uint64_t until_unix_ms,
                                     struct error *err);
void power_read_state(struct power *power, struct power_state *state);

/* Joules of requests by model and service class, since the start: with the other phases of the books the meter. */
struct power_usage {
    uint32_t count; /* of models that have had a port */
    char models[POWER_MODELS_MAX + 1][POWER_MODEL_NAME_MAX + 1];
    struct energy_group groups[POWER_MODELS_MAX + 1][CLASS_COUNT];
    struct energy_books books; /* of the same moment */
    struct request_energy_counts requests;
    double seconds;                  /* in which the books' joules were counted */
    double paid, paid_kwh, door_kwh; /* money for so many kWh at the building's door; all of them */
    double price_kwh;                /* now; NAN: nobody tells */
};
void power_read_usage(struct power *power, struct power_usage *usage);

/* A request, from before it is submitted until its last event; its joules are booked and noted. io thread. The lock is
 * never held for longer than a look at the books takes. */
void power_request_begin(struct power *power, uint64_t id, const struct request_energy_who *who);
void power_request_end(struct power *power, uint64_t id, uint64_t deferral_ms);
/* Joules of a request at its end, before its last windows are closed: those of closed ones, and by the model what was
 * told since, or is known to have been done (prompts, rows) and was not told yet. running: sequences beside it. */
double power_request_joules(struct power *power, uint64_t id, uint64_t prompts, uint64_t rows, uint32_t running);
/* As request_energy_tenant. */
bool power_tenant(struct power *power, uint32_t *next, struct tenant_energy *tenant);

#endif
