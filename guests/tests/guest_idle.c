/* HV_X64_MSR_GUEST_IDLE: reading it halts until an interrupt comes, even one that RFLAGS.IF keeps out. */
#include "test.h"

#define VECTOR_TIMER 0x51
#define APIC_LVT_TIMER 0x320
#define APIC_TIMER_INITIAL 0x380
#define APIC_TIMER_DIVIDE 0x3e0

static volatile bool idle, awake;

static void apic_set(u32 offset, u32 value) { *(volatile u32 *)(u64)(APIC_PAGE + offset) = value; }

static void idle_for_timer(struct vp *vp)
{
    u64 before = rdmsr(HV_X64_MSR_TIME_REF_COUNT);

    apic_set(APIC_TIMER_DIVIDE, 0xb);
    apic_set(APIC_LVT_TIMER, VECTOR_TIMER);
    apic_set(APIC_TIMER_INITIAL, 2000000);
    rdmsr(HV_X64_MSR_GUEST_IDLE);
    report(rdmsr(HV_X64_MSR_TIME_REF_COUNT) - before >= 10000, "idle until the timer, with interrupts off");
    report_equal(vp->interrupts[VECTOR_TIMER], 0, "the interrupt stays pending");
    report(wait_interrupts(vp, VECTOR_TIMER, 1), "and comes with STI");
}

static void idle_for_ipi(struct vp *vp)
{
    interrupts_off();
    idle = true;
    rdmsr(HV_X64_MSR_GUEST_IDLE);
    awake = true;
    report_equal(vp->interrupts[0x52], 0, "an IPI ends it, and is not taken with interrupts off");
}

void test(void)
{
    on_each_vp(idle_for_timer);
    if (vp_count > 1) {
        start_work(1, idle_for_ipi);
        while (!idle)
            cpu_relax();
        u64 time = rdmsr(HV_X64_MSR_TIME_REF_COUNT);
        while (rdmsr(HV_X64_MSR_TIME_REF_COUNT) - time < 1000)
            cpu_relax();
        report(!awake, "another VP idles while nothing comes");
        apic_send(vps, vps[1].apic_id, ICR_FIXED | ICR_ASSERT | 0x52);
        wait_for_work(1);
        report(awake, "and goes on when something has come");
    }
}
