/* See rank_threads.h. */
#include "tests/support/rank_threads.h"

static void *thread_main(void *state)
{
    struct rank_thread *thread = state;
    thread->status = rank_worker_run(thread->socket, thread->config, &thread->err);
    return NULL;
}

enum status rank_threads_start(void *state, uint32_t rank, int socket, int32_t *pid)
{
    struct rank_threads *threads = state;
    struct rank_thread *thread = &threads->threads[threads->count];
    (void)rank;
    *pid = 0;
    thread->config = &threads->config;
    thread->socket = socket;
    if (pthread_create(&thread->thread, NULL, thread_main, thread)) return ST_LIMIT;
    threads->count++;
    return ST_OK;
}

void rank_threads_join(struct rank_threads *threads)
{
    for (uint32_t i = 0; i < threads->count; i++) pthread_join(threads->threads[i].thread, NULL);
    threads->count = 0;
}
