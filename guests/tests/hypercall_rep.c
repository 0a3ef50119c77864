/* Rep calls: the start index, how many elements were done, and that a failing element ends the list. */
#include "test.h"

struct get {
    struct hv_target target;
    u32 names[8];
};

static struct get *prepare(void)
{
    struct get *input = hv_input();
    u64 *output = hv_output();

    fill(output, 0xee, 8 * 16);
    input->target = (struct hv_target){HV_PARTITION_ID_SELF, HV_VP_INDEX_SELF, 0, {0}};
    for (u32 i = 0; i < 8; i++)
        input->names[i] = HvRegisterVpIndex;
    return input;
}

static void check(struct vp *vp)
{
    u64 *output = hv_output(), untouched = 0xeeeeeeeeeeeeeeee;

    prepare();
    report_equal(hv_call(HvCallGetVpRegisters | HV_REPS(8)), HV_REPS(8), "eight elements: eight done");
    report(output[0] == vp->index && output[14] == vp->index, "the first and the last output are there");

    prepare();
    report_equal(hv_call(HvCallGetVpRegisters | HV_REPS(8) | HV_REP_START(5)), HV_REPS(8),
                 "started at the sixth: the count is of the whole list");
    report(output[8] == untouched && output[10] == vp->index, "only the output from there on is written");

    prepare()->names[3] = 0x0badbad0;
    u64 result = hv_call(HvCallGetVpRegisters | HV_REPS(8));
    report(HV_STATUS(result) != HV_STATUS_SUCCESS, "an unknown register fails");
    report_equal(HV_REPS_DONE(result), 3, "those before it are done");
    report(output[4] == vp->index && output[6] == untouched, "and their output is written, that of the others is not");
}

/* As many pages in one call as a page of input holds; the hypervisor may interrupt it and go on, which is not to be seen. */
static void long_list(void)
{
    struct {
        u64 address_space, flags, mask, list[250];
    } *input = hv_input();

    input->flags = 1;
    for (u32 i = 0; i < 250; i++)
        input->list[i] = 0x20000;
    report_equal(hv_call(HvCallFlushVirtualAddressList | HV_REPS(250)), HV_REPS(250), "a list of 250 is done as a whole");
}

void test(void)
{
    on_each_vp(check);
    long_list();
}
