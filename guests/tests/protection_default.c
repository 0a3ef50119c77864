/* The default protection mask: what lower VTLs may do from the moment that protection is on; and who is told, of three VTLs. */
#include "vtls.h"

#define FREE_MEMORY ((volatile u64 *)0x1800000)

static volatile u32 told[3];

static void skip(struct vp *vp, const struct hv_message *message)
{
    const struct hv_memory_intercept *m = (const void *)message->payload;
    u32 from = HV_EXECUTION_STATE_VTL(m->execution_state);

    told[vp->vtl]++;
    hv_set_register(HV_INPUT_VTL(from), HvX64RegisterRip, m->rip + m->instruction_length);
}

/* In one go: between the two, not even a stack could be written. */
static u64 close_all_but_image(u64 mask)
{
    protect_by_default(mask);
    /* Everything that the test itself uses lies below the free memory. */
    hv_protect_pages(HV_INPUT_VTL_CURRENT, 0, 0x1800000 / PAGE_SIZE, HV_MAP_GPA_ALL);
    return 0;
}

/* The device hole: no RAM, so no VTL's to permit; the machine answers. */
#define NO_MEMORY ((volatile u64 *)0xfd000000)

static u64 permit_one(u64 gpa)
{
    hv_protect_pages(HV_INPUT_VTL(0), gpa, 1, HV_MAP_GPA_ALL);
    return 0;
}

static u64 touch(u64 value)
{
    *FREE_MEMORY = value;
    return 0;
}

static void check(struct vp *vp)
{
    u32 before = told[1], above = told[2];

    (void)vp;
    touch(1);
    report(told[1] == before + 1 && told[2] == above, "VTL0's write is intercepted by VTL1, which is next above it");
    in_vtl(1, touch, 2);
    report(told[2] == above + 1, "VTL1's write is intercepted by VTL2");
    in_vtl(2, touch, 3);
    report(told[1] == before + 1 && told[2] == above + 1, "VTL2's write by nobody");
    *NO_MEMORY = 1;
    report(told[1] == before + 1 && told[2] == above + 1, "a write to where no memory is goes to the machine, not to a VTL");
}

void test(void)
{
    vtls_start(1 << 1 | 1 << 2);
    on_message = skip;
    *FREE_MEMORY = 7;
    in_vtl(2, close_all_but_image, HV_MAP_GPA_READ_EXECUTE);
    in_vtl(1, close_all_but_image, HV_MAP_GPA_READ_EXECUTE);
    report_equal(*FREE_MEMORY, 7, "reading is permitted by the default mask");
    on_each_vp(check);

    u32 before = told[2];
    in_vtl(1, permit_one, (u64)FREE_MEMORY);
    touch(4);
    report_equal(told[2], before + 1, "what VTL1 permits VTL0 now, VTL2 still forbids");
    in_vtl(2, permit_one, (u64)FREE_MEMORY);
    touch(5);
    report_equal(*FREE_MEMORY, 5, "once both permit it VTL0 writes");
}
