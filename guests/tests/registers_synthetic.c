/* HvCallGetVpRegisters and HvCallSetVpRegisters by name: each register that is an MSR or a control register is that one. */
#include "vtls.h"

#define CR4_OSFXSR 0x200

struct pair {
    u32 name, msr;
    u64 value;
};

#define HvX64RegisterCr4 0x00040003
#define HvX64RegisterDr7 0x00050005
#define HvRegisterGuestOsId 0x00090002
#define HvRegisterTimeRefCount 0x00090004
#define HvRegisterVpAssistPage 0x00090013
#define PAT 6
#define PAIRS 7

/* KernelGsBase, SysenterEip, Star, Lstar, Cstar, Sfmask, Pat. */
static const struct pair pairs[PAIRS] = {
    {0x00080002, 0xc0000102, 0x123000}, {0x00080006, 0x176, 0x456000},      {0x00080008, 0xc0000081, 0x23001000000000},
    {0x00080009, 0xc0000082, 0x789000}, {0x0008000a, 0xc0000083, 0xabc000}, {0x0008000b, 0xc0000084, 0x47700},
    {0x00080004, 0x277, 0x0007040600070406},
};

/* What VTL1 writes: another value, but for the PAT, which has not many. */
static u64 other(u64 i) { return pairs[i].value ^ (i == PAT ? 0 : 0x1000); }

static u64 read_lower(u64 name) { return hv_get_register_of(HV_INPUT_VTL(0), (u32)name); }

static u64 write_lower(u64 i)
{
    return hv_try_set_register(HV_VP_INDEX_SELF, HV_INPUT_VTL(0), pairs[i].name, other(i));
}

static u64 write_cr4(u64 value) { return hv_try_set_register(HV_VP_INDEX_SELF, HV_INPUT_VTL(0), HvX64RegisterCr4, value); }

static void check(struct vp *vp)
{
    u64 cr4, cr4_after, dr7;

    (void)vp;
    for (u32 i = 0; i < PAIRS; i++) {
        const struct pair *p = &pairs[i];
        wrmsr(p->msr, p->value);
        report(hv_get_register(p->name) == p->value, "register 0x%x is MSR 0x%x", p->name, p->msr);
        report(in_vtl(1, read_lower, p->name) == p->value, "VTL1 reads VTL0's");
        report(in_vtl(1, write_lower, i) == HV_STATUS_SUCCESS && rdmsr(p->msr) == other(i), "and writes it");
    }
    asm volatile("mov %%cr4, %0" : "=r"(cr4));
    report_equal(in_vtl(1, read_lower, HvX64RegisterCr4), cr4, "CR4");
    report_equal(in_vtl(1, write_cr4, cr4 | CR4_OSFXSR), HV_STATUS_SUCCESS, "VTL1 sets CR4.OSFXSR for VTL0");
    asm volatile("mov %%cr4, %0" : "=r"(cr4_after));
    report_equal(cr4_after, cr4 | CR4_OSFXSR, "VTL0 has it");
    report(in_vtl(1, write_cr4, 1ull << 40) != HV_STATUS_SUCCESS, "a CR4 that cannot be is refused");
    asm volatile("mov %%dr7, %0" : "=r"(dr7));
    report_equal(in_vtl(1, read_lower, HvX64RegisterDr7), dr7, "DR7");
    report_equal(hv_get_register(HvRegisterGuestOsId), rdmsr(HV_X64_MSR_GUEST_OS_ID), "the guest OS identity");
    report_equal(hv_get_register(HvRegisterVpAssistPage), rdmsr(HV_X64_MSR_VP_ASSIST_PAGE), "the VP assist page's register");
    u64 time = rdmsr(HV_X64_MSR_TIME_REF_COUNT), by_name = hv_get_register(HvRegisterTimeRefCount);
    report(time <= by_name && by_name <= rdmsr(HV_X64_MSR_TIME_REF_COUNT), "reference time");
}

void test(void)
{
    vtls_start(1 << 1);
    on_each_vp(check);
}
