/* Parameter pages of a hypercall: alignment, page crossing, memory that is not there (TLFS, "Hypercall Inputs"). */
#include "test.h"

#define NO_MEMORY 0x9000000000
#define BEYOND (1ull << 52)

static u8 two_pages[2 * PAGE_SIZE] ALIGNED_PAGE;

static void put_input(u8 *at)
{
    *(struct hv_target *)at = (struct hv_target){HV_PARTITION_ID_SELF, HV_VP_INDEX_SELF, 0, {0}};
    *(u32 *)(at + sizeof(struct hv_target)) = HvRegisterVpIndex;
}

static u16 get(u64 input, u64 output) { return HV_STATUS(hv_hypercall(HvCallGetVpRegisters | HV_REPS(1), input, output)); }

void test(void)
{
    u64 page = (u64)two_pages, output = (u64)hv_output();

    put_input(two_pages);
    report_equal(get(page, output), HV_STATUS_SUCCESS, "aligned input and output");
    put_input(two_pages + 8);
    report_equal(get(page + 8, output), HV_STATUS_SUCCESS, "8 bytes are alignment enough");
    put_input(two_pages + 4);
    report_equal(get(page + 4, output), HV_STATUS_INVALID_ALIGNMENT, "4 bytes are not");
    put_input(two_pages + PAGE_SIZE - 24);
    report_equal(get(page + PAGE_SIZE - 24, output), HV_STATUS_SUCCESS, "input that ends with its page");
    put_input(two_pages + PAGE_SIZE - 16);
    report_equal(get(page + PAGE_SIZE - 16, output), HV_STATUS_INVALID_ALIGNMENT, "input that crosses into the next page");
    put_input(two_pages);
    report_equal(get(page, output + 4), HV_STATUS_INVALID_ALIGNMENT, "output at 4 bytes");
    report_equal(get(page, page + PAGE_SIZE - 8), HV_STATUS_INVALID_ALIGNMENT, "output that crosses");
    report_equal(get(page, page + 2 * PAGE_SIZE - 16), HV_STATUS_SUCCESS, "output that ends with its page");
    report(get(NO_MEMORY, output) != HV_STATUS_SUCCESS, "input where no memory is");
    report(get(page, NO_MEMORY) != HV_STATUS_SUCCESS, "output where no memory is");
    report_equal(get(BEYOND, output), HV_STATUS_INVALID_ALIGNMENT, "input beyond 2^52");

    /* The hypercall page can be read by its VTL, not written: output there is refused, input there is read. */
    report_equal(HV_STATUS(hv_hypercall(HvCallGetVpRegisters | HV_REPS(1), page, (u64)hypercall_page)),
                 HV_STATUS_INVALID_HYPERCALL_INPUT, "output into the hypercall page");
    report_equal(get((u64)hypercall_page, output), HV_STATUS_INVALID_PARTITION_ID, "the hypercall page's code as input");
}
