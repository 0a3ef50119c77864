/*
 * One VTL above VTL0. A VTL call ends in a fast return, since RAX and RCX are the caller's to lose. After an intercept, and when
 * a higher VTL returns over a level that has nothing to do with it, the return must be a normal one: whoever runs below was
 * stopped between two instructions and misses every register.
 */
#include "apic.h"
#include "console.h"
#include "cpu.h"
#include "vtls3.h"

#define VECTOR_SINT0 0x30
#define SPINS_FOR_MESSAGE 100000

static void on_interrupt(struct vp *vp, u8 vector)
{
    if (vector != VECTOR_SINT0)
        fail("unexpected interrupt, vector 0x%x", vector);
    if (hv_take_message(vp, &vp->message))
        vp->message_arrived = true;
    apic_eoi(vp);
}

static void set_up(struct vp *vp, const struct level *level)
{
    if (!vp->index)
        hv_enable_hypercall_page(level->hypercall_page);
    hv_use_hypercall_page(vp, level->hypercall_page);
    hv_learn_vtl_switch(vp, level->hypercall_page);
    hv_enable_assist_page(vp);
    vp->on_interrupt = on_interrupt;
    hv_enable_synic(vp, VECTOR_SINT0);
    interrupts_on();
}

static void handle_message(struct vp *vp, const struct level *level)
{
    static const char *const verbs[] = {"reads", "writes", "executes"};
    const struct hv_memory_intercept *m = (const void *)vp->message.payload;
    u32 from = HV_EXECUTION_STATE_VTL(m->execution_state);

    vp->message_arrived = false;
    if (vp->message.type != HvMessageTypeGpaIntercept || m->access > HV_INTERCEPT_ACCESS_EXECUTE)
        fail("message of type 0x%x, access %u", vp->message.type, m->access);
    if (m->vp_index != vp->index)
        fail("the message names VP%u", m->vp_index);
    say("intercept: VTL%u %s GPA 0x%lx at RIP 0x%lx", from, verbs[m->access], m->gpa, m->rip);
    if (level->refuse(vp, m))
        hv_set_register(HV_INPUT_VTL(from), HvRegisterPendingEvent0, HV_PENDING_EXCEPTION(VECTOR_GENERAL_PROTECTION, 0));
}

void level_run(struct vp *vp, const struct level *level)
{
    struct hv_vp_assist_page *assist = hv_assist_page(vp);
    struct shared_registers *r = &vp->lower;

    if (r->rbx != SERVICE_START)
        fail("first entered for service %lu", r->rbx);
    set_up(vp, level);
    level->start(vp);
    r->rbx = STATUS_OK;
    vtl_return(HV_VTL_RETURN_FAST);

    for (;;) {
        u32 reason = *(volatile u32 *)&assist->entry_reason;

        assist->entry_reason = 0;
        if (reason == HvVtlEntryVtlCall) {
            u64 result = 0;
            r->rbx = level->serve(vp, r->rbx, r->rsi, &result);
            r->rdx = result;
            vtl_return(HV_VTL_RETURN_FAST);
            continue;
        }
        for (u32 i = 0; reason == HvVtlEntryIntercept && i < SPINS_FOR_MESSAGE && !vp->message_arrived; i++)
            cpu_relax();
        if (vp->message_arrived)
            handle_message(vp, level);
        else if (reason == HvVtlEntryIntercept)
            fail("entered for an intercept, but SINT0 brought no message");
        else
            say("nothing here is for me: VTL2 returns to VTL0, and I pass it down");
        assist->vtl_return_rax = r->rax;
        assist->vtl_return_rcx = r->rcx;
        vtl_return(HV_VTL_RETURN_NORMAL);
    }
}

u64 ask(enum service service, u64 a)
{
    u64 result, status = vtl_call(service, a, 0, &result);

    if (status != STATUS_OK)
        fail("the VTL above answers service %u with status %lu", service, status);
    return result;
}

void enable_protection(void)
{
    u64 config = hv_get_register(HvRegisterVsmPartitionConfig);

    config |= HV_VSM_PARTITION_CONFIG_ENABLE_VTL_PROTECTION | HV_VSM_PARTITION_CONFIG_DEFAULT_MASK(HV_MAP_GPA_ALL);
    hv_set_register(HV_INPUT_VTL_CURRENT, HvRegisterVsmPartitionConfig, config);
}
