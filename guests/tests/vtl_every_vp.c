/* VTLs on every VP, and several that are not consecutive: a call goes to the next higher one, a return to the next lower. */
#include "vtls.h"

static u64 who(u64 a)
{
    const struct vp *vp = this_vp();

    return a + vp->vtl * 0x100 + vp->index;
}

/* The path of a call: each VTL between adds itself, from the top down. */
static u64 path(u64 below)
{
    u32 vtl = this_vp()->vtl;

    return below << 4 | vtl;
}

static u64 through_five(u64 a) { return path(in_vtl(15, path, a)); }
static u64 through_two(u64 a) { return path(in_vtl(5, through_five, a)); }

static void check(struct vp *vp)
{
    report_equal(hv_get_register(HvRegisterVsmVpStatus), 0x8025ull << 16, "VTLs 0, 2, 5 and 15 are enabled here");
    report_equal(in_vtl(2, who, 0), 0x200 + vp->index, "VTL2 answers");
    report_equal(in_vtl(5, who, 0), 0x500 + vp->index, "VTL5 answers, through VTL2");
    report_equal(in_vtl(15, who, 0), 0xf00 + vp->index, "VTL15 answers, through both");
    report_equal(in_vtl(2, through_two, 0), 0xf52, "up and down again, each return goes one VTL down");
    report_equal(hv_get_register(HvRegisterVsmVpStatus) & 0xf, 0, "back in VTL0");
}

void test(void)
{
    vtls_start(1 << 2 | 1 << 5 | 1 << 15);
    report_equal(hv_get_register(HvRegisterVsmPartitionStatus) & 0xffff, 0x8025, "the partition has four VTLs");
    on_each_vp(check);
}
