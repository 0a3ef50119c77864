/* Intercepts of exceptions: VTL1 is told of VTL0's before its handler, and takes the instruction over or lets it fault. */
#include "vtls.h"

static volatile u32 told;
static volatile bool let_it_fault;
static struct hv_exception_intercept seen;

static void handle(struct vp *vp, const struct hv_message *message)
{
    (void)vp;
    if (message->type != HvMessageTypeExceptionIntercept)
        fail("message of type 0x%x", message->type);
    seen = *(const struct hv_exception_intercept *)message->payload;
    told++;
    if (let_it_fault)
        hv_set_register(HV_INPUT_VTL(0), HvRegisterPendingEvent0, (u64)VECTOR_UNDEFINED << 16 | 1);
    else
        hv_set_register(HV_INPUT_VTL(0), HvX64RegisterRip, seen.rip + 2);
}

static u64 install(u64 access) { return install_intercept(HvInterceptTypeException, (u32)access, VECTOR_UNDEFINED); }

static void undefined(void *unused)
{
    (void)unused;
    asm volatile("ud2");
}

static void check(struct vp *vp)
{
    u32 before = told;

    report_equal(trap(undefined, NULL), VECTOR_UNDEFINED, "UD2 is #UD");
    report_equal(in_vtl(1, install, 4), HV_STATUS_SUCCESS, "VTL1 wants to know of #UD");
    let_it_fault = false;
    report_equal(trap(undefined, NULL), NO_EXCEPTION, "VTL1 skips the instruction: VTL0 sees no exception");
    report(told == before + 1 && seen.vector == VECTOR_UNDEFINED && seen.vp_index == vp->index, "it was told: vector and VP");
    report_equal(seen.rip, (u64)undefined, "and RIP");
    let_it_fault = true;
    report_equal(trap(undefined, NULL), VECTOR_UNDEFINED, "VTL1 injects it: VTL0 has its exception");
    report_equal(told, before + 2, "and VTL1 was told once");
    report_equal(in_vtl(1, install, 0), HV_STATUS_SUCCESS, "VTL1 does no more");
    report(trap(undefined, NULL) == VECTOR_UNDEFINED && told == before + 2, "UD2 is #UD, and nobody is told");
}

void test(void)
{
    vtls_start(1 << 1);
    on_message = handle;
    on_each_vp(check);
}
