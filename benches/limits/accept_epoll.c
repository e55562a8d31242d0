/*
 * The pre-fork server whose processes keep idle connections parked: each has an epoll set with the
 * shared listener (EPOLLEXCLUSIVE, so that a connection wakes one process and not all) and with its
 * parked connections (added once, level-triggered, taken out by close).
 *
 * The call that may succeed is tried before the one that waits: once the listener has been
 * reported, accept is repeated until it has nothing more, and a new connection is read at once, so a
 * busy process seldom asks epoll. It shows what a server that parks its idle clients can reach.
 *
 * TCP_DEFER_ACCEPT is left out on purpose: it would save the early first read, but connections then
 * stay outside the accept queue until they speak, and a stop that promises to lose none cannot see them.
 */
#include "hello.h"
#include <sched.h>
#include <sys/epoll.h>

enum { LISTENER = -1, BATCH = 64, ACCEPTS_IN_A_ROW = 32 };

static int poller;

static void watch(int descriptor, uint32_t events, int name)
{
    struct epoll_event event = { .events = events, .data.fd = name };
    if (epoll_ctl(poller, EPOLL_CTL_ADD, descriptor, &event) < 0)
        die("epoll_ctl");
}

/*
 * Serves a connection that was just accepted, and parks it unless it is over.
 *
 * The handshake wakes this process before the client has had the time to send: the first read finds
 * nothing more often than not. Giving the processor away once lets a client on the same core send, and
 * saves adding the connection to epoll and waiting for it: a quarter of the time of such a request.
 */
static void welcome(int connection)
{
    enum outcome outcome = serve(connection);
    if (outcome == WAIT) {
        sched_yield();
        outcome = serve(connection);
    }
    if (outcome == CLOSE)
        close(connection);
    else
        watch(connection, EPOLLIN, connection);
}

/* True while more may be waiting in the queue. */
static int accept_some(int listener)
{
    for (int i = 0; i < ACCEPTS_IN_A_ROW; i++) {
        int connection = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (connection < 0)
            return 0;
        welcome(connection);
    }
    return 1;
}

static void work(int listener)
{
    struct epoll_event ready[BATCH];
    int more = 1;
    poller = epoll_create1(EPOLL_CLOEXEC);
    if (poller < 0)
        die("epoll_create1");
    watch(listener, EPOLLIN | EPOLLEXCLUSIVE, LISTENER);
    for (;;) {
        if (more)
            more = accept_some(listener);
        int count = epoll_wait(poller, ready, BATCH, more ? 0 : -1);
        for (int i = 0; i < count; i++) {
            int connection = ready[i].data.fd;
            if (connection == LISTENER)
                more = 1;
            else if (serve(connection) == CLOSE)
                close(connection);
        }
    }
}

int main(int argc, char **argv)
{
    int processes = processes_asked_for(argc, argv);
    prefork(processes, listen_on_loopback(SOCK_NONBLOCK), work);
}
