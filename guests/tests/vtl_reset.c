/* A reset with VTL1 enabled: back to VTL0 alone, nothing protected, and memory is zero: no secret survives in it. */
#include "vtls.h"

#define SECRET ((volatile u64 *)0x1800000)

static u64 close_secret(u64 unused)
{
    (void)unused;
    protect_by_default(HV_MAP_GPA_ALL);
    *SECRET = 0x5ec4e7;
    hv_protect_pages(HV_INPUT_VTL(0), (u64)SECRET, 1, HV_MAP_GPA_NONE);
    return 0;
}

static u64 keep_memory(u64 unused)
{
    (void)unused;
    u64 config = hv_get_register(HvRegisterVsmPartitionConfig);
    hv_set_register(HV_INPUT_VTL_CURRENT, HvRegisterVsmPartitionConfig, config & ~0x20ull);
    return 0;
}

static void reset(struct vp *vp)
{
    (void)vp;
    wrmsr(HV_X64_MSR_RESET, 1);
    for (;;)
        cpu_relax();
}

void test(void)
{
    u8 boot = platform_read_scratch();

    platform_write_scratch((u8)(boot + 1));
    if (boot == 1) {
        report_equal(*SECRET, 0, "after the reset memory is zero");
    } else if (boot == 2) {
        report_equal(*SECRET, 0x5ec4e7, "where VTL1 has cleared ZeroMemoryOnReset it is not");
    }
    report_equal(hv_get_register(HvRegisterVsmPartitionStatus) & 0xffff, 1, "VTL0 alone is enabled on the partition");
    report_equal(hv_get_register(HvRegisterVsmVpStatus), 1 << 16, "and on the VP");
    report_equal(rdmsr(HV_X64_MSR_VP_ASSIST_PAGE), 0, "the overlays are off");
    if (boot == 2)
        return;
    vtls_start(1 << 1);
    in_vtl(1, close_secret, 0);
    if (boot == 1)
        in_vtl(1, keep_memory, 0);
    summary();
    /* By whichever VP: all of them start again. */
    smp_run(vp_count - 1, reset);
}
