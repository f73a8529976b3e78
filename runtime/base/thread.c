/* Starting threads that take no signals. */
#include "runtime/base/thread.h"

#include <signal.h>

enum status thread_start(pthread_t *thread, void *(*run)(void *state), void *state)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* what a thread begins with is its parent's */
    int error = pthread_create(thread, NULL, run, state);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error == 0 ? ST_OK : ST_LIMIT;
}
