#include <stdarg.h>

#include "test.h"

u32 vp_count;
u8 hypercall_page[PAGE_SIZE] ALIGNED_PAGE;

static u32 checks, failures;

__attribute__((weak)) u32 vps_to_start = MAX_VPS;

void report(bool ok, const char *format, ...)
{
    va_list arguments;

    __atomic_fetch_add(&checks, 1, __ATOMIC_RELAXED);
    if (!ok)
        __atomic_fetch_add(&failures, 1, __ATOMIC_RELAXED);
    va_start(arguments, format);
    say_after(ok ? "PASS: " : "FAIL: ", format, arguments);
    va_end(arguments);
}

void report_equal(u64 found, u64 expected, const char *what)
{
    if (found == expected)
        report(true, "%s", what);
    else
        report(false, "%s: 0x%lx, not 0x%lx", what, found, expected);
}

void summary(void) { say("%u checks, %u failed", checks, failures); }

void finish(void)
{
    summary();
    exit_with(failures || !checks);
}

void on_each_vp(void (*work)(struct vp *vp))
{
    for (u32 i = 0; i < vp_count; i++)
        smp_run(i, work);
}

void start_work(u32 index, void (*work)(struct vp *vp))
{
    vps[index].work = work;
    apic_send(vps, vps[index].apic_id, ICR_FIXED | ICR_ASSERT | VECTOR_WAKE);
}

void wait_for_work(u32 index)
{
    while (vps[index].work)
        halt_until_interrupt();
}

void count_interrupt(struct vp *vp, u8 vector)
{
    vp->interrupts[vector]++;
    if (vector != VECTOR_SPURIOUS)
        apic_eoi(vp);
}

bool wait_interrupts(struct vp *vp, u8 vector, u32 count)
{
    interrupts_on();
    for (u32 i = 0; i < SPINS_FOR_EVENT && vp->interrupts[vector] < count; i++)
        cpu_relax();
    interrupts_off();
    return vp->interrupts[vector] >= count;
}

void let_interrupts_in(void)
{
    interrupts_on();
    for (u32 i = 0; i < SPINS_FOR_NOTHING; i++)
        cpu_relax();
    interrupts_off();
}

void guest_main(void)
{
    console_init();
    vp_count = smp_start(vps_to_start);
    hv_enable_hypercall_page(hypercall_page);
    for (u32 i = 0; i < vp_count; i++) {
        vps[i].on_interrupt = count_interrupt;
        hv_use_hypercall_page(&vps[i], hypercall_page);
    }
    test();
    finish();
}
