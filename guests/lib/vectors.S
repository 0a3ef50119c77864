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

    .macro enter_trap
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, %gs:VP_TRAP
    mov %rdi, %rax
    mov %rsi, %rdi
    .endm

/* See cpu.h. leave_trap comes to trap_landing with the stack of enter_trap and the answer in RAX. */
    .globl trap, trap_user, trap_landing
trap:
    enter_trap
    call *%rax
    mov $-1, %eax
trap_landing:
    movq $0, %gs:VP_TRAP
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    ret

/* The user's stack is the next KiB of ours; exceptions use what comes below it. */
trap_user:
    enter_trap
    lea -1024(%rsp), %rcx
    mov %rcx, %gs:VP_RSP0
    lea -8(%rsp), %rcx
    movq $user_done, (%rcx)
    sub $2048, %rsp
    push $SELECTOR_USER_DATA
    push %rcx
    pushf
    push $SELECTOR_USER_CODE64
    push %rax
    iretq
user_done:
    int $VECTOR_USER_DONE

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
