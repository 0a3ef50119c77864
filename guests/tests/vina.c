/* VINA: while VTL1 runs, an interrupt for VTL0 makes VTL1's vector pending, once until VTL1 has cleared Asserted. */
#include "vtls.h"

#define VECTOR 0xa1
#define VINA_VECTOR 0xb1
#define ENABLED (1 << 8)
#define AUTO_RESET (1 << 9)
#define ASSERTED 1

static u16 ipi_to_vtl0(u32 index)
{
    struct {
        u32 vector;
        u8 vtl, padding[3];
        u64 mask;
    } *input = hv_input();

    input->vector = VECTOR;
    input->vtl = HV_INPUT_VTL(0);
    input->mask = 1ull << index;
    return HV_STATUS(hv_call(HvCallSendSyntheticClusterIpi));
}

static bool comes(struct vp *vp, u32 count)
{
    for (u32 i = 0; i < SPINS_FOR_NOTHING && vp->interrupts[VINA_VECTOR] < count; i++)
        cpu_relax();
    return vp->interrupts[VINA_VECTOR] == count;
}

static u64 in_vtl1(u64 unused)
{
    struct vp *vp = this_vp();
    volatile struct hv_vp_assist_page *assist = hv_assist_page(vp);

    (void)unused;
    hv_set_register(HV_INPUT_VTL_CURRENT, HvRegisterVsmVina, VINA_VECTOR | ENABLED);
    report_equal(hv_get_register(HvRegisterVsmVina), VINA_VECTOR | ENABLED, "the register reads back");
    report_equal(vp->interrupts[VINA_VECTOR], 0, "nothing notifies while nothing comes");
    ipi_to_vtl0(vp->index);
    report(comes(vp, 1), "an interrupt for VTL0 notifies VTL1");
    report(assist->vina_status & ASSERTED, "Asserted is set, and stays so after EOI");
    ipi_to_vtl0(vp->index);
    report(!comes(vp, 2), "while it is set nothing notifies");
    return 0;
}

static u64 again(u64 unused)
{
    struct vp *vp = this_vp();
    volatile struct hv_vp_assist_page *assist = hv_assist_page(vp);

    (void)unused;
    assist->vina_status = 0;
    ipi_to_vtl0(vp->index);
    report(comes(vp, 2), "cleared, the next interrupt notifies again");
    assist->vina_status = 0;
    hv_set_register(HV_INPUT_VTL_CURRENT, HvRegisterVsmVina, 0);
    ipi_to_vtl0(vp->index);
    report(!comes(vp, 3), "switched off it does not");
    return 0;
}

static void check(struct vp *vp)
{
    interrupts_on();
    in_vtl(1, in_vtl1, 0);
    for (u32 i = 0; i < 100; i++)
        cpu_relax();
    interrupts_off();
    report(vp->interrupts[VECTOR] > 0, "VTL0 has its interrupt after the return");
    interrupts_on();
    in_vtl(1, again, 0);
    interrupts_off();
    u64 value;
    report(hv_try_get_register(vp->index, HV_INPUT_VTL_CURRENT, HvRegisterVsmVina, &value) != HV_STATUS_SUCCESS,
           "VTL0 has no VINA");
}

void test(void)
{
    vtls_start(1 << 1);
    on_each_vp(check);
}
