/* The VP assist page: entry reasons, registers for a normal return, and that it is an overlay of its VTL alone. */
#include "vtls.h"

static u64 assist_of_vtl1(u64 unused)
{
    (void)unused;
    return rdmsr(HV_X64_MSR_VP_ASSIST_PAGE);
}

static u8 page[PAGE_SIZE] ALIGNED_PAGE, closed[PAGE_SIZE] ALIGNED_PAGE;

/* Gives RAX another value by the assist page, and skips the access. */
static void change_rax(struct vp *vp, const struct hv_message *message)
{
    const struct hv_memory_intercept *m = (const void *)message->payload;

    vp->lower.rax = 0xaaaa;
    vp->lower.rcx = 0xcccc;
    hv_set_register(HV_INPUT_VTL(0), HvX64RegisterRip, m->rip + m->instruction_length);
}

static u64 close_page(u64 gpa)
{
    hv_protect_pages(HV_INPUT_VTL(0), gpa, 1, HV_MAP_GPA_NONE);
    return 0;
}

static void check(struct vp *vp)
{
    u64 rax = 1, rcx = 2, rbx = 3;
    u32 calls = vtl_entries[1][vp->index][HvVtlEntryVtlCall], intercepts = vtl_entries[1][vp->index][HvVtlEntryIntercept];

    report_equal(in_vtl(1, assist_of_vtl1, 0), (u64)vp_of(1, vp->index)->assist_page | HV_MSR_ENABLE, "VTL1 has its page");
    report_equal(vtl_entries[1][vp->index][HvVtlEntryVtlCall], calls + 1, "entry reason: VTL call");
    asm volatile("mov (%3), %%rdx" : "+a"(rax), "+c"(rcx), "+b"(rbx) : "S"(closed) : "rdx", "memory");
    report_equal(vtl_entries[1][vp->index][HvVtlEntryIntercept], intercepts + 1, "entry reason: intercept");
    report(rax == 0xaaaa && rcx == 0xcccc, "a normal return takes RAX and RCX from the page");
    report_equal(rbx, 3, "and leaves the others as VTL1 had them");

    fill(page, 0x5a, PAGE_SIZE);
    wrmsr(HV_X64_MSR_VP_ASSIST_PAGE, (u64)page | HV_MSR_ENABLE);
    report_equal(*(volatile u32 *)page, 0, "VTL0's own page begins without EOI assist");
    *(volatile u32 *)(page + 64) = 0x1234;
    wrmsr(HV_X64_MSR_VP_ASSIST_PAGE, 0);
    report_equal(*(volatile u32 *)(page + 64), 0x5a5a5a5a, "without it, what was under it is back");
}

void test(void)
{
    vtls_start(1 << 1);
    on_message = change_rax;
    in_vtl(1, protect_by_default, HV_MAP_GPA_ALL);
    in_vtl(1, close_page, (u64)closed);
    on_each_vp(check);
}
