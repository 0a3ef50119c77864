/*
 * The VTL1 side. On each VP it sets itself up at its first entry and then lives in one loop: return to VTL0, learn at the next
 * entry why it was entered, act. A VTL call ends in a fast return, since RAX and RCX are the caller's to lose; an intercept
 * must end in a normal one, for VTL0 was stopped between two instructions and misses every register.
 *
 * Interrupts are on whenever VTL1 waits in vtl_return: an intercept message makes the vector of SINT0 pending in VTL1's own
 * local APIC, so its handler runs first at the entry and the loop finds the message taken.
 */
#include "apic.h"
#include "console.h"
#include "cpu.h"
#include "demo.h"
#include "hyperv.h"
#include "smp.h"

#define REGISTER_RSP 4
#define VECTOR_SINT0 0x30
#define SPINS_FOR_MESSAGE 100000

SECTION_PRIVATE struct vp vtl1_vps[MAX_VPS];
SECTION_PRIVATE struct page_tables vtl1_tables;
SECTION_PRIVATE u64 vtl1_key[PAGE_SIZE / sizeof(u64)] __attribute__((aligned(PAGE_SIZE)));
SECTION_PRIVATE static u8 hypercall_page[PAGE_SIZE] __attribute__((aligned(PAGE_SIZE)));
SECTION_PRIVATE static u64 closed_page;

static void on_interrupt(struct vp *vp, u8 vector)
{
    if (vector != VECTOR_SINT0)
        fail("unexpected interrupt, vector 0x%x", vector);
    if (hv_take_message(vp, &vp->message))
        vp->message_arrived = true;
    apic_eoi(vp);
}

/* Its own code must be out of VTL0's reach too, or VTL0 could have it do anything; VTL0 still runs the code that both use. */
static void protect_partition(void)
{
    u64 pages = (u64)(private_end - private_start) / PAGE_SIZE, code = (u64)(code_end - code_start) / PAGE_SIZE;
    u64 config = hv_get_register(HvRegisterVsmPartitionConfig);

    config |= HV_VSM_PARTITION_CONFIG_ENABLE_VTL_PROTECTION | HV_VSM_PARTITION_CONFIG_DEFAULT_MASK(HV_MAP_GPA_ALL);
    hv_set_register(HV_INPUT_VTL_CURRENT, HvRegisterVsmPartitionConfig, config);
    if (!(hv_get_register(HvRegisterVsmPartitionConfig) & HV_VSM_PARTITION_CONFIG_ENABLE_VTL_PROTECTION))
        fail("protection does not stay enabled");
    hv_protect_pages(HV_INPUT_VTL(0), (u64)private_start, pages, HV_MAP_GPA_NONE);
    hv_protect_pages(HV_INPUT_VTL(0), (u64)code_start, code, HV_MAP_GPA_READ_EXECUTE);
    say("protection on: %lu pages are mine alone, %lu pages of code are read-only for VTL0", pages, code);
}

static void enable_other_vps(const struct vp *vp)
{
    u32 count = vp_count;

    /* Once VTL1 exists VTL0 may enable it on no other VP, so that every VP starts VTL1 in a context that VTL1 chose. */
    for (u32 i = 1; i < count && i < MAX_VPS; i++) {
        vp_init(&vtl1_vps[i], vp->vtl, i, vps[i].apic_id);
        vtl1_vps[i].main = vtl1_main;
        hv_enable_vp_vtl(&vtl1_vps[i], &vtl1_tables);
        say("VTL1 enabled on VP%u", i);
    }
}

