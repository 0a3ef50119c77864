/* HV_X64_MSR_VP_RUNTIME: what a VP has used, not what has passed. */
#include "test.h"

static void check(struct vp *vp)
{
    (void)vp;
    u64 first = rdmsr(HV_X64_MSR_VP_RUNTIME);
    u64 time = rdmsr(HV_X64_MSR_TIME_REF_COUNT);
    while (rdmsr(HV_X64_MSR_TIME_REF_COUNT) - time < 1000)
        cpu_relax();
    u64 second = rdmsr(HV_X64_MSR_VP_RUNTIME);
    report(second > first, "a VP that runs uses time");
    report(second <= rdmsr(HV_X64_MSR_TIME_REF_COUNT), "not more than there was");
}

static void write_it(void *unused)
{
    (void)unused;
    wrmsr(HV_X64_MSR_VP_RUNTIME, 0);
}

void test(void)
{
    on_each_vp(check);
    report_equal(trap(write_it, NULL), VECTOR_GENERAL_PROTECTION, "writing it is #GP");
}
