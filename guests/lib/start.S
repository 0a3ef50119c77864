/*
 * From the loader to 64-bit C. The boot processor arrives by the PVH protocol (32-bit, paging off, EBX = start info); the
 * others arrive by a start-up IPI in real mode, in the copy of ap_trampoline that smp.c puts below 1 MiB.
 */
#include "vp.h"

#define XEN_ELFNOTE_PHYS32_ENTRY 18
#define CR0_PE 0x00000001
#define CR0_MP 0x00000002
#define CR0_ET 0x00000010
#define CR0_NE 0x00000020
#define CR0_WP 0x00010000
#define CR0_NW_CD 0x60000000
#define CR0_PG 0x80000000
#define CR4_PAE 0x20
#define MSR_EFER 0xc0000080
#define EFER_LME 0x100
#define PAGE_PRESENT_WRITE 0x03
#define PAGE_LARGE 0x80

    .section .note.pvh, "a", @note
    .align 4
    .long 4, 8, XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad pvh_start

    .section .text.start, "ax"
    .code32
    .globl pvh_start
pvh_start:
    cli
    cld
    lgdt boot_gdtr
    ljmp $SELECTOR_CODE32, $1f
1:  mov $SELECTOR_DATA, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov %ebx, start_info

    /* The first GiB is enough to reach C, which maps the rest. */
    movl $(boot_tables + 0x1000 + PAGE_PRESENT_WRITE), boot_tables
    movl $(boot_tables + 0x2000 + PAGE_PRESENT_WRITE), boot_tables + 0x1000
    mov $(boot_tables + 0x2000), %edi
    mov $(PAGE_PRESENT_WRITE | PAGE_LARGE), %eax
1:  mov %eax, (%edi)
    add $8, %edi
    add $0x200000, %eax
    cmp $0x40000000, %eax
    jb 1b

    mov $vps, %edi
    mov $boot_vp_start, %esi
    jmp enter_long_mode

ap_start32:
    mov $SELECTOR_DATA, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov starting_vp, %edi
    mov $ap_start, %esi

enter_long_mode:
    lea VP_SIZE(%edi), %esp
    mov $CR4_PAE, %eax
    mov %eax, %cr4
    mov $boot_tables, %eax
    mov %eax, %cr3
    mov $MSR_EFER, %ecx
    rdmsr
    or $EFER_LME, %eax
    wrmsr
    mov $(CR0_PG | CR0_WP | CR0_NE | CR0_ET | CR0_MP | CR0_PE), %eax
    mov %eax, %cr0
    ljmp $SELECTOR_CODE64, $1f
    .code64
1:  xor %eax, %eax
    mov %eax, %fs
    mov %eax, %gs
    mov %edi, %edi
    mov %esi, %esi
    xor %ebp, %ebp
    call *%rsi
    ud2

    .code16
    .globl ap_trampoline, ap_trampoline_end
ap_trampoline:
    cli
    mov %cs, %ax
    mov %ax, %ds
    lgdtl boot_gdtr_copy - ap_trampoline
    mov %cr0, %eax
    and $~CR0_NW_CD, %eax
    or $CR0_PE, %eax
    mov %eax, %cr0
    ljmpl $SELECTOR_CODE32, $ap_start32
    .align 4
boot_gdtr_copy:
    .word boot_gdt_end - boot_gdt - 1
    .long boot_gdt
ap_trampoline_end:

    .section .rodata.boot, "a"
    .align 8
    .globl boot_gdt
boot_gdt:
    .quad 0
    .quad 0x00cf9b000000ffff
    .quad 0x00cf93000000ffff
    .quad 0x00af9b000000ffff
boot_gdt_end:
boot_gdtr:
    .word boot_gdt_end - boot_gdt - 1
    .long boot_gdt

    .bss
    .align 4
    .globl start_info, starting_vp
start_info:
    .long 0
starting_vp:
    .long 0
    .section .note.GNU-stack, "", @progbits
