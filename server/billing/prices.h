/* What a token of a model weighs, from a YAML file (--prices):
 *
 *   version: 7                                                  1 and up; grows with every change of the file
 *   default: [class=0, input=1, cached=0.1, output=4]           for models without a line of their own
 *   org/model-name: [class=2, input=0.25, cached=0.025, output=1.5]
 *
 * A line is for a name under which a model is served (the first of its names that has one). class is the model class
 * (0..52) that a package's class mask speaks of; the others are micro-tokens of a million a token: decimals of at most
 * six places, at most 1000. Exact: read as integers, never as floats. All four must be there; what is not known, or
 * stands twice, is refused. Without a file every token weighs 1, of class 0, version 0.
 *
 * Read-only once made; any thread. */
#ifndef SERVER_BILLING_PRICES_H
#define SERVER_BILLING_PRICES_H

#include "runtime/base/status.h"
#include "server/billing/record.h"

#include <stdbool.h>
#include <stdint.h>

struct price {
    uint8_t mclass;
    uint64_t in_ppm, hit_ppm, out_ppm; /* at most WEIGHT_PPM_MAX */
};

struct prices;

/* path NULL: the prices without a file. ST_IO, ST_NOTFOUND, ST_LIMIT: the file; ST_INVAL: err names line or model;
 * ST_NOMEM. */
NODISCARD enum status prices_read(const char *path, struct prices **prices, struct error *err);
void prices_destroy(struct prices *prices);

/* Whether `next` may take the place of `now`: the same file, or a higher version; else ST_INVAL. Two contents under one
 * version could not be told apart in a bill. */
NODISCARD enum status prices_follow(const struct prices *now, const struct prices *next, struct error *err);

uint32_t prices_version(const struct prices *prices);
/* The price of a model under its names (at least one), the default's if none has a line. */
const struct price *prices_find(const struct prices *prices, char *const *names, uint32_t count);
/* Fills version, class and weights of a charge. */
void prices_fill(const struct prices *prices, const struct price *price, struct charge *charge);

/* "1", "0.25", "12.000001" into parts per million. False: anything else, or more than WEIGHT_PPM_MAX. */
bool weight_read(const char *text, uint64_t *ppm);

#endif
