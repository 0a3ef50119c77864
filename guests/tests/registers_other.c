/* HvCallGetVpRegisters and HvCallSetVpRegisters: of lower VTLs and of other VPs, and what is refused. */
#include "vtls.h"

#define CR0_PG_PE 0x80000001

static volatile u64 mailbox;
static volatile bool spinning;

static u64 read_lower_lstar(u64 unused)
{
    (void)unused;
    return hv_get_register_of(HV_INPUT_VTL(0), HvX64RegisterLstar);
}

static u64 write_lower_lstar(u64 value)
{
    hv_set_register(HV_INPUT_VTL(0), HvX64RegisterLstar, value);
    return hv_get_register(HvX64RegisterLstar);
}

static void check(struct vp *vp)
{
    u64 value = 0;

    wrmsr(0xc0000082, 0x12340);
    report_equal(hv_get_register(HvX64RegisterLstar), 0x12340, "a VP reads its own LSTAR");
    report_equal(in_vtl(1, read_lower_lstar, 0), 0x12340, "VTL1 reads VTL0's");
    report(in_vtl(1, write_lower_lstar, 0x56780) != 0x56780, "VTL1 writes VTL0's, its own is another");
    report_equal(rdmsr(0xc0000082), 0x56780, "VTL0 finds what VTL1 has written");
    report_equal(hv_get_register(HvX64RegisterCr3), (u64)&boot_tables, "CR3 is that of the running VTL");
    report_equal(hv_get_register(HvX64RegisterCr0) & CR0_PG_PE, CR0_PG_PE, "CR0 has PG and PE");
    report_equal(hv_try_get_register(vp->index, HV_INPUT_VTL(1), HvX64RegisterLstar, &value), HV_STATUS_ACCESS_DENIED,
                 "VTL0 reads nothing of VTL1's");
    report_equal(hv_try_set_register(vp->index, HV_INPUT_VTL(1), HvX64RegisterLstar, 0), HV_STATUS_ACCESS_DENIED,
                 "and writes nothing");
    report_equal(hv_try_get_register(vp->index, HV_INPUT_VTL_CURRENT, 0x0badbad0, &value), HV_STATUS_INVALID_PARAMETER,
                 "an unknown name is INVALID_PARAMETER");
    report_equal(hv_try_set_register(vp->index, HV_INPUT_VTL_CURRENT, HvRegisterVpIndex, 0), HV_STATUS_ACCESS_DENIED,
                 "a read-only register is ACCESS_DENIED");
    report_equal(hv_try_set_register(vp->index, HV_INPUT_VTL_CURRENT, HvX64RegisterLstar, 1ull << 60),
                 HV_STATUS_INVALID_REGISTER_VALUE, "an address that is not canonical is INVALID_REGISTER_VALUE");
}

/* Counts in RBX until RSI, which is 0, becomes something else. */
static void spin(struct vp *vp)
{
    u64 rsi = 0, rbx = 0;

    (void)vp;
    spinning = true;
    asm volatile("1: inc %1; test %0, %0; jz 1b" : "+S"(rsi), "+b"(rbx));
    mailbox = rsi;
}

static void other_vp(u32 index)
{
    u64 first = 0, second = 0, rip = 0;

    spinning = false;
    start_work(index, spin);
    while (!spinning)
        cpu_relax();
    report_equal(hv_try_get_register(index, 0, HvX64RegisterRbx, &first), HV_STATUS_SUCCESS, "a register of a VP that runs");
    for (u32 i = 0; i < 10 && second <= first; i++) {
        for (u32 j = 0; j < 200; j++)
            cpu_relax();
        hv_try_get_register(index, 0, HvX64RegisterRbx, &second);
    }
    report(second > first, "it counts on between two looks");
    hv_try_get_register(index, 0, HvX64RegisterRip, &rip);
    report(rip > (u64)spin && rip < (u64)spin + 100, "its RIP is in its loop");
    report_equal(hv_try_set_register(index, 0, HvX64RegisterRsi, 0x7777), HV_STATUS_SUCCESS, "RSI of a VP that runs");
    wait_for_work(index);
    report_equal(mailbox, 0x7777, "it finds what was written, and leaves its loop");
}

void test(void)
{
    vtls_start(1 << 1);
    on_each_vp(check);
    for (u32 i = 1; i < vp_count; i++)
        other_vp(i);
}
