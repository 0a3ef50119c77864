/* HvCallTranslateVirtualAddress: VTL1 asks how VTL0's page tables map an address. */
#include "vtls.h"

#define WINDOW 0x20000
#define READ 1
#define WRITE 2
#define EXECUTE 4
#define RESULT_SUCCESS 0
#define RESULT_NOT_PRESENT 1
#define RESULT_PRIVILEGE 2

static u8 page[PAGE_SIZE] ALIGNED_PAGE;
static u64 flags, gpa_page;

static u64 translate(u64 gva)
{
    struct {
        u64 partition;
        u32 vp, reserved;
        u64 flags, page;
    } *input = hv_input();
    u64 *output = hv_output();

    input->partition = HV_PARTITION_ID_SELF;
    input->vp = HV_VP_INDEX_SELF;
    input->flags = flags;
    input->page = gva / PAGE_SIZE;
    u64 result = hv_call(HvCallTranslateVirtualAddress);
    gpa_page = output[1];
    return HV_STATUS(result) << 16 | (output[0] & 0xff);
}

static void check(struct vp *vp)
{
    (void)vp;
    paging_map(&boot_tables, WINDOW, (u64)page, PTE_PRESENT);
    write_cr3((u64)&boot_tables);
    flags = (u64)HV_INPUT_VTL(0) << 56 | READ;
    report_equal(in_vtl(1, translate, WINDOW + 0x123), RESULT_SUCCESS, "a page that VTL0 maps");
    report_equal(gpa_page, (u64)page / PAGE_SIZE, "is found where it is mapped");
    flags = (u64)HV_INPUT_VTL(0) << 56 | READ | WRITE;
    report_equal(in_vtl(1, translate, WINDOW), RESULT_PRIVILEGE, "to write it is a violation: it is read-only, CR0.WP is set");
    flags = (u64)HV_INPUT_VTL(0) << 56 | READ;
    report_equal(in_vtl(1, translate, 0), RESULT_NOT_PRESENT, "page 0 is not mapped");
    flags = READ;
    report_equal(in_vtl(1, translate, (u64)page), RESULT_SUCCESS, "without a VTL it is the caller's own tables");
    report_equal(gpa_page, (u64)page / PAGE_SIZE, "which map one to one");
    flags = (u64)HV_INPUT_VTL(1) << 56 | READ;
    report_equal(translate(WINDOW) >> 16, HV_STATUS_ACCESS_DENIED, "VTL0 asks nothing about VTL1");
    flags = 1 << 20;
    report_equal(translate(WINDOW) >> 16, HV_STATUS_INVALID_PARAMETER, "an unknown flag is INVALID_PARAMETER");
    paging_map(&boot_tables, WINDOW, WINDOW, PTE_PRESENT | PTE_WRITE);
    write_cr3((u64)&boot_tables);
}

void test(void)
{
    vtls_start(1 << 1);
    on_each_vp(check);
}
