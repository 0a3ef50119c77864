/* HvRegisterPendingEvent0: a higher VTL injects exceptions where it refuses an access. */
#include "vtls.h"

static u8 page[PAGE_SIZE] ALIGNED_PAGE;
static u64 to_inject;

static void inject(struct vp *vp, const struct hv_message *message)
{
    struct {
        struct hv_target target;
        u32 name, reserved[3];
        u64 value[2];
    } *input = hv_input();

    (void)vp;
    (void)message;
    input->target = (struct hv_target){HV_PARTITION_ID_SELF, HV_VP_INDEX_SELF, HV_INPUT_VTL(0), {0}};
    input->name = HvRegisterPendingEvent0;
    input->value[0] = to_inject;
    input->value[1] = 0x123456;
    u64 result = hv_call(HvCallSetVpRegisters | HV_REPS(1));
    if (HV_STATUS(result))
        fail("PendingEvent0: status 0x%x", HV_STATUS(result));
}

static u64 close_page(u64 unused)
{
    (void)unused;
    hv_protect_pages(HV_INPUT_VTL(0), (u64)page, 1, HV_MAP_GPA_READ);
    return 0;
}

static void write_page(void *unused)
{
    (void)unused;
    *(volatile u8 *)page = 1;
}

static void check(struct vp *vp)
{
    to_inject = HV_PENDING_EXCEPTION(VECTOR_GENERAL_PROTECTION, 0x18);
    report_equal(trap(write_page, NULL), VECTOR_GENERAL_PROTECTION, "#GP for the write");
    report_equal(vp->trapped.error_code, 0x18, "with the error code that VTL1 chose");
    to_inject = HV_PENDING_EXCEPTION(VECTOR_PAGE_FAULT, 2);
    report_equal(trap(write_page, NULL), VECTOR_PAGE_FAULT, "#PF for the write");
    report_equal(vp->trapped.cr2, 0x123456, "with the address that VTL1 chose in CR2");
    /* No error code is delivered with #UD. */
    to_inject = (u64)VECTOR_UNDEFINED << 16 | 1;
    report_equal(trap(write_page, NULL), VECTOR_UNDEFINED, "#UD for the write");
    report_equal(page[0], 0, "the page has not been written");
}

void test(void)
{
    vtls_start(1 << 1);
    on_message = inject;
    in_vtl(1, protect_by_default, HV_MAP_GPA_ALL);
    in_vtl(1, close_page, 0);
    on_each_vp(check);
}
