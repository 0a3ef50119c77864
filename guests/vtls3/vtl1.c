/* VTL1, the secure kernel: keeps a key from VTL0 and signs with it; puts VTL2 above itself, and then makes two mistakes. */
#include "console.h"
#include "cpu.h"
#include "smp.h"
#include "vtls3.h"

#define INSTRUCTION_RET 0xc3

SECTION_PRIVATE struct vp vtl1_vps[MAX_VPS];
SECTION_PRIVATE struct page_tables vtl1_tables;
SECTION_PRIVATE u64 vtl1_key[PAGE_SIZE / sizeof(u64)] __attribute__((aligned(PAGE_SIZE)));
SECTION_PRIVATE u8 vtl1_hypercall_page[PAGE_SIZE] __attribute__((aligned(PAGE_SIZE)));
SECTION_PRIVATE static u64 closed_page;
SECTION_PRIVATE static u8 plugin[PAGE_SIZE] __attribute__((aligned(PAGE_SIZE)));

static void put_supervisor_above(void)
{
    say("enabling VTL2 above me");
    paging_build(&vtl2_tables);
    vp_init(&vtl2_vps[0], 2, 0, vps[0].apic_id);
    vtl2_vps[0].main = vtl2_main;
    hv_enable_partition_vtl(2);
    hv_enable_vp_vtl(&vtl2_vps[0], &vtl2_tables);
}

static void start(struct vp *vp)
{
    say("secure kernel: set up on this VP");
    if (!vp->index)
        put_supervisor_above();
    ask(SERVICE_START, 0);
    if (vp->index)
        return;
    /* A constant, so that runs can be compared. */
    for (u32 i = 0; i < PAGE_SIZE / sizeof(u64); i++)
        vtl1_key[i] = (i + 1) * 0x9e3779b97f4a7c15;
    enable_protection();
    hv_protect_pages(HV_INPUT_VTL(0), (u64)private_start, pages_between(private_start, private_end), HV_MAP_GPA_NONE);
    say("%lu pages are mine: VTL0 can neither read nor write them", pages_between(private_start, private_end));
    for (u32 i = 1; i < vp_count && i < MAX_VPS; i++) {
        vp_init(&vtl1_vps[i], 1, i, vps[i].apic_id);
        vtl1_vps[i].main = vtl1_main;
        hv_enable_vp_vtl(&vtl1_vps[i], &vtl1_tables);
        say("VTL1 enabled on VP%u", i);
    }
}

/* Mixes every word of the key with the number (the finaliser of SplitMix64): a demonstration, not cryptography. */
static u64 sign(u64 number)
{
    u64 tag = number;

    for (u32 i = 0; i < 16; i++) {
        tag ^= vtl1_key[i];
        tag = (tag ^ tag >> 30) * 0xbf58476d1ce4e5b9;
        tag = (tag ^ tag >> 27) * 0x94d049bb133111eb;
        tag ^= tag >> 31;
    }
    return tag;
}

static void run_plugin(void *code) { ((void (*)(void))code)(); }

static enum status serve(struct vp *vp, enum service service, u64 a, u64 *result)
{
    (void)vp;
    if (service == SERVICE_SIGN) {
        *result = ask(SERVICE_SIGN, sign(a));
    } else if (service == SERVICE_CLOSE) {
        ask(SERVICE_CLOSE, a);
        hv_protect_pages(HV_INPUT_VTL(0), a, 1, HV_MAP_GPA_READ);
        closed_page = a;
        say("VTL0 may not write to GPA 0x%lx, say I too", a);
    } else if (service == SERVICE_PATCH) {
        say("patching my own code at GPA 0x%lx", (u64)sign);
        *result = try_write((u64 *)sign, 0);
        say("the patch took #GP: my code is as it was");
    } else if (service == SERVICE_JUMP) {
        plugin[0] = INSTRUCTION_RET;
        say("running a plug-in that I have put at GPA 0x%lx", (u64)plugin);
        *result = trap(run_plugin, plugin);
        say("the plug-in took #GP: my data does not run");
    } else if (service == SERVICE_AUDIT) {
        *result = ask(SERVICE_AUDIT, 0);
    } else {
        return STATUS_UNKNOWN_SERVICE;
    }
    return STATUS_OK;
}

static bool refuse(struct vp *vp, const struct hv_memory_intercept *m)
{
    (void)vp;
    if (m->access == HV_INTERCEPT_ACCESS_WRITE && m->gpa / PAGE_SIZE == closed_page / PAGE_SIZE) {
        hv_protect_pages(HV_INPUT_VTL(0), closed_page, 1, HV_MAP_GPA_ALL);
        closed_page = 0;
        say("allowed by me: VTL0 tries again");
        return false;
    }
    say("refused: #GP for VTL0");
    return true;
}

void vtl1_main(struct vp *vp)
{
    static const struct level level = {vtl1_hypercall_page, start, serve, refuse};

    level_run(vp, &level);
}
