/* A guest of this guest: what ends it, what goes into it, and what it may not touch. VTL0 of each VP in turn is L1. */
#include "test.h"

#define MSR_VM_HSAVE_PA 0xc0010117
#define MSR_STAR 0xc0000081
#define EFER_SVME 0x1000
#define RFLAGS_IF 0x200

/* Control area. */
#define INTERCEPT_CR 0x000
#define INTERCEPT_DR 0x004
#define INTERCEPT_EXCEPTIONS 0x008
#define INTERCEPT_3 0x00c
#define INTERCEPT_4 0x010
#define IOPM_BASE 0x040
#define MSRPM_BASE 0x048
#define TSC_OFFSET 0x050
#define ASID 0x058
#define INT_CTL 0x060
#define INT_VECTOR 0x064
#define EXIT_CODE 0x070
#define EXIT_INFO_1 0x078
#define EXIT_INFO_2 0x080
#define EXIT_INT_INFO 0x088
#define NESTED_CTL 0x090
#define EVENT_INJ 0x0a8
#define NEXT_RIP 0x0c8
/* State save area. */
#define SAVE_ES 0x400
#define SAVE_CS 0x410
#define SAVE_SS 0x420
#define SAVE_DS 0x430
#define SAVE_GDTR 0x460
#define SAVE_IDTR 0x480
#define SAVE_EFER 0x4d0
#define SAVE_CR4 0x548
#define SAVE_CR3 0x550
#define SAVE_CR0 0x558
#define SAVE_DR7 0x560
#define SAVE_DR6 0x568
#define SAVE_RFLAGS 0x570
#define SAVE_RIP 0x578
#define SAVE_RSP 0x5d8
#define SAVE_RAX 0x5f8

#define EXIT_INTR 0x60
#define EXIT_VINTR 0x64
#define EXIT_HLT 0x78
#define EXIT_IOIO 0x7b
#define EXIT_MSR 0x7c
#define EXIT_VMRUN 0x80
#define EXIT_VMMCALL 0x81
#define EXIT_INVALID (~0ull)

#define V_IRQ (1 << 8)
#define V_PRIORITY (0xf << 16)
#define V_INTR_MASKING (1 << 24)
#define EVENT_VALID (1u << 31)
#define EVENT_EXCEPTION (3 << 8)
#define EVENT_ERROR (1 << 11)

#define APIC_LVT_TIMER 0x320
#define APIC_TIMER_COUNT 0x380
#define APIC_TIMER_DIVIDE 0x3e0
#define VECTOR_SELF 0x61
#define VECTOR_TIMER 0x62
#define VECTOR_INJECTED 0x63
#define VECTOR_VIRTUAL 0x64

static u8 block[PAGE_SIZE] ALIGNED_PAGE;
static u8 host_area[PAGE_SIZE] ALIGNED_PAGE;
static u8 io_map[3 * PAGE_SIZE] ALIGNED_PAGE;
static u8 msr_map[2 * PAGE_SIZE] ALIGNED_PAGE;
static u64 stack[512] __attribute__((aligned(16)));
static volatile u64 l2_ran, l2_value;

static void put(u32 at, u64 value) { *(volatile u64 *)(block + at) = value; }
static void put32(u32 at, u32 value) { *(volatile u32 *)(block + at) = value; }
static u64 get(u32 at) { return *(volatile u64 *)(block + at); }
static u32 get32(u32 at) { return *(volatile u32 *)(block + at); }

static void intercept(u32 code)
{
    u32 at = code < EXIT_VMRUN ? INTERCEPT_3 : INTERCEPT_4;
    put32(at, get32(at) | 1u << (code & 31));
}

static void put_segment(u32 at, u16 selector, u16 attributes)
{
    put(at, (u64)0xffffffff << 32 | (u64)attributes << 16 | selector);
    put(at + 8, 0);
}

#define READ(instruction)                                                                                                      \
    ({                                                                                                                         \
        u64 value;                                                                                                             \
        asm volatile(instruction ", %0" : "=r"(value));                                                                        \
        value;                                                                                                                 \
    })

