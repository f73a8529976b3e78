/* The largest remainder method in integers; see apportion.h. Weights become integers first: sums of doubles would leave
 * a unit over or short now and then. The remainder that just gets a unit is found by bisection instead of by sorting:
 * qsort may allocate. */
#include "runtime/power/apportion.h"

#include "runtime/base/check.h"

#include <math.h>

enum { WEIGHT_BITS = 40 }; /* of the largest; with APPORTION_PARTIES_MAX their sum stays below 2^61 */

static uint64_t weight_of(double weight, double largest)
{
    if (!isfinite(weight) || weight <= 0) return 0;
    return (uint64_t)(ldexp(weight / largest, WEIGHT_BITS));
}

/* The largest number that at least `units` remainders reach: those above it get a unit, and so many at it as are left.
 */
static uint64_t threshold_of(const uint64_t *remainders, uint32_t parties, uint64_t units, uint64_t sum)
{
    uint64_t low = 0, high = sum;
    while (low < high) {
        uint64_t middle = low + (high - low + 1) / 2, reached = 0;
        for (uint32_t i = 0; i < parties; i++) reached += remainders[i] >= middle;
        if (reached >= units)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

bool apportion(uint64_t whole, const double *weights, uint32_t parties, uint64_t *parts, uint64_t *remainders)
{
    double largest = 0;
    uint64_t sum = 0, left = whole;
    CHECK(parties <= APPORTION_PARTIES_MAX && whole <= INT64_MAX);
    for (uint32_t i = 0; i < parties; i++) {
        if (isfinite(weights[i]) && weights[i] > largest) largest = weights[i];
        parts[i] = 0;
    }
    if (whole == 0) return true;
    if (largest <= 0) return false;
    for (uint32_t i = 0; i < parties; i++) sum += weight_of(weights[i], largest);
    for (uint32_t i = 0; i < parties; i++) {
        unsigned __int128 product = (unsigned __int128)whole * weight_of(weights[i], largest);
        parts[i] = (uint64_t)(product / sum);
        remainders[i] = (uint64_t)(product % sum);
        left -= parts[i];
    }
    if (left == 0) return true;
    uint64_t threshold = threshold_of(remainders, parties, left, sum);
    for (uint32_t i = 0; i < parties; i++)
        if (remainders[i] > threshold) parts[i]++, left--;
    for (uint32_t i = 0; i < parties && left > 0; i++)
        if (remainders[i] == threshold) parts[i]++, left--;
    CHECK(left == 0);
    return true;
}
