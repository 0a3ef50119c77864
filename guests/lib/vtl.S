/*
 * VTL switches. RIP, RSP, RFLAGS, the control registers, GS base and the descriptor tables are private to a VTL; the other
 * general registers are shared, RAX and RCX being used up by the switching sequences in the hypercall page.
 */
#include "vp.h"

    .text
    .code64

/*
 * u64 vtl_call(u64 service, u64 a, u64 b, u64 *result). Our convention across the switch: RBX service in and status out,
 * RSI and RDI arguments, RDX result. The VTL call control input, RCX, must be zero.
 */
    .globl vtl_call
vtl_call:
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    push %rcx
    mov %rdi, %rbx
    mov %rdx, %rdi
    xor %eax, %eax
    xor %ecx, %ecx
    call *%gs:VP_VTL_CALL
    pop %rcx
    mov %rdx, (%rcx)
    mov %rbx, %rax
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    ret

    .macro save_lower
    mov %rax, %gs:VP_LOWER
    mov %rcx, %gs:VP_LOWER + 8
    mov %rdx, %gs:VP_LOWER + 16
    mov %rbx, %gs:VP_LOWER + 24
    mov %rbp, %gs:VP_LOWER + 40
    mov %rsi, %gs:VP_LOWER + 48
    mov %rdi, %gs:VP_LOWER + 56
    mov %r8, %gs:VP_LOWER + 64
    mov %r9, %gs:VP_LOWER + 72
    mov %r10, %gs:VP_LOWER + 80
    mov %r11, %gs:VP_LOWER + 88
    mov %r12, %gs:VP_LOWER + 96
    mov %r13, %gs:VP_LOWER + 104
    mov %r14, %gs:VP_LOWER + 112
    mov %r15, %gs:VP_LOWER + 120
    .endm

/* Where the initial context of a VTL points: the stack and GS base are its own, all general registers still the lower VTL's. */
    .globl vtl_entry
vtl_entry:
    save_lower
    cld
    mov %gs:VP_SELF, %rdi
    call *%gs:VP_MAIN
    ud2

/*
 * void vtl_return(u64 control): gives the lower VTL its registers back and returns at the next entry into this one, with the
 * lower VTL's registers of that moment saved. RAX and RCX go by the VP assist page unless control has the fast return bit.
 */
    .globl vtl_return
vtl_return:
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rdi, %rcx
    xor %eax, %eax
    mov %gs:VP_LOWER + 16, %rdx
    mov %gs:VP_LOWER + 24, %rbx
    mov %gs:VP_LOWER + 40, %rbp
    mov %gs:VP_LOWER + 48, %rsi
    mov %gs:VP_LOWER + 56, %rdi
    mov %gs:VP_LOWER + 64, %r8
    mov %gs:VP_LOWER + 72, %r9
    mov %gs:VP_LOWER + 80, %r10
    mov %gs:VP_LOWER + 88, %r11
    mov %gs:VP_LOWER + 96, %r12
    mov %gs:VP_LOWER + 104, %r13
    mov %gs:VP_LOWER + 112, %r14
    mov %gs:VP_LOWER + 120, %r15
    call *%gs:VP_VTL_RETURN
    save_lower
    cld
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    ret
    .section .note.GNU-stack, "", @progbits
