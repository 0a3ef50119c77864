/*
 * Two vCPUs of /dev/kvm on two threads, each asleep in HLT until the other one wakes it: `devkvm_wake N`. A thread whose
 * guest halts rings the other's eventfd and waits for its own, then injects an interrupt. Prints nanoseconds per round,
 * in which each is woken once.
 */
#include "devkvm.h"
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define HANDLER 0x2000
#define VECTOR 0x41

static const uint8_t sleeper[] = {
    0xfb,       /* sti */
    0xf4,       /* hlt */
    0xeb, 0xfc, /* jmp to the start */
};

static unsigned long rounds;
static int bells[2];

static void run_to_hlt(const struct machine *machine)
{
    do {
        if (ioctl(machine->vcpu, KVM_RUN, 0UL) < 0 && errno != EINTR)
            check(-1, "KVM_RUN");
    } while (machine->run->exit_reason == KVM_EXIT_INTR);
    if (machine->run->exit_reason != KVM_EXIT_HLT) {
        fprintf(stderr, "exit %u\n", machine->run->exit_reason);
        exit(1);
    }
}

static void *play(void *argument)
{
    int me = argument != NULL;
    struct machine machine = make_machine(sleeper, sizeof sleeper, (struct kvm_regs){.rsp = 0x8000});
    struct kvm_interrupt interrupt = {.irq = VECTOR};
    uint64_t one = 1;

    machine.memory[HANDLER] = 0xcf; /* iret */
    machine.memory[4 * VECTOR + 1] = HANDLER >> 8;
    run_to_hlt(&machine);
    for (unsigned long round = 0; round < rounds; round++) {
        if (me == 0)
            check(write(bells[1], &one, sizeof one), "eventfd");
        check(read(bells[me], &one, sizeof one), "eventfd");
        one = 1;
        check(ioctl(machine.vcpu, KVM_INTERRUPT, &interrupt), "KVM_INTERRUPT");
        run_to_hlt(&machine);
        if (me == 1)
            check(write(bells[0], &one, sizeof one), "eventfd");
    }
    return NULL;
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
