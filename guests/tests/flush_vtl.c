/* Flushes that name VTLs: VTL1 changes VTL0's page table and flushes VTL0's translations, on every VP. */
#include "vtls.h"

#define WINDOW 0x20000
#define ALL_PROCESSORS 1
#define USE_TARGET_VTL 0x10
#define TARGET_VTLS(set) ((u64)(set) << 8)

static u8 pages[2][PAGE_SIZE] ALIGNED_PAGE;
static u32 wrong;
static u8 wanted;

static void look(struct vp *vp)
{
    (void)vp;
    wrong += *(volatile u8 *)WINDOW != wanted;
}

static u64 flush(u64 flags)
{
    u64 *input = hv_input();

    input[0] = (u64)&boot_tables;
    input[1] = flags;
    return HV_STATUS(hv_call(HvCallFlushVirtualAddressSpace));
}

static u64 remap(u64 page)
{
    paging_map(&boot_tables, WINDOW, (u64)pages[page], PTE_PRESENT | PTE_WRITE);
    return flush(ALL_PROCESSORS | USE_TARGET_VTL | TARGET_VTLS(1 << 0));
}

static void all_look(u32 page, const char *what)
{
    wanted = pages[page][0];
    wrong = 0;
    on_each_vp(look);
    report_equal(wrong, 0, what);
}

void test(void)
{
    vtls_start(1 << 1);
    fill(pages[0], 1, PAGE_SIZE);
    fill(pages[1], 2, PAGE_SIZE);
    report_equal(in_vtl(1, remap, 0), HV_STATUS_SUCCESS, "VTL1 flushes VTL0's translations");
    all_look(0, "every VP sees the page in VTL0");
    report_equal(in_vtl(1, remap, 1), HV_STATUS_SUCCESS, "and again");
    all_look(1, "every VP sees the other page");
    report_equal(in_vtl(1, flush, ALL_PROCESSORS | USE_TARGET_VTL | TARGET_VTLS(3)), HV_STATUS_SUCCESS, "VTL0 and VTL1 at once");
    report_equal(flush(ALL_PROCESSORS | USE_TARGET_VTL | TARGET_VTLS(1 << 1)), HV_STATUS_ACCESS_DENIED,
                 "VTL0 flushes nothing of VTL1's");
    report(flush(ALL_PROCESSORS | USE_TARGET_VTL) != HV_STATUS_SUCCESS, "a set of VTLs that is empty is refused");
}
