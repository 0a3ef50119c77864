/* One vCPU of /dev/kvm in real mode at CODE, and the time: what the C programs of the benchmarks begin with. */
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

struct machine {
    int vcpu;
    uint8_t *memory;
    struct kvm_run *run;
};

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

static struct machine make_machine(const uint8_t *code, size_t size, struct kvm_regs regs)
{
    int kvm = check(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
    int vm = check(ioctl(kvm, KVM_CREATE_VM, 0UL), "KVM_CREATE_VM");
    struct machine machine = {.memory = map(-1, MEMORY_SIZE, MAP_ANONYMOUS)};
    struct kvm_userspace_memory_region region = {
        .memory_size = MEMORY_SIZE,
        .userspace_addr = (uintptr_t)machine.memory,
    };
    struct kvm_sregs sregs;

    memcpy(machine.memory + CODE, code, size);
    check(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
    machine.vcpu = check(ioctl(vm, KVM_CREATE_VCPU, 0UL), "KVM_CREATE_VCPU");
    machine.run = map(machine.vcpu, check(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0UL), "KVM_GET_VCPU_MMAP_SIZE"), 0);
    check(ioctl(machine.vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
    sregs.cs.base = sregs.cs.selector = 0;
    check(ioctl(machine.vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
    regs.rip = CODE;
    regs.rflags = 2;
    check(ioctl(machine.vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
    return machine;
}

/* Nanoseconds since some moment. */
static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}
