#include "apic.h"
#include "cpu.h"

#define APIC_BASE_EXTD 0x400
#define APIC_BASE_ENABLE 0x800
#define SPURIOUS_APIC_ENABLE 0x100
#define X2APIC_MSR 0x800
#define X2APIC_ICR 0x830

static u32 apic_read(const struct vp *vp, u32 offset)
{
    if (vp->x2apic)
        return (u32)rdmsr(X2APIC_MSR + (offset >> 4));
    return *(const volatile u32 *)(u64)(APIC_PAGE + offset);
}

static void apic_write(const struct vp *vp, u32 offset, u32 value)
{
    if (vp->x2apic)
        wrmsr(X2APIC_MSR + (offset >> 4), value);
    else
        *(volatile u32 *)(u64)(APIC_PAGE + offset) = value;
}

void apic_enable(struct vp *vp)
{
    vp->x2apic = rdmsr(MSR_APIC_BASE) & APIC_BASE_EXTD;
    apic_write(vp, APIC_TPR, 0);
    apic_write(vp, APIC_SPURIOUS, SPURIOUS_APIC_ENABLE | VECTOR_SPURIOUS);
}

void apic_to_x2apic(struct vp *vp)
{
    wrmsr(MSR_APIC_BASE, rdmsr(MSR_APIC_BASE) | APIC_BASE_EXTD | APIC_BASE_ENABLE);
    vp->x2apic = true;
}

u32 apic_read_id(struct vp *vp)
{
    u32 id = apic_read(vp, APIC_ID);
    return vp->x2apic ? id : id >> 24;
}

void apic_eoi(struct vp *vp) { apic_write(vp, APIC_EOI, 0); }

void apic_send(struct vp *vp, u32 apic_id, u32 command)
{
    if (vp->x2apic) {
        /* Unlike the page, the MSR orders nothing: what the receiver is to see must be visible first. */
        asm volatile("mfence; lfence" : : : "memory");
        wrmsr(X2APIC_ICR, (u64)apic_id << 32 | command);
        return;
    }
    while (apic_read(vp, APIC_ICR_LOW) & ICR_PENDING)
        cpu_relax();
    apic_write(vp, APIC_ICR_HIGH, apic_id << 24);
    apic_write(vp, APIC_ICR_LOW, command);
}
