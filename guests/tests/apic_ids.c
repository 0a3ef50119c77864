/* HvCallGetVpIndexFromApicId: one by one and as a list. */
#include "test.h"

void test(void)
{
    u32 apic_ids[MAX_VPS], count = processors(apic_ids);
    struct {
        u64 partition;
        u8 vtl, reserved[7];
        u32 apic_ids[MAX_VPS];
    } *input;
    u32 *output = hv_output();

    for (u32 i = 0; i < count; i++) {
        input = hv_input();
        input->partition = HV_PARTITION_ID_SELF;
        input->apic_ids[0] = apic_ids[i];
        report_equal(hv_call(HvCallGetVpIndexFromApicId | HV_REPS(1)), HV_REPS(1), "an APIC ID");
        report_equal(output[0], i, "has its VP index");
    }
    input = hv_input();
    input->partition = HV_PARTITION_ID_SELF;
    for (u32 i = 0; i < count; i++)
        input->apic_ids[i] = apic_ids[count - 1 - i];
    report_equal(hv_call(HvCallGetVpIndexFromApicId | HV_REPS(count)), HV_REPS(count), "all of them, backwards");
    report(output[0] == count - 1 && output[count - 1] == 0, "in that order");
    input->apic_ids[0] = 0x55;
    report(HV_STATUS(hv_call(HvCallGetVpIndexFromApicId | HV_REPS(1))) != HV_STATUS_SUCCESS, "an APIC ID that nobody has");
}
