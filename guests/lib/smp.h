/* The VPs of VTL0: starting them, and running one piece of work at a time on any of them. */
#ifndef SMP_H
#define SMP_H

#include "vp.h"

#define VECTOR_WAKE 0xe0

extern struct vp vps[MAX_VPS];

/* Defined by each guest; runs on the boot processor, VP 0, with its tables loaded. */
void guest_main(void);

/* Enables the local APIC of VP 0 and starts the first `limit` of the machine's processors; returns how many are up. */
u32 smp_start(u32 limit);

/* Runs `work` on VP `index` and returns when it is done. Both sides sleep in HLT and wake each other by IPI. VP 0 only. */
void smp_run(u32 index, void (*work)(struct vp *vp));

#endif
