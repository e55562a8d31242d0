/* The clock and the line of figures that the process-making programs share. */
#ifndef CLOCK_H
#define CLOCK_H

#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/* No run outlasts this, whatever goes wrong in it. */
enum { SECONDS_AT_MOST = 60 };

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

/* Read by benches/spawn.rs. */
static void print_figures(long processes, double seconds)
{
    printf("processes=%ld seconds=%.6f per_second=%.1f\n", processes, seconds, processes / seconds);
}

static void die(const char *operation)
{
    perror(operation);
    exit(1);
}

#endif
