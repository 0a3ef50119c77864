/* HV_X64_MSR_NPIEP_CONFIG: SGDT, SIDT, SLDT and STR at CPL 3 are #GP where it says so. */
#include "test.h"

static u8 stored[16];

static void sgdt(void *unused) { asm volatile("sgdt %0" : "=m"(stored) : "r"(unused)); }
static void sidt(void *unused) { asm volatile("sidt %0" : "=m"(stored) : "r"(unused)); }
static void sldt(void *unused) { asm volatile("sldt %0" : "=m"(stored) : "r"(unused)); }
static void str(void *unused) { asm volatile("str %0" : "=m"(stored) : "r"(unused)); }

static void check(struct vp *vp)
{
    static void (*const instructions[])(void *) = {sgdt, sidt, sldt, str};
    static const char *const names[] = {"SGDT", "SIDT", "SLDT", "STR"};

    (void)vp;
    write_cr3((u64)&boot_tables);
    for (u32 i = 0; i < 4; i++)
        report_equal(trap_user(instructions[i], NULL), NO_EXCEPTION, names[i]);
    for (u32 i = 0; i < 4; i++) {
        wrmsr(HV_X64_MSR_NPIEP_CONFIG, 1u << i);
        report_equal(rdmsr(HV_X64_MSR_NPIEP_CONFIG), 1u << i, "the register reads back");
        for (u32 j = 0; j < 4; j++)
            report_equal(trap_user(instructions[j], NULL), i == j ? VECTOR_GENERAL_PROTECTION : NO_EXCEPTION, names[j]);
        report_equal(trap(instructions[i], NULL), NO_EXCEPTION, "at CPL 0 it works");
    }
    wrmsr(HV_X64_MSR_NPIEP_CONFIG, 0);
    report_equal(trap_user(sgdt, NULL), NO_EXCEPTION, "switched off, it works at CPL 3 again");
}

void test(void)
{
    paging_permit_user(&boot_tables);
    on_each_vp(check);
}