/* L2 as L1 is, with nothing intercepted but what must be, at `code`. */
static void prepare(void (*code)(void))
{
    struct __attribute__((packed)) {
        u16 limit;
        u64 base;
    } table;

    fill(block, 0, PAGE_SIZE);
    put_segment(SAVE_ES, SELECTOR_DATA, 0xc93);
    put_segment(SAVE_CS, SELECTOR_CODE64, 0xa9b);
    put_segment(SAVE_SS, SELECTOR_DATA, 0xc93);
    put_segment(SAVE_DS, SELECTOR_DATA, 0xc93);
    asm volatile("sgdt %0" : "=m"(table));
    put32(SAVE_GDTR + 4, table.limit);
    put(SAVE_GDTR + 8, table.base);
    asm volatile("sidt %0" : "=m"(table));
    put32(SAVE_IDTR + 4, table.limit);
    put(SAVE_IDTR + 8, table.base);
    put(SAVE_EFER, rdmsr(MSR_EFER));
    put(SAVE_CR0, READ("mov %%cr0"));
    put(SAVE_CR3, READ("mov %%cr3"));
    put(SAVE_CR4, READ("mov %%cr4"));
    put(SAVE_DR6, 0xffff0ff0);
    put(SAVE_DR7, 0x400);
    put(SAVE_RFLAGS, 2);
    put(SAVE_RIP, (u64)code);
    put(SAVE_RSP, (u64)(stack + 511));
    put(IOPM_BASE, (u64)io_map);
    put(MSRPM_BASE, (u64)msr_map);
    put32(ASID, 1);
    intercept(EXIT_VMRUN);
    intercept(EXIT_VMMCALL);
    l2_ran = l2_value = 0;
}

/* Runs L2 with interrupts as they are, GIF clear before and after; what ended it. */
static u64 vmrun(void)
{
    u64 address = (u64)block;
    asm volatile("push %%rbp; clgi; vmrun %%rax; pop %%rbp"
                 : "+a"(address)
                 :
                 : "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory", "cc");
    return get(EXIT_CODE);
}

static void stgi(void) { asm volatile("stgi" : : : "memory"); }
static void clgi(void) { asm volatile("clgi" : : : "memory"); }

static u64 run(void)
{
    u64 code = vmrun();
    stgi();
    return code;
}

#define L2(name, ...)                                                                                                          \
    static void name(void)                                                                                                     \
    {                                                                                                                          \
        asm volatile(__VA_ARGS__);                                                                                             \
        l2_ran = 1;                                                                                                            \
        for (;;)                                                                                                               \
            asm volatile("vmmcall" : : : "memory");                                                                            \
    }

L2(do_nothing, "" : : :)
L2(do_cpuid, "cpuid" : : "a"(0), "c"(0) : "rbx", "rdx")
L2(do_rdtsc, "rdtsc" : : : "rax", "rdx")
L2(do_pause, "pause" : : :)
L2(do_hlt, "hlt" : : :)
L2(do_wbinvd, "wbinvd" : : :)
L2(do_invlpg, "invlpg (%0)" : : "r"(block) :)
L2(do_pushf, "pushf; popf" : : : "memory")
L2(do_sgdt, "sgdt %0" : : "m"(*stack) : "memory")
L2(do_int, "int $0x63" : : :)
L2(do_out, "outw %0, %1" : : "a"((u16)0), "Nd"((u16)0x80) :)
L2(do_in, "inb %1, %0" : : "a"((u8)0), "Nd"((u16)0x71) :)
L2(do_rdmsr, "rdmsr" : : "c"(MSR_STAR) : "rax", "rdx")
L2(do_wrmsr, "wrmsr" : : "c"(MSR_STAR), "a"(0), "d"(0) :)
L2(do_read_cr3, "mov %%cr3, %%rax" : : : "rax")
L2(do_read_dr7, "mov %%dr7, %%rax" : : : "rax")
L2(do_write_cr0, "mov %%cr0, %%rax; mov %%rax, %%cr0" : : : "rax")
L2(do_vmload, "vmload" : : "a"(block) :)
L2(do_undefined, "ud2" : : :)
L2(do_fault, "mov (%0), %0" : : "r"(0x20ull) :)

