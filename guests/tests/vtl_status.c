/* The status registers of VSM: VP status, partition status, capabilities, code page offsets. */
#include "vtls.h"

static u64 vp_status(u64 unused)
{
    (void)unused;
    return hv_get_register(HvRegisterVsmVpStatus);
}

static u64 partition_status(u64 unused)
{
    (void)unused;
    return hv_get_register(HvRegisterVsmPartitionStatus);
}

static u64 offsets(u64 unused)
{
    (void)unused;
    return hv_get_register(HvRegisterVsmCodePageOffsets);
}

static void check(struct vp *vp)
{
    u64 value = offsets(0);
    u32 call = value & 0xfff, back = value >> 12 & 0xfff;

    (void)vp;
    report_equal(vp_status(0), 7 << 16, "VTL0 is active, three VTLs are enabled on the VP");
    report_equal(in_vtl(1, vp_status, 0), 7 << 16 | 1, "asked in VTL1, VTL1 is active");
    report_equal(in_vtl(2, vp_status, 0), 7 << 16 | 2, "asked in VTL2, VTL2 is");
    report_equal(partition_status(0) & 0xffff, 7, "three VTLs are enabled on the partition");
    report_equal(partition_status(0) >> 16 & 0xf, 15, "and 15 is the highest there can be");
    report_equal(in_vtl(2, partition_status, 0), partition_status(0), "the partition's status is one for all VTLs");
    report(call && back && call != back && !(value >> 24), "VTL call at 0x%x, VTL return at 0x%x of the page", call, back);
    report_equal(in_vtl(2, offsets, 0), value, "the offsets are the same in every 64-bit VTL");
    report_equal(hv_try_set_register(HV_VP_INDEX_SELF, 0, HvRegisterVsmVpStatus, 0), HV_STATUS_ACCESS_DENIED,
                 "the VP status cannot be written");
    report_equal(hv_try_set_register(HV_VP_INDEX_SELF, 0, HvRegisterVsmPartitionStatus, 0), HV_STATUS_ACCESS_DENIED,
                 "nor the partition status");
    report_equal(hv_try_set_register(HV_VP_INDEX_SELF, 0, HvRegisterVsmCodePageOffsets, 0), HV_STATUS_ACCESS_DENIED,
                 "nor the offsets");
    u64 unused;
    report_equal(hv_try_get_register(HV_VP_INDEX_SELF, 0, HvRegisterVsmCapabilities, &unused), HV_STATUS_SUCCESS,
                 "the capabilities can be read");
}

void test(void)
{
    vtls_start(1 << 1 | 1 << 2);
    on_each_vp(check);
}
