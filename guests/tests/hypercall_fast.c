/* Fast hypercalls: parameters in RDX and R8, in XMM0 to XMM5 from there on, output in what input leaves free. */
#include "test.h"

#define CR4_OSFXSR 0x200
#define HV_EDX_FAST_OUTPUT (1u << 15)
#define FLUSH_ALL_PROCESSORS 1

static u8 xmm[6][16] __attribute__((aligned(16)));

static u64 fast(u64 control, u64 rdx, u64 *r8_in_out)
{
    u64 result;
    register u64 r8 asm("r8") = *r8_in_out;

    asm volatile("movups (%5), %%xmm0; movups 16(%5), %%xmm1; movups 32(%5), %%xmm2\n"
                 "movups 48(%5), %%xmm3; movups 64(%5), %%xmm4; movups 80(%5), %%xmm5\n"
                 "call *%4\n"
                 "movups %%xmm0, (%5); movups %%xmm1, 16(%5); movups %%xmm2, 32(%5)\n"
                 "movups %%xmm3, 48(%5); movups %%xmm4, 64(%5); movups %%xmm5, 80(%5)\n"
                 : "=a"(result), "+c"(control), "+d"(rdx), "+r"(r8)
                 : "m"(this_vp()->hypercall), "b"(xmm)
                 : "r9", "r10", "r11", "memory", "cc");
    *r8_in_out = r8;
    return result;
}

static void check(struct vp *vp)
{
    struct hv_target target = {HV_PARTITION_ID_SELF, HV_VP_INDEX_SELF, 0, {0}};
    u64 r8 = 0, *words = (u64 *)xmm;

    asm volatile("mov %%cr4, %%rax; or %0, %%rax; mov %%rax, %%cr4" : : "i"(CR4_OSFXSR) : "rax");

    report_equal(fast(HvCallNotifyLongSpinWait | HV_FAST, 0, &r8), 0, "a call of 8 bytes in RDX");
    /* Vector 0x41 to the VP itself. */
    r8 = 1ull << vp->index;
    report_equal(fast(HvCallSendSyntheticClusterIpi | HV_FAST, 0x41, &r8), 0, "a call of 16 bytes in RDX and R8");
    report(wait_interrupts(vp, 0x41, 1), "has its effect");
    r8 = 1ull << vp->index;
    report_equal(HV_STATUS(fast(HvCallSendSyntheticClusterIpi | HV_FAST, 0x0f, &r8)), HV_STATUS_INVALID_PARAMETER,
                 "a wrong parameter in RDX has its status");

    r8 = FLUSH_ALL_PROCESSORS;
    fill(xmm, 0, sizeof xmm);
    report_equal(fast(HvCallFlushVirtualAddressSpace | HV_FAST, 0, &r8), 0, "24 bytes: RDX, R8 and XMM0");
    words[0] = 0x20000;
    report_equal(fast(HvCallFlushVirtualAddressList | HV_FAST | HV_REPS(11), 0, &r8), HV_REPS(11),
                 "24 bytes and 11 elements of 8 fill all 112");
    report_equal(HV_STATUS(fast(HvCallFlushVirtualAddressList | HV_FAST | HV_REPS(12), 0, &r8)),
                 HV_STATUS_INVALID_HYPERCALL_INPUT, "one more is INVALID_HYPERCALL_INPUT");

    /* Input is 16 + 4 bytes: RDX, R8 and the first of XMM0. Output begins with the next register pair, XMM1. */
    fill(xmm, 0xee, sizeof xmm);
    *(u32 *)xmm = HvRegisterVpIndex;
    r8 = ((u64 *)&target)[1];
    report_equal(fast(HvCallGetVpRegisters | HV_FAST | HV_REPS(1), target.partition, &r8), HV_REPS(1),
                 "a call with output in registers");
    report(words[2] == vp->index && words[3] == 0, "the output is in XMM1");
    report(words[4] == 0xeeeeeeeeeeeeeeee && *(u32 *)xmm == HvRegisterVpIndex, "the registers around it stay");
}

void test(void)
{
    struct cpuid_result features = cpuid(HV_CPUID_FEATURES);

    report(features.edx & HV_EDX_XMM_INPUT && features.edx & HV_EDX_FAST_OUTPUT, "CPUID offers XMM input and output");
    on_each_vp(check);
}
