/* heard: waits until the container's first process would hear SIGTERM.
 *
 * A container's preStop hook, which the kubelet runs before it sends the signal. `start` holds the signal back as soon
 * as it runs; but a container counts as started a little before its program does, some ten milliseconds on a busy
 * node, and what is sent to it in between is lost. Exit status 0 once the first process catches or holds back SIGTERM;
 * 1 after a minute, and the signal is sent whatever may come of it.
 */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#ifndef STATUS
#define STATUS "/proc/1/status"
#endif
#ifndef PATIENCE
#define PATIENCE 60000
#endif

static int would_hear(void) {
    char line[256];
    unsigned long long signals, term = 1ULL << (SIGTERM - 1);
    int result = 0;
    FILE *status = fopen(STATUS, "r");
    if (status == NULL) return 0;
    while (!result && fgets(line, sizeof line, status) != NULL)
        if ((sscanf(line, "SigCgt: %llx", &signals) == 1 || sscanf(line, "SigBlk: %llx", &signals) == 1) &&
            (signals & term) != 0)
            result = 1;
    fclose(status);
    return result;
}

int main(void) {
    const struct timespec pause = {0, 10 * 1000 * 1000};
    for (int waited = 0; waited < PATIENCE; waited += 10) {
        if (would_hear()) return 0;
        nanosleep(&pause, NULL);
    }
    return 1;
}
