/* Who may make hypercalls: CPL 0 only, whatever the call (TLFS, "Legal Hypercall Environments"). */
#include "vtls.h"

static void ordinary(void *unused)
{
    (void)unused;
    asm volatile("call *%0" : : "r"(hypercall_page), "c"(HvCallNotifyLongSpinWait), "d"(0ull) : "rax", "r8", "r9", "r10", "r11");
}

static void of_vtls(void *sequence)
{
    asm volatile("call *%0" : : "r"(sequence), "c"(0ull) : "rax", "r8", "r9", "r10", "r11", "memory");
}


static void harmless(void *unused) { (void)unused; }

static void check(struct vp *vp)
{
    u32 calls = vtl_entries[1][vp->index][HvVtlEntryVtlCall];

    write_cr3((u64)&boot_tables);
    report_equal(trap_user(harmless, NULL), NO_EXCEPTION, "CPL 3 can run");
    report_equal(trap(ordinary, NULL), NO_EXCEPTION, "CPL 0 makes a hypercall");
    report_equal(trap_user(ordinary, NULL), VECTOR_UNDEFINED, "CPL 3 does not: #UD");
    report(vp->trapped.rip >= (u64)hypercall_page && vp->trapped.rip < (u64)hypercall_page + PAGE_SIZE,
           "at the instruction of the hypercall page");
    report_equal(trap_user(of_vtls, (void *)vp->vtl_call), VECTOR_UNDEFINED, "a VTL call from CPL 3 is #UD");
    report_equal(trap_user(of_vtls, (void *)vp->vtl_return), VECTOR_UNDEFINED, "a VTL return from CPL 3 is #UD");
    report_equal(vtl_entries[1][vp->index][HvVtlEntryVtlCall], calls, "and VTL1 has seen nothing of it");
}

void test(void)
{
    vtls_start(1 << 1);
    for (u32 i = 1; i < vp_count; i++)
        vps[i].vtl_return = vps->vtl_return;
    paging_permit_user(&boot_tables);
    on_each_vp(check);
}
