/* Threads beside the main one: signals are its business, theirs are none. */
#ifndef RUNTIME_BASE_THREAD_H
#define RUNTIME_BASE_THREAD_H

#include "runtime/base/status.h"

#include <pthread.h>

/* pthread_create, with every signal blocked in the new thread. ST_LIMIT: the system gives none. */
NODISCARD enum status thread_start(pthread_t *thread, void *(*run)(void *state), void *state);

#endif