static const struct {
    const char *name;
    void (*code)(void);
    u32 at, bit;
    u64 exit, info, length;
} kinds[] = {
    {"CPUID", do_cpuid, INTERCEPT_3, 18, 0x72, 0, 2},
    {"RDTSC", do_rdtsc, INTERCEPT_3, 14, 0x6e, 0, 2},
    {"PAUSE", do_pause, INTERCEPT_3, 23, 0x77, 0, 2},
    {"HLT", do_hlt, INTERCEPT_3, 24, EXIT_HLT, 0, 1},
    {"INVLPG", do_invlpg, INTERCEPT_3, 25, 0x79, 0, 0},
    {"PUSHF", do_pushf, INTERCEPT_3, 16, 0x70, 0, 1},
    {"POPF", do_pushf, INTERCEPT_3, 17, 0x71, 0, 1},
    {"SGDT", do_sgdt, INTERCEPT_3, 7, 0x67, 0, 0},
    {"INT n", do_int, INTERCEPT_3, 21, 0x75, 0, 2},
    {"OUT", do_out, INTERCEPT_3, 27, EXIT_IOIO, 0x800220, 3},
    {"IN", do_in, INTERCEPT_3, 27, EXIT_IOIO, 0x710211, 2},
    {"RDMSR", do_rdmsr, INTERCEPT_3, 28, EXIT_MSR, 0, 2},
    {"WRMSR", do_wrmsr, INTERCEPT_3, 28, EXIT_MSR, 1, 2},
    {"WBINVD", do_wbinvd, INTERCEPT_4, 9, 0x89, 0, 2},
    {"VMLOAD", do_vmload, INTERCEPT_4, 2, 0x82, 0, 3},
    {"read of CR3", do_read_cr3, INTERCEPT_CR, 3, 0x03, 0, 3},
    {"write of CR0", do_write_cr0, INTERCEPT_CR, 16, 0x10, 0, 3},
    {"read of DR7", do_read_dr7, INTERCEPT_DR, 7, 0x27, 0, 3},
    {"#UD", do_undefined, INTERCEPT_EXCEPTIONS, 6, 0x46, 0, 0},
    {"#PF", do_fault, INTERCEPT_EXCEPTIONS, 14, 0x4e, 0, 0},
};

static void intercepts(void)
{
    fill(io_map, 0xff, sizeof(io_map));
    fill(msr_map, 0xff, sizeof(msr_map));
    for (u32 i = 0; i < sizeof(kinds) / sizeof(*kinds); i++) {
        prepare(kinds[i].code);
        put32(kinds[i].at, get32(kinds[i].at) | 1u << kinds[i].bit);
        u64 code = run();
        report(code == kinds[i].exit && !l2_ran, "%s ends L2: 0x%lx", kinds[i].name, code);
        report_equal(get(EXIT_INFO_1), kinds[i].info, "EXITINFO1");
        if (kinds[i].length)
            report_equal(get(NEXT_RIP) - get(SAVE_RIP), kinds[i].length, "nRIP is behind the instruction");
        if (kinds[i].bit == 14 && kinds[i].at == INTERCEPT_EXCEPTIONS)
            report_equal(get(EXIT_INFO_2), 0x20, "EXITINFO2: the address");
    }
    fill(io_map, 0, sizeof(io_map));
    fill(msr_map, 0, sizeof(msr_map));
    for (u32 i = 0; i < 2; i++) {
        prepare(i ? do_rdmsr : do_out);
        intercept(i ? EXIT_MSR : EXIT_IOIO);
        report(run() == EXIT_VMMCALL && l2_ran, "what a map lets through does not: %u", i);
    }
}

