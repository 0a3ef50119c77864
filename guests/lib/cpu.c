#include "cpu.h"
#include "console.h"
#include "platform.h"

#define GATE_INTERRUPT 0x8e
#define GATE_SIZE 16
#define GATE_INTERRUPT_USER 0xee
#define DESCRIPTOR_USER_DATA 0x00cff3000000ffff
#define DESCRIPTOR_USER_CODE64 0x00affb000000ffff
#define DESCRIPTOR_TSS 0x0000890000000000

struct __attribute__((packed)) table_register {
    u16 limit;
    u64 base;
};

extern const u64 boot_gdt[];
extern const u8 vector_entries[];

void halt_forever(void)
{
    for (;;)
        asm volatile("cli; hlt");
}

void vp_init(struct vp *vp, u32 vtl, u32 index, u32 apic_id)
{
    vp->self = vp;
    vp->vtl = vtl;
    vp->index = index;
    vp->apic_id = apic_id;

    /* A double fault may come from a broken stack, so it alone gets another. */
    vp->tss.ist[0] = (u64)(vp->exception_stack + sizeof vp->exception_stack);
    vp->tss.io_map_base = sizeof vp->tss;

    u64 tss = (u64)&vp->tss;
    for (u32 i = 0; i < 4; i++)
        vp->gdt[i] = boot_gdt[i];
    vp->gdt[4] = DESCRIPTOR_TSS | (sizeof vp->tss - 1) | (tss & 0xffffff) << 16 | (tss >> 24 & 0xff) << 56;
    vp->gdt[5] = tss >> 32;
    vp->gdt[6] = DESCRIPTOR_USER_DATA;
    vp->gdt[7] = DESCRIPTOR_USER_CODE64;

    for (u32 i = 0; i < 256; i++) {
        u64 entry = (u64)(vector_entries + GATE_SIZE * i);
        vp->idt[i] = (struct idt_gate){
            .offset_low = (u16)entry,
            .selector = SELECTOR_CODE64,
            .ist = i == VECTOR_DOUBLE_FAULT,
            .type = i == VECTOR_USER_DONE ? GATE_INTERRUPT_USER : GATE_INTERRUPT,
            .offset_middle = (u16)(entry >> 16),
            .offset_high = (u32)(entry >> 32),
        };
    }
}

void vp_load(struct vp *vp)
{
    struct table_register gdtr = {sizeof vp->gdt - 1, (u64)vp->gdt};
    struct table_register idtr = {sizeof vp->idt - 1, (u64)vp->idt};

    asm volatile("lgdt %0" : : "m"(gdtr));
    asm volatile("lidt %0" : : "m"(idtr));
    asm volatile("ltr %w0" : : "r"(SELECTOR_TSS));
    wrmsr(MSR_GS_BASE, (u64)vp);
}

static void report_exception(const struct interrupt_frame *f)
{
    static const char names[] = "DEDBMIBPOFBRUDNMDF??TSNPSSGPPF??MFACMCXMVECP";
    u64 cr2;

    asm volatile("mov %%cr2, %0" : "=r"(cr2));
    if (f->vector < (sizeof names - 1) / 2)
        fail("exception %u (#%c%c), error code 0x%lx, RIP 0x%lx, CR2 0x%lx, RSP 0x%lx", (u32)f->vector,
             names[2 * f->vector], names[2 * f->vector + 1], f->error_code, f->rip, cr2, f->rsp);
    fail("exception %u, error code 0x%lx, RIP 0x%lx, CR2 0x%lx", (u32)f->vector, f->error_code, f->rip, cr2);
}

static void leave_trap(struct vp *vp, struct interrupt_frame *f)
{
    vp->trapped.error_code = f->error_code;
    vp->trapped.rip = f->rip;
    asm volatile("mov %%cr2, %0" : "=r"(vp->trapped.cr2));
    f->rax = f->vector == VECTOR_USER_DONE ? NO_EXCEPTION : f->vector;
    f->rip = (u64)trap_landing;
    f->rsp = vp->trap;
    f->cs = SELECTOR_CODE64;
    f->ss = SELECTOR_DATA;
}

/* Called by vectors.S. */
void interrupt(struct interrupt_frame *f)
{
    struct vp *vp = this_vp();

    if (vp->trap && (f->vector < FIRST_INTERRUPT_VECTOR || f->vector == VECTOR_USER_DONE)) {
        leave_trap(vp, f);
    } else if (f->vector >= FIRST_INTERRUPT_VECTOR) {
        if (!vp->on_interrupt)
            fail("unexpected interrupt, vector 0x%x, RIP 0x%lx", (u32)f->vector, f->rip);
        vp->on_interrupt(vp, (u8)f->vector);
    } else if (vp->fixup && f->vector == VECTOR_GENERAL_PROTECTION) {
        f->rax = f->rip;
        f->rip = vp->fixup;
        vp->fixup = 0;
    } else {
        report_exception(f);
    }
}
