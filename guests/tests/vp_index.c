/* HV_X64_MSR_VP_INDEX: dense, and the same number that hypercalls and intercepts use. */
#include "test.h"

static u64 seen;

static void check(struct vp *vp)
{
    u64 index = rdmsr(HV_X64_MSR_VP_INDEX);

    report(index < vp_count && !(seen >> index & 1), "VP index %lu is below the number of VPs and nobody else's", index);
    seen |= 1ull << index;
    report_equal(hv_get_register(HvRegisterVpIndex), index, "HvRegisterVpIndex says the same");
    u64 value;
    report_equal(hv_try_get_register((u32)index, HV_INPUT_VTL_CURRENT, HvRegisterVpIndex, &value), HV_STATUS_SUCCESS,
                 "hypercalls take the index");
    report_equal(value, index, "and mean this VP");
    report(vp->index == index, "VPs are numbered in the order of the MADT");
}

static void write_index(void *unused)
{
    (void)unused;
    wrmsr(HV_X64_MSR_VP_INDEX, 0);
}

void test(void)
{
    u64 value;

    on_each_vp(check);
    report_equal(trap(write_index, NULL), VECTOR_GENERAL_PROTECTION, "writing the index is #GP");
    report_equal(hv_try_get_register(vp_count, HV_INPUT_VTL_CURRENT, HvRegisterVpIndex, &value), HV_STATUS_INVALID_VP_INDEX,
                 "the index after the last is INVALID_VP_INDEX");
    report_equal(hv_try_get_register(HV_VP_INDEX_ANY, HV_INPUT_VTL_CURRENT, HvRegisterVpIndex, &value),
                 HV_STATUS_INVALID_VP_INDEX, "ANY names no VP here");
}
