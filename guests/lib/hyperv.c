#include "hyperv.h"
#include "apic.h"
#include "console.h"
#include "cpu.h"

#define CPUID1_ECX_HYPERVISOR (1u << 31)

/* Open source OS, no vendor of the list: only that it is not zero matters. */
#define GUEST_OS_ID 0x8f00000000000001

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

    vp->vtl_call = (u64)page + VTL_CALL_OFFSET(offsets);
    vp->vtl_return = (u64)page + VTL_RETURN_OFFSET(offsets);
}

u64 hv_hypercall(u64 control, u64 input, u64 output)
{
    u64 result;
    register u64 r8 asm("r8") = output;

    asm volatile("call *%4"
                 : "=a"(result), "+c"(control), "+d"(input), "+r"(r8)
                 : "m"(this_vp()->hypercall)
                 : "r9", "r10", "r11", "memory", "cc");
    return result;
}

void *hv_input(void)
{
    u8 *page = this_vp()->hypercall_input;

    for (u32 i = 0; i < sizeof this_vp()->hypercall_input; i++)
        page[i] = 0;
    return page;
}

void *hv_output(void) { return this_vp()->hypercall_output; }

u64 hv_call(u64 control)
{
    struct vp *vp = this_vp();

    return hv_hypercall(control, (u64)vp->hypercall_input, (u64)vp->hypercall_output);
}

static void hypercall(const char *name, u64 code, u32 reps)
{
    u64 result = hv_call(code | HV_REPS(reps));

    if (HV_STATUS(result) || HV_REPS_DONE(result) != reps)
        fail("%s: status 0x%x, %u of %u reps", name, HV_STATUS(result), HV_REPS_DONE(result), reps);
}

u16 hv_try_get_register(u32 vp_index, u8 input_vtl, u32 name, u64 *value)
{
    struct {
        struct hv_target target;
        u32 name;
    } *input = hv_input();
    const u64 *output = hv_output();

    input->target = (struct hv_target){HV_PARTITION_ID_SELF, vp_index, input_vtl, {0}};
    input->name = name;
    u16 status = HV_STATUS(hv_call(HvCallGetVpRegisters | HV_REPS(1)));
    if (!status)
        *value = output[0];
    return status;
}

u16 hv_try_set_register(u32 vp_index, u8 input_vtl, u32 name, u64 value)
{
    struct {
        struct hv_target target;
        u32 name;
        u32 reserved[3];
        u64 value[2];
    } *input = hv_input();

    input->target = (struct hv_target){HV_PARTITION_ID_SELF, vp_index, input_vtl, {0}};
    input->name = name;
    input->value[0] = value;
    return HV_STATUS(hv_call(HvCallSetVpRegisters | HV_REPS(1)));
}

u64 hv_get_register_of(u8 input_vtl, u32 name)
{
    u64 value = 0;
    u16 status = hv_try_get_register(HV_VP_INDEX_SELF, input_vtl, name, &value);

    if (status)
        fail("HvCallGetVpRegisters 0x%x: status 0x%x", name, status);
    return value;
}

u64 hv_get_register(u32 name) { return hv_get_register_of(HV_INPUT_VTL_CURRENT, name); }

void hv_set_register(u8 input_vtl, u32 name, u64 value)
{
    u16 status = hv_try_set_register(HV_VP_INDEX_SELF, input_vtl, name, value);

    if (status)
        fail("HvCallSetVpRegisters 0x%x: status 0x%x", name, status);
}

void hv_enable_partition_vtl(u8 vtl)
{
    struct {
        u64 partition;
        u8 vtl;
        u8 flags;
        u8 reserved[6];
    } *input = hv_input();

    input->partition = HV_PARTITION_ID_SELF;
    input->vtl = vtl;
    hypercall("HvCallEnablePartitionVtl", HvCallEnablePartitionVtl, 0);
}

void hv_initial_context(struct hv_initial_vp_context *c, struct vp *target, struct page_tables *tables)
{
    const struct hv_segment_register data = {0, 0xffffffff, SELECTOR_DATA, SEGMENT_DATA};

    *c = (struct hv_initial_vp_context){
        .rip = (u64)vtl_entry,
        .rsp = vp_stack_top(target),
        .rflags = RFLAGS_FIXED,
        .cs = {0, 0xffffffff, SELECTOR_CODE64, SEGMENT_CODE64},
        .ds = data,
        .es = data,
        .fs = data,
        .gs = {(u64)target, 0xffffffff, SELECTOR_DATA, SEGMENT_DATA},
        .ss = data,
        .tr = {(u64)&target->tss, sizeof target->tss - 1, SELECTOR_TSS, SEGMENT_TSS_BUSY},
        .ldtr = {0, 0xffff, 0, SEGMENT_LDT},
        .idtr = {{0}, sizeof target->idt - 1, (u64)target->idt},
        .gdtr = {{0}, sizeof target->gdt - 1, (u64)target->gdt},
        .efer = EFER_LME_LMA,
        .cr0 = CR0_PROTECTED_PAGING,
        .cr3 = (u64)tables,
        .cr4 = CR4_PAE,
        .pat = PAT_RESET,
    };
}

void hv_enable_vp_vtl(struct vp *target, struct page_tables *tables)
{
    struct {
        struct hv_target target;
        struct hv_initial_vp_context context;
    } *input = hv_input();

    input->target = (struct hv_target){HV_PARTITION_ID_SELF, target->index, (u8)target->vtl, {0}};
    hv_initial_context(&input->context, target, tables);
    hypercall("HvCallEnableVpVtl", HvCallEnableVpVtl, 0);
}

void hv_protect_pages(u8 input_vtl, u64 gpa, u64 count, u32 flags)
{
    while (count) {
        struct {
            u64 partition;
            u32 flags;
            u8 vtl;
            u8 reserved[3];
            u64 pages[];
        } *input = hv_input();
        u32 reps = count < MAX_PAGES_A_CALL ? (u32)count : MAX_PAGES_A_CALL;

        input->partition = HV_PARTITION_ID_SELF;
        input->flags = flags;
        input->vtl = input_vtl;
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