static void start(struct vp *vp)
{
    bool first = vp->index == 0;

    if (first)
        hv_enable_hypercall_page(hypercall_page);
    hv_use_hypercall_page(vp, hypercall_page);
    hv_learn_vtl_switch(vp, hypercall_page);
    hv_enable_assist_page(vp);
    vp->on_interrupt = on_interrupt;
    hv_enable_synic(vp, VECTOR_SINT0);
    interrupts_on();
    say("first entry: own stack, tables, hypercall page, VP assist page, SynIC and local APIC");
    if (!first)
        return;
    /* A constant, so that runs can be compared; it is out of VTL0's reach from here on. */
    for (u32 i = 0; i < PAGE_SIZE / sizeof(u64); i++)
        vtl1_key[i] = (i + 1) * 0x9e3779b97f4a7c15;
    protect_partition();
    enable_other_vps(vp);
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

static enum status close_page(u64 gpa)
{
    bool mine = gpa >= (u64)private_start && gpa < (u64)private_end;
    bool code = gpa >= (u64)code_start && gpa < (u64)code_end;

    if (gpa % PAGE_SIZE || mine || code)
        return STATUS_REFUSED;
    hv_protect_pages(HV_INPUT_VTL(0), gpa, 1, HV_MAP_GPA_NONE);
    closed_page = gpa;
    say("took all access to GPA 0x%lx away from VTL0", gpa);
    return STATUS_OK;
}

static void serve(struct vp *vp)
{
    struct shared_registers *r = &vp->lower;
    u64 service = r->rbx, a = r->rsi, b = r->rdi;

    r->rbx = STATUS_OK;
    r->rdx = 0;
    if (service == SERVICE_SIGN)
        r->rdx = sign(a);
    else if (service == SERVICE_VERIFY)
        r->rdx = sign(a) == b;
    else if (service == SERVICE_CLOSE)
        r->rbx = close_page(a);
    else
        r->rbx = STATUS_UNKNOWN_SERVICE;
}

static void check_intercept(const struct vp *vp, const struct hv_memory_intercept *m)
{
    const u8 *instruction = m->access == HV_INTERCEPT_ACCESS_WRITE ? try_write_instruction : try_read_instruction;

    if (m->vp_index != vp->index || HV_EXECUTION_STATE_VTL(m->execution_state) != 0)
        fail("the message names VP%u of VTL%u", m->vp_index, HV_EXECUTION_STATE_VTL(m->execution_state));
    if (m->rip != (u64)instruction || m->cs.selector != SELECTOR_CODE64)
        fail("the message names RIP 0x%x:0x%lx, not 0x%lx", m->cs.selector, m->rip, (u64)instruction);
    if (m->access_info & HV_ACCESS_INFO_GVA_VALID && m->gva != m->gpa)
        fail("the message names GVA 0x%lx for GPA 0x%lx", m->gva, m->gpa);
    for (u32 i = 0; i < m->instruction_byte_count; i++)
        if (m->instruction_bytes[i] != instruction[i])
            fail("instruction byte %u in the message is 0x%x, not 0x%x", i, m->instruction_bytes[i], instruction[i]);
    for (u32 i = 0; i < 16; i++)
        if (i != REGISTER_RSP && m->registers[i] != ((const u64 *)&vp->lower)[i])
            fail("register %u in the message is 0x%lx, not 0x%lx", i, m->registers[i], ((const u64 *)&vp->lower)[i]);
}

static void handle_intercept(struct vp *vp)
{
    static const char *const verbs[] = {"read", "wrote", "executed"};
    const struct hv_memory_intercept *m = (const void *)vp->message.payload;

    for (u32 i = 0; i < SPINS_FOR_MESSAGE && !vp->message_arrived; i++)
        cpu_relax();
    if (!vp->message_arrived)
        fail("entered for an intercept or interrupt, but SINT0 brought no message");
    vp->message_arrived = false;
    if (vp->message.type != HvMessageTypeGpaIntercept || vp->message.payload_size != sizeof *m)
        fail("message of type 0x%x, %u bytes", vp->message.type, vp->message.payload_size);
    if (m->access > HV_INTERCEPT_ACCESS_EXECUTE)
        fail("the message names access %u", m->access);
    check_intercept(vp, m);

    bool allowed = m->access == HV_INTERCEPT_ACCESS_WRITE && closed_page && m->gpa / PAGE_SIZE == closed_page / PAGE_SIZE;
    say("intercept on SINT0: VP%u of VTL%u %s GPA 0x%lx at RIP 0x%lx", m->vp_index,
        HV_EXECUTION_STATE_VTL(m->execution_state), verbs[m->access], m->gpa, m->rip);
    if (allowed) {
        hv_protect_pages(HV_INPUT_VTL(0), closed_page, 1, HV_MAP_GPA_ALL);
        closed_page = 0;
        say("allowed: access restored");
    } else {
        hv_set_register(HV_INPUT_VTL(0), HvRegisterPendingEvent0, HV_PENDING_EXCEPTION(VECTOR_GENERAL_PROTECTION, 0));
        say("refused: #GP injected");
    }
}

void vtl1_main(struct vp *vp)
{
    struct hv_vp_assist_page *assist = hv_assist_page(vp);

    if (vp->lower.rbx != SERVICE_START)
        fail("first entered for service %lu", vp->lower.rbx);
    start(vp);
    vp->lower.rbx = STATUS_OK;
    vtl_return(HV_VTL_RETURN_FAST);

    for (;;) {
        u32 reason = *(volatile u32 *)&assist->entry_reason;

        if (reason == HvVtlEntryVtlCall) {
            serve(vp);
            vtl_return(HV_VTL_RETURN_FAST);
        } else if (reason == HvVtlEntryInterrupt || reason == HvVtlEntryIntercept) {
            handle_intercept(vp);
            assist->vtl_return_rax = vp->lower.rax;
            assist->vtl_return_rcx = vp->lower.rcx;
            vtl_return(HV_VTL_RETURN_NORMAL);
        } else {
            fail("entry reason %u", reason);
        }
    }
}
