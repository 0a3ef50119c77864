#include "vtls.h"

u32 vtl_entries[MAX_VTLS][MAX_TEST_VPS][4];
void (*volatile on_message)(struct vp *vp, const struct hv_message *message);

static struct vp upper_vps[MAX_VTLS - 1][MAX_TEST_VPS];
static struct page_tables upper_tables;
static u8 upper_pages[MAX_VTLS - 1][PAGE_SIZE] ALIGNED_PAGE;
static u32 starting;

struct vp *vp_of(u32 vtl, u32 index) { return vtl ? &upper_vps[vtl - 1][index] : &vps[index]; }

u64 in_vtl(u32 vtl, u64 (*f)(u64), u64 a)
{
    u64 result;

    if (this_vp()->vtl == vtl)
        return f(a);
    vtl_call(vtl, (u64)f, a, &result);
    return result;
}

static void take_interrupt(struct vp *vp, u8 vector)
{
    if (vector == VECTOR_SINT0 && hv_take_message(vp, &vp->message))
        vp->message_arrived = true;
    count_interrupt(vp, vector);
}

static void set_up(struct vp *vp)
{
    u8 *page = upper_pages[vp->vtl - 1];

    if (!vp->index)
        hv_enable_hypercall_page(page);
    hv_use_hypercall_page(vp, page);
    hv_learn_vtl_switch(vp, page);
    hv_enable_assist_page(vp);
    vp->on_interrupt = take_interrupt;
    hv_enable_synic(vp, VECTOR_SINT0);
    interrupts_on();
}

static void serve(struct vp *vp)
{
    struct shared_registers *r = &vp->lower;

    if (r->rbx == vp->vtl)
        r->rdx = ((u64(*)(u64))r->rsi)(r->rdi);
    else
        vtl_call(r->rbx, r->rsi, r->rdi, &r->rdx);
}

static void upper_main(struct vp *vp)
{
    struct hv_vp_assist_page *assist = hv_assist_page(vp);

    set_up(vp);
    for (;;) {
        u32 reason = *(volatile u32 *)&assist->entry_reason;

        assist->entry_reason = 0;
        vtl_entries[vp->vtl][vp->index][reason & 3]++;
        if (reason == HvVtlEntryVtlCall) {
            serve(vp);
            vtl_return(HV_VTL_RETURN_FAST);
            continue;
        }
        if (vp->message_arrived) {
            vp->message_arrived = false;
            if (!on_message)
                fail("a message of type 0x%x that nothing expects", vp->message.type);
            on_message(vp, &vp->message);
        }
        assist->vtl_return_rax = vp->lower.rax;
        assist->vtl_return_rcx = vp->lower.rcx;
        vtl_return(HV_VTL_RETURN_NORMAL);
    }
}

static u64 enable_first(u64 level)
{
    hv_enable_partition_vtl((u8)level);
    hv_enable_vp_vtl(vp_of((u32)level, 0), &upper_tables);
    return 0;
}

static u64 enable_others(u64 level)
{
    for (u32 i = 1; i < vp_count; i++)
        hv_enable_vp_vtl(vp_of((u32)level, i), &upper_tables);
    return 0;
}

static u64 nothing(u64 a) { return a; }

static void enter(struct vp *vp)
{
    (void)vp;
    in_vtl(starting, nothing, 0);
}

void vtls_start(u32 set)
{
    u32 highest = 0;
    const char *why = hv_why_no_vsm();

    if (why)
        fail("no VSM: %s", why);
    if (vp_count > MAX_TEST_VPS)
        fail("%u VPs, at most %u", vp_count, MAX_TEST_VPS);
    paging_build(&upper_tables);
    hv_learn_vtl_switch(vps, hypercall_page);
    for (u32 i = 1; i < vp_count; i++)
        vps[i].vtl_call = vps->vtl_call;
    for (u32 level = 1; level < MAX_VTLS; level++) {
        if (!(set >> level & 1))
            continue;
        for (u32 i = 0; i < vp_count; i++) {
            vp_init(vp_of(level, i), level, i, vps[i].apic_id);
            vp_of(level, i)->main = upper_main;
        }
        in_vtl(highest, enable_first, level);
        in_vtl(level, enable_others, level);
        starting = level;
        on_each_vp(enter);
        highest = level;
    }
}

u64 protect_by_default(u64 mask)
{
    u64 config = hv_get_register(HvRegisterVsmPartitionConfig);

    config |= HV_VSM_PARTITION_CONFIG_ENABLE_VTL_PROTECTION | HV_VSM_PARTITION_CONFIG_DEFAULT_MASK(mask);
    return hv_try_set_register(HV_VP_INDEX_SELF, HV_INPUT_VTL_CURRENT, HvRegisterVsmPartitionConfig, config);
}

u16 install_intercept(enum hv_intercept_type type, u32 access, u64 parameter)
{
    struct {
        u64 partition;
        u32 access, type;
        u64 parameter;
    } *input = hv_input();

    input->partition = HV_PARTITION_ID_SELF;
    input->access = access;
    input->type = type;
    input->parameter = parameter;
    return HV_STATUS(hv_call(HvCallInstallIntercept));
}

void skip_lower(const struct hv_message *message)
{
    const struct {
        HV_INTERCEPT_HEADER;
    } *m = (const void *)message->payload;

    hv_set_register(HV_INPUT_VTL(HV_EXECUTION_STATE_VTL(m->execution_state)), HvX64RegisterRip, m->rip + m->instruction_length);
}