static void refusals(void)
{
    prepare(do_nothing);
    put32(INTERCEPT_4, 0);
    report_equal(run(), EXIT_INVALID, "VMRUN not intercepted");
    prepare(do_nothing);
    put32(ASID, 0);
    report_equal(run(), EXIT_INVALID, "ASID 0");
    prepare(do_nothing);
    put(NESTED_CTL, 1);
    report_equal(run(), EXIT_INVALID, "nested paging, which is not offered");
    prepare(do_nothing);
    put(SAVE_EFER, rdmsr(MSR_EFER) & ~EFER_SVME);
    report_equal(run(), EXIT_INVALID, "EFER.SVME clear");
    report(!l2_ran, "L2 has not run");
}

static void spin(void)
{
    for (;;)
        l2_ran++;
}

static void halt_for_ever(void)
{
    for (;;) {
        l2_ran++;
        asm volatile("hlt" : : : "memory");
    }
}

L2(take_interrupts, "sti; nop; nop; cli" : : : "memory")
L2(wait_for_interrupt, "sti; hlt; cli" : : : "memory")

static void apic_write(u32 at, u32 value) { *(volatile u32 *)(APIC_PAGE + (u64)at) = value; }

static void start_timer(u32 count)
{
    apic_write(APIC_TIMER_DIVIDE, 0xb);
    apic_write(APIC_LVT_TIMER, VECTOR_TIMER);
    apic_write(APIC_TIMER_COUNT, count);
}

static void interrupts(struct vp *vp)
{
    u32 before = vp->interrupts[VECTOR_SELF];

    /* Pending when L2 is entered, and L1's RFLAGS.IF set: GIF alone holds it. */
    prepare(spin);
    intercept(EXIT_INTR);
    put32(INT_CTL, V_INTR_MASKING);
    clgi();
    apic_send(vp, vp->apic_id, ICR_FIXED | ICR_ASSERT | VECTOR_SELF);
    interrupts_on();
    report_equal(vmrun(), EXIT_INTR, "a pending interrupt ends L2");
    report_equal(l2_ran, 0, "before its first instruction");
    report_equal(vp->interrupts[VECTOR_SELF], before, "GIF holds it off from L1");
    stgi();
    asm volatile("nop");
    interrupts_off();
    report_equal(vp->interrupts[VECTOR_SELF], before + 1, "until STGI");

    prepare(take_interrupts);
    clgi();
    apic_send(vp, vp->apic_id, ICR_FIXED | ICR_ASSERT | VECTOR_SELF);
    report_equal(vmrun(), EXIT_VMMCALL, "an interrupt that is not intercepted does not end L2");
    report_equal(vp->interrupts[VECTOR_SELF], before + 2, "L2 takes it");
    stgi();

    /* L1 masks with its own flag clear: L2's flag is L2's own. */
    prepare(take_interrupts);
    put32(INT_CTL, V_INTR_MASKING);
    clgi();
    apic_send(vp, vp->apic_id, ICR_FIXED | ICR_ASSERT | VECTOR_SELF);
    report_equal(run(), EXIT_VMMCALL, "an interrupt that L1 masks does not end L2");
    report_equal(vp->interrupts[VECTOR_SELF], before + 2, "nor goes into it");
    let_interrupts_in();
    report_equal(vp->interrupts[VECTOR_SELF], before + 3, "L1 takes it");
}

static void timers(struct vp *vp)
{
    u32 before = vp->interrupts[VECTOR_TIMER];

    prepare(spin);
    intercept(EXIT_INTR);
    put32(INT_CTL, V_INTR_MASKING);
    start_timer(200000);
    interrupts_on();
    u64 code = vmrun();
    report_equal(code, EXIT_INTR, "the local APIC's timer ends L2");
    report(l2_ran > 0, "which has run");
    stgi();
    asm volatile("nop");
    interrupts_off();
    report_equal(vp->interrupts[VECTOR_TIMER], before + 1, "L1 takes its interrupt");

    prepare(halt_for_ever);
    intercept(EXIT_INTR);
    put32(INT_CTL, V_INTR_MASKING);
    start_timer(200000);
    interrupts_on();
    code = run();
    interrupts_off();
    report_equal(code, EXIT_INTR, "also when it halts");
    report_equal(l2_ran, 1, "it has halted once");

    prepare(wait_for_interrupt);
    start_timer(200000);
    report_equal(run(), EXIT_VMMCALL, "an L2 that takes the timer's interrupt itself is woken");
    report_equal(vp->interrupts[VECTOR_TIMER], before + 3, "by it");
}

