/* A whole number divided over parties by weight, exactly: the parts add up to the whole, and none is a unit or more
 * from its due. Largest remainder method (Hamilton). Pure, any thread, no allocation. */
#ifndef RUNTIME_POWER_APPORTION_H
#define RUNTIME_POWER_APPORTION_H

#include <stdbool.h>
#include <stdint.h>

enum { APPORTION_PARTIES_MAX = 1 << 20 };

/* Divides whole (below 2^63) over `parties` by their weights into parts, which add up to it. A weight that is not
 * finite or not positive counts as 0, and its party gets nothing; weights count to a 2^-40th of the largest. Equal
 * remainders: the earlier party first. remainders: room for as many numbers as parties. False, and nothing is divided:
 * no weight at all, while there is something to divide. */
bool apportion(uint64_t whole, const double *weights, uint32_t parties, uint64_t *parts, uint64_t *remainders);

#endif
