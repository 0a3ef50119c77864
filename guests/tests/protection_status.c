/* HvCallModifyVtlProtectionMask and HvRegisterVsmPartitionConfig: who may name whom, which masks there are. */
#include "vtls.h"

static u8 page[PAGE_SIZE] ALIGNED_PAGE;

static u64 modify(u8 vtl, u32 flags, u64 first, u64 second, u32 reps)
{
    struct {
        u64 partition;
        u32 flags;
        u8 vtl, reserved[3];
        u64 pages[2];
    } *input = hv_input();

    input->partition = HV_PARTITION_ID_SELF;
    input->flags = flags;
    input->vtl = vtl;
    input->pages[0] = first;
    input->pages[1] = second;
    return hv_call(HvCallModifyVtlProtectionMask | HV_REPS(reps));
}

static u16 status(u8 vtl, u32 flags) { return HV_STATUS(modify(vtl, flags, (u64)page / PAGE_SIZE, 0, 1)); }

static u64 in_vtl1_before(u64 unused)
{
    (void)unused;
    report_equal(status(HV_INPUT_VTL(0), HV_MAP_GPA_ALL), HV_STATUS_ACCESS_DENIED, "before protection is on: ACCESS_DENIED");
    report_equal(hv_get_register(HvRegisterVsmPartitionConfig), 0x20, "the configuration starts with ZeroMemoryOnReset alone");
    report_equal(protect_by_default(0x6), HV_STATUS_INVALID_REGISTER_VALUE, "a default mask that is no combination");
    report_equal(protect_by_default(HV_MAP_GPA_ALL), HV_STATUS_SUCCESS, "protection on, everything permitted");
    return 0;
}

static u64 in_vtl1(u64 unused)
{
    u64 gpn = (u64)page / PAGE_SIZE, config = hv_get_register(HvRegisterVsmPartitionConfig);

    (void)unused;
    report_equal(config, 0x3f, "the configuration says so");
    report_equal(hv_try_set_register(HV_VP_INDEX_SELF, 0, HvRegisterVsmPartitionConfig, 0), HV_STATUS_SUCCESS,
                 "a configuration without the bit is accepted");
    report_equal(hv_get_register(HvRegisterVsmPartitionConfig) & 0x1f, 0x1f, "but protection and its mask stay");
    report_equal(status(HV_INPUT_VTL(0), HV_MAP_GPA_NONE), HV_STATUS_SUCCESS, "none");
    report_equal(status(HV_INPUT_VTL(0), HV_MAP_GPA_READ), HV_STATUS_SUCCESS, "R");
    report_equal(status(HV_INPUT_VTL(0), HV_MAP_GPA_READ_WRITE), HV_STATUS_SUCCESS, "RW");
    report_equal(status(HV_INPUT_VTL(0), HV_MAP_GPA_READ_EXECUTE), HV_STATUS_SUCCESS, "RX");
    report_equal(status(HV_INPUT_VTL(0), HV_MAP_GPA_ALL), HV_STATUS_SUCCESS, "RWX");
    report_equal(status(HV_INPUT_VTL(0), 0x2), HV_STATUS_INVALID_PARAMETER, "W without R is INVALID_PARAMETER");
    report_equal(status(HV_INPUT_VTL(0), 0xc), HV_STATUS_INVALID_PARAMETER, "so is X without R");
    report_equal(status(HV_INPUT_VTL(0), 0x1f), HV_STATUS_INVALID_PARAMETER, "and an unknown flag");
    report_equal(status(0x30, HV_MAP_GPA_ALL), HV_STATUS_INVALID_PARAMETER, "a reserved bit of the target VTL");
    report_equal(status(HV_INPUT_VTL(2), HV_MAP_GPA_ALL), HV_STATUS_ACCESS_DENIED, "a higher VTL is ACCESS_DENIED");
    u64 result = modify(HV_INPUT_VTL(0), HV_MAP_GPA_ALL, gpn, 0xfee00, 2);
    report_equal(HV_STATUS(result), HV_STATUS_INVALID_PARAMETER, "a page that is not RAM");
    report_equal(HV_REPS_DONE(result), 1, "the one before it is done");
    return 0;
}

void test(void)
{
    u64 value;

    vtls_start(1 << 1 | 1 << 2);
    report_equal(status(HV_INPUT_VTL(0), HV_MAP_GPA_ALL), HV_STATUS_ACCESS_DENIED, "VTL0 protects nothing");
    report_equal(hv_try_get_register(HV_VP_INDEX_SELF, HV_INPUT_VTL(1), HvRegisterVsmPartitionConfig, &value),
                 HV_STATUS_ACCESS_DENIED, "VTL0 cannot read VTL1's configuration");
    report_equal(hv_try_set_register(HV_VP_INDEX_SELF, 0, HvRegisterVsmPartitionConfig, 1), HV_STATUS_ACCESS_DENIED,
                 "and has none of its own to write");
    in_vtl(1, in_vtl1_before, 0);
    in_vtl(1, in_vtl1, 0);
}
