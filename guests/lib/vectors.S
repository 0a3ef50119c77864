/* One entry per IDT vector, all 16 bytes long: they make the frame of `struct interrupt_frame` alike and call C. */
#include "vp.h"

    .text
    .code64
    .globl vector_entries
    .align 16
vector_entries:
    .set vector, 0
    .rept 256
    .align 16
    .if !((vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21))
    push $0
    .endif
    push $vector
    jmp enter_c
    .set vector, vector + 1
    .endr

    .align 16
enter_c:
    push %rax
    push %rcx
    push %rdx
    push %rbx
    push %rbp
    push %rsi
    push %rdi
    push %r8
    push %r9
    push %r10
    push %r11
    push %r12
    push %r13
    push %r14
    push %r15
    cld
    mov %rsp, %rdi
    call interrupt
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %r11
    pop %r10
    pop %r9
    pop %r8
    pop %rdi
    pop %rsi
    pop %rbp
    pop %rbx
    pop %rdx
    pop %rcx
    pop %rax
    add $16, %rsp
    iretq

/*
 * u64 try_read(const volatile u64 *address, u64 *value), u64 try_write(volatile u64 *address, u64 value): 0, or the RIP at
 * which the access took #GP. try_read_instruction and try_write_instruction name the accesses themselves.
 */
    .globl try_read, try_read_instruction
try_read:
    lea 1f(%rip), %rax
    mov %rax, %gs:VP_FIXUP
try_read_instruction:
    mov (%rdi), %rax
    mov %rax, (%rsi)
    jmp 2f

    .globl try_write, try_write_instruction
try_write:
    lea 1f(%rip), %rax
    mov %rax, %gs:VP_FIXUP
try_write_instruction:
    mov %rsi, (%rdi)
2:  movq $0, %gs:VP_FIXUP
    xor %eax, %eax
1:  ret
    .section .note.GNU-stack, "", @progbits
