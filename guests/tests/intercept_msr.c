/* Intercepts of MSRs: installed ones, and those of HvX64RegisterCrInterceptControl. */
#include "vtls.h"

#define MSR_LSTAR 0xc0000082
#define MSR_TSC_AUX 0xc0000103
#define LSTAR_READ (1 << 5)
#define LSTAR_WRITE (1 << 6)

static volatile u32 told;
static struct hv_msr_intercept seen;

static void emulate(struct vp *vp, const struct hv_message *message)
{
    if (message->type != HvMessageTypeX64MsrIntercept)
        fail("message of type 0x%x", message->type);
    seen = *(const struct hv_msr_intercept *)message->payload;
    told++;
    if (seen.access == HV_INTERCEPT_ACCESS_READ) {
        vp->lower.rax = 0x4444;
        vp->lower.rdx = 0x5555;
    }
    skip_lower(message);
}

static u64 install(u64 access) { return install_intercept(HvInterceptTypeX64Msr, (u32)access, MSR_TSC_AUX); }

static u64 control(u64 bits)
{
    return hv_try_set_register(HV_VP_INDEX_SELF, HV_INPUT_VTL_CURRENT, HvX64RegisterCrInterceptControl, bits);
}

static void check(struct vp *vp)
{
    u32 before = told;

    wrmsr(MSR_LSTAR, 0x1000);
    report_equal(in_vtl(1, control, LSTAR_READ | LSTAR_WRITE), HV_STATUS_SUCCESS, "VTL1 wants to know of LSTAR");
    wrmsr(MSR_LSTAR, 0x123400002000);
    report(told == before + 1 && seen.access == HV_INTERCEPT_ACCESS_WRITE, "a WRMSR is told");
    report(seen.msr == MSR_LSTAR && (u32)seen.rax == 0x2000 && (u32)seen.rdx == 0x1234, "with register and value");
    report_equal(seen.vp_index, vp->index, "and VP");
    report_equal(rdmsr(MSR_LSTAR), 0x555500004444, "a RDMSR gets what VTL1 says");
    report_equal(told, before + 2, "and is told");
    report_equal(in_vtl(1, control, 0), HV_STATUS_SUCCESS, "VTL1 does no more");
    report_equal(rdmsr(MSR_LSTAR), 0x1000, "the intercepted write has had no effect");
    report_equal(told, before + 2, "nothing is told");

    u16 status = (u16)in_vtl(1, install, 2);
    report_equal(status, HV_STATUS_SUCCESS, "an installed intercept of writes to another MSR");
    wrmsr(MSR_TSC_AUX, 7);
    report(told == before + 3 && seen.msr == MSR_TSC_AUX, "is told");
    report(rdmsr(MSR_TSC_AUX) != 7 && told == before + 3, "a read is not");
    in_vtl(1, install, 0);
}

void test(void)
{
    vtls_start(1 << 1);
    on_message = emulate;
    on_each_vp(check);
}
