#include "smp.h"
#include "apic.h"
#include "console.h"
#include "cpu.h"
#include "paging.h"
#include "platform.h"

#define TRAMPOLINE 0x8000
#define CPUID1_ECX_X2APIC (1u << 21)
#define DELAY_AFTER_INIT 20000
#define SPINS_FOR_START (1u << 24)

struct vp vps[MAX_VPS];

extern const u8 ap_trampoline[], ap_trampoline_end[];
extern u32 starting_vp;

/* Called by start.S, as ap_start below. */
void boot_vp_start(struct vp *vp);
void ap_start(struct vp *vp);

static bool want_x2apic(void) { return command_line_word("x2apic") && cpuid(1).ecx & CPUID1_ECX_X2APIC; }

static void on_interrupt(struct vp *vp, u8 vector)
{
    if (vector == VECTOR_SPURIOUS)
        return;
    if (vector != VECTOR_WAKE)
        fail("unexpected interrupt, vector 0x%x", vector);
    apic_eoi(vp);
}

static void apic_start(struct vp *vp)
{
    vp->on_interrupt = on_interrupt;
    apic_enable(vp);
    if (want_x2apic())
        apic_to_x2apic(vp);
}

void boot_vp_start(struct vp *vp)
{
    vp_init(vp, 0, 0, 0);
    vp_load(vp);
    paging_build(&boot_tables);
    write_cr3((u64)&boot_tables);
    guest_main();
    power_off();
}

void ap_start(struct vp *vp)
{
    vp_load(vp);
    apic_start(vp);
    vp->online = true;
    for (;;) {
        while (!vp->work)
            halt_until_interrupt();
        vp->work(vp);
        vp->work = NULL;
        apic_send(vp, vps[0].apic_id, ICR_FIXED | ICR_ASSERT | VECTOR_WAKE);
    }
}

static bool start_one(struct vp *vp)
{
    starting_vp = (u32)(u64)vp;
    apic_send(vps, vp->apic_id, ICR_INIT | ICR_ASSERT);
    for (volatile u32 i = 0; i < DELAY_AFTER_INIT; i++)
        ;
    /* The second start-up IPI is for processors that miss the first; one that is up ignores it. */
    for (u32 attempt = 0; attempt < 2 && !vp->online; attempt++) {
        apic_send(vps, vp->apic_id, ICR_STARTUP | ICR_ASSERT | TRAMPOLINE >> 12);
        for (u32 i = 0; i < SPINS_FOR_START && !vp->online; i++)
            cpu_relax();
    }
    return vp->online;
}

u32 smp_start(u32 limit)
{
    u32 apic_ids[MAX_VPS];
    u32 found = processors(apic_ids), up = 1;

    mask_legacy_interrupts();
    apic_start(vps);
    vps[0].apic_id = apic_read_id(vps);
    vps[0].online = true;
    for (const u8 *from = ap_trampoline; from < ap_trampoline_end; from++)
        ((u8 *)TRAMPOLINE)[from - ap_trampoline] = *from;
    for (u32 i = 0; i < found && up < limit; i++) {
        if (apic_ids[i] == vps[0].apic_id)
            continue;
        vp_init(&vps[up], 0, up, apic_ids[i]);
        if (!start_one(&vps[up]))
            fail("the processor with APIC ID %u does not start", apic_ids[i]);
        up++;
    }
    return up;
}

void smp_run(u32 index, void (*work)(struct vp *vp))
{
    struct vp *vp = &vps[index];

    if (!index) {
        work(vp);
        return;
    }
    vp->work = work;
    apic_send(vps, vp->apic_id, ICR_FIXED | ICR_ASSERT | VECTOR_WAKE);
    while (vp->work)
        halt_until_interrupt();
}
