/*
 * The bare VTL switches of `vtlcall`: nothing between them but the counter, which lives in the shared RBX. VTL1 has used the
 * registers up when it returns first, to a vtl_call that keeps VTL0's on its stack; after that it touches RAX and RCX only.
 */
#include "vp.h"

    .text
    .code64
    .globl bench_vtl_calls
bench_vtl_calls:
    push %rbx
    mov %rdi, %rbx
1:  xor %ecx, %ecx
    call *%gs:VP_VTL_CALL
    dec %rbx
    jnz 1b
    pop %rbx
    ret

    .globl bench_vtl_returns
bench_vtl_returns:
1:  mov $1, %ecx
    call *%gs:VP_VTL_RETURN
    jmp 1b
    .section .note.GNU-stack, "", @progbits
