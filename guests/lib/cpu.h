/* The processor: instructions that C has no words for, descriptor tables, exceptions. */
#ifndef CPU_H
#define CPU_H

#include "vp.h"

#define MSR_APIC_BASE 0x1b
#define MSR_EFER 0xc0000080
#define MSR_PAT 0x277
#define MSR_GS_BASE 0xc0000101

#define VECTOR_DOUBLE_FAULT 8
#define VECTOR_GENERAL_PROTECTION 13
#define FIRST_INTERRUPT_VECTOR 32

#define VECTOR_UNDEFINED 6
#define VECTOR_PAGE_FAULT 14
#define NO_EXCEPTION 0xffffffff

struct interrupt_frame {
    u64 r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax;
    u64 vector, error_code;
    u64 rip, cs, rflags, rsp, ss;
};

struct cpuid_result {
    u32 eax, ebx, ecx, edx;
};

static inline struct cpuid_result cpuid(u32 leaf)
{
    struct cpuid_result r;
    asm volatile("cpuid" : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx) : "a"(leaf), "c"(0));
    return r;
}

static inline u64 rdmsr(u32 msr)
{
    u32 low, high;
    asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr));
    return (u64)high << 32 | low;
}

static inline void wrmsr(u32 msr, u64 value)
{
    asm volatile("wrmsr" : : "c"(msr), "a"((u32)value), "d"((u32)(value >> 32)) : "memory");
}

static inline void outb(u16 port, u8 value) { asm volatile("outb %0, %1" : : "a"(value), "Nd"(port) : "memory"); }
static inline void outw(u16 port, u16 value) { asm volatile("outw %0, %1" : : "a"(value), "Nd"(port) : "memory"); }

static inline u8 inb(u16 port)
{
    u8 value;
    asm volatile("inb %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

static inline void write_cr3(u64 value) { asm volatile("mov %0, %%cr3" : : "r"(value) : "memory"); }
static inline void cpu_relax(void) { asm volatile("pause" : : : "memory"); }
static inline void interrupts_on(void) { asm volatile("sti" : : : "memory"); }
static inline void interrupts_off(void) { asm volatile("cli" : : : "memory"); }

/* To be called with interrupts off: the shadow of STI lets none in before HLT, so no wake-up is lost. */
static inline void halt_until_interrupt(void) { asm volatile("sti; hlt; cli" : : : "memory"); }

void halt_forever(void) __attribute__((noreturn));

void vp_init(struct vp *vp, u32 vtl, u32 index, u32 apic_id);
void vp_load(struct vp *vp);

/* Run f(a), in trap_user at CPL 3: the vector of the exception that ended it (see vp->trapped), or NO_EXCEPTION. Not nested. */
u32 trap(void (*f)(void *), void *a);
u32 trap_user(void (*f)(void *), void *a);
void trap_landing(void);

u64 try_read(const volatile u64 *address, u64 *value);
u64 try_write(volatile u64 *address, u64 value);
extern const u8 try_read_instruction[], try_write_instruction[];

#endif
