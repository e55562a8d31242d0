/*
 * A fork template in the fewest system calls: `template COUNT IN_FLIGHT`.
 *
 * One life of a process here: the parent makes a socket pair, sends one end to the template with its
 * request (SCM_RIGHTS over SOCK_SEQPACKET), and queues the instruction on the other end at once. The
 * template forks; the child reads its instruction and exits; the template reaps it on SIGCHLD and
 * reports; the parent takes the report and the end of the child's socket.
 *
 * It shows what a typed template can at best reach with the same steps.
 */
#include "clock.h"
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MOST_IN_FLIGHT = 256 };

struct request { uint32_t id; };
struct report { uint32_t id; int32_t status; };

static void socket_pair(int ends[2])
{
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
        die("socketpair");
}

/* ---- the template ---- */

static pid_t child_of[MOST_IN_FLIGHT]; /* by request id; 0: no such child */

static void on_child(int signal)
{
    (void)signal; /* its only work is to interrupt ppoll */
}

/* False at the end of the parent. */
static int receive_request(int control, struct request *request, int *child_end)
{
    union { struct cmsghdr header; char space[CMSG_SPACE(sizeof(int))]; } rights;
    struct iovec part = { request, sizeof *request };
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1,
        .msg_control = &rights, .msg_controllen = sizeof rights,
    };
    ssize_t got = recvmsg(control, &message, MSG_CMSG_CLOEXEC);
    if (got <= 0)
        return 0;
    if (CMSG_FIRSTHDR(&message) == NULL)
        die("a request without its socket");
    memcpy(child_end, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof *child_end);
    return 1;
}

static void carry_out_instruction(int end)
{
    char instruction[64];
    _exit(recv(end, instruction, sizeof instruction, 0) > 0 ? 0 : 1);
}

static void report_the_dead(int control)
{
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        uint32_t id = 0;
        while (child_of[id] != pid)
            id++;
        child_of[id] = 0;
        struct report report = { id, status };
        if (send(control, &report, sizeof report, MSG_NOSIGNAL) < 0)
            _exit(1);
    }
}

static void run_template(int control)
{
    sigset_t child_signal, none;
    sigemptyset(&none);
    sigemptyset(&child_signal);
    sigaddset(&child_signal, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child_signal, NULL);
    sigaction(SIGCHLD, &(struct sigaction){ .sa_handler = on_child }, NULL);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (;;) {
        struct pollfd readable = { .fd = control, .events = POLLIN };
        if (ppoll(&readable, 1, NULL, &none) < 0) {
            report_the_dead(control);
            continue;
        }
        struct request request;
        int child_end;
        if (!receive_request(control, &request, &child_end))
            _exit(0);
        pid_t pid = fork();
        if (pid < 0)
            die("fork");
        if (pid == 0)
            carry_out_instruction(child_end);
        child_of[request.id] = pid;
        close(child_end);
    }
}

/* ---- the parent ---- */

static int our_end[MOST_IN_FLIGHT]; /* by request id */

static void ask_for_process(int control, uint32_t id)
{
    int ends[2];
    socket_pair(ends);
    struct request request = { id };
    union { struct cmsghdr header; char space[CMSG_SPACE(sizeof(int))]; } rights = {
        .header = { .cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS },
    };
    memcpy(CMSG_DATA(&rights.header), &ends[1], sizeof(int));
    struct iovec part = { &request, sizeof request };
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1,
        .msg_control = &rights, .msg_controllen = sizeof rights,
    };
    if (sendmsg(control, &message, MSG_NOSIGNAL) < 0)
        die("ask for a process");
    if (send(ends[0], "exit", 4, MSG_NOSIGNAL) < 0)
        die("send the instruction");
    close(ends[1]);
    our_end[id] = ends[0];
}

/* Waits for one exit, checks that the child did as it was told, and gives its id back. */
static uint32_t see_one_end(int control)
{
    struct report report;
    char byte;
    if (recv(control, &report, sizeof report, 0) != sizeof report)
        die("receive a report");
    if (report.status != 0 || recv(our_end[report.id], &byte, 1, 0) != 0)
        die("a child that failed");
    close(our_end[report.id]);
    return report.id;
}

int main(int argc, char **argv)
{
    long count = argc == 3 ? atol(argv[1]) : 0;
    long in_flight = argc == 3 ? atol(argv[2]) : 0;
    if (in_flight < 1 || in_flight > MOST_IN_FLIGHT || count < in_flight) {
        fprintf(stderr, "usage: %s COUNT IN_FLIGHT\n", argv[0]);
        return 2;
    }
    alarm(SECONDS_AT_MOST);
    int control[2];
    socket_pair(control);
    pid_t template = fork();
    if (template < 0)
        die("fork the template");
    if (template == 0) {
        close(control[0]);
        run_template(control[1]);
    }
    close(control[1]);

    double start = now();
    long asked = 0;
    for (uint32_t id = 0; id < in_flight; id++, asked++)
        ask_for_process(control[0], id);
    for (long seen = 0; seen < count; seen++) {
        uint32_t id = see_one_end(control[0]);
        if (asked < count) {
            ask_for_process(control[0], id);
            asked++;
        }
    }
    print_figures(count, now() - start);

    close(control[0]);
    waitpid(template, NULL, 0);
    return 0;
}
