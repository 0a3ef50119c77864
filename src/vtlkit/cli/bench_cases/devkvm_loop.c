/*
 * One vCPU of /dev/kvm in real mode: N exits, timed around KVM_RUN. `devkvm_loop cpuid N` has the kernel handle them,
 * `devkvm_loop out N` comes back to this program for each. Prints nanoseconds per exit.
 */
#include "devkvm.h"

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

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    int out = !strcmp(argv[1], "out");
    unsigned long n = strtoul(argv[2], NULL, 10);
    struct machine machine = make_machine(out ? out_loop : cpuid_loop, out ? sizeof out_loop : sizeof cpuid_loop,
                                          (struct kvm_regs){.rdi = n});

    double begin = now();
    do {
        int result = ioctl(machine.vcpu, KVM_RUN, 0UL);
        if (result < 0 && errno == EINTR)
            continue;
        check(result, "KVM_RUN");
    } while (machine.run->exit_reason == KVM_EXIT_IO);
    double taken = now() - begin;

    if (machine.run->exit_reason != KVM_EXIT_HLT) {
        fprintf(stderr, "KVM_RUN ended with exit reason %u\n", machine.run->exit_reason);
        return 1;
    }
    printf("%.3f\n", taken / n);
    return 0;
}
