/* The TLB lock: while VTL1 holds it on a VP, a flush of VTL0's translations there does not complete. */
#include "vtls.h"

#define TLB_LOCKED 2
#define WAIT_SPINS 300

static volatile bool locked, flushing, flushed;

static u64 lock(u64 value)
{
    hv_set_register(HV_INPUT_VTL_CURRENT, HvRegisterVsmVpSecureConfigVtl0, value);
    return hv_get_register(HvRegisterVsmVpSecureConfigVtl0);
}

static void flush_all(struct vp *vp)
{
    u64 *input = hv_input();

    (void)vp;
    while (!locked)
        cpu_relax();
    input[0] = (u64)&boot_tables;
    input[1] = 1;
    flushing = true;
    u64 result = hv_call(HvCallFlushVirtualAddressSpace);
    flushed = true;
    report_equal(result, 0, "the flush succeeds in the end");
}

static void hold(void)
{
    report_equal(lock(TLB_LOCKED), TLB_LOCKED, "VTL1 locks VTL0's TLB on its VP");
    locked = true;
    if (vp_count == 1)
        return;
    while (!flushing)
        cpu_relax();
    for (u32 i = 0; i < WAIT_SPINS; i++)
        cpu_relax();
    report(!flushed, "a flush of all VPs by another VP does not complete");
}

static u64 hold_and_unlock(u64 unused)
{
    (void)unused;
    hold();
    report_equal(lock(0), 0, "VTL1 unlocks it");
    for (u32 i = 0; vp_count > 1 && i < SPINS_FOR_EVENT && !flushed; i++)
        cpu_relax();
    report(flushed || vp_count == 1, "and the flush completes");
    return 0;
}

static u64 hold_and_return(u64 unused)
{
    (void)unused;
    hold();
    return 0;
}

static u64 read_lock(u64 unused)
{
    (void)unused;
    return hv_get_register(HvRegisterVsmVpSecureConfigVtl0);
}

static void with(u64 (*holder)(u64))
{
    locked = flushing = flushed = false;
    if (vp_count > 1)
        start_work(1, flush_all);
    in_vtl(1, holder, 0);
    if (vp_count > 1)
        wait_for_work(1);
}

void test(void)
{
    vtls_start(1 << 1);
    with(hold_and_unlock);
    with(hold_and_return);
    report_equal(in_vtl(1, read_lock, 0), 0, "VTL1's return has released the lock");
}
