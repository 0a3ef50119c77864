/* The crash MSRs: parameters, capabilities; the last write to the control register ends the run. */
#include "test.h"

static void check(struct vp *vp)
{
    (void)vp;
    bool kept = true;
    for (u32 i = 0; i < 5; i++)
        kept &= rdmsr(HV_X64_MSR_CRASH_P0 + i) == 0x1111 * (i + 1);
    report(kept, "every VP reads the five parameters");
    report_equal(rdmsr(HV_X64_MSR_CRASH_CTL), HV_CRASH_NOTIFY | HV_CRASH_MESSAGE,
                 "reading the control register says what it can do");
}

void test(void)
{
    for (u32 i = 0; i < 5; i++)
        wrmsr(HV_X64_MSR_CRASH_P0 + i, 0x1111 * (i + 1));
    on_each_vp(check);
    wrmsr(HV_X64_MSR_CRASH_CTL, 0);
    report(true, "writing it without the notify bit does nothing");
    summary();
    wrmsr(HV_X64_MSR_CRASH_CTL, HV_CRASH_NOTIFY);
    say("the run goes on after a crash");
}
