/* The local APIC of the running VP and VTL, by its page or, once it is in x2APIC mode, by its MSRs. */
#ifndef APIC_H
#define APIC_H

#include "vp.h"

#define APIC_PAGE 0xfee00000
#define APIC_ID 0x20
#define APIC_TPR 0x80
#define APIC_EOI 0xb0
#define APIC_SPURIOUS 0xf0
#define APIC_ICR_LOW 0x300
#define APIC_ICR_HIGH 0x310

#define ICR_FIXED 0x000
#define ICR_INIT 0x500
#define ICR_STARTUP 0x600
#define ICR_PENDING 0x1000
#define ICR_ASSERT 0x4000

#define VECTOR_SPURIOUS 0xff

void apic_enable(struct vp *vp);
void apic_to_x2apic(struct vp *vp);
u32 apic_read_id(struct vp *vp);
void apic_eoi(struct vp *vp);
void apic_send(struct vp *vp, u32 apic_id, u32 command);

#endif
