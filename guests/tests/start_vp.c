/* HvCallStartVirtualProcessor: VPs that the guest starts by hypercall, and who may. */
#include "vtls.h"

u32 vps_to_start = 1;

static u32 apic_ids[MAX_VPS], count;
static volatile u32 up;

static u16 start(u32 index, u8 vtl, struct vp *vp, struct page_tables *tables)
{
    struct {
        struct hv_target target;
        struct hv_initial_vp_context context;
    } *input = hv_input();

    input->target = (struct hv_target){HV_PARTITION_ID_SELF, index, vtl, {0}};
    hv_initial_context(&input->context, vp, tables);
    return HV_STATUS(hv_call(HvCallStartVirtualProcessor));
}

static void started(struct vp *vp)
{
    report_equal(rdmsr(HV_X64_MSR_VP_INDEX), vp->index, "a VP runs where its context says");
    up++;
    halt_forever();
}

static u64 deny(u64 unused)
{
    u64 config = hv_get_register(HvRegisterVsmPartitionConfig);

    (void)unused;
    return hv_try_set_register(HV_VP_INDEX_SELF, HV_INPUT_VTL_CURRENT, HvRegisterVsmPartitionConfig,
                               config | HV_VSM_PARTITION_CONFIG_DENY_LOWER_VTL_STARTUP);
}

void test(void)
{
    struct vp *vp = &vps[1];

    count = processors(apic_ids);
    vp_init(vp, 0, 1, apic_ids[1]);
    vp->main = started;
    vps[1].hypercall = vps[0].hypercall;
    report_equal(start(count, 0, vp, &boot_tables), HV_STATUS_INVALID_VP_INDEX, "a VP that does not exist");
    report(start(0, 0, vp, &boot_tables) != HV_STATUS_SUCCESS, "the VP that asks");
    report(start(count > 1, 1, vp, &boot_tables) != HV_STATUS_SUCCESS, "a VTL that is not enabled");
    for (u32 i = 1; i < count; i++) {
        vp_init(&vps[i], 0, i, apic_ids[i]);
        vps[i].main = started;
        if (i == count - 1) {
            vtls_start(1 << 1);
            report_equal(in_vtl(1, deny, 0), HV_STATUS_SUCCESS, "VTL1 denies lower VTLs to start VPs");
            report_equal(start(i, 0, &vps[i], &boot_tables), HV_STATUS_ACCESS_DENIED, "VTL0 starts none any more");
            report_equal(up, i - 1, "and none has started");
            return;
        }
        report_equal(start(i, 0, &vps[i], &boot_tables), HV_STATUS_SUCCESS, "VTL0 starts a VP");
        for (u32 spins = 0; up < i && spins < SPINS_FOR_EVENT; spins++)
            cpu_relax();
        report_equal(up, i, "it is up");
        report_equal(start(i, 0, &vps[i], &boot_tables), HV_STATUS_INVALID_VP_STATE, "and cannot be started again");
    }
}
