/* HV_X64_MSR_RESET: the partition starts again as new, but for its memory, which the firmware alone writes to. */
#include "test.h"

#define MEMORY_KEPT ((volatile u64 *)0x1800000)

void test(void)
{
    /* The library has set these before; after the reset it does so again, so another register tells. */
    if (!(platform_read_scratch() & 1)) {
        platform_write_scratch(1);
        *MEMORY_KEPT = 0x1234;
        wrmsr(HV_X64_MSR_CRASH_P0, 7);
        wrmsr(HV_X64_MSR_SCONTROL, 1);
        wrmsr(HV_X64_MSR_RESET, 0);
        say("writing 0 to the reset register does nothing");
        wrmsr(HV_X64_MSR_RESET, 1);
        for (;;)
            cpu_relax();
    }
    report(true, "the guest starts again");
    report_equal(rdmsr(HV_X64_MSR_CRASH_P0), 0, "registers of the partition are as at the start");
    report_equal(rdmsr(HV_X64_MSR_SCONTROL), 0, "so are those of a VP");
    report_equal(*MEMORY_KEPT, 0x1234, "with no VTL above VTL0 memory is kept");
    report_equal(rdmsr(HV_X64_MSR_RESET), 0, "the register reads as 0");
}
