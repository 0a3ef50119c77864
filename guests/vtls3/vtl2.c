/*
 * VTL2, the supervisor: keeps VTL1 from writing to its code and from running its data, and logs who tries. Its own pages are
 * nobody's. What VTL0 does to VTL1's pages is VTL1's business: VTL2 hears of it only where VTL1 permits it and VTL2 does not.
 */
#include "console.h"
#include "cpu.h"
#include "smp.h"
#include "vtls3.h"

SECTION_SUPERVISOR struct vp vtl2_vps[MAX_VPS];
SECTION_SUPERVISOR struct page_tables vtl2_tables;
SECTION_SUPERVISOR u64 vtl2_log[PAGE_SIZE / sizeof(u64)] __attribute__((aligned(PAGE_SIZE)));
SECTION_SUPERVISOR static u8 hypercall_page[PAGE_SIZE] __attribute__((aligned(PAGE_SIZE)));
SECTION_SUPERVISOR static u64 closed_page, attested, seal;

static void protect_partition(void)
{
    u64 mine = pages_between(supervisor_start, supervisor_end), data = pages_between(private_start, private_end);
    u64 code = pages_between(code_start, code_end);

    enable_protection();
    hv_protect_pages(HV_INPUT_VTL_CURRENT, (u64)supervisor_start, mine, HV_MAP_GPA_NONE);
    hv_protect_pages(HV_INPUT_VTL_CURRENT, (u64)code_start, code, HV_MAP_GPA_READ_EXECUTE);
    hv_protect_pages(HV_INPUT_VTL(1), (u64)private_start, data, HV_MAP_GPA_READ_WRITE);
    /* The one among them that VTL1 runs, and cannot write to anyway. */
    hv_protect_pages(HV_INPUT_VTL(1), (u64)vtl1_hypercall_page, 1, HV_MAP_GPA_READ_EXECUTE);
    say("%lu pages are mine; %lu pages of code are for all below to run, not to write; "
        "%lu pages are for VTL1 to write, not to run",
        mine, code, data - 1);
}

static void start(struct vp *vp)
{
    say("supervisor: set up on this VP");
    if (vp->index)
        return;
    /* A constant, so that runs can be compared. */
    seal = 0xd6e8feb86659fd93;
    protect_partition();
    for (u32 i = 1; i < vp_count && i < MAX_VPS; i++) {
        vp_init(&vtl2_vps[i], 2, i, vps[i].apic_id);
        vtl2_vps[i].main = vtl2_main;
        hv_enable_vp_vtl(&vtl2_vps[i], &vtl2_tables);
        say("VTL2 enabled on VP%u", i);
    }
}

static enum status serve(struct vp *vp, enum service service, u64 a, u64 *result)
{
    (void)vp;
    if (service == SERVICE_START) {
        return STATUS_OK;
    } else if (service == SERVICE_SIGN) {
        attested++;
        *result = a ^ seal;
    } else if (service == SERVICE_CLOSE) {
        hv_protect_pages(HV_INPUT_VTL(0), a, 1, HV_MAP_GPA_READ);
        closed_page = a;
        say("VTL0 may not write to GPA 0x%lx, say I", a);
    } else if (service == SERVICE_AUDIT) {
        *result = vtl2_log[1] << 8 | vtl2_log[0];
        say("audit: %lu tags attested; attempts of VTL1: %lu, of VTL0: %lu", attested, vtl2_log[1], vtl2_log[0]);
    } else {
        return STATUS_UNKNOWN_SERVICE;
    }
    return STATUS_OK;
}

static bool refuse(struct vp *vp, const struct hv_memory_intercept *m)
{
    u32 from = HV_EXECUTION_STATE_VTL(m->execution_state);

    (void)vp;
    if (m->access == HV_INTERCEPT_ACCESS_WRITE && m->gpa / PAGE_SIZE == closed_page / PAGE_SIZE) {
        hv_protect_pages(HV_INPUT_VTL(0), closed_page, 1, HV_MAP_GPA_ALL);
        closed_page = 0;
        say("allowed, and nobody is above me: the write may land");
        return false;
    }
    vtl2_log[from]++;
    say("refused and logged: #GP for VTL%u", from);
    return true;
}

void vtl2_main(struct vp *vp)
{
    static const struct level level = {hypercall_page, start, serve, refuse};

    level_run(vp, &level);
}
