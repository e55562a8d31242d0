/*
 * What the two hand-written HTTP servers have in common: the listener, the answer, the
 * announcement of readiness.
 *
 * They show the limit, the least that the kernel must be asked for one "hello". So one read is
 * taken for one whole request, and nothing in it is looked at but the word "close". No server
 * that has to face the world can be that careless: what it is slower by is the price of HTTP.
 *
 * Announcements on stdout, read by benches/support/server.rs:
 *     listening 127.0.0.1:PORT
 *     serving N                  every process is about to accept
 */
#ifndef HELLO_H
#define HELLO_H

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum outcome { KEEP, CLOSE, WAIT };

static char keep_answer[256], close_answer[256];
static size_t keep_length, close_length;

static void die(const char *operation)
{
    perror(operation);
    exit(1);
}

static int listen_on_loopback(int socket_flags)
{
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | socket_flags, 0);
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    socklen_t length = sizeof address;
    if (listener < 0
        || bind(listener, (struct sockaddr *)&address, length) < 0
        || listen(listener, 4096) < 0
        || getsockname(listener, (struct sockaddr *)&address, &length) < 0)
        die("listen");
    printf("listening 127.0.0.1:%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return listener;
}

/* The answers are made once a process: a head as short as HTTP/1.1 allows, and our own hello's body. */
static void make_answers(int slot)
{
    char body[96];
    int length = snprintf(body, sizeof body, "hello from slot %d pid %d generation 1\n", slot, getpid());
    keep_length = snprintf(keep_answer, sizeof keep_answer,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s", length, body);
    close_length = snprintf(close_answer, sizeof close_answer,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s",
        length, body);
}

/* One read, one write. */
static enum outcome serve(int connection)
{
    char request[4096];
    ssize_t got = read(connection, request, sizeof request);
    if (got < 0 && errno == EAGAIN)
        return WAIT;
    if (got <= 0)
        return CLOSE;
    if (memmem(request, got, "close", 5)) {
        (void)!write(connection, close_answer, close_length);
        return CLOSE;
    }
    return write(connection, keep_answer, keep_length) == (ssize_t)keep_length ? KEEP : CLOSE;
}

static void on_term(int signal)
{
    (void)signal; /* its only work is to interrupt pause */
}

/*
 * Forks `processes` children that run `work(listener)` and never return from it; says when all of
 * them are there; at SIGTERM ends them and reaps them. A child dies with its parent.
 */
static void prefork(int processes, int listener, void (*work)(int listener))
{
    int ready[2];
    pid_t *children = calloc(processes, sizeof *children);
    if (children == NULL || pipe(ready) < 0)
        die("prepare to fork");
    signal(SIGPIPE, SIG_IGN);
    for (int slot = 0; slot < processes; slot++) {
        children[slot] = fork();
        if (children[slot] < 0)
            die("fork");
        if (children[slot] == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            make_answers(slot);
            if (write(ready[1], "r", 1) != 1)
                _exit(1);
            close(ready[0]);
            close(ready[1]);
            work(listener);
            _exit(0);
        }
    }
    close(ready[1]);
    for (int seen = 0; seen < processes; seen++) {
        char byte;
        if (read(ready[0], &byte, 1) != 1)
            die("wait for the children");
    }
    signal(SIGTERM, on_term);
    printf("serving %d\n", processes);
    fflush(stdout);
    pause();
    for (int slot = 0; slot < processes; slot++)
        kill(children[slot], SIGKILL);
    while (wait(NULL) > 0)
        ;
}

static int processes_asked_for(int argc, char **argv)
{
    int processes = argc == 2 ? atoi(argv[1]) : 0;
    if (processes < 1) {
        fprintf(stderr, "usage: %s PROCESSES\n", argv[0]);
        exit(2);
    }
    return processes;
}

#endif
