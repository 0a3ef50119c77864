/* HvCallFlushVirtualAddressSpace, ...List and their Ex forms: a page that VP 0 maps elsewhere is seen there by every VP. */
#include "test.h"

#define WINDOW 0x20000
#define ALL_PROCESSORS 1
#define ALL_SPACES 2

static u8 pages[4][PAGE_SIZE] ALIGNED_PAGE;
static volatile u32 wanted, wrong, ready;

static void look(struct vp *vp)
{
    (void)vp;
    u8 value = *(volatile u8 *)WINDOW;

    if (value != wanted)
        wrong++;
}

/* Looks at the window all the time: its translation is in this VP's TLB when it changes. */
static void watch(struct vp *vp)
{
    (void)vp;
    __atomic_fetch_add(&ready, 1, __ATOMIC_RELAXED);
    while (*(volatile u8 *)WINDOW != pages[3][0])
        cpu_relax();
}

static void map(u32 page) { paging_map(&boot_tables, WINDOW, (u64)pages[page], PTE_PRESENT | PTE_WRITE); }

static u64 flush_space(u64 flags, u64 mask)
{
    u64 *input = hv_input();

    input[0] = (u64)&boot_tables;
    input[1] = flags;
    input[2] = mask;
    return hv_call(HvCallFlushVirtualAddressSpace);
}

static u64 flush_list(u64 mask)
{
    u64 *input = hv_input();

    input[0] = (u64)&boot_tables;
    input[2] = mask;
    input[3] = WINDOW;
    return hv_call(HvCallFlushVirtualAddressList | HV_REPS(1));
}

static u64 flush_set(void)
{
    u64 *input = hv_input();

    input[0] = (u64)&boot_tables;
    input[3] = 1;
    input[4] = (1ull << vp_count) - 1;
    input[5] = WINDOW;
    return hv_call(HvCallFlushVirtualAddressListEx | HV_VARIABLE_HEADER(1) | HV_REPS(1));
}

static void all_look(u32 page, const char *how)
{
    wanted = pages[page][0];
    wrong = 0;
    on_each_vp(look);
    report_equal(wrong, 0, how);
}

void test(void)
{
    u64 all = (1ull << vp_count) - 1;

    for (u32 i = 0; i < 4; i++)
        fill(pages[i], (u8)(0x10 + i), PAGE_SIZE);
    map(0);
    flush_space(ALL_PROCESSORS | ALL_SPACES, 0);
    all_look(0, "after a flush of everything everywhere");
    map(1);
    report_equal(flush_space(0, all), HV_STATUS_SUCCESS, "flush of one address space by a mask");
    all_look(1, "every VP sees the new page");
    map(2);
    report_equal(flush_list(all), HV_REPS(1), "flush of one address");
    all_look(2, "every VP sees the new page");
    map(0);
    report_equal(flush_set(), HV_REPS(1), "flush of one address by a sparse set");
    all_look(0, "every VP sees the new page");

    for (u32 i = 1; i < vp_count; i++)
        start_work(i, watch);
    while (ready < vp_count - 1)
        cpu_relax();
    map(3);
    report_equal(flush_space(ALL_PROCESSORS, 0), HV_STATUS_SUCCESS, "flush while others use the page");
    for (u32 i = 1; i < vp_count; i++)
        wait_for_work(i);
    all_look(3, "all of them have seen the new page");

    report_equal(HV_STATUS(flush_space(0x100, all)), HV_STATUS_INVALID_PARAMETER, "an unknown flag is INVALID_PARAMETER");
    report_equal(HV_STATUS(flush_list(0)), HV_STATUS_SUCCESS, "no processors are all processors");
}
