/* HvCallEnablePartitionVtl and HvCallEnableVpVtl: who may, in which order, with which status. */
#include "vtls.h"

static struct page_tables tables;
static struct vp upper[MAX_TEST_VPS];

static u16 enable_partition(u64 partition, u8 vtl, u8 flags)
{
    struct {
        u64 partition;
        u8 vtl, flags, reserved[6];
    } *input = hv_input();

    input->partition = partition;
    input->vtl = vtl;
    input->flags = flags;
    return HV_STATUS(hv_call(HvCallEnablePartitionVtl));
}

static u16 enable_vp(u64 partition, u32 index, u8 vtl, void (*spoil)(struct hv_initial_vp_context *))
{
    struct {
        struct hv_target target;
        struct hv_initial_vp_context context;
    } *input = hv_input();

    input->target = (struct hv_target){partition, index, vtl, {0}};
    hv_initial_context(&input->context, &upper[0], &tables);
    if (spoil)
        spoil(&input->context);
    return HV_STATUS(hv_call(HvCallEnableVpVtl));
}

static void real_mode(struct hv_initial_vp_context *c) { c->cr0 = 0x10; }
static void bad_cr4(struct hv_initial_vp_context *c) { c->cr4 = 1ull << 40; }
static void bad_efer(struct hv_initial_vp_context *c) { c->efer = 0x100; }
static void bad_pat(struct hv_initial_vp_context *c) { c->pat = 2; }
static void bad_rip(struct hv_initial_vp_context *c) { c->rip = 1ull << 60; }

static void from_other_vp(struct vp *vp)
{
    if (vp->index)
        report_equal(enable_vp(HV_PARTITION_ID_SELF, HV_VP_INDEX_SELF, 1, NULL), HV_STATUS_ACCESS_DENIED,
                     "once VTL1 is enabled on VP 0, VTL0 enables it on no other");
}

void test(void)
{
    const u64 self = HV_PARTITION_ID_SELF;

    paging_build(&tables);
    vp_init(&upper[0], 1, 0, vps[0].apic_id);
    report_equal(hv_get_register(HvRegisterVsmPartitionStatus) & 0xffff, 1, "the partition starts in VTL0 alone");
    report_equal(hv_get_register(HvRegisterVsmVpStatus), 1 << 16, "so does the VP");

    report_equal(enable_vp(self, 0, 1, NULL), HV_STATUS_INVALID_VTL_STATE, "a VP's VTL before the partition's");
    report_equal(enable_partition(self, 0, 0), HV_STATUS_INVALID_PARAMETER, "VTL0 needs no enabling");
    report_equal(enable_partition(self, 16, 0), HV_STATUS_INVALID_PARAMETER, "there is no VTL16");
    report_equal(enable_partition(self, 1, 0x80), HV_STATUS_INVALID_PARAMETER, "a flag that does not exist");
    report_equal(enable_partition(0x1234, 1, 0), HV_STATUS_INVALID_PARTITION_ID, "another partition");
    report_equal(enable_partition(self, 1, 0), HV_STATUS_SUCCESS, "VTL1");
    report_equal(enable_partition(self, 1, 0), HV_STATUS_VTL_ALREADY_ENABLED, "VTL1 again");
    report_equal(enable_partition(self, 2, 0), HV_STATUS_ACCESS_DENIED, "VTL2 is VTL1's to enable");
    report_equal(hv_get_register(HvRegisterVsmPartitionStatus) & 0xffff, 3, "the partition has VTL0 and VTL1");

    report_equal(enable_vp(0x1234, 0, 1, NULL), HV_STATUS_INVALID_PARTITION_ID, "a VP of another partition");
    report_equal(enable_vp(self, vp_count, 1, NULL), HV_STATUS_INVALID_VP_INDEX, "a VP that does not exist");
    report_equal(enable_vp(self, 0, 2, NULL), HV_STATUS_INVALID_VTL_STATE, "a VTL that the partition has not");
    report_equal(enable_vp(self, 0, 1, real_mode), HV_STATUS_INVALID_REGISTER_VALUE, "no VTL starts in real mode");
    report_equal(enable_vp(self, 0, 1, bad_cr4), HV_STATUS_INVALID_REGISTER_VALUE, "a CR4 that cannot be");
    report_equal(enable_vp(self, 0, 1, bad_efer), HV_STATUS_INVALID_REGISTER_VALUE, "an EFER that contradicts CR0");
    report_equal(enable_vp(self, 0, 1, bad_pat), HV_STATUS_INVALID_REGISTER_VALUE, "a PAT with a reserved type");
    report_equal(enable_vp(self, 0, 1, bad_rip), HV_STATUS_INVALID_REGISTER_VALUE, "a RIP that is not canonical");
    report_equal(enable_vp(self, 0, 1, NULL), HV_STATUS_SUCCESS, "VTL1 on VP 0");
    report_equal(enable_vp(self, HV_VP_INDEX_SELF, 1, NULL), HV_STATUS_VTL_ALREADY_ENABLED, "and again");
    report_equal(hv_get_register(HvRegisterVsmVpStatus), 3 << 16, "the VP has both, and VTL0 is active");
    on_each_vp(from_other_vp);
}
