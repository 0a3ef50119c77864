/* HV_X64_MSR_GUEST_IDLE: reading it halts until an interrupt comes, even one that RFLAGS.IF keeps out. */
#include "test.h"

#define VECTOR_TIMER 0x51
#define APIC_LVT_TIMER 0x320
#define APIC_TIMER_INITIAL 0x380
#define APIC_TIMER_DIVIDE 0x3e0

static volatile bool idle, awake, woken, released;
static u32 held;

/*
 * A VP begins its work when it sees it, and the IPI that was to wake it for that may come later: an interrupt like any other, which
 * ends the idling. Once VP 0 has sent it, it is there to be taken.
 */
static void take_wake_up(void)
{
    while (!woken)
        cpu_relax();
    let_interrupts_in();
}

static void start_and_wake(u32 index, void (*work)(struct vp *vp))
{
    woken = false;
    start_work(index, work);
    woken = true;
}

/* A VP that is here has sent VP 0 all the IPIs that it had for it, and sends no more until it is released. */
static void hold(struct vp *vp)
{
    (void)vp;
    __atomic_add_fetch(&held, 1, __ATOMIC_SEQ_CST);
    while (!released)
        cpu_relax();
}

static void apic_set(u32 offset, u32 value) { *(volatile u32 *)(u64)(APIC_PAGE + offset) = value; }

static void idle_for_timer(struct vp *vp)
{
    if (vp->index)
        take_wake_up();
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
    take_wake_up();
    idle = true;
    rdmsr(HV_X64_MSR_GUEST_IDLE);
    awake = true;
    report_equal(vp->interrupts[0x52], 0, "an IPI ends it, and is not taken with interrupts off");
}

static void others_are_quiet(void)
{
    for (u32 i = 1; i < vp_count; i++)
        start_work(i, hold);
    while (__atomic_load_n(&held, __ATOMIC_SEQ_CST) < vp_count - 1)
        cpu_relax();
    let_interrupts_in();
}

static void others_go_on(void)
{
    released = true;
    for (u32 i = 1; i < vp_count; i++)
        wait_for_work(i);
}

void test(void)
{
    others_are_quiet();
    idle_for_timer(&vps[0]);
    others_go_on();
    for (u32 i = 1; i < vp_count; i++) {
        start_and_wake(i, idle_for_timer);
        wait_for_work(i);
    }
    if (vp_count > 1) {
        start_and_wake(1, idle_for_ipi);
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
