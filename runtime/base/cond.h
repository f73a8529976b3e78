/* Conditions that wait until a time of the system's monotonic clock (clock_system); pthread's own waits end by the wall
 * clock, which jumps. Otherwise pthread's, under their mutex as ever. */
#ifndef RUNTIME_BASE_COND_H
#define RUNTIME_BASE_COND_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

/* False: no memory (never with glibc). pthread_cond_destroy ends it. */
bool cond_init(pthread_cond_t *condition);
/* pthread_cond_timedwait; false: the time has come. */
bool cond_wait_until(pthread_cond_t *condition, pthread_mutex_t *mutex, uint64_t until_ns);

#endif
