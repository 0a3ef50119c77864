/* HvCallSendSyntheticClusterIpi and its Ex form: who gets the interrupt, which vectors and sets are valid. */
#include "test.h"

#define VECTOR 0x81

static u16 send(u32 vector, u8 vtl, u64 mask)
{
    struct {
        u32 vector;
        u8 vtl, padding[3];
        u64 mask;
    } *input = hv_input();

    input->vector = vector;
    input->vtl = vtl;
    input->mask = mask;
    return HV_STATUS(hv_call(HvCallSendSyntheticClusterIpi));
}

static u16 send_set(u32 vector, u64 format, u64 valid_banks, u64 bank, u32 banks)
{
    struct {
        u32 vector;
        u8 vtl, padding[3];
        u64 format, valid_banks, bank;
    } *input = hv_input();

    input->vector = vector;
    input->format = format;
    input->valid_banks = valid_banks;
    input->bank = bank;
    return HV_STATUS(hv_call(HvCallSendSyntheticClusterIpiEx | HV_VARIABLE_HEADER(banks)));
}

static bool all_have(u32 count)
{
    wait_interrupts(this_vp(), VECTOR, count);
    for (u32 i = 0; i < vp_count; i++)
        for (u32 spins = 0; vps[i].interrupts[VECTOR] < count; spins++)
            if (spins > SPINS_FOR_EVENT)
                return false;
    return true;
}

void test(void)
{
    u64 all = (1ull << vp_count) - 1;

    report_equal(send(VECTOR, 0, all), HV_STATUS_SUCCESS, "to all VPs");
    report(all_have(1), "and all have it");
    report_equal(send(VECTOR, 0, 1), HV_STATUS_SUCCESS, "to VP 0 alone");
    report(wait_interrupts(vps, VECTOR, 2), "and it has it");
    report(vp_count == 1 || vps[vp_count - 1].interrupts[VECTOR] == 1, "the others have not");
    report_equal(send_set(VECTOR, 0, 1, all & ~1ull, 1), HV_STATUS_SUCCESS, "by a sparse set to all but VP 0");
    report(all_have(vp_count > 1 ? 2 : 1), "and they have it");
    report_equal(send_set(VECTOR, 1, 0, 0, 0), HV_STATUS_SUCCESS, "by the set of all VPs");
    report(all_have(3), "and all have it");

    report_equal(send(0x0f, 0, all), HV_STATUS_INVALID_PARAMETER, "vector 0x0f is INVALID_PARAMETER");
    report_equal(send(0x100, 0, all), HV_STATUS_INVALID_PARAMETER, "so is 0x100");
    report_equal(send(VECTOR, 0x20, all), HV_STATUS_INVALID_PARAMETER, "so is a reserved bit of the target VTL");
    report_equal(send(VECTOR, HV_INPUT_VTL(1), all), HV_STATUS_ACCESS_DENIED, "a higher VTL is ACCESS_DENIED");
    report_equal(send_set(VECTOR, 0, 3, all, 1), HV_STATUS_INVALID_HYPERCALL_INPUT, "fewer banks than the set names");
}
