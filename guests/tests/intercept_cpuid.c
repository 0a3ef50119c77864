/* Intercepts of CPUID leaves: VTL1 chooses what VTL0 is told of the processor. */
#include "vtls.h"

#define LEAF 0x80000002

static volatile u32 told;
static struct hv_cpuid_intercept seen;

static void emulate(struct vp *vp, const struct hv_message *message)
{
    if (message->type != HvMessageTypeX64CpuidIntercept)
        fail("message of type 0x%x", message->type);
    seen = *(const struct hv_cpuid_intercept *)message->payload;
    told++;
    vp->lower.rax = 0x11111111;
    vp->lower.rbx = seen.default_rbx;
    vp->lower.rcx = 0x33333333;
    vp->lower.rdx = seen.default_rdx;
    skip_lower(message);
}

static u64 install(u64 access) { return install_intercept(HvInterceptTypeX64Cpuid, (u32)access, LEAF); }

static void check(struct vp *vp)
{
    u32 before = told;
    struct cpuid_result plain = cpuid(LEAF), changed;

    report_equal(in_vtl(1, install, 4), HV_STATUS_SUCCESS, "VTL1 wants to know of a leaf");
    changed = cpuid(LEAF);
    report_equal(told, before + 1, "it is told");
    report((u32)seen.rax == LEAF && !(u32)seen.rcx && seen.vp_index == vp->index, "leaf, sub-leaf and VP");
    report((u32)seen.default_rax == plain.eax && (u32)seen.default_rbx == plain.ebx && (u32)seen.default_rcx == plain.ecx &&
               (u32)seen.default_rdx == plain.edx,
           "and what the answer would have been");
    report(changed.eax == 0x11111111 && changed.ecx == 0x33333333, "VTL0 gets what VTL1 says");
    report(changed.ebx == plain.ebx && changed.edx == plain.edx, "or passes on");
    cpuid(LEAF + 1);
    report_equal(told, before + 1, "another leaf is not told");
    report_equal(in_vtl(1, install, 0), HV_STATUS_SUCCESS, "VTL1 does no more");
    changed = cpuid(LEAF);
    report(told == before + 1 && changed.eax == plain.eax, "VTL0 is told the truth again");
}

void test(void)
{
    vtls_start(1 << 1);
    on_message = emulate;
    on_each_vp(check);
}
