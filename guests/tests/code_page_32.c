/* A VTL1 of 32-bit code without paging: the offsets it reads are for it, and its VTL return by the page works. */
#include "vtls.h"

static u8 stack[PAGE_SIZE] ALIGNED_PAGE;
static u64 gdt[4] __attribute__((aligned(16)));
extern const u8 entry32[];
struct get {
    struct hv_target target;
    u32 name;
};
struct get input32 __attribute__((aligned(16)));
u64 output32[2] __attribute__((aligned(16)));
volatile u32 served32, status32;
u8 upper_page32[PAGE_SIZE] ALIGNED_PAGE;

/*
 * The input value is in EDX:EAX, the input's address in EBX:ECX, the output's in EDI:ESI. The VTL return's control input is in
 * EDX:EAX: 1, a fast return. EBP counts the entries: its value comes back to VTL0 in it.
 */
asm(".code32\n"
    "entry32:\n"
    "mov $0x40000000, %ecx; mov $1, %eax; mov $0x80000000, %edx; wrmsr\n"
    "mov $0x40000001, %ecx; mov $upper_page32 + 1, %eax; xor %edx, %edx; wrmsr\n"
    "mov $1, %edx; mov $0x50, %eax\n"
    "xor %ebx, %ebx; mov $input32, %ecx; xor %edi, %edi; mov $output32, %esi\n"
    "mov $upper_page32, %ebp; call *%ebp\n"
    "mov %eax, status32\n"
    "1: incl served32\n"
    "mov output32, %ebx; shr $12, %ebx; and $0xfff, %ebx; add $upper_page32, %ebx\n"
    "mov $1, %eax; xor %edx, %edx\n"
    "call *%ebx\n"
    "jmp 1b\n"
    ".code64\n");

static void enable(void)
{
    static struct vp upper;
    struct {
        struct hv_target target;
        struct hv_initial_vp_context context;
    } *input;
    struct {
        u64 partition;
        u8 vtl, flags, reserved[6];
    } *partition = hv_input();

    partition->partition = HV_PARTITION_ID_SELF;
    partition->vtl = 1;
    report_equal(hv_call(HvCallEnablePartitionVtl), 0, "VTL1 on the partition");
    vp_init(&upper, 1, 0, 0);
    for (u32 i = 0; i < 4; i++)
        gdt[i] = upper.gdt[i];
    input = hv_input();
    input->target = (struct hv_target){HV_PARTITION_ID_SELF, HV_VP_INDEX_SELF, 1, {0}};
    hv_initial_context(&input->context, &upper, &boot_tables);
    input->context.cs = (struct hv_segment_register){0, 0xffffffff, SELECTOR_CODE32, 0xc09b};
    input->context.gs.base = 0;
    input->context.gdtr = (struct hv_table_register){{0}, sizeof gdt - 1, (u64)gdt};
    input->context.rip = (u64)entry32;
    input->context.rsp = (u64)(stack + sizeof stack);
    input->context.efer = 0;
    input->context.cr0 = 0x31;
    input->context.cr3 = input->context.cr4 = 0;
    report_equal(hv_call(HvCallEnableVpVtl), 0, "VTL1 on the VP, in 32-bit protected mode without paging");
}

static void call(void)
{
    asm volatile("push %%rbp; call *%0; pop %%rbp"
                 :
                 : "m"(this_vp()->vtl_call), "c"(0ull)
                 : "rax", "rbx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory");
}

void test(void)
{
    input32.target = (struct hv_target){HV_PARTITION_ID_SELF, HV_VP_INDEX_SELF, 0, {0}};
    input32.name = HvRegisterVsmCodePageOffsets;
    hv_learn_vtl_switch(vps, hypercall_page);
    enable();
    call();
    report_equal(served32, 1, "a VTL call from 64-bit code enters it, and its VTL return comes back");
    report_equal(status32, 0, "its hypercall has succeeded");
    u64 own = hv_get_register(HvRegisterVsmCodePageOffsets);
    report((output32[0] & 0xfff) && (output32[0] >> 12 & 0xfff), "it has read offsets");
    report(output32[0] != own, "and they are not those of 64-bit code");
    call();
    call();
    report_equal(served32, 3, "each call goes on where its last return was");
}