static void injections(struct vp *vp)
{
    u32 before = vp->interrupts[VECTOR_INJECTED];

    prepare(do_nothing);
    put32(EVENT_INJ, EVENT_VALID | VECTOR_INJECTED);
    report_equal(run(), EXIT_VMMCALL, "an interrupt is injected");
    report_equal(vp->interrupts[VECTOR_INJECTED], before + 1, "and delivered");
    report(!(get32(EVENT_INJ) & EVENT_VALID), "EVENTINJ is used up");

    prepare(do_nothing);
    put32(EVENT_INJ, EVENT_VALID | EVENT_EXCEPTION | EVENT_ERROR | 11);
    put32(EVENT_INJ + 4, 0x60);
    put32(SAVE_IDTR + 4, 0x0f);
    put32(INTERCEPT_EXCEPTIONS, 1u << 8);
    report_equal(run(), 0x48, "an exception whose delivery faults is a double fault");
    report_equal(get32(EXIT_INT_INFO), EVENT_VALID | EVENT_EXCEPTION | EVENT_ERROR | 11, "EXITINTINFO names it");
    report_equal(get32(EXIT_INT_INFO + 4), 0x60, "with its error code");
}

static void virtual_interrupts(struct vp *vp)
{
    u32 before = vp->interrupts[VECTOR_VIRTUAL];

    prepare(take_interrupts);
    put32(INT_CTL, V_INTR_MASKING | V_IRQ | V_PRIORITY);
    put32(INT_VECTOR, VECTOR_VIRTUAL);
    report_equal(run(), EXIT_VMMCALL, "a virtual interrupt");
    report_equal(vp->interrupts[VECTOR_VIRTUAL], before + 1, "goes into L2 when it sets IF");
    report(!(get32(INT_CTL) & V_IRQ), "V_IRQ is clear");

    prepare(take_interrupts);
    put32(INT_CTL, V_INTR_MASKING | V_IRQ | V_PRIORITY);
    put32(INT_VECTOR, VECTOR_VIRTUAL);
    intercept(EXIT_VINTR);
    report_equal(run(), EXIT_VINTR, "or ends L2 at that moment");
    report(get32(INT_CTL) & V_IRQ && !l2_ran, "and stays");

    prepare(wait_for_interrupt);
    put32(INT_CTL, V_INTR_MASKING | V_IRQ | V_PRIORITY);
    put32(INT_VECTOR, VECTOR_VIRTUAL);
    report_equal(run(), EXIT_VMMCALL, "HLT does not hold it off");
    report_equal(vp->interrupts[VECTOR_VIRTUAL], before + 2, "and it wakes L2");
}

static void read_tsc(void)
{
    u32 low, high;
    asm volatile("rdtsc" : "=a"(low), "=d"(high));
    l2_value = (u64)high << 32 | low;
    for (;;)
        asm volatile("vmmcall" : : : "memory");
}

static void check(struct vp *vp)
{
    wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_SVME);
    wrmsr(MSR_VM_HSAVE_PA, (u64)host_area);
    prepare(do_nothing);
    report_equal(run(), EXIT_VMMCALL, "VMMCALL ends L2");
    report_equal(l2_ran, 1, "which has run");
    intercepts();
    refusals();
    interrupts(vp);
    timers(vp);
    injections(vp);
    virtual_interrupts(vp);
    prepare(read_tsc);
    put(TSC_OFFSET, 1ull << 40);
    run();
    report(l2_value >> 40 == 1, "L2 reads its time-stamp counter with L1's offset");
    wrmsr(MSR_EFER, rdmsr(MSR_EFER) & ~(u64)EFER_SVME);
}

void test(void)
{
    report((cpuid(0x80000001).ecx & 4) != 0, "CPUID offers SVM");
    on_each_vp(check);
}
