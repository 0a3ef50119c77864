#include "hyperv.h"
#include "apic.h"
#include "console.h"
#include "cpu.h"

#define CPUID1_ECX_HYPERVISOR (1u << 31)

/* Open source OS, no vendor of the list: only that it is not zero matters. */
#define GUEST_OS_ID 0x8f00000000000001

#define REPS(n) ((u64)(n) << 32)
#define RESULT_STATUS(result) ((u16)(result))
#define RESULT_REPS(result) ((u32)((result) >> 32 & 0xfff))
#define MAX_PAGES_A_CALL 128

#define VTL_CALL_OFFSET(offsets) ((offsets) & 0xfff)
#define VTL_RETURN_OFFSET(offsets) ((offsets) >> 12 & 0xfff)

#define SEGMENT_CODE64 0xa09b
#define SEGMENT_DATA 0xc093
#define SEGMENT_TSS_BUSY 0x008b
#define SEGMENT_LDT 0x0082
#define RFLAGS_FIXED 0x2
#define EFER_LME_LMA 0x500
#define CR0_PROTECTED_PAGING 0x80010033 /* PG WP NE ET MP PE */
#define CR4_PAE 0x20
#define PAT_RESET 0x0007040600070406

struct target {
    u64 partition;
    u32 vp_index;
    u8 vtl;
    u8 reserved[3];
};

const char *hv_why_no_vsm(void)
{
    if (!(cpuid(1).ecx & CPUID1_ECX_HYPERVISOR))
        return "CPUID names no hypervisor";
    if (cpuid(HV_CPUID_VENDOR).eax < HV_CPUID_FEATURES || cpuid(HV_CPUID_INTERFACE).eax != HV_INTERFACE_HV1)
        return "the hypervisor has no interface Hv#1";
    struct cpuid_result features = cpuid(HV_CPUID_FEATURES);
    if (!(features.eax & HV_EAX_ACCESS_HYPERCALL_MSRS) || !(features.eax & HV_EAX_ACCESS_SYNIC_REGS))
        return "the partition has no hypercalls or no SynIC";
    if (!(features.ebx & HV_EBX_ACCESS_VSM) || !(features.ebx & HV_EBX_ACCESS_VP_REGISTERS))
        return "the partition lacks the privileges AccessVsm and AccessVpRegisters";
    return NULL;
}

void hv_enable_hypercall_page(void *page)
{
    wrmsr(HV_X64_MSR_GUEST_OS_ID, GUEST_OS_ID);
    wrmsr(HV_X64_MSR_HYPERCALL, (u64)page | HV_MSR_ENABLE);
    if (!(rdmsr(HV_X64_MSR_HYPERCALL) & HV_MSR_ENABLE))
        fail("the hypercall page does not stay enabled");
}

void hv_use_hypercall_page(struct vp *vp, void *page) { vp->hypercall = (u64)page; }

void hv_learn_vtl_switch(struct vp *vp, void *page)
{
    u64 offsets = hv_get_register(HvRegisterVsmCodePageOffsets);

    vp->vtl_switch = (u64)page + (vp->vtl ? VTL_RETURN_OFFSET(offsets) : VTL_CALL_OFFSET(offsets));
}

static void hypercall(const char *name, u64 code, u32 reps)
{
    struct vp *vp = this_vp();
    u64 result, control = code | REPS(reps), input = (u64)vp->hypercall_input;
    register u64 output asm("r8") = (u64)vp->hypercall_output;

    asm volatile("call *%4"
                 : "=a"(result), "+c"(control), "+d"(input), "+r"(output)
                 : "m"(vp->hypercall)
                 : "r9", "r10", "r11", "memory", "cc");
    if (RESULT_STATUS(result) || RESULT_REPS(result) != reps)
        fail("%s: status 0x%x, %u of %u reps", name, RESULT_STATUS(result), RESULT_REPS(result), reps);
}

static void *input_page(void)
{
    u8 *page = this_vp()->hypercall_input;

    for (u32 i = 0; i < sizeof this_vp()->hypercall_input; i++)
        page[i] = 0;
    return page;
}

u64 hv_get_register(u32 name)
{
    struct {
        struct target target;
        u32 name;
    } *input = input_page();
    const u64 *output = (const u64 *)this_vp()->hypercall_output;

    input->target = (struct target){HV_PARTITION_ID_SELF, HV_VP_INDEX_SELF, HV_INPUT_VTL_CURRENT, {0}};
    input->name = name;
    hypercall("HvCallGetVpRegisters", HvCallGetVpRegisters, 1);
    return output[0];
}

