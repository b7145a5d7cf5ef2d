/* A wrong time of day for one process, loaded into it by LD_PRELOAD: SKEW_SECONDS is added to CLOCK_REALTIME and to nothing
   else. The boot and monotonic clocks, which everything but the time of day is decided by, stay right, and so do timers:
   the kernel has no such thing (a time namespace moves the other clocks), and libfaketime moves timers too and needs
   shared memory. It works on a dynamic binary that asks the C library. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long skew;

__attribute__((constructor)) static void read_skew(void) {
    const char *seconds = getenv("SKEW_SECONDS");
    if (seconds) skew = atol(seconds);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = (int)syscall(SYS_clock_gettime, clock, now);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += skew;
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    (void)zone;
    struct timespec precise;
    if (clock_gettime(CLOCK_REALTIME, &precise) != 0) return -1;
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at) {
    struct timespec now;
    if (clock_gettime(CLOCK_REALTIME, &now) != 0) return (time_t)-1;
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
