/* One --power-signal as it is typed:  KIND:PLACE[,name=value]...
 *
 *   file:/etc/power.csv,share=0.25,rank=1      redis:north      fixed:price=0.31,gco2=400,pue=1.2
 *
 * PLACE (a path, a URL, a hub's name) ends where the first ",name=" with a name of the kind's begins, so that commas in
 * it need no escapes. Which kinds there are and which names they take stands in two tables of signal_spec.c. A secret
 * is never part of it: arguments are visible to every user of the machine. Pure; any thread. */
#ifndef SERVER_POWER_SIGNAL_SPEC_H
#define SERVER_POWER_SIGNAL_SPEC_H

#include "server/power/signal.h"

#include <stddef.h>

enum { SIGNAL_PLACE_BYTES = 1024, SIGNAL_TEXT_BYTES = 256, SIGNAL_WORD_BYTES = 129 };

#define SIGNAL_UNSAID UINT32_MAX

enum signal_kind {
    SIGNAL_KIND_FIXED,
    SIGNAL_KIND_FILE,
    SIGNAL_KIND_REDIS,
    SIGNAL_KIND_ELECTRICITY_MAPS,
    SIGNAL_KIND_CARBON_AWARE,
    SIGNAL_KIND_WATTTIME,
    SIGNAL_KIND_OPENADR,
    SIGNAL_KINDS
};

struct signal_spec {
    enum signal_kind kind;
    char place[SIGNAL_PLACE_BYTES];
    char name[SIGNAL_NAME_BYTES]; /* name=; "": not given */
    uint32_t rank;                /* rank=; without it the place in the order of the options */
    uint32_t period_ms;           /* period= (seconds): how often it should be heard */
    double share;                 /* share= of the hub's watts, 1 */
    double scale_w;               /* scale= watts of 1.0 in a trace; 0: not given */
    double speed;                 /* speed= of a trace's time, 1 */
    struct power_slot constants;  /* price=, gco2=, pue= */
    char url[SIGNAL_TEXT_BYTES];  /* url= of Redis; "": that of --redis */
    /* Of servers; "": not given. */
    char secret_env[SIGNAL_WORD_BYTES], secret_file[SIGNAL_TEXT_BYTES]; /* where the secret is: a variable, a file */
    char user[SIGNAL_TEXT_BYTES], token_url[SIGNAL_TEXT_BYTES];         /* whose it is, and where it gives a token */
    char scope[SIGNAL_WORD_BYTES], ca_file[SIGNAL_TEXT_BYTES];
    uint32_t marginal; /* marginal= 0 or 1: what the carbon told is; SIGNAL_UNSAID: as the kind has it */
    char version[8], ven[SIGNAL_WORD_BYTES], program[SIGNAL_WORD_BYTES], currency[8]; /* of openadr */
    double plan_w; /* plan= watts that the hub draws by plan; 0: unknown */
};

const char *signal_kind_text(enum signal_kind kind);

/* order: how many were typed before it. ST_INVAL: err says what is wrong and names it as typed. */
NODISCARD enum status signal_spec_read(const char *text, uint32_t order, struct signal_spec *spec, struct error *err);

#endif