void hv_set_register(u8 input_vtl, u32 name, u64 value)
{
    struct {
        struct target target;
        u32 name;
        u32 reserved[3];
        u64 value[2];
    } *input = input_page();

    input->target = (struct target){HV_PARTITION_ID_SELF, HV_VP_INDEX_SELF, input_vtl, {0}};
    input->name = name;
    input->value[0] = value;
    hypercall("HvCallSetVpRegisters", HvCallSetVpRegisters, 1);
}

void hv_enable_partition_vtl(u8 vtl)
{
    struct {
        u64 partition;
        u8 vtl;
        u8 flags;
        u8 reserved[6];
    } *input = input_page();

    input->partition = HV_PARTITION_ID_SELF;
    input->vtl = vtl;
    hypercall("HvCallEnablePartitionVtl", HvCallEnablePartitionVtl, 0);
}

void hv_enable_vp_vtl(struct vp *target, struct page_tables *tables)
{
    const struct hv_segment_register data = {0, 0xffffffff, SELECTOR_DATA, SEGMENT_DATA};
    struct {
        struct target target;
        struct hv_initial_vp_context context;
    } *input = input_page();
    struct hv_initial_vp_context *c = &input->context;

    input->target = (struct target){HV_PARTITION_ID_SELF, target->index, (u8)target->vtl, {0}};
    c->rip = (u64)vtl1_entry;
    c->rsp = vp_stack_top(target);
    c->rflags = RFLAGS_FIXED;
    c->cs = (struct hv_segment_register){0, 0xffffffff, SELECTOR_CODE64, SEGMENT_CODE64};
    c->ds = c->es = c->fs = c->gs = c->ss = data;
    c->gs.base = (u64)target;
    c->tr = (struct hv_segment_register){(u64)&target->tss, sizeof target->tss - 1, SELECTOR_TSS, SEGMENT_TSS_BUSY};
    c->ldtr = (struct hv_segment_register){0, 0xffff, 0, SEGMENT_LDT};
    c->idtr = (struct hv_table_register){{0}, sizeof target->idt - 1, (u64)target->idt};
    c->gdtr = (struct hv_table_register){{0}, sizeof target->gdt - 1, (u64)target->gdt};
    c->efer = EFER_LME_LMA;
    c->cr0 = CR0_PROTECTED_PAGING;
    c->cr3 = (u64)tables;
    c->cr4 = CR4_PAE;
    c->pat = PAT_RESET;
    hypercall("HvCallEnableVpVtl", HvCallEnableVpVtl, 0);
}

void hv_protect_pages(u64 gpa, u64 count, u32 flags)
{
    while (count) {
        struct {
            u64 partition;
            u32 flags;
            u8 vtl;
            u8 reserved[3];
            u64 pages[];
        } *input = input_page();
        u32 reps = count < MAX_PAGES_A_CALL ? (u32)count : MAX_PAGES_A_CALL;

        input->partition = HV_PARTITION_ID_SELF;
        input->flags = flags;
        input->vtl = HV_INPUT_VTL(0);
        for (u32 i = 0; i < reps; i++)
            input->pages[i] = gpa / PAGE_SIZE + i;
        hypercall("HvCallModifyVtlProtectionMask", HvCallModifyVtlProtectionMask, reps);
        gpa += (u64)reps * PAGE_SIZE;
        count -= reps;
    }
}

void hv_enable_assist_page(struct vp *vp) { wrmsr(HV_X64_MSR_VP_ASSIST_PAGE, (u64)vp->assist_page | HV_MSR_ENABLE); }

void hv_enable_synic(struct vp *vp, u8 vector)
{
    apic_enable(vp);
    wrmsr(HV_X64_MSR_SIMP, (u64)vp->message_page | HV_MSR_ENABLE);
    wrmsr(HV_X64_MSR_SINT0, vector);
    wrmsr(HV_X64_MSR_SCONTROL, HV_MSR_ENABLE);
}

bool hv_take_message(struct vp *vp, struct hv_message *message)
{
    volatile struct hv_message *slot = (volatile struct hv_message *)vp->message_page;

    if (slot->type == HvMessageTypeNone)
        return false;
    *message = *slot;
    slot->type = HvMessageTypeNone;
    /* The hypervisor sets the flag when it finds the slot full: look only once the slot is seen to be empty. */
    asm volatile("mfence" : : : "memory");
    if (slot->flags & HV_MESSAGE_FLAG_PENDING)
        wrmsr(HV_X64_MSR_EOM, 0);
    return true;
}
