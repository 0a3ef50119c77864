/* EOI assist: NoEoiRequired in the VP assist page, and that an interrupt ended by clearing it is ended. */
#include "test.h"

#define VECTOR 0x72
#define NO_EOI_REQUIRED 1

static volatile u32 assisted, ended;

static void handler(struct vp *vp, u8 vector)
{
    u32 *word = (u32 *)vp->assist_page;

    vp->interrupts[vector]++;
    if (vector == VECTOR && __sync_fetch_and_and(word, ~NO_EOI_REQUIRED) & NO_EOI_REQUIRED) {
        assisted++;
        return;
    }
    if (vector == VECTOR)
        ended++;
    apic_eoi(vp);
}

static void send_self(struct vp *vp, u8 vector) { apic_send(vp, vp->apic_id, ICR_FIXED | ICR_ASSERT | vector); }

static void check(struct vp *vp)
{
    wrmsr(HV_X64_MSR_VP_ASSIST_PAGE, (u64)vp->assist_page | HV_MSR_ENABLE);
    vp->on_interrupt = handler;
    assisted = ended = 0;
    for (u32 i = 1; i <= 10; i++) {
        send_self(vp, VECTOR);
        if (!wait_interrupts(vp, VECTOR, i))
            break;
    }
    report_equal(vp->interrupts[VECTOR], 10, "ten edge interrupts come, each after the end of the last");
    report_equal(assisted + ended, 10, "each is ended once");
    report(assisted > 0, "%u of them without an EOI", assisted);
    report_equal(*(volatile u32 *)vp->assist_page & NO_EOI_REQUIRED, 0, "outside a handler NoEoiRequired is clear");
    send_self(vp, VECTOR - 0x20);
    report(wait_interrupts(vp, VECTOR - 0x20, 1), "a lower vector is held back by none of them");
    wrmsr(HV_X64_MSR_VP_ASSIST_PAGE, 0);
    assisted = ended = 0;
    send_self(vp, VECTOR);
    report(wait_interrupts(vp, VECTOR, 11) && !assisted, "without the page an EOI is written");
    vp->on_interrupt = count_interrupt;
}

void test(void) { on_each_vp(check); }
