/* SINTs by the lines of the test device: vector, mask, auto-EOI, and which vectors are valid. */
#include "test.h"

#define SYNIC_PORT 0x3000
#define ROUTE_CREATE 1
#define ROUTE_DESTROY 2
#define SET_SINT 3
#define VECTOR 0x61
#define SINT 2

static void line(u32 control, u32 vp_index, u32 sint)
{
    asm volatile("outl %0, %1" : : "a"(control << 16 | vp_index << 8 | sint), "d"((u16)SYNIC_PORT) : "memory");
}

static void write_sint(void *value) { wrmsr(HV_X64_MSR_SINT0 + SINT, (u64)value); }

static void no_eoi(struct vp *vp, u8 vector) { vp->interrupts[vector]++; }

static void check(struct vp *vp)
{
    u32 *count = (u32 *)&vp->interrupts[VECTOR];

    report_equal(rdmsr(HV_X64_MSR_SVERSION), 1, "the SynIC has version 1");
    report_equal(rdmsr(HV_X64_MSR_SINT0 + SINT), HV_SINT_MASKED, "a SINT starts masked");
    report_equal(trap(write_sint, (void *)0x0f), VECTOR_GENERAL_PROTECTION, "a vector below 16 is #GP");
    report_equal(trap(write_sint, (void *)(u64)(0x0f | HV_SINT_MASKED)), NO_EXCEPTION, "but not where it is masked");

    wrmsr(HV_X64_MSR_SCONTROL, HV_MSR_ENABLE);
    wrmsr(HV_X64_MSR_SINT0 + SINT, VECTOR);
    line(ROUTE_CREATE, vp->index, SINT);
    line(SET_SINT, vp->index, SINT);
    report(wait_interrupts(vp, VECTOR, 1), "an open SINT interrupts with its vector");
    line(SET_SINT, vp->index, SINT);
    report(wait_interrupts(vp, VECTOR, 2), "and once more after EOI");

    wrmsr(HV_X64_MSR_SINT0 + SINT, VECTOR | HV_SINT_MASKED);
    line(SET_SINT, vp->index, SINT);
    let_interrupts_in();
    report_equal(*count, 2, "a masked one does not");

    vp->on_interrupt = no_eoi;
    wrmsr(HV_X64_MSR_SINT0 + SINT, VECTOR | HV_SINT_AUTO_EOI);
    line(SET_SINT, vp->index, SINT);
    report(wait_interrupts(vp, VECTOR, 3), "with auto-EOI it comes");
    line(SET_SINT, vp->index, SINT);
    report(wait_interrupts(vp, VECTOR, 4), "and comes again though nobody has written EOI");
    wrmsr(HV_X64_MSR_SINT0 + SINT, VECTOR);
    line(SET_SINT, vp->index, SINT);
    report(wait_interrupts(vp, VECTOR, 5), "without auto-EOI it comes");
    line(SET_SINT, vp->index, SINT);
    let_interrupts_in();
    report_equal(*count, 5, "but not again before EOI");
    apic_eoi(vp);
    report(wait_interrupts(vp, VECTOR, 6), "which lets the next one in");
    apic_eoi(vp);
    vp->on_interrupt = count_interrupt;
    line(ROUTE_DESTROY, vp->index, SINT);
    wrmsr(HV_X64_MSR_SINT0 + SINT, HV_SINT_MASKED);
}

void test(void) { on_each_vp(check); }
