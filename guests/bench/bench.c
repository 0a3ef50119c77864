/*
 * One loop per word of the command line, timed from outside: `WORD [N]`. Each powers the machine off when done, except where
 * README.md says otherwise. Loops are in assembly, so that the compiler cannot change what is measured.
 */
#include "bench.h"
#include "apic.h"
#include "console.h"
#include "cpu.h"
#include "hyperv.h"
#include "platform.h"
#include "smp.h"

#define DEFAULT_N 1000
#define MEMORY_START 0x1000000ull
#define MEMORY_MASK 0xffffffull
#define MEMORY_STRIDE 80
#define PORT_POST 0x80

static struct vp vtl1_vp;
static u8 hypercall_pages[2][PAGE_SIZE] __attribute__((aligned(PAGE_SIZE)));

void bench_vtl_calls(u64 n);
void bench_vtl_returns(void) __attribute__((noreturn));

static void bench_exit(u64 n)
{
    (void)n;
    exit_with(0);
}

static void bench_spin(u64 n)
{
    (void)n;
    for (;;)
        asm volatile("");
}

static void bench_triple(u64 n)
{
    static const struct __attribute__((packed)) {
        u16 limit;
        u64 base;
    } none;

    (void)n;
    asm volatile("lidt %0; ud2" : : "m"(none));
}

static void bench_hlt(u64 n)
{
    (void)n;
    halt_forever();
}

/* Eight instructions an iteration. */
static void bench_compute(u64 n)
{
    u64 a = 1, b = 2, c = 3;

    asm volatile("1: add %1, %0\n\t"
                 "xor %0, %2\n\t"
                 "lea 7(%1, %2, 2), %1\n\t"
                 "rol $13, %0\n\t"
                 "imul $37, %2, %2\n\t"
                 "sub %0, %1\n\t"
                 "dec %3\n\t"
                 "jnz 1b"
                 : "+r"(a), "+r"(b), "+r"(c), "+r"(n)
                 :
                 : "cc");
}

/* Six instructions an iteration, one of them a load and one a store; the stride leaves the cache line. */
static void bench_memory(u64 n)
{
    u64 offset = 0, value;

    asm volatile("1: mov (%3, %0), %1\n\t"
                 "mov %0, 8(%3, %0)\n\t"
                 "add %4, %0\n\t"
                 "and %5, %0\n\t"
                 "dec %2\n\t"
                 "jnz 1b"
                 : "+r"(offset), "=&r"(value), "+r"(n)
                 : "r"(MEMORY_START), "i"(MEMORY_STRIDE), "i"(MEMORY_MASK - 15)
                 : "cc", "memory");
}

static void bench_cpuid(u64 n)
{
    asm volatile("1: xor %%eax, %%eax\n\t"
                 "cpuid\n\t"
                 "dec %0\n\t"
                 "jnz 1b"
                 : "+r"(n)
                 :
                 : "rax", "rbx", "rcx", "rdx", "cc");
}

static void bench_apicwrite(u64 n)
{
    asm volatile("1: mov %1, %2\n\t"
                 "dec %0\n\t"
                 "jnz 1b"
                 : "+r"(n)
                 : "r"(0), "m"(*(volatile u32 *)(APIC_PAGE + APIC_TPR))
                 : "cc", "memory");
}

static void bench_portout(u64 n)
{
    asm volatile("1: outb %%al, %1\n\t"
                 "dec %0\n\t"
                 "jnz 1b"
                 : "+r"(n)
                 : "i"(PORT_POST), "a"(0)
                 : "cc", "memory");
}

static volatile u64 ball, rounds;

static void return_ball(struct vp *vp)
{
    for (u64 expected = 1; expected <= rounds; expected++) {
        while (ball != 2 * expected - 1)
            halt_until_interrupt();
        ball = 2 * expected;
        apic_send(vp, vps[0].apic_id, ICR_FIXED | ICR_ASSERT | VECTOR_WAKE);
    }
}

/* VP 1 sleeps in HLT until the IPI of VP 0, answers by IPI, and VP 0 sleeps in HLT meanwhile. */
static void bench_pingpong(u64 n)
{
    rounds = n;
    if (smp_start(2) < 2)
        fail("pingpong needs two processors");
    vps[1].work = return_ball;
    for (u64 i = 1; i <= n; i++) {
        ball = 2 * i - 1;
        apic_send(vps, vps[1].apic_id, ICR_FIXED | ICR_ASSERT | VECTOR_WAKE);
        while (ball != 2 * i)
            halt_until_interrupt();
    }
}

static void exit_often(struct vp *vp)
{
    (void)vp;
    bench_cpuid(rounds);
}

/* All processors exit at the same time: what the number of processors costs an exit. */
static void bench_cpuidall(u64 n)
{
    u32 up = smp_start(MAX_VPS);

    rounds = n;
    for (u32 i = 1; i < up; i++) {
        vps[i].work = exit_often;
        apic_send(vps, vps[i].apic_id, ICR_FIXED | ICR_ASSERT | VECTOR_WAKE);
    }
    exit_often(vps);
    for (u32 i = 1; i < up; i++)
        while (vps[i].work)
            halt_until_interrupt();
}

static void vtl1_main(struct vp *vp)
{
    hv_enable_hypercall_page(hypercall_pages[1]);
    hv_use_hypercall_page(vp, hypercall_pages[1]);
    hv_learn_vtl_switch(vp, hypercall_pages[1]);
    bench_vtl_returns();
}

static void bench_vtlcall(u64 n)
{
    const char *why = hv_why_no_vsm();
    u64 unused;

    if (why)
        fail("no VSM here: %s", why);
    hv_enable_hypercall_page(hypercall_pages[0]);
    hv_use_hypercall_page(vps, hypercall_pages[0]);
    hv_learn_vtl_switch(vps, hypercall_pages[0]);
    vp_init(&vtl1_vp, 1, 0, 0);
    vtl1_vp.main = vtl1_main;
    hv_enable_partition_vtl(1);
    hv_enable_vp_vtl(&vtl1_vp, &boot_tables);
    vtl_call(0, 0, 0, &unused);
    bench_vtl_calls(n);
}

void guest_main(void)
{
    static const struct {
        const char *word;
        void (*run)(u64 n);
    } benches[] = {
        {"exit", bench_exit},         {"spin", bench_spin},         {"triple", bench_triple},
        {"hlt", bench_hlt},           {"compute", bench_compute},   {"memory", bench_memory},
        {"cpuid", bench_cpuid},       {"vtlcall", bench_vtlcall},   {"apicwrite", bench_apicwrite},
        {"pingpong", bench_pingpong}, {"portout", bench_portout},   {"cpuidall", bench_cpuidall},
        {"pvflush", bench_pvflush},   {"pvipi", bench_pvipi},       {"synicmsg", bench_synicmsg},
        {"stimer", bench_stimer},
    };

    for (u32 i = 0; i < sizeof benches / sizeof benches[0]; i++) {
        const char *argument = command_line_word(benches[i].word);
        if (!argument)
            continue;
        u64 n = parse_number(argument, DEFAULT_N);
        if (n)
            benches[i].run(n);
        power_off();
    }
    console_init();
    fail("say what to run: exit spin triple hlt compute memory cpuid vtlcall apicwrite pingpong portout cpuidall "
         "pvflush pvipi synicmsg stimer");
}
