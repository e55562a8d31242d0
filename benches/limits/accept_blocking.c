/*
 * The oldest pre-fork server: every process blocks in accept(2), and then belongs to that one
 * connection until it ends.
 *
 * It shows what one "hello" costs where nothing is polled: accept, read, write, close for a
 * connection per request; read and write alone for keep-alive. The price is not in these figures: an
 * idle client holds a whole process, so 16 processes serve 16 clients and no more.
 *
 * It is also the bare process that the `memory` and `boot` benches measure against.
 */
#include "hello.h"

static void work(int listener)
{
    for (;;) {
        int connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (connection < 0)
            continue;
        while (serve(connection) == KEEP)
            ;
        close(connection);
    }
}

int main(int argc, char **argv)
{
    int processes = processes_asked_for(argc, argv);
    prefork(processes, listen_on_loopback(0), work);
}
