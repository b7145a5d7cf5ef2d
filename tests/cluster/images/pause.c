/* Waits until it is told to end, and takes in the orphans of its process namespace: what holds a pod's namespaces.
 * Says so on its output, so that there is a log to read; `pause exit` ends at once, to be run as a probe. */
#define _POSIX_C_SOURCE 200809L
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

int main(int argc, char **argv) {
    sigset_t signals;
    int signal = 0;

    if (argc > 1 && strcmp(argv[1], "exit") == 0) {
        puts("exiting");
        return 0;
    }
    sigemptyset(&signals);
    sigaddset(&signals, SIGCHLD);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    puts("waiting");
    fflush(stdout);
    while (sigwait(&signals, &signal) == 0 && signal == SIGCHLD)
        while (waitpid(-1, NULL, WNOHANG) > 0)
            continue;
    puts("ending");
    return 0;
}
