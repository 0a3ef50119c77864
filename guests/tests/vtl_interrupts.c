/* Interrupts and VTLs: a higher VTL's is taken at once whatever the lower's RFLAGS.IF, a lower VTL's waits for its turn. */
#include "vtls.h"

#define VECTOR 0x91

static u16 ipi(u8 input_vtl, u64 mask)
{
    struct {
        u32 vector;
        u8 vtl, padding[3];
        u64 mask;
    } *input = hv_input();

    input->vector = VECTOR;
    input->vtl = input_vtl;
    input->mask = mask;
    return HV_STATUS(hv_call(HvCallSendSyntheticClusterIpi));
}

static u64 to_vtl0(u64 index)
{
    u16 status = ipi(HV_INPUT_VTL(0), 1ull << index);
    u32 count = vps[index].interrupts[VECTOR];

    let_interrupts_in();
    interrupts_on();
    return status << 8 | (vps[index].interrupts[VECTOR] - count);
}

static u64 to_vtl1_of(u64 index) { return ipi(HV_INPUT_VTL(1), 1ull << index); }

/* Sent from VTL1 to itself with its TPR raised: VTL0 goes on until VTL1 lowers it again. */
static u64 behind_tpr(u64 index)
{
    wrmsr(HV_X64_MSR_TPR, 0xf0);
    return ipi(HV_INPUT_VTL(1), 1ull << index);
}

static u64 lower_tpr(u64 unused)
{
    wrmsr(HV_X64_MSR_TPR, unused);
    return 0;
}

static volatile bool spinning, stop;

static void spin(struct vp *vp)
{
    (void)vp;
    interrupts_off();
    spinning = true;
    while (!stop)
        cpu_relax();
}

static void check(struct vp *vp)
{
    struct vp *above = vp_of(1, vp->index);
    u32 count = vp->interrupts[VECTOR], count1 = above->interrupts[VECTOR];

    report_equal(in_vtl(1, to_vtl0, vp->index), HV_STATUS_SUCCESS, "VTL1 sends VTL0 an IPI, which waits while VTL1 runs");
    let_interrupts_in();
    report_equal(vp->interrupts[VECTOR], count + 1, "VTL0 has it after the return");

    report_equal(in_vtl(1, behind_tpr, vp->index), HV_STATUS_SUCCESS, "VTL1 sends itself one behind its TPR");
    let_interrupts_in();
    report_equal(above->interrupts[VECTOR], count1, "it waits though VTL0 runs");
    in_vtl(1, lower_tpr, 0);
    report_equal(above->interrupts[VECTOR], count1 + 1, "and comes when the TPR is lowered");
}

void test(void)
{
    vtls_start(1 << 1);
    report_equal(ipi(HV_INPUT_VTL(1), 1), HV_STATUS_ACCESS_DENIED, "VTL0 sends VTL1 none");
    on_each_vp(check);
    for (u32 i = 1; i < vp_count; i++) {
        struct vp *above = vp_of(1, i);
        u32 count = above->interrupts[VECTOR], entries = vtl_entries[1][i][HvVtlEntryInterrupt];

        stop = spinning = false;
        start_work(i, spin);
        while (!spinning)
            cpu_relax();
        report_equal(in_vtl(1, to_vtl1_of, i), HV_STATUS_SUCCESS, "an IPI to VTL1 of a VP that spins in VTL0, interrupts off");
        for (u32 spins = 0; above->interrupts[VECTOR] == count && spins < SPINS_FOR_EVENT; spins++)
            cpu_relax();
        report_equal(above->interrupts[VECTOR], count + 1, "VTL1 has it, VTL0 still spins");
        stop = true;
        wait_for_work(i);
        report_equal(vtl_entries[1][i][HvVtlEntryInterrupt], entries + 1, "the entry reason was interrupt");

        report_equal(in_vtl(1, to_vtl1_of, i), HV_STATUS_SUCCESS, "and to one that is halted");
        for (u32 spins = 0; above->interrupts[VECTOR] == count + 1 && spins < SPINS_FOR_EVENT; spins++)
            cpu_relax();
        report_equal(above->interrupts[VECTOR], count + 2, "VTL1 has it as well");
    }
}
