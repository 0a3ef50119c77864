/*
 * What one virtual processor keeps for one VTL: the GS base of that VTL points at it, because GS base is private to each
 * VTL while the general registers are shared. Assembly files know the first fields by the VP_* offsets.
 */
#ifndef VP_H
#define VP_H

#define MAX_VPS 16

#define VECTOR_USER_DONE 0x80

#define SELECTOR_CODE32 0x08
#define SELECTOR_DATA 0x10
#define SELECTOR_CODE64 0x18
#define SELECTOR_TSS 0x20
#define SELECTOR_USER_DATA 0x33
#define SELECTOR_USER_CODE64 0x3b

#define VP_SELF 0
#define VP_FIXUP 8
#define VP_VTL_CALL 16
#define VP_VTL_RETURN 24
#define VP_MAIN 32
#define VP_TRAP 40
#define VP_RSP0 52
#define VP_LOWER 152

#define VP_STACK_SIZE 8192
#define VP_SIZE (9 * 4096)

#ifndef __ASSEMBLER__

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int64_t i64;

/* The general registers in the order of their encoding; RSP is private to a VTL and its place stays unused. */
struct shared_registers {
    u64 rax, rcx, rdx, rbx, unused_rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15;
};

struct hv_message {
    u32 type;
    u8 payload_size;
    u8 flags;
    u16 reserved;
    u64 origin;
    u8 payload[240];
};

struct __attribute__((packed)) tss {
    u32 reserved0;
    u64 rsp[3];
    u64 reserved1;
    u64 ist[7];
    u64 reserved2;
    u16 reserved3;
    u16 io_map_base;
};

struct idt_gate {
    u16 offset_low;
    u16 selector;
    u8 ist;
    u8 type;
    u16 offset_middle;
    u32 offset_high;
    u32 reserved;
};

/* What the last exception under `trap` or `trap_user` was. */
struct trapped {
    u64 error_code, rip, cr2;
};

struct vp {
    struct vp *self;
    u64 fixup;      /* where the next #GP goes on, with its RIP in RAX; 0: it is reported and ends the run */
    u64 vtl_call, vtl_return; /* the VTL switch sequences of the hypercall page of this VTL */
    void (*main)(struct vp *vp); /* above VTL0: the first code of this VTL on this VP */
    u64 trap;                    /* where `trap` or `trap_user` waits (an RSP); 0: exceptions are reported and end the run */
    struct tss tss;
    struct shared_registers lower; /* above VTL0: what the shared registers held when this VTL was entered */

    u32 index;
    u32 vtl;
    u32 apic_id;
    bool x2apic;
    volatile bool online;
    u64 hypercall; /* entry of the ordinary hypercall sequence */
    void (*on_interrupt)(struct vp *vp, u8 vector);

    void (*volatile work)(struct vp *vp); /* what smp_run asks this VP to do */
    volatile bool message_arrived;
    struct hv_message message;

    struct trapped trapped;
    volatile u32 interrupts[256]; /* how many of each vector `test.c` has counted */

    u64 gdt[8] __attribute__((aligned(16)));
    struct idt_gate idt[256] __attribute__((aligned(4096)));
    u8 hypercall_input[2048] __attribute__((aligned(4096)));
    u8 hypercall_output[2048];
    u8 assist_page[4096];
    u8 message_page[4096];
    u8 event_page[4096];
    u8 exception_stack[4096];
    u8 stack[VP_STACK_SIZE];
} __attribute__((aligned(4096)));

_Static_assert(offsetof(struct vp, self) == VP_SELF, "VP_SELF");
_Static_assert(offsetof(struct vp, fixup) == VP_FIXUP, "VP_FIXUP");
_Static_assert(offsetof(struct vp, vtl_call) == VP_VTL_CALL, "VP_VTL_CALL");
_Static_assert(offsetof(struct vp, vtl_return) == VP_VTL_RETURN, "VP_VTL_RETURN");
_Static_assert(offsetof(struct vp, main) == VP_MAIN, "VP_MAIN");
_Static_assert(offsetof(struct vp, trap) == VP_TRAP, "VP_TRAP");
_Static_assert(offsetof(struct vp, tss.rsp) == VP_RSP0, "VP_RSP0");
_Static_assert(offsetof(struct vp, lower) == VP_LOWER, "VP_LOWER");
_Static_assert(sizeof(struct vp) == VP_SIZE, "VP_SIZE");
_Static_assert(sizeof(struct hv_message) == 256, "hv_message");
_Static_assert(sizeof(struct tss) == 104, "tss");

static inline struct vp *this_vp(void)
{
    struct vp *vp;
    asm volatile("mov %%gs:%c1, %0" : "=r"(vp) : "i"(VP_SELF));
    return vp;
}

static inline u64 vp_stack_top(struct vp *vp) { return (u64)(vp + 1); }

#endif
#endif
