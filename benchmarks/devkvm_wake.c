/*
 * Two vCPUs of /dev/kvm on two threads, each asleep in HLT until the other one wakes it: `devkvm_wake N`. A thread whose
 * guest halts rings the other's eventfd and waits for its own, then injects an interrupt. Prints nanoseconds per round,
 * in which each is woken once.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define MEMORY_SIZE 0x10000
#define CODE 0x1000
#define HANDLER 0x2000
#define VECTOR 0x41

static const uint8_t sleeper[] = {
    0xfb,       /* sti */
    0xf4,       /* hlt */
    0xeb, 0xfc, /* jmp to the start */
};

static unsigned long rounds;
static int bells[2];

static long check(long value, const char *what)
{
    if (value < 0) {
        fprintf(stderr, "%s: %s\n", what, strerror(errno));
        exit(1);
    }
    return value;
}

static void *map(int fd, size_t size, int flags)
{
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | flags, fd, 0);

    if (memory == MAP_FAILED)
        check(-1, "mmap");
    return memory;
}

static void run_to_hlt(int vcpu, struct kvm_run *run)
{
    do {
        if (ioctl(vcpu, KVM_RUN, 0UL) < 0 && errno != EINTR)
            check(-1, "KVM_RUN");
    } while (run->exit_reason == KVM_EXIT_INTR);
    if (run->exit_reason != KVM_EXIT_HLT) {
        fprintf(stderr, "exit %u\n", run->exit_reason);
        exit(1);
    }
}

static void *play(void *argument)
{
    int me = argument != NULL;
    int kvm = check(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
    int vm = check(ioctl(kvm, KVM_CREATE_VM, 0UL), "KVM_CREATE_VM");
    uint8_t *memory = map(-1, MEMORY_SIZE, MAP_ANONYMOUS);
    struct kvm_userspace_memory_region region = {
        .memory_size = MEMORY_SIZE,
        .userspace_addr = (uintptr_t)memory,
    };
    struct kvm_interrupt interrupt = {.irq = VECTOR};
    struct kvm_regs regs = {.rip = CODE, .rsp = 0x8000, .rflags = 2};
    struct kvm_sregs sregs;
    uint64_t one = 1;

    memcpy(memory + CODE, sleeper, sizeof sleeper);
    memory[HANDLER] = 0xcf; /* iret */
    memory[4 * VECTOR + 1] = HANDLER >> 8;
    check(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
    int vcpu = check(ioctl(vm, KVM_CREATE_VCPU, 0UL), "KVM_CREATE_VCPU");
    struct kvm_run *run = map(vcpu, check(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0UL), "KVM_GET_VCPU_MMAP_SIZE"), 0);

    check(ioctl(vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
    sregs.cs.base = sregs.cs.selector = 0;
    check(ioctl(vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
    check(ioctl(vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
    run_to_hlt(vcpu, run);
    for (unsigned long round = 0; round < rounds; round++) {
        if (me == 0)
            check(write(bells[1], &one, sizeof one), "eventfd");
        check(read(bells[me], &one, sizeof one), "eventfd");
        one = 1;
        check(ioctl(vcpu, KVM_INTERRUPT, &interrupt), "KVM_INTERRUPT");
        run_to_hlt(vcpu, run);
        if (me == 1)
            check(write(bells[0], &one, sizeof one), "eventfd");
    }
    return NULL;
}

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

int main(int argc, char **argv)
{
    pthread_t other;

    if (argc != 2)
        return 2;
    rounds = strtoul(argv[1], NULL, 10);
    bells[0] = check(eventfd(0, EFD_CLOEXEC), "eventfd");
    bells[1] = check(eventfd(0, EFD_CLOEXEC), "eventfd");

    double begin = now();
    if (pthread_create(&other, NULL, play, &bells))
        return 1;
    play(NULL);
    pthread_join(other, NULL);
    printf("%.1f\n", (now() - begin) / rounds);
    return 0;
}
