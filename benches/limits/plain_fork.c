/*
 * New processes without a template, one at a time: `plain_fork fork COUNT HOLD_MB` and
 * `plain_fork spawn COUNT HOLD_MB PROGRAM`.
 *
 * Each process has a socket of its own, whose end of file the parent awaits before it reaps the
 * process: so a start and an end are truly seen, as in template.c. HOLD_MB is memory that the parent
 * has written to: fork copies its page tables and so gets slower with it; posix_spawn, which shares
 * them until the exec, does not.
 */
#include "clock.h"
#include <spawn.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static pid_t start_by_fork(int ends[2], char *program)
{
    (void)program;
    pid_t pid = fork();
    if (pid == 0)
        _exit(0);
    close(ends[1]);
    return pid;
}

static pid_t start_by_spawn(int ends[2], char *program)
{
    pid_t pid;
    char *arguments[] = { program, NULL };
    if (posix_spawn(&pid, program, NULL, NULL, arguments, environ) != 0)
        return -1;
    close(ends[1]);
    return pid;
}

static void see_end(int end, pid_t pid)
{
    char byte;
    int status;
    if (pid < 0 || read(end, &byte, 1) != 0 || waitpid(pid, &status, 0) != pid || status != 0)
        die("start a process and see its end");
    close(end);
}

static void hold(size_t megabytes)
{
    size_t length = megabytes * 1000 * 1000;
    char *held = malloc(length ? length : 1);
    if (held == NULL)
        die("hold memory");
    memset(held, 1, length);
    __asm__ volatile("" : : "r"(held) : "memory"); /* the compiler must not leave the writes out */
}

int main(int argc, char **argv)
{
    int by_fork = argc == 4 && strcmp(argv[1], "fork") == 0;
    int by_spawn = argc == 5 && strcmp(argv[1], "spawn") == 0;
    long count = by_fork || by_spawn ? atol(argv[2]) : 0;
    if (count < 1) {
        fprintf(stderr, "usage: %s fork COUNT HOLD_MB | spawn COUNT HOLD_MB PROGRAM\n", argv[0]);
        return 2;
    }
    alarm(SECONDS_AT_MOST);
    hold(atol(argv[3]));

    pid_t (*start_one)(int ends[2], char *program) = by_fork ? start_by_fork : start_by_spawn;
    double start = now();
    for (long i = 0; i < count; i++) {
        int ends[2];
        if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends) < 0)
            die("socketpair");
        see_end(ends[0], start_one(ends, argv[4]));
    }
    print_figures(count, now() - start);
    return 0;
}
