/*
 * One vCPU of /dev/kvm in real mode: N exits, timed around KVM_RUN. `devkvm_loop cpuid N` has the kernel handle them,
 * `devkvm_loop out N` comes back to this program for each. Prints nanoseconds per exit.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

#define MEMORY_SIZE 0x10000
#define CODE 0x1000

static const uint8_t cpuid_loop[] = {
    0x66, 0x31, 0xc0, /* xor eax, eax */
    0x0f, 0xa2,       /* cpuid */
    0x66, 0x4f,       /* dec edi */
    0x75, 0xf7,       /* jnz to the start */
    0xf4,             /* hlt */
};

static const uint8_t out_loop[] = {
    0xe6, 0x80, /* out 0x80, al */
    0x66, 0x4f, /* dec edi */
    0x75, 0xfa, /* jnz to the start */
    0xf4,       /* hlt */
};

static int check(int value, const char *what)
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

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    int out = !strcmp(argv[1], "out");
    unsigned long n = strtoul(argv[2], NULL, 10);
    int kvm = check(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
    int vm = check(ioctl(kvm, KVM_CREATE_VM, 0UL), "KVM_CREATE_VM");
    uint8_t *memory = map(-1, MEMORY_SIZE, MAP_ANONYMOUS);
    struct kvm_userspace_memory_region region = {
        .memory_size = MEMORY_SIZE,
        .userspace_addr = (uintptr_t)memory,
    };

    memcpy(memory + CODE, out ? out_loop : cpuid_loop, out ? sizeof out_loop : sizeof cpuid_loop);
    check(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
    int vcpu = check(ioctl(vm, KVM_CREATE_VCPU, 0UL), "KVM_CREATE_VCPU");
    struct kvm_run *run = map(vcpu, check(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0UL), "KVM_GET_VCPU_MMAP_SIZE"), 0);
    struct kvm_sregs sregs;
    struct kvm_regs regs = {.rip = CODE, .rflags = 2, .rdi = n};

    check(ioctl(vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
    sregs.cs.base = sregs.cs.selector = 0;
    check(ioctl(vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
    check(ioctl(vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");

    double begin = now();
    do {
        int result = ioctl(vcpu, KVM_RUN, 0UL);
        if (result < 0 && errno == EINTR)
            continue;
        check(result, "KVM_RUN");
    } while (run->exit_reason == KVM_EXIT_IO);
    double taken = now() - begin;

    if (run->exit_reason != KVM_EXIT_HLT) {
        fprintf(stderr, "KVM_RUN ended with exit reason %u\n", run->exit_reason);
        return 1;
    }
    printf("%.3f\n", taken / n);
    return 0;
}
