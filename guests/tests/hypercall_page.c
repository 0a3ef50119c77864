/* HV_X64_MSR_GUEST_OS_ID and HV_X64_MSR_HYPERCALL: the page needs an identity, moves, cannot be written, can be locked. */
#include "test.h"

#define OS_ID 0x8100000000000001

static u8 first[PAGE_SIZE] ALIGNED_PAGE, second[PAGE_SIZE] ALIGNED_PAGE;

static void write_page(void *page) { *(volatile u8 *)page = 0; }
static void write_hypercall_msr(void *value) { wrmsr(HV_X64_MSR_HYPERCALL, (u64)value); }

static void shared(struct vp *vp)
{
    (void)vp;
    report_equal(rdmsr(HV_X64_MSR_HYPERCALL), (u64)second | HV_MSR_ENABLE | HV_MSR_HYPERCALL_LOCKED,
                 "the register is one of all VPs");
    report_equal(rdmsr(HV_X64_MSR_GUEST_OS_ID), OS_ID, "so is the guest OS identity");
    hv_use_hypercall_page(this_vp(), second);
    report_equal(HV_STATUS(hv_call(HvCallNotifyLongSpinWait)), HV_STATUS_SUCCESS, "and each calls through the page");
}

void test(void)
{
    report_equal(rdmsr(HV_X64_MSR_HYPERCALL), (u64)hypercall_page | HV_MSR_ENABLE, "the library's page is on");

    wrmsr(HV_X64_MSR_GUEST_OS_ID, 0);
    report_equal(rdmsr(HV_X64_MSR_HYPERCALL) & HV_MSR_ENABLE, 0, "no guest OS identity, no hypercall page");
    wrmsr(HV_X64_MSR_HYPERCALL, (u64)first | HV_MSR_ENABLE);
    report_equal(rdmsr(HV_X64_MSR_HYPERCALL) & HV_MSR_ENABLE, 0, "nor can it be enabled");
    wrmsr(HV_X64_MSR_GUEST_OS_ID, OS_ID);
    report_equal(rdmsr(HV_X64_MSR_GUEST_OS_ID), OS_ID, "the identity reads back");

    fill(first, 0x5a, PAGE_SIZE);
    fill(second, 0xa5, PAGE_SIZE);
    wrmsr(HV_X64_MSR_HYPERCALL, (u64)first | HV_MSR_ENABLE);
    report(first[0] != 0x5a, "the page shows where it is enabled");
    hv_use_hypercall_page(vps, first);
    report_equal(HV_STATUS(hv_call(HvCallNotifyLongSpinWait)), HV_STATUS_SUCCESS, "calls go through it");
    u8 entry = first[0];

    wrmsr(HV_X64_MSR_HYPERCALL, (u64)second | HV_MSR_ENABLE);
    report(first[0] == 0x5a && first[PAGE_SIZE - 1] == 0x5a, "moved, it uncovers what was under it");
    report_equal(second[0], entry, "and shows at its new place");
    report_equal(trap(write_page, second), VECTOR_GENERAL_PROTECTION, "writing to it is #GP");
    report_equal(second[0], entry, "and changes nothing");
    report_equal(trap(write_hypercall_msr, (void *)((1ull << 50) | HV_MSR_ENABLE)), VECTOR_GENERAL_PROTECTION,
                 "a page beyond the guest's memory is #GP");

    wrmsr(HV_X64_MSR_HYPERCALL, (u64)second | HV_MSR_ENABLE | HV_MSR_HYPERCALL_LOCKED);
    report_equal(trap(write_hypercall_msr, (void *)0), VECTOR_GENERAL_PROTECTION, "locked, the register is #GP to write");
    on_each_vp(shared);
}
