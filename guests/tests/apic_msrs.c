/* The local APIC by synthetic MSRs: TPR, ICR, EOI. */
#include "test.h"

#define VECTOR 0x71

static void no_eoi(struct vp *vp, u8 vector) { vp->interrupts[vector]++; }
static void send_self(struct vp *vp) { wrmsr(HV_X64_MSR_ICR, (u64)vp->apic_id << 56 | ICR_ASSERT | VECTOR); }
static void write_tpr(void *value) { wrmsr(HV_X64_MSR_TPR, (u64)value); }
static void read_eoi(void *unused)
{
    (void)unused;
    rdmsr(HV_X64_MSR_EOI);
}

static void check(struct vp *vp)
{
    vp->on_interrupt = no_eoi;
    send_self(vp);
    report(wait_interrupts(vp, VECTOR, 1), "an IPI by the ICR register arrives");
    send_self(vp);
    let_interrupts_in();
    report_equal(vp->interrupts[VECTOR], 1, "the next one waits for EOI");
    wrmsr(HV_X64_MSR_EOI, 0);
    report(wait_interrupts(vp, VECTOR, 2), "which the EOI register gives");
    wrmsr(HV_X64_MSR_EOI, 0);

    wrmsr(HV_X64_MSR_TPR, 0x80);
    report_equal(rdmsr(HV_X64_MSR_TPR), 0x80, "the TPR reads back");
    u64 cr8;
    asm volatile("mov %%cr8, %0" : "=r"(cr8));
    report_equal(cr8, 8, "CR8 is its high half");
    report_equal(*(volatile u32 *)(u64)(APIC_PAGE + APIC_TPR), 0x80, "the APIC's page has it too");
    send_self(vp);
    let_interrupts_in();
    report_equal(vp->interrupts[VECTOR], 2, "it holds lower vectors back");
    wrmsr(HV_X64_MSR_TPR, 0);
    report(wait_interrupts(vp, VECTOR, 3), "until it is lowered");
    wrmsr(HV_X64_MSR_EOI, 0);
    report_equal(trap(write_tpr, (void *)0x100), VECTOR_GENERAL_PROTECTION, "reserved bits of the TPR are #GP");
    report_equal(trap(read_eoi, NULL), VECTOR_GENERAL_PROTECTION, "EOI cannot be read");
    vp->on_interrupt = count_interrupt;
}

void test(void) { on_each_vp(check); }
