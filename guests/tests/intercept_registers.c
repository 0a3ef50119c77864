/* Intercepts of control registers and descriptor tables by HvX64RegisterCrInterceptControl and its masks. */
#include "vtls.h"

#define CR4_WRITE 2
#define IDTR_WRITE (1 << 16)
#define CR4_OSFXSR 0x200
#define CR4_PGE 0x80

static volatile u32 told;
static struct hv_register_intercept seen;

static void skip(struct vp *vp, const struct hv_message *message)
{
    (void)vp;
    if (message->type != HvMessageTypeRegisterIntercept)
        fail("message of type 0x%x", message->type);
    seen = *(const struct hv_register_intercept *)message->payload;
    told++;
    skip_lower(message);
}

static u64 control(u64 bits)
{
    hv_set_register(HV_INPUT_VTL_CURRENT, HvX64RegisterCrInterceptCr4Mask, CR4_PGE);
    return hv_try_set_register(HV_VP_INDEX_SELF, HV_INPUT_VTL_CURRENT, HvX64RegisterCrInterceptControl, bits);
}

static u64 read_cr4(void)
{
    u64 value;
    asm volatile("mov %%cr4, %0" : "=r"(value));
    return value;
}

static void write_cr4(u64 value) { asm volatile("mov %0, %%cr4" : : "r"(value) : "memory"); }

static void check(struct vp *vp)
{
    u32 before = told;
    u64 cr4 = read_cr4() & ~(u64)(CR4_PGE | CR4_OSFXSR);
    struct __attribute__((packed)) {
        u16 limit;
        u64 base;
    } idtr;

    write_cr4(cr4);
    report_equal(in_vtl(1, control, CR4_WRITE | IDTR_WRITE), HV_STATUS_SUCCESS, "VTL1 wants to know of CR4.PGE and of LIDT");
    write_cr4(cr4 | CR4_PGE);
    report(told == before + 1 && seen.access == HV_INTERCEPT_ACCESS_WRITE, "a write that changes the masked bit is told");
    report_equal(seen.value[0], cr4 | CR4_PGE, "with the value");
    report_equal(seen.vp_index, vp->index, "and VP");
    report_equal(read_cr4(), cr4, "skipped, it has had no effect");
    write_cr4(cr4 | CR4_OSFXSR);
    report(told == before + 1 && read_cr4() == (cr4 | CR4_OSFXSR), "a write that changes another bit happens");
    asm volatile("sidt %0" : "=m"(idtr));
    asm volatile("lidt %0" : : "m"(idtr));
    report(told == before + 2 && seen.is_memory_operand & 1, "LIDT is told");
    report_equal(in_vtl(1, control, 0), HV_STATUS_SUCCESS, "VTL1 does no more");
    write_cr4(cr4 | CR4_PGE);
    report(told == before + 2 && read_cr4() == (cr4 | CR4_PGE), "and nothing is told");
    write_cr4(cr4);
}

void test(void)
{
    vtls_start(1 << 1);
    on_message = skip;
    on_each_vp(check);
}
