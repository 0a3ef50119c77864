/* VTL call and return: where they go, what is #UD, which registers come through. */
#include "vtls.h"

static u64 sum(u64 a) { return a + this_vp()->index + 0x1000; }

/* The switching sequence `at` with this control input; what it does to RBX, R8 to R15 is looked at by `keeps_registers`. */
static void switch_with(void *at_and_control)
{
    u64 *p = at_and_control;

    asm volatile("call *%0" : : "r"(p[0]), "c"(p[1]) : "rax", "rdx", "r8", "r9", "r10", "r11", "memory");
}

static u64 spoil(u64 a)
{
    /* What VTL1 does to the shared registers of VTL0 while it serves: it gives those of `lower` back. */
    this_vp()->lower.r9 = a;
    return 0;
}

static void keeps_registers(struct vp *vp)
{
    u64 r8, r9, r12, r15, rbx = 1, rsi = (u64)spoil, rdi = 0x9999, rsp_before, rsp_after;

    asm volatile("mov $0x8888, %%r8; mov $0x1111, %%r9; mov $0x1212, %%r12; mov $0x1515, %%r15; mov %%rsp, %%r13\n"
                 "xor %%ecx, %%ecx\n"
                 "call *%8\n"
                 "mov %%r8, %0; mov %%r9, %1; mov %%r12, %2; mov %%r15, %3; mov %%rsp, %4; mov %%r13, %%rax\n"
                 : "=m"(r8), "=m"(r9), "=m"(r12), "=m"(r15), "=m"(rsp_after), "+b"(rbx), "+S"(rsi), "+D"(rdi)
                 : "m"(vp->vtl_call)
                 : "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory", "rax");
    asm volatile("mov %%rsp, %0" : "=r"(rsp_before));
    report(r8 == 0x8888 && r12 == 0x1212 && r15 == 0x1515, "R8, R12 and R15 come back as VTL1 gave them");
    report_equal(r9, 0x9999, "what VTL1 changes is changed: they are shared");
    report_equal(rsp_after, rsp_before, "RSP is VTL0's own");
}

static void check(struct vp *vp)
{
    u32 calls = vtl_entries[1][vp->index][HvVtlEntryVtlCall];
    u64 with[2] = {vp->vtl_call, 1};

    report_equal(in_vtl(1, sum, 5), 0x1005 + vp->index, "a VTL call runs VTL1 of this VP, and returns");
    report_equal(hv_get_register(HvRegisterVsmVpStatus) & 0xf, 0, "VTL0 is active again");
    report_equal(trap(switch_with, with), VECTOR_UNDEFINED, "a VTL call with a control input that is not 0 is #UD");
    with[0] = vp->vtl_return;
    with[1] = 0;
    report_equal(trap(switch_with, with), VECTOR_UNDEFINED, "a VTL return from VTL0 is #UD");
    report_equal(vtl_entries[1][vp->index][HvVtlEntryVtlCall], calls + 1, "nothing of that reached VTL1");
    keeps_registers(vp);
    for (u32 i = 0; i < 50; i++)
        in_vtl(1, sum, i);
    report_equal(vtl_entries[1][vp->index][HvVtlEntryVtlCall], calls + 52, "each call is an entry with reason VTL call");
}

static u64 from_vtl1(u64 a)
{
    struct vp *vp = this_vp();
    u64 with[2] = {vp->vtl_return, 2};

    (void)a;
    report_equal(hv_get_register(HvRegisterVsmVpStatus) & 0xf, 1, "in VTL1, VTL1 is active");
    report_equal(trap(switch_with, with), VECTOR_UNDEFINED, "a VTL return with an unknown control bit is #UD");
    with[0] = vp->vtl_call;
    with[1] = 0;
    report_equal(trap(switch_with, with), VECTOR_UNDEFINED, "a VTL call from the highest VTL is #UD");
    return 0;
}

void test(void)
{
    u64 with[2] = {0, 0};

    hv_learn_vtl_switch(vps, hypercall_page);
    with[0] = vps->vtl_call;
    report_equal(trap(switch_with, with), VECTOR_UNDEFINED, "a VTL call before VTL1 is enabled is #UD");
    vtls_start(1 << 1);
    for (u32 i = 1; i < vp_count; i++)
        vps[i].vtl_return = vps->vtl_return;
    on_each_vp(check);
    in_vtl(1, from_vtl1, 0);
}
