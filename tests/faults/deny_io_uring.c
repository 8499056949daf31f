/* Starts a program to which the three io_uring system calls answer with an error of choice, as a container's
   seccomp profile (EPERM) or an old kernel (ENOSYS) would. Usage: deny ERRNO PROGRAM [ARGUMENT...] */
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The same numbers on every architecture that has them. */
#define FIRST_IO_URING 425
#define LAST_IO_URING 427

int main(int count, char **arguments)
{
    if (count < 3) {
        fprintf(stderr, "usage: deny ERRNO PROGRAM [ARGUMENT...]\n");
        return 2;
    }
    unsigned answer = (unsigned)atoi(arguments[1]) & SECCOMP_RET_DATA;
    struct sock_filter instructions[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, FIRST_IO_URING, 0, 2),
        BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, LAST_IO_URING, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | answer),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = {
        .len = sizeof(instructions) / sizeof(instructions[0]),
        .filter = instructions,
    };
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter)) {
        perror("prctl");
        return 3;
    }
    execvp(arguments[2], arguments + 2);
    perror(arguments[2]);
    return 4;
}
