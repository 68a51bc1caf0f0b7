/* start PROGRAM [ARGUMENT...]: becomes PROGRAM, with SIGTERM and SIGINT held back.
 *
 * The first process of a container is not given a signal that it has no handler for: Linux drops it. Python needs a
 * part of a second, and on a busy node some, until it has handlers, and a pod may be told to go in just that time. It
 * would then not know, take jobs to the end of its grace period, and be killed with one in hand. A signal that is held
 * back is kept, and reaches the worker when that is ready for it: engineroom_worker lets it through. What comes before
 * even this program runs is waited with by `heard`.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int main(int count, char **arguments) {
    sigset_t held;
    if (count < 2) {
        fprintf(stderr, "usage: start PROGRAM [ARGUMENT...]\n");
        return 2;
    }
    sigemptyset(&held);
    sigaddset(&held, SIGTERM);
    sigaddset(&held, SIGINT);
    sigprocmask(SIG_BLOCK, &held, NULL);
    execvp(arguments[1], arguments + 1);
    fprintf(stderr, "start: cannot run %s: %s\n", arguments[1], strerror(errno));
    return errno == ENOENT ? 127 : 126;
}
