/* How the engine and the opener start their threads. */
#include "internal.h"

#include <signal.h>
#include <stdio.h>

#define NAME_BYTES 16 /* as pthread_setname_np(3) allows, with its NUL */

/**
 * bp__thread_start() - Start a thread that no signal interrupts, with a name
 * @ret: Receives the thread
 * @body: What it runs
 * @argument: Argument of @body
 * @kind: The name's beginning, up to 11 characters
 * @index: The number behind it
 *
 * Signals are Python's: the thread blocks all. So SIGPIPE, which splice(2) cannot suppress, stays pending.
 *
 * Return: 0, or a negative errno
 * Thread: any
 */
int bp__thread_start(pthread_t *ret, bp__thread_body *body, void *argument, const char *kind, unsigned index) {
    sigset_t all, before;
    char name[NAME_BYTES];
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int r = pthread_create(ret, NULL, body, argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (r)
        return -r;
    snprintf(name, sizeof name, "%.11s-%u", kind, index % 1000u);
    (void)pthread_setname_np(*ret, name);
    return 0;
}
