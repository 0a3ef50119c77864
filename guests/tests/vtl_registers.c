/* Which registers each VTL has for itself, and which are one for all VTLs of a VP (TLFS, "VP State Isolation"). */
#include "vtls.h"

#define MSR_LSTAR 0xc0000082
#define MSR_STAR 0xc0000081
#define MSR_KERNEL_GS 0xc0000102
#define MSR_FS_BASE 0xc0000100
#define MSR_SYSENTER_EIP 0x176

static const u32 private_msrs[] = {MSR_LSTAR,       MSR_STAR,        MSR_KERNEL_GS, MSR_FS_BASE, MSR_SYSENTER_EIP,
                                   HV_X64_MSR_SIEFP, HV_X64_MSR_TPR};

static u64 value_of(u32 i, u64 vtl) { return i == 6 ? 0x10 * (vtl + 1) : 0x10000 * (vtl + 1) + 0x1000 * i; }

static u64 write_private(u64 vtl)
{
    for (u32 i = 0; i < sizeof private_msrs / sizeof *private_msrs; i++)
        wrmsr(private_msrs[i], value_of(i, vtl));
    return 0;
}

static u64 read_private(u64 vtl)
{
    u64 wrong = 0;

    for (u32 i = 0; i < sizeof private_msrs / sizeof *private_msrs; i++)
        if (rdmsr(private_msrs[i]) != value_of(i, vtl))
            wrong |= 1ull << i;
    wrmsr(HV_X64_MSR_TPR, 0);
    return wrong;
}

static u64 debug_register(u64 value)
{
    u64 old;
    asm volatile("mov %%dr0, %0; mov %1, %%dr0" : "=&r"(old) : "r"(value));
    return old;
}

static u64 debug_control(u64 value)
{
    u64 old;
    asm volatile("mov %%dr7, %0; mov %1, %%dr7" : "=&r"(old) : "r"(value));
    return old;
}

static u64 cr2(u64 value)
{
    u64 old;
    asm volatile("mov %%cr2, %0; mov %1, %%cr2" : "=&r"(old) : "r"(value));
    return old;
}

static u64 cr3(u64 unused)
{
    u64 value;
    (void)unused;
    asm volatile("mov %%cr3, %0" : "=r"(value));
    return value;
}

static u64 read_msr(u64 index) { return rdmsr((u32)index); }

static void check(struct vp *vp)
{
    write_private(0);
    in_vtl(1, write_private, 1);
    in_vtl(2, write_private, 2);
    report_equal(read_private(0), 0, "VTL0 reads what it wrote: LSTAR, STAR, KernelGSBase, FS base, SYSENTER_EIP, SIEFP, TPR");
    report_equal(in_vtl(1, read_private, 1), 0, "VTL1 reads what it wrote");
    report_equal(in_vtl(2, read_private, 2), 0, "VTL2 reads what it wrote");

    cr2(0x1234567);
    report_equal(in_vtl(1, cr2, 0x7654321), 0x1234567, "CR2 is shared: VTL1 reads VTL0's");
    report_equal(cr2(0), 0x7654321, "and VTL0 what VTL1 wrote");
    debug_register(0xabc000);
    report_equal(in_vtl(1, debug_register, 0xdef000), 0xabc000, "DR0 is shared: VTL1 reads VTL0's");
    report_equal(debug_register(0), 0xdef000, "and VTL0 what VTL1 wrote");
    debug_control(0x400);
    in_vtl(1, debug_control, 0x700);
    report_equal(debug_control(0x400) & 0x300, 0, "DR7 is private");
    in_vtl(1, debug_control, 0x400);
    report(cr3(0) == (u64)&boot_tables && in_vtl(1, cr3, 0) != cr3(0), "CR3 is private");
    report_equal(in_vtl(1, read_msr, HV_X64_MSR_VP_INDEX), vp->index, "the VP index is shared");
    report(in_vtl(1, read_msr, HV_X64_MSR_HYPERCALL) != rdmsr(HV_X64_MSR_HYPERCALL), "the hypercall page is private");
    report(in_vtl(1, read_msr, HV_X64_MSR_SCONTROL) == 1 && rdmsr(HV_X64_MSR_SCONTROL) == 0, "the SynIC is private");
    report(in_vtl(1, read_msr, HV_X64_MSR_VP_ASSIST_PAGE) && !rdmsr(HV_X64_MSR_VP_ASSIST_PAGE), "so is the VP assist page");
    u64 time = rdmsr(HV_X64_MSR_TIME_REF_COUNT), above = in_vtl(1, read_msr, HV_X64_MSR_TIME_REF_COUNT);
    report(time <= above && above <= rdmsr(HV_X64_MSR_TIME_REF_COUNT), "reference time is shared");
}

void test(void)
{
    vtls_start(1 << 1 | 1 << 2);
    on_each_vp(check);
}
