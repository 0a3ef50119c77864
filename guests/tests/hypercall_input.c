/* The hypercall input value: what is malformed has its status, and what is unknown another (TLFS, "Hypercall Inputs"). */
#include "test.h"

static u16 status_of(u64 control)
{
    hv_input();
    return HV_STATUS(hv_call(control));
}

static u64 valid_get(void)
{
    struct {
        struct hv_target target;
        u32 name;
    } *input = hv_input();

    input->target = (struct hv_target){HV_PARTITION_ID_SELF, HV_VP_INDEX_SELF, 0, {0}};
    input->name = HvRegisterVpIndex;
    return HvCallGetVpRegisters;
}

static void check(struct vp *vp)
{
    u64 result = hv_call(valid_get() | HV_REPS(1));
    u64 *output = hv_output();

    report_equal(result, HV_REPS(1), "a call that is in order: SUCCESS, one element done");
    report_equal(output[0], vp->index, "and its output is this VP's");

    for (u32 bit = 27; bit < 31; bit++)
        report_equal(HV_STATUS(hv_call((valid_get() | HV_REPS(1)) | 1ull << bit)), HV_STATUS_INVALID_HYPERCALL_INPUT,
                     "a reserved bit of 30:27 is INVALID_HYPERCALL_INPUT");
    report_equal(HV_STATUS(hv_call((valid_get() | HV_REPS(1)) | 1ull << 31)), HV_STATUS_INVALID_HYPERCALL_INPUT,
                 "so is the nested bit where nothing is nested");
    report_equal(HV_STATUS(hv_call((valid_get() | HV_REPS(1)) | 1ull << 44)), HV_STATUS_INVALID_HYPERCALL_INPUT,
                 "so is bit 44");
    report_equal(HV_STATUS(hv_call((valid_get() | HV_REPS(1)) | 1ull << 63)), HV_STATUS_INVALID_HYPERCALL_INPUT,
                 "so is bit 63");

    report_equal(status_of(0), HV_STATUS_INVALID_HYPERCALL_CODE, "call code 0 is INVALID_HYPERCALL_CODE");
    report_equal(status_of(0x7fff), HV_STATUS_INVALID_HYPERCALL_CODE, "so is an unknown one");
    report_equal(status_of(0x7fff | 1ull << 31), HV_STATUS_INVALID_HYPERCALL_INPUT, "reserved bits come before the code");

    report_equal(HV_STATUS(hv_call(valid_get())), HV_STATUS_INVALID_HYPERCALL_INPUT, "a rep call without a count");
    report_equal(HV_STATUS(hv_call(valid_get() | HV_REPS(1) | HV_REP_START(1))), HV_STATUS_INVALID_HYPERCALL_INPUT,
                 "a rep call that starts at its end");
    report_equal(status_of(HvCallNotifyLongSpinWait | HV_REPS(1)), HV_STATUS_INVALID_HYPERCALL_INPUT,
                 "a simple call with a rep count");
    report_equal(status_of(HvCallNotifyLongSpinWait | HV_REP_START(1)), HV_STATUS_INVALID_HYPERCALL_INPUT,
                 "a simple call with a rep start");
    report_equal(status_of(HvCallNotifyLongSpinWait | HV_VARIABLE_HEADER(1)), HV_STATUS_INVALID_HYPERCALL_INPUT,
                 "a variable header where there is none");
    report_equal(status_of(HvCallNotifyLongSpinWait), HV_STATUS_SUCCESS, "a simple call in order");
}

void test(void) { on_each_vp(check); }
