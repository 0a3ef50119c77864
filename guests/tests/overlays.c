/* Overlay pages: what is under one reappears, its contents move with it, one of several at a page shows, and each VTL has its own. */
#include "vtls.h"

static u8 first[PAGE_SIZE] ALIGNED_PAGE, second[PAGE_SIZE] ALIGNED_PAGE, common[PAGE_SIZE] ALIGNED_PAGE;

static volatile u32 *word(u8 *page) { return (volatile u32 *)(page + 512); }

static void move(u32 msr, const char *name)
{
    fill(first, 0x11, PAGE_SIZE);
    fill(second, 0x22, PAGE_SIZE);
    wrmsr(msr, (u64)first | HV_MSR_ENABLE);
    *word(first) = 0xabcd;
    wrmsr(msr, (u64)second | HV_MSR_ENABLE);
    report_equal(*word(first), 0x11111111, name);
    report_equal(*word(second), 0xabcd, "moved: the contents have come along");
    wrmsr(msr, 0);
    report_equal(*word(second), 0x22222222, "disabled: what was under it is back");
    wrmsr(msr, (u64)first | HV_MSR_ENABLE);
    report_equal(*word(first), 0xabcd, "enabled again: its contents are too");
    *word(first) = 0;
    wrmsr(msr, 0);
}

static u64 read_common(u64 unused)
{
    (void)unused;
    return *word(common);
}

static void check(struct vp *vp)
{
    (void)vp;
    move(HV_X64_MSR_VP_ASSIST_PAGE, "VP assist page: what was under it is back");
    move(HV_X64_MSR_SIMP, "message page: what was under it is back");
    move(HV_X64_MSR_SIEFP, "event flags page: what was under it is back");

    /* Two at one page: the one that shows gives way to the other when it goes. */
    fill(common, 0x33, PAGE_SIZE);
    wrmsr(HV_X64_MSR_SIMP, (u64)first | HV_MSR_ENABLE);
    *word(first) = 1;
    wrmsr(HV_X64_MSR_SIEFP, (u64)second | HV_MSR_ENABLE);
    *word(second) = 2;
    wrmsr(HV_X64_MSR_SIMP, (u64)common | HV_MSR_ENABLE);
    wrmsr(HV_X64_MSR_SIEFP, (u64)common | HV_MSR_ENABLE);
    u32 shown = *word(common);
    report(shown == 1 || shown == 2, "of two overlays at one page one shows");
    wrmsr(shown == 1 ? HV_X64_MSR_SIMP : HV_X64_MSR_SIEFP, 0);
    report_equal(*word(common), 3 - shown, "the other shows when it goes");
    report_equal(in_vtl(1, read_common, 0), 0x33333333, "VTL1 sees the memory: overlays are of the VTL that has made them");
    wrmsr(shown == 1 ? HV_X64_MSR_SIEFP : HV_X64_MSR_SIMP, 0);
    report_equal(*word(common), 0x33333333, "and VTL0 does, when both have gone");

    /* VTL1's message page lies in memory that VTL0 sees as memory. */
    struct vp *above = vp_of(1, vp->index);
    fill(above->message_page, 0x44, PAGE_SIZE);
    report_equal(*word(above->message_page), 0x44444444, "VTL0 reaches the memory under VTL1's message page, not the page");
}

void test(void)
{
    vtls_start(1 << 1);
    on_each_vp(check);
}
